"""What a candidate costs before its first answer: a fresh vLLM, a reload from disk, a swap in place.

    python benchmarks/engine_swap.py [--shape zoo|1.1b|7b] [--candidates 5] [--dtype float32] [--threads 1]
        [--mergekit-python PATH] [--json]
    python benchmarks/engine_swap.py --swaps 500 [--json]

All ways build the same candidates (three sources besides the base of `zoo`, three in all of the other shapes,
whose weights are random; every tensor differs from one candidate to the next), one after the other:

* restart: the merge is written to disk, and a fresh process starts a fresh engine on it.
* incumbent: the same with mergekit's merge, as mergekit-evolve does it; by the environment whose Python is given (0.1.5
  is what the figures in the documentation are of). Importing mergekit does not count: its workers do that once.
* reload: the merge is written to disk, and a warm engine reloads it from there.
* swap: the warm engine of evomerge; `merge` and `transfer` (into vLLM's model) happen in its worker: where several
  threads merge beside the transfer, `merge` is what it waits for them. `reset` empties the prefix cache, `canary` asks
  the prompt that shows of which weights the answers are, `plan` is the rest.

That restart, reload and swap serve the same model is checked by log-likelihoods and greedy answers. With `--swaps`, one
engine loads that many candidates, the first of them again and again in between: memory must stay flat, and the scores
of the repeated one the same.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from mergekit_process import run_mergekit
from safetensors.torch import save_file

from evomerge.checkpoints import resolve_model
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm.engine import VllmEngine
from evomerge.fitness.vllm.options import engine_args
from evomerge.fitness.vllm.startup import prepare
from evomerge.fitness.vllm.warm import WarmLLM
from evomerge.merging import build
from evomerge.recipe import Recipe
from evomerge.testing.engines import answers, likelihoods

SHAPES: dict[str, dict[str, int]] = {
    "1.1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    },
}  # fmt: skip
"""Llama configurations."""
PROMPTS = ("12+34=", "abc", "7")
WARM = 20
"""Swaps before memory is first looked at: caches fill up during the first ones."""
Times = dict[str, list[float]]
"""Stage -> its seconds, by candidate."""
Said = tuple[list[float], list[str]]
"""Log-likelihoods and answers."""


@contextmanager
def timed(times: Times, stage: str) -> Iterator[None]:
    """Add the seconds of a block to a stage."""
    begun = time.perf_counter()
    yield
    times.setdefault(stage, []).append(time.perf_counter() - begun)


def random_sources(shape: str, folder: Path) -> list[str]:
    """Write three random checkpoints of a shape in bfloat16, the second and third near the first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=False, dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    paths = []
    for index in range(3):
        out = folder / f"source{index}"
        shutil.copytree(resolve_model("zoo:base", None, folder), out)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(out)
        weights = {}
        for number, (name, size) in enumerate(shapes.items()):
            base = torch.empty(size, dtype=torch.bfloat16)
            base.normal_(std=0.02, generator=torch.Generator().manual_seed(number))
            if index:
                noise = torch.randn(size[-1], generator=torch.Generator().manual_seed(1000 * index + number))
                base += (0.004 * noise).bfloat16()  # the same in every row: drawing is what takes long here
            weights[name] = 1 + base if "norm" in name else base
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        paths.append(str(out))
    return paths


def recipes(sources: dict[str, str], dtype: str, count: int) -> list[Recipe]:
    """Return candidates with random coefficients, alike in no tensor."""
    draw = random.Random(0)  # noqa: S311  coefficients
    base, *experts = sources
    return [
        Recipe.from_mapping(
            {
                "recipe": 1,
                "sources": {alias: {"model": model} for alias, model in sources.items()},
                "base": base,
                "dtype": dtype,
                "blend": {"method": "task_arithmetic", "weight": {name: draw.uniform(0.1, 0.6) for name in experts}},
            }
        )
        for _ in range(count)
    ]


class Asked:
    """A bare vLLM seen as an engine, to ask it questions."""

    def __init__(self, warm: WarmLLM, folder: Path) -> None:
        from transformers import AutoTokenizer

        from evomerge.fitness.vllm.lm import VllmLM

        words = AutoTokenizer.from_pretrained(folder)
        self.lm = VllmLM(cast("Any", warm), words, max_length=warm.max_model_len - 1)


def said(engine: Any) -> Said:
    """Return what tells models apart."""
    return likelihoods(engine, PROMPTS), answers(engine, PROMPTS)


def serve(out: Path, config: EngineConfig) -> WarmLLM:
    """Start an engine on a checkpoint."""
    warm = WarmLLM(config)
    warm.start({**engine_args(config, out), "load_format": "auto"})
    warm.version = "as started"
    return warm


def serve_and_tell(out: Path, config: EngineConfig) -> None:
    """Be the fresh process: start an engine, and print when it was ready and what it says."""
    warm = serve(out, config)
    ready = time.time()
    print(json.dumps({"ready": ready, "said": said(Asked(warm, out))}))
    warm.stop()


