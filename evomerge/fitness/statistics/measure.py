"""Measuring a model, example by example: shown as it goes on, and continued where it was killed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from evomerge.checkpoints import ModelSource, StatisticFile, StatisticNote, parameter_names, write_statistic
from evomerge.checkpoints.moments import read_moments
from evomerge.checkpoints.statistics import importance_scales
from evomerge.errors import ConfigError, SourceError
from evomerge.fitness.statistics.fisher import FisherSum, Labels
from evomerge.fitness.statistics.inputs import GramSum
from evomerge.fitness.statistics.placed import PlacedModel
from evomerge.fitness.statistics.texts import Calibration
from evomerge.fitness.transformers_engine import find_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evomerge.merging import MergeProgress

Measured = Literal["fisher", "gram"]
_WRITING_SHARE = 0.1
"""Largest share of the time that goes into files to continue from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """How a model is measured."""

    labels: Labels = "model"
    """Of a Fisher: what is to be predicted."""
    seed: int = 0
    """Of the labels that are drawn."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """In which the model runs; sums are float32."""
    save_every_s: float = 30.0
    """Seconds, at least, between two files to continue from."""


@dataclass(frozen=True, slots=True)
class Written:
    """A statistic file."""

    path: Path
    note: StatisticNote
    content_hash: str
    num_tensors: int
    num_bytes: int
    was_there: bool
    """Whether it had been computed before."""


class _Sum(Protocol):
    sums: dict[str, Tensor]
    tokens: dict[str, int]
    shared: dict[str, str]

    def add(self, index: int, tokens: Tensor) -> None: ...
    def means(self) -> dict[str, Tensor]: ...
    def facts(self, means: Mapping[str, Tensor]) -> dict[str, float]: ...


def measure(
    source: ModelSource,
    out: Path,
    calibration: Calibration,
    kinds: Sequence[Measured],
    config: MeasureConfig | None = None,
    progress: MergeProgress | None = None,
) -> list[Written]:
    """Measure a model on calibration texts and write a file a kind into a folder.

    Examples go through the model one by one, so that nothing is padded and the gradient is each example's own. A file
    that is there and was computed alike is kept; what was interrupted is continued, to the same bits.

    Args:
        source: the model.
        out: the folder; it is made.
        calibration: the texts, by the model's tokenizer.
        kinds: what is measured.
        config: how; None: as it is by default.
        progress: hears how it goes on, in tokens.

    Raises:
        ConfigError: when a file is there that was computed otherwise, or this machine has no such device.
        SourceError: when transformers cannot run the model, or a gradient is not finite.
        StorageError: when the disk refuses.
    """
    config = MeasureConfig() if config is None else config
    written = []
    for kind in kinds:
        note = StatisticNote(
            kind=kind,
            source=source.content_hash,
            calibration=calibration.content_hash,
            settings=_settings(kind, config),
            done=len(calibration.examples),
        )
        path = out / f"{kind}.safetensors"
        found = _known(path, note)
        if found is None:
            _Run(source, path, note, calibration, config).run(progress)
        written.append(_written(path, was_there=found is not None))
    return written


def write_moments(source: ModelSource, out: Path, path: Path) -> Written:
    """Write the second moments of a safetensors file into a folder, as the statistic `adam`.

    Raises:
        ConfigError: when a file is there that was made otherwise.
        SourceError: for a pickled file, or one that does not fit the model.
        StorageError: when the disk refuses.
    """
    moments = read_moments(path, source)
    note = StatisticNote(kind="adam", source=source.content_hash, calibration=_digest(moments))
    target = out / "adam.safetensors"
    found = _known(target, note)
    if found is None:
        scales = importance_scales(moments[name] for name in sorted(moments))
        write_statistic(target, StatisticNote(**{**asdict(note), **scales}), moments)
    return _written(target, was_there=found is not None)


def _settings(kind: Measured, config: MeasureConfig) -> dict[str, str | int]:
    if kind == "gram":
        return {"dtype": config.dtype}
    seed = {"seed": config.seed} if config.labels == "model" else {}
    return {"dtype": config.dtype, "labels": config.labels, **seed}


def _known(path: Path, note: StatisticNote) -> StatisticFile | None:
    """Return the file where it is there already and was computed alike."""
    if not path.exists():
        return None
    file = StatisticFile(path)
    if not file.note.is_of(note):
        raise ConfigError(
            f"{path}: this statistic was computed for another model, from other texts or with other options; "
            "give another folder, or delete it"
        )
    return file


def _written(path: Path, *, was_there: bool) -> Written:
    file = StatisticFile(path)
    size = path.stat().st_size
    return Written(path, file.note, file.content_hash, len(file.names()), size, was_there)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    import hashlib

    from evomerge.checkpoints.digests import tensor_bytes

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\x1f{tuple(tensors[name].shape)}\x1f".encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()


class _Run:
    """One kind of statistic of one model, on its way to its file."""

    def __init__(
        self, source: ModelSource, path: Path, note: StatisticNote, calibration: Calibration, config: MeasureConfig
    ) -> None:
        self._path, self._note, self._calibration, self._config = path, note, calibration, config
        self._partial = path.with_name(f".{path.stem}.partial.safetensors")
        self._device = find_device(config.device)
        self._placed = PlacedModel(source, self._device, config.dtype)
        names = parameter_names(source)
        self._sum: _Sum
        if note.kind == "gram":
            # The head is left out: its inputs weigh tokens, and it is the mean as embeddings are.
            names = tuple(name for name in names if source.layout.place(name).layer is not None)
            self._sum = GramSum(self._placed.model, self._placed.places(names))
        else:
            places = self._placed.places(names)
            self._sum = FisherSum(self._placed.model, places, labels=config.labels, seed=config.seed)

    def run(self, progress: MergeProgress | None) -> None:
        """Go through the examples that are left, and write the file."""
        done = self._continued()
        if progress is not None:
            progress.start(f"measuring {self._note.kind}", self._calibration.num_tokens)
            progress.advance(sum(len(tokens) for tokens in self._calibration.examples[:done]))
        try:
            self._add_examples(done, progress)
        finally:
            if progress is not None:
                progress.finish()
        means = self._means()
        for name, mean in means.items():
            if not bool(torch.isfinite(mean).all()):
                raise SourceError(
                    f"the statistic {self._note.kind!r} of {name!r} is not finite; run the model in float32"
                )
        name_of = self._placed.name
        shared = {name_of(place): name_of(other) for place, other in self._sum.shared.items()}
        facts = {"shared": shared, **self._sum.facts(means)}
        write_statistic(self._path, StatisticNote(**{**asdict(self._note), **facts}), _on_cpu(means))
        self._partial.unlink(missing_ok=True)

    def _means(self) -> dict[str, Tensor]:
        """Return the means by the source's names."""
        means = self._sum.means()
        if self._note.kind == "gram":
            return {self._placed.name(place): mean for place, mean in means.items()}
        return self._placed.divided(means)

    def _add_examples(self, done: int, progress: MergeProgress | None) -> None:
        saved = time.monotonic()
        pause = self._config.save_every_s
        for index, tokens in enumerate(self._calibration.examples[done:], start=done):
            self._sum.add(index, torch.tensor(tokens, device=self._device))
            if progress is not None:
                progress.advance(len(tokens))
            begun = time.monotonic()
            if begun - saved >= pause:
                self._save(index + 1)
                saved = time.monotonic()
                pause = max(self._config.save_every_s, (saved - begun) / _WRITING_SHARE)

    def _save(self, done: int) -> None:
        facts = {"done": done, "tokens": self._sum.tokens, "shared": self._sum.shared}
        write_statistic(self._partial, StatisticNote(**{**asdict(self._note), **facts}), _on_cpu(self._sum.sums))

    def _continued(self) -> int:
        """Take over what an interrupted run of the same kind left; return how many examples are in it."""
        try:
            file = StatisticFile(self._partial)
        except SourceError:
            return 0  # none, or none of this version: it is only a shortcut
        if not file.note.is_of(self._note):
            return 0
        for name in file.names():
            stored = file.tensor(name)
            if stored is not None:
                self._sum.sums[name] = stored.to(self._device, copy=True)
        self._sum.tokens.update(file.note.tokens)
        self._sum.shared.update(file.note.shared)
        return file.note.done


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
