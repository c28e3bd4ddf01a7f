"""Sources whose weight is pinned: in mixtures that change along the weights, and in joint spaces."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.recipe import SourceConfig
from evomerge.spaces import SpaceConfig, create_space
from evomerge.spaces.held import HeldSpace
from tests.spaces.test_piecewise_space import bred
from tests.spaces.test_piecewise_space import space as piecewise


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_in_a_mixture_of_pieces_the_first_source_makes_up_for_it(weight: float) -> None:
    own = piecewise(3)
    space = HeldSpace(own)
    space.hold("math", weight)
    for individual in bred(own, 25, seed=1):
        genome = own.genome(individual)
        settled = own.individual(space.settled(genome))
        assert (settled.weights[:, 1] == weight).all()
        # What all sources come to at any place is what it was, and so are the third one's weights and the noise.
        ends = np.union1d(individual.ends, settled.ends)
        before, after = (one.weights[np.searchsorted(one.ends, ends)] for one in (individual, settled))
        np.testing.assert_allclose(after.sum(axis=1), before.sum(axis=1), atol=1e-12)
        np.testing.assert_array_equal(after[:, 2], before[:, 2])
        assert settled.seeds == individual.seeds
        assert space.settled(space.settled(genome)) == space.settled(genome)
        own.decode(space.settled(genome))


def test_the_first_source_of_a_mixture_has_what_the_others_leave() -> None:
    with pytest.raises(ConfigError, match=r"sources\.base: its weight does not vary"):
        HeldSpace(piecewise(3)).hold("base", 0.0)


def test_in_a_joint_space_the_merged_model_is_held_and_not_the_route() -> None:
    own = create_space(
        SpaceConfig(kind="joint"),
        sources={alias: SourceConfig(model=f"org/{alias}") for alias in ("base", "math", "ja")},
        base="base",
        num_layers=2,
    )
    space = HeldSpace(own)
    space.hold("math", 0.0)
    changed = {
        dimension.name
        for dimension, old, new in zip(space.dimensions, space.start, space.settled(space.start), strict=True)
        if old != new
    }
    assert changed
    assert all(name.startswith("weight/math") for name in changed)