def fresh_process(out: Path, config: EngineConfig) -> tuple[float, Said]:
    """Return the seconds until a fresh process serves a checkpoint, and what it says."""
    command = [sys.executable, __file__, "--serve", str(out), "--dtype", config.dtype, "--threads", str(config.threads)]
    begun = time.time()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"the fresh engine failed: {run.stderr[-2000:]}")
    told = json.loads(run.stdout.splitlines()[-1])
    values, texts = told["said"]
    return told["ready"] - begun, (values, texts)


def from_disk(candidates: Sequence[Recipe], config: EngineConfig, folder: Path) -> tuple[dict[str, Times], list[Said]]:
    """Build each candidate on disk, and serve it by a fresh engine and by a reload into a warm one."""
    times: dict[str, Times] = {"restart": {}, "reload": {}}
    heard = []
    outs = [folder / f"candidate{index}" for index in range(len(candidates))]
    for recipe, out in zip(candidates, outs, strict=True):
        with timed(times["restart"], "merge to disk"):
            build(recipe, out, base_dir=folder)
        seconds, told = fresh_process(out, config)
        times["restart"].setdefault("start", []).append(seconds)
        heard.append(told)
    times["reload"]["merge to disk"] = times["restart"]["merge to disk"]
    warm = serve(outs[-1], config)
    for out in outs:
        with timed(times["reload"], "reload"):
            warm.llm_engine.collective_rpc("reload_weights", kwargs={"weights_path": str(out)})
        with timed(times["reload"], "reset"):
            warm.drop_cache()
        heard.append(said(Asked(warm, out)))
    warm.stop()
    for out in outs:
        shutil.rmtree(out)
    return times, heard


def from_mergekit(candidates: Sequence[Recipe], config: EngineConfig, folder: Path, python: str) -> dict[str, Times]:
    """Build each candidate on disk with mergekit, and serve it by a fresh engine."""
    for name in ("configs", "theirs"):
        (folder / name).mkdir()
    for index, recipe in enumerate(candidates):
        weights = recipe.to_mapping()["blend"]["weight"]
        document = {
            "merge_method": "task_arithmetic",
            "base_model": recipe.sources["source0"].model,
            "dtype": recipe.dtype,
            "models": [
                {"model": recipe.sources[alias].model, "parameters": {"weight": weight}}
                for alias, weight in weights.items()
            ],
        }
        (folder / "configs" / f"{index}.yml").write_text(json.dumps(document), encoding="utf-8")
    merged = run_mergekit(python, folder, config.threads or 1)
    times: Times = {"merge to disk": list(merged.values()), "start": []}
    for index, recipe in enumerate(candidates):
        out = folder / "theirs" / str(index)
        for file in Path(recipe.sources["source0"].model).glob("*token*"):
            shutil.copy(file, out)
        times["start"].append(fresh_process(out, config)[0])
        shutil.rmtree(out)
    return {"incumbent": times}


def open_engine(candidate: Recipe, config: EngineConfig, folder: Path) -> VllmEngine:
    """Start evomerge's engine and load a candidate that nobody counts."""
    engine = VllmEngine(candidate, base_dir=folder, config=config, batch_size=64)
    engine.load(candidate)
    return engine


