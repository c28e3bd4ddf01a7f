"""MAP-Elites: who holds which cell."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.search import Candidate, MapElites, Outcome
from evomerge.testing.spaces import BreedingBox


def scored(*objectives: float) -> Outcome:
    return Outcome("feasible", objectives)


def told(*outcomes: Outcome, **arguments: Any) -> MapElites:
    """Return a search whose first candidates had these outcomes."""
    searcher = MapElites(BreedingBox(), **arguments)
    for candidate, outcome in zip(searcher.ask(len(outcomes)), outcomes, strict=True):
        searcher.tell(candidate, outcome)
    return searcher


def test_a_cell_keeps_its_best_and_of_equals_the_earlier() -> None:
    """The first two objectives tell the cell, their mean the quality."""
    searcher = told(scored(0.11, 0.11), scored(0.15, 0.15), scored(0.9, 0.1), scored(0.15, 0.15), scored(0.12, 0.12))
    assert searcher.elites == (1, 2)
    assert searcher.status() == {"elites": 2, "coverage": 0.02, "qd_score": pytest.approx(0.65)}


def test_measures_may_be_metrics_and_the_grid_may_be_any() -> None:
    """Means of scores per sample; what lies outside the ranges counts for the outermost cell."""

    def outcome(quality: float, *lengths: float) -> Outcome:
        return Outcome("feasible", (quality,), samples={"a.len": np.array(lengths), "a.x": np.array([0.5])})

    options = {"measures": ["a.len", "a.x"], "cells": [2, 1], "ranges": [[0, 100], [0, 1]]}
    searcher = told(outcome(0.1, 0, 60), outcome(0.2, 0, 80), outcome(0.3, 200, 300), outcome(0.4, -9), options=options)
    assert searcher.elites == (3, 2)


def test_children_have_elites_as_parents() -> None:
    searcher = told(scored(0.1, 0.1), scored(0.12, 0.12), scored(0.9, 0.9))
    pairs = {candidate.parents for candidate in searcher.ask(60)}
    assert pairs == {(1,), (2,), (1, 2), (2, 1)}


def test_children_are_random_merges_until_there_are_two_elites() -> None:
    searcher = told(scored(0.1, 0.1), scored(0.1, 0.1), Outcome("infeasible", (1.0, 1.0)))
    assert {candidate.origin for candidate in searcher.ask(5)} == {"map_elites random merge"}


def test_a_candidate_of_another_searcher_may_take_a_cell() -> None:
    searcher, space = told(*[scored(0.1, 0.1)] * 3), BreedingBox()
    foreign = Candidate(-1, (0.3, 0.4, 0.5), space.decode)
    searcher.hear(foreign, Outcome("failed"))
    searcher.hear(foreign, scored(0.9, 0.9))
    assert searcher.elites == (0, -1)
    assert {parent for candidate in searcher.ask(20) for parent in candidate.parents} == {0, -1}


@pytest.mark.parametrize(
    ("outcome", "options", "text"),
    [
        (scored(0.5), {}, "search.options.measures: a grid needs two metrics"),
        (scored(0.5), {"measures": ["a.x", "b.x"]}, "candidate 0 has no scores per sample of 'a.x'; known: none"),
        (scored(0.5, float("nan")), {}, "its measures are"),
    ],
)
def test_candidates_without_measures_are_refused_and_change_nothing(outcome: Outcome, options: Any, text: str) -> None:
    searcher = MapElites(BreedingBox(), options=options)
    (candidate,) = searcher.ask(1)
    with pytest.raises(ConfigError, match=text):
        searcher.tell(candidate, outcome)
    searcher.tell(candidate, Outcome("failed"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cells": [10, 0]}, "search.options: cells: expected at least one cell"),
        ({"ranges": [[0, 1], [1, 1]]}, "search.options: ranges: expected low < high"),
        ({"grid": 5}, "search.options: grid: unknown key"),
    ],
)
def test_grids_that_cannot_be_are_refused(options: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        MapElites(BreedingBox(), options=options)


def test_the_library_is_loaded_only_where_it_is_used() -> None:
    """It takes seconds to load, and loads torch where that is installed."""
    code = "import evomerge.search, sys; print('ribs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
