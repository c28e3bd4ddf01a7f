"""The inbox of a run: commands come and go whole, and nothing that lies there disturbs the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, StateError, StorageError
from evomerge.run.commands import (
    FOLDER,
    MAX_BYTES,
    MAX_WAITING,
    Answer,
    ChangeBudget,
    Command,
    Drain,
    Hold,
    Inbox,
    Inject,
    SetWorkers,
    send,
    take_answer,
    withdraw,
)
from evomerge.run.config import RunConfig
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.run.small import analytic_executor, small_search, write_problem
from tests.run.steered import attentive, put, steer
from tests.run.test_resume import story

__all__ = ["attentive"]

NUMBER = "00000000000000000007-0123abcd"
EVERY: list[Command] = [
    Drain(command="pause"),
    Drain(command="stop"),
    ChangeBudget(changes={"evaluations": 5, "hours": None, "cost": 0.1}),
    SetWorkers(workers=3),
    Inject(recipe={"recipe": 1, "sources": {}}),
    Hold(source="math", weight=0.25),
    Hold(source="math", weight=None),
]


def inbox(path: Path) -> Inbox:
    return Inbox(path, every_s=0.0)


class TestSending:
    """Between a shell and a coordinator."""

    def test_commands_arrive_once_in_the_order_of_sending(self, tmp_path: Path) -> None:
        numbers = [send(tmp_path, command) for command in EVERY]
        box = inbox(tmp_path)
        assert [(one.id, one.command) for one in box.look()] == list(zip(numbers, EVERY, strict=True))
        assert box.look() == []
        late = send(tmp_path, EVERY[0])
        assert [one.id for one in box.look()] == [late]

    def test_an_answer_takes_the_command_away_and_is_taken_away_itself(self, tmp_path: Path) -> None:
        number = send(tmp_path, EVERY[0])
        assert take_answer(tmp_path, number) is None
        answer = Answer(done=True, text="paused after 3 evaluations", facts={"state": "paused"})
        inbox(tmp_path).answer(number, answer)
        assert take_answer(tmp_path, number) == answer
        assert list((tmp_path / FOLDER).iterdir()) == []

    def test_a_refusal_keeps_its_sentence_and_its_exit_code(self, tmp_path: Path) -> None:
        number = send(tmp_path, EVERY[0])
        inbox(tmp_path).answer(number, Answer.refusal(ConfigError("a: wrong; give another")))
        answer = take_answer(tmp_path, number)
        assert answer is not None
        assert (answer.done, answer.text, answer.exit_code) == (False, "a: wrong; give another", 2)

    def test_what_is_withdrawn_never_arrives(self, tmp_path: Path) -> None:
        withdraw(tmp_path, send(tmp_path, EVERY[0]))
        assert inbox(tmp_path).look() == []

    def test_only_so_many_wait(self, tmp_path: Path) -> None:
        for place in range(MAX_WAITING):
            put(tmp_path, f"{place:020d}-00000000", {"command": "pause"})
        with pytest.raises(StateError, match=f"{MAX_WAITING} commands wait there already"):
            send(tmp_path, EVERY[0])
        assert len(inbox(tmp_path).look()) == MAX_WAITING

    def test_the_disk_is_looked_at_no_more_often_than_agreed(self, tmp_path: Path) -> None:
        now = 0.0
        box = Inbox(tmp_path, clock=lambda: now)
        assert box.look() == []
        send(tmp_path, EVERY[0])
        now = 0.4
        assert box.look() == []
        now = 0.5
        assert len(box.look()) == 1
        send(tmp_path, EVERY[0])
        assert box.look() == []
        assert len(box.look(now=True)) == 1


class TestDamage:
    """Files that are no commands."""

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "EOF"),
            ('{"command": "pau', "EOF"),
            ("[]", "object"),
            ('{"command": "explode"}', "explode"),
            ('{"command": "pause", "at": 3}', "at"),
            ('{"command": "workers", "workers": 0}', "workers.workers"),
            ('{"command": "hold", "source": "math", "weight": NaN}', ""),
            ('{"command": "hold", "source": "math"}', "hold.weight"),
            ('{"command": "budget", "changes": {}}', "budget.changes"),
            ('{"command": "budget", "changes": {"hours": [1]}}', "budget.changes"),
            ("[" * 100_000, ""),
            ('{"command": "inject", "recipe": ' + " " * MAX_BYTES + "{}}", "larger than"),
        ],
    )
    def test_a_damaged_command_says_what_is_wrong_with_it(self, tmp_path: Path, content: str, words: str) -> None:
        put(tmp_path, NUMBER, content)
        (one,) = inbox(tmp_path).look()
        assert one.command is None
        assert one.fault
        assert "\n" not in one.fault
        assert words in one.fault

    def test_what_has_another_name_is_none_of_ours_and_stays(self, tmp_path: Path) -> None:
        names = [
            "notes.txt",
            "1-2.json",
            f"{NUMBER}.json.bak",
            f"{NUMBER}.answer.json",
            f".{NUMBER}.json.tmp",
            "a.json",
        ]
        (tmp_path / FOLDER).mkdir()
        for name in names:
            (tmp_path / FOLDER / name).write_text("{}")
        (tmp_path / FOLDER / "folder.json").mkdir()
        assert inbox(tmp_path).look() == []
        assert len(list((tmp_path / FOLDER).iterdir())) == len(names) + 1

    def test_a_link_is_no_command(self, tmp_path: Path) -> None:
        put(tmp_path, NUMBER, {"command": "pause"})
        (tmp_path / "elsewhere.json").write_text('{"command": "pause"}')
        link = tmp_path / FOLDER / f"{NUMBER[:-1]}e.json"
        link.symlink_to(tmp_path / "elsewhere.json")
        assert [one.command is None for one in inbox(tmp_path).look()] == [False, True]

    @given(content=st.binary(max_size=80))
    @settings(max_examples=60, deadline=None)
    def test_no_content_raises(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        path = tmp_path_factory.mktemp("run")
        (path / FOLDER).mkdir()
        (path / FOLDER / f"{NUMBER}.json").write_bytes(content)
        (one,) = inbox(path).look()
        assert one.command is None

    def test_an_answer_that_cannot_be_written_is_only_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        number = send(tmp_path, EVERY[0])

        def full(*_: object) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr("evomerge.run.commands.write_atomically", full)
        box = inbox(tmp_path)
        box.look()
        box.answer(number, Answer(done=True, text="paused"))
        assert "could not be written (the disk is full)" in caplog.text
        assert box.look() == []  # it is not carried out again

    def test_a_damaged_answer_is_an_error_of_its_reader(self, tmp_path: Path) -> None:
        put(tmp_path, f"{NUMBER}.answer", "{")
        with pytest.raises(StateError, match="the answer cannot be read"):
            take_answer(tmp_path, NUMBER)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return small_search(write_problem(tmp_path_factory.mktemp("problem")), evaluations=6)


@pytest.mark.usefixtures("attentive")
def test_a_run_whose_inbox_is_full_of_rubbish_runs_as_one_without(config: RunConfig, tmp_path: Path) -> None:
    path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    start(config, undisturbed, executor=analytic_executor)
    steer(config, path, {4: [Drain(command="pause")]})
    put(path, NUMBER, "{")
    put(path, "notes", "buy milk")
    resume(path, executor=analytic_executor)
    assert story(path) == story(undisturbed)
    answer = take_answer(path, NUMBER)
    assert answer is not None
    assert not answer.done
    assert f"the command {NUMBER} is damaged" in answer.text
    assert [entry.name for entry in (path / FOLDER).iterdir()] == ["notes.json"]
    assert load_run(path).condition() == "finished"
