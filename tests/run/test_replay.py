from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evomerge.documents import dump_yaml
from evomerge.errors import StateError
from evomerge.recipe import Recipe
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Event, Resumed
from evomerge.run.folder import config_data
from evomerge.run.journal import JournalReader, JournalWriter, read_journal
from evomerge.run.replay import ReplayState, replay, space_of, verify
from evomerge.search import create_searcher

if TYPE_CHECKING:
    from tests.run.conftest import Recorder


def again(recorder: Recorder, events: list[Event]) -> ReplayState:
    searcher = create_searcher(recorder.config.search, space_of(recorder.config, recorder.infos))
    return replay(events, searcher, identify=recorder.identify, store=recorder.folder.scores)


def test_a_replayed_searcher_goes_on_as_the_one_that_was_never_stopped(recorder: Recorder) -> None:
    recorder.start()
    recorder.run(generations=2)
    replayed = again(recorder, read_journal(recorder.folder.journal))
    for _ in range(4):
        one, other = recorder.searcher.ask(1)[0], replayed.searcher.ask(1)[0]
        assert (one.id, one.genome, one.recipe) == (other.id, other.genome, other.recipe)


def test_every_cut_of_the_journal_replays_and_then_asks_what_the_whole_journal_has(
    recorder: Recorder,
) -> None:
    recorder.states = {2: "failed", 5: "infeasible"}
    recorder.start()
    recorder.run(generations=2)
    events = read_journal(recorder.folder.journal)
    for cut in range(1, len(events)):
        replayed = again(recorder, events[:cut])
        asked = [event.candidate for event in events[:cut] if isinstance(event, Asked)]
        closed = [event.candidate for event in events[:cut] if event.kind == "evaluated"]
        assert [candidate.id for candidate in replayed.open] == [number for number in asked if number not in closed]
        upcoming = events[cut]
        if isinstance(upcoming, Asked):
            [candidate] = replayed.searcher.ask(1)
            assert (candidate.id, candidate.genome) == (upcoming.candidate, upcoming.genome)


def test_reading_the_journal_event_by_event_gives_the_same_state_as_all_at_once(recorder: Recorder) -> None:
    reader = JournalReader(recorder.folder.journal)
    recorder.start()
    events = reader.poll()
    recorder.run(generations=2)
    events += reader.poll()
    state = again(recorder, events).state
    assert state.num_done == 8
    assert state.open_ids == ()
    assert len(state.archive.entries) == 8
    assert state.worker_seconds == pytest.approx(4.0)
    assert state.seq == len(events) == 17


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"genome": (0.5, 0.5, 0.5, 0.5)}, "gene 0 is"),
        ({"genome": (0.5,)}, "gene 0 is|genome has 4 genes, 1 in the journal"),
        ({"recipe_id": "0" * 64}, "the recipe is [0-9a-f]{12} on replay, 000000000000 in the journal"),
        ({"parents": (0,)}, r"the parents are \(\) on replay, \(0,\) in the journal"),
    ],
)
def test_a_candidate_that_comes_out_otherwise_is_an_error_that_names_line_and_difference(
    recorder: Recorder, change: dict[str, object], text: str
) -> None:
    recorder.start()
    recorder.ask()
    events = read_journal(recorder.folder.journal)
    events[1] = events[1].model_copy(update=change)
    with pytest.raises(StateError, match=f"journal line 2: candidate 0 comes out otherwise on replay: ({text})"):
        again(recorder, events)


def test_another_seed_is_noticed(recorder: Recorder) -> None:
    recorder.start()
    recorder.run(generations=2)
    search = recorder.config.search.model_copy(update={"seed": 99})
    searcher = create_searcher(search, space_of(recorder.config, recorder.infos))
    with pytest.raises(StateError, match="comes out otherwise"):
        replay(read_journal(recorder.folder.journal), searcher, identify=recorder.identify)


