"""What the cluster's head says about its nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

POLL_S = 2.0
"""How often the head is asked; also how long it may take to answer."""
SILENT_S = 30.0
"""A head that has not answered for so long is gone. Ray's own nodes give it up after 60 s and end."""
_OWN_NAMES = "node_"
"""What a cluster without an autoscaler calls the kinds of its nodes: this, and the node's id."""


@dataclass(frozen=True, slots=True)
class Node:
    """A living machine of the cluster."""

    id: str
    cpus: float
    gpus: float
    draining: bool
    """It was told that it will be taken away."""


class Nodes:
    """The living nodes, as the head last told; asked from the coordinator's thread, and never for long.

    Args:
        now_s: on the caller's clock.
    """

    def __init__(self, now_s: float) -> None:
        import ray

        context = ray.get_runtime_context()
        self.own = context.get_node_id()
        """The coordinator's node."""
        self.alive: dict[str, Node] = {}
        self.autoscaled = False
        """Whether something adds nodes when there is no room."""
        self._client = _client(context.gcs_address)
        self._asked_s = now_s - POLL_S
        self._silent_since_s: float | None = None
        self._left: set[str] = set()
        self.poll(now_s)

    def poll(self, now_s: float) -> None:
        """Ask the head how things are, unless it was asked a moment ago."""
        if now_s - self._asked_s < POLL_S:
            return
        self._asked_s = now_s
        if self._client is None:
            return
        try:
            nodes, autoscaled = _ask(self._client)
        except Exception:  # noqa: BLE001 - whatever it is, the head did not answer
            self._silent_since_s = now_s if self._silent_since_s is None else self._silent_since_s
            return
        self._left |= {node.id for node in nodes if node.draining}
        self.alive, self.autoscaled, self._silent_since_s = {node.id: node for node in nodes}, autoscaled, None

    def next_poll_s(self) -> float:
        """Return when the head is to be asked again."""
        return self._asked_s + POLL_S

    @property
    def answering(self) -> bool:
        """Whether the head answered when it was last asked."""
        return self._silent_since_s is None

    def gone(self, now_s: float) -> bool:
        """Tell whether the head has been silent for too long, or the coordinator's own node has ended."""
        if self._silent_since_s is not None:
            return now_s - self._silent_since_s >= SILENT_S
        return bool(self.alive) and self.own not in self.alive

    def draining(self, node: str) -> bool:
        """Tell whether a node was told that it will be taken away."""
        return node in self.alive and self.alive[node].draining

    def taken_away(self, node: str) -> bool:
        """Tell whether a node is going, or has gone after it was told so."""
        return node in self._left or self.draining(node)

    def lost(self, node: str) -> bool:
        """Tell whether a node has ended."""
        return bool(node and self.alive) and node not in self.alive


def _client(address: str) -> Any:
    """Return a client of the head whose calls take a timeout; None where this version of Ray has none."""
    try:
        client = import_module("ray._raylet").GcsClient(address=address)
        return client if hasattr(client, "get_cluster_status") else None
    except Exception:  # noqa: BLE001 - private, so anything may have changed
        return None


def _ask(client: Any) -> tuple[list[Node], bool]:
    """Return the living nodes, and whether there is an autoscaler."""
    protocol = import_module("ray.core.generated.autoscaler_pb2")
    reply = protocol.GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=POLL_S))
    states = reply.cluster_resource_state.node_states
    nodes = [
        Node(
            id=state.node_id.hex(),
            cpus=state.total_resources.get("CPU", 0.0),
            gpus=state.total_resources.get("GPU", 0.0),
            draining=state.status == protocol.NodeStatus.DRAINING,
        )
        for state in states
        if state.status != protocol.NodeStatus.DEAD
    ]
    named = any(state.ray_node_type_name for state in states)
    if reply.autoscaling_state.autoscaler_state_version:
        return nodes, named
    text = client.internal_kv_get(b"__autoscaling_status", None, timeout=POLL_S)
    return nodes, autoscaled(json.loads(text) if text else {})


def autoscaled(status: Mapping[str, Any]) -> bool:
    """Tell from what the cluster's monitor writes whether it adds nodes: those have kinds with names of their own."""
    report = status.get("autoscaler_report") or {}
    return any(not kind.startswith(_OWN_NAMES) for kind in report.get("active_nodes") or {})
