"""Merges of LoRA adapters on one model, which are themselves a LoRA adapter on it.

Where every source is θ_0 + s_i B_i A_i (or θ_0 itself) and the method gives Σ c_i θ_i with Σ c_i = 1, the merge is
θ_0 + Σ c_i s_i B_i A_i: one LoRA of the summed rank, with the A_i stacked as rows and the c_i s_i B_i as columns. It
is exact, and the c_i may differ from tensor to tensor. Evo-Merging sums the A_i and the B_i themselves, which is
another model, and a LoRA of the adapters' own rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints import AdaptedModel, CheckpointWriter, ModelSource, TensorInfo, Update, is_buffer
from evomerge.errors import NotBuiltError, SourceError
from evomerge.merging.build import portable_recipe, relative_name
from evomerge.merging.low_rank import as_low_rank
from evomerge.merging.materialise import share_of
from evomerge.merging.opening import open_sources
from evomerge.merging.plan import MergePlan, PlannedTensor, plan
from evomerge.operators.kernels.adapters import merged_factors
from evomerge.operators.kernels.inputs import normalized
from evomerge.recipe import Blend, Recipe, identity

_SUM_TOLERANCE = 1e-9
_ROUNDING = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter as PEFT stores it."""

    tensors: Mapping[str, Tensor]
    """By their keys in `adapter_model.safetensors`; float32."""
    settings: Mapping[str, Any]
    """The content of `adapter_config.json`; α equals the rank, so that the factors' product is the update."""

    @property
    def rank(self) -> int:
        """The rank of its factors."""
        return int(self.settings["r"])


def as_adapter(merge: MergePlan, *, smallest: bool = True) -> LoraAdapter:
    """Return a merge of adapters on one model as an adapter on it, exact up to rounding in float32.

    Ranks that differ between modules are filled up with zeros, so that one rank holds for all and every reader
    understands it.

    Args:
        merge: the plan; its sources are adapters on one model, and perhaps that model.
        smallest: reduce a module's linearly dependent factors to their rank (QR of both factors and the SVD of the
            small core, in float64; singular values that are rounding in float32 are dropped).

    Raises:
        NotBuiltError: when the merge is not such an adapter, with the reason.
        SourceError: when the adapters are for different models.
    """
    if not merge.route.is_plain:
        raise _refusal("layers", "layers that are moved or scaled are no update of the model's own")
    if merge.sources.is_aligned:
        raise _refusal("tokenizer", "it moves rows of the embeddings")
    alias, root = _root(merge)
    updates: dict[str, Update] = {}
    modules: dict[str, str] = {}
    for planned in merge.tensors:
        if is_buffer(planned.name, planned.info):
            continue
        parts = _parts(merge, planned, root)
        update = _merged(merge, planned, parts)
        if update is not None:
            updates[planned.name] = _smallest(update) if smallest else update
            modules[planned.name] = parts[0].model.modules[planned.name]
    if not updates:
        raise _refusal("blend", "the merge is the model itself, with no adapter on it")
    if any(name in (*root.tied, *root.tied.values()) for name in updates):
        raise _refusal("embeddings", "the head is tied to the input embedding, which an adapter would change alone")
    rank = max(update.first.shape[0] for update in updates.values())
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        tensors |= _stored(f"base_model.model.{modules[name]}", update, rank)
    return LoraAdapter(tensors, _settings(merge, alias, root, updates, modules, rank))


def build_adapter(recipe: Recipe, out: Path, *, base_dir: Path, card: str | None = None) -> LoraAdapter:
    """Write the merge of a recipe as a PEFT adapter folder, which appears as a whole, and return the adapter.

    Args:
        recipe: what to build; its sources are adapters on one model, and perhaps that model.
        out: the folder to make; it must not exist, or be empty.
        base_dir: where relative folders among the sources start.
        card: text of `README.md`.

    Raises:
        NotBuiltError: when the merge is not an adapter, with the reason.
        ConfigError: when `out` is taken.
        SourceError: a source that cannot be read, or does not fit the others.
        StorageError: when the disk refuses.
    """
    sources = open_sources(recipe, base_dir)
    adapter = as_adapter(plan(recipe, sources))
    model = adapter.settings["base_model_name_or_path"]
    if model.startswith("zoo:"):
        model = str(next(iter(sources.models.values())).folder)
    settings = {**adapter.settings, "base_model_name_or_path": relative_name(model, base_dir, out)}
    texts = {
        "adapter_config.json": json.dumps(settings, indent=2) + "\n",
        "recipe.yaml": portable_recipe(recipe, base_dir, out, identity(recipe, sources.infos)),
        **({} if card is None else {"README.md": card}),
    }

    def add_files(folder: Path) -> None:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")

    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in adapter.tensors.items()}
    with CheckpointWriter(out, infos, stem="adapter_model") as writer:
        writer.add(add_files)
        for name, tensor in adapter.tensors.items():
            writer.write(name, tensor)
    return replace(adapter, settings=settings)


