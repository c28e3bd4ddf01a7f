from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from evomerge.documents import parse_yaml
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe, SourceInfo, identity
from evomerge.run.config import RunConfig
from evomerge.run.events import (
    Asked,
    CandidateId,
    Evaluated,
    Event,
    Finished,
    Reference,
    SourceRecord,
    Started,
)
from evomerge.run.folder import RunFolder, config_digest
from evomerge.run.journal import JournalWriter
from evomerge.run.replay import space_of
from evomerge.search import Candidate, Outcome, Searcher, create_searcher
from evomerge.search.types import State

CONFIG = """
name: example
sources: {base: {model: "zoo:base"}, math: {model: "zoo:math"}, ja: {model: "zoo:ja"}}
base: base
space:
  method: task_arithmetic
  groups: {layers: 2}
  parameters: {weight: [0.0, 1.5], scale: 1.0}
fitness:
  suite: fitness/zoo.yaml
  objectives: [sums.exact_match, -ja.loss]
  constraints: ["sums.exact_match >= 0.1"]
search: {searcher: cma_es, seed: 3, options: {population: 4}}
executor: {kind: inline}
budget: {evaluations: 8}
"""
OBJECTIVES = ("sums.exact_match", "-ja.loss")
INFOS = {
    alias: SourceInfo(content_hash=hashlib.sha256(alias.encode()).hexdigest(), num_layers=4)
    for alias in ("base", "math", "ja")
}


def measure(recipe: Recipe, split: Split) -> Evaluation:
    """Score a recipe by a known function of its text: no model is built."""
    digest = hashlib.sha256(f"{identity(recipe, INFOS)}{split}".encode()).digest()
    numbers = np.frombuffer(digest, dtype=np.uint8).astype(np.float64) / 255.0
    return Evaluation(
        split=split,
        samples={"sums.exact_match": (numbers[:8] > 0.4).astype(np.float64), "ja.loss": numbers[8:13]},
        documents={"sums": tuple(f"s{i}" for i in range(8)), "ja": tuple(f"j{i}" for i in range(5))},
        facts={"parameters": 10.0},
    )


def clock(step_s: float = 1.0) -> Callable[[], str]:
    """Return a clock that goes on by a fixed step at each look."""
    ticks: Iterator[int] = itertools.count()
    return lambda: datetime.fromtimestamp(1_700_000_000 + step_s * next(ticks), UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Recorder:
    """Plays a coordinator: journals what a searcher asks and a known function scores."""

    folder: RunFolder
    config: RunConfig
    searcher: Searcher
    journal: JournalWriter
    states: dict[int, State] = field(default_factory=dict)
    """Candidates that are to come out infeasible or failed."""

    infos = INFOS

    @staticmethod
    def identify(recipe: Recipe) -> str:
        return identity(recipe, INFOS)

    def start(self) -> None:
        records = {
            alias: SourceRecord(content_hash=info.content_hash, num_layers=info.num_layers)
            for alias, info in INFOS.items()
        }
        digest = config_digest(self.config)
        self.journal.append(Started(config_digest=digest, version="0", sources=records, objectives=OBJECTIVES))

    def ask(self) -> Candidate | None:
        for candidate in self.searcher.ask(1):
            self.journal.append(
                Asked(
                    candidate=candidate.id,
                    recipe_id=identity(candidate.recipe, INFOS),
                    genome=candidate.genome,
                    parents=candidate.parents,
                    origin=candidate.origin,
                )
            )
            return candidate
        return None

    def evaluate(
        self,
        owner: CandidateId,
        recipe: Recipe,
        split: Split = "search",
        *,
        state: State = "feasible",
        reused_from: CandidateId | None = None,
    ) -> Evaluated:
        evaluation = measure(recipe, split)
        values = {
            "sums.exact_match": evaluation.samples["sums.exact_match"],
            "-ja.loss": -evaluation.samples["ja.loss"],
        }
        measured = state == "feasible"
        return self.journal.append(
            Evaluated(
                candidate=owner,
                recipe_id=identity(recipe, INFOS),
                split=split,
                state=state,
                objectives={name: float(array.mean()) for name, array in values.items()} if measured else {},
                stderr={name: float(array.std(ddof=1) / len(array) ** 0.5) for name, array in values.items()}
                if measured
                else {},
                samples={name: len(array) for name, array in values.items()} if measured else {},
                scores=self.folder.scores.write(evaluation) if measured else None,
                reason=None if measured else "planned",
                worker="inline",
                seconds={"score": 0.5},
                reused_from=reused_from,
            )
        )

    def tell(self, candidate: Candidate, event: Evaluated) -> None:
        objectives = tuple(event.objectives[name] for name in OBJECTIVES) if event.objectives else ()
        samples = self.folder.scores.read(event.scores).samples if event.scores else {}
        self.searcher.tell(candidate, Outcome(state=event.state, objectives=objectives, samples=samples))

    def reference(self, name: str, blend: dict[str, object]) -> Recipe:
        sources = {alias: {"model": source.model} for alias, source in self.config.sources.items()}
        recipe = Recipe.from_mapping({"recipe": 1, "sources": sources, "base": "base", "blend": blend})
        self.journal.append(Reference(name=name, recipe_id=identity(recipe, INFOS), recipe=recipe.to_mapping()))
        return recipe

    def run(self, generations: int, population: int = 4) -> None:
        """Ask a generation, then evaluate it in another order than it was asked in."""
        for _ in range(generations):
            asked = [candidate for candidate in (self.ask() for _ in range(population)) if candidate]
            for candidate in sorted(asked, key=lambda item: (item.id * 7) % 4):
                state = self.states.get(candidate.id, "feasible")
                self.tell(candidate, self.evaluate(candidate.id, candidate.recipe, state=state))

    def finish(self, reason: str = "budget.evaluations reached", elapsed_s: float = 100.0) -> Event:
        return self.journal.append(Finished(reason=reason, elapsed_s=elapsed_s))


@pytest.fixture
def config() -> RunConfig:
    return parse_yaml(CONFIG, "search.yaml").parse(RunConfig)


@pytest.fixture
def recorder(tmp_path: Path, config: RunConfig) -> Iterator[Recorder]:
    folder = RunFolder.create(tmp_path / "run", config)
    searcher = create_searcher(config.search, space_of(config, INFOS))
    with JournalWriter(folder.journal, clock=clock()) as journal:
        yield Recorder(folder=folder, config=config, searcher=searcher, journal=journal)
