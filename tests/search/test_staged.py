"""Searches in stages: the rest is held at the best, and stages begin when the last one was told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from evomerge.recipe import SourceConfig
from evomerge.search import (
    Candidate,
    Outcome,
    RandomSearch,
    SearchConfig,
    StagedSearch,
    Stages,
    create_searcher,
)
from evomerge.search.cma_es import CmaEs
from evomerge.spaces import JointSpace, SpaceConfig, create_space
from evomerge.testing.searchers import drive, quadratic
from evomerge.testing.spaces import BoxSpace

PARTS = {"weights": slice(0, 3), "rest": slice(3, 6)}


def staged(space: BoxSpace, order: Sequence[str] = ("weights", "rest"), *, repeat: bool = True) -> StagedSearch:
    stages = Stages(parts=PARTS, order=order, evaluations=5, repeat=repeat)
    return StagedSearch(space, stages, lambda part, stage: RandomSearch(part, seed=stage))


def joint(schedule: str, searcher: str = "cma_es") -> tuple[JointSpace, StagedSearch]:
    config = SpaceConfig.model_validate(
        {"kind": "joint", "schedule": schedule, "stage_evaluations": 20, "repeats": 1, "encoding": "mixed"}
    )
    sources = {alias: SourceConfig(model=alias) for alias in ("base", "math", "ja")}
    space = create_space(config, sources=sources, base="base", num_layers=3)
    assert isinstance(space, JointSpace)
    found = create_searcher(SearchConfig(searcher=searcher), space)
    assert isinstance(found, StagedSearch)
    return space, found


def test_a_stage_varies_its_part_and_holds_the_rest_at_the_best() -> None:
    space = BoxSpace()
    score = quadratic(space)
    candidates, _ = drive(staged(space), score, 20)
    best = space.start
    for stage in range(4):
        batch = candidates[5 * stage : 5 * stage + 5]
        held = PARTS["rest" if stage % 2 == 0 else "weights"]
        assert {candidate.genome[held] for candidate in batch} == {best[held]}
        assert all(
            candidate.origin.startswith(f"{'weights' if stage % 2 == 0 else 'rest'} stage {stage}")
            for candidate in batch
        )
        top = max(candidates[: 5 * stage + 5], key=lambda candidate: score(candidate).objectives[0])
        best = top.genome


def test_a_stage_begins_only_when_the_one_before_was_told() -> None:
    space = BoxSpace()
    searcher = staged(space)
    candidates = searcher.ask(9)
    assert len(candidates) == 5
    for candidate in candidates[:4]:
        searcher.tell(candidate, Outcome("feasible", (0.1,)))
        assert searcher.ask(3) == []
    searcher.tell(candidates[4], Outcome("feasible", (0.9,)))
    (following,) = searcher.ask(1)
    assert following.genome[:3] == candidates[4].genome[:3]


def test_infeasible_and_failed_candidates_are_never_held() -> None:
    space = BoxSpace()
    searcher = staged(space)
    for candidate in searcher.ask(5):
        searcher.tell(
            candidate, Outcome("failed") if candidate.id % 2 else Outcome("infeasible", (9.0,), violation=0.1)
        )
    (following,) = searcher.ask(1)
    assert following.genome[:3] == space.start[:3]


def test_the_earlier_of_equals_is_held_in_any_order_of_telling() -> None:
    space = BoxSpace()
    searcher = staged(space)
    candidates = searcher.ask(5)
    for candidate in reversed(candidates):
        searcher.tell(candidate, Outcome("feasible", (0.5,)))
    assert searcher.ask(1)[0].genome[:3] == candidates[0].genome[:3]


def test_without_repetition_the_last_stage_goes_on() -> None:
    candidates, _ = drive(staged(BoxSpace(), repeat=False), quadratic(BoxSpace()), 40)
    assert {candidate.genome[:3] for candidate in candidates[5:]} == {candidates[5].genome[:3]}


def test_a_search_ends_with_its_last_stage_and_a_stage_with_its_searcher() -> None:
    """Both stages converge at once; then the search is finished, for their reason."""
    space = BoxSpace()
    parts = {"first": slice(0, 1), "others": slice(1, 3)}
    stages = Stages(parts=parts, order=("first", "others"), evaluations=1000, repeat=False)
    searcher = StagedSearch(space, stages, lambda part, _: CmaEs(part, options={"tolerance": 0.1}))
    candidates, _ = drive(searcher, quadratic(space), 2000)
    assert len(candidates) < 1000
    assert searcher.finished is not None
    assert searcher.finished.startswith("converged")
    assert searcher.status()["stage"] == 1


@pytest.mark.parametrize("searcher", ["cma_es", "cat_cma", "random"])
def test_schedules_of_a_joint_space(searcher: str) -> None:
    """The merge first, with the route at rest; then the route, with the merge at its best; then the merge again."""

    def score(candidate: Candidate) -> Outcome:
        return Outcome("feasible", (float(candidate.id % 7),))

    space, alternating = joint("alternating", searcher)
    candidates, events = drive(alternating, score, 60)
    parts = space.parts
    assert all("merged" not in candidate.recipe.sources for candidate in candidates[:20])
    assert {c.genome[parts["parameter"]] for c in candidates[20:40]} == {candidates[6].genome[parts["parameter"]]}
    assert len({c.genome[parts["data_flow"]] for c in candidates[40:]}) == 1
    assert all(candidate.recipe == space.decode(candidate.genome) for candidate in candidates)
    again, events_again = drive(joint("alternating", searcher)[1], score, 60)
    assert (again, events_again) == (candidates, events)

    _, once = joint("parameter_then_data_flow", searcher)
    first, _ = drive(once, score, 60)
    assert first[:40] == candidates[:40]
    assert len({c.genome[parts["parameter"]] for c in first[20:]}) == 1
