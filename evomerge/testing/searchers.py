"""The contract that every searcher keeps, as a pytest suite.

Subclass it beside your searcher and give it a factory:

    class TestMySearcher(SearcherContract):
        def make(self, space: Space, seed: int) -> Searcher:
            return MySearcher(space, seed=seed)
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from evomerge.search.genomes import deactivate, genome_from_unit, unit_from_genome
from evomerge.search.steered import Steered
from evomerge.search.types import Candidate, Outcome, Searcher
from evomerge.spaces.held import HeldSpace, Weighted
from evomerge.spaces.types import Dimension, Space, Value
from evomerge.testing.spaces import BoxSpace, closeness

Score = Callable[[Candidate], Outcome]
Event = tuple[str, int]
"""("asked" or "told", candidate id), as a journal has them."""


def drive(
    searcher: Searcher,
    score: Score,
    evaluations: int,
    *,
    batch: int = 4,
    order: np.random.Generator | None = None,
) -> tuple[list[Candidate], list[Event]]:
    """Run a search by hand and return its candidates and its events.

    Args:
        searcher: the searcher, at its start or anywhere.
        score: what each candidate is told.
        evaluations: how many candidates to tell (fewer when the searcher finishes).
        batch: workers: candidates in flight at most.
        order: completes a random open candidate each time; left out: in the order of asking.
    """
    candidates: list[Candidate] = []
    events: list[Event] = []
    flight: list[Candidate] = []
    num_told = 0
    while num_told < evaluations:
        asked = searcher.ask(min(batch - len(flight), evaluations - num_told - len(flight)))
        candidates += asked
        flight += asked
        events += [("asked", candidate.id) for candidate in asked]
        if not flight:
            break
        done = flight.pop(0 if order is None else int(order.integers(len(flight))))
        searcher.tell(done, score(done))
        events.append(("told", done.id))
        num_told += 1
    return candidates, events


CLOSENESS = "toy.closeness"
"""Scores per sample, one sample a dimension: how close it is to the optimum, in [0, 1]; their mean is the objective."""
PLACE = "toy.place"
"""Where each dimension is in [0, 1]."""


def quadratic(space: Space) -> Score:
    """Return a smooth score with one optimum, away from the middle and from the start."""
    target = [0.0 if dimension.kind == "choice" else 0.7 for dimension in space.dimensions]

    def score(candidate: Candidate) -> Outcome:
        terms = closeness(space, candidate.genome, target)
        samples = {CLOSENESS: terms, PLACE: unit_from_genome(space, candidate.genome)}
        return Outcome("feasible", (float(terms.mean()),), samples=samples)

    return score


def rounded(outcome: Outcome, steps: int) -> Outcome:
    """Return an outcome with its objectives and scores rounded to so many steps a unit."""
    samples = {name: np.round(scores * steps) / steps for name, scores in outcome.samples.items()}
    return replace(outcome, objectives=tuple(round(x * steps) / steps for x in outcome.objectives), samples=samples)


def flat(value: float) -> Outcome:
    """Return a feasible outcome with one value everywhere."""
    return Outcome("feasible", (value,), samples=dict.fromkeys((CLOSENESS, PLACE), np.full(3, value)))


def fits(dimension: Dimension, value: Value) -> bool:
    """Tell whether an active dimension's value has its type and lies in its range."""
    if dimension.kind == "choice":
        return value in dimension.choices
    if dimension.kind == "int":
        return isinstance(value, int) and dimension.low <= value <= dimension.high
    return isinstance(value, float) and dimension.low <= value <= dimension.high


