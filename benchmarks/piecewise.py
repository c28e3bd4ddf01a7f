"""What an individual of a piecewise search weighs, and how long it takes, for a model of 7 billion weights.

    python benchmarks/piecewise.py [--steps 1000] [--archive 20] [--accepted 1.0] [--json]

The sizes are those of Llama 2 7B; there are no weights: the Gram matrices are made up, of siblings whose cosines are
near 0.99995. Parents are drawn evenly from the archive, and an accepted child replaces a member by chance. With
`--accepted 1.0` lineages are as deep as they can be; natural niches accepts far fewer children. Printed for the archive
after the last step: pieces of an individual, bytes of its arrays, of its genome in the journal and of its recipe as
JSON and YAML for the median one, the median time of a crossing in the last hundred steps, and the shortest time of five
of decoding a genome to its recipe, and of the identity of that recipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from evomerge.operators.block_grams import num_blocks
from evomerge.recipe import SourceConfig, SourceInfo, identity
from evomerge.spaces import Grams, Pieces, PiecewiseSpace, SpaceConfig

LAYERS, HIDDEN, INNER, VOCABULARY = 32, 4096, 11_008, 32_000
GROUPS = {
    "attention": LAYERS * 4 * HIDDEN * HIDDEN,
    "mlp": LAYERS * 3 * HIDDEN * INNER,
    "other": LAYERS * 2 * HIDDEN,
    "embeddings": VOCABULARY * HIDDEN,
    "head": VOCABULARY * HIDDEN + HIDDEN,
}
"""Weights of each module group of Llama 2 7B."""
CHROMOSOMES: dict[str, tuple[str, ...]] = {
    "whole": (),
    "attention, mlp, embeddings, rest": ("attention", "mlp", "embeddings"),
}


def breeding_space(sources: int, chromosomes: tuple[str, ...], seed: int = 0) -> PiecewiseSpace:
    """Return a space over made-up siblings."""
    rng = np.random.default_rng(seed)
    sizes = {name: GROUPS[name] for name in chromosomes}
    sizes["rest" if chromosomes else "whole"] = sum(GROUPS.values()) - sum(sizes.values())
    rows, columns = np.triu_indices(sources)
    blocks = {}
    for name, size in sizes.items():
        square = size / num_blocks(size) * 4e-4 * rng.uniform(0.5, 1.5, size=(num_blocks(size), 1))
        blocks[name] = (size, square * np.where(rows == columns, 1.0, 0.99995 + 2e-5 * rng.normal(size=len(rows))))
    aliases = [f"s{index}" for index in range(sources)]
    return PiecewiseSpace(
        SpaceConfig(kind="piecewise", chromosomes=chromosomes or "whole"),
        Grams.of_blocks(aliases, blocks),
        sources={alias: SourceConfig(model=f"org/{alias}") for alias in aliases},
    )


def evolve(space: PiecewiseSpace, steps: int, archive: int, accepted: float) -> tuple[list[Pieces], float]:
    """Return the archive after so many steps, and the median seconds of a crossing in the last hundred."""
    rng = np.random.default_rng(1)
    members = list(space.founders())
    seconds = []
    for _ in range(steps):
        one, two = rng.integers(len(members), size=2)
        splits = [int(rng.integers(part.positions + 1)) for part in space.chromosomes]
        begun = time.perf_counter()
        child = space.cross(members[one], members[two], splits=splits, mix=float(rng.random()), angle="whole")
        seconds.append(time.perf_counter() - begun)
        if len(members) < archive:
            members.append(child)
        elif rng.random() < accepted:
            members[int(rng.integers(len(members)))] = child
    return members, statistics.median(seconds[-100:])


def shortest_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest duration of a call."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def measure(sources: int, chromosomes: tuple[str, ...], steps: int, archive: int, accepted: float) -> dict[str, Any]:
    """Return the figures of one setting."""
    space = breeding_space(sources, chromosomes)
    members, cross_s = evolve(space, steps, archive, accepted)
    by_size = sorted(members, key=lambda pieces: len(pieces.ends))
    middle, largest = by_size[len(by_size) // 2], by_size[-1]
    genome = space.genome(middle)
    recipe = space.decode(genome)
    infos = {alias: SourceInfo(alias, LAYERS) for alias in recipe.sources}
    return {
        "sources": sources,
        "pieces": len(middle.ends),
        "pieces_largest": len(largest.ends),
        "arrays_bytes": middle.ends.nbytes + middle.coefficients.nbytes,
        "genome_bytes": len(json.dumps(genome, separators=(",", ":"))),
        "json_bytes": len(json.dumps(recipe.to_mapping(), separators=(",", ":"))),
        "yaml_bytes": len(recipe.to_yaml()),
        "grams_bytes": space.grams.prefix.nbytes,
        "cross_ms": 1e3 * cross_s,
        "decode_ms": 1e3 * shortest_seconds(lambda: space.decode(genome)),
        "identity_ms": 1e3 * shortest_seconds(lambda: identity(recipe, infos)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--archive", type=int, default=20)
    parser.add_argument("--accepted", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        {"chromosomes": label, **measure(sources, names, arguments.steps, arguments.archive, arguments.accepted)}
        for label, names in CHROMOSOMES.items()
        for sources in (2, 4)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{sum(GROUPS.values()):,} weights, bfloat16: {2 * sum(GROUPS.values()) / 1e9:.1f} GB a model")
    columns = ("chromosomes", "sources", "pieces (largest)", "arrays kB", "genome kB", "JSON kB", "YAML kB")
    print("| " + " | ".join((*columns, "cross ms", "decode ms", "identity ms")) + " |")
    print("|---" * 10 + "|")
    for row in rows:
        sizes = (row[name] / 1e3 for name in ("arrays_bytes", "genome_bytes", "json_bytes", "yaml_bytes"))
        print(
            f"| {row['chromosomes']} | {row['sources']} | {row['pieces']} ({row['pieces_largest']}) | "
            + " | ".join(f"{size:.1f}" for size in sizes)
            + f" | {row['cross_ms']:.2f} | {row['decode_ms']:.1f} | {row['identity_ms']:.1f} |"
        )


if __name__ == "__main__":
    main()
