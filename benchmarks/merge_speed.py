"""How fast models are merged: from disk to disk against mergekit, again in memory, and as models and sources grow.

    python benchmarks/merge_speed.py [--shape 1.1b] [--layers N] [--methods linear ties dare_ties dare_ties_l1]
        [--mergekit-python PATH] [--threads 2] [--folder DIR] [--parts disk memory growth] [--json FILE]
    python benchmarks/merge_speed.py --parts memory --shape 7b --device cuda

* disk: three random bfloat16 checkpoints (and their base, where the method has one) are merged by a fresh process to
  a checkpoint on the same disk, by evomerge and by mergekit (of the environment whose Python is given; 0.1.5 is what
  it is compared with) in turns. `first` is evomerge's first run over these files, in which it also hashes them; `again`
  is any later one. Seconds of processor and clock and the peak of anonymous memory, as the system counts them for the
  process; the inputs are in the page cache. evomerge ends with everything synced to the disk, mergekit does not sync.
  `dare_ties` rescales by 1/density, as DARE does, `dare_ties_l1` to the norm of each tensor, as mergekit does: that
  takes a pass more. `floor` is the larger of two times: writing the result and syncing it, and moving all bytes through
  memory.
* memory: sources are kept as they are stored, and merged again and again with new coefficients, as a search does. The
  bytes read and written a second, as a share of what copying reaches on the same device with as many threads.
* growth: nanoseconds of processor a parameter and source at three sizes, and with 2, 4 and 8 sources.

What is done already is read from `results.json` in the folder: a run that was interrupted goes on. Delete the folder to
begin anew. It needs about 12 GB of disk for the shape 1.1b, and as much memory for the part `memory`; where there is
less memory, fewer layers are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from merge_models import SHAPES, RandomModel, Shape, write_model

from evomerge.documents import dump_yaml
from evomerge.merging import plan
from evomerge.merging.materialise import materialise
from evomerge.merging.sources import Sources
from evomerge.merging.threads import torch_threads
from evomerge.recipe import Recipe, SourceConfig

BASED = frozenset({"ties", "dare_ties", "dare_linear", "task_arithmetic"})
WEIGHTS = (0.3, 0.4, 0.2, 0.1, 0.25, 0.15, 0.35, 0.05)
METHODS = ("linear", "ties", "dare_ties", "dare_ties_l1")
PARTS = ("disk", "memory", "growth")
GIB = 1 << 30
Row = dict[str, Any]


class Results:
    """Rows by what they are of, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, key: str, make: Callable[[], Row]) -> Row:
        """Return a row, measured now unless it was before."""
        if key not in self.rows:
            print(f"measuring {key} ...", file=sys.stderr, flush=True)
            self.rows[key] = make()
            self._path.write_text(json.dumps(self.rows, indent=1))
        return self.rows[key]


def measured(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Row:
    """Run a command; return its seconds, and the peak of its anonymous memory, looked at 50 times a second."""
    begun, peak = time.monotonic(), 0
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT)
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    seconds = time.monotonic() - begun
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": seconds, "anonymous_gib": peak / GIB}


