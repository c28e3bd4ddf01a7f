"""How exactly hop scales fold into ordinary weights: exported routes against a hop-by-hop reference.

    python benchmarks/fold.py [--routes 6] [--hops 8] [--json]

Tiny random models of several architectures, two sources of depth 3 and 4, random routes with repeats and scales between
0.5 and 1.5, every other route with negative ones. The reference runs transformers' own layers one after the other in
float64 and knows nothing of folding (`tests/merging/hops.py`). Printed: the largest difference of a logit over the
routes, with the epsilon of all norms at 0, and at the model's own epsilon, where the fold makes the epsilon act on a
stream of another length.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evomerge.merging import open_sources, plan
from tests.merging.hops import hop_by_hop, load, logits, random_hops
from tests.merging.test_fold import DEPTHS, difference, route_recipe, write_double, write_sources

KINDS = ("llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi3", "gpt_neox", "mixtral", "mamba")


def worst(kind: str, routes: int, hops: int, *, own_epsilon: bool) -> float:
    """Return the largest difference of a logit over some routes of one architecture."""
    found = 0.0
    for seed in range(routes):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            more = {"epsilon": None} if own_epsilon else {}
            sources = write_sources(folder, kind, tie_word_embeddings=False, **more)
            route = random_hops(DEPTHS, hops, seed=seed, negative=seed % 2 == 1)
            recipe = route_recipe(route)
            exported = write_double(plan(recipe, open_sources(recipe, folder)), folder / "out")
            expected = hop_by_hop(sources, route, embeddings="a", head="a")
            found = max(found, difference(logits(load(exported)), expected))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--routes", type=int, default=6)
    parser.add_argument("--hops", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # transformers tells of fast kernels that are missing
    rows = {
        kind: [worst(kind, arguments.routes, arguments.hops, own_epsilon=own) for own in (False, True)]
        for kind in KINDS
    }
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print("| architecture | at epsilon 0 | at its own epsilon |\n|---|---|---|")
    for kind, (exact, own) in rows.items():
        print(f"| {kind} | {exact:.1e} | {own:.1e} |")


if __name__ == "__main__":
    main()