def watch(warm: WarmLLM, times: Times) -> None:
    """Have an engine write down how long the parts of a swap take."""

    def wrap(name: str, stage: str) -> None:
        method: Callable[..., Any] = getattr(warm, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            with timed(times, stage):
                result = method(*arguments, **options)
            if stage == "order":
                slowest = max(result, key=lambda answer: answer["merge_s"] + answer["load_s"])
                times.setdefault("merge", []).append(slowest["merge_s"])
                times.setdefault("transfer", []).append(slowest["load_s"])
            return result

        setattr(warm, name, wrapped)

    for name, stage in (("order", "order"), ("drop_cache", "reset"), ("ask", "canary")):
        wrap(name, stage)


def in_place(
    candidates: Sequence[Recipe], warming: Recipe, config: EngineConfig, folder: Path
) -> tuple[dict[str, Times], list[Said]]:
    """Swap each candidate into an engine that has loaded another one, from which all tensors differ."""
    engine = open_engine(warming, config, folder)
    times: Times = {}
    heard = []
    for recipe in candidates:
        parts: Times = {}
        watch(engine._warm, parts)  # noqa: SLF001  the parts of a swap are nobody else's business
        with timed(parts, "whole"):
            engine.load(recipe)
        for name in ("order", "drop_cache", "ask"):
            vars(engine._warm).pop(name)  # noqa: SLF001
        whole, order = sum(parts.pop("whole")), parts.pop("order")
        seconds = {stage: sum(values) for stage, values in parts.items()}
        seconds["plan"] = whole - sum(order) - seconds["reset"] - seconds["canary"]
        seconds["plan"] += sum(order) - seconds["merge"] - seconds["transfer"]
        for stage, value in seconds.items():
            times.setdefault(stage, []).append(value)
        heard.append(said(engine))
    engine.close()
    return {"swap": times}, heard


def swaps(count: int, config: EngineConfig, sources: dict[str, str], folder: Path) -> dict[str, Any]:
    """Load many candidates into one engine."""
    repeated, *others = recipes(sources, config.dtype, 1 + count)
    engine = open_engine(repeated, config, folder)
    process = psutil.Process()
    expected = said(engine)
    memory, seconds, same = [], [], 0
    for index, recipe in enumerate(others):
        chosen = repeated if index % 10 == 9 else recipe
        begun = time.perf_counter()
        engine.load(chosen)
        seconds.append(time.perf_counter() - begun)
        heard = said(engine)
        if chosen is repeated:
            same += heard == expected
        memory.append(process.memory_info().rss / 2**20)
    engine.close()
    settled = memory[min(WARM, count - 1) :]
    quarter = max(1, len(settled) // 4)
    return {
        "swaps": count,
        "swap_s": statistics.median(seconds),
        "repeats": count // 10,
        "repeats_with_equal_scores": same,
        "rss_mib": {"first": memory[0], "settled": settled[0], "last": memory[-1], "largest": max(memory)},
        "rss_growth_mib": statistics.mean(settled[-quarter:]) - statistics.mean(settled[:quarter]),
    }


def compare(
    count: int, config: EngineConfig, sources: dict[str, str], folder: Path, mergekit_python: str | None
) -> dict[str, Any]:
    """Serve the same candidates in all ways."""
    warming, *candidates = recipes(sources, config.dtype, 1 + count)
    theirs = {} if mergekit_python is None else from_mergekit(candidates, config, folder, mergekit_python)
    disk, first = from_disk(candidates, config, folder)
    swap, second = in_place(candidates, warming, config, folder)
    ways = {**theirs, **disk, **swap}
    stages = {way: {name: statistics.median(found) for name, found in times.items()} for way, times in ways.items()}
    totals = {way: statistics.median(map(sum, zip(*times.values(), strict=True))) for way, times in ways.items()}
    gap = max(
        abs(one - two)
        for served in (first[:count], first[count:])
        for (ours, _), (theirs, _) in zip(second, served, strict=True)
        for one, two in zip(ours, theirs, strict=True)
    )
    texts = [[text for _, text in served] for served in (first[:count], first[count:], second)]
    return {
        "candidates": count,
        "seconds": stages,
        "median_s": totals,
        "times_faster_than": {way: total / totals["swap"] for way, total in totals.items() if way != "swap"},
        "largest_difference_of_a_log_likelihood": gap,
        "greedy_answers_equal": texts[0] == texts[1] == texts[2],
    }


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    if "swaps" in result:
        for name, value in result.items():
            print(f"{name:<28}{json.dumps(value)}")
        return
    print(f"Median seconds over {result['candidates']} candidates, {result['shape']}, {result['dtype']}\n")
    for way, stages in result["seconds"].items():
        parts = ", ".join(f"{name} {value:.4f}" for name, value in stages.items())
        print(f"{way:<10}{result['median_s'][way]:>10.4f}   {parts}")
    print()
    for way, ratio in result["times_faster_than"].items():
        print(f"swap against {way + ':':<11}{ratio:>6.1f} times faster")
    print(f"largest difference of a log-likelihood: {result['largest_difference_of_a_log_likelihood']:.1e}")
    print(f"greedy answers equal: {result['greedy_answers_equal']}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("zoo", *SHAPES), default="zoo")
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--swaps", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mergekit-python", help="the Python of an environment with mergekit; not for zoo")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; left out: a temporary one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mergekit_python and arguments.shape == "zoo":
        parser.error("--mergekit-python: mergekit finds no models by `zoo:`; take another --shape")
    warnings.simplefilter("ignore")  # vLLM's own
    config = EngineConfig(
        kind="vllm", dtype=arguments.dtype, threads=arguments.threads, kv_cache_gib=0.5, max_length=64
    )
    prepare(config)
    if arguments.serve:
        serve_and_tell(arguments.serve, config)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.shape == "zoo":
            sources = {alias: f"zoo:{alias}" for alias in ("base", "math", "japanese", "letters")}
        else:
            sources = {f"source{index}": path for index, path in enumerate(random_sources(arguments.shape, folder))}
        if arguments.swaps:
            result = swaps(arguments.swaps, config, sources, folder)
        else:
            result = compare(arguments.candidates, config, sources, folder, arguments.mergekit_python)
    result = {"shape": arguments.shape, "dtype": arguments.dtype, "threads": arguments.threads, **result}
    print(json.dumps(result, indent=1)) if arguments.json else show(result)


if __name__ == "__main__":
    main()
