"""Metrics: what the journal knows is right at any moment and after a resume; a token decides who may read it."""

from __future__ import annotations

import contextlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from evomerge.cluster import ExecutorConfig
from evomerge.cluster._session import Session
from evomerge.errors import ConfigError
from evomerge.run import coordinator, exporters
from evomerge.run.config import RunConfig
from evomerge.run.events import Evaluated
from evomerge.run.exporters import MetricsServer, Monitor, RayMetrics
from evomerge.run.journal import read_journal
from evomerge.run.metrics import BUCKETS_S, Histogram, Metric, Tally, measure
from evomerge.run.session import resume, start
from evomerge.run.state import RunState, fold
from evomerge.run.view import load_run
from tests.run.small import analytic_executor, small_search, write_problem

Values = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return small_search(write_problem(tmp_path_factory.mktemp("problem")), evaluations=24)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    start(config, path, executor=analytic_executor)
    return path


def state_of(path: Path) -> RunState:
    return fold(read_journal(path / "journal.jsonl"))


def values(metrics: tuple[Metric, ...]) -> Values:
    """Return every plain value by metric and label, and of histograms the number and the sum."""
    found: Values = {}
    for metric in metrics:
        for key, value in metric.values.items():
            if isinstance(value, Histogram):
                found[f"{metric.name}_count", key] = sum(value.counts)
                found[f"{metric.name}_sum", key] = value.total
            else:
                found[metric.name, key] = value
    return found


