"""NSGA-II and TPE: objectives, constraints, dimensions, and what they make of others' results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe
from evomerge.search import Candidate, NsgaII, Outcome, RandomSearch, Searcher, Tpe, genome_from_unit
from evomerge.spaces.types import Dimension, Genome
from evomerge.testing.spaces import BoxSpace

RECIPE = Recipe.from_mapping({"recipe": 1, "sources": {"a": {"model": "a"}}})


class Line:
    """Floats of every scale, ints of both, and a choice; decodes to nothing of interest."""

    dimensions = (
        Dimension(name="linear", kind="float", low=-2.0, high=3.0, default=0.0),
        Dimension(name="log", kind="float", low=1e-4, high=1.0, scale="log", default=0.01),
        Dimension(name="logit", kind="float", low=0.001, high=0.999, scale="logit", default=0.5),
        Dimension(name="int", kind="int", low=1, high=12, default=3),
        Dimension(name="int log", kind="int", low=1, high=64, scale="log", default=8),
        Dimension(name="choice", kind="choice", choices=("a", "b", "c"), default="b"),
    )
    start: Genome = (0.0, 0.01, 0.5, 3, 8, "b")

    def decode(self, genome: Genome) -> Recipe:
        return RECIPE

    def encode(self, recipe: Recipe) -> Genome:
        raise ConfigError("recipe: none")


def two_targets(candidate: Candidate) -> Outcome:
    """Nearness to one corner and to another: the front is what lies between them."""
    point = np.array(candidate.genome, dtype=float) / 1.5
    return Outcome("feasible", (1 - float(np.mean((point - 0.2) ** 2)), 1 - float(np.mean((point - 0.8) ** 2))))


def told(searcher: Searcher, score: Any, evaluations: int) -> tuple[list[Candidate], list[Outcome]]:
    candidates = []
    outcomes = []
    for _ in range(evaluations):
        (candidate,) = searcher.ask(1)
        candidates.append(candidate)
        outcomes.append(score(candidate))
        searcher.tell(candidate, outcomes[-1])
    return candidates, outcomes


def volume(outcomes: list[Outcome]) -> float:
    """Area that two objectives dominate, from 0.5 on."""
    area, top = 0.0, 0.5
    for first, second in sorted((outcome.objectives for outcome in outcomes), reverse=True):
        area += max(0.0, first - 0.5) * max(0.0, second - top)
        top = max(top, second)
    return area


def heard(genome: Genome, objectives: tuple[float, ...], id_: int = -1) -> tuple[Candidate, Outcome]:
    return Candidate(id_, genome, lambda _: RECIPE), Outcome("feasible", objectives)


@pytest.mark.parametrize("make", [NsgaII, Tpe])
def test_the_search_begins_at_the_start_of_the_space(make: type[NsgaII | Tpe]) -> None:
    assert make(Line(), seed=3).ask(1)[0].genome == Line.start


@pytest.mark.parametrize(("make", "evaluations"), [(NsgaII, 250), (Tpe, 80)])
def test_the_front_of_two_objectives_is_found_better_than_at_random(make: type[NsgaII | Tpe], evaluations: int) -> None:
    space = BoxSpace(6, mixed=False)
    random = np.mean([volume(told(RandomSearch(space, seed=seed), two_targets, evaluations)[1]) for seed in range(2)])
    found = np.mean([volume(told(make(space, seed=seed), two_targets, evaluations)[1]) for seed in range(2)])
    best = volume([two_targets(Candidate(0, (1.5 * x,) * 6, lambda _: RECIPE)) for x in np.linspace(0.2, 0.8, 200)])
    assert found < best
    assert found - random > 0.2 * (best - random)


@pytest.mark.parametrize("make", [NsgaII, Tpe])
def test_constraints_are_kept_in_the_end(make: type[NsgaII | Tpe]) -> None:
    """The objective pulls one way, the constraint leaves a tenth of the range."""
    space = BoxSpace(2, mixed=False)

    def score(candidate: Candidate) -> Outcome:
        first, second = (float(gene or 0) for gene in candidate.genome)
        over = max(0.0, first - 0.15)
        return Outcome("infeasible" if over else "feasible", (first, second), violation=over)

    _, outcomes = told(make(space, seed=1), score, 150)
    assert np.mean([outcome.state == "feasible" for outcome in outcomes[-75:]]) > 0.35


@pytest.mark.parametrize("make", [NsgaII, Tpe])
def test_unmeasured_candidates_are_avoided(make: type[NsgaII | Tpe]) -> None:
    """A tenth of the range can be measured."""
    space = BoxSpace(2, mixed=False)

    def score(candidate: Candidate) -> Outcome:
        first, second = (float(gene or 0) for gene in candidate.genome)
        return Outcome("feasible", (first, second)) if first < 0.15 else Outcome("failed")

    _, outcomes = told(make(space, seed=2), score, 150)
    assert np.mean([outcome.state == "feasible" for outcome in outcomes[-75:]]) > 0.35


def test_a_broken_constraint_is_better_than_no_measurement() -> None:
    """Of parents without any feasible one, those of small violation survive, then larger ones, then the rest."""
    space = BoxSpace(1, mixed=False)
    searcher = NsgaII(space, options={"population": 2, "mutation_probability": 0})
    outcomes = [
        Outcome("failed"),
        Outcome("infeasible", (1.0,), violation=0.5),
        Outcome("infeasible"),
        Outcome("infeasible", (0.0,), violation=0.1),
        Outcome("feasible", (float("nan"),)),
    ]
    for index, outcome in enumerate(outcomes):
        searcher.hear(Candidate(-1 - index, (0.1 + 0.2 * index,), lambda _: RECIPE), outcome)
    children = {round(float(candidate.genome[0] or 0), 9) for candidate in searcher.ask(30)}
    assert children == {0.3, 0.7}


def test_generations_are_full_and_in_order() -> None:
    candidates, _ = told(NsgaII(BoxSpace(3, mixed=False), options={"population": 7}), two_targets, 40)
    assert [candidate.generation for candidate in candidates] == [index // 7 for index in range(40)]


def test_the_mark_of_a_generation_is_the_samplers_own() -> None:
    """Trials that were heard of would not be parents otherwise."""
    searcher = NsgaII(BoxSpace(2, mixed=False))
    told(searcher, two_targets, 2)
    assert searcher._study is not None
    marks = [trial.system_attrs for trial in searcher._study.get_trials(deepcopy=False)]
    assert all(mark["NSGAIISampler:generation"] == 0 for mark in marks)


def test_the_first_parents_are_the_best_of_what_was_heard() -> None:
    """Without mutation, every gene of the first children is one of theirs, and no random generation is spent."""
    space = BoxSpace(4, mixed=False)
    searcher = NsgaII(space, options={"population": 10, "mutation_probability": 0}, seed=5)
    rng = np.random.default_rng(0)
    good = [tuple(float(x) for x in rng.random(4) * 1.5) for _ in range(10)]
    bad = [tuple(float(x) for x in rng.random(4) * 1.5) for _ in range(10)]
    for index, genome in enumerate(good):
        searcher.hear(*heard(genome, (float(index), float(-index))))
        searcher.hear(*heard(bad[index], (index - 20.0, -index - 20.0)))
    children = searcher.ask(30)
    assert {child.generation for child in children} == {1}
    for place in range(4):
        genes = {round(genome[place], 9) for genome in good}
        assert {round(float(child.genome[place] or 0), 9) for child in children} <= genes


def test_results_heard_in_between_compete_for_the_next_generation() -> None:
    searcher = NsgaII(BoxSpace(2, mixed=False), options={"population": 4, "mutation_probability": 0})
    told(searcher, two_targets, 6)
    best = (0.123, 1.2)
    searcher.hear(*heard(best, (9.0, 9.0)))
    candidates, _ = told(searcher, two_targets, 10)
    children = [candidate for candidate in candidates if candidate.generation == candidates[-1].generation]
    assert any(child.genome[0] == pytest.approx(0.123) for child in children)


def test_tpe_learns_from_what_it_hears() -> None:
    space = BoxSpace(2, mixed=False)
    searcher = Tpe(space, seed=1)
    rng = np.random.default_rng(3)
    for _ in range(40):
        unit = rng.random(2)
        searcher.hear(*heard(genome_from_unit(space, unit), (-float(np.abs(unit - 0.9).sum()),)))
    units = [np.array(candidate.genome, dtype=float) / 1.5 for candidate in searcher.ask(20)]
    assert np.median(np.abs(np.array(units) - 0.9)) < 0.2


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(0, 1)] * len(Line.dimensions)))
def test_a_genome_becomes_a_trial_and_comes_back(unit: tuple[float, ...]) -> None:
    """Candidates that are open when the study begins are in it, as they were asked."""
    space = Line()
    genome = genome_from_unit(space, unit)
    searcher = NsgaII(space)
    searcher._study_for(Outcome("feasible", (0.5,)))
    assert searcher._study is not None
    searcher._study.enqueue_trial(searcher._params(genome))
    back = searcher._genome(searcher._study.ask())
    for dimension, before, after in zip(space.dimensions, genome, back, strict=True):
        assert after == (before if dimension.kind != "float" else pytest.approx(before, rel=1e-9, abs=1e-12))


@pytest.mark.parametrize("make", [NsgaII, Tpe])
def test_every_scale_is_searched_over_its_whole_range(make: type[NsgaII | Tpe]) -> None:
    space = Line()
    candidates, _ = told(make(space, seed=0), lambda _: Outcome("feasible", (1.0, 1.0)), 60)
    for place, dimension in enumerate(space.dimensions):
        units = np.array([dimension.to_unit(candidate.genome[place]) for candidate in candidates])
        assert ((units >= 0) & (units <= 1)).all()
        assert 0.05 < (units < 0.5).mean() < 0.95


def test_a_changed_number_of_objectives_is_an_error_and_changes_nothing() -> None:
    searcher = NsgaII(BoxSpace(2, mixed=False))
    first, second = searcher.ask(2)
    searcher.tell(first, Outcome("feasible", (0.1, 0.2)))
    with pytest.raises(ValueError, match="3 objectives, those before it had 2"):
        searcher.tell(second, Outcome("feasible", (0.1, 0.2, 0.3)))
    searcher.tell(second, Outcome("feasible", (0.1, 0.2)))
    with pytest.raises(ValueError, match="1 objectives"):
        searcher.hear(replace(first, id=-1), Outcome("feasible", (0.1,)))


def test_optunas_own_logging_is_left_as_it_was() -> None:
    before = optuna.logging.get_verbosity()
    told(Tpe(BoxSpace(2, mixed=False)), two_targets, 2)
    assert optuna.logging.get_verbosity() == before


@pytest.mark.parametrize("crossover", ["sbx", "blx_alpha"])
def test_crossovers_of_numbers(crossover: str) -> None:
    candidates, _ = told(
        NsgaII(BoxSpace(), options={"crossover": crossover, "population": 6}),
        lambda _: Outcome("feasible", (1.0, 2.0)),
        20,
    )
    assert len({candidate.genome for candidate in candidates}) > 15


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (NsgaII, {"populaton": 3}, "did you mean 'population'"),
        (NsgaII, {"population": 1}, "population"),
        (Tpe, {"samples": 0}, "samples"),
    ],
)
def test_wrong_options_are_named(make: type[NsgaII | Tpe], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(BoxSpace(), options=options)
