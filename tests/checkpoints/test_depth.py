from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from evomerge.checkpoints import layer_kinds, routed_config
from evomerge.errors import NotBuiltError, SourceError


def routed(config: dict[str, Any], route: list[int], num_layers: int) -> dict[str, Any]:
    kinds = layer_kinds(config, num_layers, "m")
    return routed_config(config, [kinds.at(layer) for layer in route], "m")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "num_hidden_layers": 4},
        {"model_type": "gpt2", "n_layer": 4, "eos_token_id": 2},
        {"model_type": "llama", "num_hidden_layers": 4, "eos_token_id": [1, 2, 3, 0]},
    ],
)
def test_models_of_one_kind_of_layer_change_their_count_alone(config: dict[str, Any]) -> None:
    count = next(key for key in config if "layer" in key)
    assert routed(config, [3, 0, 0], 4) == {**config, count: 3}


def test_a_default_count_is_written_out() -> None:
    found = routed({"model_type": "llama"}, [3, 0, 0], 32)
    assert found == {"model_type": "llama", "num_hidden_layers": 3}


def test_a_nested_configuration(recwarn: pytest.WarningsRecorder) -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 3, "sliding_window_pattern": 2}
    found = routed({"model_type": "gemma3", "text_config": text}, [1, 0], 3)

    assert found["text_config"]["num_hidden_layers"] == 2
    assert found["text_config"]["layer_types"] == ["full_attention", "sliding_attention"]
    assert text["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma2"},
        {"model_type": "gemma3_text", "sliding_window_pattern": 3},
        {"model_type": "cohere2", "sliding_window_pattern": 2},
        {"model_type": "olmo3"},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"model_type": "smollm3", "no_rope_layer_interval": 3},
        {"model_type": "exaone4", "sliding_window": 8, "sliding_window_pattern": 3},
        {"model_type": "gpt_oss", "layer_types": ["full_attention", "sliding_attention"] * 4},
    ],
)
def test_what_a_period_or_threshold_implies_is_written_layer_by_layer(config: dict[str, Any]) -> None:
    """As transformers reads both configurations."""
    config = {**config, "num_hidden_layers": 8}
    route = [7, 0, 5, 5, 2]

    def read(data: dict[str, Any]) -> Any:
        return AutoConfig.for_model(data["model_type"], **{key: data[key] for key in data if key != "model_type"})

    before, after = read(config), read(routed(config, route, 8))
    for key in ("layer_types", "no_rope_layers"):
        if hasattr(before, key):
            assert getattr(after, key) == [getattr(before, key)[layer] for layer in route]


def test_layers_without_experts_by_index() -> None:
    """Those listed, and those that the step leaves out."""
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    found = routed(config, [0, 1, 3, 5, 1], 6)
    assert (found["mlp_only_layers"], found["decoder_sparse_step"]) == ([0, 2], 1)


def test_layers_without_experts_by_their_number() -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 1}
    assert routed(config, [0, 0, 3], 4)["first_k_dense_replace"] == 2
    with pytest.raises(SourceError, match="one of them after a layer with experts"):
        routed(config, [0, 3, 0], 4)


def test_layers_that_predict_further_tokens() -> None:
    with pytest.raises(NotBuiltError, match="5 layers are stored and 4 declared"):
        layer_kinds({"model_type": "deepseek_v3", "num_hidden_layers": 4}, 5, "m")


def test_an_architecture_that_transformers_does_not_know() -> None:
    with pytest.raises(NotBuiltError, match="transformers cannot read its configuration"):
        layer_kinds({"model_type": "novel"}, 2, "m")
