"""Where a run's metrics go: a `/metrics` of the coordinator's own, and Ray's metrics."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self, cast

from evomerge.errors import ConfigError
from evomerge.run.events import Evaluated
from evomerge.run.metrics import BUCKETS_S, Figures, Histogram, Metric, Tally, measure
from evomerge.run.state import RunState

TOKEN = "EVOMERGE_METRICS_TOKEN"  # noqa: S105  the variable's name
EVERY_S = 1.0
"""Metrics are measured no more often."""
_log = logging.getLogger(__name__)


class Exporter(Protocol):
    """Takes a run's metrics."""

    def __call__(self, metrics: Sequence[Metric], new: Sequence[Evaluated]) -> None:
        """Take the metrics as they are now, and the evaluations since the last call."""
        ...


class Monitor:
    """Measures a run for its exporters; an exporter that fails is left out from then on.

    Args:
        state: of the run; read on the coordinator's thread alone.
        exporters: where metrics go.
        clock: monotonic seconds.
    """

    def __init__(
        self, state: RunState, exporters: Sequence[Exporter], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._exporters = list(exporters)
        self._clock = clock
        self._tally = Tally()
        self._due_s = clock()
        self.look({})

    def look(self, figures: Figures) -> None:
        """Measure the run where it is time."""
        now = self._clock()
        if not self._exporters or now < self._due_s:
            return
        self._due_s = now + EVERY_S
        new = self._tally.update(self._state)
        metrics = measure(self._state, figures, self._tally)
        for exporter in tuple(self._exporters):
            try:
                exporter(metrics, new)
            except Exception as error:  # noqa: BLE001  a run does not end because nobody could look at it
                self._exporters.remove(exporter)
                _log.warning("metrics: no longer given to %s (%s)", type(exporter).__name__, error)


class MetricsServer:
    """Serves `/metrics` to Prometheus, from `with` to its end.

    Args:
        address: `PORT` (then of this machine alone) or `HOST:PORT`; where others can reach it, they need the token in
            the environment variable `EVOMERGE_METRICS_TOKEN`. Port 0 takes a free one.

    Raises:
        ConfigError: for an address that is none or not free, or a missing token.
    """

    def __init__(self, address: str) -> None:
        host, port = _parsed(address)
        token = os.environ.get(TOKEN, "")
        if not token and not _is_loopback(host):
            raise ConfigError(
                f"--metrics {address}: others than this machine could read them; set {TOKEN} to the token that "
                "Prometheus is to send, or leave out the host"
            )
        self._metrics: Sequence[Metric] = ()
        try:
            self._server = _Server((host, port), token, self._page)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"--metrics {address}: cannot listen there ({reason}); give another address") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="evomerge-metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def __call__(self, metrics: Sequence[Metric], new: Sequence[Evaluated]) -> None:
        """Serve these from now on."""
        del new
        self._metrics = metrics

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics in Prometheus' classes."""
        yield from map(_family, self._metrics)

    def _page(self, accept: str) -> tuple[bytes, str]:
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(cast("Any", self)), content_type


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], token: str, page: Callable[[str], tuple[bytes, str]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.token = token
        self.page = page
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    """Seconds that a client may keep a connection without a word."""

    def do_GET(self) -> None:
        """Answer one request."""
        server = cast("_Server", self.server)
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if server.token and not hmac.compare_digest(given, f"Bearer {server.token}".encode()):
            self._answer(401, b"the token of EVOMERGE_METRICS_TOKEN is needed\n")
        elif self.path.split("?")[0] != "/metrics":
            self._answer(404, b"there is only /metrics\n")
        else:
            self._answer(200, *server.page(self.headers.get("Accept", "")))

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it
        """Say nothing: scrapes are no news."""


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"--metrics {address}: expected PORT or HOST:PORT, such as 9464 or 0.0.0.0:9464")
    return host.strip("[]") or "127.0.0.1", int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _family(metric: Metric) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    family: Any = kinds[metric.kind](metric.name, metric.help, labels=[metric.label] if metric.label else [])
    for key, value in metric.values.items():
        labels = [key] if metric.label else []
        if isinstance(value, Histogram):
            family.add_metric(labels, *_cumulated(value))
        else:
            family.add_metric(labels, value)
    return family


def _cumulated(value: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return a histogram as Prometheus has it: how many observations are up to each bound, and their sum."""
    counts = [sum(value.counts[: place + 1]) for place in range(len(value.counts))]
    bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, counts, strict=True)], value.total


class RayMetrics:
    """Gives metrics to Ray, whose machines export them with its own, under `ray_` and their name.

    Ray must be connected. What the journal counted before this session counts here too.
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._totals: dict[tuple[str, str], float] = {}

    def __call__(self, metrics: Sequence[Metric], new: Sequence[Evaluated]) -> None:
        """Record the metrics as they are now."""
        for metric in metrics:
            if metric.kind == "histogram":
                self._observe(metric, new)
            for key, value in metric.values.items():
                tags = {metric.label: key} if metric.label else {}
                if isinstance(value, Histogram):
                    continue
                if metric.kind == "gauge":
                    self._of(metric).set(value, tags)
                elif (grown := value - self._totals.get((metric.name, key), 0.0)) > 0:
                    self._of(metric).inc(grown, tags)
                    self._totals[metric.name, key] = value

    def _observe(self, metric: Metric, new: Sequence[Evaluated]) -> None:
        """Record single observations, which is how Ray takes them."""
        for event in new:
            if event.reused_from is None:
                for stage, seconds in event.seconds.items():
                    self._of(metric).observe(seconds, {metric.label: stage})

    def _of(self, metric: Metric) -> Any:
        from ray.util import metrics as ray_metrics

        if metric.name not in self._known:
            keys = (metric.label,) if metric.label else ()
            more = {"boundaries": list(BUCKETS_S)} if metric.kind == "histogram" else {}
            create = getattr(ray_metrics, metric.kind.capitalize())
            self._known[metric.name] = create(metric.name, description=metric.help, tag_keys=keys, **more)
        return self._known[metric.name]
