"""The architecture: packages import only downwards, and the pure ones stay pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge

PACKAGE = Path(evomerge.__file__).parent

LAYERS = [
    {"cli", "demo", "testing", "__main__"},
    {"report"},
    {"run"},
    {"cluster"},
    {"fitness"},
    {"search"},
    {"spaces"},
    {"merging"},
    {"checkpoints"},
    {"recipe"},
    {"operators"},
    {"catalog"},
    {"documents", "seeds"},
    {"errors"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PURE = ["recipe", "operators", "spaces", "search"]
HEAVY = ["torch", "ray", "vllm", "transformers", "lm_eval", "plotly", "datasets"]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "catalog/" not in str(path.relative_to(PACKAGE)))


def imports(path: Path) -> set[str]:
    """Return the names of the parts of evomerge that a module imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("evomerge."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "evomerge":
            found |= {alias.name for alias in node.names if alias.name in RANK}
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("evomerge.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards_only(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        pytest.skip("the package's own face may name everything")
    assert part in RANK, f"{part} is not in the list of layers"
    upwards = {name for name in imports(path) if name != part and RANK[name] <= RANK[part]}
    if RANK[part] == 0:
        upwards -= LAYERS[0]
    assert not upwards, f"{part} imports {sorted(upwards)}"


@pytest.mark.parametrize("name", PURE)
def test_pure_packages_load_without_heavy_libraries(name: str) -> None:
    code = f"import evomerge.{name}, sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_the_package_and_the_command_line_load_without_heavy_libraries() -> None:
    code = f"import evomerge, evomerge.cli.main, sys; print(*[m for m in {[*HEAVY, 'numpy']} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_the_public_names_are_these() -> None:
    assert evomerge.__all__ == ["EvomergeError", "Recipe", "Search", "__version__", "load_run", "merge"]
    for name in evomerge.__all__:
        assert getattr(evomerge, name) is not None
