"""evomerge: evolutionary search for model-merging recipes.

The nouns of the Python interface are those of the command line::

    import evomerge

    recipe = evomerge.Recipe.from_yaml(text)  # a document that determines a merged model
    evomerge.merge("recipe.yaml", "model")  # build it
    run = evomerge.load_run("runs/demo")  # read a run; never writes
    search = evomerge.Search.from_file("search.yaml")
    candidates = search.ask(8)  # drive a searcher by hand: no cluster, no files

Names are imported on first use, so that `import evomerge` and `evomerge --help` answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.errors import EvomergeError
    from evomerge.merging import merge
    from evomerge.recipe import Recipe
    from evomerge.run.api import Search
    from evomerge.run.view import load_run

__version__ = "0.1.0"
__all__ = ["EvomergeError", "Recipe", "Search", "__version__", "load_run", "merge"]

_WHERE = {
    "EvomergeError": "evomerge.errors",
    "Recipe": "evomerge.recipe",
    "Search": "evomerge.run.api",
    "load_run": "evomerge.run.view",
    "merge": "evomerge.merging",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
