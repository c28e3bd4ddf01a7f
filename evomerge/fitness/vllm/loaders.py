"""What vLLM's loaders do with the tensors that they are handed, seen during one complete reload.

Two things are worth knowing later, and neither is guessed from names: which part of a tensor a rank needs (its window),
and where in a parameter of vLLM it comes to lie (its place).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from evomerge.fitness.vllm.windows import Window, shape_of

_LOOKS = frozenset({"shape", "dtype", "device", "ndim", "is_meta", "layout", "requires_grad", "is_cpu", "is_cuda"})
_QUESTIONS = frozenset({"size", "dim", "numel", "nelement", "element_size", "is_floating_point", "is_contiguous"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor, or its window, lies in a parameter: in one piece."""

    parameter: str
    """Its name in the model."""
    start: int
    """Elements of it that lie before."""
    shape: tuple[int, ...]
    """Of the piece."""


@dataclass(frozen=True, slots=True)
class _Write:
    """Something that was written to a parameter."""

    start: float
    stop: float
    """Elements of the parameter before its begin and before its end."""
    tensor: str | None = None
    """The handed tensor that was copied as it is, or its window; None: anything else."""
    shape: tuple[int, ...] = ()


class LoaderWatch(TorchFunctionMode):
    """Sees what is done with the tensors that are handed to vLLM."""

    def __init__(self) -> None:
        """Watch no tensor yet."""
        super().__init__()
        self.parameters: Mapping[str, Tensor] = {}
        """What the loaders write to, by name; without its values."""
        self._rests = True
        self._handed: Any = WeakTensorKeyDictionary()
        """Tensor -> its name."""
        self._windows: Any = WeakTensorKeyDictionary()
        """Part of such a tensor -> its name."""
        self._homes: dict[Hashable, str] = {}
        """Memory of a parameter -> the parameter."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._uses: dict[str, set[Window | None]] = {}
        self._writes: dict[str, set[_Write]] = {}

    def begin(self, model: nn.Module) -> None:
        """Take a model as its loaders will find it."""
        found = dict(model.named_parameters())
        self._homes = {_memory(parameter): name for name, parameter in found.items()}
        self.parameters = {name: parameter.data.to("meta") for name, parameter in found.items()}

    def watch(self, name: str, tensor: Tensor) -> None:
        """Look on: a tensor is handed over, and those before it that were held back may be used now."""
        self._handed[tensor] = name
        self._shapes[name] = tuple(tensor.shape)
        self._rests = False

    def rest(self) -> None:
        """Look away until the next tensor."""
        self._rests = True

    def windows(self) -> Mapping[str, Window]:
        """Return the one part of each tensor that was used, of those that were used so."""
        found = {}
        for name, uses in self._uses.items():
            if len(uses) == 1 and (window := next(iter(uses))) is not None:
                found[name] = window
        return found

    def places(self) -> Mapping[str, Place]:
        """Return where each tensor, or its window, lies: of those copied once, to where nothing else was written."""
        times = Counter(write.tensor for writes in self._writes.values() for write in writes)
        windows, found = self.windows(), {}
        for parameter, writes in self._writes.items():
            for write in writes:
                if write.tensor is None or times[write.tensor] > 1:
                    continue
                needed = shape_of(self._shapes[write.tensor], windows.get(write.tensor))
                alone = all(write.stop <= other.start or other.stop <= write.start for other in writes - {write})
                if alone and write.shape == needed:
                    found[write.tensor] = Place(parameter, int(write.start), write.shape)
        return found

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do what is done, and note it."""
        options = kwargs or {}
        if self._rests:
            return func(*args, **options)
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            self._note_write(name, *args)
        result = func(*args, **options)
        for item in (*args, *options.values()):
            if isinstance(item, Tensor) and item in self._handed:
                self._note_use(item, func, name, args, options, result)
        return result

    def _note_use(
        self, tensor: Tensor, func: Callable[..., Any], name: str, args: tuple[Any, ...], options: Any, result: Any
    ) -> None:
        if name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") in _LOOKS:
            return
        if name in _QUESTIONS:
            return
        window: Window | None = None
        if name == "narrow" and args[0] is tensor:
            self._windows[result] = self._handed[tensor]
            places = dict(zip(("dim", "start", "length"), args[1:], strict=False)) | dict(options)
            window = int(places["dim"]), int(places["start"]), int(places["length"])
            if window[2] == tensor.shape[window[0]]:
                window = None
        self._uses.setdefault(self._handed[tensor], set()).add(window)

    def _note_write(self, name: str, target: Any, value: Any = None, *_more: Any) -> None:
        home = self._homes.get(_memory(target)) if isinstance(target, Tensor) else None
        if home is None or not target.numel():
            return
        start, stop, tensor = 0.0, math.inf, None
        if target.is_contiguous() and name != "__setitem__":
            start, stop = target.storage_offset(), target.storage_offset() + target.numel()
            if name == "copy_" and isinstance(value, Tensor) and value.shape == target.shape:
                if _memory(value) == _memory(target) and value.storage_offset() == start and value.is_contiguous():
                    return  # copied onto itself, as vLLM does with what it has loaded in place
                tensor = self._handed.get(value) or self._windows.get(value)
        self._writes.setdefault(home, set()).add(_Write(start, stop, tensor, tuple(target.shape)))


def _memory(tensor: Tensor) -> Hashable:
    """Return what all tensors in one memory have in common, those without values (on `meta`) too."""
    found: Hashable = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    return found
