"""Workers over several nodes that come and go, on one machine: nodes are real, GPUs are pretended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from evomerge.cluster import ExecutorConfig, RayExecutor, ScorerFactory, ray_executor
from evomerge.cluster._session import Session
from evomerge.cluster._worker import Scored
from evomerge.cluster.types import Completed, Event, Retried
from evomerge.errors import ConfigError, EvaluationError
from evomerge.fitness.types import Evaluation, Minibatch, Split
from evomerge.recipe import Recipe
from evomerge.testing.executors import drain, finals, jobs
from evomerge.testing.scorers import Behaviour, FunctionScorer, attempts, faulty
from tests.cluster.stage import Nodes, frozen, prepare_environment

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head for the coordinator alone, and two nodes of one CPU and one GPU; this process is connected."""
    prepare_environment()
    nodes = Nodes()
    nodes.add(2)
    session = Session(ExecutorConfig(address=nodes.address))
    yield nodes
    session.close()
    nodes.shutdown()


@pytest.fixture(autouse=True)
def _two_nodes(nodes: Nodes) -> None:
    nodes.restore(2)


@contextmanager
def workers(
    nodes: Nodes, factory: ScorerFactory, visible: tuple[Path, ...] = (), **settings: object
) -> Iterator[RayExecutor]:
    config = ExecutorConfig.model_validate({"address": nodes.address, "workers": 2, **settings})
    executor = RayExecutor(config, factory, visible)
    try:
        yield executor
    finally:
        executor.close()


@contextmanager
def elsewhere(nodes: Nodes, hidden: Path) -> Iterator[None]:
    """Have a further node whose processes see an empty folder in the place of one."""
    command = ["ray", "start", f"--address={nodes.address}", "--num-cpus=1", "--num-gpus=1", "--block"]
    script = (
        f"mount -t tmpfs none {hidden} && exec {' '.join([sys.executable, '-m', 'ray.scripts.scripts', *command[1:]])}"
    )
    process = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


class Whereabouts:
    """A scorer whose facts say which GPUs its process sees, and whose reason for failing names its node."""

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:
        import ray

        time.sleep(0.5)  # so that each worker gets its share
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        return Evaluation(split, infeasible=f"{ray.get_runtime_context().get_node_id()}|{seen}")

    def close(self) -> None:
        pass


def whereabouts(events: list[Event]) -> set[tuple[str, str]]:
    """Return the node and the visible GPUs of every worker that answered."""
    found = set()
    for event in finals(events).values():
        assert isinstance(event, Completed), event
        node, _, seen = str(event.evaluation.infeasible).partition("|")
        found.add((node, seen))
    return found


def wait_for(executor: RayExecutor, condition: Callable[[], object], longest_s: float = 60.0) -> list[Event]:
    """Work until a condition holds, and return what happened."""
    events: list[Event] = []
    end = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {executor.status()}"
        events += executor.wait(0.1)
    return events


@pytest.mark.parametrize(("gpus", "seen"), [(1, "0"), (0, "")], ids=["by their GPUs", "without GPUs"])
def test_workers_spread_over_the_nodes(nodes: Nodes, gpus: int, seen: str) -> None:
    """One worker a node, each with its node's GPU, or with none to be seen."""
    with workers(nodes, Whereabouts, gpus_per_worker=gpus) as executor:
        for job in jobs(range(6)):
            executor.submit(job)
        assert whereabouts(drain(executor)) == {(node, seen) for node in nodes.ids}
        assert executor.status()["nodes"] == 3
        held = float(executor.status()["gpu_seconds"])
        assert held >= 3.0 if gpus else held == 0  # six jobs of half a second


@pytest.mark.soak
def test_a_node_that_appears_is_put_to_work(nodes: Nodes) -> None:
    """Three workers on two GPUs: the third waits, says so, and works as soon as a third node is there."""
    with workers(nodes, Whereabouts, workers=3, gpus_per_worker=1) as executor:
        for job in jobs(range(80)):
            executor.submit(job)
        wait_for(executor, lambda: executor.status()["workers_ready"] == 2)
        assert "1 workers wait for room" in str(executor.status()["note"])
        nodes.add()
        wait_for(executor, lambda: executor.status()["workers_ready"] == 3)


def test_no_more_workers_are_asked_for_than_jobs_wait(nodes: Nodes) -> None:
    """An autoscaler starts machines for whatever is pending."""
    with workers(nodes, Whereabouts, workers=50, gpus_per_worker=1) as executor:
        assert executor.wait(0.5) == []
        assert executor._crew.count("pending") == 0
        for job in jobs(range(4)):
            executor.submit(job)
        executor.wait(0.0)
        assert executor.capacity == 50
        assert executor._crew.count("pending") == 4


def test_the_loss_of_a_node_is_not_held_against_the_job(nodes: Nodes, tmp_path: Path) -> None:
    """A job that one lost worker would quarantine is scored elsewhere; the other node's job never notices."""
    factory = partial(faulty, tmp_path, {0: "hang_once", 1: "hang_once"})
    with workers(nodes, factory, gpus_per_worker=1, quarantine_after=1) as executor:
        for job in jobs(range(2)):
            executor.submit(job)
        events = wait_for(executor, lambda: attempts(tmp_path, 0) and attempts(tmp_path, 1))
        victim = next(node for node in nodes.ids if attempts(tmp_path, 0)[0] in nodes.workers(node))
        nodes.add()
        nodes.kill(victim)
        events += wait_for(executor, lambda: len(attempts(tmp_path, 0)) == 2)
        events += wait_for(executor, lambda: executor.open_jobs == 1)
        (retried,) = (event for event in events if isinstance(event, Retried))
        assert (retried.job.key, retried.attempt) == ("0/search", 1)
        assert "died with its node" in retried.reason
        assert isinstance(finals(events)["0/search"], Completed)


