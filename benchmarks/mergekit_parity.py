"""How far evomerge's merges of mergekit's own files are from mergekit's, in float32.

    python benchmarks/mergekit_parity.py --mergekit-python PATH [--hidden 64] [--layers 3] [--json]

PATH is the Python of an environment with mergekit 0.1.5. Each configuration of `tests/merging/mergekit_cases.py` is
merged by both over the same random Llama models; DARE and DELLA draw evomerge's random numbers in both. A configuration
that evomerge can export is exported, merged by mergekit once more, and compared too. Printed: the largest difference of
a weight, and the norm of all differences over the norm of all weights. The exit code is 1 where a weight is further
away than 1e-6.

`--fixtures FILE` writes mergekit's results on the smallest models, for the tests that run without mergekit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from mergekit_process import run_mergekit
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evomerge.errors import NotBuiltError
from evomerge.merging import MergePlan, materialise, open_sources, plan, read_recipe_file, to_mergekit
from evomerge.operators.kernels.masks import mask_key, uniform
from tests.merging.mergekit_cases import CASES, RANDOM, chances, write_models

Numbers = Callable[[str, str, int, MergePlan], Tensor]
"""(tensor, source, number of weights, merge) to uniform numbers."""
TOLERANCE = 1e-6
FIXTURE_HIDDEN = 4


@dataclass(frozen=True)
class Row:
    """One merge, compared."""

    case: str
    largest: float
    relative: float
    exported: float | None
    """Largest difference of mergekit's merge of our export; None: it was not exported."""


def stem(case: str) -> str:
    """Return the file name of a case."""
    return re.sub(r"[^a-z0-9_]+", "-", case)


def planned(folder: Path, case: str) -> MergePlan:
    """Return our plan of a case."""
    path = folder / "configs" / f"{stem(case)}.yml"
    recipe = read_recipe_file(path).recipe
    return plan(recipe, open_sources(recipe, folder))


def write_configs(folder: Path, numbers: Numbers) -> dict[str, MergePlan]:
    """Write configurations and the numbers that masks are drawn from, and return our plans."""
    for name in ("configs", "uniform", "theirs"):
        (folder / name).mkdir()
    plans = {}
    for case, text in CASES.items():
        (folder / "configs" / f"{stem(case)}.yml").write_text(textwrap.dedent(text), encoding="utf-8")
        plans[case] = planned(folder, case)
        if case.startswith(RANDOM):
            save_file(numbers_of(plans[case], numbers), folder / "uniform" / f"{stem(case)}.safetensors")
    return plans


def our_numbers(name: str, alias: str, size: int, merge: MergePlan) -> Tensor:
    """Return the uniform numbers that evomerge draws."""
    return uniform(size, mask_key(merge.recipe.seed, name, merge.sources.infos[alias].content_hash))


def stored_numbers(name: str, alias: str, size: int, merge: MergePlan) -> Tensor:  # noqa: ARG001  one form for both
    """Return the uniform numbers of the stored results."""
    return chances(name, alias, 0, size)


def numbers_of(merge: MergePlan, numbers: Numbers) -> dict[str, Tensor]:
    """Return the uniform numbers from which the masks of a merge are drawn."""
    found = {}
    for item in merge.tensors:
        if item.step is None:
            continue
        for alias in item.step.blend.sources:
            found[f"{item.name}|{alias}"] = numbers(item.name, alias, item.info.num_elements, merge)
    return found


def compared(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """Return the largest difference of a weight, and the relative difference of all weights."""
    if ours.keys() != theirs.keys():
        sys.exit(f"the tensors differ: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    differences = [(ours[name].double() - theirs[name].double()).flatten() for name in ours]
    whole = torch.cat([tensor.double().flatten() for tensor in theirs.values()])
    difference = torch.cat(differences)
    return float(difference.abs().max()), float(difference.norm() / whole.norm())


def measure(python: str, folder: Path) -> list[Row]:
    """Merge everything both ways."""
    plans = write_configs(folder, our_numbers)
    exported = [case for case, merge in plans.items() if export(folder, case, merge)]
    run_mergekit(python, folder)
    rows = []
    for case, merge in plans.items():
        ours = dict(materialise(merge))
        theirs = load_file(folder / "theirs" / stem(case) / "model.safetensors")
        again = None
        if case in exported:
            again, _ = compared(ours, load_file(folder / "theirs" / f"{stem(case)}--again" / "model.safetensors"))
        rows.append(Row(case, *compared(ours, theirs), again))
    return rows


def export(folder: Path, case: str, merge: MergePlan) -> bool:
    """Write our export of a case beside it, if mergekit can make it."""
    try:
        text = to_mergekit(merge).text
    except NotBuiltError as error:
        if not case.startswith(RANDOM):
            print(f"{case}: {error}", file=sys.stderr)
        return False
    (folder / "configs" / f"{stem(case)}--again.yml").write_text(text, encoding="utf-8")
    return True


def write_fixtures(python: str, file: Path) -> None:
    """Write mergekit's results on the smallest models: a flat vector a case, tensors in the order of their names."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_models(Path(name), hidden=FIXTURE_HIDDEN)
        os.chdir(folder)
        write_configs(folder, stored_numbers)
        run_mergekit(python, folder)
        found = {}
        for case in CASES:
            tensors = load_file(folder / "theirs" / stem(case) / "model.safetensors")
            found[case] = torch.cat([tensors[key].flatten() for key in sorted(tensors)])
    save_file(found, file)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit-python", required=True)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fixtures", type=Path)
    arguments = parser.parse_args()
    if arguments.fixtures is not None:
        write_fixtures(arguments.mergekit_python, arguments.fixtures.absolute())
        return
    with tempfile.TemporaryDirectory() as name:
        folder = write_models(Path(name), hidden=arguments.hidden, layers=arguments.layers)
        os.chdir(folder)  # models are named relative to the working folder, as mergekit does
        rows = measure(arguments.mergekit_python, folder)
    if arguments.json:
        print(json.dumps([row.__dict__ for row in rows], indent=1))
    else:
        print("| configuration | largest difference | relative difference | exported again |\n|---|---|---|---|")
        for row in rows:
            again = "-" if row.exported is None else f"{row.exported:.1e}"
            print(f"| {row.case} | {row.largest:.1e} | {row.relative:.1e} | {again} |")
    far = [row.case for row in rows if not max(row.largest, row.exported or 0.0) <= TOLERANCE]
    if far:
        sys.exit(f"further away than {TOLERANCE:g}: {'; '.join(far)}")


if __name__ == "__main__":
    main()
