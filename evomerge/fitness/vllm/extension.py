"""What evomerge adds to vLLM's workers; vLLM mixes it into its worker class and calls it by name.

Recipes come in as plain data, and what became of them goes out as plain data; weights never pass. An error is
an answer too, so that all workers of an engine stay in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.errors import EvaluationError, EvomergeError
from evomerge.fitness.vllm.heads import pad_heads
from evomerge.fitness.vllm.merger import Merger
from evomerge.fitness.vllm.startup import enter_worker
from evomerge.recipe import Recipe

# vLLM imports this before it builds the model, in every worker.
enter_worker()
pad_heads()


class MergeExtension:
    """Methods of a vLLM worker; the names are long because vLLM has many of its own."""

    evomerge_merger: Merger | None = None

    def evomerge_open(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Open the sources of `template`, relative to `base_dir`, and keep them `where` it says."""

        def work() -> dict[str, Any]:
            worker: Any = self
            self.evomerge_merger = Merger(
                worker.model_runner,
                worker.device,
                worker.model_config.dtype,
                Recipe.from_mapping(order["template"]),
                Path(order["base_dir"]),
                order["where"],
            )
            return {}

        return _answered(work)

    def evomerge_swap(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Load `recipe`, laid into `slots`, as `version`; returns the fields of `Swapped`."""
        merger = self._evomerge_merger()
        recipe = Recipe.from_mapping(order["recipe"])
        return _answered(lambda: asdict(merger.swap(recipe, order["slots"], order["version"])))

    def evomerge_disturb(self) -> dict[str, Any]:
        """Spoil what the latest swap brought."""

        def work() -> dict[str, Any]:
            self._evomerge_merger().disturb()
            return {}

        return _answered(work)

    def evomerge_version(self) -> str | None:
        """Return the version of the loaded candidate."""
        return self._evomerge_merger().version

    def _evomerge_merger(self) -> Merger:
        if self.evomerge_merger is None:
            raise RuntimeError("the sources of this worker are not open")
        return self.evomerge_merger


def _answered(work: Any) -> dict[str, Any]:
    """Run what was ordered; an error becomes an answer: its type's name and its text."""
    try:
        return dict(work())
    except EvomergeError as error:
        return {"error": type(error).__name__, "text": str(error)}
    except Exception as error:  # noqa: BLE001  whatever vLLM's loaders raise
        text = " ".join(str(error).split())[:300] or "no further text"
        return {"error": EvaluationError.__name__, "text": f"loading failed with {type(error).__name__}: {text}"}
