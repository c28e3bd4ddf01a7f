"""Memory for results is used again, and never while somebody holds what is in it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.memory import ResultMemory

CPU = torch.device("cpu")
MEBI = 1 << 20


def test_what_a_dropped_tensor_leaves_is_given_out_again() -> None:
    memory = ResultMemory()
    first = memory.empty(2 * MEBI, torch.float32, CPU)
    place = first.data_ptr()
    del first
    assert memory.empty(3 * MEBI, torch.bfloat16, CPU).data_ptr() == place


def test_a_view_holds_the_memory() -> None:
    memory = ResultMemory()
    row = memory.empty(MEBI, torch.float32, CPU).view(1024, 1024)[7]
    row.fill_(1.0)
    memory.empty(MEBI, torch.float32, CPU).fill_(2.0)
    assert bool((row == 1.0).all())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(MEBI // 2, 2 * MEBI)), max_size=20))
def test_no_two_tensors_share_memory(steps: list[tuple[int, int]]) -> None:
    memory, held = ResultMemory(), dict[int, Tensor]()
    for number, (slot, length) in enumerate(steps):
        held.pop(slot, None)
        held[slot] = memory.empty(length, torch.bfloat16, CPU).fill_(number % 100)
        assert held[slot].shape == (length,)
        for tensor in held.values():
            assert tensor[0] == tensor[-1]
        values = [float(tensor[0]) for tensor in held.values()]
        assert len(set(values)) == len(values)


def test_threads_may_share_one() -> None:
    memory = ResultMemory()

    def work(number: int) -> bool:
        tensors = [memory.empty(MEBI + step, torch.bfloat16, CPU).fill_(number) for step in range(3)]
        return all(bool((tensor == number).all()) for tensor in tensors)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(64)))


def test_what_is_kept_is_bounded() -> None:
    memory = ResultMemory()
    large = [memory.empty(1 << 28, torch.uint8, CPU) for _ in range(3)]
    places = {tensor.data_ptr() for tensor in large}
    large.clear()
    found = [memory.empty(1 << 28, torch.uint8, CPU) for _ in range(2)]
    assert {tensor.data_ptr() for tensor in found} < places
    assert len(memory._free) == 0


def test_memory_that_is_kept_is_not_asked_of_the_system_again() -> None:
    """Seen from the pages that it has to clear for a block like one that was freed just before."""
    program = """
import ctypes, resource
from evomerge.merging.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(1 << 27))
    ctypes.memset(block, 1, 1 << 27)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
keep_freed_memory()
faults()
print(faults())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    given_back, kept = map(int, run.stdout.split())
    assert kept < 100 < given_back
