"""Sources whose weight is pinned while a search runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe
from evomerge.spaces.checking import check_value
from evomerge.spaces.types import Dimension, Genome, Space, Value


@runtime_checkable
class Weighted(Protocol):
    """A space that knows which of its dimensions are the weights of a source."""

    def weights_of(self, source: str) -> tuple[str, ...]:
        """Return the names of the dimensions that are weights of a source; none for one that has none."""
        ...


@runtime_checkable
class Reweighted(Protocol):
    """A space with genomes that are not one value a dimension; it pins weights in these itself."""

    def with_weights(self, genome: Genome, weights: Mapping[str, float]) -> Genome:
        """Return the genome with these weights, by source."""
        ...


class HeldSpace:
    """A space in which a person pins the weights of sources; all else is the space's own.

    Searchers issue candidates with the weights as pinned (`settled`), and otherwise go on as they do: along a pinned
    dimension a distribution samples what is not expressed, as it does along an inactive one. Freed, it varies again
    from where the searcher has it.

    Args:
        space: the space.
    """

    def __init__(self, space: Space) -> None:
        self.own = space
        """The space itself."""
        self._weights: dict[str, float] = {}
        self._pinned: dict[str, Value] = {}

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The space's dimensions."""
        return self.own.dimensions

    @property
    def start(self) -> Genome:
        """The space's start."""
        return self.own.start

    @property
    def held(self) -> Mapping[str, float]:
        """Source -> what its weight is pinned to."""
        return self._weights

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome."""
        return self.own.decode(genome)

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome of a recipe of the space."""
        return self.own.encode(recipe)

    def hold(self, source: str, weight: float | None) -> None:
        """Pin the weight of a source from now on; None frees it.

        Raises:
            ConfigError: for a source whose weight does not vary here, or a weight outside of its range; nothing has
                changed then.
        """
        if not isinstance(self.own, Weighted) or not self.own.weights_of(source):
            raise ConfigError(
                f"sources.{source}: its weight does not vary in this run's space, so it can be neither pinned nor "
                "banned; hold another source"
            )
        before = dict(self._weights)
        self._weights.pop(source, None)
        if weight is not None:
            self._weights[source] = weight
        try:
            self._pinned = self._values()
            self.own.decode(self.settled(self.start))
        except ConfigError:
            self._weights = before
            self._pinned = self._values()
            raise

    def settled(self, genome: Genome) -> Genome:
        """Return a genome with the weights as they are pinned; a weight that is not active stays so."""
        if not self._weights:
            return genome
        if isinstance(self.own, Reweighted):
            return self.own.with_weights(genome, self._weights)
        return with_values(self.dimensions, genome, self._pinned)

    def _values(self) -> dict[str, Value]:
        """Return the pinned dimensions.

        Raises:
            ConfigError: for a weight outside of a dimension's range.
        """
        dimensions = {dimension.name: dimension for dimension in self.dimensions}
        names = self.own.weights_of if isinstance(self.own, Weighted) else lambda _: ()
        found: dict[str, Value] = {}
        for source, weight in self._weights.items():
            for name in names(source):
                whole = dimensions[name].kind == "int" and weight.is_integer()
                found[name] = int(weight) if whole else weight
                _check(source, dimensions[name], found[name])
        return found

    def __getattr__(self, name: str) -> object:
        return getattr(self.own, name)


def with_values(dimensions: Sequence[Dimension], genome: Genome, values: Mapping[str, Value]) -> Genome:
    """Return a genome of one value a dimension with other values in its active dimensions, by name."""
    pairs = zip(dimensions, genome, strict=True)
    return tuple(value if value is None else values.get(dimension.name, value) for dimension, value in pairs)


def _check(source: str, dimension: Dimension, value: Value) -> None:
    try:
        check_value(dimension, value)
    except ConfigError as error:
        text = str(error).removeprefix("genome: ")
        raise ConfigError(f"sources.{source}: it cannot be held there: {text}") from None
