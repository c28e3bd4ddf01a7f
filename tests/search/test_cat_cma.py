"""CatCMA with margin: choices are learned, and what is inactive stays where it is."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.recipe import SourceConfig
from evomerge.search import Candidate, CatCma, Outcome, SearchConfig, create_searcher
from evomerge.search.mixed_gaussian import MixedGaussian
from evomerge.spaces import Dimension, SpaceConfig, create_space
from evomerge.testing.searchers import drive, quadratic
from evomerge.testing.spaces import BoxSpace

SWITCH = Dimension(name="keep", kind="choice", choices=("drop", "keep"), default="drop")
SCALE = Dimension(name="scale", kind="float", low=0.0, high=2.0, default=1.0, active_when=("keep", "keep"))
FREE = Dimension(name="free", kind="float", default=0.5)
DIMENSIONS = (SWITCH, SCALE, FREE)


def distribution(seed: int = 0, certainty: float | None = None) -> MixedGaussian:
    start = np.array([0.25, 0.5, 0.5])
    return MixedGaussian(DIMENSIONS, start, sigma=0.17, population=8, certainty=certainty, seed=seed)


def test_what_was_never_active_does_not_drift() -> None:
    """Over generations in which the slot is dropped, its scale keeps its mean, and the step size does not shrink."""
    mixed = distribution()
    active = np.array([True, False, True])
    for _ in range(60):
        samples = sorted((mixed.sample() for _ in range(8)), key=lambda sample: abs(sample.unit[2] - 0.9))
        mixed.update(samples, [active] * 8)
    later = np.mean([mixed.sample().unit for _ in range(400)], axis=0)

    assert mixed._strategy._mean[0] == pytest.approx(0.5, abs=1e-12)
    assert later[2] == pytest.approx(0.9, abs=0.02)


def test_what_is_active_in_some_follows_these_alone() -> None:
    """The mean moves by what the candidates that express the scale say; the dropped ones say nothing."""
    mixed = distribution()
    samples = [mixed.sample() for _ in range(8)]
    weights = mixed._strategy._weights[:4]
    raw = [sample.solution._v_raw[0] for sample in samples]
    active = [np.array([True, index == 1, True]) for index in range(8)]
    inside = all(0 <= value <= 1 for sample in samples for value in sample.solution._v_raw)
    mixed.update(samples, active)

    assert inside
    assert mixed._strategy._mean[0] == pytest.approx(0.5 + weights[1] * (raw[1] - 0.5))


def test_an_inactive_choice_leaves_its_probabilities_alone() -> None:
    inner = Dimension(name="inner", kind="choice", choices=("a", "b", "c"), default="a", active_when=("keep", "keep"))
    mixed = MixedGaussian((SWITCH, inner), np.array([0.25, 0.1]), sigma=0.17, population=8, certainty=None, seed=1)
    before = mixed._strategy._q.copy()
    mixed.update([mixed.sample() for _ in range(8)], [np.array([True, False])] * 8)

    assert mixed._strategy._q[1] == pytest.approx(before[1])
    assert mixed._strategy._q[0] != pytest.approx(before[0])


def test_certainty_is_the_first_probability_of_the_start() -> None:
    kept = [distribution(seed, certainty=0.9).sample().unit[0] < 0.5 for seed in range(300)]
    even = [distribution(seed).sample().unit[0] < 0.5 for seed in range(300)]

    assert 0.85 < np.mean(kept) < 0.95
    assert 0.4 < np.mean(even) < 0.6


def test_a_generation_of_equals_widens_the_search_and_ranks_nothing() -> None:
    space = BoxSpace()
    searcher = CatCma(space, options={"population": 6, "sigma": 0.1})
    drive(searcher, lambda _: Outcome("feasible", (0.5,)), 6)

    assert searcher.status()["step_size"] == pytest.approx(0.15)
    drive(searcher, lambda _: Outcome("failed"), 60)
    assert searcher.status()["step_size"] == pytest.approx(1 / 3)


def test_not_a_number_is_told_as_the_worst() -> None:
    space = BoxSpace()
    score = quadratic(space)

    def broken(candidate: Candidate) -> Outcome:
        return Outcome("feasible", (float("nan"),)) if candidate.id % 3 == 0 else score(candidate)

    candidates, _ = drive(CatCma(space, seed=2), broken, 300)
    losses = [1.0 - score(candidate).objectives[0] for candidate in candidates]
    assert np.mean(losses[-30:]) < 0.5 * np.mean(losses[:30])


def test_a_route_with_scales_is_found() -> None:
    """Slots that should be dropped are, one that should be doubled is, and its scale is learned."""
    config = SpaceConfig.model_validate({"kind": "data_flow", "encoding": "mixed", "repeats": 2})
    sources = {alias: SourceConfig(model=alias) for alias in ("a", "b")}
    space = create_space(config, sources=sources, base=None, num_layers=4)
    searcher = create_searcher(SearchConfig(searcher="cat_cma", options={"certainty": 0.8}), space)
    wanted = {"keep/0/1": "keep", "source/0/1": "b", "scale/0/1": 0.7, "keep/0/2": "drop", "keep/1/2": "keep"}
    names = [dimension.name for dimension in space.dimensions]

    def score(candidate: Candidate) -> Outcome:
        found = dict(zip(names, candidate.genome, strict=True))
        loss = sum(
            1.0 if found[name] is None or isinstance(value, str) else abs(float(found[name] or 0.0) - value)
            for name, value in wanted.items()
            if found[name] != value
        )
        return Outcome("feasible", (-loss,))

    candidates, _ = drive(searcher, score, 1500)
    assert max(score(candidate).objectives[0] for candidate in candidates[-100:]) > -0.02


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"search\.options: certain: unknown key 'certain'; did you mean 'certainty'"):
        create_searcher(SearchConfig(searcher="cat_cma", options={"certain": 0.9}), BoxSpace())
