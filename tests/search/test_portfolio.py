"""Portfolios: who is asked when, who hears what, and how candidates are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from evomerge import seeds
from evomerge.errors import ConfigError
from evomerge.recipe import SourceConfig
from evomerge.search import Candidate, Outcome, Portfolio, PortfolioOptions, SearchConfig, Searcher, create_searcher
from evomerge.search.ledger import Ledger
from evomerge.search.portfolio import Listener
from evomerge.search.progress import Progress
from evomerge.spaces import SpaceConfig
from evomerge.spaces.grams import Grams
from evomerge.spaces.piecewise import PiecewiseSpace
from evomerge.spaces.types import Genome, Space
from evomerge.testing.searchers import drive, quadratic
from evomerge.testing.spaces import BoxSpace, BreedingBox

SPACE = BoxSpace(2, mixed=False)


@dataclass
class Plain:
    """Asks for one genome, the start of its space, and remembers what it was told."""

    space: Space
    lasts: int | None = None
    told: list[int] = field(default_factory=list)
    genomes: list[Genome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.space)

    def ask(self, n: int) -> list[Candidate]:
        return [self.ledger.issue(self.space.start, origin="plain") for _ in range(n)]

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self.ledger.close(candidate)
        self.told.append(candidate.id)

    @property
    def finished(self) -> str | None:
        return "enough" if self.lasts is not None and len(self.told) >= self.lasts else None

    def status(self) -> dict[str, float | int | str]:
        return {"told": len(self.told)}


@dataclass
class Hearing(Plain):
    """Names as parents whatever it heard of last, and its own last candidate."""

    heard: list[int] = field(default_factory=list)

    def hear(self, candidate: Candidate, outcome: Outcome) -> None:
        self.heard.append(candidate.id)

    def ask(self, n: int) -> list[Candidate]:
        own = self.ledger.next_id - 1
        parents = (*self.heard[-1:], *((own,) if own >= 0 else ()))
        return [self.ledger.issue(self.space.start, origin="hearing", parents=parents) for _ in range(n)]


def portfolio(
    makers: list[Callable[[Space], Searcher]], untils: list[dict[str, int]], **options: Any
) -> tuple[Portfolio, list[list[Any]]]:
    """Return a portfolio of these searchers, and for each stage those that were made, in order."""
    made: list[list[Any]] = [[] for _ in makers]

    def make(space: Space, number: int) -> Searcher:
        made[number].append(makers[number](space))
        return made[number][-1]

    shares = options.pop("shares", [1] * len(makers))
    stages = [
        {"searcher": f"s{number}", "until": until, "share": shares[number]} for number, until in enumerate(untils)
    ]
    return Portfolio(SPACE, PortfolioOptions.model_validate({"stages": stages, **options}), make), made


def good(value: float) -> Outcome:
    return Outcome("feasible", (value,))


def stages_of(candidates: list[Candidate]) -> list[int]:
    return [int(candidate.origin.split()[1].rstrip(":")) for candidate in candidates]


def test_a_stage_ends_when_so_many_of_its_own_were_told() -> None:
    """What is open then goes to the searcher that asked, is heard by the next, and does not count for it."""
    searcher, made = portfolio([Hearing, Hearing, Hearing], [{"evaluations": 3}, {"evaluations": 2}, {}])
    first = searcher.ask(5)
    for candidate in first[:3]:
        searcher.tell(candidate, good(0.1))
    second = searcher.ask(2)
    assert stages_of(first + second) == [0] * 5 + [1] * 2
    for candidate in first[3:]:
        searcher.tell(candidate, good(0.1))
    assert stages_of(searcher.ask(1)) == [1]
    assert made[0][0].told == [0, 1, 2, 3, 4]
    assert made[1][0].heard == [-1, -2, -3, -4, -5]
    for candidate in second:
        searcher.tell(candidate, good(0.1))
    assert stages_of(searcher.ask(1)) == [2]
    assert made[0][0].heard == []
    assert made[2][0].heard == [-1, -2, -3, -4, -5, -6, -7]


def test_a_stage_ends_without_progress() -> None:
    """Progress starts the count anew; equal scores are none."""
    searcher, _ = portfolio([Plain, Plain], [{"stagnation": 3}, {}])
    scores = [0.1, 0.1, 0.1, 0.2, 0.2, 0.1, 0.2, 0.3]
    candidates = []
    for score in scores:
        candidates += searcher.ask(1)
        searcher.tell(candidates[-1], good(score))
    assert stages_of(candidates) == [0] * 7 + [1]


def test_a_stage_that_is_over_stays_over() -> None:
    """Though one of its last candidates is progress."""
    searcher, _ = portfolio([Plain, Plain], [{"stagnation": 2}, {}])
    candidates = searcher.ask(4)
    for candidate, score in zip(candidates, [0.1, 0.1, 0.1, 0.9], strict=True):
        searcher.tell(candidate, good(score))
    assert stages_of(searcher.ask(1)) == [1]


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([(0.1,), (0.1,), (0.2,), (0.15,)], [True, False, True, False]),
        (
            [(0.5, 0.1), (0.1, 0.5), (0.1, 0.1), (0.5, 0.1), (0.3, 0.3), (0.6, 0.0)],
            [True, True, False, False, True, True],
        ),
    ],
)
def test_progress_is_a_larger_hypervolume(objectives: list[tuple[float, ...]], expected: list[bool]) -> None:
    progress = Progress("mean")
    found = [
        progress.add(Candidate(id_, (), SPACE.decode), Outcome("feasible", values))
        for id_, values in enumerate(objectives)
    ]
    assert found == expected


def test_the_best_is_the_first_feasible_one_of_the_highest_scalarised_objective() -> None:
    progress = Progress("min")
    outcomes = [
        Outcome("feasible", (0.3, 0.9)),
        Outcome("infeasible", (5.0, 5.0), violation=0.1),
        Outcome("feasible", (float("nan"), 9.0)),
        Outcome("failed"),
        Outcome("feasible", (0.4, 0.4)),
        Outcome("feasible", (0.4, 0.8)),
    ]
    progressed = [progress.add(Candidate(id_, (), SPACE.decode), one) for id_, one in enumerate(outcomes)]
    assert progressed == [True, False, False, False, True, True]
    assert progress.best is not None
    assert progress.best.id == 4


def test_a_searcher_that_does_not_listen_starts_at_the_best_so_far() -> None:
    config = SearchConfig(
        searcher="portfolio",
        options={
            "stages": [
                {"searcher": "random", "until": {"evaluations": 20}},
                {"searcher": "cma_es", "options": {"sigma": 0.001}, "until": {"evaluations": 20}},
            ]
        },
    )
    score = quadratic(SPACE)
    candidates, _ = drive(create_searcher(config, SPACE), score, 100, batch=1)
    assert len(candidates) == 40
    best = max(candidates[:20], key=lambda candidate: score(candidate).objectives[0])
    for candidate in candidates[20:26]:
        assert candidate.genome == pytest.approx(best.genome, abs=0.02)


def test_turns_are_taken_by_shares() -> None:
    searcher, _ = portfolio([Plain, Hearing], [{}, {}], together=True, shares=[1, 3])
    candidates = searcher.ask(40)
    assert [stages_of(candidates[:end]).count(0) for end in (4, 20, 40)] == [1, 5, 10]


def test_turns_go_on_without_those_that_are_over_or_wait() -> None:
    config = SearchConfig(
        searcher="portfolio",
        options={
            "together": True,
            "stages": [
                {"searcher": "cma_es", "options": {"population": 4}},
                {"searcher": "random", "until": {"evaluations": 9}},
            ],
        },
    )
    searcher = create_searcher(config, SPACE)
    candidates = searcher.ask(20)
    assert stages_of(candidates).count(0) == 4
    for candidate in candidates:
        searcher.tell(candidate, good(float(candidate.id)))
    assert stages_of(searcher.ask(3)) == [0, 0, 0]


def test_parents_are_called_by_their_ids_in_the_portfolio() -> None:
    searcher, _ = portfolio([Plain, Hearing], [{"evaluations": 3}, {}])
    for candidate in searcher.ask(3):
        searcher.tell(candidate, good(0.1))
    first, second = searcher.ask(2)
    assert (first.id, first.parents) == (3, (2,))
    assert (second.id, second.parents) == (4, (2, 3))


def test_it_is_finished_when_all_stages_are() -> None:
    searcher, _ = portfolio([lambda space: Plain(space, lasts=2), Hearing], [{}, {"evaluations": 1}])
    candidates, _ = drive(searcher, lambda _: good(0.1), 10, batch=1)
    assert stages_of(candidates) == [0, 0, 1]
    assert searcher.ask(1) == []
    assert searcher.finished == "1 evaluations of s1"


@pytest.mark.parametrize("name", ["nsga_ii", "tpe", "natural_niches"])
def test_searchers_that_keep_a_population_listen(name: str) -> None:
    assert isinstance(create_searcher(SearchConfig(searcher=name), BreedingBox()), Listener)


def two_skills(candidate: Candidate) -> Outcome:
    """Scores per sample, two of each skill, and the two means."""
    scores = seeds.generator(0, repr(candidate.genome)).random(4)
    samples = {"one": scores[:2], "two": scores[2:]}
    return Outcome("feasible", (float(scores[:2].mean()), float(scores[2:].mean())), samples=samples)


@pytest.mark.parametrize("together", [False, True])
def test_bred_and_numeric_candidates_share_a_piecewise_space(*, together: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal(400).astype(np.float32) for _ in range(3)]
    space = PiecewiseSpace(
        SpaceConfig(kind="piecewise", chunks=4),
        Grams.of_vectors(("a", "b", "c"), {"whole": vectors}),
        sources={alias: SourceConfig(model=alias) for alias in "abc"},
    )
    options = {
        "together": together,
        "stages": [
            {"searcher": "natural_niches", "options": {"archive": 6}, "until": {"evaluations": 15}},
            {"searcher": "nsga_ii", "options": {"population": 6}, "until": {"evaluations": 20}},
            {"searcher": "cma_es", "until": {"evaluations": 8}},
            {"searcher": "natural_niches"},
        ],
    }
    searcher = create_searcher(SearchConfig(searcher="portfolio", options=options), space)
    candidates, _ = drive(searcher, two_skills, 60)
    assert len(candidates) == 60
    for candidate in candidates:
        assert candidate.recipe == space.decode(candidate.genome)
        assert all(parent < candidate.id for parent in candidate.parents)
    by_stage = {number: [c for c in candidates if c.origin.startswith(f"stage {number}:")] for number in range(4)}
    assert all(len(candidate.genome) == len(space.dimensions) for number in (1, 2) for candidate in by_stage[number])
    crossed = {parent for candidate in by_stage[3] for parent in candidate.parents}
    assert crossed - {candidate.id for candidate in by_stage[3]}, "no child of what others found"


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([], "search.options.*stages"),
        ([{"searcher": "random"}, {"searcher": "nsga"}], r"search.options.stages\[1\].searcher: .*'nsga_ii'"),
        ([{"searcher": "random"}, {"searcher": "nsga_ii", "options": {"popul": 3}}], r"stages\[1\].options: popul"),
        ([{"searcher": "portfolio", "options": {"stages": []}}], r"stages\[0\].searcher: a portfolio holds no"),
        ([{"searcher": "random", "until": {"evaluation": 3}}], "did you mean 'evaluations'"),
        ([{"searcher": "natural_niches"}], "natural_niches crosses individuals"),
    ],
)
def test_mistakes_in_any_stage_are_named_at_once(stages: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        create_searcher(SearchConfig(searcher="portfolio", options={"stages": stages}), SPACE)


def test_minibatches_are_refused() -> None:
    config = SearchConfig(searcher="portfolio", options={"stages": [{"searcher": "random"}]}, minibatch=5)
    with pytest.raises(ConfigError, match=r"search\.minibatch: the searchers of a portfolio hear each other"):
        create_searcher(config, SPACE)