def scraped(text: str) -> Values:
    """Return a page's values by name and first label; buckets left out."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def get(server: MetricsServer, path: str = "/metrics", **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())


def test_the_values_are_those_that_status_shows(run: Path) -> None:
    view = load_run(run)
    status = view.status()
    found = values(measure(view.state, {"busy_share": 0.5, "waiting": 3, "workers_ready": 2, "note": "x"}))
    counts = {state: found["evomerge_evaluations_total", state] for state in ("feasible", "infeasible", "failed")}
    assert sum(counts.values()) == status["evaluations"]["done"]
    assert counts["infeasible"] == status["evaluations"]["infeasible"] > 0
    assert found["evomerge_hypervolume", ""] == status["hypervolume"]
    best = {key: value for (name, key), value in found.items() if name == "evomerge_best"}
    assert best == status["best"]
    assert found["evomerge_busy_share", ""] == 0.5
    assert found["evomerge_queue_depth", ""] == 3
    assert found["evomerge_workers", "ready"] == 2
    assert ("evomerge_workers", "starting") not in found
    seconds = sum(value for (name, _), value in found.items() if name == "evomerge_stage_seconds_sum")
    assert seconds == pytest.approx(view.state.worker_seconds)


def test_before_anything_happened_there_are_zeros_and_no_guesses() -> None:
    found = values(measure(RunState(), {}))
    assert found["evomerge_hypervolume", ""] == 0.0
    assert found["evomerge_evaluations_total", "feasible"] == 0
    assert not any(name in ("evomerge_best", "evomerge_busy_share", "evomerge_mirror_behind") for name, _ in found)


@given(st.data())
def test_looking_often_or_once_comes_to_the_same(run: Path, data: st.DataObject) -> None:
    events = read_journal(run / "journal.jsonl")
    looks = data.draw(st.sets(st.integers(0, len(events) - 1)))
    state, tally, seen = RunState(), Tally(), []
    for index, event in enumerate(events):
        state.apply(event)
        if index in looks:
            seen += tally.update(state)
    seen += tally.update(state)
    assert measure(state, {}, tally) == measure(state, {})
    assert seen == [event for event in events if isinstance(event, Evaluated)]


@given(st.lists(st.floats(0, 1e5), min_size=1))
def test_a_histogram_counts_each_observation_in_its_bucket(seconds: list[float]) -> None:
    histogram = Histogram()
    for value in seconds:
        histogram = histogram.observed(value)
    buckets, total = exporters._cumulated(histogram)
    bounds = [*BUCKETS_S, float("inf")]
    assert [count for _, count in buckets] == [sum(value <= bound for value in seconds) for bound in bounds]
    assert [float(bound) for bound, _ in buckets] == bounds
    assert total == pytest.approx(sum(seconds))


def test_failures_are_counted_by_their_kind(config: RunConfig, run: Path) -> None:
    state = state_of(run)
    event = next(event for event in state.evaluations.values() if isinstance(event.candidate, int))
    first = len(state.asked)
    for number, update in enumerate(
        (
            {"state": "failed", "reason": "quarantined: it killed two"},
            {"state": "failed", "reason": "error: x"},
            {"reused_from": 1},
        ),
        start=first,
    ):
        state.apply(state.asked[0].model_copy(update={"candidate": number, "recipe_id": event.recipe_id}))
        state.apply(event.model_copy(update={"candidate": number, **update}))
    found = values(measure(state, {}))
    assert found["evomerge_quarantined_total", ""] == 1
    assert found["evomerge_evaluations_total", "failed"] == 2
    assert found["evomerge_evaluations_total", "reused"] == 1


def test_a_run_serves_its_metrics_while_it_runs_and_they_go_on_after_a_resume(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "EVERY_S", 0.0)
    monkeypatch.setattr(coordinator, "LOOK_S", 0.0)
    pages: list[Values] = []
    ports: list[int] = []
    entered = MetricsServer.__enter__

    def noted(server: MetricsServer) -> MetricsServer:
        ports.append(server.port)
        return entered(server)

    monkeypatch.setattr(MetricsServer, "__enter__", noted)

    def look(figures: Any) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}/metrics", timeout=10) as answer:
            pages.append(scraped(answer.read().decode()))

    first = small_search_with(config, evaluations=6)
    start(first, tmp_path / "run", executor=analytic_executor, metrics="0", observer=look)
    before = pages[-1]
    assert done(before) >= 6
    pages.clear()
    resume(tmp_path / "run", ["budget.evaluations=12"], executor=analytic_executor, metrics="0", observer=look)
    assert done(pages[0]) >= done(before)
    assert done(pages[-1]) == 12
    assert scraped_plain(pages[-1]) == scraped_plain(values(measure(load_run(tmp_path / "run").state, {})))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}/metrics", timeout=10)


def small_search_with(config: RunConfig, *, evaluations: int) -> RunConfig:
    return config.model_copy(update={"budget": config.budget.model_copy(update={"evaluations": evaluations})})


def done(page: Values) -> float:
    return sum(page["evomerge_evaluations_total", state] for state in ("feasible", "infeasible", "failed"))


def scraped_plain(page: Values) -> Values:
    """Return what the journal alone decides, but for the seconds of the validation that comes after the last look."""
    kept = ("evomerge_evaluations_total", "evomerge_hypervolume", "evomerge_best", "evomerge_retries_total")
    return {key: value for key, value in page.items() if key[0] in kept}


def test_both_formats_of_prometheus_are_served(run: Path) -> None:
    with MetricsServer("0") as server:
        Monitor(state_of(run), [server])
        text = get(server)
        accept = "application/openmetrics-text; version=1.0.0"
        strict = list(open_metrics(get(server, Accept=accept)))
    assert scraped(text)["evomerge_evaluations_total", "feasible"] > 0
    names = {family.name for family in strict}
    assert {"evomerge_evaluations", "evomerge_stage_seconds", "evomerge_best"} <= names


def status_of(server: MetricsServer, path: str = "/metrics", **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, path, **headers)
    with caught.value:
        return caught.value.code


def test_there_is_only_one_page() -> None:
    with MetricsServer("127.0.0.1:0") as server:
        assert get(server, "/metrics?x=1") == ""
        assert status_of(server, "/") == 404
        assert status_of(server, "/metrics/../journal.jsonl") == 404


def test_with_a_token_nobody_reads_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(exporters.TOKEN, "s3cret")
    with MetricsServer("0.0.0.0:0") as server:
        assert get(server, Authorization="Bearer s3cret") == ""
        assert status_of(server) == 401
        assert status_of(server, Authorization="Bearer s3creT") == 401
        assert status_of(server, Authorization="Bearer é") == 401
        assert status_of(server, Authorization="s3cret") == 401
        assert status_of(server, "/journal.jsonl") == 401


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.com:9464"])
def test_an_address_that_others_reach_needs_a_token(address: str, config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set EVOMERGE_METRICS_TOKEN to the token that Prometheus is to send"):
        start(config, tmp_path / "run", executor=analytic_executor, metrics=address)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["", "host", "70000", "9464:", "-1", "1.2.3.4:x", "²"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--metrics .*: expected PORT or HOST:PORT"):
        MetricsServer(address)


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with (
        MetricsServer("0") as server,
        pytest.raises(ConfigError, match=r"cannot listen there \(Address already in use"),
    ):
        MetricsServer(str(server.port))


def test_an_exporter_that_fails_is_left_out_and_ends_nothing(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    calls: list[int] = []

    def failing(metrics: Any, new: Any) -> None:
        calls.append(len(new))
        raise RuntimeError("no agent")

    monitor = Monitor(state_of(run), [failing], clock=iter(range(100)).__next__)
    for _ in range(5):
        monitor.look({})
    assert len(calls) == 1
    assert "no agent" in caplog.text


class FakeRay:
    """Ray's three kinds of metrics, which remember what they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray.util import metrics as ray_metrics

        self.values: Values = {}
        self.observed: list[tuple[str, float]] = []
        for kind, add in {"Gauge": self._set, "Counter": self._inc, "Histogram": self._observe}.items():
            monkeypatch.setattr(ray_metrics, kind, self._factory(add))

    def _factory(self, add: Callable[..., None]) -> Any:
        def create(name: str, description: str, tag_keys: tuple[str, ...], **more: Any) -> Any:
            def record(value: float, tags: dict[str, str]) -> None:
                assert tuple(tags) == tag_keys
                add((name, next(iter(tags.values()), "")), value)

            return type(
                name, (), {"set": staticmethod(record), "inc": staticmethod(record), "observe": staticmethod(record)}
            )

        return create

    def _set(self, key: tuple[str, str], value: float) -> None:
        self.values[key] = value

    def _inc(self, key: tuple[str, str], value: float) -> None:
        assert value > 0, "Ray refuses it"
        self.values[key] = self.values.get(key, 0.0) + value

    def _observe(self, key: tuple[str, str], value: float) -> None:
        self.observed.append((key[1], value))


