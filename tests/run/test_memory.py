"""What a coordinator holds in memory for each evaluation of a long search."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.cli.live import LiveView
from evomerge.cluster import InlineExecutor
from evomerge.cluster.types import Event as Settled
from evomerge.run.problem import Problem
from evomerge.run.session import start
from evomerge.run.view import load_run
from tests.run.small import AnalyticScorer, small_search, write_problem

WARM, END = 100, 300
"""Evaluations between which memory is compared."""
MOST_BYTES = 1024
"""Held for an evaluation at most: its event alone would take several times that."""


class _Weighed(InlineExecutor):
    """Scores in this process, and notes how much memory is held after so many results."""

    held: int | None = None

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.config.executor, lambda: AnalyticScorer(problem))
        self._results = 0

    def wait(self, timeout_s: float) -> list[Settled]:
        """Count results; memory is traced from the first mark on, so that what stands before costs no time."""
        events = super().wait(timeout_s)
        self._results += len(events)
        if events and self._results in (WARM, END):
            gc.collect()
            if self._results == WARM:
                tracemalloc.start()
            else:
                type(self).held = tracemalloc.get_traced_memory()[0]
                tracemalloc.stop()
        return events


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    tracemalloc.stop()


def test_memory_hardly_grows_with_the_evaluations_even_while_somebody_watches(tmp_path: Path) -> None:
    references = {"parents": False, "uniform": False}
    search = {"searcher": "cma_es", "options": {"tolerance": 0}}
    config = small_search(write_problem(tmp_path), evaluations=END, search=search, references=references, finalists=0)
    with LiveView(tmp_path / "run", plain=True) as view:
        start(config, tmp_path / "run", executor=_Weighed, observer=view)
    assert load_run(tmp_path / "run").state.num_done == END
    assert _Weighed.held is not None
    assert _Weighed.held / (END - WARM) < MOST_BYTES
