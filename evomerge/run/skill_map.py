"""Who can do what in a run: the archive that competition keeps, followed through the journal. Never writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import StateError
from evomerge.fitness import Objectives
from evomerge.run.view import Json, Run
from evomerge.search import NaturalNichesOptions, SearchConfig
from evomerge.search.niches import Niches
from evomerge.search.sample_rows import SampleRows
from evomerge.search.skills import Pair, clusters, complementary, coverage, entropy, owners, shares

MAX_CLUSTERS = 8
"""Samples are put into so many clusters at most."""
MAX_PAIRS = 10
"""So many complementary pairs are told."""


@dataclass(frozen=True)
class SkillMap:
    """Members of the archive and what each can do on the search split. P members, N samples."""

    members: tuple[int, ...]
    """Candidates that are left of all that competed, the one with most to live on first; shape (P,)."""
    sizes: Mapping[str, int]
    """Metrics and their numbers of documents; samples lie end to end in this order, in document order."""
    scores: NDArray[np.float64]
    """Shape (P, N), in [0, 1]."""
    owner: NDArray[np.int64]
    """Row of the member with the largest share of each sample, shape (N,); -1 where nobody scores."""
    cluster: NDArray[np.int64]
    """Samples on which the same members do well, numbered from 0 by falling mean score; shape (N,)."""
    pairs: tuple[Pair, ...]
    """Rows of members that gain most by each other."""
    history: NDArray[np.float64]
    """Shape (evaluations that competed, 3): the evaluation's number from 1, coverage, entropy."""

    def to_json(self) -> Json:
        """Return it as plain data, as `show --skills --json` prints it."""
        share = shares(self.scores)
        ends = np.cumsum(list(self.sizes.values()))[:-1]
        owned = [None if row < 0 else self.members[row] for row in self.owner]
        return {
            "members": [
                {
                    "id": member,
                    "mean": float(self.scores[row].mean()),
                    "share": float(share[row].sum()),
                    "owns": int((self.owner == row).sum()),
                }
                for row, member in enumerate(self.members)
            ],
            "clusters": [self._cluster(number) for number in range(int(self.cluster.max()) + 1)],
            "pairs": [
                {"first": self.members[pair.first], "second": self.members[pair.second]}
                | {"union": pair.union, "gain": pair.gain}
                for pair in self.pairs
            ],
            "samples": {
                name: {"owner": owned[part[0] : part[-1] + 1], "cluster": self.cluster[part].tolist()}
                for name, part in zip(self.sizes, np.split(np.arange(len(self.owner)), ends), strict=True)
            },
            "coverage": float(self.history[-1, 1]),
            "entropy": float(self.history[-1, 2]),
            "history": [{"evaluation": int(n), "coverage": c, "entropy": e} for n, c, e in self.history.tolist()],
        }

    def _cluster(self, number: int) -> Json:
        inside = self.cluster == number
        means = self.scores[:, inside].mean(axis=1)
        return {
            "cluster": number,
            "samples": int(inside.sum()),
            "mean": float(means.mean()),
            "best": {"id": self.members[int(means.argmax())], "mean": float(means.max())},
        }


def skill_map(run: Run) -> SkillMap:
    """Follow the archive of natural niches through a run, whatever its searcher was.

    A search by natural niches gives its own archive; of any other the one that its options' defaults would keep.

    Raises:
        StateError: when fewer than two candidates were scored per sample, or on different documents each.
    """
    if run.config.search.minibatch is not None:
        raise StateError(
            f"{run.folder.path}: each generation was scored on documents of its own (search.minibatch), so candidates "
            "cannot be compared sample by sample"
        )
    followed = _Followed(run)
    niches = followed.niches
    if len(niches) < 2:
        raise StateError(f"{run.folder.path}: fewer than two candidates have scores per sample, so there is no map yet")
    order = np.argsort(-niches.fitness, kind="stable")
    scores = niches.competing[order]
    return SkillMap(
        members=tuple(niches.ids[slot] for slot in order),
        sizes=followed.rows.sizes,
        scores=scores,
        owner=owners(scores),
        cluster=clusters(scores, MAX_CLUSTERS),
        pairs=tuple(complementary(scores)[:MAX_PAIRS]),
        history=np.array(followed.history, dtype=np.float64),
    )


class _Followed:
    """An archive after all outcomes of a run's search split."""

    def __init__(self, run: Run) -> None:
        options = _options(run.config.search)
        wanted = Objectives.parse(run.config.fitness).wanted
        self.rows = SampleRows(options.metrics, default=wanted, unit=False)
        self.history: list[tuple[int, float, float]] = []
        rows = []
        told = [(owner, event) for owner, event in run.state.of_split("search").items() if isinstance(owner, int)]
        for number, (owner, event) in enumerate(told, start=1):
            if event.state == "feasible" and event.scores is not None:
                outcome = run.state.outcome(event, run.folder.scores)
                rows.append((number, owner, self.rows.row(owner, outcome)))
        outside = any(row.min() < 0 or row.max() > 1 for _, _, row in rows)
        self.niches = Niches(
            options.archive,
            alpha=options.alpha,
            capacities=options.capacities,
            normaliser="min_max" if outside else options.normaliser,
        )
        for number, owner, row in rows:
            self.niches.offer(owner, row)
            competing = self.niches.competing
            self.history.append((number, coverage(competing), entropy(competing)))


def _options(search: SearchConfig) -> NaturalNichesOptions:
    """Return the options of the natural niches in a search, alone or in a portfolio; the defaults where it has none."""
    stages: list[Mapping[str, Any]] = [{"searcher": search.searcher, "options": search.options}]
    if search.searcher == "portfolio":
        stages = list(search.options.get("stages", ()))
    found = [stage.get("options", {}) for stage in stages if stage.get("searcher") == "natural_niches"]
    return NaturalNichesOptions.model_validate(found[0] if found else {})
