"""Write the benchmark tasks of the embedded models: ``python -m evomerge.demo.tasks --out fitness``.

Each task is an lm-eval YAML file and a JSON-lines file of held-out documents (``{"prompt": ..., "answer": ...}``);
``zoo.yaml`` and ``zoo-cross-domain.yaml`` list them as suites. The same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from evomerge.demo.skills import CROSS_DOMAIN, SKILLS, Item, Skill
from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError

TASKS: Mapping[str, Skill] = {**SKILLS, **CROSS_DOMAIN}
"""Every generative task, by name."""

NUM_DOCUMENTS = 1000
"""Documents a task."""

_YAML = """# Written by `python -m evomerge.demo.tasks`; edit that, not this.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: data/{name}.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
num_fewshot: 0
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: {max_tokens}}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""

_SUITE = """# {subject} Written by `python -m evomerge.demo.tasks`.
suite: 1
include: .
tasks:
{tasks}
splits: {{search: 0.18, validation: 0.12, test: 0.7}}
batch_size: 256
"""

SUITES: Mapping[str, tuple[str, Mapping[str, Skill]]] = {
    "zoo": ("The embedded models' suite: the three skills that experts were trained for.", SKILLS),
    "zoo-cross-domain": ("The three skills, and sums posed and answered in kanji, for which none was trained.", TASKS),
}
"""What each suite is about and its tasks, by file name."""


def documents(skill: Skill, count: int, seed: int) -> list[Item]:
    """Draw `count` different held-out items.

    Args:
        skill: what the items ask.
        count: how many.
        seed: decides which.

    Raises:
        ValueError: the skill has fewer held-out prompts than that (as far as many draws can tell).
    """
    rng = random.Random(f"documents {seed} {skill}")  # noqa: S311  (reproducible, not secret)
    source = skill.items(rng, held_out=True)
    found: dict[str, Item] = {}
    for _ in range(20 * count):
        item = next(source)
        found.setdefault(item.prompt, item)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"{skill} has only about {len(found)} held-out prompts; {count} were asked for.")


def training_texts(name: str, count: int, seed: int) -> list[str]:
    """Draw questions with their answers, as the experts were trained on them; none of them is held out.

    Args:
        name: of a task.
        count: how many.
        seed: decides which.

    Raises:
        ConfigError: for an unknown task.
    """
    if name not in TASKS:
        raise ConfigError(f"no embedded task {name!r}{did_you_mean(name, TASKS)}")
    rng = random.Random(f"training texts {seed} {name}")  # noqa: S311  (reproducible, not secret)
    return [f"{item.prompt}{item.answer}" for item in islice(TASKS[name].items(rng, held_out=False), count)]


def write_tasks(folder: Path, *, count: int = NUM_DOCUMENTS, seed: int = 0) -> None:
    """Write every task's YAML and data, and the suites.

    Args:
        folder: where the suites, one YAML a task and ``data/`` go.
        count: documents a task.
        seed: decides the documents.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, skill in TASKS.items():
        items = documents(skill, count, seed)
        lines = (json.dumps({"prompt": i.prompt, "answer": i.answer}, ensure_ascii=False) for i in items)
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        longest = max(len(item.answer) for item in items) + 1
        text = _YAML.format(name=name, max_tokens=longest)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, (subject, members) in SUITES.items():
        tasks = "\n".join(f"  - {{task: {member}}}" for member in members)
        (folder / f"{name}.yaml").write_text(_SUITE.format(subject=subject, tasks=tasks), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evomerge.demo.tasks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("fitness"), help="the catalogue folder")
    parser.add_argument("--seed", type=int, default=0, help="decides the documents")
    parser.add_argument("--count", type=int, default=NUM_DOCUMENTS, help="documents a task")
    options = parser.parse_args(arguments)
    write_tasks(options.out, count=options.count, seed=options.seed)
    sys.stdout.write(f"Wrote {', '.join(TASKS)} and {', '.join(SUITES)} to {options.out}.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
