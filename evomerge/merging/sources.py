"""The opened source models of a recipe, and what is kept of them between candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from evomerge.checkpoints import (
    AlignedModel,
    Blocks,
    LayerKinds,
    ModelSource,
    StatisticFile,
    check_finite,
    inputs_first,
    is_buffer,
    is_finite,
    layer_kinds,
    layer_shapes,
    not_finite_text,
)
from evomerge.errors import RecipeError, SourceError
from evomerge.merging.memory import ResultMemory, copied
from evomerge.merging.statistics import Statistics
from evomerge.operators.kernels.context import Statistic
from evomerge.operators.metadata import StatisticKind
from evomerge.recipe import Recipe, SourceConfig, SourceInfo, TokenizerConfig

VocabularyRule = tuple[TokenizerConfig | None, str | None]


class Sources:
    """Opened models by alias. Opening is done once; any number of recipes over them can then be planned."""

    def __init__(
        self,
        configs: Mapping[str, SourceConfig],
        models: Mapping[str, ModelSource],
        reference: str,
        *,
        files: Mapping[str, Mapping[StatisticKind, StatisticFile]] | None = None,
        vocabulary: VocabularyRule = (None, None),
        resident: str | None = None,
        like: Sources | None = None,
    ) -> None:
        """Hold models that fit each other.

        Args:
            configs: alias -> how the recipe names the source.
            models: alias -> the opened model.
            reference: the alias whose configuration, buffers and tensor names the merged model has.
            files: alias -> what was measured of it, by kind.
            vocabulary: what the models were aligned by.
            resident: the device on which all weights are kept as float32; None: they stay on disk.
            like: what is kept there of the same models is kept here too.

        Raises:
            SourceError: when weights are made resident and some are not finite.
        """
        self.configs = dict(configs)
        self.models = dict(models)
        self.reference = reference
        self.vocabulary = vocabulary
        self.is_aligned = any(isinstance(model, AlignedModel) for model in models.values())
        """Whether some models are shown in another vocabulary than their own."""
        self.statistics = Statistics(self)
        self.results = ResultMemory()
        self.files = {alias: dict(found) for alias, found in (files or {}).items()}
        self._checked: set[tuple[str, StatisticKind, str]] = set()
        self._resident: dict[int, dict[str, Tensor]] = {}
        self._blocks: dict[int, Blocks] = {}
        self._kinds: dict[int, LayerKinds] = {}
        self._inputs_first: dict[int, bool] = {}
        self._layer_shapes: dict[tuple[int, int], Mapping[str, tuple[int, ...]]] = {}
        if like is not None:
            self._keep(like)
        if resident is not None:
            self._load(resident)

    def _keep(self, like: Sources) -> None:
        keys = {id(model) for model in self.models.values()}
        self._resident |= {key: value for key, value in like._resident.items() if key in keys}
        self._blocks |= {key: value for key, value in like._blocks.items() if key in keys}
        self._kinds |= {key: value for key, value in like._kinds.items() if key in keys}

    def _load(self, device: str) -> None:
        for alias, model in self.models.items():
            if id(model) in self._resident:
                continue  # one model under two aliases is kept once
            check_finite(model, alias)
            self._resident[id(model)] = {
                name: copied(model.tensor(name), device, torch.float32)
                for name in model.names()
                if not is_buffer(name, model.info(name))
            }

    def keep(self, device: str, *, pinned: bool = False) -> None:
        """Keep all weights from now on as they are stored, so that merging again reads no file.

        Args:
            device: where to keep them.
            pinned: keep them in page-locked memory of the host, from where GPUs copy fastest.

        Raises:
            SourceError: when some are not finite.
        """
        for alias, model in self.models.items():
            if id(model) in self._resident:
                continue
            check_finite(model, alias)
            kept = {
                name: copied(model.tensor(name), device)
                for name in model.names()
                if not is_buffer(name, model.info(name))
            }
            self._resident[id(model)] = {name: item.pin_memory() for name, item in kept.items()} if pinned else kept

    @cached_property
    def infos(self) -> Mapping[str, SourceInfo]:
        """Content hashes and number of layers of every source; the first use hashes every weight (cached).

        Raises:
            SourceError: when a file cannot be read any more.
        """
        return {
            alias: SourceInfo(
                model.content_hash,
                model.layout.num_layers,
                statistics={kind: file.content_hash for kind, file in self.files.get(alias, {}).items()},
            )
            for alias, model in self.models.items()
        }

    def speak(self, recipe: Recipe) -> bool:
        """Tell whether the models are in the vocabulary of a recipe over them."""
        if self.is_aligned and recipe.sources.keys() != self.models.keys():
            return False  # rows may be means over all of them
        plain = recipe.tokenizer is None or recipe.tokenizer.is_plain
        return self.vocabulary == vocabulary_rule(recipe) or (plain and not self.is_aligned)

    @property
    def num_layers(self) -> Mapping[str, int]:
        """Number of layers of every source."""
        return {alias: model.layout.num_layers for alias, model in self.models.items()}

    def blocks(self, alias: str) -> Blocks:
        """Return the roles of a source's tensors in its blocks.

        Raises:
            NotBuiltError: when its architecture is not understood.
        """
        model = self.models[alias]
        if id(model) not in self._blocks:
            self._blocks[id(model)] = Blocks(model, alias)
        return self._blocks[id(model)]

    def inputs_first(self, alias: str, name: str) -> bool:
        """Tell whether a source stores a matrix as (inputs, outputs), as GPT-2 does in its layers."""
        model = self.models[alias]
        if id(model) not in self._inputs_first:
            self._inputs_first[id(model)] = bool(inputs_first(model))
        return self._inputs_first[id(model)] and model.layout.place(name).layer is not None

    def is_vocabulary(self, alias: str, name: str) -> bool:
        """Tell whether a source's tensor has a row a token: an embedding or the head."""
        return self.models[alias].layout.place(name).module in ("embeddings", "head")

    def kinds(self, alias: str) -> LayerKinds:
        """Return what the configuration of a source says of each layer.

        Raises:
            NotBuiltError: when that cannot be known.
        """
        model = self.models[alias]
        if id(model) not in self._kinds:
            self._kinds[id(model)] = layer_kinds(model.config, model.layout.num_layers, alias)
        return self._kinds[id(model)]

    def layer_shapes(self, alias: str, layer: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the parameters of a source's layer, by their names within it."""
        model = self.models[alias]
        key = (id(model), layer)
        if key not in self._layer_shapes:
            self._layer_shapes[key] = layer_shapes(model, layer)
        return self._layer_shapes[key]

    def stored(self, alias: str, name: str) -> Tensor:
        """Return a tensor as the source stores it; it must not be changed."""
        return self.models[alias].tensor(name)

    def working(
        self,
        alias: str,
        name: str,
        device: str | None = None,
        *,
        window: tuple[int, int, int] | None = None,
        checked: bool = True,
    ) -> Tensor:
        """Return a tensor that is merged, as it is stored or kept, on a device (None: where it is).

        It must not be changed.

        Args:
            alias: the source.
            name: of the tensor in that source.
            device: where it is wanted.
            window: dimension, start and length of the part that is wanted; None: all of it.
            checked: whether NaN and infinite values are looked for, a pass of its own; False: the caller sees to it.

        Raises:
            SourceError: when it has NaN or infinite values.
        """
        model = self.models[alias]
        kept = self._resident.get(id(model))
        tensor = model.tensor(name) if kept is None else kept[name]
        if window is not None:
            tensor = tensor.narrow(*window)
        if checked and kept is None and not is_finite(tensor):
            raise self.not_finite(alias, name)
        return tensor if device is None else tensor.to(device)

    def check_measured(self, aliases: Sequence[str], kind: StatisticKind, method: str) -> None:
        """Refuse a method that needs to know of some sources what was not measured of them.

        Raises:
            RecipeError: naming the first such source and the kind.
        """
        for alias in aliases:
            if kind not in self.files.get(alias, {}):
                raise RecipeError(
                    f"sources.{alias}: method {method!r} needs the statistic {kind!r} of this source; compute it with "
                    f"`evomerge stats` and name its folder as `statistics`"
                )

    def measured(
        self,
        alias: str,
        kind: StatisticKind,
        name: str,
        device: str | None = None,
        *,
        window: tuple[int, int, int] | None = None,
    ) -> Statistic | None:
        """Return what was measured of a source's tensor, on a device (None: where it is); None: nothing.

        Args:
            alias: the source, of which there is a file of that kind.
            kind: what was measured.
            name: of the tensor in that source.
            device: where it is wanted.
            window: as in `working`, for an importance.

        Raises:
            SourceError: when it has values that it cannot have.
        """
        file = self.files[alias][kind]
        if (alias, kind, name) not in self._checked:
            file.check_values(name)
            self._checked.add((alias, kind, name))
        tensor = file.tensor(name)
        if tensor is None:
            return None
        model = self.models[alias]
        if isinstance(model, AlignedModel) and kind != "gram":
            tensor = model.moved(name, tensor)  # nothing was measured of rows that are not its own
        tensor = tensor if window is None else tensor.narrow(*window)
        return Statistic(
            tensor=tensor if device is None else tensor.to(device),
            mean=file.note.mean,
            median=file.note.median,
            norm=file.note.norm,
        )

    def not_finite(self, alias: str, name: str) -> SourceError:
        """Build the error about a source's tensor that is not finite."""
        return SourceError(not_finite_text(alias, name))


def vocabulary_rule(recipe: Recipe) -> VocabularyRule:
    """Return what of a recipe says where rows come from: its tokenizer, and its base where that counts."""
    rule = recipe.tokenizer
    return rule, recipe.base if rule is not None and rule.missing == "base" else None