class SearcherContract(ABC):
    """What a searcher must keep; subclass it, define `make`, and name the class `Test...`."""

    improves: ClassVar[bool] = True
    """Whether the searcher learns, and must come closer to a quadratic's optimum in the end."""
    evaluations: ClassVar[int] = 60
    """Candidates of an ordinary test: at least three generations."""

    @abstractmethod
    def make(self, space: Space, seed: int) -> Searcher:
        """Return the searcher at its start."""

    @pytest.fixture
    def space(self) -> Space:
        """Return a space with float, int, choice and conditional dimensions."""
        return BoxSpace()

    def test_equal_seeds_give_equal_searches(self, space: Space) -> None:
        """The same seed and the same tells in the same order give the same candidates."""
        runs = [drive(self.make(space, 7), quadratic(space), self.evaluations) for _ in range(2)]
        assert runs[0] == runs[1]

    def test_seeds_matter(self, space: Space) -> None:
        """Another seed gives other candidates."""
        runs = [drive(self.make(space, seed), quadratic(space), self.evaluations)[0] for seed in (1, 2)]
        assert [c.genome for c in runs[0]] != [c.genome for c in runs[1]]

    def test_asking_for_many_equals_asking_many_times_for_one(self, space: Space) -> None:
        """A journal of single asks replays any batching."""
        score = quadratic(space)
        batched, single = self.make(space, 3), self.make(space, 3)
        rng = np.random.default_rng(0)
        flight: list[Candidate] = []
        for _ in range(self.evaluations):
            n = int(rng.integers(0, 6))
            asked = batched.ask(n)
            assert asked == [candidate for _ in range(n) for candidate in single.ask(1)]
            flight += asked
            for _ in range(int(rng.integers(0, len(flight) + 1))):
                done = flight.pop(int(rng.integers(len(flight))))
                for searcher in (batched, single):
                    searcher.tell(done, score(done))

    def test_never_gives_more_than_asked_for(self, space: Space) -> None:
        """Fewer or none is allowed, more is not."""
        searcher = self.make(space, 0)
        assert searcher.ask(0) == []
        assert len(searcher.ask(1)) == 1
        assert len(searcher.ask(1000)) <= 1000

    def test_never_waits_for_nothing(self, space: Space) -> None:
        """With nothing open, there is a candidate, or the search is finished."""
        searcher = self.make(space, 0)
        score = quadratic(space)
        for _ in range(self.evaluations):
            asked = searcher.ask(1)
            assert asked or searcher.finished
            for candidate in asked:
                searcher.tell(candidate, score(candidate))

    def test_ids_count_from_zero_in_the_order_of_asking(self, space: Space) -> None:
        """Ids are 0, 1, 2, ..., and parents are earlier ones."""
        candidates, _ = drive(self.make(space, 0), quadratic(space), self.evaluations)
        assert [candidate.id for candidate in candidates] == list(range(len(candidates)))
        assert all(parent < candidate.id for candidate in candidates for parent in candidate.parents)

    def test_telling_twice_is_an_error(self, space: Space) -> None:
        """A candidate is told once."""
        searcher = self.make(space, 0)
        (candidate,) = searcher.ask(1)
        searcher.tell(candidate, flat(0.5))
        with pytest.raises(ValueError, match="candidate 0 "):
            searcher.tell(candidate, flat(0.5))

    def test_telling_what_was_never_asked_is_an_error(self, space: Space) -> None:
        """Neither a foreign id nor a foreign genome is accepted, and the refusal changes nothing."""
        searcher = self.make(space, 0)
        (candidate,) = searcher.ask(1)
        corners = [deactivate(space.dimensions, [d.from_unit(unit) for d in space.dimensions]) for unit in (0.1, 0.9)]
        genome = corners[candidate.genome == corners[0]]
        for foreign in (replace(candidate, id=99), replace(candidate, genome=genome)):
            with pytest.raises(ValueError, match="never asked"):
                searcher.tell(foreign, flat(0.5))
        searcher.tell(candidate, flat(0.5))

    def test_genomes_lie_in_the_space(self, space: Space) -> None:
        """Values fit their dimensions, inactive ones are None; the recipe is the genome's."""
        candidates, _ = drive(self.make(space, 5), quadratic(space), self.evaluations)
        for candidate in candidates:
            active = [value is not None for value in candidate.genome]
            values = {d.name: value for d, value in zip(space.dimensions, candidate.genome, strict=True)}
            whens = [d.active_when for d in space.dimensions]
            assert candidate.genome == deactivate(space.dimensions, candidate.genome)
            assert active == [when is None or values[when[0]] == when[1] for when in whens]
            assert all(
                fits(d, value) for d, value in zip(space.dimensions, candidate.genome, strict=True) if value is not None
            )
            assert candidate.recipe == space.decode(candidate.genome)

    def test_global_random_state_is_left_alone(self, space: Space) -> None:
        """Neither NumPy's nor Python's global generator is read, seeded or advanced."""
        candidates, _ = drive(self.make(space, 5), quadratic(space), self.evaluations)
        np.random.seed(11)  # noqa: NPY002  the global generator is what is watched
        random.seed(11)
        before = str(np.random.get_state()), random.getstate()  # noqa: NPY002
        again, _ = drive(self.make(space, 5), quadratic(space), self.evaluations)
        assert (str(np.random.get_state()), random.getstate()) == before  # noqa: NPY002
        assert again == candidates

    def test_two_searches_do_not_disturb_each_other(self, space: Space) -> None:
        """Interleaved searches go as they go alone."""
        score = quadratic(space)
        alone, _ = drive(self.make(space, 5), score, self.evaluations, batch=1)
        searcher, other = self.make(space, 5), self.make(space, 6)
        together: list[Candidate] = []
        for _ in range(self.evaluations):
            drive(other, score, 1, batch=1)
            together += drive(searcher, score, 1, batch=1)[0]
        assert together == alone

    def test_no_files_and_no_output(
        self,
        space: Space,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """A searcher writes no file into the working folder and prints nothing."""
        monkeypatch.chdir(tmp_path)
        drive(self.make(space, 5), quadratic(space), self.evaluations)
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("state", ["infeasible", "failed"])
    def test_goes_on_when_nothing_works(self, space: Space, state: str) -> None:
        """A search in which every candidate so far is infeasible, or failed, goes on."""
        outcome = Outcome("failed") if state == "failed" else Outcome("infeasible")
        candidates, _ = drive(self.make(space, 0), lambda _: outcome, self.evaluations)
        assert len(candidates) == self.evaluations

    def test_all_states_mix(self, space: Space) -> None:
        """Feasible, infeasible with and without a violation, and failed candidates come in any mixture."""
        score = quadratic(space)

        def mixed(candidate: Candidate) -> Outcome:
            feasible = score(candidate)
            return (
                feasible,
                Outcome("infeasible", feasible.objectives, violation=0.1 * (candidate.id % 7)),
                Outcome("infeasible"),
                Outcome("failed"),
            )[candidate.id % 4]

        candidates, _ = drive(self.make(space, 0), mixed, self.evaluations)
        assert len(candidates) == self.evaluations

    def test_a_recorded_search_replays(self, space: Space) -> None:
        """Replaying the recorded asks and tells gives the recorded candidates, in any completion order."""
        score = quadratic(space)
        order = np.random.default_rng(1)
        candidates, events = drive(self.make(space, 9), score, self.evaluations, batch=7, order=order)
        replayed: dict[int, Candidate] = {}
        searcher = self.make(space, 9)
        for event, id_ in events:
            if event == "asked":
                (candidate,) = searcher.ask(1)
                replayed[candidate.id] = candidate
            else:
                searcher.tell(replayed[id_], score(replayed[id_]))
        assert list(replayed.values()) == candidates

    def test_a_steered_search_replays(self, space: Space) -> None:
        """Adoptions and holds at random moments leave the search a function of the order of events."""
        rng = np.random.default_rng(4)
        score = quadratic(space)
        events: list[tuple[str, Any]] = []
        flight: list[Candidate] = []
        search, candidates = self._steered(space), []
        for _ in range(3 * self.evaluations):
            match ("ask", "ask", "tell", "tell", "adopt", "hold")[int(rng.integers(6))]:
                case "ask":
                    events.append(("ask", None))
                    asked = search.ask(1)
                case "tell" if flight:
                    done = flight.pop(int(rng.integers(len(flight))))
                    events.append(("tell", done.id))
                    search.tell(done, score(done))
                    continue
                case "hold" if isinstance(space, Weighted) and space.weights_of("expert"):
                    weight = None if rng.random() < 0.5 else float(rng.random())
                    events.append(("hold", weight))
                    search.hold("expert", weight)
                    continue
                case _:
                    genome = genome_from_unit(space, rng.random(len(space.dimensions)))
                    events.append(("adopt", genome))
                    asked = [search.adopt(genome)]
            candidates += asked
            flight += asked
        assert [candidate.id for candidate in candidates] == list(range(len(candidates)))
        assert self._replayed(space, events, score) == candidates

    def _steered(self, space: Space) -> Steered:
        held = HeldSpace(space)
        return Steered(self.make(held, 5), held)

    def _replayed(self, space: Space, events: list[tuple[str, Any]], score: Score) -> list[Candidate]:
        search, candidates = self._steered(space), list[Candidate]()
        for event, what in events:
            if event == "ask":
                candidates += search.ask(1)
            elif event == "adopt":
                candidates.append(search.adopt(what))
            elif event == "hold":
                search.hold("expert", what)
            else:
                search.tell(candidates[what], score(candidates[what]))
        return candidates

    def test_flat_scores_never_end_a_search(self, space: Space) -> None:
        """Equal scores for every candidate are no sign of convergence."""
        searcher = self.make(space, 0)
        candidates, _ = drive(searcher, lambda _: flat(0.25), 5 * self.evaluations)
        assert len(candidates) == 5 * self.evaluations
        assert searcher.finished is None

    def test_quantised_scores_never_end_a_search(self, space: Space) -> None:
        """Accuracies over 20 items are no sign of convergence either."""
        score = quadratic(space)
        searcher = self.make(space, 0)
        candidates, _ = drive(searcher, lambda candidate: rounded(score(candidate), 20), 5 * self.evaluations)
        assert len(candidates) == 5 * self.evaluations
        assert searcher.finished is None

    def test_comes_closer_to_the_optimum(self, space: Space) -> None:
        """Later candidates are better on average than the first ones (for searchers that learn)."""
        if not self.improves:
            pytest.skip("this searcher does not learn from what it is told")
        score = quadratic(space)
        candidates, _ = drive(self.make(space, 4), score, 5 * self.evaluations)
        losses = [1.0 - score(candidate).objectives[0] for candidate in candidates]
        assert np.mean(losses[-30:]) < 0.5 * np.mean(losses[:30])

    def test_status_is_plain(self, space: Space) -> None:
        """Status is a flat mapping of figures and words, at every stage."""
        searcher = self.make(space, 0)
        for _ in range(2):
            status = searcher.status()
            assert all(isinstance(key, str) for key in status)
            assert all(isinstance(value, (int, float, str)) for value in status.values())
            drive(searcher, quadratic(space), self.evaluations)
