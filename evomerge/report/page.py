"""The report: one self-contained HTML page, readable with no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge import __version__
from evomerge.errors import StateError
from evomerge.report import figures
from evomerge.run.events import CandidateId
from evomerge.run.replay import source_infos
from evomerge.run.storage import write_atomically
from evomerge.run.view import Json, Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b2733; margin: 2rem auto; max-width: 1080px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.lead { color: #52606d; margin-top: 0 }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #e4e7eb; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr.best td { background: #e3fafc } pre { background: #f5f7fa; padding: 1rem; overflow-x: auto; font-size: .85rem }
"""


def write_report(path: Path, out: Path) -> None:
    """Write the report of a run as one HTML file.

    Raises:
        StateError: when the run has nothing to show yet, or its journal is broken.
        StorageError: when the disk refuses.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, render_report(Run(path)).encode())


def render_report(run: Run) -> str:
    """Return the report of a run as HTML.

    Raises:
        StateError: when no candidate has been scored yet.
    """
    if not run.state.archives or not run.archive().entries:
        raise StateError(f"{run.folder.path}: no candidate has been scored yet, so there is nothing to report")
    status = run.status()
    best = run.best()
    parts = [
        f"<h1>{escape(run.config.name)}</h1>",
        f'<p class="lead">{escape(_summary(run, status))}</p>',
        "<h2>Best and references</h2>",
        _score_table(run, best),
        *_figures(run, best),
        f"<h2>The front ({status['front_size']} candidates)</h2>",
        _front_table(run, best),
    ]
    if best is not None:
        parts += [f"<h2>Recipe of candidate {best}</h2>", f"<pre>{escape(run.recipe(best).to_yaml())}</pre>"]
    parts.append(f'<p class="lead">Written by evomerge {__version__}.</p>')
    body = "\n".join(parts)
    title = escape(run.config.name)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _summary(run: Run, status: Json) -> str:
    counts = status["evaluations"]
    return (
        f"{counts['done']} candidates scored ({counts['infeasible']} infeasible, {counts['failed']} failed), "
        f"{run.config.search.searcher}, seed {run.config.search.seed}, {status['state']}; "
        f"best chosen on the {run.selection_split} split; hypervolume {status['hypervolume']:.4f}."
    )


def _figures(run: Run, best: CandidateId | None) -> Iterable[str]:
    drawn: list[Figure] = [
        figures.plot_pareto_front(run),
        figures.plot_optimization_history(run),
        figures.plot_objective_history(run),
        figures.plot_hypervolume_history(run),
    ]
    started = run.state.started
    if best is not None and started is not None:
        title = f"Coefficients of candidate {best}"
        drawn.append(figures.plot_coefficient_heatmap(run.recipe(best), source_infos(started), title))
    for index, figure in enumerate(drawn):
        # The library itself goes into the page once, with the first figure.
        yield figure.to_html(full_html=False, include_plotlyjs=index == 0, config={"displaylogo": False})


def _score_table(run: Run, best: int | None) -> str:
    """Tell, for each split, what the best candidate and every reference came to."""
    names = run.state.objectives
    owners: list[CandidateId] = [*([] if best is None else [best]), *run.state.references]
    rows = []
    for owner in owners:
        for split in ("search", "validation", "test"):
            event = run.state.evaluations.get((owner, split))
            if event is None or not event.objectives:
                continue
            cells = [_with_error(event.objectives[name], event.stderr.get(name)) for name in names]
            label = f"candidate {owner} (best)" if isinstance(owner, int) else owner
            scalar = run.value(owner, split)
            rows.append((label, split, *cells, "" if scalar is None else f"{scalar:.3f}"))
    return _table(("", "split", *names, "scalarised"), rows)


def _front_table(run: Run, best: int | None) -> str:
    names = run.state.objectives
    rows, marked = [], set()
    for index, row in enumerate(run.pareto()):
        cells = [_with_error(row["objectives"][name]["mean"], row["objectives"][name]["stderr"]) for name in names]
        validation = run.value(row["id"], "validation")
        scalar = run.value(row["id"], "search")
        if row["id"] == best:
            marked.add(index)
        rows.append(
            (
                str(row["id"]),
                *cells,
                "" if scalar is None else f"{scalar:.3f}",
                "" if validation is None else f"{validation:.3f}",
                row["recipe_id"][:12],
            )
        )
    return _table(("candidate", *names, "scalarised", "on validation", "recipe"), rows, marked)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: Iterable[int] = ()) -> str:
    chosen = set(marked)
    lines = ["<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for index, row in enumerate(rows):
        start = '<tr class="best">' if index in chosen else "<tr>"
        lines.append(start + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _with_error(mean: float, stderr: float | None) -> str:
    return f"{mean:.3f}" if stderr is None else f"{mean:.3f} ± {stderr:.3f}"
