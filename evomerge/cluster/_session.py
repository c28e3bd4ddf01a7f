"""The connection to Ray: a local cluster of our own, or one that runs already."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.faults import one_line
from evomerge.errors import ConfigError, EvaluationError

OBJECT_STORE_BYTES = 100_000_000
"""Only recipes and scores pass through Ray: a small store does, and fits the small /dev/shm of a container."""
CONNECT_TIMEOUT_S = 5.0
"""How long a port may take to accept a connection."""
PROBE_TIMEOUT_S = 20.0
"""How long a cluster may take to answer, with the start of Python; Ray itself would go on trying for minutes."""


class Session:
    """A connected Ray. `close` ends a cluster that we started and leaves every other one running.

    Args:
        config: the address, and what the workers need.

    Raises:
        ConfigError: when no cluster answers at the address.
        EvaluationError: when no local cluster can be started.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        _quiet_environment()
        import ray

        self.place = "the local Ray cluster" if config.address is None else f"the Ray cluster at {config.address}"
        self._connected_here = not ray.is_initialized()
        if not self._connected_here:
            return
        if config.address is None:
            _start_local(config)
        else:
            _join(config.address)

    def close(self) -> None:
        """Disconnect; a cluster that we started ends."""
        if self._connected_here:
            self._connected_here = False
            import ray

            with _sigterm_kept():
                ray.shutdown()


def worker_environment(config: ExecutorConfig) -> dict[str, str]:
    """Return the environment variables of a worker process."""
    variables = {
        # Without it every worker starts as many threads as the machine has cores.
        "OMP_NUM_THREADS": str(max(1, math.floor(config.cpus_per_worker))),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.gpus_per_worker == 0:
        # Ray hides no GPU from a worker that asked for none (ray#54868).
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def _quiet_environment() -> None:
    """Set what Ray reads when it is imported; values that the user has set stay."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints a paragraph for every worker that dies, even with log_to_driver=False; we report those.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")


def _options() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": "ERROR", "namespace": f"evomerge-{uuid.uuid4().hex}"}


def _start_local(config: ExecutorConfig) -> None:
    import ray

    # Any program of this machine can reach the cluster and would run code in it, so Ray asks for a token, unless
    # RAY_AUTH_MODE says otherwise. It would write that token to the home folder; one that lives in the environment
    # of our own processes is enough.
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        with _sigterm_kept(), _loopback_only():
            ray.init(
                address="local",  # not RAY_ADDRESS: left out means a cluster of our own
                num_cpus=max(1, math.ceil(config.workers * config.cpus_per_worker)),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **_options(),
            )
    except Exception as error:
        raise EvaluationError(
            f"the local Ray cluster did not start ({one_line(str(error))}); "
            "`executor: {kind: inline}` works without one"
        ) from error


def _join(address: str) -> None:
    import ray

    _probe(address)
    try:
        with _sigterm_kept():
            ray.init(address=address, **_options())
    except Exception as error:
        raise ConfigError(
            f"executor.address: the Ray cluster at {address!r} cannot be joined: {one_line(str(error))}"
        ) from error


def _probe(address: str) -> None:
    """Refuse an address where no cluster answers; Ray would go on trying, and then end the process."""
    if not (_port_open(address) and _healthy(address)):
        raise ConfigError(
            f"executor.address: no Ray cluster answers at {address!r}; start one with `ray start --head`, "
            "correct the address, or leave it out for a local cluster"
        )


def _port_open(address: str) -> bool:
    """Tell at once whether anything listens at `host:port`; `auto` is left to Ray."""
    if address == "auto":
        return True
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            return True
    except (OSError, OverflowError):
        return False


def _healthy(address: str) -> bool:
    """Ask for a sign of life, in a process of its own that can be given up."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    if address != "auto":
        command += ["--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the caller's SIGTERM handler: `ray.init` puts its own in its place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # The system's default would end the process at once; Ray's own, which shuts down in order, is better.
        if threading.current_thread() is threading.main_thread() and callable(before):
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Let a local cluster listen on 127.0.0.1 alone.

    Ray does so by itself on macOS and Windows; on Linux it replaces a loopback address by the machine's own,
    unless this switch says that the cluster has one node only.
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if before is None:  # another version of Ray: the token still protects the cluster
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
