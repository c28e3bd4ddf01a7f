"""The connection to Ray: a local cluster of our own, or one that runs already."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import secrets
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from evomerge.cluster._joining import names_token
from evomerge.cluster._probe import check_cluster
from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.faults import one_line
from evomerge.errors import ConfigError, EvaluationError

OBJECT_STORE_BYTES = 100_000_000
"""Only recipes and scores pass through Ray: a small store does, and fits the small /dev/shm of a container."""
RECONNECT_S = 7 * 86400
"""How long Ray may look for a head that is gone: it would end this process after a minute; we say so and stop."""
SHUTDOWN_S = 15.0
"""How long leaving a cluster that is gone may take."""


class Session:
    """A connected Ray. `close` ends a cluster that we started and leaves every other one running.

    Args:
        config: the address, and what the workers need.

    Raises:
        ConfigError: when no cluster answers at the address, or it cannot be joined.
        EvaluationError: when no local cluster can be started.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        _quiet_environment()
        self.place = "the local Ray cluster" if config.address is None else f"the Ray cluster at {config.address}"
        self._connected_here = not _connected()
        self.own = self._connected_here and config.address is None
        """Whether the cluster was started for this executor alone."""
        if not self._connected_here:
            return
        if config.address is None:
            _start_local(config)
        else:
            check_cluster(config.address)  # before Ray is imported: it reads the environment then
            _join(config.address)

    def close(self, *, gone: bool = False) -> None:
        """Disconnect; a cluster that we started ends. `gone`: the cluster does not answer any more."""
        if self._connected_here:
            self._connected_here = False
            with _sigterm_kept():
                _leave(gone=gone)


def _connected() -> bool:
    """Tell whether this process is connected to a cluster."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _quiet_environment() -> None:
    """Set what Ray reads when it is imported; values that the user has set stay."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints a paragraph for every worker that dies, even with log_to_driver=False; we report those.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(RECONNECT_S))


def _leave(*, gone: bool) -> None:
    """Disconnect. Where the head has stopped, Ray waits for it for ever: then the process ends without Ray."""
    import ray

    if not gone:
        ray.shutdown()
        return
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(SHUTDOWN_S)
    if thread.is_alive():
        atexit.unregister(ray.shutdown)
        atexit.register(_end)


def _end() -> None:
    """End a process that failed because its cluster is gone: Ray's threads would crash it on its way out."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(1)


def _options() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": "ERROR", "namespace": f"evomerge-{uuid.uuid4().hex}"}


def _start_local(config: ExecutorConfig) -> None:
    import ray

    # Any program of this machine can reach the cluster and would run code in it, so Ray asks for a token, unless
    # RAY_AUTH_MODE says otherwise. It would write that token to the home folder; one that lives in the environment
    # of our own processes is enough.
    if not names_token():
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

    try:
        with _sigterm_kept():
            ray.init(address=address, **_options())
    except Exception as error:
        raise ConfigError(
            f"executor.address: the Ray cluster at {address!r} cannot be joined: {one_line(str(error))}"
        ) from error


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
