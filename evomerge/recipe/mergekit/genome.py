"""mergekit-evolve's configurations as search files and suites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from evomerge.documents import Document, StrictModel, did_you_mean
from evomerge.errors import ConfigError
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.mergekit.aliases import Aliases
from evomerge.recipe.mergekit.document import ModelRef
from evomerge.recipe.mergekit.tokens import source_of
from evomerge.recipe.schema import SourceConfig

_METHODS: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
_MODULES = {"self_attn": "attention", "attn": "attention", "attention": "attention", "mlp": "mlp"}
"""Filter -> module group."""
_SIGMA = 1 / 6


class _Genome(StrictModel):
    models: tuple[ModelRef, ...] = Field(min_length=1)
    merge_method: str
    base_model: ModelRef | None = None
    tokenizer_source: Literal["union", "base"] | ModelRef | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: tuple[str, ...] | None = None
    smooth: bool = False


class _Task(StrictModel):
    name: str
    weight: float = 1.0
    metric: str = "acc,none"


class _Evolve(StrictModel):
    genome: _Genome
    tasks: tuple[_Task, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True


@dataclass(frozen=True, slots=True)
class ImportedSearch:
    """A translated mergekit-evolve file."""

    search: dict[str, Any]
    """The search file as plain data."""
    suite: dict[str, Any]
    """Its suite as plain data."""
    sources: Mapping[str, SourceConfig]
    notes: tuple[str, ...]


def is_genome(data: Any) -> bool:
    """Tell whether a document is one of mergekit-evolve."""
    return isinstance(data, Mapping) and "genome" in data and "tasks" in data


def import_genome(document: Document, num_layers: int | None, suite: str) -> ImportedSearch:
    """Translate a mergekit-evolve configuration.

    The search is the same in kind: CMA-ES over one value per model, layer group and module group. What differs is told
    in the notes: ranges are bounded, DARE drops by tensor and source, and samples are split before they are scored.

    Args:
        document: the file.
        num_layers: of the models; None where `layer_granularity` is not used.
        suite: how the search file is to name the suite.

    Raises:
        ConfigError: for what is not understood, with line and key path.
    """
    config = document.parse(_Evolve)
    try:
        return _Search(config, num_layers, suite).imported()
    except RecipePathError as fault:
        raise ConfigError(str(document.error(fault.path, fault.text))) from None


def needs_depth(document: Document) -> ModelRef | None:
    """Return a model whose depth the translation needs, or None."""
    genome = document.parse(_Evolve).genome
    return genome.models[0] if genome.layer_granularity > 0 else None


class _Search:
    def __init__(self, config: _Evolve, num_layers: int | None, suite: str) -> None:
        self._config, self._genome, self._depth, self._suite = config, config.genome, num_layers, suite
        self._aliases = Aliases(self._genome.base_model)
        for model in self._genome.models:
            self._aliases.alias(model)
        self._notes: list[str] = []
        self._check()

    def _check(self) -> None:
        genome = self._genome
        if genome.merge_method not in _METHODS:
            hint = did_you_mean(genome.merge_method, _METHODS)
            text = f"mergekit-evolve has no method {genome.merge_method!r}{hint}"
            raise RecipePathError(("genome", "merge_method"), text)
        if genome.merge_method not in ("linear", "slerp") and genome.base_model is None:
            raise RecipePathError(("genome", "base_model"), f"method {genome.merge_method!r} needs a base")
        if genome.merge_method == "slerp" and len(self._sources()) != 2:
            raise RecipePathError(
                ("genome", "models"),
                "mergekit-evolve picks the two best of these models for each layer group, which is no range to search; "
                "give two models, or the method `linear`",
            )

    def imported(self) -> ImportedSearch:
        """Return search file and suite."""
        genome = self._genome
        sources = self._sources()
        base = self._aliases.base
        if base is None and genome.merge_method == "slerp":
            base = next(iter(sources))
        search: dict[str, Any] = {
            "sources": {alias: source.model_dump(exclude_defaults=True) for alias, source in sources.items()},
            "base": base,
            "tokenizer": self._tokenizer(),
            "space": self._space(),
            "fitness": {"suite": self._suite, "objectives": [self._objective()]},
            "search": {"searcher": "cma_es", "options": {"sigma": _SIGMA}},
            "budget": {"evaluations": 100},
        }
        return ImportedSearch(
            {key: value for key, value in search.items() if value is not None},
            self._suite_data(),
            sources,
            tuple(self._notes),
        )

    def _sources(self) -> dict[str, SourceConfig]:
        return self._aliases.sources

    def _tokenizer(self) -> dict[str, Any] | None:
        source = self._genome.tokenizer_source
        return None if source is None else source_of(source, self._aliases, ("genome", "tokenizer_source"))

    def _space(self) -> dict[str, Any]:
        genome = self._genome
        names = _METHODS[genome.merge_method]
        low = -1.0 if genome.allow_negative_weights and genome.merge_method != "slerp" else 0.0
        ranges = {"weight": [low, 1.0], "density": [0.01, 1.0], "t": [0.0, 1.0]}
        parameters: dict[str, Any] = {name: ranges[name] for name in names}
        if genome.merge_method in ("ties", "dare_ties"):
            parameters["zero_sign"] = "positive"
        if genome.merge_method == "dare_ties":
            parameters["rescale"] = "l1"
        if genome.merge_method != "slerp":
            usual = genome.merge_method in ("ties", "dare_ties", "linear")
            parameters["normalize"] = usual if genome.normalize is None else genome.normalize
        bounds = ", ".join(f"{name} in {ranges[name]}" for name in names)
        self._notes.append(f"genome: mergekit-evolve bounds nothing; here {bounds}")
        space: dict[str, Any] = {"kind": "parameter", "method": genome.merge_method, "parameters": parameters}
        return space | {"groups": {"layers": self._groups(), **self._modules()}}

    def _groups(self) -> str | int:
        genome = self._genome
        if genome.smooth:
            self._notes.append("genome.smooth: values are steps from layer group to layer group here, not gradients")
        if genome.layer_granularity < 1:
            return "whole"
        if genome.layer_granularity == 1:
            return "every"
        if self._depth is None or self._depth % genome.layer_granularity:
            raise RecipePathError(
                ("genome", "layer_granularity"), f"the models have {self._depth} layers, which it must divide"
            )
        return self._depth // genome.layer_granularity

    def _modules(self) -> dict[str, Any]:
        found: list[str] = []
        for number, text in enumerate(self._genome.filters or ()):
            if text not in _MODULES:
                raise RecipePathError(
                    ("genome", "filters", number),
                    f"a search splits layers by module group, and {text!r} is none{did_you_mean(text, _MODULES)}",
                )
            if _MODULES[text] not in found:
                found.append(_MODULES[text])
        return {"modules": found} if found else {}

    # ---- fitness

    def _objective(self) -> str:
        terms = []
        for task in self._config.tasks:
            metric, _, kind = task.metric.partition(",")
            name = f"{task.name}.{metric}" if kind in ("", "none") else f"{task.name}.{metric}.{kind}"
            terms.append(name if task.weight == 1 else f"{task.weight:g} * {name}")
        return " + ".join(terms)

    def _suite_data(self) -> dict[str, Any]:
        config = self._config
        shared = {"num_fewshot": config.num_fewshot, "limit": config.limit}
        given = {key: value for key, value in shared.items() if value is not None}
        if config.shuffle:
            self._notes.append("shuffle: every candidate is scored on the same documents, drawn by a hash of each")
        if config.random_init:
            self._notes.append("random_init: the search starts in the middle of its ranges")
        self._notes.append("tasks: half of the documents are searched on, the rest validates and tests")
        return {
            "suite": 1,
            "tasks": [{"task": task.name, **given} for task in config.tasks],
            "chat_template": config.apply_chat_template,
        }
