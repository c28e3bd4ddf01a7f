"""From what a worker returned to a journal event."""

from __future__ import annotations

from evomerge.cluster.types import Completed, Failed
from evomerge.errors import InfeasibleError
from evomerge.fitness import Objectives
from evomerge.run.events import CandidateId, Evaluated


def measured(
    objectives: Objectives, result: Completed, *, candidate: CandidateId, recipe_id: str, scores: str | None
) -> Evaluated:
    """Return the event of a completed job: objectives with standard errors, feasibility, cost.

    Args:
        objectives: what is wanted.
        result: what the worker returned.
        candidate: the candidate or reference.
        recipe_id: identity of its recipe.
        scores: where its per-sample scores lie; None for a model that gave none.
    """
    evaluation = result.evaluation
    event = Evaluated(
        candidate=candidate,
        recipe_id=recipe_id,
        split=evaluation.split,
        state="infeasible",
        reason=evaluation.infeasible,
        scores=scores,
        attempt=result.attempt,
        worker=result.worker,
        seconds={**evaluation.seconds, "other": max(0.0, result.seconds - sum(evaluation.seconds.values()))},
    )
    if evaluation.infeasible is not None:
        return event
    try:
        values = objectives.measure(evaluation)
        violation = objectives.violation(evaluation)
    except InfeasibleError as error:
        return event.model_copy(update={"reason": str(error)})
    names = objectives.names
    return event.model_copy(
        update={
            "state": "infeasible" if violation > 0 else "feasible",
            "reason": "a constraint is not met" if violation > 0 else None,
            "objectives": {name: value.mean for name, value in zip(names, values, strict=True)},
            "stderr": {
                name: value.stderr if value.samples > 1 else None for name, value in zip(names, values, strict=True)
            },
            "samples": {name: value.samples for name, value in zip(names, values, strict=True)},
            "violation": violation,
        }
    )


def failed(result: Failed, *, candidate: CandidateId, recipe_id: str) -> Evaluated:
    """Return the event of a job that was closed without a score."""
    return Evaluated(
        candidate=candidate,
        recipe_id=recipe_id,
        split=result.job.split,
        state="failed",
        reason=f"{result.kind}: {result.reason}",
        attempt=result.attempt,
    )


def reused(known: Evaluated, candidate: int) -> Evaluated:
    """Return the event of a candidate whose recipe was scored before: the same outcome, at no cost."""
    update: dict[str, object] = {
        "candidate": candidate,
        "reused_from": known.candidate,
        "attempt": 0,
        "worker": None,
        "seconds": {},
    }
    return known.model_copy(update={**update, "seq": 0, "time": ""})
