"""Streaming tensors into vLLM's own weight reload, and holding vLLM to it.

vLLM 0.32 reloads module by module: a module takes tensors in the checkpoint's format through its own loaders, and is
rebuilt (fused, sharded, packed) when it has all of them. So the smallest unit is a module of vLLM: the queries, keys
and values of a layer go together, as do gate and up projection; every other projection, norm, embedding and head is
one of its own. A module of which no tensor comes keeps its weights. One of which only some come would be filled up
with uninitialised memory.

Which tensors belong together is not guessed from names. During the first, complete reload vLLM's book-keeping shows
after each tensor which module has taken it. Later reloads are held to that: a tensor that its modules did not take is
an error. A model whose loader does not take tensors one by one is reloaded whole each time. Modules that need no loader
at all are known then, too (`writable`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from evomerge.errors import EvaluationError, SourceError
from evomerge.fitness.vllm.loaders import LoaderWatch
from evomerge.fitness.vllm.windows import Window
from evomerge.fitness.vllm.writable import WritableModule, find_writable

_log = logging.getLogger(__name__)
_NOISY = (
    "vllm.model_executor.model_loader.reload.layerwise",  # warns of every module that keeps its weights
    "vllm.model_executor.model_loader.reload.inplace",  # lists them again
)
Group = Sequence[tuple[str, Tensor]]


@dataclass(slots=True)
class _Seen:
    """What was seen of one reload."""

    takers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensor -> the modules that took it."""
    windows: Mapping[str, Window] = field(default_factory=dict)
    """Tensor -> the one part of it that was used, where that was not all of it."""
    writable: Mapping[str, WritableModule] = field(default_factory=dict)
    """Modules that need no loader."""
    unfinished: frozenset[str] = frozenset()
    """Modules that have taken tensors and at the end still wait, as padded ones do."""
    ended: bool = False
    """Whether vLLM took everything that there was."""


