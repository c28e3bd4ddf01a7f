"""The report: one self-contained HTML page, readable with no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge import __version__
from evomerge.errors import StateError
from evomerge.recipe import Recipe, SourceInfo
from evomerge.report import figures
from evomerge.report.labels import number
from evomerge.report.style import TITLE_PX
from evomerge.report.tables import front_table, reasons_table, score_table
from evomerge.run.replay import source_infos
from evomerge.run.skill_map import skill_map
from evomerge.run.storage import write_atomically
from evomerge.run.view import Json, Run
from evomerge.spaces import PiecewiseSpace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b2733; margin: 2rem auto; max-width: 1080px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem } p { margin: .2rem 0 .8rem } p.lead, p.note { color: #52606d }
p.note { font-size: .9rem; max-width: 50rem } div.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #e4e7eb; white-space: nowrap }
thead th { white-space: normal; max-width: 13rem; vertical-align: bottom } thead th span { white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: .5rem }
table.words td:first-child { white-space: normal }
tr.group th { padding-top: 1rem; color: #52606d; font-weight: 600; text-align: left }
tr.best td { background: #e3fafc; font-weight: 600 }
pre { background: #f5f7fa; padding: 1rem; overflow-x: auto; font-size: .85rem; max-height: 36rem }
"""
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)
"""The browser itself refuses every request: nothing of the page needs one."""
# Named one by one: the default set has a button that sends the figure's data to a server.
_BUTTONS = ["toImage", "zoom2d", "pan2d", "resetScale2d"]
_PLOTLY = {"displaylogo": False, "responsive": True, "modeBarButtons": [_BUTTONS]}


@dataclass(frozen=True, slots=True)
class _Section:
    """A figure of the page; its heading stands in the page instead of the figure."""

    key: str
    heading: str
    note: str
    figure: Figure


def write_report(path: Path, out: Path) -> None:
    """Write the report of a run as one HTML file.

    Raises:
        StateError: when the run has nothing to show yet, or its journal is broken.
        StorageError: when the disk refuses.
    """
    page = render_report(Run(path))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.encode())


def render_report(run: Run) -> str:
    """Return the report of a run as HTML; the same journal gives the same text.

    Raises:
        StateError: when no candidate has been scored yet.
    """
    if not run.state.archives or not run.archive().entries:
        raise StateError(f"{run.folder.path}: no candidate has been scored yet, so there is nothing to report")
    status, best = run.status(), run.best()
    parts = [
        f"<h1>{escape(run.config.name)}</h1>",
        f'<p class="lead">{escape(_summary(run, status, best))}</p>',
        "<h2>Best and references</h2>",
        score_table(run, best),
    ]
    if best is not None:
        parts += [*_figures(run, best), *_front(run, status, best)]
    reasons = reasons_table(run)
    if reasons:
        parts += ["<h2>Infeasible and failed candidates</h2>", reasons]
    if best is not None:
        parts += [f"<h2>Recipe of candidate {best}</h2>", f"<pre>{escape(run.recipe(best).to_yaml())}</pre>"]
    parts.append(_note(f"Written by evomerge {__version__}."))
    return _document(run.config.name, "\n".join(parts))


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _summary(run: Run, status: Json, best: int | None) -> str:
    counts = status["evaluations"]
    scored = _counted(counts["done"])
    parts = [
        f"{scored} scored, {counts['infeasible']} infeasible and {counts['failed']} failed among them",
        f"{run.config.search.searcher}, seed {run.config.search.seed}, {status['state']}",
    ]
    if best is None:
        parts.append("no feasible candidate yet, so there is no front and no best")
    else:
        parts.append(f"best: candidate {best}, chosen on the {run.selection_split} split")
    return "; ".join(parts) + "."


def _counted(count: int) -> str:
    return f"{count} candidate{'' if count == 1 else 's'}"


def _front(run: Run, status: Json, best: int) -> list[str]:
    size, single = status["front_size"], len(run.state.objectives) == 1
    heading = "The highest" if single else "The front"
    note = "Search split, the best first; the recipe is told by the first digits of its identity."
    if best not in run.archive().front():
        note += f" Candidate {best}, the best on the {run.selection_split} split, is not among them."
    title = f"<h2>{heading} ({_counted(size)})</h2>"
    return [title, _note(note), front_table(run, best)]


