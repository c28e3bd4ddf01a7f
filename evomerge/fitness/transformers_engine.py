"""The `transformers` engine: one model for an engine's whole life, on the CPU or a GPU.

A merge layer by layer is copied into resident weights. A route through the layers (moved, repeated or scaled ones)
is shown as a model of its own depth whose weights are views of the sources; nothing is copied.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from evomerge.errors import ConfigError
from evomerge.fitness.architecture import build_model
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.loading import Loading
from evomerge.fitness.routes import RouteBuilder
from evomerge.fitness.vocabulary import ServedVocabulary
from evomerge.merging import MergePlan, open_sources, plan
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PretrainedConfig, PreTrainedModel


class TransformersEngine:
    """A resident `AutoModelForCausalLM`, built once from a configuration; candidates are swapped into it.

    The model is served through lm-eval's own `hf` model, so that scores equal those of the `lm_eval`
    command line on the exported checkpoint.
    """

    def __init__(self, template: Recipe, *, base_dir: Path, config: EngineConfig, batch_size: int) -> None:
        """Open the sources and build the model.

        Args:
            template: names sources, base and tokenizer; its blend is not used.
            base_dir: where relative model folders start.
            config: device, dtype, threads, longest context.
            batch_size: requests a forward pass.

        Raises:
            SourceError: when a source cannot be used, or transformers cannot build its architecture.
            ConfigError: for a device that this machine does not have.
        """
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._config = config
        self._base_dir = base_dir
        self._device = find_device(config.device)
        # Layers left out, the template says nothing of depths; a recipe that needs equal ones is held to that.
        self._all = self._sources = open_sources(template, base_dir, resident=True, any_depth=True)
        folder = self._folder(template.base or next(iter(template.sources)))
        self._vocabulary = ServedVocabulary(template, self._sources)
        self._model: PreTrainedModel = build_model(folder, config, self._device)
        self._own = _Shown.of(self._model)
        self._routes = RouteBuilder(type(self._model.config), config, self._device)
        self._hops = self._depth = self._sources.num_layers[self._sources.reference]
        self._lm: HFLM = _wrap(self._model, self._vocabulary.folder, config, batch_size)
        self._loading: Loading | None = None

    @property
    def lm(self) -> HFLM:
        """The resident model as lm-eval's `hf` model."""
        return self._lm

    def load(self, recipe: Recipe) -> None:
        """Make a recipe the model that is served.

        Raises:
            InfeasibleError: when a merged weight is not finite, as merged or in the engine's dtype, or the scales of
                a route are not.
            SourceError: when a merged tensor has no place in the model, or a place gets no tensor, or the recipe has
                another vocabulary than the template.
            NotBuiltError: when the layers of this architecture cannot be rearranged or scaled.
        """
        self._reopen_for(recipe)
        merge = plan(recipe, self._sources)
        if merge.route.is_plain and len(merge.route.hops) == self._depth:
            self._own.show_in(self._model)
            self._copy(merge)
        else:
            _Shown.of(self._routes.build(merge)).show_in(self._model)
        self._hops = len(merge.route.hops)

    def _copy(self, merge: MergePlan) -> None:
        """Materialise a merge into the resident weights, tensor by tensor."""
        if self._loading is None or not self._loading.fits(merge):
            self._loading = Loading(self._model, merge, self._config)
        self._loading.write(merge, str(self._device))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens, special tokens not added."""
        if not texts:
            return []
        encoded = self._lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def facts(self) -> Mapping[str, float]:
        """Return `parameters` and `hops` of the loaded recipe's model, as it would be exported.

        `parameters` counts tied values once and a repeated layer as often as it is run: the checkpoint stores it so
        often, though it takes no memory here. `hops` is the number of layers that are run.
        """
        return {"parameters": float(_count(self._model)), "hops": float(self._hops)}

    def close(self) -> None:
        """Free the model and the sources."""
        self._loading = None
        del self._model, self._lm, self._sources, self._all, self._own, self._routes
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _folder(self, alias: str) -> Path:
        return Path(self._sources.models[alias].folder)

    def _reopen_for(self, recipe: Recipe) -> None:
        """Open other sources where a recipe names other ones, as one whose nested recipe is searched does.

        Also where it takes its configuration from another one, as routes do, which start at any source: the exported
        checkpoint will have that. The sources of the search stay open and resident in any case.
        """
        known = self._sources.configs
        fits = all(known.get(alias) == config for alias, config in recipe.sources.items())
        reference = recipe.base if recipe.base is not None else next(iter(recipe.sources))
        if not fits or reference != self._sources.reference or not self._sources.speak(recipe):
            sources = open_sources(recipe, self._base_dir, resident=True, any_depth=True, like=self._all)
            self._vocabulary.check(recipe, sources)
            self._sources = sources
            self._routes.forget(self._sources)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a model shows in its forward pass: its modules and their configuration."""

    children: Mapping[str, nn.Module]
    config: PretrainedConfig

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Shown:
        return cls(dict(model.named_children()), model.config)

    def show_in(self, model: PreTrainedModel) -> None:
        """Make it what a model of the same class shows; the model stays the object that others hold."""
        for name, child in self.children.items():
            setattr(model, name, child)
        model.config = self.config


def find_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is a GPU where there is one.

    Raises:
        ConfigError: when this machine has none of that name, or it is of another kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"engine: no device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"engine: no device {name!r} on this machine, which shows {count} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"engine: device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    return device


def _wrap(model: PreTrainedModel, tokenizer: Path, config: EngineConfig, batch_size: int) -> HFLM:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from evomerge.fitness._lm_eval import quiet

    with quiet():  # it warns that a built model was passed, which is meant
        words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=config.trust_remote_code)
        return HFLM(pretrained=model, tokenizer=words, batch_size=batch_size, max_length=config.max_length)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
