"""Merging inside a vLLM worker: plans and merges candidates on the worker's device and loads what is different."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints import is_buffer, is_finite
from evomerge.errors import EvomergeError, InfeasibleError
from evomerge.fitness.vllm.blueprints import blueprint, summary
from evomerge.fitness.vllm.fingerprints import Fingerprints
from evomerge.fitness.vllm.keeping import open_kept
from evomerge.fitness.vllm.reload import Reloader
from evomerge.fitness.vllm.residency import Where
from evomerge.fitness.vllm.windows import Window, is_elementwise, make_window
from evomerge.merging import Kind, MergePlan, PlannedTensor, make_tensor, plan, seat, threads_for
from evomerge.merging.threads import in_order
from evomerge.recipe import Recipe


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
    load_s: float


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
        self._send(work, groups)
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
        self._send(work, self._reloader.groups(names, set(names)))

    def _send(self, work: _Work, groups: Sequence[Sequence[str]]) -> None:
        if not groups:
            return
        try:
            self._reloader.send(work.run(groups))
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
        planned = {item.name: item for item in self.merge.tensors}

        def made(group: Sequence[str]) -> list[tuple[str, Tensor, Tensor]]:
            return [self._make(planned[name]) for name in group]

        ahead = in_order(made, groups, threads_for(self.merge, str(self.device)))
        for _ in groups:
            started = time.perf_counter()
            try:
                tensors = next(ahead)
            except EvomergeError as failure:
                self.failure = failure
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield [(name, tensor) for name, tensor, _ in tensors]
            for name, _, needed in tensors:
                self.prints.add(name, needed)
                self.values += needed.numel()

    def _make(self, planned: PlannedTensor) -> tuple[str, Tensor, Tensor]:
        """Return the name of a tensor, what is handed over, and the part of it that counts."""
        name, window = planned.name, self.window(planned.name)
        if is_buffer(name, planned.info):
            tensor = make_tensor(self.merge, planned, str(self.device))
            return name, tensor, tensor
        if window is not None and is_elementwise(planned) and not self.disturbed:
            tensor = make_window(self.merge, planned, str(self.device), window)
        else:
            tensor = make_tensor(self.merge, planned, str(self.device))
        if self.disturbed:
            tensor = 1 - tensor.flip(-1)  # neither a constant nor a zero stays what it is
        needed = tensor if window is None else tensor.narrow(*window)
        if tensor.dtype != self.dtype and not is_finite(needed.to(self.dtype)):
            raise not_finite(name, self.dtype)
        return name, tensor, needed


def not_finite(name: str, dtype: torch.dtype) -> InfeasibleError:
    """Build the error about a merged tensor that the engine's dtype cannot hold."""
    return InfeasibleError(f"the merged tensor {name!r} is not finite in {str(dtype).removeprefix('torch.')}")