def test_a_searcher_that_asks_for_nothing_is_noticed(recorder: Recorder) -> None:
    recorder.start()
    for _ in range(4):
        recorder.ask()
    events = read_journal(recorder.folder.journal)
    extra = events[-1].model_copy(update={"candidate": 4, "seq": 6})
    with pytest.raises(StateError, match="asked for 0 candidates where the journal has one"):
        again(recorder, [*events, extra])


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ([0, 1, 2, 2], "evaluated twice on the search split"),
        ([0, 2], "evaluated but never asked"),
        ([0, 1, 1], "asked candidate 0, expected 1"),
        ([0, 0], "started already"),
        ([1], "does not begin with `started`"),
    ],
)
def test_a_journal_that_contradicts_itself_is_an_error(recorder: Recorder, order: list[int], text: str) -> None:
    recorder.start()
    candidate = recorder.ask()
    assert candidate is not None
    recorder.evaluate(candidate.id, candidate.recipe)
    events = read_journal(recorder.folder.journal)
    with pytest.raises(StateError, match=f"journal line .*{text}"):
        again(recorder, [events[place] for place in order])


def test_an_equal_recipe_is_found_again_unless_its_scoring_failed(recorder: Recorder) -> None:
    recorder.states = {1: "failed"}
    recorder.start()
    recipe = recorder.reference("uniform", {"method": "linear", "weight": 1.0})
    recorder.evaluate("uniform", recipe)
    recorder.run(generations=1)
    state = again(recorder, read_journal(recorder.folder.journal)).state
    found = state.reusable(recorder.identify(recipe), "search")
    assert found is not None
    assert found.candidate == "uniform"
    assert state.reusable(recorder.identify(recipe), "validation") is None
    assert state.reusable(state.asked[1].recipe_id, "search") is None
    assert state.reusable(state.asked[0].recipe_id, "search") is not None


def test_a_reused_score_costs_nothing_and_is_listed_once(recorder: Recorder) -> None:
    """A searcher may propose a recipe that a reference or an earlier candidate has."""
    recorder.start()
    candidate = recorder.ask()
    assert candidate is not None
    recorder.evaluate(candidate.id, candidate.recipe)
    events = read_journal(recorder.folder.journal)
    state = again(recorder, events).state
    twin = events[1].model_copy(update={"candidate": 1, "seq": 4})
    reused = events[2].model_copy(update={"candidate": 1, "reused_from": 0, "seq": 5})
    state.apply(twin)
    state.apply(reused)
    assert state.num_done == 1
    assert state.archive.front() == (0,)
    assert state.open_ids == ()
    assert state.worker_seconds == pytest.approx(0.5)


