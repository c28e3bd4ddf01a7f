"""The recipe document: its keys, and how it is read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from evomerge.documents import Document, StrictModel, dump_yaml, parse_yaml, read_yaml
from evomerge.errors import ConfigError, RecipeError
from evomerge.recipe.blends import BlendConfig, SegmentConfig
from evomerge.recipe.checks import check_recipe
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.lines import LinesConfig
from evomerge.recipe.patterns import is_pattern

Dtype = Literal["float32", "bfloat16", "float16"]


class SourceConfig(StrictModel):
    """One source model, under its alias."""

    model: str | Recipe
    """`zoo:NAME`, a local folder, a hub id, or a whole recipe (a merge of merges)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    adapter: str | None = None
    """A LoRA adapter on top of the model: local folder or hub id."""
    adapter_revision: str | None = None
    statistics: str | None = None
    """Folder of what was measured of this source beforehand (`evomerge stats`), for methods that need it."""

    @field_validator("model", mode="before")
    @classmethod
    def _nested(cls, value: Any) -> Any:
        # Validated here and not by the union, so that a fault inside keeps its plain key path.
        return Recipe.model_validate(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _revisions(self) -> SourceConfig:
        if isinstance(self.model, str) and not (self.model.strip() and self.model.isprintable()):
            raise ValueError("the model is no name; give a folder, a hub id, `zoo:NAME` or a recipe")
        if isinstance(self.model, Recipe) and self.revision is not None:
            raise ValueError("a nested recipe has no revision; give revisions to its own sources")
        if self.adapter is None and self.adapter_revision is not None:
            raise ValueError("adapter_revision needs an adapter")
        return self


class TokenConfig(StrictModel):
    """Where the rows of one token come from, in sources that lack it."""

    from_: str | None = Field(default=None, alias="from")
    """Alias of the source whose row is taken; left out: the usual rule for missing rows."""
    token: str | int | None = None
    """Another token of that source, or its id, whose row is taken; left out: the same token's."""
    zero: bool = False
    """Whether the row is zero instead."""
    everywhere: bool = False
    """Whether this also replaces the rows of sources that have the token."""

    @model_validator(mode="after")
    def _one_origin(self) -> TokenConfig:
        if self.zero and self.from_ is not None:
            raise ValueError("give one of `from` and `zero`")
        if self.token is not None and self.from_ is None:
            raise ValueError("`token` needs `from`, the source that has it")
        return self


class TokenizerConfig(StrictModel):
    """The merged model's vocabulary: that of one source, or the union of several; all sources are aligned to it."""

    from_: str | None = Field(default=None, alias="from")
    """Alias of the source whose tokenizer is taken as it is."""
    union: tuple[str, ...] | None = None
    """Aliases whose vocabularies are united: the first one's tokenizer and ids, then what the others add."""
    missing: Literal["mean", "zero", "base"] = "mean"
    """Rows of a source that lacks a token: the mean of the sources that have it, zero, or the base's (where the base
    lacks it too, the mean)."""
    tokens: dict[str, TokenConfig] = Field(default_factory=dict)
    """Rules for single tokens; those that the tokenizer lacks are added to it."""
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    """The embeddings have the least multiple of this that holds all tokens; left out: as many rows as the source whose
    ids are kept, or more where tokens are added."""

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizerConfig:
        if (self.from_ is None) == (self.union is None):
            raise ValueError("give exactly one of `from` (an alias) and `union` (a list of aliases)")
        if self.union is not None and len(set(self.union)) < max(2, len(self.union)):
            raise ValueError("a union needs at least two different sources")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it is one source's tokenizer, unchanged."""
        return self.from_ is not None and not self.tokens and self.pad_to_multiple_of is None


class ModulesConfig(StrictModel):
    """Blends of the module groups of a layer."""

    attention: BlendConfig | None = None
    mlp: BlendConfig | None = None
    other: BlendConfig | None = None
    """What is neither attention nor MLP, such as the norms of the layer."""


class TensorsConfig(StrictModel):
    """What holds for the tensors whose names match: a blend, or that one source has them as they are."""

    match: str | tuple[str, ...]
    """Dotted parts of the merged model's tensor names, `*` for any text within a part: `q_proj`, `*norm*`,
    `layers.0.mlp`; or several such patterns, any of which."""
    blend: BlendConfig | None = None
    """Overrides the blend of the place key by key; naming another method discards what it inherits."""
    from_: str | None = Field(default=None, alias="from")
    """Alias of the source whose tensors are taken as they are, even where the layer or part does not take it."""

    @field_validator("match")
    @classmethod
    def _patterns(cls, match: str | tuple[str, ...]) -> str | tuple[str, ...]:
        patterns = (match,) if isinstance(match, str) else match
        for pattern in patterns:
            if not is_pattern(pattern):
                raise ValueError(
                    f"{pattern!r:.60} is no pattern of tensor names; give dotted parts such as `mlp.up_proj`"
                )
        if not patterns:
            raise ValueError("give at least one pattern, for instance `q_proj`")
        return match

    @model_validator(mode="after")
    def _one_of_both(self) -> TensorsConfig:
        if (self.blend is None) == (self.from_ is None):
            raise ValueError("give exactly one of `blend` and `from` (an alias)")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns, one or several."""
        return (self.match,) if isinstance(self.match, str) else self.match


class PartConfig(StrictModel):
    """A part of the model outside its layers."""

    take: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Aliases that take part; left out: all. One source alone, with no blend here, is copied as it is."""
    blend: BlendConfig | None = None
    tensors: tuple[TensorsConfig, ...] = ()
    """Overrides it for the tensors that match; the first match counts, before those of the whole recipe."""


class LayerConfig(StrictModel):
    """One output layer: which source layers it takes, and how they blend."""

    take: dict[str, int] = Field(min_length=1)
    """Alias -> layer index, from 0. One source alone, with no blend here, is copied as it is."""
    scale: float = 1.0
    """Factor on the hidden stream that enters this layer, not 0."""
    blend: BlendConfig | None = None
    """Overrides the recipe's blend key by key; naming another method discards what it inherits."""
    modules: ModulesConfig | None = None
    """Overrides this layer's blend within a module group."""
    tensors: tuple[TensorsConfig, ...] = ()
    """Overrides both for the tensors that match; the first match counts, before those of the whole recipe."""


def _is_mapping(segments: Any) -> str:
    return "chromosomes" if isinstance(segments, Mapping) else "list"


_SegmentList = Annotated[tuple[SegmentConfig, ...], Field(min_length=1)]
Segments = Annotated[
    Annotated[_SegmentList, Tag("list")] | Annotated[dict[str, _SegmentList], Field(min_length=1), Tag("chromosomes")],
    Discriminator(_is_mapping),
]
"""A list of segments, or one for each chromosome."""


class Recipe(StrictModel):
    """An immutable document that fully determines a merged model's weights.

    Example:
        >>> recipe = Recipe.from_yaml('''
        ... recipe: 1
        ... sources: {base: {model: "zoo:base"}, math: {model: "zoo:math"}}
        ... base: base
        ... blend: {method: task_arithmetic, weight: 0.5}
        ... ''')
        >>> recipe == Recipe.from_mapping(recipe.to_mapping())
        True
    """

    recipe: Literal[1]
    """Version of this schema."""
    sources: dict[str, SourceConfig] = Field(min_length=1)
    base: str | None = None
    """Alias of the source from which task vectors are taken."""
    dtype: Dtype = "bfloat16"
    """Storage type of the merged weights; blending is done in float32."""
    tokenizer: TokenizerConfig | None = None
    """Left out: the base's."""
    seed: int = Field(default=0, ge=0)
    """Seed of random masks; of no meaning where no method draws any."""
    blend: BlendConfig | None = None
    """How the sources blend, unless something below says otherwise."""
    modules: ModulesConfig | None = None
    """Overrides the blend within a module group of every layer."""
    layers: tuple[LayerConfig, ...] | None = Field(default=None, min_length=1)
    """Output layers in order; left out: every layer of all sources, one to one."""
    embeddings: PartConfig | None = None
    """Token and position embeddings."""
    head: PartConfig | None = None
    """Final norm and language-model head."""
    tensors: tuple[TensorsConfig, ...] = ()
    """Overrides everything above for the tensors that match, wherever they are; the first match counts. Layers that
    copy one source stay copies."""
    lines: LinesConfig | None = None
    """LiNeS, or a global scale: how much of what the merge adds to the base is kept, tensors that one source has as
    they are included. Needs a base, which takes part in every layer."""
    segments: Segments | None = None
    """Piecewise blends, instead of layers: ranges of the flat parameter index (the merged parameters by name), or of
    each of several chromosomes: the module groups named, and `rest` for the others (left out: `blend` alone)."""

    @field_validator("sources")
    @classmethod
    def _plain_aliases(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        for alias in sources:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", alias):
                raise ValueError(f"the alias {alias!r} may hold letters, digits, '.', '_' and '-' alone")
        return sources

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        try:
            check_recipe(self)
        except RecipePathError as fault:
            # A line error of its own keeps the key path, also below the keys of an outer document.
            details = InitErrorDetails(
                type="value_error", loc=fault.path, input=None, ctx={"error": RecipeError(fault.text)}
            )
            raise ValidationError.from_exception_data("Recipe", [details]) from None
        return self

    def __hash__(self) -> int:
        """Hash by value; never used for identity, which is a SHA-256."""
        return hash(json.dumps(self.to_mapping(), sort_keys=True))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Recipe:
        """Validate plain data into a recipe.

        Raises:
            RecipeError: with the key path of the first fault.
        """
        return _read(lambda: Document(data=data, name="", lines={}))

    @classmethod
    def from_yaml(cls, text: str, name: str = "recipe") -> Recipe:
        """Read a recipe from YAML text; `name` is what errors call it.

        Raises:
            RecipeError: with the line and key path of the first fault.
        """
        return _read(lambda: parse_yaml(text, name))

    def to_mapping(self) -> dict[str, Any]:
        """Return the recipe as plain JSON data, defaults left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def to_yaml(self) -> str:
        """Return the recipe as YAML text, defaults left out."""
        return dump_yaml(self.to_mapping())


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: when it is missing, unreadable or wrong, with the line and key path of the first fault.
    """
    return _read(lambda: read_yaml(path))


def _read(document: Callable[[], Document]) -> Recipe:
    try:
        return document().parse(Recipe)
    except RecipeError:
        raise
    except ConfigError as error:
        raise RecipeError(str(error)) from None
