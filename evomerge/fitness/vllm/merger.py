"""Merging inside a vLLM worker: plans and merges candidates on the worker's device and loads what is different."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from evomerge.checkpoints import is_buffer, is_finite
from evomerge.errors import EvomergeError, InfeasibleError
from evomerge.fitness.vllm.blueprints import blueprint, summary
from evomerge.fitness.vllm.fingerprints import Fingerprints, sample
from evomerge.fitness.vllm.keeping import open_kept
from evomerge.fitness.vllm.reload import Reloader
from evomerge.fitness.vllm.residency import Where
from evomerge.fitness.vllm.windows import Window, is_elementwise, make_window, spread
from evomerge.fitness.vllm.writable import Draft, WritableModule
from evomerge.merging import Kind, MergePlan, PlannedTensor, make_tensor, plan, seat, threads_for
from evomerge.merging.memory import keep_freed_memory
from evomerge.merging.threads import in_order, torch_threads
from evomerge.recipe import Recipe

Item = TypeVar("Item")
Made = TypeVar("Made")

_WAITING = 4
"""Merged modules that may wait for vLLM to pack them: a large one takes as long as merging several small ones."""


@dataclass(frozen=True, slots=True)
class Swapped:
    """What a worker says of a candidate that it has loaded."""

    version: str
    """The version that the order gave it."""
    blueprint: str
    """Summary of what all tensors are made of, as this worker planned it."""
    fingerprint: str
    """Summary of the fingerprints of all tensors, those that were kept among them."""
    whole: dict[str, str]
    """Fingerprints of the tensors that every rank has whole; they must agree."""
    merged: int
    """Tensors that were merged and loaded; all others were there already."""
    values: int
    """Elements of these that this rank needed and merged."""
    merge_s: float
    """Seconds in which nothing merged was ready to be brought in, so merging alone was at work."""
    load_s: float
    """All other seconds of the swap."""


class Merger:
    """The merging half of one worker; it lives as long as the worker."""

    def __init__(
        self, runner: Any, device: torch.device, dtype: torch.dtype, template: Recipe, base_dir: Path, where: Where
    ) -> None:
        """Open the sources of a template.

        Args:
            runner: the worker's model runner.
            device: where its model is, and where tensors are merged.
            dtype: what its weights are rounded to.
            template: names the sources.
            base_dir: where relative folders start.
            where: where the sources are kept.

        Raises:
            SourceError: when a source cannot be read.
        """
        self._reloader = Reloader(runner)
        self._device, self._dtype = device, dtype
        self._base_dir, self._where = base_dir, where
        self._all = self._sources = open_kept(template, base_dir, where, device)
        self._held: dict[str, tuple[str, str]] = {}
        """Tensor -> the digest of what it was made of, and its fingerprint."""
        self._latest: MergePlan
        self.version: str | None = None
        """The version of the loaded candidate; None while there is none."""

    def swap(self, recipe: Recipe, slots: Sequence[Kind], version: str) -> Swapped:
        """Make a recipe the model that is served.

        Raises:
            InfeasibleError: when a merged weight is not finite; what was loaded before that is known, the next swap
                brings the rest.
            EvaluationError: when vLLM did not take what it was given; it is then to be stopped.
            EvomergeError: as `plan` does.
        """
        self.version = None
        started = time.perf_counter()
        merge = self._plan(recipe, slots)
        digests = blueprint(merge)
        changed = {name for name, digest in digests.items() if self._held.get(name, ("", ""))[0] != digest}
        groups = self._reloader.groups(tuple(digests), changed)
        work = _Work(merge, self._device, self._dtype, self._reloader.window)
        self._load(work, groups)
        self._held |= {name: (digests[name], value) for name, value in work.prints.values().items()}
        if work.failure is not None:
            raise work.failure
        self._held = {name: self._held[name] for name in digests}
        prints = {name: value for name, (_, value) in self._held.items()}
        self._latest = merge
        self.version = version
        return Swapped(
            version=version,
            blueprint=summary(digests),
            fingerprint=summary(prints),
            whole={name: value for name, value in prints.items() if self._reloader.window(name) is None},
            merged=sum(map(len, groups)),
            values=work.values,
            merge_s=work.seconds,
            load_s=time.perf_counter() - started - work.seconds,
        )

    def disturb(self) -> None:
        """Load other values everywhere, to see whether the model's answers change; the next swap brings everything."""
        merge, names = self._latest, [item.name for item in self._latest.tensors]
        self.version, self._held = None, {}
        work = _Work(merge, self._device, self._dtype, self._reloader.window, disturbed=True)
        self._load(work, self._reloader.groups(names, set(names)))

    def _load(self, work: _Work, groups: Sequence[Sequence[str]]) -> None:
        """Merge groups of tensors and bring them into the model: straight into it where that can be."""
        targets = [self._reloader.writable(group) for group in groups]
        sent = [group for group, target in zip(groups, targets, strict=True) if target is None]
        written = [target for target in targets if target is not None]
        try:
            if sent:
                self._reloader.send(work.run(sent))
            if written and work.failure is None:
                for name in {name for target in written for name in target.places} & self._held.keys():
                    del self._held[name]  # whatever comes of it, this is no longer there
                work.write(written)
                self._reloader.settle({target.name for target in written})
        except BaseException:
            self._held = {}
            raise

    def _plan(self, recipe: Recipe, slots: Sequence[Kind]) -> MergePlan:
        self._sources = open_kept(
            recipe, self._base_dir, self._where, self._device, known=self._all, current=self._sources
        )
        seated = seat(plan(recipe, self._sources), slots)
        if seated is None:
            raise ValueError("the order names slots that the recipe does not fit into")
        return seated


