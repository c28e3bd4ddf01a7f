"""What the files of cluster/ and their pages hold: documents, shell texts, and the commands to be run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from evomerge.cluster.jobs import entrypoint

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("ray_jobs", "kuberay", "slurm", "ray_launcher", "skypilot", "container", "mirror", "metrics")
]


def read(name: str) -> str:
    return (CLUSTER / name).read_text()


def document(name: str) -> Any:
    return yaml.safe_load(read(name))


def kubernetes(kind: str) -> Any:
    """Return the one document of a kind in kuberay.yaml."""
    (found,) = (part for part in yaml.safe_load_all(read("kuberay.yaml")) if part["kind"] == kind)
    return found


def shell_texts() -> dict[str, str]:
    """Return every piece of shell in the folder by where it is."""
    texts = {"slurm.sh": read("slurm.sh"), "kuberay.yaml": kubernetes("RayJob")["spec"]["entrypoint"]}
    texts["skypilot.yaml:run"] = document("skypilot.yaml")["run"]
    for cloud in ("aws.yaml", "gcp.yaml"):
        for key, value in document(cloud).items():
            if key.endswith("_commands") and value:
                texts[f"{cloud}:{key}"] = "\n".join(value)
    return texts


def evomerge_commands(text: str) -> list[list[str]]:
    """Return the words of every `evomerge ...` command of a shell text."""
    whole = text.replace("\\\n", " ")
    found = re.findall(r"^\s*(?:exec |\$ )?(evomerge .+?)(?: &)?$", whole, re.MULTILINE)
    found += re.findall(r"-- +(evomerge .+?)(?: &)?$", whole, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found]


def page_commands(page: Path) -> list[list[str]]:
    """Return the words of every `evomerge ...` command in a page's blocks of code."""
    blocks = re.findall(r"^```(?:console|bash)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [command for block in blocks for command in evomerge_commands(block)]


def search_commands() -> dict[str, list[str]]:
    """Return the command that runs the search, by the file that holds it."""
    texts = {"submit": entrypoint(Path("/runs/first")), **shell_texts()}
    found = {name: [words for words in evomerge_commands(text) if words[1] == "run"] for name, text in texts.items()}
    return {name: commands[0] for name, commands in found.items() if commands}


def schema() -> Any:
    return json.loads(Path(__file__).with_name("rayjob_part.schema.json").read_text())
