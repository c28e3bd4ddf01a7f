"""Exporting a candidate: its sealed test score, then a checkpoint or adapter with its card; or its recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from evomerge.cluster import InlineExecutor
from evomerge.cluster.types import Completed, Failed, Job
from evomerge.errors import EvaluationError, RunHeldError, StateError
from evomerge.recipe import Recipe, SourceConfig
from evomerge.run.card import ScoreRow, SourceFacts, declared_license, model_card
from evomerge.run.events import CandidateId, Exported
from evomerge.run.grams import stored_grams
from evomerge.run.journal import JournalWriter
from evomerge.run.lease import Lease
from evomerge.run.outcomes import measured
from evomerge.run.problem import NO_FOLDER, Problem, check_sources, open_problem
from evomerge.run.storage import write_atomically
from evomerge.run.view import Json, Run
from evomerge.run.view import measured as as_json

_POLL_S = 3600.0


Notify = Callable[[str], None]
"""Hears, in words, what is being done now."""


def silent(text: str) -> None:
    """Say nothing."""
    del text


def export_checkpoint(path: Path, out: Path, word: str = "best", *, notify: Notify = silent) -> Json:
    """Write a candidate as a Hugging Face checkpoint with a model card.

    The test split is scored here for the first and only time, for the candidate and the references, and journaled;
    a further export of the same candidate reads the journal. While a coordinator holds the run, the export has no
    test scores (a note says so), because there is one writer.

    Args:
        path: the run folder.
        out: the model's folder; it must not exist.
        word: `best`, `knee`, a number or a reference.
        notify: hears what is being scored.

    Returns:
        `{"candidate", "recipe_id", "out", "format", "scores", "note"}`.

    Raises:
        StateError: when there is no such candidate, or `out` exists.
        SourceError: when a source cannot be read any more.
    """
    return _export_model(path, out, word, "checkpoint", notify)


def export_adapter(path: Path, out: Path, word: str = "best", *, notify: Notify = silent) -> Json:
    """Write a candidate as a PEFT adapter with a model card, scored as `export_checkpoint` does.

    A candidate is an adapter where its sources are adapters on one model, or that model, and its method is linear.

    Raises:
        NotBuiltError: when the candidate is no adapter, with the reason.
        StateError, SourceError: as `export_checkpoint` does.
    """
    return _export_model(path, out, word, "adapter", notify)


def _export_model(path: Path, out: Path, word: str, kind: Literal["checkpoint", "adapter"], notify: Notify) -> Json:
    run = Run(path)
    candidate = run.resolve(word)
    if out.exists():
        raise StateError(f"{out}: this exists already; give a folder that does not")
    if kind == "adapter":
        _check_adapter(run.recipe(candidate))
    note = None
    problem = open_problem(run.config, grams=stored_grams(run.folder, run.state.started))
    check_sources(path, run.state.started, problem)
    try:
        with Lease(path):
            _unseal(run, problem, candidate, notify)
            run.refresh()
            _build(run, problem, candidate, out, kind)
            with JournalWriter(run.folder.journal) as journal:
                journal.append(Exported(candidate=candidate, out=out.name))
    except RunHeldError:
        note = "the run is still going: exported without the sealed test scores; export again once it is finished"
        _build(run, problem, candidate, out, kind)
    return {**_facts(run, candidate, out, kind), "note": note}


def export_recipe(path: Path, out: Path, word: str = "best") -> Json:
    """Write a candidate's native recipe as a YAML file.

    Raises:
        StateError: when there is no such candidate, or `out` exists.
    """
    run = Run(path)
    candidate = run.resolve(word)
    _write_new(out, run.recipe(candidate).to_yaml())
    return {**_facts(run, candidate, out, "recipe"), "note": None}


def export_mergekit(path: Path, out: Path, word: str = "best") -> Json:
    """Write a candidate as a mergekit YAML file; the note says where mergekit's result may differ.

    Raises:
        NotBuiltError: for a recipe that mergekit cannot make; the text says which part.
        StateError: when there is no such candidate, or `out` exists.
    """
    from evomerge.merging import open_sources, plan, to_mergekit

    run = Run(path)
    candidate = run.resolve(word)
    recipe = run.recipe(candidate)
    exported = to_mergekit(plan(recipe, open_sources(recipe, NO_FOLDER)))
    _write_new(out, exported.text)
    return {**_facts(run, candidate, out, "mergekit"), "note": "; ".join(exported.notes) or None}


def _write_new(out: Path, text: str) -> None:
    if out.exists():
        raise StateError(f"{out}: this exists already; give a file that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text.encode())


def _unseal(run: Run, problem: Problem, candidate: CandidateId, notify: Notify) -> None:
    """Score the candidate and the references on the test split where that has not been done, and journal it."""
    if not problem.has_split("test"):
        return
    wanted: dict[CandidateId, Recipe] = {name: run.recipe(name) for name in run.compared()}
    wanted[candidate] = run.recipe(candidate)
    open_ = {who: recipe for who, recipe in wanted.items() if (who, "test") not in run.state.evaluations}
    if not open_:
        return
    executor = InlineExecutor(problem.config.executor, problem.scorer)
    try:
        with JournalWriter(run.folder.journal) as journal:
            for number, (who, recipe) in enumerate(open_.items(), start=1):
                notify(f"scoring the test split: {number} of {len(open_)} ({who})")
                executor.submit(Job(key=f"{who}/test", recipe=recipe, split="test"))
                result = _settled(executor, who)
                scores = None if result.evaluation.infeasible else run.folder.scores.write(result.evaluation)
                journal.append(
                    measured(problem.objectives, result, candidate=who, recipe_id=run.recipe_id(who), scores=scores)
                )
    finally:
        executor.close()


def _settled(executor: InlineExecutor, who: CandidateId) -> Completed:
    """Return the one open job's result."""
    while executor.open_jobs:
        for result in executor.wait(_POLL_S):
            if isinstance(result, Completed):
                return result
            if isinstance(result, Failed):
                raise EvaluationError(f"candidate {who}: scoring the test split failed ({result.reason}); export again")
    raise EvaluationError(f"candidate {who}: scoring the test split gave no result; export again")


