from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evomerge.recipe import Recipe, SourceInfo
from evomerge.report import render_report
from evomerge.report.figures import plot_coefficient_heatmap
from evomerge.report.route import is_route, plot_route, plot_route_population
from evomerge.run.view import Run
from tests.report.conftest import DIGITS, LETTERS, MakeRun

INFOS = {"a": SourceInfo("a" * 8, 3), "b": SourceInfo("b" * 8, 2)}
SOURCES: dict[str, Any] = {alias: {"model": f"zoo:{alias}"} for alias in INFOS}
HOPS = [("a", 0, 1.0), ("b", 1, 0.5), ("a", 0, -1.2), ("a", 2, 1.0)]


def recipe(hops: Any = HOPS, **keys: Any) -> Recipe:
    layers = [{"take": {alias: layer}, "scale": scale} for alias, layer, scale in hops]
    copied = {"blend": {"method": "linear", "weight": {"a": 1.0}}}
    data = {"recipe": 1, "sources": SOURCES, "layers": layers, "embeddings": copied, "head": copied}
    return Recipe.from_mapping({**data, **keys})


def trace(figure: Any, name: str) -> Any:
    [found] = [trace for trace in figure.data if trace.name == name]
    return found


def test_the_path_goes_through_the_lane_of_every_hops_layer() -> None:
    figure = plot_route(recipe(), INFOS)
    path, hops = trace(figure, "path"), trace(figure, "hops")
    # Three lanes for `a`, an empty one, two for `b`.
    assert list(path.x) == list(hops.x) == [0, 1, 2, 3]
    assert list(path.y) == list(hops.y) == [0, 5, 0, 2]
    assert list(hops.marker.color) == [1.0, 0.5, -1.2, 1.0]
    assert hops.marker.cmin == pytest.approx(-1.2)
    assert hops.marker.cmax == pytest.approx(3.2)
    assert list(hops.marker.symbol) == ["circle", "circle", "diamond", "circle"]
    assert hops.text[1] == "hop 1: layer 1 of b<br>scale 0.500"
    lanes = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert lanes == {0: "a 0", 1: "1", 2: "2", 4: "b 0", 5: "1"}


def test_sources_that_no_hop_takes_have_no_lane_and_equal_scales_no_colours() -> None:
    figure = plot_route(recipe([("b", 0, 1.0), ("b", 1, 1.0)]), INFOS)
    assert list(figure.layout.yaxis.ticktext) == ["b 0", "1"]
    assert isinstance(trace(figure, "hops").marker.color, str)


def test_a_blended_hop_shows_every_layer_that_it_takes() -> None:
    blended = {"take": {"a": 1, "b": 0}, "blend": {"method": "linear", "weight": 1.0}}
    figure = plot_route(recipe(layers=[{"take": {"a": 0}}, blended]), INFOS)
    assert list(trace(figure, "path").y) == [0, 1]
    assert list(trace(figure, "hops").y) == [0, 1, 4]
    assert list(trace(figure, "blend").y) == [1, 4, None]


def test_a_nested_recipe_is_a_source_with_lanes_of_its_own() -> None:
    inner = recipe([("a", 0, 1.0)] * 4).to_mapping()
    nested = recipe([("merged", 3, 1.0), ("a", 1, 1.0)], sources={**SOURCES, "merged": {"model": inner}})
    figure = plot_route(nested, INFOS)
    assert list(trace(figure, "path").y) == [3 + 1 + 3, 1]
    assert plot_coefficient_heatmap(nested, INFOS, "weights").data


def test_only_recipes_that_are_not_one_to_one_have_a_route() -> None:
    assert is_route(recipe(), INFOS)
    blend = {"method": "linear", "weight": 1.0}
    whole = [("a", layer, 1.0) for layer in range(3)]
    assert not is_route(recipe(whole, blend=blend), INFOS)
    assert not is_route(recipe(layers=None, sources={"a": SOURCES["a"]}, blend=blend), INFOS)
    assert is_route(recipe(whole[:2]), INFOS)
    assert is_route(recipe([*whole[:2], ("a", 2, 0.5)]), INFOS)


@pytest.fixture(scope="module")
def routed(make_run: MakeRun) -> Run:
    space = {"kind": "data_flow", "order": ["letters", "digits"], "repeats": 2}
    return make_run(LETTERS, DIGITS, evaluations=24, space=space, base=None)


def test_the_population_shows_how_often_each_layer_is_run(routed: Run) -> None:
    [heatmap] = plot_route_population(routed).data
    assert list(heatmap.x) == sorted(routed.state.asked)
    for column, candidate in enumerate(heatmap.x):
        layers = routed.recipe(candidate).layers or ()
        expected = Counter(item for layer in layers for item in layer.take.items())
        # Two lanes for `letters`, an empty one, two for `digits`, in the order of the search file.
        for lane, item in ((0, ("letters", 0)), (1, ("letters", 1)), (3, ("digits", 0)), (4, ("digits", 1))):
            assert heatmap.z[lane][column] == expected[item]


def test_many_candidates_share_columns(routed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.report.route._MAX_COLUMNS", 5)
    [single] = plot_route_population(routed).data
    assert list(single.x) == [0, 5, 10, 15, 20]
    mean = sum(len(routed.recipe(number).layers or ()) for number in range(5)) / 5
    assert sum(row[0] for row in single.z if row[0] is not None) == pytest.approx(mean)
    assert single.text[0][0].startswith("candidates 0 to 4<br>layer 0 of letters")


def test_the_report_of_a_search_for_routes_shows_them(routed: Run, two: Run, tmp_path: Path) -> None:
    page = render_report(routed)
    assert ('id="route-population"' in page, 'id="route"' in page, 'id="coefficients"' in page) == (True, True, False)
    assert page == render_report(Run(routed.folder.path))
    assert 'id="route' not in render_report(two)
