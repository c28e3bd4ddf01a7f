from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import StateError
from evomerge.report import figures, render_report, write_report
from evomerge.run.events import Asked, Evaluated, Event, Finished, Reference, Started
from evomerge.run.view import Run
from tests.report.conftest import DIGITS, LETTERS, MakeRun, never_feasible, rewritten

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\"'&"


class Structure(HTMLParser):
    """Collects a page's tags with their attributes, its text outside of scripts, and its tables' rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: str | None = None
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
            if self._in_cell:
                self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(two: Run) -> str:
    return render_report(two)


def test_the_page_refers_to_nothing_outside_of_itself(page: str) -> None:
    structure = Structure(page)
    for tag, attributes in structure.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "a", "form", "source", "video")
        assert not attributes.keys() & {"src", "href", "srcset", "action", "data", "poster"}
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert not re.search(r"@import|url\(|https?:", style)


def test_the_page_forbids_the_browser_every_request(page: str) -> None:
    [policy] = [
        attributes["content"] or ""
        for tag, attributes in Structure(page).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert not re.search(r"https?:|\*|'self'", policy)
    assert "connect-src" not in rules
    assert rules["form-action"] == rules["base-uri"] == "'none'"


def test_the_figures_have_no_button_that_sends_data_away(page: str) -> None:
    configs = re.findall(r'"modeBarButtons":\s*\[\[(.*?)\]\]', page)
    assert len(configs) == 7
    for config in configs:
        assert set(re.findall(r'"(\w+)"', config)) <= {"toImage", "zoom2d", "pan2d", "resetScale2d"}


def test_the_library_is_in_the_page_once(page: str) -> None:
    sizes = [len(script) for script in re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)]
    assert sum(size > 1_000_000 for size in sizes) == 1


def test_the_same_run_gives_the_same_bytes(two: Run, tmp_path: Path) -> None:
    code = "import sys, pathlib, evomerge.report as r; r.write_report(*map(pathlib.Path, sys.argv[1:]))"
    pages = []
    for seed in ("1", "2"):
        out = tmp_path / seed / "page.html"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(two.folder.path), str(out)], check=True, env=environment)
        pages.append(out.read_bytes())
    assert pages[0] == pages[1] == render_report(two).encode()


def test_a_run_with_hostile_names_gives_a_page_of_the_same_structure(two: Run, page: str, tmp_path: Path) -> None:
    hostile = render_report(with_hostile_names(two, tmp_path / "hostile"))
    # A long heading may break where a short one does not.
    shapes = [
        [(tag, sorted(attributes)) for tag, attributes in Structure(text).tags if tag not in ("span", "wbr")]
        for text in (page, hostile)
    ]
    assert shapes[0] == shapes[1]
    assert f"letters {HOSTILE}" in Structure(hostile).text
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", hostile, re.DOTALL)
    assert len(scripts) == len(re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL))
    assert "<img" not in "".join(script for script in scripts if len(script) < 1_000_000)


def test_figures_show_hostile_names_as_text(two: Run, tmp_path: Path) -> None:
    run = with_hostile_names(two, tmp_path / "hostile")
    for plot in (figures.plot_pareto_front, figures.plot_optimization_history, figures.plot_objective_history):
        texts = list(strings(plot(run).to_plotly_json()))
        assert any("&lt;script&gt;" in text for text in texts)
        for text in texts:
            assert "<" not in text.replace("<br>", ""), "Plotly reads other tags as markup"


def strings(data: Any) -> Iterator[str]:
    """Yields every text in plain data."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            # Templates of hover boxes, which Plotly itself writes.
            if key not in ("template", "hovertemplate"):
                yield from strings(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from strings(value)


def with_hostile_names(run: Run, path: Path) -> Run:
    """Returns the run with markup in the names of its objectives, references and reasons."""

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {hostile(name): value for name, value in values.items()}

    def hostile(name: str) -> str:
        return f"{name.split('.', maxsplit=1)[0]} {HOSTILE}"

    def owner(candidate: Any) -> Any:
        return candidate if isinstance(candidate, int) else f"{candidate}{HOSTILE}"

    def change(event: Event) -> Event:
        if isinstance(event, Started):
            return event.model_copy(update={"objectives": tuple(map(hostile, event.objectives))})
        if isinstance(event, Reference):
            return event.model_copy(update={"name": owner(event.name)})
        if isinstance(event, Evaluated):
            measured = {key: renamed(getattr(event, key)) for key in ("objectives", "stderr", "samples")}
            reason = event.reason and f"{event.reason}{HOSTILE}"
            return event.model_copy(update={**measured, "candidate": owner(event.candidate), "reason": reason})
        return event

    return rewritten(run, path, change)


def test_the_front_table_lists_the_front_with_the_highest_scalarised_first(two: Run, page: str) -> None:
    rows = Structure(page).rows
    start = next(place for place, row in enumerate(rows) if row[0] == "candidate")
    front = rows[start + 1 : start + 1 + len(two.archive().front())]
    numbers = [int(row[0].split()[0]) for row in front]
    assert sorted(numbers) == list(two.archive().front())
    scalars = [two.value(number, "search") or 0.0 for number in numbers]
    assert scalars == sorted(scalars, reverse=True)
    for number, row in zip(numbers, front, strict=True):
        event = two.state.evaluations[number, "search"]
        assert row[1].startswith(f"{event.objectives[LETTERS]:.3f} ± {event.stderr[LETTERS]:.3f}")
        assert row[-1] == two.recipe_id(number)[:12]


def test_the_best_is_marked_on_the_front_or_told_to_be_elsewhere(two: Run, tmp_path: Path) -> None:
    before_validation = rewritten(two, tmp_path / "run", before_candidate(24))
    for run in (two, before_validation):
        structure, best = Structure(render_report(run)), run.best()
        marked = [row[0] for row in structure.rows if re.match(r"\d+ \(.*best.*\)", row[0])]
        on_front = best in run.archive().front()
        assert [int(label.split()[0]) for label in marked] == ([best] if on_front else [])
        assert (f"Candidate {best}, the best on the" in structure.text) != on_front
    assert before_validation.best() in before_validation.archive().front()


def test_best_and_references_stand_together_split_by_split_the_longest_sealed_first(two: Run, page: str) -> None:
    rows = Structure(page).rows
    groups = [row[0].split()[0] for row in rows if len(row) == 1]
    assert groups == ["validation", "search"]
    names = [row[0] for row in rows]
    assert names.count(f"candidate {two.best()} (best)") == 2
    assert "parent:letters" in names
    assert "uniform" in names


def test_the_page_has_every_plot_of_a_search_for_several_objectives(page: str) -> None:
    ids = [attributes.get("id") for tag, attributes in Structure(page).tags if tag == "div"]
    expected = ["pareto-front", "optimization-history", "objective-history", "hypervolume-history", "coefficients"]
    assert [name for name in ids if name in expected] == expected


def test_one_objective_needs_no_front_and_no_scalarised_column(one: Run) -> None:
    structure = Structure(render_report(one))
    ids = {attributes.get("id") for tag, attributes in structure.tags if tag == "div"}
    assert ids & {"pareto-front", "objective-history", "hypervolume-history"} == set()
    assert {"optimization-history", "coefficients"} <= ids
    assert "mean of the objectives" not in structure.text


def test_three_objectives_fit_on_the_page(three: Run) -> None:
    structure = Structure(render_report(three))
    assert [f"-{LETTERS} * {DIGITS}" in "".join(row) for row in structure.rows].count(True) == 2


def test_a_run_without_a_feasible_candidate_is_told_with_its_reasons_and_without_plots(make_run: MakeRun) -> None:
    structure = Structure(render_report(make_run(LETTERS, DIGITS, executor=never_feasible, evaluations=4)))
    assert "no feasible candidate yet" in structure.text
    assert ["the weights are not finite", "infeasible", "4"] in structure.rows
    assert not [tag for tag, _ in structure.tags if tag == "script"]


def test_an_interrupted_run_is_reported_as_far_as_it_came(two: Run, tmp_path: Path) -> None:
    run = rewritten(two, tmp_path / "run", before_candidate(9))
    assert run.condition() == "interrupted"
    text = Structure(render_report(run)).text
    assert "9 candidates scored" in text
    assert "interrupted" in text
    assert "chosen on the search split" in text


def before_candidate(limit: int) -> Any:
    """Returns a change of events that leaves out all that concerns later candidates, other splits and the end."""

    def change(event: Event) -> Event | None:
        late = isinstance(event, (Asked, Evaluated)) and isinstance(event.candidate, int) and event.candidate >= limit
        other = isinstance(event, Evaluated) and event.split != "search"
        return None if late or other or isinstance(event, Finished) else event

    return change


def test_a_run_with_nothing_scored_yet_is_an_error_and_writes_nothing(two: Run, tmp_path: Path) -> None:
    run = rewritten(two, tmp_path / "run", before_candidate(0))
    out = tmp_path / "reports" / "out.html"
    with pytest.raises(StateError, match="no candidate has been scored yet"):
        write_report(run.folder.path, out)
    assert not out.parent.exists()


def test_writing_makes_the_folder_and_replaces_the_page_before(two: Run, tmp_path: Path) -> None:
    out = tmp_path / "reports" / "out.html"
    write_report(two.folder.path, out)
    out.write_text("old")
    write_report(two.folder.path, out)
    assert out.read_text() == render_report(two)


def test_reporting_never_writes_into_the_run(two: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in two.folder.path.rglob("*")}
    render_report(Run(two.folder.path))
    assert {path: path.stat().st_mtime_ns for path in two.folder.path.rglob("*")} == before
