"""Which architectures merge exactly, and which of them the transformers engine scores.

    python benchmarks/architectures.py [--markdown] [--json]

For each, two tiny random models written by transformers' own `save_pretrained`. Three merges through `evomerge merge`:
the first model with itself, weight 1 on the second of two, and the average of both. Printed: whether plain
transformers computes bit for bit the logits of the source from the first two, whether the average equals, bit for bit,
the average of the state dicts in NumPy float64 rounded once, and whether a search's `transformers` engine scores it
with the logits of the exported checkpoint.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from evomerge.errors import SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.merging import build
from tests.fitness.conftest import write_tokenizer
from tests.fitness.test_architectures import average, served
from tests.merging.architectures import KINDS, computed, mean, stored, write_model
from tests.merging.test_architectures import merged

NAMES = {"gemma3": "gemma3 (multimodal, nested)", "bert": "bert (encoder)", "vit": "vit (encoder)"}


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Return the row of one architecture."""
    for seed, name in enumerate("ab"):
        write_tokenizer(write_model(folder / name, kind, seed))
    itself = merged(folder, ["a", "a"], [0.5, 0.5], "itself")
    one = merged(folder, ["a", "b"], [0.0, 1.0], "one")
    found = stored(merged(folder, ["a", "b"], [0.5, 0.5], "average"))
    expected = mean(stored(folder / "a"), stored(folder / "b"))
    return {
        "kind": NAMES.get(kind, kind),
        "tensors": len(found),
        "itself": torch.equal(computed(itself, kind), computed(folder / "a", kind)),
        "weight one": torch.equal(computed(one, kind), computed(folder / "b", kind)),
        "average": found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found),
        "scored": is_scored(kind, folder),
    }


def is_scored(kind: str, folder: Path) -> bool:
    """Tell whether the engine serves a merge with the logits of its export."""
    try:
        engine = TransformersEngine(average(folder), base_dir=folder, config=EngineConfig(device="cpu"), batch_size=1)
        engine.load(average(folder))
    except SourceError as error:
        if kind not in ("bert", "vit"):
            raise
        print(f"{kind}: {error}", file=sys.stderr)
        return False
    build(average(folder), folder / "scored", base_dir=folder)
    return torch.equal(served(engine), computed(folder / "scored", kind))


def _cell(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="print a table for a document")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # transformers tells of fast kernels that are missing
    rows = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            rows.append(measure(kind, Path(name)))
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    columns = (
        ("architecture", "kind"),
        ("tensors", "tensors"),
        ("merged with itself", "itself"),
        ("weight 1 on one", "weight one"),
        ("average", "average"),
        ("scored by `transformers`", "scored"),
    )
    table = [[title for title, _ in columns]]
    table += [[_cell(row[key]) for _, key in columns] for row in rows]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for number, line in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print(f"| {' | '.join(cells)} |" if arguments.markdown else "  ".join(cells).rstrip())
        if number == 0 and arguments.markdown:
            print(f"|{'|'.join('-' * (width + 2) for width in widths)}|")


if __name__ == "__main__":
    main()
