"""What a blend needs to know of whole models, computed once per set of sources and then kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from evomerge.checkpoints import parameter_names
from evomerge.merging.keeping import Keeper
from evomerge.merging.kept_files import KeptFile
from evomerge.operators.kernels.importance import graft_score
from evomerge.operators.kernels.selection import (
    LOWER_BINS,
    UPPER_BINS,
    boundary_bin,
    kept_count,
    magnitude_histogram,
    pattern_value,
    refined_histogram,
)
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from evomerge.merging.sources import Sources
    from evomerge.operators.metadata import StatisticKind

_KEPT_BINS = 64
"""Refined histograms kept (512 KiB each): neighbouring densities of a search share theirs."""

_KEPT_RESULTS = 64
"""A search has many recipes, of which one is made at a time."""
Value = TypeVar("Value")


class Statistics:
    """Magnitude histograms of whole task vectors, from which the exact threshold of any density is read.

    A first pass over the model makes the histogram of the upper 16 bits, once a source; a second one refines
    the bin in which the threshold lies, once a bin; both are kept in the user's cache folder. Tied tensors count once,
    buffers do not.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._upper: dict[tuple[str, str, StatisticKind | None], Tensor] = {}
        self.keeper = Keeper(sources)
        self._once: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._lock, self._once_lock = Lock(), Lock()
        self._refined: OrderedDict[tuple[str, str, StatisticKind | None, int], Tensor] = OrderedDict()

    def threshold(self, alias: str, base: str, density: float, kind: StatisticKind | None = None) -> float:
        """Return the magnitude from which an entry is in the top `density` of the model's whole task vector.

        Args:
            alias: the source.
            base: what its task vector is taken from.
            density: share kept, in (0, 1].
            kind: of the importance that magnitudes are weighed with (`graft_score`), over the parameters that have
                one; None: they count as they are.

        Returns:
            The exact k-th largest |τ|, k = int(density · number of entries), at least 1.
        """
        with self._lock:  # one thread makes a histogram, the others wait for it
            counts = self._histogram(alias, base, kind)
            upper, rank = boundary_bin(counts, kept_count(int(counts.sum()), density))
            lower, _ = boundary_bin(self._refinement(alias, base, kind, upper), rank)
        return pattern_value(upper, lower)

    def once(self, of: Hashable, compute: Callable[[Sources], Value]) -> Value:
        """Return what takes a pass over whole models, computed once: by one thread, for which the others wait.

        Args:
            of: what it depends on beside the sources.
            compute: computes it over the sources.
        """
        with self._once_lock:
            found = self._once.get(of)
            if found is None:
                mine = self._once[of] = Future()
                if len(self._once) > _KEPT_RESULTS:
                    self._once.popitem(last=False)
            self._once.move_to_end(of)
        if found is None:
            try:
                mine.set_result(compute(self._sources))
            except BaseException as error:
                mine.set_exception(error)
                with self._once_lock:
                    self._once.pop(of, None)
                raise
            found = mine
        return cast("Value", found.result())

    def _histogram(self, alias: str, base: str, kind: StatisticKind | None) -> Tensor:
        key = (alias, base, kind)
        if key not in self._upper:
            self._upper[key] = self._counted(key, None, UPPER_BINS, magnitude_histogram)
        return self._upper[key]

    def _refinement(self, alias: str, base: str, kind: StatisticKind | None, upper: int) -> Tensor:
        key = (alias, base, kind, upper)
        if key not in self._refined:
            self._refined[key] = self._counted(
                key[:3], upper, LOWER_BINS, lambda delta: refined_histogram(delta, upper)
            )
            if len(self._refined) > _KEPT_BINS:
                self._refined.popitem(last=False)
        self._refined.move_to_end(key)
        return self._refined[key]

    def _counted(
        self,
        of: tuple[str, str, StatisticKind | None],
        upper: int | None,
        bins: int,
        histogram: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the sum of a histogram over a task vector, from the cache between processes where it is known."""

        def count() -> Tensor:
            counts = torch.zeros(bins, dtype=torch.int64)
            for delta in self._task_vector(*of):
                counts += histogram(delta).cpu()
            return counts

        alias, base, kind = of
        infos = self._sources.infos
        if any(isinstance(self._sources.configs[one].model, Recipe) for one in (alias, base)):
            return count()  # a nested recipe may be a candidate's own
        measured = "" if kind is None else infos[alias].statistics[kind]
        bin_ = -1 if upper is None else upper
        file = KeptFile("histograms", [bins, infos[alias].content_hash, infos[base].content_hash, measured, bin_])
        known = file.read()
        if known is None:
            known = (count(),)
            file.write(known)
        return known[0]

    def _task_vector(self, alias: str, base: str, kind: StatisticKind | None) -> Iterator[Tensor]:
        for name in parameter_names(self._sources.models[base]):
            # The same subtraction in the same precision as in a kernel: a threshold is compared for equality.
            delta = self._sources.working(alias, name).float() - self._sources.working(base, name).float()
            if kind is None:
                yield delta
            elif (found := self._sources.measured(alias, kind, name, str(delta.device))) is not None:
                yield graft_score(delta, found.tensor)
