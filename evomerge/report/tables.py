"""The report's tables, as HTML. Everything that comes from the run is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from evomerge.fitness.types import Split
from evomerge.report.figures import scalar_name
from evomerge.report.labels import number, pieces, with_error
from evomerge.run.events import CandidateId
from evomerge.run.view import Run

_SPLITS: tuple[Split, ...] = ("test", "validation", "search")
"""What was kept away from the search longest comes first."""
_MAX_REASONS = 12


def score_table(run: Run, best: int | None) -> str:
    """Tell, split by split, what the best candidate and the references came to."""
    names = run.state.objectives
    head = ["", *names, *_scalar_head(run)]
    owners: list[CandidateId] = [*([] if best is None else [best]), *run.compared()]
    rows: list[str] = []
    for split in _SPLITS:
        lines = [_score_line(run, owner, split, names) for owner in owners]
        if any(lines):
            documents = max(
                event.samples.get(name, 0)
                for owner in owners
                if (event := run.state.evaluations.get((owner, split))) is not None
                for name in names
            )
            title = f"{split} split, up to {documents} documents an objective"
            rows.append(f'<tr class="group"><th colspan="{len(head)}">{escape(title)}</th></tr>')
            rows.extend(line for line in lines if line)
    if not rows:
        return '<p class="note">Nothing was measured.</p>'
    note = "Mean ± standard error over documents. Of a sweep of coefficients, its best on the search split."
    return f'<p class="note">{note}</p>\n{_table(head, rows)}'


def _score_line(run: Run, owner: CandidateId, split: Split, names: Sequence[str]) -> str:
    event = run.state.evaluations.get((owner, split))
    if event is None or not event.objectives:
        return ""
    label = f"candidate {owner} (best)" if isinstance(owner, int) else owner
    cells = [with_error(event.objectives[name], event.stderr.get(name)) for name in names]
    return _row([label, *cells, *_scalar_cells(run, owner, split)], marked=isinstance(owner, int))


def front_table(run: Run, best: int | None) -> str:
    """List the front of the search split, the highest scalarised objective first."""
    names = run.state.objectives
    knee = run.knee()
    front = sorted(run.pareto(), key=lambda row: (-(run.value(row["id"], "search") or 0.0), row["id"]))
    validated = any(run.value(row["id"], "validation") is not None for row in front)
    rows = []
    for row in front:
        marks = [word for word, chosen in (("best", best), ("knee", knee)) if row["id"] == chosen]
        cells = [with_error(row["objectives"][name]["mean"], row["objectives"][name]["stderr"]) for name in names]
        scalar = _scalar_cells(run, row["id"], "search")
        if validated:
            value = run.value(row["id"], "validation")
            scalar = [*scalar, "" if value is None else number(value)]
        label = f"{row['id']} ({', '.join(marks)})" if marks else str(row["id"])
        rows.append(_row([label, *cells, *scalar, row["recipe_id"][:12]], marked=row["id"] == best))
    validation = [f"{scalar_name(run)}, validation" if len(names) > 1 else "on validation"] if validated else []
    return _table(["candidate", *names, *_scalar_head(run), *validation, "recipe"], rows)


def reasons_table(run: Run) -> str:
    """Count why candidates are infeasible or failed, the most frequent first; empty where all went well."""
    counts = Counter(
        (event.state, event.reason or "a constraint is not met")
        for owner, event in run.state.of_split("search").items()
        if isinstance(owner, int) and event.state != "feasible"
    )
    # Equal counts in the order of their text: the page does not depend on the order of the journal's workers.
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [_row([reason, state, str(count)]) for (state, reason), count in common[:_MAX_REASONS]]
    left = sum(count for _, count in common[_MAX_REASONS:])
    if left:
        rows.append(_row(["other reasons", "", str(left)]))
    return _table(["reason", "state", "candidates"], rows, kind="words") if rows else ""


def _scalar_head(run: Run) -> list[str]:
    """Return the heading of the scalarised objective; none where it is the one objective itself."""
    plain_one = len(run.state.objectives) == 1 and isinstance(run.config.search.scalarize, str)
    return [] if plain_one else [scalar_name(run)]


def _scalar_cells(run: Run, owner: CandidateId, split: Split) -> list[str]:
    value = run.value(owner, split)
    return ["" if value is None else number(value)] * len(_scalar_head(run))


def _row(cells: Iterable[str], *, marked: bool = False) -> str:
    start = '<tr class="best">' if marked else "<tr>"
    return start + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _breakable(text: str) -> str:
    parts = ((piece.rstrip(), " " if piece[-1].isspace() else "") for piece in pieces(text))
    return "<wbr>".join(f"<span>{escape(word)}</span>{space}" for word, space in parts)


def _table(head: Sequence[str], rows: Iterable[str], kind: str = "numbers") -> str:
    first = "<tr>" + "".join(f"<th>{_breakable(cell)}</th>" for cell in head) + "</tr>"
    start = f'<div class="wide"><table class="{kind}"><thead>{first}</thead><tbody>'
    return "\n".join([start, *rows, "</tbody></table></div>"])
