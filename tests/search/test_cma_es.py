"""CMA-ES finds optima, forgets nothing it should keep, and drops what is stale."""

import math
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.search import Candidate, CmaEs, Outcome, SearchConfig, create_searcher
from evomerge.search.gaussian import GaussianSearch
from evomerge.search.ranking import standing
from evomerge.testing.searchers import drive, quadratic
from evomerge.testing.spaces import BoxSpace

Loss = Callable[[NDArray[np.float64]], float]


def unit(space: BoxSpace, candidate: Candidate) -> NDArray[np.float64]:
    return np.array([d.to_unit(v) for d, v in zip(space.dimensions, candidate.genome, strict=True)])


def minimise(loss: Loss, num_dimensions: int, evaluations: int, seed: int = 0, **options: object) -> float:
    """Return the lowest loss that CMA-ES finds over the unit cube."""
    space = BoxSpace(num_dimensions, mixed=False)
    searcher = CmaEs(space, seed=seed, options=options)
    best = math.inf

    def score(candidate: Candidate) -> Outcome:
        nonlocal best
        value = loss(unit(space, candidate))
        best = min(best, value)
        return Outcome("feasible", (-value,))

    drive(searcher, score, evaluations, batch=4)
    return best


def sphere(x: NDArray[np.float64]) -> float:
    return float(np.sum((x - 0.62) ** 2))


def ellipsoid(x: NDArray[np.float64]) -> float:
    """Rotated, condition number 1e4, optimum at 0.4 in every coordinate."""
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((len(x), len(x))))[0]
    scales = 10.0 ** (4 * np.arange(len(x)) / max(1, len(x) - 1))
    return float(np.sum(scales * (rotation @ (x - 0.4)) ** 2))


def corner(x: NDArray[np.float64]) -> float:
    """The optimum is in a corner of the cube, in the middle of two faces for the rest."""
    return float(np.sum((x - np.array([0.0, 1.0, 0.5, 0.5])) ** 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"asynchronous": True}, {"diagonal": True}, {"start": "random"}])
def test_finds_the_optimum_of_a_shifted_sphere(seed: int, options: dict[str, object]) -> None:
    """Six dimensions, 600 evaluations: within 1e-3 of the range in every coordinate."""
    assert minimise(sphere, 6, 600, seed, **options) < 1e-6


@pytest.mark.parametrize("asynchronous", [False, True])
def test_finds_the_optimum_of_a_rotated_ellipsoid(asynchronous: bool) -> None:
    """The covariance is learned: a condition number of 1e4 is no obstacle."""
    assert minimise(ellipsoid, 5, 1500, tolerance=1e-6, asynchronous=asynchronous) < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_finds_an_optimum_on_the_boundary(seed: int) -> None:
    """Bounds are reachable."""
    assert minimise(corner, 4, 800, seed) < 1e-4


def test_finds_the_optimum_of_a_single_dimension() -> None:
    """A second dimension pads the search, and neither hinders it nor shows."""
    assert minimise(sphere, 1, 150) < 1e-6


def test_population_defaults_to_hansens_formula() -> None:
    """4 + floor(3 ln n); six at least, so that one dimension works like two."""
    for num_dimensions, population in ((1, 6), (2, 6), (6, 9), (12, 11), (64, 16)):
        searcher = CmaEs(BoxSpace(num_dimensions, mixed=False))
        assert searcher.status()["population"] == population
        assert len(searcher.ask(1000)) == population


def test_the_generational_trajectory_does_not_depend_on_the_order_of_completion() -> None:
    """Whatever order results come in, the next generation is the same."""
    space = BoxSpace()
    score = quadratic(space)
    runs = []
    for order in (None, np.random.default_rng(0), np.random.default_rng(1)):
        candidates, _ = drive(CmaEs(space, seed=2), score, 90, batch=90, order=order)
        runs.append(candidates)
    assert runs[0] == runs[1] == runs[2]


def test_the_asynchronous_trajectory_depends_on_the_order_of_completion() -> None:
    """An update takes what is in, so order matters (and the journal keeps it)."""
    space = BoxSpace()
    score = quadratic(space)
    runs = [
        drive(CmaEs(space, seed=2, options={"asynchronous": True}), score, 90, batch=8, order=order)[0]
        for order in (None, np.random.default_rng(0))
    ]
    assert runs[0] != runs[1]


def test_a_generation_is_handed_out_once_and_waits_for_all_its_results() -> None:
    """With one result missing there is nothing to ask; with it, a new generation."""
    space = BoxSpace(6, mixed=False)
    searcher = CmaEs(space)
    generation = searcher.ask(1000)
    for candidate in generation[1:]:
        searcher.tell(candidate, Outcome("feasible", (0.5,)))
    assert searcher.ask(1) == []
    searcher.tell(generation[0], Outcome("feasible", (0.5,)))
    assert [candidate.origin for candidate in searcher.ask(1)] == ["cma_es generation 1"]