def _refusal(path: str, reason: str) -> NotBuiltError:
    return NotBuiltError(f"{path}: {reason}, so this merge is no LoRA adapter; write it as a checkpoint")


# ---- which model, and which share of each adapter


def _root(merge: MergePlan) -> tuple[str, ModelSource]:
    """Return the model that all sources are adapters on, and an alias whose `model` it is."""
    roots = {alias: _model_of(merge.sources.models[alias]) for alias in merge.recipe.sources}
    first, root = next(iter(roots.items()))
    for alias, other in roots.items():
        if isinstance(merge.recipe.sources[alias].model, Recipe):
            raise _refusal(f"sources.{alias}.model", "an adapter needs a model with a name, and this is a recipe")
        if other is not root and other.content_hash != root.content_hash:
            raise SourceError(
                f"sources {first!r} and {alias!r} are not adapters on one model, so their merge is no adapter; "
                f"write it as a checkpoint"
            )
    return first, root


def _model_of(source: ModelSource) -> ModelSource:
    return source.base if isinstance(source, AdaptedModel) else source


@dataclass(frozen=True, slots=True)
class _Part:
    """What an adapter adds to a tensor."""

    alias: str
    share: float
    model: AdaptedModel
    update: Update


def _parts(merge: MergePlan, planned: PlannedTensor, root: ModelSource) -> list[_Part]:
    """Return what the adapters add to a tensor."""
    name = planned.name
    parts = []
    for alias, share in _kept(merge, planned).items():
        model = merge.sources.models[alias]
        if not isinstance(model, AdaptedModel) or share == 0:
            continue
        if name in model.whole and not torch.equal(model.adapter.tensor(model.whole[name]), root.tensor(name)):
            raise _refusal(f"sources.{alias}.adapter", f"it replaces {name!r} as a whole, which is no low-rank update")
        if (update := model.update(name)) is not None:
            parts.append(_Part(alias, share, model, update))
    return parts


def _merged(merge: MergePlan, planned: PlannedTensor, parts: list[_Part]) -> Update | None:
    """Return the update of a tensor: of the adapters' stacked factors, or of their sums (evo_merging)."""
    if not parts or planned.step is None or not _sums_factors(planned):
        return _stacked([(part.share, part.update) for part in parts])
    blend = planned.step.blend
    densities = dict(zip(blend.sources, blend.params["density"], strict=True))  # type: ignore[arg-type]
    found = merged_factors(
        planned.name, [(as_low_rank(part.update), part.share, float(densities[part.alias])) for part in parts]
    )
    if blend.lines is not None and blend.lines.base != blend.base:
        raise _refusal("lines", "it draws towards another model than the one on which evo_merging adds factors")
    share = 1.0 if blend.lines is None else share_of(merge, blend.lines)
    return replace(parts[0].update, first=found.first.float(), second=(share * found.second).float(), scale=1.0)


def _kept(merge: MergePlan, planned: PlannedTensor) -> dict[str, float]:
    """Return c_i by alias as LiNeS leaves them: s·c_i, and what is missing to 1 goes to the base."""
    shares = _shares(planned)
    if planned.step is None or (lines := planned.step.blend.lines) is None or _sums_factors(planned):
        return shares
    share = share_of(merge, lines)
    kept = {alias: share * value for alias, value in shares.items()}
    return kept | {lines.base: kept.get(lines.base, 0.0) + 1.0 - share}


