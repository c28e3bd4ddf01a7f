"""How a model stores its linear layers."""

from __future__ import annotations

from evomerge.checkpoints.types import ModelSource


def inputs_first(model: ModelSource) -> bool | None:
    """Tell whether linear layers are stored as (inputs, outputs), as GPT-2's `Conv1D` is.

    The bias of a layer that is not square shows it; None where no layer does.
    """
    names = set(model.names())
    for bias in model.names():
        weight = f"{bias.removesuffix('.bias')}.weight"
        if not bias.endswith(".bias") or weight not in names or model.layout.place(bias).layer is None:
            continue
        shape, length = model.info(weight).shape, model.info(bias).shape
        if len(shape) == 2 and shape[0] != shape[1] and length in ((shape[0],), (shape[1],)):
            return length == (shape[1],)
    return None