def anonymous_bytes(pid: int) -> int:
    """Return the resident anonymous memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def method_of(label: str) -> str:
    """Return the method of a row."""
    return label.removesuffix("_l1")


def recipe_of(label: str, models: Mapping[str, str], weights: Sequence[float]) -> Recipe:
    """Return a recipe over models by alias; `base` is the base of the methods that have one."""
    method = method_of(label)
    aliases = [alias for alias in models if alias != "base"]
    names = models if method in BASED else {alias: models[alias] for alias in aliases}
    return Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {alias: {"model": model} for alias, model in names.items()},
            **({"base": "base"} if method in BASED else {}),
            "dtype": "bfloat16",
            "blend": {"method": method, "weight": dict(zip(aliases, weights, strict=False)), **parameters_of(label)},
        }
    )


def parameters_of(label: str) -> dict[str, Any]:
    """Return what a method is told beside its weights; with `_l1`, kept entries are rescaled as mergekit does it."""
    sparse = {"density": 0.5} if method_of(label) in ("ties", "dare_ties", "dare_linear") else {}
    return {
        **sparse,
        **({"rescale": "l1"} if label.endswith("_l1") else {}),
        **({"normalize": False} if label == "linear" else {}),
    }


def mergekit_config(label: str, models: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration for mergekit."""
    method = method_of(label)
    density = {"density": 0.5} if "density" in parameters_of(label) else {}
    aliases = [alias for alias in models if alias != "base"]
    return {
        "merge_method": method,
        "dtype": "bfloat16",
        **({"base_model": models["base"]} if method in BASED else {"parameters": {"normalize": False}}),
        "models": [
            {"model": models[alias], "parameters": {"weight": weight, **density}}
            for alias, weight in zip(aliases, WEIGHTS, strict=False)
        ],
    }


def disk_rows(shape: Shape, arguments: argparse.Namespace, folder: Path, results: Results) -> list[Row]:
    """Measure every method from disk to disk."""
    models = {"base": str(folder / "base"), **{f"s{number}": str(folder / f"s{number}") for number in (1, 2, 3)}}
    need = 6 * 2 * shape.num_parameters
    if shutil.disk_usage(folder).free + sum(f.stat().st_size for f in folder.rglob("*.safetensors")) < need:
        raise SystemExit(f"{folder}: {need / GIB:.0f} GiB of disk are needed; name another --folder")
    for number, path in enumerate(models.values()):
        write_model(Path(path), shape, number)
    threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    ours = {**threads, "EVOMERGE_CACHE": str(folder / "cache")}
    rates = results.once("rates", lambda: measured_rates(folder, arguments.threads))
    rows = []
    for method in arguments.methods:
        used = [path for alias, path in models.items() if alias != "base" or method_of(method) in BASED]
        recipe, config, out = folder / f"{method}.yaml", folder / f"{method}.mergekit.yaml", folder / "out"
        recipe.write_text(dump_yaml(recipe_of(method, models, WEIGHTS).to_mapping()))
        config.write_text(dump_yaml(mergekit_config(method, models)))
        commands = {
            "first": ([sys.executable, "-m", "evomerge", "merge", str(recipe), str(out)], ours),
            "again": ([sys.executable, "-m", "evomerge", "merge", str(recipe), str(out)], ours),
        }
        if arguments.mergekit_python:
            # A virtual environment is known by the path of its Python, so the link is not followed.
            program = Path(arguments.mergekit_python).absolute().parent / "mergekit-yaml"
            command = [str(program), str(config), str(out), "--no-copy-tokenizer", "--no-write-model-card"]
            commands["mergekit"] = ([*command, "--num-threads", str(arguments.threads)], threads)
        row: Row = {"method": method}
        for who, (command, environment) in commands.items():
            key = f"disk {method_of(method) if who == 'mergekit' else method} {who}"
            row[who] = results.once(key, lambda: one_merge(who, command, environment, used, out, folder))  # noqa: B023
        written, read = 2 * shape.num_parameters, 2 * shape.num_parameters * len(used)
        row["floor_s"] = max(written / rates["disk"], (read + written) / rates["memory"])
        rows.append(row)
    return rows


def one_merge(
    who: str, command: Sequence[str], environment: Mapping[str, str], used: Sequence[str], out: Path, folder: Path
) -> Row:
    """Measure one merge, with its inputs in the page cache."""
    if who == "first":
        shutil.rmtree(folder / "cache", ignore_errors=True)
    for path in used:
        with (Path(path) / "model.safetensors").open("rb") as file:
            while file.read(1 << 26):
                pass
    os.sync()
    try:
        return measured(command, environment, folder / "log.txt")
    finally:
        shutil.rmtree(out, ignore_errors=True)


