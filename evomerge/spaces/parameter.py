"""The parameter space: coefficients of merge methods, shared over groups of layers and modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.operators import OperatorSpec, Parameter
from evomerge.recipe import BlendConfig, PartConfig, Recipe, SourceConfig, TokenizerConfig
from evomerge.spaces.checking import check_genome, check_inverse
from evomerge.spaces.config import SpaceConfig
from evomerge.spaces.genes import MethodGenes, gene_value, method_genes, setting_value
from evomerge.spaces.groups import Site, build_sites
from evomerge.spaces.lines import lines_dimensions, lines_genes, lines_section
from evomerge.spaces.types import Dimension, Genome, Value

_METHOD = "method"


@dataclass(frozen=True, slots=True)
class _Gene:
    """A dimension, and where its value stands in a recipe."""

    dimension: Dimension
    method: str
    parameter: Parameter
    alias: str | None
    """The source, for a parameter with a value for each."""
    site: Site


class ParameterSpace:
    """Coefficients of merge methods, one set for each group of layers, module group and source.

    Dimensions are named `weight/math/layers.0-3/attention`: parameter, source if it has a value for each,
    layer group and module group if there are several. With several methods, the first dimension is `method`, or
    there is one for each group (`method/layers.0-3/attention`), and the names of the others begin with the method
    under which they are active. The last ones are `lines/alpha` and `lines/beta`, where LiNeS is searched.

    Args:
        config: the `space:` section, of kind `parameter`.
        sources: alias -> source, the base included.
        base: alias of the base, for methods that need one.
        num_layers: layers of every source.
        dtype: of the merged weights, as in a recipe.
        tokenizer: as in a recipe.
        seed: of random masks, as in a recipe.

    Raises:
        ConfigError: when the section does not fit the methods or the sources.
    """

    def __init__(
        self,
        config: SpaceConfig,
        *,
        sources: Mapping[str, SourceConfig],
        base: str | None,
        num_layers: int,
        dtype: str = "bfloat16",
        tokenizer: TokenizerConfig | None = None,
        seed: int = 0,
    ) -> None:
        if base is not None and base not in sources:
            raise ConfigError(f"base: {base!r} is not a source{did_you_mean(base, sources)}")
        self._sites = build_sites(config.groups, num_layers)
        self._num_layers = num_layers
        self._sources = dict(sources)
        self._base = base
        self._head: dict[str, Any] = {"recipe": 1, "sources": self._sources, "dtype": dtype, "seed": seed}
        self._head |= {"base": base} if base is not None else {}
        self._head |= {"tokenizer": tokenizer} if tokenizer is not None else {}
        self._methods = {genes.spec.name: genes for genes in method_genes(config)}
        self._blended = {name: self._aliases(genes.spec) for name, genes in self._methods.items()}
        self._config = config
        self._choices = self._choices_of(tuple(self._methods))
        self._genes = tuple(gene for genes in self._methods.values() for gene in self._genes_of(genes))
        self._lines = lines_dimensions(config.lines)
        choices = {choice.name: choice for choice in self._choices.values()}
        self._dimensions = (*choices.values(), *(gene.dimension for gene in self._genes), *self._lines)
        if not self._dimensions:
            raise ConfigError("space.parameters: every parameter is fixed, so there is nothing to search")
        for method in self._methods:
            self.decode(self._start(method))  # whatever is wrong shows now, and not at the first candidate

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions, in the order of a genome."""
        return self._dimensions

    @property
    def start(self) -> Genome:
        """The operator's defaults within the ranges, and the middle of the range for weights of task vectors.

        With several methods, the first one's.
        """
        return self._start(next(iter(self._methods)))

    def _start(self, method: str) -> Genome:
        """Return the defaults with one method everywhere."""
        chosen = dict.fromkeys((choice.name for choice in self._choices.values()), method)
        inactive = {gene.dimension.name for gene in self._genes if gene.method != method}
        return tuple(
            None if dimension.name in inactive else chosen.get(dimension.name, dimension.default)
            for dimension in self._dimensions
        )

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome.

        Raises:
            ConfigError: when the genome does not fit the dimensions.
        """
        active = check_genome(self._dimensions, genome)
        settings: dict[Site, dict[str, Any]] = {site: {} for site in self._sites.every}
        for gene in self._genes:
            if gene.dimension.name not in active:
                continue
            written = setting_value(gene.parameter, active[gene.dimension.name])
            if gene.alias is None:
                settings[gene.site][gene.parameter.name] = written
            else:
                settings[gene.site].setdefault(gene.parameter.name, {})[gene.alias] = written
        only = next(iter(self._methods))
        methods = {site: str(active[self._choices[site].name]) if self._choices else only for site in self._sites.every}
        return Recipe.from_mapping(self._document(methods, settings) | lines_section(self._config.lines, active))

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome of a recipe of this space.

        Raises:
            ConfigError: when no genome of this space decodes to the recipe.
        """
        found: dict[str, Value] = dict(lines_genes(recipe))
        methods: dict[Site, str | None] = {}
        for site in self._sites.every:
            blend = self._blend_at(recipe, site) if self._config.groups.method else recipe.blend
            methods[site] = blend.method if blend is not None else None
        found |= {choice.name: methods[site] for site, choice in self._choices.items()}
        for gene in self._genes:
            if not self._choices or gene.method == methods[gene.site]:
                found[gene.dimension.name] = self._read(gene, recipe)
        genome = tuple(found.get(dimension.name) for dimension in self._dimensions)
        return check_inverse(self.decode, genome, recipe)

    def weights_of(self, source: str) -> tuple[str, ...]:
        """Return the names of the dimensions that are weights of a source; none for one that has none."""
        weights = (gene for gene in self._genes if gene.parameter.name == "weight" and gene.alias == source)
        return tuple(gene.dimension.name for gene in weights)

    def _choices_of(self, names: tuple[str, ...]) -> dict[Site, Dimension]:
        """Return the dimension that chooses the method of each site; with one method, none."""
        if len(names) == 1:
            return {}
        found = {}
        for site in self._sites.every:
            name = f"{_METHOD}/{site.label}" if self._config.groups.method and site.label else _METHOD
            found[site] = Dimension(name=name, kind="choice", choices=names, default=names[0])
        return found

    def _aliases(self, spec: OperatorSpec) -> tuple[str, ...]:
        """Return the sources that a method gives a value to each.

        Raises:
            ConfigError: when the method cannot blend that many, or lacks a base.
        """
        if spec.base == "required" and self._base is None:
            raise ConfigError(f"space.method: method {spec.name!r} needs a base; name one of the sources as `base`")
        blended = tuple(alias for alias in self._sources if spec.base == "ignored" or alias != self._base)
        try:
            spec.check_count(len(blended))
        except ConfigError as error:
            raise ConfigError(f"space.method: {error}") from None
        return blended

    def _genes_of(self, genes: MethodGenes) -> list[_Gene]:
        method = genes.spec.name
        found = []
        for name, (parameter, dimension) in genes.searched.items():
            aliases = self._blended[method] if parameter.per_source else (None,)
            for alias in aliases:
                for site in self._sites.every:
                    words = (method if self._choices else "", name, alias or "", site.label)
                    named = replace(
                        dimension,
                        name="/".join(word for word in words if word),
                        default=self._default(genes.spec, parameter, dimension),
                        active_when=(self._choices[site].name, method) if self._choices else None,
                    )
                    found.append(_Gene(named, method, parameter, alias, site))
        return found

    def _default(self, spec: OperatorSpec, parameter: Parameter, dimension: Dimension) -> Value:
        if parameter.name != "weight" or dimension.kind != "float":
            return dimension.default
        if spec.base == "ignored":
            # The plain average, whether or not the method divides by the sum of the weights.
            return min(dimension.high, max(dimension.low, 1.0 / len(self._blended[spec.name])))
        # Task vectors at full strength add up to too much; the middle is where Akiba et al. 2025 begin.
        return dimension.from_unit(0.5)

    def _fixed(self, method: str) -> dict[str, Any]:
        genes = self._methods[method]
        fixed: dict[str, Any] = dict(genes.fixed)
        if genes.spec.base == "ignored" and self._base is not None:
            # Such a method blends the base only where it is named.
            for name, value in genes.fixed.items():
                if genes.spec.parameter(name).per_source:
                    fixed[name] = dict.fromkeys(self._blended[method], value)
        return fixed

    def _document(self, methods: Mapping[Site, str], settings: Mapping[Site, Mapping[str, Any]]) -> dict[str, Any]:
        sites = self._sites
        document = dict(self._head)
        if self._config.groups.method:
            settings = {
                site: {"method": method, **self._fixed(method), **settings[site]} for site, method in methods.items()
            }
        else:
            method = methods[sites.leaders[0]]
            document["blend"] = {"method": method, **self._fixed(method)}
        if sites.whole:
            leader = sites.leaders[0]
            document["blend"] = document.get("blend", {}) | settings[leader]
            document |= {"modules": _modules(sites.group(leader), settings)}
            parts = {site.part: settings[site] for site in sites.every if site.part != "layers"}
        else:
            document["layers"] = [
                {
                    "take": dict.fromkeys(self._sources, index),
                    "blend": settings[leader],
                    "modules": _modules(sites.group(leader), settings),
                }
                for leader in sites.leaders
                for index in range(*leader.layers)
            ]
            parts = {part: settings[sites.leader_of(part)] for part in ("embeddings", "head")}
        document |= {part: {"blend": blend} for part, blend in parts.items()}
        return document | self._same_for_all(document)

    def _same_for_all(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the section says of the embeddings, the head and single tensors, as a recipe has it."""
        found: dict[str, Any] = {"tensors": self._config.tensors} if self._config.tensors else {}
        for part in ("embeddings", "head"):
            config: PartConfig | None = getattr(self._config, part)
            if config is not None:
                written = config.model_dump(by_alias=True, exclude_defaults=True)
                is_copy = len(config.take or ()) == 1 and config.blend is None
                found[part] = written if is_copy else document.get(part, {}) | written
        return found

    def _read(self, gene: _Gene, recipe: Recipe) -> Value:
        """Return a gene's value as the recipe writes it, or None where it does not."""
        blend = self._blend_at(recipe, gene.site)
        setting = blend.settings.get(gene.parameter.name) if blend is not None else None
        if gene.alias is not None:
            setting = setting.get(gene.alias) if isinstance(setting, Mapping) else None
        return gene_value(gene.parameter, setting)

    def _blend_at(self, recipe: Recipe, site: Site) -> BlendConfig | None:
        return _blend_at(recipe, site, whole=self._sites.whole)


def _modules(sites: tuple[Site, ...], settings: Mapping[Site, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the module overrides of a layer group, or None where its leader speaks for all."""
    own: dict[str, Any] = {module: settings[site] for site in sites if not site.leads for module in site.modules}
    return own or None


def _blend_at(recipe: Recipe, site: Site, *, whole: bool) -> BlendConfig | None:
    """Return the blend of a recipe that holds a site's coefficients."""
    if site.part != "layers":
        part = recipe.embeddings if site.part == "embeddings" else recipe.head
        return part.blend if part is not None else None
    if whole:
        blend, modules = recipe.blend, recipe.modules
    elif recipe.layers is not None and site.layers[0] < len(recipe.layers):
        layer = recipe.layers[site.layers[0]]
        blend, modules = layer.blend, layer.modules
    else:
        return None
    if site.leads:
        return blend
    return getattr(modules, site.modules[0]) if modules is not None else None
