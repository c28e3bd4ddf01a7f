"""Whole searches on a cluster of several nodes, and everything that goes wrong there.

After each fault no evaluation is lost, none counts twice, the journal verifies, and the search has found exactly what
the same search finds in one process where nothing happens.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evomerge.run.events import Asked, Evaluated, Event, Finished, Retried
from evomerge.run.mirror_restore import restore
from evomerge.run.mirror_store import MirrorStore
from evomerge.run.replay import verify
from evomerge.run.state import RunState, fold
from tests.cluster.play import EVALUATIONS, VICTIM, Play, Search, full
from tests.cluster.scripted import Act, Script, ScriptedScorer
from tests.cluster.stage import Nodes, frozen, prepare_environment

pytestmark = pytest.mark.ray

NOTICED_S = 3.0
"""After so long a coordinator has seen that a node drains."""
RAY: dict[str, Any] = {"kind": "ray", "workers": 2, "gpus_per_worker": 1}


@dataclass(frozen=True)
class Scenario:
    """A fault: what it does to the run, and what it may cost."""

    strike: Callable[[Play], None]
    act: Act | None = None
    """What the victim does to its worker."""
    executor: Mapping[str, Any] = field(default_factory=dict)
    retries: int | None = 1
    """How often the victim is given out again; None where chance has a part in it."""
    failure: str | None = None
    """What the journal says of the victim, where it has no score."""
    says: str = ""
    """What the last coordinator writes."""
    soak: bool = False
    """Whether it is left to `make soak`."""


def nothing_else(play: Play) -> None:
    """What the victim does is enough."""
    play.coordinate()


def the_worker_is_killed(play: Play) -> None:
    play.coordinate()
    os.kill(play.attempt().pid, signal.SIGKILL)


def the_worker_answers_second(play: Play) -> None:
    play.coordinate()
    with frozen([play.attempt().pid]):
        play.script.release()
        assert play.outcome().attempt == 2


def the_worker_answers_late_and_yet_first(play: Play) -> None:
    play.coordinate()
    with frozen([play.attempt().pid]):
        play.attempt(2)
    play.script.release(1)
    assert play.outcome().attempt == 1
    play.script.release(2)


def the_node_is_killed(play: Play) -> None:
    play.coordinate()
    play.nodes.kill(play.attempt().node)


def the_node_falls_silent_and_comes_back(play: Play) -> None:
    play.coordinate()
    node = play.attempt().node
    with frozen(play.nodes.processes(node)):
        play.script.release()
        assert play.outcome().attempt == 2
    play.nodes.kill(node)


def the_node_is_preempted_before_the_answer(play: Play) -> None:
    play.coordinate()
    node = play.attempt().node
    play.nodes.preempt(node, notice_s=20)
    time.sleep(NOTICED_S)
    play.nodes.kill(node)


def the_node_is_preempted_after_the_answer(play: Play) -> None:
    play.coordinate()
    node = play.attempt().node
    play.nodes.preempt(node, notice_s=60)
    time.sleep(NOTICED_S)
    before = play.script.all_attempts()
    play.script.release()
    play.until(lambda: len(play.script.all_attempts()) > len(before) + 5, "scoring elsewhere")
    later = set(play.script.all_attempts()) - set(before)
    assert node not in {attempt.node for attempt in later}
    play.nodes.kill(node)


def all_nodes_are_replaced(play: Play) -> None:
    play.coordinate()
    node = play.attempt().node
    idle = next(other for other in play.nodes.ids if other != node)
    play.nodes.add()
    play.nodes.kill(idle)
    play.nodes.kill(node)
    # An idle worker whose node has died is found out when it is given a job: that may be a second retry.
    assert play.attempt(2).node in play.nodes.ids


def the_coordinator_is_killed(play: Play) -> None:
    first = play.coordinate()
    play.attempt()
    first.kill()
    play.coordinate()


def the_coordinator_and_a_node_are_killed_at_once(play: Play) -> None:
    first = play.coordinate()
    node = play.attempt().node
    first.kill()
    play.nodes.kill(node)
    play.coordinate()


def the_head_is_restarted(play: Play) -> None:
    first = play.coordinate()
    play.attempt()
    play.nodes.restart()
    code, said = first.ended()
    assert code == 1
    assert re.search(r"^EvaluationError: the Ray cluster at .* is gone", said, re.MULTILINE), said
    play.coordinate()


def the_disk_is_full(play: Play) -> None:
    disk = play.disk()
    first = play.coordinate()
    play.attempt()
    with full(disk, first.pid):
        play.script.release()
        code, said = first.ended()
    assert code == 1
    refused = r"StorageError: .* failed \((No space left on device|File too large)\); .* then resume the run\n"
    assert re.fullmatch(refused, said), said
    play.coordinate()


def the_mirror_is_out_of_reach(play: Play) -> None:
    server = play.mirror()
    coordinator = play.coordinate()
    play.attempt()
    server.stop()
    play.script.release()
    play.until(lambda: isinstance(play.events()[-1], Finished), "the end of the search")
    play.until(lambda: coordinator.said, "a warning")
    server.start()
    coordinator.ended()
    again = play.run.with_name("again")
    again.mkdir()
    assert play.mirrored is not None
    assert restore(MirrorStore(play.mirrored.url), again) == len(play.events())
    assert verify(again) == replace(verify(play.run), run="again")


SCENARIOS = {
    "nothing happens": Scenario(nothing_else, retries=0, soak=True),
    "worker killed": Scenario(the_worker_is_killed, "hold_once"),
    "worker silent, answers too late": Scenario(the_worker_answers_second, "hold_once", {"timeout_s": 3}, soak=True),
    "worker silent, answers yet first": Scenario(the_worker_answers_late_and_yet_first, "hold", {"timeout_s": 3}),
    "scoring hangs": Scenario(nothing_else, "hang_once", {"timeout_s": 3}, soak=True),
    "out of memory": Scenario(nothing_else, "starve_once", soak=True),
    "retryable error": Scenario(nothing_else, "unlucky_once", soak=True),
    "error of ours": Scenario(nothing_else, "raise", retries=0, failure="error: ValueError: planned", soak=True),
    "poison": Scenario(nothing_else, "kill", failure="quarantined: it cost 2 workers; the last: .* died"),
    "node killed": Scenario(the_node_is_killed, "hold_once"),
    "node silent, then back": Scenario(the_node_falls_silent_and_comes_back, "hold_once", soak=True),
    "preempted while scoring": Scenario(
        the_node_is_preempted_before_the_answer, "hold_once", {"attempts": 1, "quarantine_after": 1}, soak=True
    ),
    "preempted, drained in time": Scenario(the_node_is_preempted_after_the_answer, "hold_once", retries=0),
    "one node joins, all others go": Scenario(all_nodes_are_replaced, "hold_once", retries=None, soak=True),
    "coordinator killed": Scenario(the_coordinator_is_killed, "hold_once", retries=0, soak=True),
    "coordinator and node killed": Scenario(the_coordinator_and_a_node_are_killed_at_once, "hold_once", retries=0),
    "head restarted": Scenario(the_head_is_restarted, "hold_once", retries=0),
    "disk full": Scenario(the_disk_is_full, "hold_once", retries=0),
    "mirror out of reach": Scenario(
        the_mirror_is_out_of_reach, "hold_once", retries=0, says="[^\n]*; the run goes on, and what came meanwhile.*\n"
    ),
}


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return Search(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    prepare_environment()
    nodes = Nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    cluster.restore(2)
    return cluster


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, id=name, marks=[pytest.mark.soak] if scenario.soak else [])
        for name, scenario in SCENARIOS.items()
    ],
)
def test_nothing_is_lost_and_nothing_counts_twice(
    scenario: Scenario, search: Search, nodes: Nodes, tmp_path: Path
) -> None:
    script = Script(tmp_path, {search.victim: scenario.act} if scenario.act else {})
    factory = partial(ScriptedScorer, search.identities, script)
    settings = search.config.executor.model_copy(update={**RAY, **scenario.executor})
    config = search.config.model_copy(update={"executor": settings})
    with ExitStack() as cleanup:
        play = Play(nodes, config, tmp_path / "run", script, factory, search.victim, cleanup)
        scenario.strike(play)
        code, said = play.coordinators[-1].ended()
        assert code == 0, said
        assert re.fullmatch(scenario.says, said), said
        assert verify(play.run).open == 0
        check(play.events(), search.undisturbed(fails=scenario.failure is not None), scenario)


def check(events: list[Event], undisturbed: list[Event], scenario: Scenario) -> None:
    state = fold(events)
    scored = Counter((event.candidate, event.split) for event in events if isinstance(event, Evaluated))
    assert [number for number in state.asked if (number, "search") not in scored] == []
    assert max(scored.values()) == 1
    assert state.num_done == EVALUATIONS
    assert found(events) == found(undisturbed)
    assert archive(state) == archive(fold(undisturbed))
    retries = [event for event in events if isinstance(event, Retried) and event.candidate == VICTIM]
    assert scenario.retries in (None, len(retries)), retries
    if scenario.failure is not None:
        reason = state.evaluations[VICTIM, "search"].reason
        assert reason is not None
        assert re.match(scenario.failure, reason), reason


def found(events: list[Event]) -> tuple[dict[int, Any], dict[Any, Any]]:
    """Return every candidate and every score; with several workers, results come in any order."""
    asked = {event.candidate: (event.recipe_id, event.genome) for event in events if isinstance(event, Asked)}
    scores = {
        (event.candidate, event.split): (event.state, event.objectives, event.stderr, event.scores)
        for event in events
        if isinstance(event, Evaluated)
    }
    return asked, scores


def archive(state: RunState) -> tuple[Any, ...]:
    """Return the archive of the search, its front and its best."""
    entries = sorted(state.archive.entries, key=lambda entry: entry.id)
    return entries, sorted(state.archive.front()), state.archive.best()
