"""The files of cluster/ are what their tools read, and their commands are those of this version."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from evomerge.cli.main import cli
from evomerge.run.load import load_config
from tests.launching.files import (
    CLUSTER,
    PAGES,
    ROOT,
    document,
    kubernetes,
    page_commands,
    read,
    schema,
    search_commands,
    shell_texts,
)

IMAGE = "registry.example.com/evomerge:0.1.0"


def tool(name: str) -> str:
    """Return a linter that comes with the development extra."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed: make install"
    return found


def parsed(words: list[str]) -> click.Context:
    """Parse a command as the command line does, without running it."""
    assert words[0] == "evomerge"
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, f"no command {words[1]}"
    return command.make_context(words[1], words[2:])


def test_every_file_of_the_folder_is_tested_here() -> None:
    names = {path.name for path in CLUSTER.iterdir()}
    assert names == {
        "README.md", "Dockerfile", "search.yaml", "kuberay.yaml", "slurm.sh", "aws.yaml", "gcp.yaml", "skypilot.yaml",
        "grafana.json",
    }  # fmt: skip


def test_the_search_that_the_files_start_is_valid() -> None:
    config = load_config(CLUSTER / "search.yaml")
    assert config.executor.kind == "ray"


def test_every_way_runs_the_search_with_one_and_the_same_command() -> None:
    commands = search_commands()
    assert set(commands) == {"submit", "kuberay.yaml", "slurm.sh", "skypilot.yaml:run"}
    for name, words in commands.items():
        mirror = ["--mirror", "$MIRROR"] if name.startswith("skypilot") else []
        assert words[4:] == [*words[4:5], "--resume", "--plain", "--set", "executor.address=auto", *mirror]
        options = parsed(words).params
        assert options["continues"]
        assert options["plain"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_the_pages_are_commands(page: Path) -> None:
    for words in page_commands(page):
        parsed(words)
    linked = re.findall(r"\]\(\.\./cluster/([^)]+)\)", page.read_text())
    assert all((CLUSTER / name).is_file() for name in linked)


@pytest.mark.parametrize(("name", "text"), shell_texts().items(), ids=shell_texts())
def test_shell_parses_and_shellcheck_finds_nothing(name: str, text: str) -> None:
    syntax = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert syntax.returncode == 0, syntax.stderr
    # Variables that another program sets, and words that the launcher expands, are no mistakes.
    options = ["--shell=bash", "--exclude=SC2154,SC2153"]
    checked = subprocess.run(
        [tool("shellcheck"), *options, "-"], input=text, text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, f"{name}\n{checked.stdout}"


def test_the_rayjob_fits_kuberays_fields() -> None:
    job = kubernetes("RayJob")
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.validate(job, schema())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda spec: spec.update(backofLimit=3), "backofLimit"),
        (lambda spec: spec.update(backoffLimit="3"), "integer"),
        (lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "string"),
        (lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("template"), "template"),
    ],
)
def test_a_wrong_rayjob_is_refused(change: Any, word: str) -> None:
    job = copy.deepcopy(kubernetes("RayJob"))
    change(job["spec"])
    with pytest.raises(jsonschema.ValidationError, match=word):
        jsonschema.validate(job, schema())


def test_every_pod_mounts_the_shared_storage_and_only_volumes_that_it_has() -> None:
    cluster = kubernetes("RayJob")["spec"]["rayClusterSpec"]
    claim = kubernetes("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounted) == set(volumes)
        assert mounted["runs"] == "/runs"
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_slurm_asks_for_a_signal_long_before_its_time_ends() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", read("slurm.sh"), re.MULTILINE))
    signal, seconds = asked["signal"].split("@")
    assert signal == "B:USR1"
    assert 60 <= int(seconds) < 3600
    assert {"requeue", "exclusive"} <= set(asked)
    assert asked["ntasks-per-node"] == "1"


def test_ray_accepts_the_options_of_symmetric_run() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    line = next(line for line in read("slurm.sh").splitlines() if "ray symmetric-run" in line)
    words = line.replace("$SLURM_JOB_NUM_NODES", "2").replace("$SLURM_CPUS_PER_TASK", "8").replace('"', "").split()
    options = words[2 : words.index("--")]
    left = curate_and_validate_ray_start_args(options)
    assert left == ["--num-cpus", "8"]
    start.make_context("start", ["--head", *left])


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_launcher_accepts_its_file(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = document(f"{cloud}.yaml")
    validate_config(prepare_config(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config({**copy.deepcopy(config), "idle_timeout": 30}))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert re.search(r"spot", json.dumps(types["spot-gpu"]["node_config"]), re.IGNORECASE)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_accepts_the_launchers_start_commands(cloud: str) -> None:
    from ray.scripts.scripts import start

    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        text = document(f"{cloud}.yaml")[key][-1]
        words = shlex.split(text.replace("$RAY_HEAD_IP", "10.0.0.1").split("ray start ")[1])
        start.make_context("start", words)


def test_skypilots_file_has_its_keys() -> None:
    """A subset of SkyPilot's schema; `make skypilot` asks its own parser, in an environment of its own."""
    task = document("skypilot.yaml")
    assert set(task) == {"name", "num_nodes", "resources", "envs", "secrets", "file_mounts", "run"}
    assert set(task["resources"]) == {"image_id", "accelerators", "cpus", "memory", "use_spot", "job_recovery"}
    assert all((ROOT / source).is_file() for source in task["file_mounts"].values())
    used = set(re.findall(r"\$\{?([A-Z_]+)", task["run"]))
    given = {*task["envs"], *task["secrets"], "RAY_ADDRESS"}
    assert used - given <= {"SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK"}


def test_hadolint_finds_nothing() -> None:
    checked = subprocess.run(
        [tool("hadolint"), "--no-color", "-"], input=read("Dockerfile"), text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_image_copies_what_the_wheel_is_built_from() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {
        word for line in re.findall(r"^COPY (.+) \S+$", read("Dockerfile"), re.MULTILINE) for word in line.split()
    }
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert copied >= {*wheel["packages"], *wheel["force-include"], "pyproject.toml", project["project"]["readme"]}
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", read("Dockerfile"), re.MULTILINE)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def test_the_versions_of_ray_are_one() -> None:
    pinned = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert re.findall(r"^ARG RAY_VERSION=(.+)$", read("Dockerfile"), re.MULTILINE) == pinned
    assert [kubernetes("RayJob")["spec"]["rayClusterSpec"]["rayVersion"]] == pinned


def test_all_files_name_the_same_image() -> None:
    named = re.findall(r"registry\.example\.com/\S+", "\n".join(path.read_text() for path in CLUSTER.iterdir()))
    assert set(named) == {IMAGE}
    assert len(named) >= 5