def test_a_node_that_is_taken_away_gets_no_more_jobs_and_costs_no_attempt(nodes: Nodes, tmp_path: Path) -> None:
    """After the notice its worker finishes; one that is cut off in the middle has not used up its only attempt."""
    plan: dict[int, Behaviour] = {0: "hang_once"}
    with workers(nodes, partial(faulty, tmp_path, plan), workers=1, gpus_per_worker=1, attempts=1) as executor:
        executor.submit(jobs([0])[0])
        events = wait_for(executor, lambda: attempts(tmp_path, 0))
        (pid,) = attempts(tmp_path, 0)
        victim = next(node for node in nodes.ids if pid in nodes.workers(node))
        nodes.preempt(victim, 60.0)
        events += wait_for(executor, lambda: executor._nodes.draining(victim))
        nodes.kill(victim)
        events += drain(executor)
        retried, completed = events
        assert isinstance(retried, Retried)
        assert isinstance(completed, Completed)

        survivor = nodes.ids[0]
        nodes.add()
        nodes.preempt(survivor, 60.0)
        wait_for(executor, lambda: executor._nodes.draining(survivor))
        for job in jobs(range(1, 4)):
            executor.submit(job)
        assert all(isinstance(event, Completed) and event.attempt == 1 for event in drain(executor))
        assert all(attempts(tmp_path, seed)[0] in nodes.workers(nodes.ids[-1]) for seed in range(1, 4))


def test_a_late_answer_counts_once(nodes: Nodes, tmp_path: Path) -> None:
    """A worker stops for longer than its time and goes on: its answer closes the job, the second one is dropped."""
    factory = partial(faulty, tmp_path, {0: "slow"}, slow_s=3.0)
    with workers(nodes, factory, gpus_per_worker=1, timeout_s=5.0) as executor:
        executor.submit(jobs([0])[0])
        events = wait_for(executor, lambda: attempts(tmp_path, 0))
        with frozen(attempts(tmp_path, 0)):
            events += wait_for(executor, lambda: len(attempts(tmp_path, 0)) == 2)
        events += drain(executor)
        retried, completed = events
        assert isinstance(retried, Retried)
        assert "gave no answer within 5 s" in retried.reason
        assert isinstance(completed, Completed)
        assert completed.attempt == 1
        for job in jobs(range(1, 5)):  # both workers go on, and the second answer is never heard of
            executor.submit(job)
        assert set(finals(drain(executor))) == {f"{seed}/search" for seed in range(1, 5)}
        wait_for(executor, lambda: executor._crew.count("ready") == 2 and all(slot.idle for slot in executor._crew))
        assert executor.status()["retried"] == 1


def test_an_answer_that_was_lost_on_its_way_is_asked_for_again(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks for a moment: the recipe is not scored twice, and no attempt is lost."""
    import ray
    from ray.exceptions import ActorUnavailableError

    broken = []

    def get(ref: ray.ObjectRef[object], **settings: object) -> object:
        answer = original(ref, **settings)
        if isinstance(answer, Scored) and not broken:
            broken.append(ref)
            raise ActorUnavailableError("the connection broke", None)
        return answer

    original = ray.get
    monkeypatch.setattr(ray, "get", get)
    with workers(nodes, partial(faulty, tmp_path), workers=1) as executor:
        executor.submit(jobs([0])[0])
        (completed,) = drain(executor)
        assert isinstance(completed, Completed)
        assert completed.attempt == 1
        assert len(attempts(tmp_path, 0)) == 1
        assert broken


@pytest.mark.soak
@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="a file system of its own for one node takes rights that this process lacks",
)
def test_a_node_that_does_not_see_a_folder_is_refused_in_one_sentence(nodes: Nodes, tmp_path: Path) -> None:
    """The second node's processes have a file system of their own over one folder."""
    seen, hidden = tmp_path / "seen", tmp_path / "hidden"
    for folder in (seen, hidden):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    with workers(nodes, Whereabouts, (seen, seen / "config.json"), gpus_per_worker=1) as executor:
        executor.submit(jobs([0])[0])
        assert isinstance(drain(executor)[0], Completed)
    nodes.kill(nodes.ids[0])
    with elsewhere(nodes, hidden), workers(nodes, Whereabouts, (seen, hidden), gpus_per_worker=1) as executor:
        for job in jobs(range(400)):  # until the other node is there
            executor.submit(job)
        with pytest.raises(
            ConfigError, match=rf"{hidden}: the node \S+ sees other content there than the coordinator; put"
        ):
            drain(executor)


def test_a_worker_that_no_node_has_room_for_is_refused_in_one_sentence(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "JOIN_S", 0.5)
    with workers(nodes, FunctionScorer, gpus_per_worker=4) as executor:
        executor.submit(jobs([0])[0])
        with pytest.raises(EvaluationError, match=r"no node has the 4 GPUs of a worker \(the largest has 1\)"):
            drain(executor)
        assert executor.open_jobs == 1