@dataclass(frozen=True, slots=True)
class _Made:
    """A merged tensor, or the window of it that this rank needs."""

    name: str
    tensor: Tensor
    sample: Tensor


@dataclass(slots=True)
class _Work:
    """Merges groups of tensors one after the other."""

    merge: MergePlan
    device: torch.device
    dtype: torch.dtype
    window: Callable[[str], Window | None]
    disturbed: bool = False
    prints: Fingerprints = field(default_factory=Fingerprints)
    """Of all tensors whose group was given out whole."""
    values: int = 0
    seconds: float = 0.0
    failure: EvomergeError | None = None
    """Why the groups ended early: raised only once vLLM has put its model together again."""

    def run(self, groups: Sequence[Sequence[str]]) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield the tensors of each group as vLLM's loaders take them: in their full shape."""
        planned = self._planned()

        def made(group: Sequence[str]) -> list[_Made]:
            return [self._make(planned[name]) for name in group]

        for group in self._ahead(made, groups, self._threads()):
            yield [(each.name, self._spread(each, planned[each.name])) for each in group]
            self._count(group)

    def write(self, targets: Sequence[WritableModule]) -> None:
        """Write the tensors of modules to where they lie.

        Where several threads merge, vLLM packs with half of PyTorch's: threads that share out an operation wait for
        each other at its end, each of them behind one that merges.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        planned, threads = self._planned(), self._threads()
        targets = sorted(targets, key=lambda target: target.num_elements, reverse=True)  # nobody waits for a large last

        def made(target: WritableModule) -> tuple[Draft, list[_Made]]:
            draft = target.draft(self.merge.sources.results.empty, self.device)
            return draft, [self._make(planned[name], view) for name, view in draft.views.items()]

        packing = max(1, torch.get_num_threads() // 2)
        with torch_threads(packing) if threads > 1 else nullcontext():
            for draft, group in self._ahead(made, targets, threads, waiting=_WAITING):
                draft.finish()
                self._count(group)

    def _threads(self) -> int:
        return threads_for(self.merge, str(self.device))

    def _planned(self) -> dict[str, PlannedTensor]:
        return {item.name: item for item in self.merge.tensors}

    def _ahead(
        self, make: Callable[[Item], Made], items: Sequence[Item], threads: int, *, waiting: int = 0
    ) -> Iterator[Made]:
        """Yield what is made of items, made ahead of time; end early where that fails."""
        ahead = in_order(make, items, threads, waiting=waiting)
        for _ in items:
            started = time.perf_counter()
            try:
                made = next(ahead)
            except EvomergeError as failure:
                self.failure = failure
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield made

    def _count(self, group: Sequence[_Made]) -> None:
        for made in group:
            self.prints.add(made.name, made.sample)
            self.values += made.tensor.numel()

    def _make(self, planned: PlannedTensor, out: Tensor | None = None) -> _Made:
        """Merge what this rank needs of a tensor; into `out`, where that is given."""
        name, device = planned.name, str(self.device)
        if is_buffer(name, planned.info):
            tensor = make_tensor(self.merge, planned, device, out=out)
            return _Made(name, tensor, sample(tensor, tensor.dtype))
        window = self.window(name)
        if self.disturbed or (window is not None and not is_elementwise(planned)):
            whole = make_tensor(self.merge, planned, device)
            if self.disturbed:
                whole = 1 - whole.flip(-1)  # neither a constant nor a zero stays what it is
            tensor = whole if window is None else whole.narrow(*window)
            tensor = tensor if out is None else out.copy_(tensor)
        elif window is None:
            tensor = make_tensor(self.merge, planned, device, out=out)
        else:
            tensor = make_window(self.merge, planned, device, window, out=out)
        if planned.info.dtype != self.dtype and not is_finite(tensor.to(self.dtype)):
            raise not_finite(name, self.dtype)
        return _Made(name, tensor, sample(tensor, self.dtype))

    def _spread(self, made: _Made, planned: PlannedTensor) -> Tensor:
        window = None if is_buffer(made.name, planned.info) else self.window(made.name)
        return made.tensor if window is None else spread(made.tensor, window, planned.info.shape)


def not_finite(name: str, dtype: torch.dtype) -> InfeasibleError:
    """Build the error about a merged tensor that the engine's dtype cannot hold."""
    return InfeasibleError(f"the merged tensor {name!r} is not finite in {str(dtype).removeprefix('torch.')}")
