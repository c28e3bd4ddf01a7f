"""A search says that it cannot keep its workers busy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.run.config import RunConfig
from evomerge.run.flight import idle_workers
from evomerge.run.preflight import preflight
from evomerge.run.problem import space_of
from evomerge.search import create_searcher
from tests.run.conftest import INFOS, Recorder
from tests.run.small import small_search, write_problem


def said(config: RunConfig, search: dict[str, Any], workers: int, kind: str = "ray") -> str | None:
    data = config.model_dump(mode="json") | {"search": search, "executor": {"kind": kind, "workers": workers}}
    config = RunConfig.model_validate(data)
    return idle_workers(config, create_searcher(config.search, space_of(config, INFOS)))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_cma_es_has_no_more_in_flight_than_its_population(recorder: Recorder, *, asynchronous: bool) -> None:
    search = {"searcher": "cma_es", "options": {"population": 12, "asynchronous": asynchronous}}
    text = said(recorder.config, search, 32)
    assert text is not None
    assert "at most 12 candidates in flight, which keeps 12 of 32 workers busy; raise its population" in text
    assert said(recorder.config, search, 12) is None


def test_searchers_without_a_limit_and_one_worker_need_no_word(recorder: Recorder) -> None:
    assert said(recorder.config, {"searcher": "random"}, 500) is None
    assert said(recorder.config, {"searcher": "nsga_ii"}, 500) is None
    assert said(recorder.config, {"searcher": "cma_es"}, 32, kind="inline") is None


def test_a_portfolio_in_turns_fills_the_gaps(recorder: Recorder) -> None:
    cma_es = {"searcher": "cma_es", "options": {"population": 4}}
    stages = [cma_es, {"searcher": "nsga_ii"}]
    assert said(recorder.config, {"searcher": "portfolio", "options": {"stages": stages, "together": True}}, 64) is None
    one_by_one = said(recorder.config, {"searcher": "portfolio", "options": {"stages": stages}}, 64)
    assert one_by_one is not None
    assert "portfolio has at most 4 candidates in flight" in one_by_one


def test_check_says_it(tmp_path: Path) -> None:
    config = small_search(write_problem(tmp_path), evaluations=8, executor={"kind": "ray", "workers": 6})
    assert any("keeps 4 of 6 workers busy" in note for note in preflight(config)["notes"])
