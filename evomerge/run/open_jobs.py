"""The jobs of a run that were submitted and are not settled."""

from __future__ import annotations

from dataclasses import dataclass, field

from evomerge.cluster.types import Failed
from evomerge.errors import EvaluationError
from evomerge.fitness.types import Split
from evomerge.run.events import CandidateId
from evomerge.search.types import Candidate

MAX_FAILED_STARTS = 3
"""So many failures before anything was scored end a session: the set-up is broken, not the recipes."""


@dataclass(slots=True)
class OpenJob:
    """A job that was submitted and is not settled."""

    candidate: CandidateId
    recipe_id: str
    split: Split
    asked: Candidate | None = None
    """The searched candidate, where it is one and is scored for the search."""
    followers: list[Candidate] = field(default_factory=list)
    """Candidates with the same recipe that were asked while it was being scored."""

    @property
    def key(self) -> str:
        """What the executor knows it by."""
        return f"{self.candidate}/{self.split}"


class OpenJobs:
    """Open jobs by key, and those of the search split by recipe: one recipe is never scored twice at once."""

    def __init__(self) -> None:
        self._jobs: dict[str, OpenJob] = {}
        self._searched: dict[str, OpenJob] = {}
        self.num_candidates = 0
        """How many of them are candidates that are scored for the search."""

    def __len__(self) -> int:
        """How many there are; a failure that is kept back is none."""
        return len(self._jobs)

    def __getitem__(self, key: str) -> OpenJob:
        """Return a job."""
        return self._jobs[key]

    def add(self, job: OpenJob) -> None:
        """Take note of a job."""
        self._jobs[job.key] = job
        if job.split == "search":
            self._searched.setdefault(job.recipe_id, job)
            self.num_candidates += job.asked is not None

    def of_recipe(self, recipe_id: str) -> OpenJob | None:
        """Return the job that scores a recipe for the search, if there is one."""
        return self._searched.get(recipe_id)

    def followers(self) -> set[int]:
        """Return the candidates that wait for the score of another one's job."""
        return {follower.id for job in self._jobs.values() for follower in job.followers}

    def answered(self, key: str) -> None:
        """Take note that the executor has ended a job; its recipe may be kept back still."""
        del self._jobs[key]

    def settle(self, job: OpenJob) -> None:
        """Take note that the outcome of a job is recorded now."""
        if self._searched.get(job.recipe_id) is job:
            del self._searched[job.recipe_id]
        self.num_candidates -= job.asked is not None


class FirstFailures:
    """Keeps failures back while nothing has been scored: the set-up's fault would come again with every recipe.

    Args:
        waiting: False: something was scored in an earlier session, so that failures are their recipes' own.
    """

    def __init__(self, *, waiting: bool) -> None:
        self._kept: list[tuple[OpenJob, Failed]] | None = [] if waiting else None

    def __bool__(self) -> bool:
        """Whether any is kept."""
        return bool(self._kept)

    def keep(self, job: OpenJob, event: Failed) -> bool:
        """Keep a failure back and return True; False once something was scored.

        Raises:
            EvaluationError: when too many failed; none of them is journaled, so a mended set-up scores them again.
        """
        if self._kept is None:
            return False
        self._kept.append((job, event))
        if len(self._kept) >= MAX_FAILED_STARTS:
            raise self.hopeless()
        return True

    def release(self) -> list[tuple[OpenJob, Failed]]:
        """Return what was kept: something was scored, so they are their recipes' own."""
        kept, self._kept = self._kept, None
        return kept or []

    def hopeless(self) -> EvaluationError:
        """Return the error that ends a session in which nothing could be scored."""
        reason = self._kept[-1][1].reason if self._kept else "no worker answered"
        return EvaluationError(f"nothing could be scored: {reason}; nothing is lost, mend the cause and resume the run")