def test_ray_is_told_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch)
    events = read_journal(run / "journal.jsonl")
    state = RunState()
    times = iter(float(2 * number) for number in range(10_000))
    for event in events[:9]:
        state.apply(event)
    monitor = Monitor(state, [RayMetrics()], clock=times.__next__)
    for event in events[9:]:
        state.apply(event)
        monitor.look({"busy_share": 0.25})
    wanted = values(measure(state, {"busy_share": 0.25}))
    assert fake.values == {
        key: value
        for key, value in wanted.items()
        if "stage_seconds" not in key[0] and (value or "total" not in key[0])
    }
    assert len(fake.observed) == sum(value for (name, _), value in wanted.items() if name.endswith("_count"))


@pytest.mark.ray
def test_ray_exports_them_under_its_prefix(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    session = Session(ExecutorConfig(kind="ray", workers=1))
    try:
        Monitor(state_of(run), [RayMetrics()])
        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        end = time.monotonic() + 60
        text = ""
        while "ray_evomerge_stage_seconds_count" not in text:
            assert time.monotonic() < end, "it was never exported"
            time.sleep(0.5)
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
                text = answer.read().decode()
    finally:
        session.close()
    wanted = values(measure(state_of(run), {}))
    found = {
        (sample.name, sample.labels.get("state", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for name, key in (("evomerge_evaluations_total", "feasible"), ("evomerge_hypervolume", "")):
        assert found[f"ray_{name}", key] == pytest.approx(wanted[name, key])
