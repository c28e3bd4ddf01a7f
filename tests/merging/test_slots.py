"""Candidates laid into the fixed layers of an engine, against transformers' logits of the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging import MergePlan, materialise, open_sources, plan
from evomerge.merging.slots import Frame, joined, needed_slots, own_slots, seat, slots_config, widened
from evomerge.recipe import Recipe
from tests.merging.hops import write_tiny

KINDS = st.text("ab", max_size=8)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layers are local, global, local, global."""
    return write_tiny(tmp_path_factory.mktemp("gemma") / "model", "gemma3_text", seed=1, layers=4)


def route(folder: Path, *layers: tuple[int, float]) -> MergePlan:
    recipe = Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {"a": {"model": str(folder)}},
            "dtype": "float32",
            "layers": [{"take": {"a": layer}, "scale": scale} for layer, scale in layers],
            "blend": {"method": "linear", "weight": {"a": 1.0}},
        }
    )
    return plan(recipe, open_sources(recipe, folder))


def logits(merge: MergePlan) -> torch.Tensor:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = merge.config()
    kind = config.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), dtype=torch.float32).eval()
    missing = model.load_state_dict(dict(materialise(merge)), strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    with torch.no_grad():
        return model(torch.arange(2, 22).reshape(2, 10)).logits


@given(KINDS, KINDS)
def test_joined_slots_hold_both(one: str, other: str) -> None:
    def holds(slots: tuple[str, ...], wanted: str) -> bool:
        left = iter(slots)
        return all(any(kind == slot for slot in left) for kind in wanted)

    slots = joined(one, other)
    assert holds(slots, one)
    assert holds(slots, other)
    assert max(len(one), len(other)) <= len(slots) <= len(one) + len(other)


def test_layers_sit_in_slots_of_their_kind_and_the_rest_adds_nothing(gemma: Path) -> None:
    short = route(gemma, (2, 1.2), (0, -0.8), (3, 1.1))
    slots = own_slots(short.sources)
    seated = seat(short, slots)
    assert seated is not None
    assert [hop.is_idle for hop in seated.route.hops] == [False, True, False, False]
    assert needed_slots(seated) == slots
    torch.testing.assert_close(logits(seated), logits(short), rtol=1e-4, atol=1e-5)


def test_the_sign_of_the_stream_reaches_the_final_norm_through_idle_slots(gemma: Path) -> None:
    short = route(gemma, (0, -1.3))
    seated = seat(short, own_slots(short.sources)[:1] * 3)
    assert seated is not None
    torch.testing.assert_close(logits(seated), logits(short), rtol=1e-4, atol=1e-5)


def test_layers_without_a_slot_of_their_kind_do_not_fit(gemma: Path) -> None:
    local, everywhere = own_slots(route(gemma, (0, 1.0)).sources)[:2]
    assert local != everywhere
    assert seat(route(gemma, (1, 1.0), (3, 1.0)), [local, everywhere, local]) is None
    assert seat(route(gemma, (0, 1.0)), [local, everywhere]) is None


def test_widened_slots_hold_the_merge(gemma: Path) -> None:
    """Those of before too, unless it has no layer of some kind, with which to fill them."""
    slots = own_slots(route(gemma, (0, 1.0)).sources)
    local, everywhere = slots[:2]
    long = route(gemma, (0, 1.0), (2, 1.0), (0, 1.0), (3, 1.0))
    wide = widened(long, slots)
    assert len(wide) < len(slots) + 4
    assert seat(long, wide) is not None
    assert seat(route(gemma, *((layer, 1.0) for layer in range(4))), wide) is not None
    one_kind = route(gemma, (0, 1.0), (2, 1.0))
    assert widened(one_kind, slots) == (local, local)
    assert everywhere not in widened(one_kind, slots)


def test_a_merge_that_has_just_these_layers_is_left_as_it_is(gemma: Path) -> None:
    whole = route(gemma, *((layer, 1.0) for layer in range(4)))
    assert seat(whole, own_slots(whole.sources)) is whole
    assert slots_config(whole.sources, own_slots(whole.sources)) == whole.config()


def test_the_frame_is_the_same_for_models_that_differ_in_depth_and_no_other(gemma: Path, tmp_path: Path) -> None:
    frame = Frame.of(route(gemma, (0, 1.0)).sources)
    deeper = write_tiny(tmp_path / "deeper", "gemma3_text", seed=2, layers=6)
    wider = write_tiny(tmp_path / "wider", "gemma3_text", seed=2, layers=4, intermediate_size=64)
    assert Frame.of(route(deeper, (0, 1.0)).sources) == frame
    assert Frame.of(route(wider, (0, 1.0)).sources) != frame
