"""One real vLLM on the CPU for all tests of this folder, as starting it takes half a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from evomerge.fitness.vllm.engine import VllmEngine

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
"""What an engine sets for its process anyway; set here so that it is taken back."""
SOURCES = ("base", "math", "japanese", "letters")


@pytest.fixture(scope="session")
def zoo_recipe() -> Callable[..., Recipe]:
    """Build a merge of the embedded models: `zoo_recipe(math=0.5, letters=0.2)` gives the weights of the experts."""

    def build(**weights: float) -> Recipe:
        sources = {name: {"model": f"zoo:{name}"} for name in SOURCES}
        blend = {"method": "task_arithmetic", "weight": weights}
        return Recipe.from_mapping(
            {"recipe": 1, "sources": sources, "base": "base", "dtype": "float32", "blend": blend}
        )

    return build


class Shy:
    """An object that does not bear to be asked for an attribute, as other libraries have them."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(f"asked for {name}")


@pytest.fixture(scope="session")
def vllm_environment() -> Iterator[None]:
    """Set what vLLM reads from the environment, before it is imported, and let some module hold a shy object."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    shy = ModuleType("shy")
    vars(shy)["object"] = Shy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "shy", shy)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def engine(vllm_environment: None, zoo_recipe: Callable[..., Recipe]) -> Iterator[VllmEngine]:
    """A running engine over the embedded models, whose context is 64 tokens; whoever uses it loads its recipe first."""
    from evomerge.fitness.config import EngineConfig
    from evomerge.fitness.vllm.engine import VllmEngine

    # Blocks of the prefix cache that are shorter than the context, so that there is something to keep.
    config = EngineConfig(kind="vllm", device="cpu", threads=1, kv_cache_gib=0.125, engine_args={"block_size": 32})
    running = VllmEngine(zoo_recipe(math=1.0), base_dir=Path(), config=config, batch_size=64)
    yield running
    running.close()