def measured_rates(folder: Path, threads: int) -> Row:
    """Return bytes a second: written to the disk and synced, and copied in memory (read and written)."""
    data = os.urandom(1 << 28)
    best = 0.0
    for _ in range(3):
        path = folder / "rate.bin"
        begun = time.monotonic()
        with path.open("wb") as file:
            for _ in range(4):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        best = max(best, 4 * len(data) / (time.monotonic() - begun))
        path.unlink()
    return {"disk": best, "memory": copy_rate("cpu", threads)}


def copy_rate(device: str, threads: int) -> float:
    """Return the bytes a second (read and written) that copying large vectors reaches, the best of ten."""
    count = threads if device == "cpu" else 1
    pairs = [[torch.ones(1 << 26, dtype=torch.bfloat16, device=device) for _ in range(2)] for _ in range(count)]
    best = 0.0

    def copy(pair: list[torch.Tensor]) -> None:
        pair[0].copy_(pair[1])

    with torch_threads(1), ThreadPoolExecutor(count) as pool:
        for _ in range(10):
            synchronize(device)
            begun = time.monotonic()
            for _ in range(4):
                list(pool.map(copy, pairs))
            synchronize(device)
            best = max(best, 4 * count * 2 * pairs[0][0].nbytes / (time.monotonic() - begun))
    return best


def synchronize(device: str) -> None:
    """Wait for a device."""
    if device != "cpu":
        torch.cuda.synchronize()


def kept(shape: Shape, count: int, device: str) -> Sources:
    """Return a base and `count` sources, all of whose weights are kept on a device."""
    names = ["base", *(f"s{number}" for number in range(1, count + 1))]
    models = {name: RandomModel(shape, number, device) for number, name in enumerate(names)}
    sources = Sources({name: SourceConfig(model=name) for name in names}, models, "base")
    for model in models.values():
        for name in model.names():
            model.tensor(name)
    sources.keep(device)
    for model in models.values():
        model.drawn.clear()
    return sources


def remerge_seconds(
    method: str, sources: Sources, device: str, repeats: int, clock: Callable[[], float] = time.monotonic
) -> float:
    """Return the seconds of one merge over kept sources with coefficients of its own, the best of some."""
    names, best = {alias: alias for alias in sources.models}, float("inf")
    for repeat in range(repeats):
        weights = [weight + 0.01 * repeat for weight in WEIGHTS]
        recipe = recipe_of(method, names, weights)
        synchronize(device)
        begun = clock()
        for _name, _tensor in materialise(plan(recipe, sources), device):
            pass
        synchronize(device)
        best = min(best, clock() - begun)
    return best


def memory_rows(shape: Shape, arguments: argparse.Namespace, results: Results) -> list[Row]:
    """Measure merges over kept sources."""
    device = arguments.device
    shape = fitting(shape, device)
    methods = [*arguments.methods, *({"task_arithmetic"} - set(arguments.methods))]
    missing = [method for method in methods if f"memory {method} {device}" not in results.rows]
    sources = kept(shape, 3, device) if missing else None
    rows = []
    for method in methods:

        def make(method: str = method) -> Row:
            rate = copy_rate(device, arguments.threads)
            seconds = 0.0 if sources is None else remerge_seconds(method, sources, device, 5)
            moved = 2 * shape.num_parameters * (5 if method_of(method) in BASED else 4)
            return {"layers": shape.layers, "seconds": seconds, "rate": moved / seconds, "copy": rate}

        rows.append({"method": method, **results.once(f"memory {method} {device}", make)})
    return rows


def fitting(shape: Shape, device: str) -> Shape:
    """Return the shape with as many layers as four models have room for, with a model's room to spare."""
    free = psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]
    while shape.layers > 1 and 2 * shape.num_parameters * 6 > free:
        shape = replace(shape, layers=shape.layers - 1)
    return shape