def score_rows(run: Run, candidate: CandidateId) -> list[Json]:
    """Return the scores of a candidate on each split, then those of the references on the last split scored."""
    rows: list[Json] = []
    for split in ("search", "validation", "test"):
        event = run.state.evaluations.get((candidate, split))
        if event is not None and event.objectives:
            rows.append({"name": f"candidate {candidate}", "split": split, "objectives": as_json(event)})
    if rows:
        last = rows[-1]["split"]
        for name in run.compared():
            event = run.state.evaluations.get((name, last))
            if event is not None and event.objectives:
                rows.append({"name": name, "split": last, "objectives": as_json(event)})
    return rows


def _facts(run: Run, candidate: CandidateId, out: Path, kind: str) -> Json:
    return {
        "candidate": candidate,
        "recipe_id": run.recipe_id(candidate),
        "out": str(out),
        "format": kind,
        "scores": score_rows(run, candidate),
    }


def _check_adapter(recipe: Recipe) -> None:
    """Refuse a candidate that is no adapter before anything is scored, which the first export does once."""
    from evomerge.merging import as_adapter, open_sources, plan

    as_adapter(plan(recipe, open_sources(recipe, NO_FOLDER)))


def _build(run: Run, problem: Problem, candidate: CandidateId, out: Path, kind: str) -> None:
    from evomerge.merging import build, build_adapter, terminal_progress

    recipe, card = run.recipe(candidate), _card(run, problem, candidate, out)
    if kind == "adapter":
        build_adapter(recipe, out, base_dir=NO_FOLDER, card=card)
    else:
        build(recipe, out, base_dir=NO_FOLDER, card=card, progress=terminal_progress())


def _card(run: Run, problem: Problem, candidate: CandidateId, out: Path) -> str:
    from evomerge.merging import portable_recipe

    recipe = run.recipe(candidate)
    asked = run.state.asked.get(candidate) if isinstance(candidate, int) else None
    parents = f" from candidates {', '.join(map(str, asked.parents))}" if asked and asked.parents else ""
    origin = f" ({asked.origin}{parents})" if asked and asked.origin else ""
    lineage = (
        f"Candidate {candidate} of the search `{run.config.name}`{origin}: {run.state.num_done} candidates were "
        f"scored, searcher `{run.config.search.searcher}`, seed {run.config.search.seed}, "
        f"chosen on the {run.selection_split} split."
    )
    scores = [
        ScoreRow(
            name=row["name"],
            split=row["split"],
            scores={key: (value["mean"], value["stderr"]) for key, value in row["objectives"].items()},
        )
        for row in score_rows(run, candidate)
    ]
    return model_card(
        out.name,
        portable_recipe(recipe, NO_FOLDER, out, run.recipe_id(candidate)),
        sources=source_facts(recipe, problem),
        lineage=lineage,
        scores=scores,
    )


def source_facts(recipe: Recipe, problem: Problem) -> list[SourceFacts]:
    """Return what a card says of each source of a recipe, in order and once.

    A merge that the search itself nested (a joint search's `merged`) is told by its own sources; a recipe that the
    search file names as a source is told as one.
    """
    facts: dict[str, SourceFacts] = {}
    for alias, source in recipe.sources.items():
        if alias in problem.infos:
            facts.setdefault(alias, _source_fact(alias, source, problem.infos[alias].content_hash))
        elif isinstance(source.model, Recipe):
            for fact in source_facts(source.model, problem):
                facts.setdefault(fact.alias, fact)
    return list(facts.values())


def _source_fact(alias: str, source: SourceConfig, content_hash: str) -> SourceFacts:
    from evomerge.checkpoints import resolve_model

    if not isinstance(source.model, str):
        return SourceFacts(alias, "a nested recipe", content_hash, None)
    folder = resolve_model(source.model, source.revision, NO_FOLDER)
    adapter = None if source.adapter is None else _shown(source.adapter)
    return SourceFacts(alias, _shown(source.model), content_hash, declared_license(folder), adapter)


def _shown(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name
