"""What the executor concludes from what Ray says: nodes, losses, room, and what a node sees."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from evomerge.cluster import ExecutorConfig, _nodes
from evomerge.cluster._losses import loss_of
from evomerge.cluster._nodes import POLL_S, SILENT_S, Node, Nodes, autoscaled
from evomerge.cluster._placement import misfit, worker_options
from evomerge.cluster._usage import Usage
from evomerge.cluster._visible import check, marks
from evomerge.errors import ConfigError

NODE_ID = "de4b2d301e5407e9a3541695011f667a0ad87b45698ee9b49e696fa9"
RAN_OUT = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: \
fde52e90) was 7.30GB used / 23.54GB limit (0.310217)
OOM kill reason: Memory usage 7602204672B exceeded threshold"""


def node(name: str, *, cpus: float = 8, gpus: float = 0, draining: bool = False) -> Node:
    return Node(name, cpus, gpus, draining)


def test_ray_running_out_of_memory_is_named() -> None:
    loss = loss_of(OutOfMemoryError(RAN_OUT))
    assert loss.reason == "was ended by Ray, because its machine ran out of memory (7.30GB of 23.54GB in use)"
    assert (loss.preempted, loss.node_died, loss.unreachable) == (False, False, False)


def test_a_worker_out_of_reach_is_not_known_to_be_lost() -> None:
    assert loss_of(ActorUnavailableError("RpcError: RPC error: Socket closed", None)).unreachable
    context = import_module("ray.core.generated.common_pb2").ActorDiedErrorContext
    told = context(error_message="The actor died because its node has died. Node Id: 12", actor_id=b"0" * 16)
    died = loss_of(ActorDiedError(told))
    assert (died.unreachable, died.node_died, died.reason) == (False, True, "died with its node")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"autoscaler_report": {"active_nodes": {f"node_{NODE_ID}": 1}}}, False),
        ({"autoscaler_report": {"active_nodes": {"ray.head.default": 1}}}, True),
        ({"autoscaler_report": {"active_nodes": {}}}, False),
        ({}, False),
    ],
    ids=["none", "v1", "not yet", "no report"],
)
def test_an_autoscaler_is_known_by_the_kinds_of_its_nodes(status: dict[str, Any], expected: bool) -> None:
    assert autoscaled(status) is expected


def test_no_room_is_one_sentence_that_says_what_is_lacking() -> None:
    two = ExecutorConfig(gpus_per_worker=2)
    assert misfit(two, [node("a", gpus=1), node("b", gpus=2)], own_cluster=False) is None
    assert "no node has the 2 GPUs of a worker (there is none at all)" in str(
        misfit(two, [node("a")], own_cluster=False)
    )
    spanning = misfit(two, [node("a", gpus=1), node("b", gpus=1)], own_cluster=False)
    assert "(the largest has 1); add such a node, or lower executor.gpus_per_worker" in str(spanning)
    assert "64 CPUs" in str(misfit(ExecutorConfig(cpus_per_worker=64), [node("a")], own_cluster=False))
    assert misfit(ExecutorConfig(cpus_per_worker=64), [node("a")], own_cluster=True) is None
    assert misfit(two, [], own_cluster=False) is None  # nothing is known


@pytest.mark.parametrize("gpus", [1.5, 2.25])
def test_a_worker_has_whole_gpus_or_a_share_of_one(gpus: float) -> None:
    assert ExecutorConfig(gpus_per_worker=0.5).gpus_per_worker == 0.5
    with pytest.raises(ValueError, match="expected a whole number, or a fraction below 1"):
        ExecutorConfig(gpus_per_worker=gpus)


def test_a_local_cluster_has_as_many_workers_as_were_asked_for_whatever_its_cpus() -> None:
    config = ExecutorConfig(cpus_per_worker=3)
    assert worker_options(config, own_cluster=True)["num_cpus"] == 0
    assert worker_options(config, own_cluster=False)["num_cpus"] == 3


class Head:
    """A head that answers or does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: list[Node] | None = [node("own"), node("a")]
        context = SimpleNamespace(get_node_id=lambda: "own", gcs_address="head:6379")
        monkeypatch.setattr("ray.get_runtime_context", lambda: context)
        monkeypatch.setattr(_nodes, "_client", lambda _: self)
        monkeypatch.setattr(_nodes, "_ask", lambda head: head.answer())

    def answer(self) -> tuple[list[Node], bool]:
        if self.nodes is None:
            raise ConnectionError
        return self.nodes, False


def test_a_silent_head_is_waited_for_before_it_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch)
    nodes = Nodes(100.0)
    head.nodes = None
    nodes.poll(100.0 + POLL_S - 0.1)  # it was asked a moment ago
    assert nodes.answering
    nodes.poll(200.0)
    assert not nodes.answering
    nodes.poll(200.0 + SILENT_S - 0.1)
    assert not nodes.gone(200.0 + SILENT_S - 0.1)
    assert nodes.gone(200.0 + SILENT_S)
    head.nodes = [node("own")]
    nodes.poll(200.0 + SILENT_S + POLL_S)
    assert nodes.answering
    assert not nodes.gone(1e6)


def test_a_head_of_another_cluster_at_the_same_address_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch)
    nodes = Nodes(0.0)
    head.nodes = [node("other")]
    nodes.poll(POLL_S)
    assert nodes.gone(POLL_S)


def test_a_node_that_was_told_to_go_is_remembered_when_it_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch)
    nodes = Nodes(0.0)
    assert not nodes.taken_away("a")
    head.nodes = [node("own"), node("a", draining=True)]
    nodes.poll(POLL_S)
    assert nodes.draining("a")
    head.nodes = [node("own")]
    nodes.poll(2 * POLL_S)
    assert nodes.taken_away("a")
    assert nodes.lost("a")
    assert not nodes.draining("a")


def test_a_version_of_ray_without_these_answers_is_worked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of the nodes then, and nothing is concluded."""
    Head(monkeypatch)
    monkeypatch.setattr(_nodes, "_client", lambda _: None)
    nodes = Nodes(0.0)
    nodes.poll(1e6)
    assert nodes.answering
    assert not any([nodes.gone(1e6), nodes.draining("a"), nodes.lost("a"), nodes.autoscaled])


def test_a_difference_in_what_a_node_sees_is_one_sentence(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "suite.yaml"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    file.write_text("tasks: []")
    expected = marks([folder, file])
    check(expected, "node-1")
    (folder / "deeper").mkdir()
    (folder / ".lock").touch()
    check(expected, "node-1")
    (folder / "config.json").write_text("{ }")
    with pytest.raises(ConfigError, match=rf"{folder}: the node node-1 sees other content there"):
        check(expected, "node-1")
    (folder / "config.json").write_text("{}")
    file.unlink()
    with pytest.raises(ConfigError, match=rf"{file}: the node node-1 does not see it; put it in a folder that all"):
        check(expected, "node-1")


def test_the_busy_share_is_scoring_over_being_ready() -> None:
    """Two workers ready for 10 s, one of them scores for 5 s as it says and the other for 10 s until now: 15 of 20."""
    usage = Usage(4.0, 0.0)
    usage.workers(0.0, ready=2, held=3)
    usage.began("a", 0.0)
    usage.ended("a", 6.0, 5.0)
    usage.began("b", 0.0)
    assert usage.figures(10.0) == {"busy_share": 0.75, "gpu_seconds": 120.0}
    usage.ended("b", 10.0)
    usage.workers(10.0, ready=0, held=0)
    assert usage.figures(99.0) == {"busy_share": 0.75, "gpu_seconds": 120.0}
