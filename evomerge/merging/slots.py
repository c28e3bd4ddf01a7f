"""The layers of an engine as slots in which the layers of candidates sit.

An engine is built with a fixed number of layers, each of a fixed kind (Gemma's alternate between local and global
attention). A candidate's layers take, in their order, slots of their kinds; the slots between and behind them are made
exactly the identity: their branches add zero to the stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from evomerge.checkpoints import output_config, routed_config
from evomerge.checkpoints.blocks import text_section
from evomerge.checkpoints.layout import COUNT_KEYS
from evomerge.errors import NotBuiltError
from evomerge.merging.dtypes import DTYPES
from evomerge.merging.plan import MergePlan, plan_route
from evomerge.merging.routes import Hop, Route
from evomerge.merging.sources import Sources

Kind = str
"""What a configuration says of one layer alone, as JSON; empty where that cannot be known."""
_NEUTRAL = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", *COUNT_KEYS})
"""Keys of a configuration that change nothing about a model, and the number of its layers."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What an engine is built from beside the kinds of its layers; candidates of another frame need another engine."""

    text: str
    """The configuration as JSON, without what it says of single layers and without what does not matter."""

    @classmethod
    def of(cls, sources: Sources) -> Frame:
        """Return the frame of all merges that take after the reference of these sources."""
        config = _config(sources)
        try:
            kinds = sources.kinds(sources.reference)
            single = {*kinds.lists, *kinds.members}
        except NotBuiltError:
            single = set()

        def rest(section: dict[str, Any]) -> dict[str, Any]:
            return {
                key: rest(value) if isinstance(value, dict) else value
                for key, value in section.items()
                if key not in single and key not in _NEUTRAL
            }

        return cls(json.dumps(rest(config), sort_keys=True))


def own_slots(sources: Sources) -> tuple[Kind, ...]:
    """Return the kinds of the layers of the reference."""
    return tuple(_kind(sources, sources.reference, layer) for layer in range(sources.num_layers[sources.reference]))


def needed_slots(merge: MergePlan) -> tuple[Kind, ...]:
    """Return the kinds of the layers of a merge."""
    return tuple(_kind_of(merge, hop) for hop in merge.route.hops)


def joined(slots: Sequence[Kind], needed: Sequence[Kind]) -> tuple[Kind, ...]:
    """Return slots in which both sit: the old ones, with what is missing put in.

    Example:
        >>> joined("abab", "aab"), joined("aaa", "aaaaa"), joined("ab", "ab")
        (('a', 'a', 'b', 'a', 'b'), ('a', 'a', 'a', 'a', 'a'), ('a', 'b'))
    """
    result: list[Kind] = []
    for tag, start, end, other, other_end in SequenceMatcher(None, slots, needed, autojunk=False).get_opcodes():
        result += slots[start:end]
        if tag in ("insert", "replace"):
            result += needed[other:other_end]
    return tuple(result)


def seat(merge: MergePlan, slots: Sequence[Kind]) -> MergePlan | None:
    """Lay a merge into slots; None where its layers do not find slots of their kinds in their order.

    Logits are those of the merge itself. It is left as it is where it has just these layers.

    Raises:
        NotBuiltError: when there are slots to spare and the architecture's blocks are not understood.
        SourceError: when a configuration cannot say which layer is of which kind.
    """
    kinds = needed_slots(merge)
    if kinds == tuple(slots):
        return merge
    fillers = dict(zip(kinds, merge.route.hops, strict=True))
    hops: list[Hop] = []
    taken = 0
    scale = 1.0
    for slot in slots:
        if taken < len(kinds) and kinds[taken] == slot:
            hops.append(merge.route.hops[taken])
            scale = hops[-1].scale
            taken += 1
        elif slot in fillers:
            # The scale reached so far goes on: the final norm takes its sign from the last hop.
            hops.append(replace(fillers[slot], is_idle=True, scale=scale))
        else:
            return None
    if taken < len(kinds):
        return None
    return plan_route(merge.recipe, merge.sources, merge.expanded, Route(tuple(hops), is_moved=True))


def widened(merge: MergePlan, slots: Sequence[Kind]) -> tuple[Kind, ...]:
    """Return slots into which a merge fits: the old ones with what is missing put in.

    A merge that has no layer of some kind has nothing to fill its slots with; it gets slots of its own.
    """
    needed = needed_slots(merge)
    return joined(slots, needed) if set(slots) <= set(needed) else needed


def slots_config(sources: Sources, slots: Sequence[Kind]) -> dict[str, Any]:
    """Return the `config.json` of an engine with these slots.

    Raises:
        SourceError: when the configuration cannot say which layer is of which kind.
    """
    config = _config(sources)
    if tuple(slots) == own_slots(sources):
        return config
    return routed_config(config, [json.loads(kind) for kind in slots], sources.reference)


def context_length(sources: Sources) -> int | None:
    """Return the longest context of the reference in tokens, where its configuration says it."""
    length = text_section(sources.models[sources.reference].config).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _config(sources: Sources) -> dict[str, Any]:
    reference = sources.models[sources.reference]
    return output_config(reference.config, DTYPES["float32"], tied=bool(reference.tied))


def _kind_of(merge: MergePlan, hop: Hop) -> Kind:
    return _kind(merge.sources, hop.lead, hop.take[hop.lead])


def _kind(sources: Sources, alias: str, layer: int) -> Kind:
    try:
        return json.dumps(sources.kinds(alias).at(layer), sort_keys=True)
    except NotBuiltError:
        return ""
