"""Searchers by name, scalarisation, and genomes of the unit cube."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.search import (
    SearchConfig,
    create_searcher,
    genome_from_unit,
    scalarize,
    searcher_names,
    unit_from_genome,
)
from evomerge.search.genomes import deactivate
from evomerge.spaces.types import Dimension
from evomerge.testing.spaces import BoxSpace, BreedingBox

SPACE = BoxSpace()
POINTS = st.tuples(*[st.floats(0, 1)] * len(SPACE.dimensions))


def test_every_name_gives_a_searcher() -> None:
    names = ("cat_cma", "cma_es", "map_elites", "natural_niches", "nsga_ii", "portfolio", "random", "tpe")
    assert searcher_names() == names
    options = {"portfolio": {"stages": [{"searcher": "random"}]}}
    for name in names:
        config = SearchConfig(searcher=name, options=options.get(name, {}))
        assert create_searcher(config, BreedingBox()).ask(1)[0].id == 0


@pytest.mark.parametrize(
    ("name", "hint"), [("cmaes", "did you mean 'cma_es'"), ("xyz", "known: cat_cma, cma_es, map_elites, ")]
)
def test_an_unknown_searcher_is_named_with_the_nearest_known(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        create_searcher(SearchConfig(searcher=name), SPACE)


@pytest.mark.parametrize("name", ["cma_es", "random"])
def test_a_space_in_which_nothing_varies_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="nothing varies"):
        create_searcher(SearchConfig(searcher=name), BoxSpace(0, mixed=False))


def test_random_search_has_no_options() -> None:
    with pytest.raises(ConfigError, match=r"search.options: population: unknown key"):
        create_searcher(SearchConfig(searcher="random", options={"population": 3}), SPACE)


def test_a_random_candidate_depends_on_its_id_alone() -> None:
    """Candidate 5 is the same after any number of tells."""
    first, second = (create_searcher(SearchConfig(searcher="random", seed=4), SPACE) for _ in range(2))
    assert first.ask(6)[5] == [second.ask(1)[0] for _ in range(6)][5]


def test_scalarisations() -> None:
    assert scalarize("mean", (0.25, 0.75)) == 0.5
    assert scalarize("min", (0.25, 0.75)) == 0.25
    assert scalarize((1.0, -2.0), (0.25, 0.75)) == -1.25
    with pytest.raises(ConfigError, match="1 weights for 2 objectives"):
        scalarize((1.0,), (0.25, 0.75))
    with pytest.raises(ConfigError, match="no objective"):
        scalarize("mean", ())


@settings(deadline=None)
@given(POINTS)
def test_a_genome_decodes_and_comes_back(point: tuple[float, ...]) -> None:
    """Point -> genome -> recipe -> genome is exact, and a genome's point maps onto it."""
    genome = genome_from_unit(SPACE, point)
    assert SPACE.encode(SPACE.decode(genome)) == genome
    again = genome_from_unit(SPACE, unit_from_genome(SPACE, genome))
    assert all(a == pytest.approx(b) if isinstance(a, float) else a == b for a, b in zip(again, genome, strict=True))


@settings(deadline=None)
@given(POINTS)
def test_a_conditional_dimension_is_active_under_its_choice_alone(point: tuple[float, ...]) -> None:
    names = [dimension.name for dimension in SPACE.dimensions]
    genome = dict(zip(names, genome_from_unit(SPACE, point), strict=True))
    assert (genome["density"] is None) == (genome["method"] != "ties")


def test_a_condition_on_an_inactive_dimension_is_inactive() -> None:
    """Conditions chain, in any order of the dimensions."""
    leaf = Dimension(name="leaf", kind="float", active_when=("middle", "on"))
    middle = Dimension(name="middle", kind="choice", choices=("on", "off"), active_when=("root", "yes"))
    root = Dimension(name="root", kind="choice", choices=("yes", "no"))
    assert deactivate((leaf, middle, root), (0.5, "on", "yes")) == (0.5, "on", "yes")
    assert deactivate((leaf, middle, root), (0.5, "on", "no")) == (None, None, "no")
    assert deactivate((leaf, middle, root), (0.5, "off", "yes")) == (None, "off", "yes")


def test_a_point_of_the_wrong_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="has 6 coordinates, got 2"):
        genome_from_unit(SPACE, (0.5, 0.5))
