from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from evomerge.recipe import Recipe, SourceInfo
from evomerge.report.figures import (
    plot_coefficient_heatmap,
    plot_hypervolume_history,
    plot_objective_history,
    plot_optimization_history,
    plot_pareto_front,
)
from evomerge.run.replay import source_infos
from evomerge.run.view import Run
from tests.report.conftest import DIGITS, LETTERS, MakeRun, never_feasible

INFOS = {alias: SourceInfo(content_hash=alias * 8, num_layers=3) for alias in ("base", "math", "ja")}


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def points(trace: Any) -> list[tuple[float, float]]:
    return sorted(zip(trace.x, trace.y, strict=True))


def values(run: Run, candidates: Any, *axes: int) -> list[tuple[float, ...]]:
    return sorted(tuple(run.archive().entry(number).objectives[axis] for axis in axes) for number in candidates)


def feasible(run: Run) -> set[int]:
    return {entry.id for entry in run.archive().entries if entry.feasible}


def test_the_front_and_the_dominated_candidates_of_two_objectives_are_those_of_the_archive(two: Run) -> None:
    figure = plot_pareto_front(two)
    front = two.archive().front()
    [dominated], [on_front], [best] = (
        traces(figure, name) for name in ("dominated", "front", f"best on {two.selection_split}")
    )
    assert points(on_front) == values(two, front, 0, 1)
    assert points(dominated) == values(two, feasible(two) - set(front), 0, 1)
    assert points(best) == values(two, [two.best()], 0, 1)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == (LETTERS, DIGITS)


def test_the_staircase_falls_from_left_to_right(two: Run) -> None:
    [front] = traces(plot_pareto_front(two), "front")
    assert front.line.shape == "vh"
    assert list(front.x) == sorted(front.x)
    assert list(front.y) == sorted(front.y, reverse=True)


def test_references_stand_in_the_scatter_with_their_names_beside_them(two: Run) -> None:
    figure = plot_pareto_front(two)
    rows = {row["name"]: row["objectives"]["search"] for row in two.references() if "search" in row["objectives"]}
    means = {name: tuple(measured[key]["mean"] for key in (LETTERS, DIGITS)) for name, measured in rows.items()}
    sweep = [name for name in means if name.startswith("coefficient:")]
    assert points(traces(figure, "references")[0]) == sorted(means[name] for name in means if name not in sweep)
    path = traces(figure, "one coefficient for all")[0]
    assert list(zip(path.x, path.y, strict=True)) == [means[name] for name in sweep]
    written = ", ".join(annotation.text for annotation in figure.layout.annotations)
    assert all(name in written for name in means if name not in sweep)


def test_three_objectives_give_a_panel_a_pair_each_with_the_whole_front(three: Run) -> None:
    figure = plot_pareto_front(three)
    front = three.archive().front()
    drawn = sorted(points(trace) for trace in traces(figure, "front"))
    assert drawn == sorted(values(three, front, x, y) for x, y in ((0, 1), (0, 2), (1, 2)))
    assert sum(trace.showlegend for trace in traces(figure, "front")) == 1
    assert {trace.type for trace in figure.data} == {"scatter"}, "no panel may need WebGL"


def test_one_objective_is_shown_by_candidate(one: Run) -> None:
    figure = plot_pareto_front(one)
    drawn = dict(point for name in ("dominated", "front") for point in points(traces(figure, name)[0]))
    assert drawn == {entry.id: entry.objectives[0] for entry in one.archive().entries if entry.feasible}


def test_the_optimization_history_shows_the_best_so_far_of_the_feasible_candidates(two: Run) -> None:
    figure = plot_optimization_history(two)
    entries = two.archive().entries
    found = [np.mean(entry.objectives) if entry.feasible else -np.inf for entry in entries]
    expected = [(order, best) for order, best in enumerate(accumulate(found, max), start=1) if np.isfinite(best)]
    [line], [cloud] = traces(figure, "best so far"), traces(figure, "candidate")
    assert dict(points(line)) == pytest.approx(dict(expected))
    assert dict(points(cloud)) == pytest.approx({at: value for at, value in enumerate(found, 1) if np.isfinite(value)})


def test_infeasible_candidates_are_set_apart_whether_they_were_measured_or_not(make_run: MakeRun) -> None:
    run = make_run(LETTERS, DIGITS, constraints=(f"{LETTERS} >= 0.5",), evaluations=24)
    [cloud] = traces(plot_optimization_history(run), "infeasible")
    apart = [(order, entry) for order, entry in enumerate(run.archive().entries, 1) if not entry.feasible]
    assert list(cloud.x) == [order for order, _ in apart]
    measured = {order: np.mean(entry.objectives) for order, entry in apart if entry.objectives}
    assert 0 < len(measured) < len(apart)
    assert {x: y for x, y in points(cloud) if x in measured} == pytest.approx(measured)
    told = dict(zip(cloud.x, cloud.text, strict=True))
    assert all(told[order].endswith("not measured") for order, _ in apart if order not in measured)


def test_each_reference_is_a_line_and_no_two_of_their_names_overlap(two: Run) -> None:
    figure = plot_optimization_history(two)
    lines = sorted(shape.y0 for shape in figure.layout.shapes)
    single = [name for name in two.state.references if not name.startswith("coefficient:")]
    known = [value for name in single if (value := two.value(name, "search")) is not None]
    assert set(known) <= set(lines)
    assert len(lines) == len(known) + 1, "of the sweep, the best alone"
    low, high = figure.layout.yaxis.range
    plot_px = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    places = sorted(note.y for note in figure.layout.annotations)
    assert np.diff(places).min() * plot_px / (high - low) >= 14


