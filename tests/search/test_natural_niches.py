"""Natural niches: what is asked when, what competes, the ablations, and bad input."""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge import seeds
from evomerge.errors import ConfigError
from evomerge.search import Candidate, NaturalNiches, Outcome, SearchConfig, create_searcher
from evomerge.spaces.breeding import Angle
from evomerge.testing.searchers import drive
from evomerge.testing.spaces import BoxSpace, BreedingBox, Individual

ROWS = ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 0))
"""What the three sources of a box solve: z = 3, 1, 1, 0 and f = 4/3, 4/3, 1/3."""


class WatchedBox(BreedingBox):
    """A box that notes how it is bred."""

    def __init__(self) -> None:
        super().__init__()
        self.crossings: list[tuple[tuple[int, ...], float, Angle]] = []
        self.mutations: list[tuple[int, float]] = []

    def cross(
        self, first: Individual, second: Individual, *, splits: Sequence[int], mix: float, angle: Angle
    ) -> Individual:
        self.crossings.append((tuple(splits), mix, angle))
        return super().cross(first, second, splits=splits, mix=mix, angle=angle)

    def mutate(self, individual: Individual, *, seed: int, scale: float) -> Individual:
        self.mutations.append((seed, scale))
        return super().mutate(individual, seed=seed, scale=scale)


def solved(*row: float) -> Outcome:
    """Return a feasible outcome with these scores per sample."""
    scores = np.array(row, dtype=np.float64)
    return Outcome("feasible", (float(scores.mean()),), samples={"task.score": scores})


def started(rows: Sequence[Sequence[float]] = ROWS, space: BreedingBox | None = None, **options: Any) -> NaturalNiches:
    """Return a search whose sources were scored."""
    searcher = NaturalNiches(space or BreedingBox(), seed=1, options={"archive": 3, **options})
    for candidate, row in zip(searcher.ask(3), rows, strict=True):
        searcher.tell(candidate, solved(*row))
    return searcher


def origins(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.origin.removeprefix("natural_niches ") for candidate in candidates]


def test_the_sources_are_asked_first_and_found_the_archive() -> None:
    space = BreedingBox()
    searcher = NaturalNiches(space)
    candidates = searcher.ask(3)
    assert [candidate.genome for candidate in candidates] == [space.genome(source) for source in space.founders()]
    assert origins(candidates) == ["source"] * 3
    assert searcher.members == ()
    for candidate, row in zip(candidates, ROWS, strict=True):
        searcher.tell(candidate, solved(*row))
    assert searcher.members == (0, 1, 2)
    assert searcher.scores.tolist() == [list(row) for row in ROWS]


def test_children_are_random_merges_of_the_sources_while_one_is_open() -> None:
    """Asking never waits, and nothing is drawn by fitness before all sources have one."""
    searcher = NaturalNiches(BreedingBox())
    sources, early = searcher.ask(3), searcher.ask(40)
    for source in sources[:2]:
        searcher.tell(source, solved(1, 0))
    early += searcher.ask(40)
    assert set(origins(early)) == {"random merge"}
    pairs = {candidate.parents for candidate in early}
    assert pairs == {(a, b) for a in range(3) for b in range(3) if a != b}
    searcher.tell(sources[2], solved(0, 1))
    assert origins(searcher.ask(2)) == ["child", "child"]


def test_the_warm_up_is_so_many_random_merges() -> None:
    searcher = started(warm_up=5)
    assert origins(searcher.ask(7)) == ["random merge"] * 5 + ["child"] * 2


def test_parents_are_drawn_by_fitness_and_attraction() -> None:
    """First parents in proportion 4 : 4 : 1; the second is never one that has nothing to offer to the first."""
    pairs = Counter(candidate.parents for candidate in started().ask(1800))
    assert set(pairs) == {(0, 1), (1, 0), (2, 0), (2, 1)}
    assert abs(pairs[0, 1] - 800) < 100
    assert abs(pairs[1, 0] - 800) < 100
    assert abs(pairs[2, 0] - 100) < 40
    assert abs(pairs[2, 1] - 100) < 40


