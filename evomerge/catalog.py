"""Where the catalogue lies: ready search spaces, benchmark suites and cluster files, shipped inside the wheel."""

from __future__ import annotations

from pathlib import Path

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError

FOLDERS = ("search_spaces", "fitness", "cluster")


def catalog_root() -> Path:
    """Return the folder that holds `search_spaces/`, `fitness/` and `cluster/`."""
    package = Path(__file__).resolve().parent
    shipped = package / "catalog"
    return shipped if shipped.is_dir() else package.parent


def catalog_entries() -> dict[str, tuple[str, ...]]:
    """Return the catalogue's files by folder, as the search file names them (`fitness/zoo.yaml`)."""
    root = catalog_root()
    entries: dict[str, tuple[str, ...]] = {}
    for folder in FOLDERS:
        paths = sorted(path for path in (root / folder).glob("*") if path.is_file())
        entries[folder] = tuple(f"{folder}/{path.name}" for path in paths)
    return entries


def find_document(name: str, base_dir: Path) -> Path:
    """Find a file that a document names: relative to that document, or in the catalogue.

    Raises:
        ConfigError: when it is in neither, with the nearest catalogue entry.
    """
    own = base_dir / name
    if own.is_file():
        return own.resolve()
    root = catalog_root()
    if name.partition("/")[0] in FOLDERS and ".." not in Path(name).parts and (root / name).is_file():
        return root / name
    known = [entry for entries in catalog_entries().values() for entry in entries]
    raise ConfigError(f"no file {name!r} beside the document or in the catalogue{did_you_mean(name, known)}")
