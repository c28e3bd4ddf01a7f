"""Routes in a model of a fixed number of layers, so that one warm engine serves all of them."""

from __future__ import annotations

from evomerge.errors import ConfigError
from evomerge.merging.plan import MergePlan, plan_route
from evomerge.merging.routes import in_slots


def lay_in_slots(plan: MergePlan, num_slots: int) -> MergePlan:
    """Lay a merge of at most `num_slots` layers into a model of exactly so many.

    The layers behind the last one are exactly the identity: what their branches add to the stream is zero. They
    repeat the last layer otherwise, so that everything in them is finite. Logits are those of the merge itself.

    Args:
        plan: from `plan`.
        num_slots: layers of the resulting model.

    Raises:
        ConfigError: when the merge has more layers than there are slots.
        NotBuiltError: when it has fewer and the architecture's blocks are not understood.
        SourceError: when a configuration cannot say which layer is of which kind.
    """
    num_layers = len(plan.route.hops)
    if num_layers > num_slots:
        raise ConfigError(f"a route of {num_layers} layers does not fit into {num_slots} slots; limit the hops")
    if num_layers == num_slots:
        return plan
    return plan_route(plan.recipe, plan.sources, plan.expanded, in_slots(plan.route, num_slots))