def test_asynchronous_flight_is_at_most_the_population() -> None:
    """Each result makes room for one candidate, before and after updates."""
    space = BoxSpace(6, mixed=False)
    searcher = CmaEs(space, options={"asynchronous": True, "population": 8})
    flight = searcher.ask(1000)
    assert len(flight) == 8
    for _ in range(50):
        searcher.tell(flight.pop(3), Outcome("feasible", (0.1 * len(flight),)))
        refill = searcher.ask(1000)
        assert len(refill) == 1
        flight += refill


def test_asynchronous_results_two_generations_late_are_dropped_and_their_slots_refilled() -> None:
    """A straggler of lag 1 counts; of lag 2 it is dropped, and changes nothing but the room."""
    space = BoxSpace(6, mixed=False)
    outcome = Outcome("feasible", (0.5,))
    searcher = CmaEs(space, options={"asynchronous": True, "population": 5})

    def generations(count: int) -> None:
        target = int(searcher.status()["generation"]) + count
        while searcher.status()["generation"] < target:
            for candidate in searcher.ask(1000):
                searcher.tell(candidate, outcome)

    late, later = searcher.ask(2)
    generations(1)
    searcher.tell(late, outcome)
    assert searcher.status()["dropped"] == 0
    for candidate in searcher.ask(4):
        searcher.tell(candidate, outcome)
    assert searcher.status()["generation"] == 2
    searcher.tell(later, outcome)
    assert searcher.status()["dropped"] == 1
    assert len(searcher.ask(1000)) == 5


@pytest.mark.parametrize("asynchronous", [False, True])
def test_flat_scores_widen_the_search_and_never_end_it(asynchronous: bool) -> None:
    """In one dimension a step size that wanders would converge within some hundred generations."""
    searcher = CmaEs(BoxSpace(1, mixed=False), options={"asynchronous": asynchronous})
    drive(searcher, lambda _: Outcome("feasible", (0.25,)), 1200)
    assert searcher.finished is None
    assert searcher.status()["step_size"] == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("state", ["feasible", "infeasible"])
def test_walks_off_a_plateau(state: Literal["feasible", "infeasible"]) -> None:
    """A start amid equals, where the first generations tell nothing, does not keep it from the optimum."""
    space = BoxSpace(3, mixed=False)

    def score(candidate: Candidate) -> Outcome:
        loss = float(np.sum((unit(space, candidate) - 0.85) ** 2))
        return Outcome("feasible", (1.0 - loss,)) if loss < 0.3 else Outcome(state, (0.0,))

    candidates, _ = drive(CmaEs(space, options={"sigma": 0.02}), score, 400)
    assert score(candidates[-1]).objectives[0] > 0.99


def test_infeasible_candidates_rank_behind_the_worst_feasible_by_violation() -> None:
    """A constraint pulls the search into the feasible half, although the best scores lie outside."""
    space = BoxSpace(4, mixed=False)
    searcher = CmaEs(space, seed=1, options={"start": "random"})

    def score(candidate: Candidate) -> Outcome:
        x = unit(space, candidate)
        violation = max(0.0, x[0] - 0.3)
        return Outcome("infeasible" if violation else "feasible", (float(x[0] - (x[1:] ** 2).sum()),), violation)

    candidates, _ = drive(searcher, score, 500)
    last = [score(candidate) for candidate in candidates[-20:]]
    assert sum(outcome.state == "feasible" for outcome in last) >= 5
    assert max(outcome.objectives[0] for outcome in last if outcome.state == "feasible") > 0.28


def test_not_a_number_ranks_last() -> None:
    """A feasible outcome without a finite score counts as one that could not be measured."""
    outcomes = [
        Outcome("feasible", (0.9,)),
        Outcome("feasible", (-5.0,)),
        Outcome("infeasible", (2.0,), violation=0.1),
        Outcome("infeasible", (3.0,), violation=0.2),
        Outcome("infeasible"),
    ]
    assert sorted(outcomes, key=lambda outcome: standing(outcome, "mean")) == outcomes
    for unmeasured in (
        Outcome("failed"),
        Outcome("feasible", (math.nan,)),
        Outcome("infeasible", violation=math.nan),
    ):
        assert standing(unmeasured, "mean") == standing(outcomes[-1], "mean")


