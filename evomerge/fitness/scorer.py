"""The scorer: recipe in, per-sample scores out."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import EvaluationError, EvomergeError, InfeasibleError, NotBuiltError, SourceError, WorkerLostError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.gate import Gate, GateConfig
from evomerge.fitness.suite import Suite, load_suite
from evomerge.fitness.types import Engine, Evaluation, Minibatch, Split
from evomerge.recipe import Recipe, SourceConfig, SourceInfo, TokenizerConfig

if TYPE_CHECKING:
    from evomerge.fitness.tasks import SplitTasks


class LmEvalScorer:
    """Scores recipes on lm-eval tasks through an engine. One thread uses it."""

    def __init__(self, engine: Engine, suite: Suite, *, gate: GateConfig | None = None, fragile: bool = False) -> None:
        """Build the requests of the search split; those of other splits follow when first asked for.

        Args:
            engine: the resident model; the scorer closes it.
            suite: the tasks.
            gate: how hard the sanity gate looks.
            fragile: whether the engine must be replaced after a failure, as one whose unfinished requests would run
                with the next candidate's weights.

        Raises:
            ConfigError: when a task cannot be loaded or a split has too few documents.
        """
        self._engine = engine
        self._suite = suite
        self._fragile = fragile
        self._splits: dict[Split, SplitTasks] = {}
        search = self._tasks("search")
        probes = [item for kind in search.request_types for item in search.requests(kind)]
        self._gate = Gate(probes, gate or GateConfig())

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:
        """Build the recipe's model and score it on a split.

        Args:
            recipe: what to build.
            split: which documents.
            minibatch: score a random part of them alone.

        Returns:
            Per-sample scores, or why the recipe gives no working model.

        Raises:
            EvaluationError: for a failure that is not the recipe's (out of memory, a broken device); a
                `WorkerLostError` where the engine is of no more use.
            EvomergeError: for anything that trying again cannot mend.
        """
        seconds: dict[str, float] = {}
        try:
            with _evaluation_errors(engine_lost=self._fragile):
                if split not in self._splits:
                    with _clock(seconds, "prepare"):
                        self._tasks(split)
                with _clock(seconds, "materialise"):
                    self._engine.load(recipe)
                with _clock(seconds, "gate"):
                    self._gate.check(self._engine.lm)
                with _clock(seconds, "score"):
                    tasks = self._splits[split]
                    part = tasks if minibatch is None else tasks.part(minibatch)
                    scores = part.score(self._engine.lm, self._engine.count_tokens)
        except (InfeasibleError, NotBuiltError) as error:
            # A route that cannot be folded gives no model, as a merge that is not finite gives none.
            return Evaluation(split=split, seconds=seconds, infeasible=str(error))
        return Evaluation(
            split=split,
            samples=scores.samples,
            documents=scores.documents,
            facts=dict(self._engine.facts()),
            seconds=seconds,
        )

    def close(self) -> None:
        """Free the engine and the requests."""
        self._splits.clear()
        self._engine.close()

    def _tasks(self, split: Split) -> SplitTasks:
        from evomerge.fitness.tasks import SplitTasks

        if split not in self._splits:
            self._splits[split] = SplitTasks.build(self._suite, split, self._engine.lm)
        return self._splits[split]


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """Everything a worker needs to build its scorer; plain data, so it can be sent to another process."""

    sources: Mapping[str, SourceConfig]
    base: str | None
    suite: Path
    """The suite file, absolute."""
    base_dir: Path
    """Where relative model folders start."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    tokenizer: TokenizerConfig | None = None
    gate: GateConfig = field(default_factory=GateConfig)
    contents: Mapping[str, SourceInfo] = field(default_factory=dict)
    """What the sources must be where the scorer is built, by alias; left out: anything."""

    def __call__(self) -> LmEvalScorer:
        """Build the scorer, in the process that will use it.

        Raises:
            EvomergeError: when sources, suite or engine cannot be used.
        """
        return create_scorer(self)


def create_scorer(spec: ScorerSpec) -> LmEvalScorer:
    """Build engine and scorer.

    Raises:
        EvomergeError: when sources, suite or engine cannot be used.
    """
    from evomerge.fitness.engines import create_engine

    suite = load_suite(spec.suite)
    template = _template(spec)
    with _evaluation_errors():
        _check_contents(spec, template)
        engine = create_engine(template, base_dir=spec.base_dir, config=spec.engine, batch_size=suite.config.batch_size)
        try:
            return LmEvalScorer(engine, suite, gate=spec.gate, fragile=spec.engine.kind == "vllm")
        except BaseException:
            engine.close()
            raise


def _check_contents(spec: ScorerSpec, template: Recipe) -> None:
    """Refuse sources that are not, on this machine, what they are on the coordinator's.

    Merging asks for the same hashes, which are kept: no weight is hashed once more.

    Raises:
        SourceError: naming the first source.
    """
    if not spec.contents:
        return
    from evomerge.merging import open_sources

    found = open_sources(template, spec.base_dir, any_depth=True).infos
    for alias, expected in spec.contents.items():
        here, there = found[alias].content_hash, expected.content_hash
        if here != there:
            what = f"the model ({here[:12]}, not {there[:12]}, is the hash of its content)"
        elif found[alias].statistics != expected.statistics:
            what = "its statistics"
        else:
            continue
        raise SourceError(
            f"sources.{alias}: {what} on {socket.gethostname()} is not the coordinator's; give both the same files"
        )


def _template(spec: ScorerSpec) -> Recipe:
    """Return a recipe that names the sources; its blend, their average, is only there to make it whole."""
    tokenizer = spec.tokenizer.model_dump(by_alias=True, exclude_defaults=True) if spec.tokenizer else None
    return Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {alias: source.model_dump(by_alias=True) for alias, source in spec.sources.items()},
            "base": spec.base,
            "dtype": spec.engine.dtype,
            "tokenizer": tokenizer,
            "blend": {"method": "linear", "weight": dict.fromkeys(spec.sources, 1.0)},
        }
    )


@contextmanager
def _clock(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = time.perf_counter() - start


@contextmanager
def _evaluation_errors(*, engine_lost: bool = False) -> Iterator[None]:
    """Turn what libraries raise into an `EvaluationError`, or a `WorkerLostError`; what evomerge raises passes."""
    failure = WorkerLostError if engine_lost else EvaluationError
    try:
        yield
    except EvaluationError as error:
        if engine_lost and not isinstance(error, WorkerLostError):
            raise WorkerLostError(str(error)) from error
        raise
    except EvomergeError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300] or "no further text"
        raise failure(f"scoring failed with {type(error).__name__}: {text}") from error
