"""Routes in the transformers engine: models whose layers are views of resident source layers.

A route gets a model of its own, of as many layers as it has hops, so that key-value caches, layer types and
sliding windows are per hop as in the exported checkpoint. Its modules are new, which costs a fraction of a
millisecond a layer; its weights are those of the sources, so a layer that is repeated costs no weight memory.

Scales are folded as in the exported checkpoint (`merging.folding`), but into what goes through the modules
instead of into copies of their weights: (W / S) x + b / S = (W x + b) / S, LN(x) with weight -w is LN(-x) with
weight w, and (S W) x = W (S x). So the norms' epsilon acts as it does in the exported checkpoint; multiplying the
stream itself would differ from that by the epsilon's effect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evomerge import operators
from evomerge.checkpoints import Role, is_buffer, is_finite
from evomerge.errors import InfeasibleError, SourceError
from evomerge.fitness.architecture import empty_model, read_settings
from evomerge.fitness.config import EngineConfig
from evomerge.merging import MergePlan, PlannedTensor, Sources, make_tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class RouteBuilder:
    """Builds the models of routes over one set of sources, and keeps their weights between candidates.

    Weights that a route takes as they are in a source stay: they are views of the resident source where that has the
    engine's dtype and device, else one copy for all routes. Blended ones stay until the next candidate is built.
    """

    def __init__(self, settings: type[PretrainedConfig], config: EngineConfig, device: torch.device) -> None:
        """Hold nothing yet.

        Args:
            settings: class of the models' configuration.
            config: dtype of the weights.
            device: where the models run.
        """
        self._settings = settings
        self._config = config
        self._device = device
        self._taken: dict[int, tuple[object, dict[tuple[object, ...], Tensor]]] = {}
        self._blended: dict[tuple[object, ...], Tensor] = {}

    def forget(self, sources: Sources) -> None:
        """Keep only what comes from these sources; to be called when other ones are opened."""
        current = {id(model) for model in sources.models.values()}
        self._taken = {key: kept for key, kept in self._taken.items() if key in current}
        self._blended = {}

    def build(self, merge: MergePlan) -> PreTrainedModel:
        """Build the model of a route, ready for inference.

        Raises:
            InfeasibleError: when a blended weight is not finite, as merged or in the engine's dtype.
            SourceError: when the architecture names its weights otherwise than the checkpoint does.
        """
        config = merge.config()
        try:
            model = empty_model(read_settings(config, self._settings), self._config)
        except (ValueError, ImportError, OSError) as error:
            raise SourceError(f"transformers cannot build the model of this route ({error})") from error
        places = _places(model)
        left = dict(places)
        hooked = _fold_by_hooks(merge, places)
        blended: dict[tuple[object, ...], Tensor] = {}
        for planned in merge.tensors:
            place = places.get(planned.name)
            if place is None and is_buffer(planned.name, planned.info):
                continue  # old checkpoints store rotary frequencies, which the model computes
            if place is None or place.holds.shape != planned.info.shape:
                raise no_place(planned.name)
            wanted = replace(planned, rescale=None) if planned.name in hooked else planned
            place.fill(self._tensor(merge, wanted, place.holds.dtype, blended))
            for name in place.names:
                left.pop(name, None)
        if left:
            raise no_tensor(left)
        self._blended = blended
        if self._device.type != "cpu":
            model.to(self._device)  # type: ignore[arg-type]  # the buffers: the weights are there
        return model

    def _tensor(
        self, merge: MergePlan, planned: PlannedTensor, dtype: torch.dtype, blended: dict[tuple[object, ...], Tensor]
    ) -> Tensor:
        if planned.step is None and planned.rescale is None:
            return self._as_taken(merge, planned, dtype)
        key = (*_made_of(merge, planned), dtype)
        if key not in blended:
            made = self._blended.get(key)
            if made is None:
                made = self._checked(planned.name, make_tensor(merge, planned, str(self._device)), dtype)
            blended[key] = made
        return blended[key]

    def _as_taken(self, merge: MergePlan, planned: PlannedTensor, dtype: torch.dtype) -> Tensor:
        """Return a weight as it is in a source, rounded to the recipe's dtype and then to the engine's."""
        sources, alias = merge.sources, planned.copied_from or merge.sources.reference
        source_name = planned.name_in(alias)
        if is_buffer(planned.name, planned.info):
            return sources.stored(alias, source_name).to(self._device)
        model = sources.models[alias]
        # The model is kept beside its tensors, so that its id stays its own.
        _, kept = self._taken.setdefault(id(model), (model, {}))
        key = (source_name, merge.recipe.dtype, dtype)
        if key not in kept:
            resident = sources.working(alias, source_name)
            rounded = resident.to(planned.info.dtype)
            # Where rounding changes nothing, the view serves.
            exact = torch.equal(rounded.to(resident.dtype), resident)
            kept[key] = self._checked(planned.name, resident if exact else rounded, dtype)
        return kept[key]

    def _checked(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        result = tensor.to(device=self._device, dtype=dtype)
        if dtype != tensor.dtype and not is_finite(result):
            raise not_finite(name, self._config)
        return result


def no_place(name: str) -> SourceError:
    """Build the error about a merged tensor that the model has no place for."""
    return SourceError(
        f"the merged tensor {name!r} has no place of its shape in transformers' model; "
        f"this architecture names its weights differently there and cannot be scored yet"
    )


def no_tensor(names: Collection[str]) -> SourceError:
    """Build the error about places of the model that no merged tensor is for."""
    return SourceError(
        f"the merge gives no tensor {next(iter(names))!r}, which transformers' model needs ({len(names)} such); "
        f"this architecture names its weights differently there and cannot be scored yet"
    )


def not_finite(name: str, config: EngineConfig) -> InfeasibleError:
    """Build the error about a merged tensor that the engine's dtype cannot hold."""
    return InfeasibleError(f"the merged tensor {name!r} is not finite in {config.dtype}")


