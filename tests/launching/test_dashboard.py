"""The Grafana dashboard asks for metrics that a run serves, for all of them, and by labels that they have."""

from __future__ import annotations

import json
import re
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from evomerge.run import coordinator, exporters
from evomerge.run.exporters import MetricsServer
from evomerge.run.session import start
from tests.launching.files import CLUSTER, ROOT
from tests.run.small import analytic_executor, small_search, write_problem

OF_PROMETHEUS = {"instance", "le"}
"""Labels that Prometheus adds, and that of a histogram's buckets."""
Served = dict[str, set[str]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what a small run that is mirrored serves."""
    config = small_search(write_problem(tmp_path_factory.mktemp("problem")), evaluations=8)
    pages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters, "EVERY_S", 0.0)
        patch.setattr(coordinator, "LOOK_S", 0.0)
        made = MetricsServer.__enter__

        def entered(server: MetricsServer) -> MetricsServer:
            ports.append(server.port)
            return made(server)

        def look(figures: Any) -> None:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics", timeout=10) as answer:
                pages.append(answer.read().decode())

        ports: list[int] = []
        patch.setattr(MetricsServer, "__enter__", entered)
        run = tmp_path_factory.mktemp("runs") / "run"
        start(
            config, run, executor=analytic_executor, observer=look, metrics="0", mirror=f"memory://{uuid.uuid4().hex}"
        )
    return pages[-1]


@pytest.fixture(scope="module")
def served(page: str) -> Served:
    """Return the labels of every name that can be asked for."""
    found: Served = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def dashboard() -> Any:
    return json.loads((CLUSTER / "grafana.json").read_text())


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every PromQL expression with the legend of its curve; the prefix is that of the coordinator's own page."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("${prefix}", ""), target["legendFormat"]


def names(expression: str) -> list[str]:
    """Return the metrics of an expression: what stands before a selector, or begins like one of ours."""
    return re.findall(r"([a-zA-Z_:][\w:]*)(?=\s*[{\[])|(?<![\w:])(evomerge_\w+)", expression)


def labels(expression: str, legend: str) -> set[str]:
    """Return the labels by which an expression selects and groups, and that its legend shows."""
    groups = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    grouped = {label.strip() for group in groups for label in group.split(",")}
    selected = {
        label for inside in re.findall(r"{([^}]*)}", expression) for label in re.findall(r"(\w+)\s*[=!]", inside)
    }
    return grouped | selected | set(re.findall(r"{{(\w+)}}", legend))


def test_every_expression_asks_for_metrics_and_labels_that_exist(served: Served) -> None:
    for expression, legend in expressions():
        asked = {first or second for first, second in names(expression)}
        assert asked, expression
        assert asked <= set(served), expression
        known = set.union(*(served[name] for name in asked)) | OF_PROMETHEUS
        assert labels(expression, legend) <= known, expression
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


def test_counters_are_seen_by_their_growth_or_as_totals_and_buckets_as_quantiles() -> None:
    for expression, _ in expressions():
        if "_bucket" in expression:
            assert re.match(r"histogram_quantile\(0\.\d+, sum by \(le, \w+\) \(rate\(", expression)
        if "rate(" in expression:
            assert all(
                first.endswith(("_total", "_bucket", "_sum", "_count")) for first, _ in names(expression) if first
            )


def test_every_metric_is_shown(page: str) -> None:
    families = {family.name for family in text_string_to_metric_families(page)}
    assert len(families) >= 11
    shown = " ".join(expression for expression, _ in expressions())
    assert not [name for name in families if not re.search(rf"\b{name}(_total|_bucket)?\b", shown)]


def test_a_wrong_name_would_be_seen(served: Served) -> None:
    found = names('sum by (state) (rate(evomerge_evaluation_total{instance=~"$instance"}[5m])) / evomerge_bussy')
    asked = {first or second for first, second in found}
    assert asked == {"evomerge_evaluation_total", "evomerge_bussy"}
    assert not asked & set(served)


def test_the_variables_are_those_that_the_panels_use() -> None:
    board = dashboard()
    known = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([board["panels"], board["templating"]]))) - {"__all"}
    assert used == known
    query = next(variable["query"] for variable in board["templating"]["list"] if variable["name"] == "instance")
    assert query == "label_values(${prefix}evomerge_hypervolume, instance)"


def test_panels_have_each_their_place_and_number() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)


def test_the_page_of_metrics_lists_them_all(page: str) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}" in text, name