def test_convergence_ends_a_search_without_restarts() -> None:
    """Small steps in every coordinate end it with a phrase, and late results are still heard."""
    space = BoxSpace(2, mixed=False)
    searcher = CmaEs(space, options={"asynchronous": True, "tolerance": 0.02})
    score = quadratic(space)
    flight = searcher.ask(3)
    while searcher.finished is None:
        flight += searcher.ask(3)
        done = flight.pop()
        searcher.tell(done, score(done))
    assert "converged" in searcher.finished
    assert searcher.ask(5) == []
    for candidate in flight:
        searcher.tell(candidate, score(candidate))


def test_convergence_restarts_with_a_larger_population_elsewhere() -> None:
    """IPOP: the population doubles, the start is random, and the search ends after the last restart."""
    space = BoxSpace(2, mixed=False)
    searcher = CmaEs(space, options={"restarts": 2, "tolerance": 0.02, "population": 5})
    populations = {}

    def score(candidate: Candidate) -> Outcome:
        status = searcher.status()
        populations[status["restart"]] = status["population"]
        return quadratic(space)(candidate)

    drive(searcher, score, 5000)
    assert searcher.finished is not None
    assert populations == {0: 5, 1: 10, 2: 20}


def test_stagnation_restarts_and_never_ends() -> None:
    """Flat scores lead to every restart, and then the search goes on."""
    searcher = CmaEs(BoxSpace(2, mixed=False), options={"restarts": 1, "population": 5, "stagnation": 4})
    candidates, _ = drive(searcher, lambda _: Outcome("feasible", (0.0,)), 500)
    assert len(candidates) == 500
    assert searcher.status()["restart"] == 1
    assert searcher.finished is None


def test_a_restart_drops_what_is_still_in_flight() -> None:
    """Asynchronous results of the search before a restart do not enter the one after it."""
    space = BoxSpace(2, mixed=False)
    options = {"asynchronous": True, "restarts": 1, "stagnation": 1, "population": 5, "increase": 1}
    searcher = CmaEs(space, options=options)
    straggler, *rest = searcher.ask(5)
    flat = Outcome("feasible", (0.0,))
    while searcher.status()["restart"] == 0:
        for candidate in rest:
            searcher.tell(candidate, flat)
        rest = searcher.ask(4)
    dropped = int(searcher.status()["dropped"])
    searcher.tell(straggler, flat)
    assert searcher.status()["dropped"] == dropped + 1


def test_scalarisation_steers_the_search() -> None:
    """With all the weight on one objective, that one is optimised."""
    space = BoxSpace(3, mixed=False)
    config = SearchConfig(searcher="cma_es", scalarize=(0.0, 1.0))
    searcher = create_searcher(config, space)

    def score(candidate: Candidate) -> Outcome:
        x = unit(space, candidate)
        return Outcome("feasible", (-float(((x - 0.1) ** 2).sum()), -float(((x - 0.9) ** 2).sum())))

    candidates, _ = drive(searcher, score, 300)
    assert score(candidates[-1]).objectives[1] > -0.01


def test_weights_that_do_not_fit_the_objectives_are_an_error() -> None:
    searcher = CmaEs(BoxSpace(), scalarize=(0.5, 0.5))
    (candidate,) = searcher.ask(1)
    with pytest.raises(ConfigError, match="2 weights for 1 objectives"):
        searcher.tell(candidate, Outcome("feasible", (0.5,)))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"populaton": 9}, "did you mean 'population'"),
        ({"population": 3}, "population: "),
        ({"sigma": 0.5}, "sigma: "),
        ({"sigma": 0}, "sigma: "),
        ({"start": "middle"}, "start: "),
        ({"restarts": -1}, "restarts: "),
        ({"diagonal": "always"}, "diagonal"),
        ({"tolerance": math.nan}, "tolerance: "),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.options") as caught:
        create_searcher(SearchConfig(options=options), BoxSpace())
    assert text in str(caught.value)


def test_warning_filters_are_left_alone() -> None:
    """pycma adds a process-wide filter at each construction; ours does not."""
    before = list(warnings.filters)
    rng = np.random.default_rng(0)
    GaussianSearch(np.full(3, 0.5), sigma=0.1, population=6, diagonal=False, min_steps=np.zeros(3), rng=rng)
    assert warnings.filters == before


def test_many_dimensions_search_the_diagonal() -> None:
    """With 320 dimensions and a diagonal covariance the distribution closes in on the optimum."""
    rng = np.random.default_rng(0)
    search = GaussianSearch(
        np.full(320, 0.3), sigma=0.17, population=20, diagonal=True, min_steps=np.zeros(320), rng=rng
    )
    for _ in range(250):
        points = sorted((search.sample() for _ in range(20)), key=sphere)
        search.update(points)
    assert sphere(search.sample()) < 0.05 * sphere(np.full(320, 0.3))
