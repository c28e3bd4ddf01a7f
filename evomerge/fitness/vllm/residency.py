"""Where the sources of a search live while candidates are merged from them: pure arithmetic on sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Where = Literal["device", "pinned", "mapped"]
GIB = 1 << 30
HOST_SHARE = 0.5
"""Part of the free host memory that one worker may fill: other workers and the page cache need the rest."""
ENGINE_BYTES = 2 * GIB
"""What vLLM needs on a GPU beside weights and KV cache: activations, graphs, the libraries' own memory."""

PROCESS_BYTES = GIB
"""Main memory of a process that has torch and vLLM loaded and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What has to find room in one worker. All in bytes."""

    sources: int
    """All sources together, as they are stored."""
    model: int
    """The model that is served, whole, in the engine's dtype."""
    largest: int
    """The largest tensor of the model, in float32; merging holds one of each source and three more."""
    kv_cache: int
    """The KV cache of one rank; on a GPU, the least that is useful."""
    num_sources: int = 1
    ranks: int = 1
    """Devices, or processes on the CPU, that the model is spread over. Each may have to merge whole tensors."""

    @property
    def merging(self) -> int:
        """What merging one tensor takes."""
        return (self.num_sources + 3) * self.largest


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyPlan:
    """Where the sources live, and the memory that this takes."""

    where: Where
    """`device`: memory of the device that merges (on the CPU: main memory); `pinned`: page-locked host memory;
    `mapped`: files that are read as they are needed."""
    device_bytes: int
    """Peak on each GPU; 0 on the CPU."""
    host_bytes: int
    """Peak in main memory, all ranks of a worker together; mapped files are not counted, they can be dropped."""
    device_share: float = 0.0
    """Part of each GPU's memory that sources take and that vLLM must leave."""
    reason: str = ""
    """One clause for people: the figures that decided."""


def plan_residency(
    sizes: Sizes,
    *,
    free_host_bytes: int,
    free_device_bytes: int | None = None,
    total_device_bytes: int | None = None,
    share: float = 0.9,
) -> ResidencyPlan:
    """Choose the fastest place where the sources fit: device memory, pinned host memory, mapped files.

    Args:
        sizes: what has to find room.
        free_host_bytes: free main memory.
        free_device_bytes: free memory of each GPU; None: the device is the CPU.
        total_device_bytes: all memory of each GPU; None: what is free.
        share: the part of each GPU's memory that may be filled.

    Example:
        >>> sizes = Sizes(sources=40 * GIB, model=10 * GIB, largest=GIB, kv_cache=4 * GIB, num_sources=4)
        >>> plan_residency(sizes, free_host_bytes=200 * GIB, free_device_bytes=80 * GIB).where
        'device'
        >>> plan_residency(sizes, free_host_bytes=200 * GIB, free_device_bytes=40 * GIB).where
        'pinned'
        >>> plan_residency(sizes, free_host_bytes=50 * GIB, free_device_bytes=40 * GIB).where
        'mapped'
    """
    host = int(free_host_bytes * HOST_SHARE)
    if free_device_bytes is None:
        return _on_cpu(sizes, host)
    total = total_device_bytes or free_device_bytes
    room = min(free_device_bytes, int(total * share))
    served = -(-sizes.model // sizes.ranks) + sizes.kv_cache + sizes.merging + ENGINE_BYTES
    processes = sizes.ranks * PROCESS_BYTES
    copies = sizes.sources * sizes.ranks
    if served + sizes.sources <= room:
        return ResidencyPlan(
            where="device",
            device_bytes=served + sizes.sources,
            host_bytes=processes,
            device_share=(sizes.sources + sizes.merging) / total,
            reason=f"{_gib(sizes.sources)} of sources fit into the {_gib(room - served)} that each GPU has left",
        )
    why = f"{_gib(sizes.sources)} of sources do not fit into the {_gib(max(0, room - served))} that each GPU has left"
    device_share = sizes.merging / total
    if processes + copies <= host:
        why += f", but into half of the {_gib(free_host_bytes)} of free main memory"
        return ResidencyPlan(
            where="pinned", device_bytes=served, host_bytes=processes + copies, device_share=device_share, reason=why
        )
    why += f", nor into half of the {_gib(free_host_bytes)} of free main memory"
    return ResidencyPlan(
        where="mapped", device_bytes=served, host_bytes=processes, device_share=device_share, reason=why
    )


def _on_cpu(sizes: Sizes, host: int) -> ResidencyPlan:
    served = sizes.model + sizes.ranks * (sizes.kv_cache + sizes.merging + PROCESS_BYTES)
    copies = sizes.sources * sizes.ranks
    fits = served + copies <= host
    why = f"{_gib(copies)} of sources {'fit' if fits else 'do not fit'} into half of the free main memory, of which "
    why += f"{_gib(served)} are needed to serve"
    where: Where = "device" if fits else "mapped"
    return ResidencyPlan(where=where, device_bytes=0, host_bytes=served + (copies if fits else 0), reason=why)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"
