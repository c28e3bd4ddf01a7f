"""The Python interface: a search without a command line, driven by hand or run to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.documents import Document
from evomerge.run.config import RunConfig
from evomerge.run.load import load_config, resolve_config
from evomerge.run.problem import Problem, open_problem
from evomerge.run.session import ExecutorFactory, start
from evomerge.run.view import Run
from evomerge.search import Scalarize, SearchConfig
from evomerge.search.types import Candidate, Outcome, Searcher
from evomerge.spaces import Space

if TYPE_CHECKING:
    from evomerge.merging.state_dicts import StateDict
    from evomerge.run.state_dicts import Score, StateDictSearch


class Search:
    """One search: its space and searcher, to be asked and told by hand, or run to its end.

    Args:
        config: a resolved configuration; see `from_file` and `from_mapping`.

    Raises:
        EvomergeError: when the sources or the suite do not fit the configuration.

    Example::

        search = evomerge.Search.from_file("search.yaml")
        for _ in range(10):
            for candidate in search.ask(4):
                search.tell(candidate, Outcome("feasible", (my_score(candidate.recipe),)))
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._problem: Problem = open_problem(config)
        self._searcher: Searcher = self._problem.searcher()

    @classmethod
    def from_file(cls, path: Path | str, overrides: Sequence[str] = ()) -> Search:
        """Read a search file; `overrides` are `a.b=value` texts."""
        return cls(load_config(Path(path), overrides))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], base_dir: Path | str = ".") -> Search:
        """Take a search file's keys as plain data; relative paths start at `base_dir`."""
        return cls(resolve_config(Document(data=dict(data), name="", lines={}), Path(base_dir).resolve()))

    @staticmethod
    def over(
        sources: Mapping[str, StateDict],
        score: Score,
        *,
        searcher: str = "natural_niches",
        options: Mapping[str, Any] | None = None,
        objectives: Sequence[str] | None = None,
        scalarize: Scalarize = "mean",
        chunks: int = 16,
        seed: int = 0,
    ) -> StateDictSearch:
        """Search mixtures of PyTorch state dicts with a scorer of your own, in memory.

        Args:
            sources: alias -> state dict, at least two of one shape. Floating-point tensors are mixed, all others copied
                from the first source.
            score: from a state dict to one number a sample (an array, or metric -> array), always of the same samples.
                `run` overwrites the tensors for the next model: clone what you keep.
            searcher: any name of a search file.
            options: of the searcher.
            objectives: expressions over the metrics, all maximised; left out: the mean of each metric.
            scalarize: how single-objective searchers and `best` see several objectives: `mean`, `min`, or weights.
            chunks: equal stretches of the weights with a mixture of their own, for searchers of numbers.
            seed: of every random number.

        Raises:
            SourceError: when the state dicts do not fit each other.
            ConfigError: for an unknown searcher or option, or an expression that is none.

        Example::

            search = evomerge.Search.over({"low": low.state_dict(), "high": high.state_dict()}, score)
            search.run(evaluations=1000)
            model.load_state_dict(search.best.state_dict())
        """
        from evomerge.run.state_dicts import StateDictSearch

        data = {"searcher": searcher, "seed": seed, "options": dict(options or {}), "scalarize": scalarize}
        config = Document(data=data, name="search", lines={}).parse(SearchConfig)
        return StateDictSearch(sources, score, config=config, objectives=objectives, chunks=chunks)

    @property
    def space(self) -> Space:
        """What may vary."""
        return self._problem.space

    def ask(self, n: int = 1) -> list[Candidate]:
        """Return up to `n` new candidates; nothing is scored and nothing is written."""
        return self._searcher.ask(n)

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Let the searcher hear an outcome; objectives are maximised."""
        self._searcher.tell(candidate, outcome)

    def recipe_id(self, candidate: Candidate) -> str:
        """Return the SHA-256 identity of a candidate's recipe."""
        return self._problem.identity(candidate.recipe)

    def run(self, out: Path | str, *, executor: ExecutorFactory | None = None) -> Run:
        """Run the whole search in a new folder, from its start, and return it for reading.

        Raises:
            StateError: when a run is there already.
        """
        start(self.config, Path(out), executor=executor)
        return Run(Path(out))
