"""What there is: free memory of the machine and of its GPUs, and the sizes of opened sources."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints import is_buffer
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm.options import kv_cache_bytes, require_installed
from evomerge.fitness.vllm.residency import GIB, ResidencyPlan, Sizes, plan_residency
from evomerge.fitness.vllm.shape import DTYPE_BYTES, read_shape

if TYPE_CHECKING:
    from evomerge.merging import Sources

LEAST_KV_CACHE_BYTES = 4 * GIB
"""KV cache that sources in a GPU's memory must leave room for."""
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_host_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return the free main memory, the file cache counted as free, within the limit of the control group."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        figures = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # `max`, or no control group
        return free
    return max(0, min(free, limit - used + int(figures.get("inactive_file", 0))))


def gpu_bytes() -> tuple[int, int] | None:
    """Return free and total memory of the first visible GPU; None where there is none."""
    import torch

    return torch.cuda.mem_get_info() if torch.cuda.is_available() else None


def sizes_of(sources: Sources, config: EngineConfig, kv_cache: int, *, itemsize: int | None = None) -> Sizes:
    """Return what the sources of a search and their merges take.

    Args:
        sources: opened, not necessarily resident.
        config: dtype and number of ranks of the model that is served.
        kv_cache: bytes of a rank's KV cache.
        itemsize: bytes of a parameter of a resident source; None: as it is stored.
    """
    models = {id(model): model for model in sources.models.values()}.values()  # one under two aliases is kept once
    stored = 0
    for model in models:
        for name in model.names():
            info = model.info(name)
            if not is_buffer(name, info):
                stored += info.num_elements * (itemsize or info.dtype.itemsize)
    reference = sources.models[sources.reference]
    counts = [reference.info(name).num_elements for name in reference.names()]
    return Sizes(
        sources=stored,
        model=sum(counts) * DTYPE_BYTES[config.dtype],
        largest=max(counts) * 4,
        kv_cache=kv_cache,
        num_sources=len(models),
        ranks=config.tensor_parallel,
    )


def plan_here(sizes: Sizes, config: EngineConfig, *, on_gpu: bool) -> ResidencyPlan:
    """Return the plan for this machine as it is now."""
    device = gpu_bytes() if on_gpu else None
    free, total = device if device is not None else (None, None)
    return plan_residency(
        sizes,
        free_host_bytes=free_host_bytes(),
        free_device_bytes=free,
        total_device_bytes=total,
        share=config.gpu_memory,
    )


def plan_worker(sources: Sources, config: EngineConfig, sequences: int, folder: Path | None = None) -> ResidencyPlan:
    """Return where a worker on this machine keeps the sources of a search.

    Args:
        sources: opened, not necessarily resident.
        config: the `engine:` section.
        sequences: requests that are served at once.
        folder: whose `config.json` the served model has; left out: the reference's.

    Raises:
        ConfigError: when vLLM is not installed.
        SourceError: when the model's configuration cannot be read.
    """
    build = require_installed().build
    folder = folder or sources.models[sources.reference].folder
    shape = read_shape(folder, trust_remote_code=config.trust_remote_code)
    kv_cache = kv_cache_bytes(config, shape, build, sequences) or LEAST_KV_CACHE_BYTES
    return plan_here(sizes_of(sources, config, kv_cache), config, on_gpu=build == "cuda")
