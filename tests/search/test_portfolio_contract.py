"""Searchers through Optuna, and portfolios, keep the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from evomerge.search import SearchConfig, Searcher, create_searcher
from evomerge.spaces.types import Space
from evomerge.testing.searchers import CLOSENESS, SearcherContract
from evomerge.testing.spaces import BreedingBox, method_choices


class TestNsgaII(SearcherContract):
    searcher: ClassVar[str] = "nsga_ii"
    options: ClassVar[Mapping[str, Any]] = {"population": 10}

    def make(self, space: Space, seed: int) -> Searcher:
        return create_searcher(SearchConfig(searcher=self.searcher, seed=seed, options=dict(self.options)), space)


class TestTpe(TestNsgaII):
    searcher = "tpe"
    options: ClassVar[Mapping[str, Any]] = {}
    evaluations = 30


class TestNsgaIIOverMethodChoices(TestNsgaII):
    """Each group of layers chooses a method, which has parameters of its own."""

    @pytest.fixture
    def space(self) -> Space:
        return method_choices()


class TestTpeOverMethodChoices(TestTpe):
    @pytest.fixture
    def space(self) -> Space:
        return method_choices()


class TestPortfolio(TestNsgaII):
    """Short stages, so that every test sees several."""

    searcher = "portfolio"
    options: ClassVar[Mapping[str, Any]] = {
        "stages": [
            {"searcher": "random", "until": {"evaluations": 11}},
            {"searcher": "nsga_ii", "options": {"population": 8}, "until": {"stagnation": 12}},
            {"searcher": "cma_es", "options": {"sigma": 0.1}, "until": {"evaluations": 31}},
            {"searcher": "nsga_ii", "options": {"population": 10}},
        ]
    }


class TestPortfolioTogether(TestPortfolio):
    """Searchers that wait, that hear, and that breed."""

    improves = False  # a third of the candidates is random to the end
    options: ClassVar[Mapping[str, Any]] = {
        "together": True,
        "stages": [
            {"searcher": "cma_es", "until": {"evaluations": 100}},
            {"searcher": "natural_niches", "options": {"archive": 6, "metrics": [CLOSENESS]}, "share": 2},
            {"searcher": "nsga_ii", "options": {"population": 10}, "until": {"stagnation": 30}},
            {"searcher": "random", "share": 1.5},
        ],
    }

    @pytest.fixture
    def space(self) -> BreedingBox:
        return BreedingBox()
