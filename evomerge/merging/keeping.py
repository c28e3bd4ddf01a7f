"""What kernels keep from one candidate of a search to the next: in memory, or in files that outlive the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

import torch

from evomerge.merging.kept_files import KeptFile, num_bytes
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from evomerge.merging.sources import Sources
    from evomerge.operators.kernels.context import Kept, Tensors

Inputs = tuple[tuple[str, str], ...]
"""(alias, name of the tensor) of every tensor that a kernel is given, the base last."""

_MOST_BYTES = 1 << 30
"""Size of what is kept in memory: about a model of 0.5 B parameters."""
_ENTRY_BYTES = 1 << 10
"""What an entry takes beside its tensors, about."""
_LARGE = 1 << 20
"""Bytes from which a file is worth its reading."""


class Keeper:
    """Keeps what is expensive, for the sources of one `Sources`.

    In memory, what was used least recently is forgotten beyond 1 GiB; what is larger by itself is made every time.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._kept: OrderedDict[tuple[str, Inputs], Tensors] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def in_memory(self, inputs: Inputs) -> Kept:
        """Return how a kernel keeps what depends on its inputs and on what its name says (`Context.kept`)."""

        def kept(what: str, make: Callable[[], Tensors]) -> Tensors:
            found = self._find((what, inputs))
            return self._keep((what, inputs), make()) if found is None else found

        return kept

    def in_files(self, inputs: Inputs, device: str) -> Kept:
        """Return how a kernel keeps what a search never has many of (`Context.filed`): what is large in files.

        Args:
            inputs: what it depends on.
            device: where it is made and wanted.
        """
        if any(isinstance(self._sources.configs[alias].model, Recipe) for alias, _ in inputs):
            return self.in_memory(inputs)  # a nested recipe may be a candidate's own
        kind = torch.device(device).type

        def filed(what: str, make: Callable[[], Tensors]) -> Tensors:
            key = (what, inputs)
            if (found := self._find(key)) is not None:
                return found
            file = self._file(what, inputs, kind)
            found = file.read()
            is_kept = found is not None
            if found is None:
                found = tuple(tensor.contiguous() for tensor in make())
                is_kept = num_bytes(found) >= _LARGE and file.write(tuple(tensor.cpu() for tensor in found))
            found = tuple(tensor.to(device) for tensor in found)
            return found if is_kept and kind == "cpu" else self._keep(key, found)

        return filed

    def _file(self, what: str, inputs: Inputs, kind: str) -> KeptFile:
        infos = self._sources.infos
        contents = [part for alias, name in inputs for part in (infos[alias].content_hash, name)]
        return KeptFile("decompositions", [what, kind, *contents])

    def _find(self, key: tuple[str, Inputs]) -> Tensors | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def _keep(self, key: tuple[str, Inputs], made: Tensors) -> Tensors:
        size = num_bytes(made) + _ENTRY_BYTES
        if size > _MOST_BYTES:
            return made
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            self._kept[key] = made
            self._bytes += size
            while self._bytes > _MOST_BYTES:
                self._bytes -= num_bytes(self._kept.popitem(last=False)[1]) + _ENTRY_BYTES
        return made
