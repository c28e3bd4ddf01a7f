"""Several tensors at a time, each by one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")

MOST_THREADS = 8
"""Beyond so many, memory is what a merge waits for, and each thread's tensor takes room in it."""


def in_order(
    make: Callable[[Item], Made], items: Sequence[Item], num_threads: int, *, waiting: int = 0
) -> Iterator[Made]:
    """Yield `make(item)` of each item, in their order; a few items are worked on ahead, each by one thread.

    PyTorch would share out each operation instead: threads then wait for each other at every one of them, and look
    busy meanwhile. It gives the interpreter free while it computes, so Python's threads do as well.

    Args:
        make: what is done; its results do not depend on the thread.
        items: what it is done with.
        num_threads: below 2 everything is done by the caller's thread, with PyTorch's own threads.
        waiting: further results that may wait for their turn, where what the caller does with one takes as long as
            making several others.

    Raises:
        Exception: what `make` raises, when the turn of its item has come.
    """
    num_threads = min(num_threads, len(items))
    if num_threads < 2:
        yield from map(make, items)
        return
    with _single_threads(num_threads) as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > num_threads + waiting:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have PyTorch share out what this thread asks for among so many threads."""
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _single_threads(count: int) -> ThreadPoolExecutor:
    """Start threads in each of which PyTorch uses one thread."""
    own = torch.get_num_threads()
    started = Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first look copies the process's number into the thread
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="merge", initializer=begin)
    try:
        for _ in range(count):
            pool.submit(int)  # a thread is started with a first task
    except BaseException:
        started.abort()
        raise
    started.wait()
    torch.set_num_threads(own)  # threads that begin later, and this one, are as before
    return pool