def _sections(run: Run, best: int) -> Iterator[_Section]:
    several = len(run.state.objectives) > 1
    if several:
        note = "Every feasible candidate on the search split; higher is better on every axis."
        yield _Section("pareto-front", "Pareto front", note, figures.plot_pareto_front(run))
    note = "Each evaluation's value and the best so far, on the search split."
    yield _Section("optimization-history", "Optimization history", note, figures.plot_optimization_history(run))
    # With one objective these would show the same curve again.
    if several:
        yield _Section("objective-history", "Each objective", "", figures.plot_objective_history(run))
        point = ", ".join(number(value) for value in run.archive().reference or ())
        note = f"What the front dominates above the point ({point}): {number(run.archive().hypervolume())} at the end."
        yield _Section("hypervolume-history", "Hypervolume history", note, figures.plot_hypervolume_history(run))
    yield from _skill_sections(run)
    if run.state.started is not None:
        yield from _recipe_sections(run, best, source_infos(run.state.started))


def _skill_sections(run: Run) -> Iterator[_Section]:
    """Yield who can do what, where candidates were scored sample by sample."""
    try:
        skills = skill_map(run)
    except StateError:
        return  # one candidate, or documents that differ from generation to generation
    names = ", ".join(f"{name} ({count})" for name, count in skills.sizes.items())
    first = skills.pairs[0]
    note = (
        f"What is left when candidates compete for samples of {names}: each member's share of every sample. A dark "
        f"cell is a sample that few others solve. Most by each other gain candidates {skills.members[first.first]} and "
        f"{skills.members[first.second]}: together they reach {number(first.union)}, {number(first.gain)} more than "
        "the better one."
    )
    yield _Section("skill-map", "Skill map", note, figures.plot_skill_map(skills))
    note = "Coverage: what any member can do. Entropy: how much members differ, 0 where all solve the same samples."
    yield _Section("diversity", "Coverage and entropy", note, figures.plot_diversity_history(skills))


def _recipe_sections(run: Run, best: int, infos: Mapping[str, SourceInfo]) -> Iterator[_Section]:
    """Yield what the best recipe is: its route, where it has one, and the coefficients of what it blends."""
    if isinstance(run.space, PiecewiseSpace):
        heading = f"Mixture of candidate {best}"
        note = "Each source's weight along the model: tensors by name, each in row-major order."
        individual = run.space.individual(run.state.asked[best].genome)
        yield _Section("mixture", heading, note, figures.plot_pieces(run.space, individual, heading))
        return
    recipe, routed = run.recipe(best), figures.is_route(run.recipe(best), infos)
    if run.config.space.kind != "parameter":
        note = "How often each layer is run, candidate by candidate in the order in which they were asked."
        yield _Section("route-population", "Layers in use", note, figures.plot_route_population(run))
    if routed:
        heading = f"Route of candidate {best}"
        note = (
            "The layers that the hidden stream passes, from left to right. Colour: the factor on the stream that "
            "enters the layer, white for 1; diamonds: negative ones."
        )
        yield _Section("route", heading, note, figures.plot_route(recipe, infos, heading))
        nested = ((alias, source.model) for alias, source in recipe.sources.items())
        blends = {f" of source {alias}": model for alias, model in nested if isinstance(model, Recipe)}
        if any(len(layer.take) > 1 for layer in recipe.layers or ()):
            blends = {"": recipe, **blends}
    else:
        blends = {"": recipe}
    for index, (owner, blend) in enumerate(blends.items()):
        heading = f"Coefficients{owner} of candidate {best}"
        note = (
            f"{_methods(blend)}. Each source's share as the recipe has it, before any normalisation or scale. "
            "Grey: the source takes no part."
        )
        key = "coefficients" if index == 0 else f"coefficients-{index}"
        yield _Section(key, heading, note, figures.plot_coefficient_heatmap(blend, infos, heading))


def _methods(recipe: Recipe) -> str:
    blend = recipe.blend
    return f"Method {blend.method}" if blend is not None and blend.method else "Methods as in the recipe below"


def _figures(run: Run, best: int) -> Iterator[str]:
    for index, section in enumerate(_sections(run, best)):
        yield f"<h2>{escape(section.heading)}</h2>"
        if section.note:
            yield _note(section.note)
        section.figure.update_layout(title=None, margin_t=section.figure.layout.margin.t - TITLE_PX)
        # The library itself goes into the page once, with the first figure; a fixed id keeps the page's bytes the same.
        yield section.figure.to_html(full_html=False, include_plotlyjs=index == 0, config=_PLOTLY, div_id=section.key)