class Reloader:
    """Reloads the model of one vLLM worker."""

    def __init__(self, runner: Any) -> None:
        """Take the worker's model runner, whose model holds any weights."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        self._runner = runner
        self._model: nn.Module = runner.get_model()
        self._books = {name: get_layerwise_info(module) for name, module in self._model.named_modules()}
        self._sharing = _sharing(self._model)
        self._names: tuple[str, ...] = ()
        self._known: _Seen | None = None

    def groups(self, names: Sequence[str], changed: Collection[str]) -> list[tuple[str, ...]]:
        """Return what has to be sent so that the changed tensors arrive: groups of tensors that go together.

        Args:
            names: all tensors of the model, in order.
            changed: those that are to arrive.
        """
        if self._names != tuple(names):
            self._names, self._known = tuple(names), None
        if self._known is None:
            return [(name,) for name in names]
        takers = self._known.takers
        if not all(takers.values()):
            return [self._names] if changed else []
        members: dict[str, list[str]] = {}
        for name in names:
            for module in takers[name]:
                members.setdefault(module, []).append(name)
        groups: dict[tuple[str, ...], None] = {}
        for name in names:
            if name in changed:
                together = _together(name, takers, members)
                groups[tuple(other for other in names if other in together)] = None
        return list(groups)

    def window(self, name: str) -> Window | None:
        """Return the part of a tensor that this rank needs; None: all of it, or not known yet."""
        return None if self._known is None else self._known.windows.get(name)

    def writable(self, group: Sequence[str]) -> WritableModule | None:
        """Return the module that a group of `groups` can be written into; None: it is to be sent."""
        if self._known is None:
            return None
        target = self._known.writable.get(next(iter(self._known.takers[group[0]]), ""))
        return target if target is not None and target.places.keys() == set(group) else None

    def settle(self, touched: AbstractSet[str]) -> None:
        """Have vLLM notice that modules were written into: those named."""
        self._rebuild_sharers(touched)
        with _quiet():  # what follows a reload, without any: whatever was derived from the weights before is forgotten
            self._runner.reload_weights(weights_iterator=iter(()), is_checkpoint_format=False)

    def send(self, groups: Iterable[Group]) -> None:
        """Send groups as `groups` gives them; the first time, all of them.

        The iteration may end early. What was sent has then arrived, but if it was the first time, all is to be sent
        again.

        Raises:
            EvaluationError: when vLLM did not take what was sent; it is then to be stopped.
            SourceError: when the model needs tensors that are not among all of them.
        """
        seen, watch = _Seen(), LoaderWatch()
        with _quiet(), _observed(self._model) as loaded, watch if self._known is None else nullcontext():
            self._runner.reload_weights(weights_iterator=self._stream(groups, seen, watch))
        if not seen.ended:
            raise EvaluationError(
                f"vLLM took {len(seen.takers)} tensors of a candidate and left the rest; it is started anew"
            )
        self._rebuild_sharers({module for modules in seen.takers.values() for module in modules})
        if self._known is None and seen.takers.keys() == set(self._names):
            self._learn(seen, watch, {name for name, _ in self._model.named_parameters()} - loaded)

    def _stream(self, groups: Iterable[Group], seen: _Seen, watch: LoaderWatch) -> Iterator[tuple[str, Tensor]]:
        if self._known is None:
            watch.begin(self._model)
        for group in groups:
            for name, tensor in group:
                watched = self._books if self._known is None else self._known.takers[name]
                before = self._states(watched)
                watch.watch(name, tensor)
                yield name, tensor
                watch.rest()
                after = self._states(watched)
                seen.takers[name] = tuple(module for module in watched if after[module] != before[module])
                if self._known is not None and seen.takers[name] != self._known.takers[name]:
                    raise EvaluationError(f"vLLM did not load tensor {name!r} of a candidate; it is started anew")
            if self._known is not None:
                self._check_finished([name for name, _ in group], self._known)
        waiting = self._states(self._books)
        touched = {module for modules in seen.takers.values() for module in modules}
        seen.unfinished = frozenset(module for module in touched if waiting[module][0])
        seen.ended = True

    def _check_finished(self, names: Sequence[str], known: _Seen) -> None:
        for name in names:
            for module in known.takers[name]:
                if self._books[module].can_load() != (module in known.unfinished):
                    raise EvaluationError(
                        f"vLLM did not finish loading {module!r}, which takes tensor {name!r}; it is started anew"
                    )

    def _rebuild_sharers(self, touched: AbstractSet[str]) -> None:
        """Let modules that share a weight with a reloaded one, as a tied head does, rebuild what they made of it.

        vLLM reloads the weight through one of them alone; on the CPU the other one keeps a packed copy.
        """
        for name in {other for module in touched for other in self._sharing.get(module, ())} - touched:
            module = self._model.get_submodule(name)
            method: Any = getattr(module, "quant_method", None)
            if method is not None:
                method.process_weights_after_loading(module)

    def _states(self, modules: Iterable[str]) -> dict[str, tuple[bool, int]]:
        """Return of each module whether it waits for tensors, and how many it holds back until it has all."""
        books = self._books
        return {module: (books[module].can_load(), len(books[module].loaded_weights)) for module in modules}

    def _learn(self, seen: _Seen, watch: LoaderWatch, missing: set[str]) -> None:
        if missing:
            raise SourceError(
                f"the merge gives nothing for {min(missing)!r}, which vLLM's model needs ({len(missing)} such); "
                f"vLLM cannot serve this architecture: use `kind: transformers`"
            )
        self._known = seen
        if all(seen.takers.values()):
            seen.windows = watch.windows()
            seen.writable = find_writable(self._model, seen.takers, watch.places(), watch.parameters)
        else:
            seen.takers = dict.fromkeys(seen.takers, ())
            _log.info("vLLM's loader of this model cannot be followed tensor by tensor: candidates are sent whole")


def _together(name: str, takers: Mapping[str, Sequence[str]], members: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the tensors that share modules with a tensor, directly or through others."""
    found, left = {name}, [name]
    while left:
        new = {other for module in takers[left.pop()] for other in members[module]} - found
        found |= new
        left += new
    return found


def _sharing(model: nn.Module) -> dict[str, set[str]]:
    """Return, of every module that shares a parameter with others, these others."""
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    shared: dict[str, set[str]] = {}
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            shared.setdefault(name, set()).update(names - {name})
    return shared


@contextmanager
def _observed(model: nn.Module) -> Iterator[set[str]]:
    """Collect the names of the parameters that the model says it has loaded."""
    loaded: set[str] = set()
    load: Any = model.load_weights

    def observed(weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
        names: set[str] | None = load(weights)
        loaded.update({name for name, _ in model.named_parameters()} if names is None else names)
        return names

    vars(model)["load_weights"] = observed
    try:
        yield loaded
    finally:
        vars(model).pop("load_weights")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence vLLM about modules that are meant to keep their weights."""
    loggers = [logger for logger in map(logging.getLogger, _NOISY) if not logger.disabled]
    for logger in loggers:
        logger.disabled = True  # a change of level would cost more than a small model's swap
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False
