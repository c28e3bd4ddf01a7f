from __future__ import annotations

import pytest
import torch

from evomerge.checkpoints import Layout, Place, TensorInfo
from evomerge.errors import SourceError

INFO = TensorInfo((4, 4), torch.float32)


def layout(*names: str, **config: object) -> Layout:
    return Layout(dict.fromkeys(names, INFO), config)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.0.self_attn.q_proj.weight", Place(0, "attention")),
        ("model.layers.0.self_attn.q_norm.weight", Place(0, "attention")),
        ("model.layers.0.mlp.down_proj.weight", Place(0, "mlp")),
        ("model.layers.0.mlp.experts.7.w1.weight", Place(0, "mlp")),
        ("model.layers.0.block_sparse_moe.experts.1.w2.weight", Place(0, "mlp")),
        ("model.layers.0.input_layernorm.weight", Place(0, "other")),
        ("model.layers.0.post_attention_layernorm.weight", Place(0, "other")),
        ("model.layers.0.pre_feedforward_layernorm.weight", Place(0, "other")),
        ("transformer.h.0.attn.c_attn.weight", Place(0, "attention")),
        ("h.0.ln_1.weight", Place(0, "other")),
        ("gpt_neox.layers.0.attention.dense.weight", Place(0, "attention")),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", Place(0, "mlp")),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", Place(0, "attention")),
        ("bert.encoder.layer.0.intermediate.dense.weight", Place(0, "mlp")),
        ("model.decoder.layers.0.fc1.weight", Place(0, "mlp")),
        ("decoder.block.0.layer.1.DenseReluDense.wi.weight", Place(0, "mlp")),
        ("decoder.block.0.layer.0.SelfAttention.q.weight", Place(0, "attention")),
        ("backbone.layers.0.mixer.in_proj.weight", Place(0, "other")),
        ("model.embed_tokens.weight", Place(None, "embeddings")),
        ("transformer.wte.weight", Place(None, "embeddings")),
        ("transformer.wpe.weight", Place(None, "embeddings")),
        ("gpt_neox.embed_in.weight", Place(None, "embeddings")),
        ("embed_out.weight", Place(None, "head")),
        ("lm_head.weight", Place(None, "head")),
        ("model.norm.weight", Place(None, "head")),
        ("transformer.ln_f.bias", Place(None, "head")),
        ("transformer.word_embeddings_layernorm.weight", Place(None, "embeddings")),
        ("multi_modal_projector.linear_1.weight", Place(None, "other")),
    ],
)
def test_places_follow_from_names(name: str, place: Place) -> None:
    """Attention, MLP, norms, embeddings and head are told apart in the layouts of many families."""
    assert layout(name).place(name) == place


def test_an_expert_index_is_not_a_layer_index() -> None:
    """The first numbered block decides: experts inside a layer are numbered too."""
    names = [f"model.layers.1.mlp.experts.{expert}.up_proj.weight" for expert in range(8)]
    found = layout("model.layers.0.mlp.gate.weight", *names)

    assert found.num_layers == 2
    assert {found.place(name).layer for name in names} == {1}


def test_the_declared_stack_is_the_language_model() -> None:
    """Another numbered stack, such as a vision tower, is outside the layers."""
    vision = [f"vision_tower.encoder.layers.{index}.self_attn.q_proj.weight" for index in range(5)]
    text = [f"language_model.model.layers.{index}.mlp.up_proj.weight" for index in range(3)]
    found = layout(*vision, *text, text_config={"num_hidden_layers": 3})

    assert found.num_layers == 3
    assert found.place(vision[0]) == Place(None, "other")
    assert found.place(text[2]) == Place(2, "mlp")


def test_a_missing_layer_is_named() -> None:
    """A hole in the numbering means an incomplete checkpoint."""
    with pytest.raises(SourceError, match=r"layer 1 of 3 is missing \(model\.layers\.1\.\*\)"):
        layout("model.layers.0.mlp.up.weight", "model.layers.2.mlp.up.weight")


def test_fewer_layers_than_declared_is_an_error() -> None:
    """The configuration must belong to the weights."""
    with pytest.raises(SourceError, match="layer 1 of 4 is missing"):
        layout("model.layers.0.mlp.up.weight", num_hidden_layers=4)
    with pytest.raises(SourceError, match="declares 4 layers, but no tensor"):
        layout("model.embed_tokens.weight", num_hidden_layers=4)


def test_extra_layers_for_multi_token_prediction_are_layers() -> None:
    """More layers than declared is fine."""
    assert layout(*(f"model.layers.{i}.mlp.up.weight" for i in range(3)), num_hidden_layers=2).num_layers == 3


def test_the_vocabulary_is_the_largest_embedding() -> None:
    """Position embeddings are not the vocabulary."""
    infos = {
        "transformer.wte.weight": TensorInfo((100, 8), torch.float32),
        "transformer.wpe.weight": TensorInfo((512, 8), torch.float32),
        "transformer.h.0.ln_1.weight": TensorInfo((8,), torch.float32),
    }
    found = Layout(infos, {})

    assert (found.embedding, found.vocab_size, found.hidden_size) == ("transformer.wte.weight", 100, 8)