def test_without_attraction_both_parents_are_drawn_by_fitness() -> None:
    """Even the same one twice, as in the authors' code: its child is a copy."""
    candidates = started(attraction=False).ask(1800)
    pairs = Counter(candidate.parents for candidate in candidates)
    assert len(pairs) == 9
    assert abs(pairs[(0, 1)] - 1800 * 16 / 81) < 80
    assert abs(pairs[(1,)] - 1800 * 16 / 81) < 80
    copy = next(candidate for candidate in candidates if candidate.parents == (1,))
    assert copy.genome == pytest.approx(BreedingBox().genome(BreedingBox().founders()[1]))


def test_without_competition_fitness_is_the_plain_sum() -> None:
    firsts = Counter(candidate.parents[0] for candidate in started(alpha=0).ask(2000))
    assert [abs(firsts[id_] - expected) < 110 for id_, expected in enumerate((800, 800, 400))] == [True] * 3


def test_one_that_nobody_attracts_is_paired_with_any_other() -> None:
    """The first solves all that the others solve: attraction is zero, which the authors' code divides by."""
    searcher = started([(1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0)])
    pairs = Counter(candidate.parents for candidate in searcher.ask(900) if candidate.parents[0] == 0)
    assert set(pairs) == {(0, 1), (0, 2)}
    assert abs(pairs[0, 1] - pairs[0, 2]) < 120


def test_scores_that_are_all_zero_draw_everybody_alike() -> None:
    searcher = started([(0, 0)] * 3)
    pairs = Counter(candidate.parents for candidate in searcher.ask(1200))
    assert set(pairs) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert all(abs(count - 200) < 70 for count in pairs.values())
    assert searcher.status() == {"archive": 3, "coverage": 0.0, "entropy": 0.0, "accepted": 1.0}


def test_every_chromosome_is_split_on_its_own_at_any_point() -> None:
    space = WatchedBox()
    started(space=space).ask(400)
    splits, mixes, angles = zip(*space.crossings, strict=True)
    assert Counter(splits).keys() == {(head, rest) for head in (0, 1) for rest in (0, 1, 2)}
    assert 0 <= min(mixes) < 0.05
    assert 0.95 < max(mixes) <= 1
    assert set(angles) == {"whole"}


def test_without_a_split_all_is_mixed_in_one_ratio() -> None:
    space = WatchedBox()
    started(space=space, split=False, angle="part").ask(50)
    assert {(splits, angle) for splits, _, angle in space.crossings} == {((1, 2), "part")}


def test_each_child_has_noise_of_its_own() -> None:
    space = WatchedBox()
    candidates = started(space=space, mutation=0.01).ask(5)
    expected = [(seeds.derive(1, "mutation", candidate.id), 0.01) for candidate in candidates]
    assert space.mutations == expected
    assert len(set(expected)) == 5


def test_without_crossover_a_child_is_a_mutated_copy() -> None:
    space = WatchedBox()
    candidates = started(space=space, mutation=0.01, crossover=False).ask(50)
    assert space.crossings == []
    for candidate in candidates:
        (parent,) = candidate.parents
        assert candidate.genome != space.genome(space.founders()[parent])
        assert candidate.genome == pytest.approx(space.genome(space.founders()[parent]), abs=0.06)


def test_the_archive_is_what_the_definition_says() -> None:
    """A plain loop over Python numbers, of the paper's formulas, keeps the same members in the same slots."""
    rng = np.random.default_rng(0)
    rows: dict[int, NDArray[np.float64]] = {}
    order: list[int] = []

    def score(candidate: Candidate) -> Outcome:
        rows[candidate.id] = rng.random(6)
        order.append(candidate.id)
        return solved(*rows[candidate.id])

    searcher = NaturalNiches(BreedingBox(), options={"archive": 5})
    drive(searcher, score, 120, batch=6, order=np.random.default_rng(1))
    members: list[int] = []
    for newcomer in order:
        everybody = [*members, newcomer]
        demand = [sum(rows[k][j] for k in everybody) for j in range(6)]
        capacity = [max(rows[k][j] for k in everybody) for j in range(6)]
        fitness = [sum(capacity[j] * rows[k][j] / demand[j] for j in range(6)) for k in everybody]
        if len(members) < 5:
            members.append(newcomer)
        elif (worst := fitness.index(min(fitness))) < 5:
            members[worst] = newcomer
    assert searcher.members == tuple(members)
    assert max(members) > 20


