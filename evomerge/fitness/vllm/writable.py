"""Writing merged tensors straight into the parameters of vLLM's modules, past its loaders.

vLLM's reload copies a tensor into new memory and from there into the parameter. Where its loader was seen to copy a
tensor to one place and to do nothing else (`loaders.LoaderWatch`), the merge can write it there itself: in modules that
are not quantised, whose parameters vLLM computes with as they are. Only on a CPU it packs some of them into memory of
its own; those are written to other memory, and it is asked to pack them as at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evomerge.errors import EvaluationError
from evomerge.fitness.vllm.loaders import Place
from evomerge.operators.kernels.context import Empty


@dataclass(frozen=True, slots=True)
class Draft:
    """A module whose tensors are being written."""

    target: WritableModule
    views: Mapping[str, Tensor]
    """Tensor -> the memory that it, or its window, is written to."""
    packed: Mapping[str, Tensor]
    """Parameter that vLLM has packed away -> the one that it is to pack next."""

    def finish(self) -> None:
        """Have vLLM compute with what was written.

        Raises:
            EvaluationError: when it did not take it; it is then to be stopped.
        """
        module, where = self.target.module, self.target.name
        for name, parameter in self.packed.items():
            setattr(module, name, nn.Parameter(parameter, requires_grad=False))
        method = getattr(module, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(module)
        for name in self.packed:
            if module.get_parameter(name).numel():
                raise EvaluationError(f"vLLM did not pack '{where}.{name}' of a candidate; it is started anew")


@dataclass(frozen=True, slots=True)
class WritableModule:
    """A module that merged tensors can be written into, and where they lie."""

    name: str
    module: nn.Module
    places: Mapping[str, Place]
    """Of each of its tensors."""
    whole: Mapping[str, Tensor]
    """Parameter, by its name in the module -> what it is before vLLM packs it, without memory (on `meta`)."""

    @property
    def num_elements(self) -> int:
        """Of its parameters that tensors are written into."""
        return sum(like.numel() for like in self.whole.values())

    def draft(self, empty: Empty, device: torch.device) -> Draft:
        """Begin to write: the parameters themselves are written to, or memory from `empty`, on the model's device."""
        memory: dict[str, Tensor] = {}
        packed = {}
        for name, like in self.whole.items():
            memory[name] = self.module.get_parameter(name).data
            if not memory[name].numel():
                memory[name] = packed[name] = empty(like.numel(), like.dtype, device).view(like.shape)
        views = {}
        for tensor, place in self.places.items():
            flat = memory[place.parameter.rpartition(".")[2]].view(-1)
            views[tensor] = flat[place.start :][: torch.Size(place.shape).numel()].view(place.shape)
        return Draft(self, views, packed)


def find_writable(
    model: nn.Module,
    takers: Mapping[str, tuple[str, ...]],
    places: Mapping[str, Place],
    parameters: Mapping[str, Tensor],
) -> dict[str, WritableModule]:
    """Return the modules that merged tensors can be written into, by name.

    Args:
        model: as vLLM computes with it.
        takers: tensor -> the modules whose loaders take it.
        places: where tensors were seen to lie.
        parameters: what each of its parameters is before vLLM packs it.
    """
    if _derives_weights(model):
        return {}
    members: dict[str, list[str]] = {}
    for tensor, modules in takers.items():
        for module in modules:
            members.setdefault(module, []).append(tensor)
    found = {}
    for name, tensors in members.items():
        mine = {tensor: places[tensor] for tensor in tensors if tensor in places and takers[tensor] == (name,)}
        owners = {place.parameter.rpartition(".")[0] for place in mine.values()}
        if len(mine) == len(tensors) and owners == {name}:
            whole = {place.parameter.rpartition(".")[2]: parameters[place.parameter] for place in mine.values()}
            target = WritableModule(name, model.get_submodule(name), mine, whole)
            if _is_plain(target):
                found[name] = target
    return found


def _is_plain(target: WritableModule) -> bool:
    """Tell whether vLLM does nothing to a module's parameters but packing them, and where it does, has all of them."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    method = getattr(target.module, "quant_method", None)
    if method is not None and type(method) not in {UnquantizedLinearMethod, UnquantizedEmbeddingMethod}:
        return False
    written = dict.fromkeys(target.whole, 0)
    for place in target.places.values():
        written[place.parameter.rpartition(".")[2]] += torch.Size(place.shape).numel()
    for name, like in target.whole.items():
        parameter = target.module.get_parameter(name)
        as_it_is = parameter.shape == like.shape and parameter.is_contiguous()
        if not as_it_is and (parameter.numel() or written[name] != like.numel()):
            return False
    return True


def _derives_weights(model: nn.Module) -> bool:
    """Tell whether vLLM makes further weights of those of other modules, as latent attention does."""
    from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer

    usual = Attention.process_weights_after_loading
    layers = filter(is_deferred_attention_layer, model.modules())
    return any(getattr(type(layer), "process_weights_after_loading", None) is not usual for layer in layers)
