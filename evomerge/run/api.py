"""The Python interface: a search without a command line, driven by hand or run to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.documents import Document
from evomerge.run.config import RunConfig
from evomerge.run.load import load_config, resolve_config
from evomerge.run.problem import Problem, open_problem
from evomerge.run.session import ExecutorFactory, default_executor, start
from evomerge.run.view import Run
from evomerge.search.types import Candidate, Outcome, Searcher
from evomerge.spaces import Space


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

    def run(self, out: Path | str, *, executor: ExecutorFactory = default_executor) -> Run:
        """Run the whole search in a new folder, from its start, and return it for reading.

        Raises:
            StateError: when a run is there already.
        """
        start(self.config, Path(out), executor=executor)
        return Run(Path(out))