def test_only_members_and_open_candidates_are_kept_in_memory() -> None:
    """Individuals may be whole weight vectors: the rejected and the replaced are let go."""
    alive: WeakSet[Any] = WeakSet()

    class Copied(np.ndarray[Any, np.dtype[np.float64]]):
        """Arrays have no identity of their own; this one has."""

        __hash__ = object.__hash__
        __eq__ = object.__eq__

    class TrackedBox(BreedingBox):
        def cross(self, *parents: Any, **how: Any) -> Any:
            child = np.asarray(super().cross(*map(np.asarray, parents), **how)).view(Copied)
            alive.add(child)
            return child

    rng = np.random.default_rng(0)
    searcher = NaturalNiches(TrackedBox(), options={"archive": 5})
    drive(searcher, lambda _: solved(*rng.random(4)), 200)
    still_open = searcher.ask(7)
    assert max(searcher.members) > 50
    assert len(alive) <= 5 + len(still_open)


def test_the_archive_changes_in_the_order_of_tells() -> None:
    """Equal tells in another order are another history, and the same history is the same archive."""

    def after(order: Sequence[int]) -> tuple[int, ...]:
        searcher = started()
        children = searcher.ask(2)
        for index in order:
            searcher.tell(children[index], solved(1, 0, 0, 0))
        return searcher.members

    assert after((0, 1)) == after((0, 1)) == (0, 1, 4)
    assert after((1, 0)) == (0, 1, 3)


@pytest.mark.parametrize("state", ["infeasible", "failed"])
def test_what_does_not_work_is_never_a_member(state: Any) -> None:
    searcher = started()
    (child,) = searcher.ask(1)
    searcher.tell(child, Outcome(state, (1.0,), violation=0.1, samples={"task.score": np.ones(4)}))
    assert searcher.members == (0, 1, 2)
    assert searcher.status()["accepted"] == 3 / 4


def test_a_search_whose_sources_fail_goes_on_with_random_merges() -> None:
    searcher = NaturalNiches(BreedingBox())
    for candidate in searcher.ask(3):
        searcher.tell(candidate, Outcome("failed"))
    children = searcher.ask(2)
    searcher.tell(children[0], solved(1, 0))
    assert origins(children + searcher.ask(1)) == ["random merge"] * 3
    searcher.tell(children[1], solved(0, 1))
    assert searcher.ask(1)[0].parents in {(3, 4), (4, 3)}


def test_status_tells_size_coverage_entropy_and_acceptance() -> None:
    searcher = started()
    (child,) = searcher.ask(1)
    searcher.tell(child, solved(0, 0, 0, 0))
    status = searcher.status()
    assert (status["archive"], status["coverage"], status["accepted"]) == (3, 0.75, 0.75)
    one_in_three = -(np.log2(1 / 3) / 3 + 2 * np.log2(2 / 3) / 3)
    assert status["entropy"] == pytest.approx(2 * one_in_three / 4)


def test_a_candidate_of_another_searcher_competes_like_a_child() -> None:
    searcher, space = started(), BreedingBox()
    foreign = Candidate(-1, (0.3, 0.4, 0.5), space.decode)
    searcher.hear(foreign, Outcome("infeasible"))
    searcher.hear(foreign, solved(0, 0, 0, 1))
    assert searcher.members == (0, 1, -1)
    assert {parent for candidate in searcher.ask(60) for parent in candidate.parents} == {0, 1, -1}


