"""Asking a Ray cluster for a sign of life, in a process of its own that can be given up.

Ray would go on trying to reach a cluster for minutes, and then end the process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib import import_module

from evomerge.cluster._joining import check_versions, has_token, token_error
from evomerge.errors import ConfigError

CONNECT_TIMEOUT_S = 5.0
"""How long a port may take to accept a connection."""
PROBE_TIMEOUT_S = 20.0
"""How long a cluster may take to answer, with the start of Python."""
_MARK = "evomerge-probe:"


def check_cluster(address: str) -> None:
    """Refuse a cluster that does not answer, wants another token, or runs other versions.

    Args:
        address: `auto` or `host:port`.

    Raises:
        ConfigError: saying which, and what to do.
    """
    cluster = f"executor.address: the Ray cluster at {address!r}"
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "token" and not has_token():
        raise token_error(cluster, "RAY_AUTH_MODE is `token` but there is none here")
    answer = _ask(address) if _port_open(address) else None
    if answer is not None and "refused" in answer and not mode and has_token():
        # Ray sends the token that is here only when it is told to before it is imported, and must not where the
        # cluster wants none.
        os.environ["RAY_AUTH_MODE"] = "token"
        answer = _ask(address)
    if answer is None:
        raise ConfigError(
            f"executor.address: no Ray cluster answers at {address!r}; start one with `ray start --head`, "
            "correct the address, or leave it out for a local cluster"
        )
    if "refused" in answer:
        raise token_error(cluster, "the one here is not its own" if has_token() else "there is none here")
    check_versions(cluster, answer)


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


def _ask(address: str) -> dict[str, str] | None:
    """Return what the cluster says about itself; None when nothing of Ray answers."""
    command = [sys.executable, "-m", "evomerge.cluster._probe", address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in answer.stdout.splitlines() if line.startswith(_MARK)]
    if not lines:
        return None
    found = json.loads(lines[-1].removeprefix(_MARK))
    return {str(key): str(value) for key, value in found.items()}


def _tell(address: str) -> None:
    """Print what the cluster says about itself."""
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray.exceptions import AuthenticationError

    try:
        client = import_module("ray._raylet").GcsClient(address=canonicalize_bootstrap_address_or_die(address))
        text = client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster", timeout=PROBE_TIMEOUT_S)
    except AuthenticationError:
        found = {"refused": "its token"}
    else:
        known = json.loads(text) if text else {}
        found = {key: known[key] for key in ("ray_version", "python_version") if key in known}
    print(_MARK + json.dumps(found))  # noqa: T201 - read by the process that asks


if __name__ == "__main__":
    _tell(sys.argv[1])