def test_a_quick_replay_compares_every_genome_and_a_few_recipes(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.run.replay.SPOT_CHECKS", 10)
    recorder.start()
    recorder.run(generations=5)  # 41 lines: the recipes of candidates 0, 4, 8, 12 and 16
    events = read_journal(recorder.folder.journal)
    compared: list[str] = []

    def replayed(events: list[Event], *, thorough: bool) -> ReplayState:
        searcher = create_searcher(recorder.config.search, space_of(recorder.config, recorder.infos))
        compared.clear()

        def identify(recipe: Recipe) -> str:
            compared.append(recorder.identify(recipe))
            return compared[-1]

        return replay(events, searcher, identify=identify, store=recorder.folder.scores, thorough=thorough)

    ids = [event.recipe_id for event in events if isinstance(event, Asked)]
    assert replayed(events, thorough=True).open == ()
    assert compared == ids
    quick = replayed(events, thorough=False)
    assert compared == ids[::4]
    assert quick.state.seq == events[-1].seq
    [place] = [n for n, event in enumerate(events) if isinstance(event, Asked) and event.candidate == 7]
    other = [*events]
    genome = other[place].genome  # type: ignore[attr-defined]
    other[place] = events[place].model_copy(update={"genome": (genome[0] + 1e-9, *genome[1:])})
    with pytest.raises(StateError, match="candidate 7 comes out otherwise on replay: gene 0"):
        replayed(other, thorough=False)


def test_elapsed_time_counts_coordinators_and_not_the_time_between_them(recorder: Recorder) -> None:
    recorder.start()
    recorder.run(generations=1)  # one second an event: started, 4 asked, 4 evaluated
    recorder.journal.append(Resumed(pid=1, host="h", elapsed_s=8.0))
    recorder.run(generations=1)
    events = read_journal(recorder.folder.journal)
    assert again(recorder, events[:9]).state.elapsed_s == pytest.approx(8.0)
    assert again(recorder, events[:10]).state.elapsed_s == pytest.approx(8.0)
    assert again(recorder, events).state.elapsed_s == pytest.approx(16.0)
    recorder.finish(elapsed_s=20.0)
    [first] = [event for event in events if isinstance(event, Asked) and event.candidate == 0]
    recorder.evaluate(0, space_of(recorder.config, recorder.infos).decode(first.genome), "test")
    assert again(recorder, read_journal(recorder.folder.journal)).state.elapsed_s == pytest.approx(20.0)


def make_run(recorder: Recorder) -> Path:
    recorder.states = {1: "infeasible"}
    recorder.start()
    recipe = recorder.reference("uniform", {"method": "linear", "weight": 1.0})
    recorder.evaluate("uniform", recipe)
    recorder.run(generations=2)
    recorder.finish()
    return recorder.folder.path


def test_verify_agrees_with_a_run_and_says_what_it_compared(recorder: Recorder) -> None:
    path = make_run(recorder)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    report = verify(path)
    assert (report.run, report.events, report.candidates, report.evaluations) == ("run", 20, 8, 9)
    assert (report.scores_files, report.objectives, report.open, report.torn_bytes) == (8, 8, 0, 0)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_verify_tolerates_a_torn_tail_and_says_so(recorder: Recorder) -> None:
    path = make_run(recorder)
    with recorder.folder.journal.open("ab") as file:
        file.write(b'{"seq":')
    report = verify(path)
    assert (report.events, report.torn_bytes) == (20, 7)


def test_verify_notices_a_changed_score_file(recorder: Recorder) -> None:
    path = make_run(recorder)
    victim = min((path / "scores").iterdir())
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(StateError, match="changed after it was written"):
        verify(path)


def rewrite(recorder: Recorder, change: dict[str, object], kind: str) -> None:
    """Write the journal anew, with right checksums, and one event changed: what a forger would do."""
    events = read_journal(recorder.folder.journal)
    recorder.journal.close()
    recorder.folder.journal.unlink()
    victim = next(event.seq for event in events if event.kind == kind)
    with JournalWriter(recorder.folder.journal) as journal:
        for event in events:
            journal.append(event.model_copy(update=change) if event.seq == victim else event)


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        (
            "evaluated",
            {"objectives": {"sums.exact_match": 0.5001, "-ja.loss": -0.1}},
            "its per-sample scores give",
        ),
        ("evaluated", {"split": "validation"}, "its scores are of the search split"),
        ("evaluated", {"violation": 0.25}, "constraints"),
        ("reference", {"recipe": {"recipe": 1, "sources": {"base": {"model": "b"}}}}, "has another recipe"),
        ("evaluated", {"scores": "../config.yaml"}, "not the path of a score file"),
        ("started", {"config_digest": "0" * 64}, "changed since the run started"),
    ],
)
def test_verify_notices_a_journal_that_was_rewritten(
    recorder: Recorder, kind: str, change: dict[str, object], text: str
) -> None:
    path = make_run(recorder)
    rewrite(recorder, change, kind)
    with pytest.raises(StateError, match=text):
        verify(path)


def test_verify_notices_a_changed_config(recorder: Recorder, config: RunConfig) -> None:
    path = make_run(recorder)
    data = config_data(config)
    data["search"]["seed"] = 4
    recorder.folder.config_path.write_text(dump_yaml(data))
    with pytest.raises(StateError, match=r"config\.yaml: changed since the run started"):
        verify(path)


def test_verify_of_a_run_that_never_began_says_so(recorder: Recorder) -> None:
    with pytest.raises(StateError, match="nothing was journaled yet"):
        verify(recorder.folder.path)
