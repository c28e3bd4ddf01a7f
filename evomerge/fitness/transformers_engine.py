"""The `transformers` engine: one resident model, on the CPU or a GPU, whose weights are swapped in place."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.checkpoints import is_buffer, is_finite
from evomerge.errors import ConfigError, InfeasibleError, SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.merging import materialise, open_sources, plan
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel


class TransformersEngine:
    """A resident `AutoModelForCausalLM`, built once from a configuration; candidates are copied into it.

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
        self._device = _device(config.device)
        self._sources = open_sources(template, base_dir, resident=True)
        folder = self._folder(template.base or next(iter(template.sources)))
        tokenizer = template.tokenizer.from_ if template.tokenizer and template.tokenizer.from_ else None
        self._model: PreTrainedModel = _build_model(folder, config, self._device)
        self._lm: HFLM = _wrap(self._model, self._folder(tokenizer) if tokenizer else folder, config, batch_size)
        self._targets = _targets(self._model)

    @property
    def lm(self) -> HFLM:
        """The resident model as lm-eval's `hf` model."""
        return self._lm

    def load(self, recipe: Recipe) -> None:
        """Materialise a recipe into the resident model, tensor by tensor.

        Raises:
            InfeasibleError: when a merged weight is not finite, as merged or in the engine's dtype.
            SourceError: when a merged tensor has no place in the model, or a place gets no tensor.
        """
        self._reopen_for(recipe)
        merge = plan(recipe, self._sources)
        filled: set[tuple[int, tuple[int, ...]]] = set()
        with torch.no_grad():
            for name, tensor in materialise(merge, device=str(self._device)):
                target = self._targets.get(name)
                if target is None and is_buffer(name, merge.infos[name]):
                    continue  # old checkpoints store rotary frequencies, which the model computes
                self._fill(name, target, tensor)
                if target is not None:
                    filled.add(_place(target))
        left = [name for name, target in self._targets.items() if _place(target) not in filled]
        if left:
            raise SourceError(
                f"the merge gives no tensor {left[0]!r}, which transformers' model needs ({len(left)} such); "
                f"this architecture names its weights differently there and cannot be scored yet"
            )

    def _fill(self, name: str, target: Tensor | None, tensor: Tensor) -> None:
        if target is None or target.shape != tensor.shape:
            raise SourceError(
                f"the merged tensor {name!r} has no place of its shape in transformers' model; "
                f"this architecture names its weights differently there and cannot be scored yet"
            )
        target.copy_(tensor)
        if target.dtype != tensor.dtype and not is_finite(target):
            raise InfeasibleError(f"the merged tensor {name!r} is not finite in {self._config.dtype}")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens, special tokens not added."""
        if not texts:
            return []
        encoded = self._lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def facts(self) -> Mapping[str, float]:
        """Return `parameters`: the number of trainable values, tied ones counted once."""
        return {"parameters": float(sum(parameter.numel() for parameter in self._model.parameters()))}

    def close(self) -> None:
        """Free the model and the sources."""
        self._targets = {}
        del self._model, self._lm, self._sources
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _folder(self, alias: str) -> Path:
        return Path(self._sources.models[alias].folder)

    def _reopen_for(self, recipe: Recipe) -> None:
        """Open other sources where a recipe names other ones; all recipes of a search name the same."""
        known = self._sources.configs
        fits = all(known.get(alias) == config for alias, config in recipe.sources.items())
        if not fits or recipe.base not in (None, self._sources.reference):
            self._sources = open_sources(recipe, self._base_dir, resident=True)


def _device(name: str) -> torch.device:
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


def _build_model(folder: Path, config: EngineConfig, device: torch.device) -> PreTrainedModel:
    """Build the architecture without reading or drawing weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.initialization import no_init_weights

    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        with torch.random.fork_rng(), no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                settings, dtype=getattr(torch, config.dtype), trust_remote_code=config.trust_remote_code
            )
    except (ValueError, ImportError, OSError) as error:
        raise SourceError(f"{folder}: transformers cannot build this model ({error})") from error
    # from_config ignores generation settings, which from_pretrained of the exported checkpoint will not.
    if (folder / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError, json.JSONDecodeError) as error:
            raise SourceError(f"{folder}: generation_config.json cannot be read ({error})") from error
        # Tasks say how much they generate; transformers would warn at every batch that both are set.
        model.generation_config.max_new_tokens = None
    model.to(device)  # type: ignore[arg-type]
    model.train(mode=False)
    model.requires_grad_(requires_grad=False)
    return model


def _wrap(model: PreTrainedModel, tokenizer: Path, config: EngineConfig, batch_size: int) -> HFLM:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from evomerge.fitness._lm_eval import quiet

    with quiet():  # it warns that a built model was passed, which is meant
        words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=config.trust_remote_code)
        return HFLM(pretrained=model, tokenizer=words, batch_size=batch_size, max_length=config.max_length)


def _targets(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return every tensor that a checkpoint holds, by its name there; tied names share storage."""
    return dict(model.state_dict(keep_vars=False))


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
