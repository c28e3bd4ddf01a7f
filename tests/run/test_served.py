"""An exported candidate is an ordinary checkpoint: `vllm serve` loads it unchanged and answers as the candidate did."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from evomerge.fitness.config import EngineConfig
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.recipe import Recipe
from evomerge.run.export import export_checkpoint
from evomerge.run.session import start
from evomerge.run.view import load_run
from evomerge.testing.checkpoints import write_tiny_llama
from tests.run.small import small_search, write_problem

START_S = 420.0
TOKENS = 12
PROMPTS = [f"w{number} w{30 - number} w5" for number in range(3, 15)]
JOINT = {
    "kind": "joint",
    "method": "task_arithmetic",
    "parameters": {"weight": [0.2, 0.8]},
    "encoding": "hop_scales",
    "repeats": 1,
    "initial_keep": 0.5,
    "schedule": "together",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A short search for a merge and a route through it at once; the export of its best candidate, and its recipe."""
    folder = write_problem(tmp_path_factory.mktemp("served"))
    for seed, alias in enumerate(("base", "letters", "digits")):
        # The embedded models have heads of 24, which vLLM's CPU kernel lacks; it has those of 32.
        write_tiny_llama(folder / alias, seed, hidden=64, layers=3)
    start(small_search(folder, evaluations=4, space=JOINT, engine={"threads": 1}), folder / "run")
    export_checkpoint(folder / "run", folder / "model")
    run = load_run(folder / "run")
    recipe = run.recipe(run.resolve("best"))
    assert any(isinstance(source.model, Recipe) for source in recipe.sources.values())
    assert any(layer.scale != 1.0 for layer in recipe.layers or ())
    return folder / "model", recipe


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_serve_answers_as_the_candidate_did(exported: tuple[Path, Recipe], tmp_path: Path) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    model, recipe = exported
    engine = TransformersEngine(
        recipe, base_dir=Path("/"), config=EngineConfig(dtype="float32", threads=1), batch_size=1
    )
    engine.load(recipe)
    expected = [_greedy(engine, prompt) for prompt in PROMPTS]
    with _served(model, tmp_path) as (url, processes):
        answers = _ask(url, model)
        assert len(processes()) > 1  # the engine is a child of the server
    for answer, (text, logprobs) in zip(answers, expected, strict=True):
        assert answer["text"] == text
        assert answer["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=1e-3)
    assert len({text for text, _ in expected}) > 1


def _greedy(engine: TransformersEngine, prompt: str) -> tuple[str, list[float]]:
    """Return what the engine's model writes, and the log-probability of each token, straight from its logits."""
    ids = engine.lm.tokenizer(prompt)["input_ids"]
    asked, logprobs = len(ids), []
    for _ in range(TOKENS):
        with torch.no_grad():
            scores = engine.lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
        if ids[-1] == engine.lm.tokenizer.eos_token_id:
            break
    asked_text, text = (engine.lm.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:asked], ids))
    return text.removeprefix(asked_text), logprobs  # with the space between them, which a server gives too


def _ask(url: str, model: Path) -> list[dict[str, Any]]:
    body = {"model": str(model), "prompt": PROMPTS, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1}
    request = urllib.request.Request(  # noqa: S310  the loopback
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        choices: list[dict[str, Any]] = json.load(response)["choices"]
    return sorted(choices, key=lambda choice: int(choice["index"]))


@contextmanager
def _served(model: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    """Run `vllm serve` on a free port of the loopback; nothing of it is left afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(Path(sys.executable).parent / "vllm"), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--distributed-executor-backend", "uni"),
    ]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=out, env=_environment(folder), cwd=folder, start_new_session=True
        )
    family: dict[int, psutil.Process] = {}

    def processes() -> dict[int, psutil.Process]:
        if server.poll() is None:
            parent = psutil.Process(server.pid)
            family.update({process.pid: process for process in (parent, *parent.children(recursive=True))})
        return family

    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_up(server, url, log)
        yield url, processes
    finally:
        for process in processes().values():
            if process.is_running():
                process.kill()
        server.wait(30)
        _, alive = psutil.wait_procs(list(family.values()), timeout=30)
        assert not alive


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  the loopback
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


def _environment(folder: Path) -> dict[str, str]:
    variables = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        version("vllm")
    except PackageNotFoundError:
        # The command asks for the version of the distribution `vllm`, which the CPU build has under another name.
        known = folder / "metadata" / "vllm-0.dist-info"
        known.mkdir(parents=True)
        (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
        variables["PYTHONPATH"] = os.pathsep.join([str(known.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return variables
