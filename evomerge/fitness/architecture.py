"""transformers models without weights: their modules and buffers alone, for weights that are given to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import SourceError
from evomerge.fitness.config import EngineConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def build_model(folder: Path, config: EngineConfig, device: torch.device) -> PreTrainedModel:
    """Build the architecture of a checkpoint with memory for its weights, which are neither read nor drawn.

    Raises:
        SourceError: when transformers cannot build it, or it generates no text.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        _check_generates(folder, settings)
        model = empty_model(settings, config)
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
    return model


def _check_generates(folder: Path, settings: PretrainedConfig) -> None:
    """Refuse encoders and classifiers: the name of their class tells, where transformers knows it."""
    import transformers

    for name in settings.architectures or ():
        kind = getattr(transformers, name, None)
        if kind is not None and not kind.can_generate():
            raise SourceError(
                f"{folder}: this is a {name}, which generates no text, so language benchmarks cannot score it; "
                f"search over causal language models, or merge it once with `evomerge merge`"
            )


def read_settings(config: Mapping[str, Any], kind: type[PretrainedConfig]) -> PretrainedConfig:
    """Read a `config.json` that is not on the disk as transformers reads one that is.

    Raises:
        ValueError: when transformers cannot read it.
    """
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return kind.from_pretrained(folder)


def empty_model(settings: PretrainedConfig, config: EngineConfig) -> PreTrainedModel:
    """Build a model on the CPU, ready for inference, whose parameters hold nothing yet.

    Memory that was never written to costs nothing there, so the size of the model does not matter: building takes
    well under a millisecond a layer. Buffers are as the architecture computes them.

    Raises:
        ValueError, ImportError: when transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with torch.random.fork_rng(), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            settings, dtype=getattr(torch, config.dtype), trust_remote_code=config.trust_remote_code
        )
    model.tie_weights()
    model.train(mode=False)
    model.requires_grad_(requires_grad=False)
    return model
