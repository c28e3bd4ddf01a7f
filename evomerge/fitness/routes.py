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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evomerge import operators
from evomerge.checkpoints import ModelSource, Role, is_buffer, is_finite
from evomerge.errors import SourceError
from evomerge.fitness.architecture import empty_model, read_settings
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.conversion import Conversion, Group
from evomerge.fitness.loading import check_placed, no_place, no_tensor, not_finite
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
        self._taken: dict[tuple[object, ...], _Weights] = {}
        self._blended: dict[tuple[object, ...], _Weights] = {}

    def forget(self, sources: Sources) -> None:
        """Keep only what comes from these sources; to be called when other ones are opened."""
        current = {id(model) for model in sources.models.values()}
        self._taken = {
            key: kept for key, kept in self._taken.items() if all(id(model) in current for model in kept.models)
        }
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
        conversion = Conversion(model, merge.infos)
        check_placed(conversion, model, merge)
        places = _places(model)
        left = dict(places)
        by_name = {planned.name: planned for planned in merge.tensors}
        for name in _fold_by_hooks(merge, places, conversion):
            by_name[name] = replace(by_name[name], rescale=None)
        blended: dict[tuple[object, ...], _Weights] = {}
        for group in conversion.groups:
            planned = [by_name[name] for name in group.names]
            made = self._weights(merge, conversion, group, planned, places[group.place].holds.dtype, blended)
            for name, tensor in made.items():
                place = places.get(name)
                if place is None or place.holds.shape != tensor.shape:
                    raise no_place(group.names[0], model, merge)
                place.fill(tensor)
                for each in place.names:
                    left.pop(each, None)
        if left:
            raise no_tensor(left, model, merge)
        self._blended = blended
        if self._device.type != "cpu":
            model.to(self._device)  # type: ignore[arg-type]  # the buffers: the weights are there
        return model

    def _weights(
        self,
        merge: MergePlan,
        conversion: Conversion,
        group: Group,
        planned: list[PlannedTensor],
        dtype: torch.dtype,
        blended: dict[tuple[object, ...], _Weights],
    ) -> Mapping[str, Tensor]:
        """Return what the model holds of a group, by name in the model: made now, or for a route or hop before."""
        if len(planned) == 1 and is_buffer(planned[0].name, planned[0].info):
            alias = planned[0].copied_from or merge.sources.reference
            return {group.place: merge.sources.stored(alias, planned[0].name_in(alias)).to(self._device)}
        is_taken = all(each.step is None and each.rescale is None for each in planned)
        models = tuple(merge.sources.models[_alias(merge, each)] for each in planned) if is_taken else ()
        key = (dtype, tuple(map(id, models)), *(_made_of(merge, each) for each in planned))
        kept = self._taken.get(key) or blended.get(key) or self._blended.get(key)
        if kept is None:
            tensors = [self._tensor(merge, each, dtype) for each in planned]
            kept = _Weights(group.place, conversion.convert(group, tensors), models)
        (self._taken if is_taken else blended)[key] = kept
        return kept.at(group.place)

    def _tensor(self, merge: MergePlan, planned: PlannedTensor, dtype: torch.dtype) -> Tensor:
        if planned.step is not None or planned.rescale is not None:
            return self._checked(planned.name, make_tensor(merge, planned, str(self._device)), dtype)
        alias = _alias(merge, planned)
        resident = merge.sources.working(alias, planned.name_in(alias))
        rounded = resident.to(planned.info.dtype)
        # Where rounding to the recipe's dtype changes nothing, the view serves.
        exact = torch.equal(rounded.to(resident.dtype), resident)
        return self._checked(planned.name, resident if exact else rounded, dtype)

    def _checked(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        result = tensor.to(device=self._device, dtype=dtype)
        if dtype != tensor.dtype and not is_finite(result):
            raise not_finite(name, self._config)
        return result


@dataclass(frozen=True, slots=True)
class _Weights:
    """What a model holds of a group of tensors."""

    place: str
    """The place of the group that they were made for."""
    tensors: Mapping[str, Tensor]
    models: tuple[ModelSource, ...]
    """The sources that they are taken from, kept so that their ids stay their own; empty where they are blended."""

    def at(self, place: str) -> Mapping[str, Tensor]:
        """Return them for a group at another place, which differs in the number of the layer alone."""
        changed = [
            (index, new)
            for index, (old, new) in enumerate(zip(self.place.split("."), place.split("."), strict=True))
            if old != new
        ]
        moved: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            parts = name.split(".")
            for index, new in changed:
                parts[index] = new
            moved[".".join(parts)] = tensor
        return moved


def _alias(merge: MergePlan, planned: PlannedTensor) -> str:
    return planned.copied_from or merge.sources.reference


def _made_of(merge: MergePlan, planned: PlannedTensor) -> tuple[object, ...]:
    """Return all that a tensor depends on, over one set of sources."""
    step = planned.step
    if step is None:
        alias = _alias(merge, planned)
        return merge.recipe.dtype, planned.name_in(alias), None if planned.rescale is None else alias, planned.rescale
    read = tuple(sorted((planned.read or {}).items())) or planned.name
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


def _fold_by_hooks(merge: MergePlan, places: Mapping[str, _Place], conversion: Conversion) -> set[str]:
    """Fold the route's scales by hooks on modules, where that is exact.

    Returns:
        The tensors that are folded so; the fold of others has to be done in a copy of them.
    """
    scaled: dict[nn.Module, dict[str, PlannedTensor]] = defaultdict(dict)
    for planned in merge.tensors:
        name = conversion.place_of(planned.name) if planned.rescale is not None else None
        if name is not None:
            scaled[places[name].owners[0][0]][name.rpartition(".")[2]] = planned
    hooked: set[str] = set()
    for module, tensors in scaled.items():
        if _hook(merge, module, tensors):
            hooked.update(planned.name for planned in tensors.values())
    return hooked


def _hook(merge: MergePlan, module: nn.Module, tensors: Mapping[str, PlannedTensor]) -> bool:
    """Register the fold with a module that has the tensors as these attributes; False: not known to be exact there."""
    from transformers.pytorch_utils import Conv1D

    roles = {_role(merge, planned.name) for planned in tensors.values()}
    own = {name for name, _ in module.named_parameters()}
    folded = tensors.keys()
    factors = {planned.rescale.factor for planned in tensors.values() if planned.rescale is not None}
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
