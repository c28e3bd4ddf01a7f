"""From the word that names a model to the folder that holds it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from evomerge.documents import did_you_mean
from evomerge.errors import SourceError

Kind = Literal["model", "adapter"]
AnswerT = TypeVar("AnswerT")
ZOO = "zoo:"
_ZOO_ROOT = Path(__file__).resolve().parent.parent / "demo" / "models"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
    "README.md",
)
# Neither pickle nor code is downloaded; sub-folders hold other formats, `consolidated` a second copy.
_UNWANTED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py", "*/*", "consolidated*", "adapter_*")
_WANTED_OF_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "LICENSE*", "README.md")


def zoo_names() -> tuple[str, ...]:
    """Return the names of the embedded models."""
    return tuple(sorted(path.parent.name for path in _ZOO_ROOT.glob("*/config.json")))


def resolve_model(model: str, revision: str | None, base_dir: Path) -> Path:
    """Return the folder of a model, downloading it where it is a hub id.

    Args:
        model: `zoo:NAME` for an embedded model, a local folder, or a hub id `org/name`.
        revision: branch, tag or commit of a hub id; None: the default branch.
        base_dir: where relative folders start.

    Raises:
        SourceError: when there is no such model, or it cannot be downloaded.
    """
    return _resolve("model", model, revision, base_dir)


def resolve_adapter(adapter: str, revision: str | None, base_dir: Path) -> Path:
    """Return the folder of an adapter, downloading it where it is a hub id; as `resolve_model` does for models.

    Raises:
        SourceError: when there is no such adapter, or it cannot be downloaded.
    """
    return _resolve("adapter", adapter, revision, base_dir)


def _resolve(kind: Kind, word: str, revision: str | None, base_dir: Path) -> Path:
    folder = find_local(kind, word, revision, base_dir)
    return _download(kind, word, revision) if folder is None else folder


def find_local(kind: Kind, word: str, revision: str | None, base_dir: Path) -> Path | None:
    """Return the folder of an embedded or local model or adapter; None: the word is a hub id.

    Raises:
        SourceError: when it is neither, or a folder is given a revision.
    """
    folder = local_folder(word, base_dir, kind)
    if folder is not None:
        if revision is not None:
            raise SourceError(f"{kind} {word!r}: only a hub id has a revision; leave it out")
        return folder
    if _HUB_ID.fullmatch(word):
        return None
    looked = "" if Path(word).is_absolute() else f" (looked in {base_dir})"
    embedded = f"; embedded models are written `{ZOO}NAME`" if kind == "model" else "; check its spelling"
    raise SourceError(f"{kind} {word!r}: no such folder{looked}, and not a hub id `org/name`{embedded}")


def local_folder(model: str, base_dir: Path, kind: str = "model") -> Path | None:
    """Return the folder of an embedded or local model; None where the word is not one of those.

    Raises:
        SourceError: for an unknown `zoo:` name, or a file where a folder is meant.
    """
    if model.startswith(ZOO):
        name = model.removeprefix(ZOO)
        if name not in zoo_names():
            raise SourceError(f"model {model!r}: no embedded model of that name{did_you_mean(name, zoo_names())}")
        return _ZOO_ROOT / name
    try:
        path = base_dir / Path(model).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError):
        return None  # too long, a null byte, an unknown user's home
    if is_file:
        raise SourceError(f"{kind} {model!r}: this is a file; give the folder that holds it")
    return path if is_folder else None


def _download(kind: Kind, repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted, unwanted = (_WANTED, _UNWANTED) if kind == "model" else (_WANTED_OF_ADAPTERS, ())

    def ask() -> str:
        return snapshot_download(
            repo_id, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(unwanted)
        )

    return Path(on_hub(kind, repo_id, revision, ask))


def on_hub(kind: Kind, repo_id: str, revision: str | None, ask: Callable[[], AnswerT]) -> AnswerT:
    """Ask the hub, and turn whatever goes wrong into one sentence.

    Raises:
        SourceError: when there is no such repository or revision, or it cannot be reached or read.
    """
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        return ask()
    except errors.GatedRepoError:
        reason = "access is restricted; accept its terms on the hub and log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = "the hub has no such revision; check its spelling"
    except errors.RepositoryNotFoundError:
        reason = "neither a local folder nor a repository that the hub shows you; check its spelling or log in"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        reason = "neither a local folder nor in the hub's cache, and the hub cannot be reached; download it"
    except Exception as error:  # noqa: BLE001  those of whichever HTTP library the hub client uses
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"cannot be downloaded ({detail}); try again or download it first"
    raise SourceError(f"{kind} {repo_id!r}{at}: {reason}") from None
