"""Merges of LoRA adapters in vLLM: swapped in as weights, or served by vLLM's LoRA support.

    python benchmarks/lora_serving.py [--hidden 256] [--layers 4] [--rank 16] [--json]

Three random adapters on a random Llama, merged by task arithmetic with other weights for every candidate. Seconds to
have a candidate in place, and seconds for the same requests then: greedy generation, and log-probabilities of prompts.
Serving as LoRA pays where what it saves in place is more than what its requests cost in addition. Requests to swapped
weights are measured as requests without a LoRA to the engine that serves LoRA, which makes them somewhat dearer than
they are. The head is left out of the LoRA modules: with it, vLLM 0.32 fails at log-probabilities of prompts on the CPU.
Machines are noisy; read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from evomerge.checkpoints import open_checkpoint
from evomerge.fitness.config import EngineConfig
from evomerge.merging import build_adapter
from evomerge.recipe import Recipe
from evomerge.testing.adapters import ATTENTION, MLP, write_lora
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, tiny_tokenizer, write_checkpoint

WEIGHTS = ((0.7, 0.4, 0.1), (1.0, -0.5, 0.3), (0.3, 1.2, -0.2), (0.5, 0.5, 0.5))
NAMES = ("one", "two", "three")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VOCABULARY, PROMPT, TOKENS = 512, 32, 16

Seconds = dict[str, float]


def write_problem(folder: Path, hidden: int, layers: int, rank: int) -> None:
    """Write the model, with heads of 64, and its adapters."""
    config = {**tiny_llama_config(layers=layers, hidden=hidden, vocab=VOCABULARY), "num_attention_heads": hidden // 64}
    tensors = {
        name: tensor / 10 if tensor.dim() == 2 else tensor for name, tensor in tiny_llama_tensors(config).items()
    }
    write_checkpoint(folder / "base", config, tensors, tokenizer=tiny_tokenizer(VOCABULARY))
    for seed, name in enumerate(NAMES):
        write_lora(folder / name, folder / "base", seed, rank=rank, size=0.02)


def candidate(weights: tuple[float, ...]) -> Recipe:
    """Return a merge of the adapters."""
    adapters = {name: {"model": "base", "adapter": name} for name in NAMES}
    blend = {"method": "task_arithmetic", "weight": dict(zip(NAMES, weights, strict=True))}
    sources = {"base": {"model": "base"}, **adapters}
    return Recipe.from_mapping({"recipe": 1, "sources": sources, "base": "base", "dtype": "float32", "blend": blend})


def seconds(work: Callable[[], Any]) -> float:
    """Return how long something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def request_seconds(llm: Any, count: int, adapter: Any) -> Seconds:
    """Return the seconds for `count` generations, and for the log-probabilities of as many prompts."""
    from vllm import SamplingParams

    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (count, PROMPT), generator=rng).tolist()
    prompts = [{"prompt_token_ids": row} for row in tokens]
    kinds = {
        "generate": SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True),
        "score": SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1),
    }
    return {
        kind: seconds(lambda params=params: llm.generate(prompts, params, lora_request=adapter, use_tqdm=False))
        for kind, params in kinds.items()
    }


def swap_seconds(folder: Path, count: int) -> list[float]:
    """Return the seconds in which the `vllm` engine swaps each candidate in."""
    from evomerge.fitness.vllm.engine import VllmEngine

    config = EngineConfig(kind="vllm", dtype="float32")
    engine = VllmEngine(candidate(WEIGHTS[0]), base_dir=folder, config=config, batch_size=count)
    times = [seconds(lambda weights=weights: engine.load(candidate(weights))) for weights in WEIGHTS]
    engine.close()
    return times


def lora_seconds(folder: Path, count: int, rank: int) -> tuple[list[Seconds], list[Seconds]]:
    """Return the seconds of each candidate as LoRA, from a folder in memory; and of the same requests without it."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    from evomerge.fitness.vllm.warm import undisturbed

    largest = next(allowed for allowed in RANKS if allowed >= rank * len(NAMES))
    with undisturbed():
        llm = LLM(
            model=str(folder / "base"),
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=count,
            enable_prefix_caching=False,
            enable_lora=True,
            max_lora_rank=largest,
            max_cpu_loras=1,
            lora_target_modules=[*ATTENTION, *MLP, "qkv_proj", "gate_up_proj"],
        )
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  a folder of its own is made there
    with_it, without = [], []
    with TemporaryDirectory(dir=memory) as name:
        for number, weights in enumerate(WEIGHTS, start=1):
            adapter = LoRARequest(str(number), number, str(Path(name) / str(number)))

            def load(weights: tuple[float, ...] = weights, adapter: LoRARequest = adapter) -> None:
                build_adapter(candidate(weights), Path(adapter.path), base_dir=folder)
                llm.llm_engine.add_lora(adapter)

            with_it.append({"in place": seconds(load), **request_seconds(llm, count, adapter)})
            without.append(request_seconds(llm, count, None))
    return with_it, without


def medians(rows: list[Seconds]) -> Seconds:
    """Return the median of each column."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16, help="of each of the three adapters")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_problem(folder, options.hidden, options.layers, options.rank)
        base = open_checkpoint(folder / "base")
        parameters = sum(base.info(tensor).num_elements for tensor in base.names())
        swaps = swap_seconds(folder, options.requests)
        lora, plain = lora_seconds(folder, options.requests, options.rank)
    swapped = [{"in place": swap, **row} for swap, row in zip(swaps, plain, strict=True)]
    table = {"weight swap": medians(swapped[1:]), "served as LoRA": medians(lora[1:])}  # the first one warms up
    if options.json:
        print(json.dumps({"parameters": parameters, "seconds": table}, indent=2))
        return
    print(f"{parameters / 1e6:.1f} M parameters, three adapters of rank {options.rank}, {options.requests} requests")
    print(f"{'':16}{'in place':>10}{'generate':>10}{'score':>10}{'sum':>10}   seconds, medians of {len(WEIGHTS) - 1}")
    for way, found in table.items():
        print(f"{way:16}" + "".join(f"{value:10.3f}" for value in (*found.values(), sum(found.values()))))


if __name__ == "__main__":
    main()
