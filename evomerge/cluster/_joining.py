"""What is asked of a Ray cluster before it is joined or given a job, and how a refusal is said."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from evomerge.errors import ConfigError

_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path("~/.ray/auth_token")


def names_token() -> bool:
    """Return whether the environment names a token for Ray."""
    return any(os.environ.get(name) for name in _TOKEN_VARIABLES)


def has_token() -> bool:
    """Return whether Ray finds a token here: in the environment, or in the home folder."""
    return names_token() or _TOKEN_FILE.expanduser().is_file()


def token_error(cluster: str, why: str) -> ConfigError:
    """Build the error about a cluster that asks for a token.

    Args:
        cluster: key and address, such as `--address: the Ray cluster at http://head:8265`.
        why: what is wrong with the token here.
    """
    return ConfigError(
        f"{cluster} asks for a token, and {why}; set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head "
        "(and no RAY_AUTH_MODE)"
    )


def check_versions(cluster: str, said: Mapping[str, str]) -> None:
    """Refuse a cluster of another version of Ray or, but for its last number, of Python.

    Args:
        cluster: key and address, as in `token_error`.
        said: `ray_version` and `python_version`, as far as the cluster tells them.

    Raises:
        ConfigError: naming both versions.
    """
    here = {"Ray": version("ray"), "Python": platform.python_version()}
    there = {"Ray": said.get("ray_version") or here["Ray"], "Python": said.get("python_version") or here["Python"]}
    same_python = here["Python"].split(".")[:2] == there["Python"].split(".")[:2]
    if here["Ray"] == there["Ray"] and same_python:
        return
    what = "Python" if here["Ray"] == there["Ray"] else "Ray"
    raise ConfigError(
        f"{cluster} runs {what} {there[what]} and this machine {here[what]}; "
        f"install the same version on both{f' (here: pip install ray=={there[what]})' if what == 'Ray' else ''}"
    )
