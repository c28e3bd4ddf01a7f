"""What a merge will take: disk, peak memory and time, from its plan and from what this machine is measured to do."""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge import operators

if TYPE_CHECKING:
    import torch

    from evomerge.merging import MergePlan
    from evomerge.merging.plan import PlannedTensor, Step

TIME_MODEL = (
    "weights x measured time of the method a weight / threads + bytes read and written / measured rate of the disk"
)
"""How time is estimated, for people."""
_SAMPLE = (1024, 1024)
_RUNS = 10
_PATIENCE = 0.5
"""Seconds after which a method is not run again to time it."""
_WRITTEN = 1 << 25
_SPANS = 64 << 20
"""Buffers of methods that go through a tensor in spans."""
_WORKING = 3
"""Float32 tensors beside the sources that a method holds which needs whole tensors."""


def estimate(merge: MergePlan, folder: Path) -> dict[str, Any]:
    """Return disk, memory and time of a merge, as `check --json` prints them; all sizes in bytes.

    Args:
        merge: the plan; no weight is read.
        folder: on the file system that will hold the result.
    """
    import torch

    from evomerge.merging.threads import MOST_THREADS

    read = sum(_bytes_read(merge, planned) for planned in merge.tensors)
    threads = min(torch.get_num_threads(), MOST_THREADS)
    steps = {id(planned.step): (planned.step, _stored(merge, planned)) for planned in merge.tensors if planned.step}
    rates = {key: _seconds_a_weight(step, dtype) / threads for key, (step, dtype) in steps.items()}
    merging = sum(planned.info.num_elements * rates.get(id(planned.step), 0.0) for planned in merge.tensors)
    largest = sorted(map(_working_bytes, merge.tensors), reverse=True)[: threads + 1]
    rate = disk_rate(folder)
    return {
        "disk": {"needed": merge.num_bytes, "free": shutil.disk_usage(folder).free},
        "memory": {"peak": _process_bytes() + sum(largest)},
        "time": {
            "seconds": merging + (read + merge.num_bytes) / rate,
            "merging_seconds": merging,
            "threads": threads,
            "bytes_read": read,
            "disk_bytes_per_second": rate,
            "model": TIME_MODEL,
        },
    }


def disk_rate(folder: Path) -> float:
    """Measure how many bytes a second reach the disk; the file that is written for it never has a name."""
    block = os.urandom(_WRITTEN)
    place = folder if os.access(folder, os.W_OK) else None
    with tempfile.TemporaryFile(dir=place) as file:
        begun = time.perf_counter()
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN / max(time.perf_counter() - begun, 1e-6)


def _bytes_read(merge: MergePlan, planned: PlannedTensor) -> int:
    models = merge.sources.models
    if planned.step is None:
        aliases = {planned.copied_from or merge.sources.reference}
    else:
        blend = planned.step.blend
        aliases = {*blend.sources, *((blend.base,) if blend.base else ())}
    return sum(models[alias].info(planned.name_in(alias)).num_bytes for alias in aliases)


def _working_bytes(planned: PlannedTensor) -> int:
    """Return what is held beside mapped files while a tensor is made."""
    whole = 4 * planned.info.num_elements
    if planned.step is None:
        return planned.info.num_bytes + (whole * _WORKING if planned.stretches or planned.rescale else 0)
    spec = operators.get(planned.step.blend.method)
    if spec.scope in ("element", "row") and planned.rescale is None:
        return planned.info.num_bytes + _SPANS
    return planned.info.num_bytes + (len(planned.step.blend.sources) + _WORKING) * whole


def _process_bytes() -> int:
    """Return what this process has taken so far, the libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _stored(merge: MergePlan, planned: PlannedTensor) -> torch.dtype:
    alias = merge.sources.reference if planned.step is None else planned.step.blend.sources[0]
    return merge.sources.models[alias].info(planned.name_in(alias)).dtype


def _seconds_a_weight(step: Step, dtype: torch.dtype) -> float:
    """Measure a method on a random matrix and one thread.

    Where it depends on statistics of the sources, which are not read, a weighted mean of as many stands for it.
    """
    import torch

    count, rng = len(step.blend.sources), torch.Generator().manual_seed(0)
    base = torch.randn(_SAMPLE, generator=rng, dtype=torch.float32)
    tensors = [(base + 0.01 * torch.randn(_SAMPLE, generator=rng)).to(dtype) for _ in range(count)]
    base = base.to(dtype)
    if operators.get(step.blend.method).needs or operators.get(step.blend.method).adapters:
        return _timed(lambda: torch.stack(tensors).mean(dim=0)) / base.numel()
    return _timed(lambda: _run(step, tensors, base)) / base.numel()


def _run(step: Step, tensors: list[torch.Tensor], base: torch.Tensor) -> object:
    from evomerge.operators.kernels.context import Context, alone

    root = None if step.blend.base is None else base
    context = Context(name="sample.weight", source_ids=step.source_ids, seed=0, threshold=lambda _index, _density: 0.0)
    context = replace(context, of_model=alone(tensors, root, context))
    return step.kernel(tensors, root, step.blend.params, context)


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds of the quickest of some runs: others use the machine too, and the first one warms up."""
    from evomerge.merging.threads import torch_threads

    stop, best = time.perf_counter() + _PATIENCE, math.inf
    with torch_threads(1):
        for _ in range(_RUNS):
            begun = time.perf_counter()
            work()
            ended = time.perf_counter()
            best = min(best, ended - begun)
            if ended > stop:
                break
    return best
