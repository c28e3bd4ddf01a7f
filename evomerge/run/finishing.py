"""The end of a search: which recipes the validation split decides between."""

from __future__ import annotations

from evomerge.recipe import Recipe
from evomerge.run.events import CandidateId
from evomerge.run.problem import Problem
from evomerge.run.state import RunState
from evomerge.search import Archive, Scalarize, scalarize


def finalists(archive: Archive, rule: Scalarize, count: int) -> tuple[int, ...]:
    """Return the ids that are scored on the validation split: the front and the best by scalarised objective."""
    ranked = sorted(
        (entry for entry in archive.entries if entry.feasible),
        key=lambda entry: (-scalarize(rule, entry.objectives), entry.id),
    )
    return tuple(sorted({*archive.front(), *(entry.id for entry in ranked[:count])}))


def unvalidated(problem: Problem, state: RunState) -> list[tuple[CandidateId, Recipe]]:
    """Return the references and the finalists that have no outcome on the validation split, if there is such a split.

    Its scores choose `best`.
    """
    if not problem.has_split("validation"):
        return []
    recipes: dict[CandidateId, Recipe] = dict(problem.references().items())
    for number in finalists(state.archive, problem.config.search.scalarize, problem.config.finalists):
        recipes[number] = problem.space.decode(state.asked[number].genome)
    return [(who, recipe) for who, recipe in recipes.items() if (who, "validation") not in state.evaluations]
