"""The benchmark on digits: its starting weights are JAX's, and it takes any partition of the digits."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module("natural_niches_digits")
    for name in ("natural_niches_digits", "threefry"):
        sys.modules.pop(name, None)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


def test_starting_weights_are_those_that_jax_draws(benchmark: Any) -> None:
    """Printed by JAX 0.10 for the two keys of seed 42, with jax_threefry_partitionable off and on."""
    expected = {
        "paper": [[-0.33507985, 1.0188495, 0.18618143, 1.5108371], [1.0514723, -0.06802462, 2.3971887, -1.0370035]],
        "jax": [[0.07592554, -0.48634264, 1.2903206, 0.5196119], [0.60576403, 0.7990441, -0.908927, -0.63525754]],
    }
    for pair, numbers in expected.items():
        first = torch.stack([start["1.weight"].flatten()[:4] for start in benchmark.starts(2, pair)])
        torch.testing.assert_close(first * 100, torch.tensor(numbers), atol=1e-5, rtol=1e-5)


def test_layouts_are_the_same_network(benchmark: Any) -> None:
    digits, model = benchmark.Digits(), benchmark.random_model(0)
    logits = [digits.logits(benchmark.in_layout(model, layout)).clone() for layout in ("paper", "torch")]
    torch.testing.assert_close(*logits)
    torch.testing.assert_close(logits[0], benchmark.forward(model, digits.images[0]))


@pytest.mark.parametrize(
    "options",
    [
        ["--groups", "012,345,6789", "--searchers", "niches,cma_es,map_elites", "--layout", "torch"],
        ["--from-scratch", "--searchers", "niches,separable_cma_es"],
    ],
)
def test_it_runs(
    benchmark: Any,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["benchmark", *options, "--seeds", "0", "1", "--evaluations", "100", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert set(results) == set(options[options.index("--searchers") + 1].split(","))
    for runs in results.values():
        assert [run["seed"] for run in runs] == [0, 1]
        assert all(0.05 < run["curve"]["100"] < 1 for run in runs)
    assert "@100" in capsys.readouterr().out
