"""Runs mergekit on the configurations of a folder; for mergekit's own Python, which knows nothing of evomerge.

    python benchmarks/mergekit_run.py FOLDER

FOLDER/configs/*.yml become FOLDER/theirs/NAME, and the last line of the output says how many seconds each took (a JSON
object by name); models are named relative to FOLDER. Where there is a file
FOLDER/uniform/NAME.safetensors, random masks are not drawn but made of its uniform numbers, `TENSOR|MODEL` each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from safetensors.torch import load_file

_waiting: list[torch.Tensor] = []
_uniform: dict[str, torch.Tensor] = {}
_execute = ExecuteMergeMethodTask.execute
_bernoulli = torch.bernoulli


def execute(task, tensors, **more):
    """Lay the numbers of a tensor out before it is merged, those of the base left out."""
    names = [model.model.path for model in task.model_order if model != task.base_model]
    _waiting[:] = [_uniform[key] for name in names if (key := f"{task.output_weight.name}|{name}") in _uniform]
    return _execute(task, tensors, **more)


def bernoulli(chances, **more):
    """Draw from the numbers that were laid out."""
    if not _uniform:
        return _bernoulli(chances, **more)
    return (_waiting.pop(0).view(chances.shape) < chances.double()).to(chances.dtype)


def main() -> None:
    """Merge everything."""
    os.chdir(sys.argv[1])
    ExecuteMergeMethodTask.execute = execute
    torch.bernoulli = bernoulli
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    seconds = {}
    for path in sorted(Path("configs").glob("*.yml")):
        _uniform.clear()
        numbers = Path("uniform") / f"{path.stem}.safetensors"
        if numbers.exists():
            _uniform.update(load_file(numbers))
        config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        begun = time.perf_counter()
        run_merge(config, f"theirs/{path.stem}", options)
        seconds[path.stem] = time.perf_counter() - begun
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