def _sums_factors(planned: PlannedTensor) -> bool:
    return planned.step is not None and planned.step.blend.method == "evo_merging"


def _shares(planned: PlannedTensor) -> dict[str, float]:
    """Return c_i by alias, where a tensor is Σ c_i θ_i with Σ c_i = 1."""
    if planned.copied_from is not None:
        return {planned.copied_from: 1.0}
    if planned.step is None:
        raise _refusal("segments", f"{planned.name!r} blends in pieces, which is no low-rank update")
    blend = planned.step.blend
    weights = _weights(blend)
    if blend.method == "evo_merging":
        return dict(zip(blend.sources, weights, strict=True))
    if blend.method == "linear":
        shares = dict(zip(blend.sources, weights, strict=True))
        if abs(sum(weights) - 1.0) > _SUM_TOLERANCE:
            raise _refusal(
                "blend.weight",
                f"at {planned.name!r} the weights sum to {sum(weights):g} instead of 1, which scales the model itself",
            )
        return shares
    if blend.method == "task_arithmetic":
        factors = [float(blend.params["scale"]) * weight for weight in weights]  # type: ignore[arg-type]
        shares = dict(zip(blend.sources, factors, strict=True))
        if blend.base is not None:
            shares[blend.base] = shares.get(blend.base, 0.0) + 1.0 - sum(factors)
        return shares
    raise _refusal(
        "blend.method",
        f"{blend.method!r} is not linear in the task vectors or their factors (linear, task_arithmetic and "
        f"evo_merging are), which makes its result of full rank at {planned.name!r}",
    )


def _weights(blend: Blend) -> list[float]:
    values = blend.params["weight"]
    weights = [float(value) for value in values] if isinstance(values, tuple) else []
    return list(normalized(weights)) if blend.params.get("normalize") else weights


# ---- factors


def _stacked(parts: list[tuple[float, Update]]) -> Update | None:
    if not parts:
        return None
    first = torch.cat([update.first for _, update in parts])
    second = torch.cat([update.second * (share * update.scale) for share, update in parts], dim=1)
    return replace(parts[0][1], first=first, second=second, scale=1.0)


def _smallest(update: Update) -> Update:
    """Return an update by as few columns and rows as it needs; as it is where it needs them all."""
    left, upper = torch.linalg.qr(update.second.to(torch.float64))
    right, lower = torch.linalg.qr(update.first.T.to(torch.float64))
    u, values, v = torch.linalg.svd(upper @ lower.T)
    full = update.first.shape[0]
    rank = max(1, int((values > values[0] * full * _ROUNDING).sum()))
    if rank == full:
        return update
    root = values[:rank].sqrt()
    first, second = (root[:, None] * v[:rank]) @ right.T, left @ (u[:, :rank] * root)
    return replace(update, first=first.to(torch.float32), second=second.to(torch.float32))


def _stored(module: str, update: Update, rank: int) -> dict[str, Tensor]:
    """Return the tensors of a module under PEFT's keys, filled up with zeros to a rank."""
    more = rank - update.first.shape[0]
    first = torch.nn.functional.pad(update.first, (0, 0, 0, more)).contiguous()
    second = torch.nn.functional.pad(update.second, (0, more)).contiguous()
    if update.of_embedding:
        return {f"{module}.lora_embedding_A": first, f"{module}.lora_embedding_B": second}
    return {f"{module}.lora_A.weight": first, f"{module}.lora_B.weight": second}


def _settings(
    merge: MergePlan,
    alias: str,
    root: ModelSource,
    updates: Mapping[str, Update],
    modules: Mapping[str, str],
    rank: int,
) -> dict[str, Any]:
    source = merge.recipe.sources[alias]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source.model,
        "revision": source.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(update.transposed and not update.of_embedding for update in updates.values()),
        "target_modules": _targets(root, modules),
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }


def _targets(root: ModelSource, modules: Mapping[str, str]) -> list[str]:
    """Return the last parts of the modules' names, where these say it all; else the whole names."""
    last = {module.rpartition(".")[2] for module in modules.values()}
    meant = {name for name in root.names() if name.endswith(".weight") and name.split(".")[-2] in last}
    return sorted(last if meant == modules.keys() else modules.values())