def test_all_metrics_compete_unless_some_are_named() -> None:
    outcome = Outcome("feasible", (1.0,), samples={"b.x": np.array([0.5]), "a.x": np.array([0.25, 1.0])})

    def competing(**arguments: Any) -> list[list[float]]:
        searcher = NaturalNiches(BreedingBox(), **arguments)
        searcher.tell(searcher.ask(1)[0], outcome)
        return searcher.scores.tolist()

    assert competing() == [[0.25, 1.0, 0.5]]
    assert competing(metrics=["b.x", "parameters"]) == [[0.5]]
    assert competing(metrics=["b.x"], options={"metrics": ["b.x", "a.x"]}) == [[0.5, 0.25, 1.0]]
    assert competing(options={"metrics": ["-a.x"], "normaliser": "min_max"}) == [[-0.25, -1.0]]


def test_a_search_file_gives_the_metrics_of_its_objectives() -> None:
    config = SearchConfig(searcher="natural_niches")
    searcher = create_searcher(config, BreedingBox(), metrics=["a.x"])
    samples = {"a.x": np.array([1.0]), "a.response_tokens": np.array([900.0])}
    searcher.tell(searcher.ask(1)[0], Outcome("feasible", (1.0,), samples=samples))
    assert isinstance(searcher, NaturalNiches)
    assert searcher.scores.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ({}, "candidate 0 has no scores per sample, on which candidates compete"),
        ({"task.score": np.array(0.5)}, r"task.score has shape \(\); expected one number a sample"),
        ({"task.score": np.zeros((2, 2))}, r"has shape \(2, 2\)"),
        ({"task.score": np.zeros(0)}, r"has shape \(0,\)"),
        ({"task.score": np.array([0.5, 1.5])}, r"a score of 1.5, outside \[0, 1\]; set search.options.normaliser"),
        ({"task.score": np.array([-3.0, 1.0])}, "a score of -3, outside"),
        ({"task.score": np.array([np.nan, 1.0])}, "not finite"),
    ],
)
def test_scores_that_cannot_compete_are_refused_and_change_nothing(samples: Any, text: str) -> None:
    searcher = NaturalNiches(BreedingBox())
    (candidate,) = searcher.ask(1)
    with pytest.raises(ConfigError, match=text):
        searcher.tell(candidate, Outcome("feasible", (0.5,), samples=samples))
    searcher.tell(candidate, solved(1, 0))
    assert searcher.members == (0,)


def test_candidates_with_other_numbers_of_samples_are_refused() -> None:
    searcher = started()
    (child,) = searcher.ask(1)
    with pytest.raises(ConfigError, match=r"candidate 3: task.score has 2 samples, those before had 4"):
        searcher.tell(child, solved(1, 0))


def test_metrics_that_are_not_there_are_refused() -> None:
    searcher = NaturalNiches(BreedingBox(), options={"metrics": ["task.scores"]})
    with pytest.raises(ConfigError, match=r"no scores per sample of 'task.scores'; did you mean 'task.score'"):
        searcher.tell(searcher.ask(1)[0], solved(1, 0))
    searcher = NaturalNiches(BreedingBox(), metrics=["hops", "parameters"])
    with pytest.raises(
        ConfigError, match=r"none of hops, parameters has scores per sample; name some of task.score in"
    ):
        searcher.tell(searcher.ask(1)[0], solved(1, 0))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"archive": 2}, "search.options.archive: 2 members, and 3 sources"),
        ({"crossover": False}, "search.options.crossover: without it, and without mutation"),
        ({"alfa": 1}, "search.options: alfa: unknown key"),
        ({"alpha": -1}, "search.options: alpha"),
        ({"alpha": 11}, "search.options: alpha"),
        ({"metrics": "task.score"}, "search.options: metrics"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        NaturalNiches(BreedingBox(), options=options)


@pytest.mark.parametrize("name", ["natural_niches", "map_elites"])
def test_spaces_and_searches_in_which_nothing_breeds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"search.searcher: {name} crosses individuals.*space.kind: piecewise"):
        create_searcher(SearchConfig(searcher=name), BoxSpace())
    with pytest.raises(ConfigError, match=f"sources: {name} crosses them, and there is 1; give at least two"):
        create_searcher(SearchConfig(searcher=name), BreedingBox(num_founders=1))
    with pytest.raises(ConfigError, match=f"search.minibatch: {name} compares"):
        create_searcher(SearchConfig(searcher=name, minibatch=5), BreedingBox())
