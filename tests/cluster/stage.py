"""A cluster of several nodes on one machine, and coordinators in processes of their own: the stage of fault scenarios.

The process of the tests is not connected to Ray: it starts and kills nodes and coordinators and looks at files.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from evomerge.cluster import RayExecutor, ScorerFactory
from evomerge.cluster._session import _quiet_environment
from evomerge.errors import EvomergeError
from evomerge.run.config import RunConfig
from evomerge.run.problem import Problem
from evomerge.run.session import resume, start

LONGEST_S = 90.0
HEAVY = (
    "ray",
    "lm_eval.tasks",
    "datasets",
    "sacrebleu",
    "evomerge.merging",
    "evomerge.fitness._lm_eval",
    "cma",
    "moocore",
)
"""Imported once, before coordinators are forked, instead of by each of them."""
STORE_BYTES = 80_000_000
DETECTION = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""So that a silent node is found dead after seconds."""


class Nodes:
    """The nodes of a cluster: a head without workers, and nodes of one CPU and one (pretended) GPU each."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._leaving: set[str] = set()
        self._cluster = _head()

    @property
    def address(self) -> str:
        """`host:port` of the head."""
        return str(self._cluster.address)

    @property
    def ids(self) -> list[str]:
        """Ray's ids of the nodes, the oldest first."""
        return [str(node.node_id) for node in self._nodes]

    def add(self, count: int = 1) -> None:
        """Add nodes and wait until they are there."""
        for _ in range(count):
            self._nodes.append(self._start())
        self._cluster.wait_for_nodes()

    def restore(self, count: int) -> None:
        """Bring the number of nodes that stay to `count`."""
        for node_id in {*self.ids[count:], *self._leaving}:
            self.kill(node_id)
        if len(self.ids) < count:
            self.add(count - len(self.ids))

    def kill(self, node_id: str) -> None:
        """End a node as a power cut does."""
        node = self._node(node_id)
        self._nodes.remove(node)
        self._leaving.discard(node_id)
        self._cluster.remove_node(node, allow_graceful=False)

    def preempt(self, node_id: str, notice_s: float) -> None:
        """Tell a node that it will be taken away, as a cloud does."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        self._leaving.add(node_id)
        client = GcsClient(address=self.address)
        deadline_ms = int((time.time() + notice_s) * 1000)
        client.drain_node(node_id, autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "spot", deadline_ms)

    def processes(self, node_id: str) -> list[int]:
        """Return the process ids of a node: its own processes, and the workers on it."""
        own = [psutil.Process(process.pid) for _, process in self._node(node_id).live_processes()]
        return [process.pid for parent in own for process in (parent, *parent.children(recursive=True))]

    def workers(self, node_id: str) -> list[int]:
        """Return the process ids of the scoring processes on a node."""
        found = []
        for pid in self.processes(node_id):
            with suppress(psutil.NoSuchProcess):
                found += [pid] if psutil.Process(pid).name().startswith("ray::Worker") else []
        return found

    def restart(self) -> None:
        """End the head and all nodes at once, and start them again at the same address."""
        port, count = int(self.address.rsplit(":", 1)[1]), len(self._nodes)
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)
        for node_id in self.ids:
            self.kill(node_id)
        self.shutdown()
        self._cluster = _head(gcs_server_port=port)
        self.add(count)

    def shutdown(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()

    def _start(self, tries: int = 4) -> Any:
        settings = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE_BYTES}
        while True:
            try:
                return self._cluster.add_node(wait=False, **settings)
            except Exception:
                # Ray gives up after 30 s, which a busy machine may need.
                tries -= 1
                if not tries:
                    raise

    def _node(self, node_id: str) -> Any:
        return next(node for node in self._nodes if node.node_id == node_id)


def _head(**settings: Any) -> Any:
    from ray.cluster_utils import Cluster

    plain = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    return Cluster(initialize_head=True, head_node_args={**plain, "_system_config": DETECTION, **settings})


def prepare_environment() -> None:
    """Set what all processes of the cluster must share before any of them starts."""
    _quiet_environment()
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@dataclass(frozen=True, slots=True)
class Mirrored:
    """Where a run is copied to."""

    url: str
    variables: Mapping[str, str]
    """Of the environment: where the store is, and its credentials."""


def _coordinate(config: RunConfig, run: Path, factory: ScorerFactory, log: Path, mirrored: Mirrored | None) -> None:
    """Start a run or continue it: what a coordinator's process does."""
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)

        def executor(problem: Problem) -> RayExecutor:
            return RayExecutor(problem.config.executor, factory)

        mirror = None
        if mirrored is not None:
            os.environ.update(mirrored.variables)
            mirror = mirrored.url
        try:
            if (run / "config.yaml").exists():
                resume(run, config=config, executor=executor, mirror=mirror)
            else:
                start(config, run, executor=executor, mirror=mirror)
        except EvomergeError as error:
            sys.exit(f"{type(error).__name__}: {error}")  # to standard error, and exit code 1


class Coordinator:
    """A coordinator in a process of its own.

    Args:
        config: the search.
        run: the run folder; continued where it is there.
        factory: builds the scorer inside each worker.
        log: where it writes what it says.
        mirrored: where the run is copied to, if anywhere.
    """

    def __init__(
        self, config: RunConfig, run: Path, factory: ScorerFactory, log: Path, mirrored: Mirrored | None = None
    ) -> None:
        self._log = log
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, *HEAVY])
        self._process: BaseProcess = context.Process(target=_coordinate, args=(config, run, factory, log, mirrored))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition gives something true while the coordinator runs, and return it."""
        end = time.monotonic() + LONGEST_S
        while not (found := condition()):
            assert self.is_alive, f"it ended before {what}; it says {self.said!r}"
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.02)
        return found

    def kill(self) -> None:
        """End it as the kernel does, at once."""
        os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> tuple[int | None, str]:
        """Wait for its end; return its exit code and what it said."""
        self._process.join(LONGEST_S)
        assert not self.is_alive, f"it does not end; it says {self.said!r}"
        return self._process.exitcode, self.said

    def close(self) -> None:
        """End it if it runs."""
        if self.is_alive:
            self.kill()
        self._process.join()


def alive(pid: int) -> bool:
    """Tell whether a process is there, stopped ones too."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Stop processes inside the block: they keep their connections and say nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