def growth_rows(arguments: argparse.Namespace, results: Results) -> list[Row]:
    """Measure at three sizes with two sources, and with 2, 4 and 8 sources at one size."""
    small = Shape(1, 1024, 2816, 4000, 16, 4)
    grown = [(replace(small, layers=layers), 2) for layers in (1, 3, 9)] + [(small, count) for count in (4, 8)]
    rows = []
    for shape, count in grown:
        keys = {method: f"growth {method} {shape.layers} {count}" for method in arguments.methods}
        sources = None if all(key in results.rows for key in keys.values()) else kept(shape, count, "cpu")
        for method, key in keys.items():

            def make(method: str = method, shape: Shape = shape, sources: Sources | None = sources) -> Row:
                seconds = 0.0 if sources is None else remerge_seconds(method, sources, "cpu", 5, time.process_time)
                return {"parameters": shape.num_parameters, "seconds": seconds}

            found = results.once(key, make)
            each = 1e9 * found["seconds"] / found["parameters"] / count
            rows.append({"method": method, "sources": count, **found, "nanoseconds": each})
    return sorted(rows, key=lambda row: list(arguments.methods).index(row["method"]))


def lines_of(found: Mapping[str, list[Row]]) -> Iterator[str]:
    """Yield Markdown tables."""
    if "disk" in found:
        yield "| disk to disk | CPU s | wall s | anonymous GiB | CPU ratio | wall ratio | floor s | of the floor |"
        yield "|---|---|---|---|---|---|---|---|"
    for row in found.get("disk", []):
        theirs = row.get("mergekit")
        for who in ("first", "again", "mergekit"):
            if who not in row:
                continue
            one = row[who]
            cells = [f"{one['cpu_s']:.1f}", f"{one['wall_s']:.1f}", f"{one['anonymous_gib']:.2f}"]
            ratios = ["", ""]
            if theirs and who != "mergekit":
                ratios = [f"{theirs[key] / one[key]:.1f}" for key in ("cpu_s", "wall_s")]
            floor = [f"{row['floor_s']:.1f}", f"{row['floor_s'] / one['wall_s']:.0%}"]
            yield f"| {row['method']}, {who} | {' | '.join([*cells, *ratios, *floor])} |"
    if "memory" in found:
        yield "\n| in memory, again | layers | s | GB/s | copying, GB/s | share |\n|---|---|---|---|---|---|"
    for row in found.get("memory", []):
        rates = f"{row['rate'] / 1e9:.1f} | {row['copy'] / 1e9:.1f} | {row['rate'] / row['copy']:.0%}"
        yield f"| {row['method']} | {row['layers']} | {row['seconds']:.2f} | {rates} |"
    if "growth" in found:
        yield "\n| growth | parameters, millions | sources | CPU s | ns a parameter and source |\n|---|---|---|---|---|"
    for row in found.get("growth", []):
        cells = [f"{row['parameters'] / 1e6:.0f}", str(row["sources"]), f"{row['seconds']:.3f}"]
        yield f"| {row['method']} | {' | '.join(cells)} | {row['nanoseconds']:.2f} |"


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--layers", type=int, help="as many layers as this, not the shape's own")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--mergekit-python", help="the Python of an environment with mergekit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where models and results are kept; a temporary one by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cpu", help="of the part `memory`")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = SHAPES[arguments.shape]
    shape = shape if arguments.layers is None else replace(shape, layers=arguments.layers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if arguments.folder is None else arguments.folder
        folder = folder.resolve() / f"{arguments.shape}-{shape.layers}"
        folder.mkdir(parents=True, exist_ok=True)
        results = Results(folder / "results.json")
        found: dict[str, list[Row]] = {}
        if "disk" in arguments.parts:
            found["disk"] = disk_rows(shape, arguments, folder, results)
        if "memory" in arguments.parts:
            found["memory"] = memory_rows(shape, arguments, results)
        if "growth" in arguments.parts:
            found["growth"] = growth_rows(arguments, results)
    print("\n".join(lines_of(found)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
