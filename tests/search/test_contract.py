"""Every searcher, in every mode, keeps the contract."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from evomerge.search import CmaEs, RandomSearch, SearchConfig, Searcher, StagedSearch, Stages, create_searcher
from evomerge.spaces.types import Space
from evomerge.testing.searchers import CLOSENESS, PLACE, SearcherContract
from evomerge.testing.spaces import BoxSpace, BreedingBox, method_choices


class TestRandom(SearcherContract):
    improves = False

    def make(self, space: Space, seed: int) -> Searcher:
        return create_searcher(SearchConfig(searcher="random", seed=seed), space)


class TestCmaEs(SearcherContract):
    options: ClassVar[Mapping[str, Any]] = {}

    def make(self, space: Space, seed: int) -> Searcher:
        return create_searcher(SearchConfig(searcher="cma_es", seed=seed, options=dict(self.options)), space)


class TestCmaEsAsynchronous(TestCmaEs):
    options: ClassVar[Mapping[str, Any]] = {"asynchronous": True}


class TestCmaEsWithRestarts(TestCmaEs):
    """Restarts soon and often, so that every test sees some (one without end, hence no mean of the last)."""

    options: ClassVar[Mapping[str, Any]] = {
        "restarts": 1000,
        "increase": 1,
        "stagnation": 2,
        "population": 6,
        "start": "random",
    }
    improves = False


class TestCmaEsAsynchronousWithRestarts(TestCmaEsWithRestarts):
    options: ClassVar[Mapping[str, Any]] = {**TestCmaEsWithRestarts.options, "asynchronous": True}


class TestCmaEsDiagonal(TestCmaEs):
    options: ClassVar[Mapping[str, Any]] = {"diagonal": True, "population": 9}


class TestCmaEsInOneDimension(TestCmaEs):
    """pycma refuses one dimension; a search over a single coefficient must work all the same."""

    @pytest.fixture
    def space(self) -> BoxSpace:
        return BoxSpace(1, mixed=False)


class TestCmaEsOverChoices(TestCmaEs):
    """A choice, a density that exists under one of its values, and an int."""

    @pytest.fixture
    def space(self) -> BoxSpace:
        return BoxSpace(0)


class TestRandomInOneDimension(TestRandom):
    @pytest.fixture
    def space(self) -> BoxSpace:
        return BoxSpace(1, mixed=False)


class TestCatCma(SearcherContract):
    options: ClassVar[Mapping[str, Any]] = {}

    def make(self, space: Space, seed: int) -> Searcher:
        return create_searcher(SearchConfig(searcher="cat_cma", seed=seed, options=dict(self.options)), space)


class TestCatCmaOverChoices(TestCatCma):
    options: ClassVar[Mapping[str, Any]] = {"certainty": 0.9}

    @pytest.fixture
    def space(self) -> BoxSpace:
        return BoxSpace(0)


class TestCmaEsOverMethodChoices(TestCmaEs):
    """Each group of layers chooses a method, which has parameters of its own."""

    @pytest.fixture
    def space(self) -> Space:
        return method_choices()


class TestCatCmaOverMethodChoices(TestCatCma):
    @pytest.fixture
    def space(self) -> Space:
        return method_choices()


class TestRandomOverMethodChoices(TestRandom):
    @pytest.fixture
    def space(self) -> Space:
        return method_choices()


class TestCatCmaInOneDimension(TestCatCma):
    @pytest.fixture
    def space(self) -> BoxSpace:
        return BoxSpace(1, mixed=False)


class TestStaged(SearcherContract):
    """The weights, then the rest, in turns."""

    improves = False  # the last thirty candidates may all belong to the choices

    def make(self, space: Space, seed: int) -> Searcher:
        parts = {"weights": slice(0, 3), "rest": slice(3, 6)}
        stages = Stages(parts=parts, order=("weights", "rest"), evaluations=17, repeat=True)
        return StagedSearch(space, stages, lambda part, stage: CmaEs(part, seed=1000 * seed + stage))


class TestStagedOnce(SearcherContract):
    """The rest by chance, then the weights for ever."""

    def make(self, space: Space, seed: int) -> Searcher:
        parts = {"weights": slice(0, 3), "rest": slice(3, 6)}
        stages = Stages(parts=parts, order=("rest", "weights"), evaluations=17, repeat=False)
        return StagedSearch(space, stages, lambda part, stage: (CmaEs if stage else RandomSearch)(part, seed=seed))


class TestNaturalNiches(SearcherContract):
    """A small archive, with a little noise, so that the three sources can come near any point of the box."""

    options: ClassVar[Mapping[str, Any]] = {"archive": 8, "mutation": 0.03, "metrics": [CLOSENESS]}

    @pytest.fixture
    def space(self) -> BreedingBox:
        return BreedingBox()

    def make(self, space: Space, seed: int) -> Searcher:
        return create_searcher(SearchConfig(searcher="natural_niches", seed=seed, options=dict(self.options)), space)


class TestNaturalNichesWithoutNoise(TestNaturalNiches):
    options: ClassVar[Mapping[str, Any]] = {"archive": 8, "metrics": [CLOSENESS], "warm_up": 10, "angle": "part"}


class TestNaturalNichesRescaled(TestNaturalNiches):
    """All scores, as far as they differ within the archive."""

    options: ClassVar[Mapping[str, Any]] = {"archive": 8, "normaliser": "min_max"}
    improves = False  # a metric of this test is no measure of quality


class TestGeneticAlgorithm(TestNaturalNiches):
    options: ClassVar[Mapping[str, Any]] = {**TestNaturalNiches.options, "alpha": 0, "attraction": False}


class TestMutationAlone(TestNaturalNiches):
    options: ClassVar[Mapping[str, Any]] = {**TestNaturalNiches.options, "crossover": False, "mutation": 0.1}


class TestMapElites(TestNaturalNiches):
    options: ClassVar[Mapping[str, Any]] = {"measures": [PLACE, CLOSENESS], "mutation": 0.1}
    improves = False  # it lights up the whole grid

    def make(self, space: Space, seed: int) -> Searcher:
        return create_searcher(SearchConfig(searcher="map_elites", seed=seed, options=dict(self.options)), space)
