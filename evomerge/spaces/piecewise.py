"""The piecewise space: mixtures of the sources that change along the flat index of the weights.

An individual has two ways to be written as a genome. Numbers, one a dimension, say the mixture of each of a few equal
chunks: what searchers of numbers make. What crossing makes has pieces anywhere, and its genome begins with a word:
`("pieces", S, ends..., weights..., seed, scales..., ...)` for S pieces: where each ends (positions of the grid of
`Grams`), the weights of all sources piece by piece, and for each noise its seed and its scale in each piece. An
individual that numbers can say is always written as numbers, so that each has one genome and one recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, SegmentConfig, SourceConfig, TokenizerConfig, written_segments
from evomerge.spaces import pieces as algebra
from evomerge.spaces.breeding import Angle, Chromosome
from evomerge.spaces.checking import check_genome, check_inverse
from evomerge.spaces.config import SpaceConfig
from evomerge.spaces.grams import Grams, Matrix, Positions
from evomerge.spaces.held import with_values
from evomerge.spaces.pieces import Pieces, simplified
from evomerge.spaces.types import Dimension, Genome

WHOLE = "whole"
"""Name of the chromosome of a space that splits the model as one."""
_WORD = "pieces"
_BLEND = {"method": "linear", "normalize": False}


class PiecewiseSpace:
    """Piecewise mixtures of the sources, for searchers of numbers and for those that cross individuals.

    Dimensions are named `weight/math/attention/chunk.3`: the source, the chromosome where there are several, the chunk.

    Args:
        config: the `space:` section, of kind `piecewise`.
        grams: of the sources, over the chromosomes of the section.
        sources: alias -> source, the base included, which is mixed as the others are.
        base: alias of the base, if any.
        dtype: of the merged weights, as in a recipe.
        tokenizer: as in a recipe.

    Raises:
        ConfigError: when the section does not fit the sources.
    """

    def __init__(
        self,
        config: SpaceConfig,
        grams: Grams,
        *,
        sources: Mapping[str, SourceConfig],
        base: str | None = None,
        dtype: str = "bfloat16",
        tokenizer: TokenizerConfig | None = None,
    ) -> None:
        if len(sources) < 2:
            raise ConfigError(f"sources: a piecewise space mixes at least two sources, got {len(sources)}")
        if grams.aliases != tuple(sources):
            raise ConfigError(f"sources: the Gram matrices are of {', '.join(grams.aliases)}, not of these sources")
        for part in grams.chromosomes:
            if part.size == 0:
                raise ConfigError(f"space.chromosomes: the models have no weights in {part.name!r}; leave it out")
        self.grams = grams
        self._low, self._high = config.range
        self._chunk_ends = _chunk_ends(grams, config.chunks)
        self._dimensions = tuple(
            self._dimension(label, alias) for label in self._labels(config.chunks) for alias in grams.aliases[1:]
        )
        self._head: dict[str, Any] = {"recipe": 1, "sources": dict(sources), "dtype": dtype, "blend": _BLEND}
        self._head |= {"base": base} if base is not None else {}
        self._head |= {"tokenizer": tokenizer} if tokenizer is not None else {}
        self.decode(self.start)  # whatever is wrong with the sources shows now, and not at the first candidate

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """One weight for each chunk of each chromosome and each source but the first."""
        return self._dimensions

    @property
    def start(self) -> Genome:
        """The plain average of the sources, within the range."""
        return tuple(dimension.default for dimension in self._dimensions)

    @property
    def chromosomes(self) -> tuple[Chromosome, ...]:
        """The parts of the weights, in order."""
        return self.grams.chromosomes

    def founders(self) -> tuple[Pieces, ...]:
        """Return the sources themselves, in order of declaration."""
        return algebra.founders(self.grams)

    def cross(self, first: Pieces, second: Pieces, *, splits: Sequence[int], mix: float, angle: Angle) -> Pieces:
        """Cross two individuals; see `BreedingSpace.cross`.

        Raises:
            ValueError: for a wrong number of split points, or one outside of its chromosome.
        """
        return algebra.cross(self.grams, first, second, splits=splits, mix=mix, angle=angle)

    def mutate(self, individual: Pieces, *, seed: int, scale: float) -> Pieces:
        """Add `scale` times the noise of a seed to all weights.

        Raises:
            ValueError: for a seed or a scale out of range.
        """
        return algebra.mutate(individual, seed=seed, scale=scale)

    def genome(self, individual: Pieces) -> Genome:
        """Return an individual as what the journal stores."""
        numbers = self._numbers(individual)
        if numbers is not None:
            return numbers
        flat: list[float] = individual.weights.ravel().tolist()
        noises: list[int | float] = []
        for seed, scales in zip(individual.seeds, individual.scales.T.tolist(), strict=True):
            noises += [seed, *scales]
        return (_WORD, len(individual.ends), *individual.ends.tolist(), *flat, *noises)

    def individual(self, genome: Genome) -> Pieces:
        """Return the individual of a genome, of pieces or of numbers.

        Raises:
            ConfigError: when it is of another space.
        """
        if not genome or genome[0] != _WORD:
            check_genome(self._dimensions, genome)
            others = np.array(genome, dtype=np.float64).reshape(len(self._chunk_ends), -1).T + 0.0
            return simplified(self.grams, self._chunk_ends, np.vstack([_first(others), others]))
        return self._from_pieces(genome)

    def numeric(self, genome: Genome) -> Genome:
        """Return a genome of numbers: itself, or for one of pieces what is nearest to it.

        A chunk's mixture is the mean over its weights, brought to a sum of 1 and into the range; noise is left out.

        Raises:
            ConfigError: when it is of another space.
        """
        individual = self.individual(genome)
        numbers = self._numbers(individual)
        return self._nearest(individual) if numbers is None else numbers

    def weights_of(self, source: str) -> tuple[str, ...]:
        """Return the names of the dimensions that are weights of a source; the first has what the others leave."""
        return tuple(name for name in (d.name for d in self._dimensions) if name.startswith(f"weight/{source}/"))

    def with_weights(self, genome: Genome, weights: Mapping[str, float]) -> Genome:
        """Return a genome, of pieces or of numbers, with other weights of sources, for which the first one makes up.

        Raises:
            ConfigError: when it is of another space.
        """
        if not genome or genome[0] != _WORD:
            values = {name: weight for source, weight in weights.items() for name in self.weights_of(source)}
            return with_values(self._dimensions, genome, values)
        individual = self.individual(genome)
        coefficients = individual.coefficients.copy()
        for source, weight in weights.items():
            row = self.grams.aliases.index(source)
            coefficients[0] += coefficients[row] - weight
            coefficients[row] = weight
        return self.genome(simplified(self.grams, individual.ends, coefficients, individual.seeds))

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome, of pieces or of numbers.

        Raises:
            ConfigError: when it is of another space.
        """
        return self.recipe(self.individual(genome))

    def recipe(self, individual: Pieces) -> Recipe:
        """Return the recipe of an individual."""
        before = self.grams.weights_before(individual.ends).tolist()
        weights, scales = individual.weights.tolist(), individual.scales.tolist()
        written: dict[str, list[dict[str, Any]]] = {}
        begin, place = 0, 0
        for chromosome, end in zip(self.chromosomes, self.grams.offsets[1:].tolist(), strict=True):
            segments = written.setdefault(chromosome.name, [])
            last = int(np.searchsorted(individual.ends, end))
            for index in range(place, last + 1):
                mixture = {alias: one for alias, one in zip(self.grams.aliases, weights[index], strict=True) if one}
                segments.append({"until": before[index] - begin, "weight": mixture})
                if any(scales[index]):
                    noises = zip(individual.seeds, scales[index], strict=True)
                    segments[-1]["noise"] = {str(seed): scale for seed, scale in noises if scale}
            del segments[-1]["until"]
            begin, place = before[last], last + 1
        return Recipe.from_mapping(self._head | {"segments": written.get(WHOLE, written)})

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome of a recipe of this space.

        Raises:
            ConfigError: when no genome of this space decodes to the recipe.
        """
        found = self._read(recipe)
        return check_inverse(self.decode, () if found is None else self.genome(found), recipe)

    def _labels(self, chunks: int) -> list[str]:
        names = [part.name for part in self.chromosomes]
        several = len(names) > 1
        return [f"{name}/chunk.{index}" if several else f"chunk.{index}" for name in names for index in range(chunks)]

    def _dimension(self, label: str, alias: str) -> Dimension:
        default = min(self._high, max(self._low, 1.0 / len(self.grams.aliases)))
        name = f"weight/{alias}/{label}"
        return Dimension(name=name, kind="float", low=self._low, high=self._high, default=default)

    def _numbers(self, individual: Pieces) -> Genome | None:
        """Return the individual as one number a dimension, where it can be said so."""
        if individual.seeds or len(individual.ends) > len(self._chunk_ends):
            return None
        if not np.isin(individual.ends, self._chunk_ends).all():
            return None
        rows = individual.coefficients[:, np.searchsorted(individual.ends, self._chunk_ends)]
        others = rows[1:]
        within = (others >= self._low) & (others <= self._high)
        if not within.all() or not np.array_equal(rows[0], _first(others)):
            return None
        return tuple(others.T.ravel().tolist())

    def _nearest(self, individual: Pieces) -> Genome:
        ends = np.union1d(individual.ends, self._chunk_ends)
        lengths = np.diff(self.grams.weights_before(ends), prepend=0)
        firsts = np.searchsorted(ends, np.insert(self._chunk_ends[:-1], 0, 0), side="right")
        rows = individual.weights.T[:, np.searchsorted(individual.ends, ends)]
        sums = np.add.reduceat(rows * lengths, firsts, axis=1)
        total = sums.sum(axis=0)
        whole = np.where(total > 0, total, np.add.reduceat(lengths, firsts))
        others: list[float] = np.clip(sums[1:] / whole, self._low, self._high).T.ravel().tolist()
        return tuple(others)

    def _from_pieces(self, genome: Genome) -> Pieces:
        """Read a genome that begins with the word.

        Raises:
            ConfigError: when it is none of this space.
        """
        found = _parse(genome, len(self.grams.aliases))
        if found is None or not _are_ends(self.grams, found.ends):
            text = "these pieces do not fit the sources; the genome belongs to another space"
            raise ConfigError(f"genome: {text}")
        return simplified(self.grams, found.ends, found.coefficients, found.seeds)

    def _read(self, recipe: Recipe) -> Pieces | None:
        """Return the individual that a recipe's segments say, or None where they say none."""
        by_name = {str(name): segments for name, (_, segments) in written_segments(recipe).items()}
        names = {WHOLE: "rest"} if isinstance(recipe.segments, tuple) else {}
        ends: list[int] = []
        rows: list[dict[str, float]] = []
        blocks = self.grams.blocks.tolist()
        for part, start, block in zip(self.chromosomes, self.grams.starts, blocks, strict=True):
            for segment in by_name.get(names.get(part.name, part.name), ()):
                until = part.size if segment.until is None else segment.until
                ends.append(start + min(-(-until // block), part.positions))
                rows.append(_coefficients(segment))
        seeds = tuple(sorted({int(key[1:]) for row in rows for key in row if key.startswith("#")}))
        keys = [*self.grams.aliases, *(f"#{seed}" for seed in seeds)]
        found = np.array(ends, dtype=np.int64)
        if not _are_ends(self.grams, found):
            return None
        return simplified(self.grams, found, np.array([[row.get(key, 0.0) for row in rows] for key in keys]), seeds)


def _chunk_ends(grams: Grams, chunks: int) -> Positions:
    ends: list[int] = []
    for part, start in zip(grams.chromosomes, grams.starts, strict=True):
        if chunks > part.positions:
            raise ConfigError(
                f"space.chunks: {chunks} chunks were asked for, but chromosome {part.name!r} can be cut into "
                f"{part.positions} at most; give fewer"
            )
        ends += [start + index * part.positions // chunks for index in range(1, chunks + 1)]
    return np.array(ends, dtype=np.int64)


def _first(others: Matrix) -> Matrix:
    """Return what the other sources leave of 1 for the first one."""
    left = np.ones(others.shape[1])
    for row in others:
        left = left - row
    return left


def _are_ends(grams: Grams, ends: Positions) -> bool:
    """Tell whether positions rise and the ends of all chromosomes are among them."""
    rising = len(ends) > 0 and ends[0] > 0 and ends[-1] == grams.offsets[-1] and (ends[1:] > ends[:-1]).all()
    return bool(rising) and bool(np.isin(grams.offsets[1:], ends).all())


def _coefficients(segment: SegmentConfig) -> dict[str, float]:
    """Return the weights of a segment by alias, and its noises by `#` and the seed (no alias begins so)."""
    weight = segment.settings.get("weight")
    weights = {alias: float(one) for alias, one in weight.items()} if isinstance(weight, Mapping) else {}
    return weights | {f"#{seed}": scale for seed, scale in segment.noise.items()}


def _parse(genome: Genome, sources: int) -> Pieces | None:
    """Return what a genome of pieces says, or None where it is none; its ends are not checked."""
    count = genome[1] if len(genome) > 1 and isinstance(genome[1], int) else 0
    begin, rest = 2 + count, 2 + count * (1 + sources)
    ends, flat = genome[2:begin], genome[begin:rest]
    rows = [genome[place : place + 1 + count] for place in range(rest, len(genome), 1 + count)]
    seeds = [row[0] for row in rows]
    numbers = [*flat, *(one for row in rows for one in row[1:])]
    if count < 1 or len(numbers) != count * (sources + len(rows)):
        return None
    if not all(type(one) is int for one in (*ends, *seeds)) or not all(type(one) in (int, float) for one in numbers):
        return None
    values = np.array(numbers, dtype=np.float64)
    noises = tuple(int(seed or 0) for seed in seeds)
    if not np.isfinite(values).all() or list(noises) != sorted(set(noises)) or any(seed >> 64 for seed in noises):
        return None
    weights = values[: count * sources].reshape(count, sources).T
    scales = values[count * sources :].reshape(len(rows), count)
    return Pieces(np.array(ends, dtype=np.int64), np.vstack([weights, scales]), noises)