def test_each_objective_has_its_own_panel_with_its_best_so_far(three: Run) -> None:
    figure, history = plot_objective_history(three), three.history()
    lines = traces(figure, "best so far")
    assert len(lines) == len({line.yaxis for line in lines}) == 3
    for index, line in enumerate(lines):
        known = history.best_per_objective[:, index]
        assert list(line.y) == known[~np.isnan(known)].tolist()


def test_the_hypervolume_history_ends_at_the_archives_hypervolume(two: Run) -> None:
    [line] = plot_hypervolume_history(two).data
    assert len(line.y) == len(two.archive().entries)
    assert line.y[-1] == pytest.approx(two.archive().hypervolume())


def test_figures_of_a_run_without_a_feasible_candidate_are_empty_and_do_not_fail(make_run: MakeRun) -> None:
    run = make_run(LETTERS, DIGITS, executor=never_feasible, evaluations=4)
    assert all(not trace.x for trace in plot_pareto_front(run).data)
    assert not traces(plot_optimization_history(run), "best so far")[0].x
    assert len(traces(plot_optimization_history(run), "infeasible")[0].x) == 4
    assert all(not trace.x for trace in plot_objective_history(run).data)
    assert set(plot_hypervolume_history(run).data[0].y) == {0.0}


Table = tuple[list[str], list[str], list[list[float | None]]]


def table(recipe: Recipe, infos: dict[str, SourceInfo] = INFOS) -> Table:
    """Returns the rows' labels, the columns' labels and the values of a heatmap."""
    figure = plot_coefficient_heatmap(recipe, infos, "weights")
    rows, columns = (list(axis.ticktext) for axis in (figure.layout.yaxis, figure.layout.xaxis))
    return rows, columns, [list(row) for row in figure.data[0].z]


def recipe(**keys: Any) -> Recipe:
    sources = {alias: {"model": f"zoo:{alias}"} for alias in INFOS}
    return Recipe.from_mapping({"recipe": 1, "sources": sources, "base": "base", **keys})


def test_the_heatmap_has_a_row_a_source_and_a_column_the_embeddings_each_layer_and_the_head() -> None:
    rows, columns, weights = table(
        recipe(
            blend={"method": "task_arithmetic", "weight": {"math": 0.5, "ja": -0.25}},
            head={"blend": {"weight": {"math": 1.0}}},
        )
    )
    assert columns == ["embeddings", "layer 0", "layer 1", "layer 2", "head"]
    assert rows == ["math", "ja"], "the base has no weight of its own"
    assert weights[0] == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert weights[1][:4] == [-0.25] * 4


def test_the_heatmap_has_a_row_a_module_where_modules_differ() -> None:
    blend = {"method": "task_arithmetic", "weight": 0.5}
    rows, _, weights = table(recipe(blend=blend, modules={"mlp": {"weight": 0.75}}))
    assert rows == [f"{alias} {module}" for alias in ("math", "ja") for module in ("attention", "mlp", "other")]
    assert weights[0] == [0.5] * 5
    assert weights[1] == [0.5, 0.75, 0.75, 0.75, 0.5]


def test_the_heatmap_of_slerp_shows_the_position_on_the_arc() -> None:
    sources = {alias: {"model": f"zoo:{alias}"} for alias in ("base", "math")}
    slerp = Recipe.from_mapping(
        {"recipe": 1, "sources": sources, "base": "base", "blend": {"method": "slerp", "t": 0.3}}
    )
    assert table(slerp) == (["math"], ["embeddings", "layer 0", "layer 1", "layer 2", "head"], [[0.3] * 5])


def test_a_source_that_takes_no_part_in_a_layer_has_no_weight_there() -> None:
    layers = [{"take": {"base": 0, "math": 0, "ja": 0}}, {"take": {"math": 1}}, {"take": {"base": 2, "math": 2}}]
    rows, _, weights = table(recipe(blend={"method": "task_arithmetic", "weight": 0.5}, layers=layers))
    by_row = dict(zip(rows, weights, strict=True))
    assert by_row["ja"] == [0.5, 0.5, None, None, 0.5]


def test_many_layers_keep_all_their_columns_but_not_all_their_names() -> None:
    infos = {alias: SourceInfo(content_hash=alias * 8, num_layers=80) for alias in INFOS}
    _, names, weights = table(recipe(blend={"method": "linear", "weight": 0.5}), infos)
    assert {len(row) for row in weights} == {82}
    assert len(names) <= 26
    assert (names[0], names[1], names[-1]) == ("embeddings", "0", "head")


@pytest.mark.parametrize(
    "space",
    [
        {"method": "linear", "groups": {"layers": "whole"}},
        {"method": "task_arithmetic", "groups": {"layers": "every", "modules": ["attention"], "head": True}},
        {"method": ["task_arithmetic", "ties", "dare_ties"], "groups": {"layers": 2}},
    ],
    ids=["whole model", "every layer, split modules", "choice of methods"],
)
def test_the_heatmap_shows_every_candidate_of_a_space(make_run: MakeRun, space: dict[str, Any]) -> None:
    run = make_run(LETTERS, evaluations=4, space=space)
    assert run.state.started is not None
    for candidate in run.state.asked:
        _, columns, weights = table(run.recipe(candidate), source_infos(run.state.started))
        assert len(columns) == 2 + run.state.started.sources["base"].num_layers
        assert all(value is not None for row in weights for value in row)
