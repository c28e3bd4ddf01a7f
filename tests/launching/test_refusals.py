"""What `evomerge submit` says where a search cannot be submitted: one sentence, and no job."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray

from evomerge.cli.main import run_command
from evomerge.cluster.jobs import run_key
from tests.launching.files import CLUSTER

Server = Callable[[int, Any], str]


@pytest.fixture
def server() -> Iterator[Server]:
    """Returns a function that starts a server with one answer to everything, and returns its address."""
    running: list[HTTPServer] = []

    def start(status: int, answer: Any) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        running.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=running[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Returns a function that submits a search and expects one sentence with these words."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)

    def check(address: str, *words: str, code: int = 2, more: tuple[str, ...] = ()) -> None:
        search = str(CLUSTER / "search.yaml")
        found = run_command(["submit", search, "--address", address, "--out", str(tmp_path / "run"), *more])
        said = capsys.readouterr()
        assert found == code, said.err
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1, said.err
        for word in words:
            assert word in said.err
        assert not (tmp_path / "run").exists()

    return check


def version(text: str) -> dict[str, str]:
    return {"version": "4", "ray_version": text, "ray_commit": "0", "session_name": "session"}


def test_nothing_listens(refused: Callable[..., None]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        refused(address, "no Ray job server answers", address, "ray start --head", "evomerge[cluster]")


@pytest.mark.parametrize(("status", "answer"), [(200, "<html>"), (200, [1]), (404, "none"), (502, "bad gateway")])
def test_something_else_listens(server: Server, refused: Callable[..., None], status: int, answer: Any) -> None:
    refused(server(status, answer), "no Ray job server answers")


def test_another_version_of_ray(server: Server, refused: Callable[..., None]) -> None:
    refused(server(200, version("2.49.0")), "runs Ray 2.49.0", f"this machine {ray.__version__}", "ray==2.49.0")


@pytest.mark.parametrize(("status", "answer"), [(401, "Missing authentication token"), (403, "Invalid token")])
def test_a_token_that_is_missing_or_wrong(
    server: Server, refused: Callable[..., None], status: int, answer: str
) -> None:
    refused(server(status, answer), "asks for a token", "RAY_AUTH_TOKEN", "ray get-auth-token")


@pytest.mark.parametrize("address", ["", "auto", "10.0.0.1:6379", "ray://10.0.0.1:10001", "http://", "http://a:b"])
def test_an_address_that_is_none(refused: Callable[..., None], address: str) -> None:
    refused(address, "--address: expected the job server's address", "http://127.0.0.1:8265")


def test_a_search_that_scores_in_one_process(server: Server, refused: Callable[..., None]) -> None:
    more = ("--set", "executor.kind=inline")
    refused(server(200, version(ray.__version__)), "executor.kind", "expected ray", more=more)


def test_the_address_given_is_asked_whatever_the_environment_names(
    server: Server, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server(200, version("2.49.0"))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    refused(address, "runs Ray 2.49.0")


def test_the_submission_id_is_derived_from_the_run_folder() -> None:
    assert run_key(Path("/runs/a")) == run_key(Path("/runs/a"))
    assert run_key(Path("/runs/a")).startswith("evomerge-a-")
    assert run_key(Path("/runs/a")) != run_key(Path("/other/a"))
    assert run_key(Path("/runs/ä b")).isascii()