def _made_of(merge: MergePlan, planned: PlannedTensor) -> tuple[object, ...]:
    """Return all that a blended tensor depends on, over one set of sources."""
    step = planned.step
    read = tuple(sorted((planned.read or {}).items())) or planned.name
    if step is None:
        return merge.recipe.dtype, read, planned.copied_from, planned.rescale
    # Random masks are drawn for the name that a tensor has in the merged model.
    drawn = (planned.name, merge.recipe.seed) if operators.get(step.blend.method).random else None
    return merge.recipe.dtype, read, repr(step.blend), planned.rescale, drawn


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model holds one tensor, under several names where it is tied."""

    holds: Tensor
    """A tensor of its shape and dtype."""
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    """The modules that have it, and as which attribute."""
    names: list[str] = field(default_factory=list)

    def fill(self, tensor: Tensor) -> None:
        value = nn.Parameter(tensor, requires_grad=False) if isinstance(self.holds, nn.Parameter) else tensor
        for module, leaf in self.owners:
            setattr(module, leaf, value)


def _places(model: PreTrainedModel) -> dict[str, _Place]:
    """Return the place of every tensor that a checkpoint holds, by its name there."""
    stored = model.state_dict(keep_vars=True).keys()
    places: dict[int, _Place] = {}
    by_name: dict[str, _Place] = {}
    for prefix, module in model.named_modules():
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            name = f"{prefix}.{leaf}".removeprefix(".")
            if name in stored:
                place = by_name[name] = places.setdefault(id(tensor), _Place(tensor))
                place.owners.append((module, leaf))
                place.names.append(name)
    return by_name


def _fold_by_hooks(merge: MergePlan, places: Mapping[str, _Place]) -> set[str]:
    """Fold the route's scales by hooks on modules, where that is exact.

    Returns:
        The tensors that are folded so; the fold of others has to be done in a copy of them.
    """
    scaled: dict[nn.Module, list[PlannedTensor]] = defaultdict(list)
    for planned in merge.tensors:
        if planned.rescale is not None and planned.name in places:
            scaled[places[planned.name].owners[0][0]].append(planned)
    hooked: set[str] = set()
    for module, tensors in scaled.items():
        if _hook(merge, module, tensors):
            hooked.update(planned.name for planned in tensors)
    return hooked


def _hook(merge: MergePlan, module: nn.Module, tensors: list[PlannedTensor]) -> bool:
    """Register the fold with a module that owns the tensors; False: it is not known to be exact there."""
    from transformers.pytorch_utils import Conv1D

    roles = {_role(merge, planned.name) for planned in tensors}
    own = {name for name, _ in module.named_parameters()}
    folded = {planned.name.rpartition(".")[2] for planned in tensors}
    factors = {planned.rescale.factor for planned in tensors if planned.rescale is not None}
    linear = isinstance(module, nn.Linear | Conv1D)
    if len(factors) != 1 or len(roles) != 1 or not own <= {"weight", "bias"} or "weight" not in folded:
        return False
    factor, role = factors.pop(), roles.pop()
    if folded == own and (role == "branch_norm" or (role == "writer" and linear)):
        module.register_forward_hook(lambda _module, _inputs, output: output * factor)
        return True
    if folded == {"weight"} and (role == "reader_norm" or (role == "raw_reader" and linear)):
        module.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * factor, *inputs[1:]))
        return True
    return False


def _role(merge: MergePlan, name: str) -> Role:
    layout = merge.sources.models[merge.sources.reference].layout
    prefix = f"{layout.stack}."
    if not name.startswith(prefix):
        return "reader_norm"  # of what is outside of the layers, the fold concerns the final norm alone
    part = name.removeprefix(prefix).partition(".")[2]
    return merge.sources.blocks(merge.sources.reference).role(part)
