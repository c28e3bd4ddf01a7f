from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from evomerge.checkpoints import AdaptedModel, Adapter, open_checkpoint
from evomerge.errors import SourceError
from evomerge.testing.adapters import write_lora
from evomerge.testing.checkpoints import write_tiny_llama

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def train(model: Path, out: Path, seed: int = 0, **settings: Any) -> Path:
    """Write an adapter with PEFT, as if it had been trained: all that it trains is random."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT has opinions on embeddings
        adapted = get_peft_model(load(model), LoraConfig(task_type="CAUSAL_LM", **settings))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(out)
    return out


def adapted(model: Path, adapter: Path) -> AdaptedModel:
    return AdaptedModel(open_checkpoint(model), Adapter(adapter))


def difference_from_peft(model: Path, adapter: Path) -> float:
    """Return the largest difference of any tensor from what PEFT's merge_and_unload gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(load(model), str(adapter)).merge_and_unload().state_dict()
    ours = adapted(model, adapter)
    assert ours.names() == open_checkpoint(model).names()
    return max((ours.tensor(name) - merged[name]).abs().max().item() for name in ours.names())


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "llama")


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tied", tied=True)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    config = GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


class TestAsPeftMerges:
    """Bit by bit: the same operations in the same order."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
            {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
            {
                "r": 4,
                "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3},
                "alpha_pattern": {"v_proj": 5, r".*\.0\.mlp.*": 7},
                "target_modules": ["q_proj", "v_proj", "up_proj"],
            },
            {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
            {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
            {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        ],
        ids=["plain", "rank-stabilised", "patterns", "whole modules", "embedding", "one layer"],
    )
    def test_llama(self, llama: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
        adapter = train(llama, tmp_path / "lora", **settings)
        assert difference_from_peft(llama, adapter) == 0.0
        base, changed = open_checkpoint(llama), adapted(llama, adapter)
        assert not all(torch.equal(base.tensor(name), changed.tensor(name)) for name in base.names())

    @pytest.mark.parametrize(
        "settings",
        [
            {"r": 2, "target_modules": ["c_attn", "c_proj", "c_fc"]},
            {"r": 2, "target_modules": ["c_proj"], "fan_in_fan_out": True},
            {"r": 2, "target_modules": ["c_attn"], "bias": "all"},
        ],
        ids=["Conv1D", "square and not", "biases"],
    )
    def test_gpt2(self, gpt2: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
        adapter = train(gpt2, tmp_path / "lora", **settings)
        assert difference_from_peft(gpt2, adapter) == 0.0

    @pytest.mark.parametrize("says", [True, False])
    def test_square_layers_are_read_as_the_model_stores_them(self, gpt2: Path, tmp_path: Path, says: bool) -> None:
        """Whatever `fan_in_fan_out` says, as PEFT goes by the layer's class."""
        adapter = train(gpt2, tmp_path / "lora", r=2, target_modules=["attn.c_proj"])
        _edit(adapter, fan_in_fan_out=says)
        assert difference_from_peft(gpt2, adapter) == 0.0

    def test_names_without_the_outer_part(self, gpt2: Path, tmp_path: Path) -> None:
        """The original GPT-2 files say `h.0`, their modules are called `transformer.h.0`."""
        adapter = train(gpt2, tmp_path / "lora", r=2, target_modules=["c_attn"])
        whole = adapted(gpt2, adapter).tensor("transformer.h.0.attn.c_attn.weight")
        tensors = load_file(gpt2 / "model.safetensors")
        short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        save_file(short, gpt2 / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(adapted(gpt2, adapter).tensor("h.0.attn.c_attn.weight"), whole)

    def test_bfloat16_weights_are_not_rounded_between(self, tmp_path: Path) -> None:
        model = write_tiny_llama(tmp_path / "half", dtype=torch.bfloat16)
        adapter = write_lora(tmp_path / "lora", model, rank=2)
        name = "model.layers.0.self_attn.q_proj.weight"
        ours, factors = adapted(model, adapter), load_file(adapter / WEIGHTS)
        key = f"base_model.model.{name.removesuffix('.weight')}"
        exact = open_checkpoint(model).tensor(name).double() + 2.0 * (
            factors[f"{key}.lora_B.weight"].double() @ factors[f"{key}.lora_A.weight"].double()
        )
        assert ours.info(name).dtype == ours.tensor(name).dtype == torch.float32
        assert (ours.tensor(name).double() - exact).abs().max() < 1e-6
        assert ours.info("model.norm.weight").dtype == torch.bfloat16


class TestTied:
    def test_layers_alone(self, tied: Path, tmp_path: Path) -> None:
        assert difference_from_peft(tied, train(tied, tmp_path / "lora", r=2, target_modules=["q_proj"])) == 0.0

    @pytest.mark.parametrize(
        "settings",
        [
            {"target_modules": ["embed_tokens"]},
            {"target_modules": ["lm_head"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        ],
    )
    def test_one_of_both_is_refused(self, tied: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
        adapter = train(tied, tmp_path / "lora", r=2, **settings)
        with pytest.raises(SourceError, match=r"makes 'lm_head.weight' and 'model.embed_tokens.weight' differ.*untie"):
            adapted(tied, adapter)

    def test_both_alike(self, tied: Path, tmp_path: Path) -> None:
        """The unmerged adapter is the oracle: PEFT's merge adds the update twice to the one tensor."""
        adapter = train(
            tied, tmp_path / "lora", r=2, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True
        )
        ours = adapted(tied, adapter)
        merged = load(tied)
        merged.load_state_dict({name: ours.tensor(name) for name in ours.names()}, strict=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            live = PeftModel.from_pretrained(load(tied), str(adapter))
        tokens = torch.arange(3, 19)[None]
        assert torch.allclose(merged(tokens).logits, live(tokens).logits, atol=1e-4)
        assert not torch.allclose(merged(tokens).logits, load(tied)(tokens).logits, atol=1e-1)


class TestContentHash:
    def test_it_is_of_the_model_and_of_what_the_adapter_does(self, llama: Path, tmp_path: Path) -> None:
        other = write_tiny_llama(tmp_path / "other", 1)
        one = write_lora(tmp_path / "one", llama, 1)
        hashes = {
            open_checkpoint(llama).content_hash,
            adapted(llama, one).content_hash,
            adapted(other, one).content_hash,
            adapted(llama, write_lora(tmp_path / "two", llama, 2)).content_hash,
            adapted(llama, write_lora(tmp_path / "alpha", llama, 1, lora_alpha=9)).content_hash,
        }
        assert len(hashes) == 5

    def test_settings_that_change_nothing_do_not_count(self, llama: Path, tmp_path: Path) -> None:
        one = write_lora(tmp_path / "one", llama, 1)
        two = write_lora(tmp_path / "two", llama, 1, lora_dropout=0.1, peft_version="9")
        assert adapted(llama, one).content_hash == adapted(llama, two).content_hash


def _edit(adapter: Path, **settings: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _tensors(adapter: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(adapter / WEIGHTS)
    for name, tensor in changes.items():
        key = next(key for key in tensors if key.endswith(name.replace("__", ".")))
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    save_file(tensors, adapter / WEIGHTS)


class TestBadInput:
    """One sentence each."""

    @pytest.fixture
    def lora(self, llama: Path, tmp_path: Path) -> Path:
        return write_lora(tmp_path / "lora", llama)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"peft_type": "IA3"}, "of type 'IA3', but only LORA"),
            ({"use_dora": True}, "use_dora is set, that is DoRA"),
            ({"use_qalora": True}, "use_qalora is set, that is more than a plain LoRA"),
            ({"lora_bias": True}, "lora_bias is set, that is biases"),
            ({"target_parameters": ["x"]}, "target_parameters is set, that is LoRA on bare parameters"),
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the model's"),
            ({"r": 0}, "expected a rank `r` >= 1"),
            ({"lora_alpha": None}, "a number `lora_alpha`"),
            ({"r": 3}, "the rank 3, but its factors have the rank 4"),
            ({"rank_pattern": {"q_proj": 2}}, "gives 'model.layers.0.self_attn.q_proj' the rank 2"),
            ({"rank_pattern": [2]}, "expected `rank_pattern` to map"),
            ({"alpha_pattern": {"(": 2}}, r"'\(' is no pattern"),
        ],
    )
    def test_settings(self, lora: Path, settings: dict[str, Any], text: str) -> None:
        _edit(lora, **settings)
        with pytest.raises(SourceError, match=text):
            Adapter(lora)

    def test_no_settings(self, lora: Path) -> None:
        (lora / CONFIG).unlink()
        with pytest.raises(SourceError, match=r"no adapter_config\.json here"):
            Adapter(lora)

    def test_no_weights(self, lora: Path) -> None:
        (lora / WEIGHTS).unlink()
        with pytest.raises(SourceError, match=r"adapter_model\.safetensors is missing"):
            Adapter(lora)

    def test_pickled_weights(self, lora: Path) -> None:
        (lora / WEIGHTS).rename(lora / "adapter_model.bin")
        with pytest.raises(SourceError, match=r"only pickled weights \(adapter_model.bin\).*any code.*refused"):
            Adapter(lora)

    def test_truncated_weights(self, lora: Path) -> None:
        (lora / WEIGHTS).write_bytes((lora / WEIGHTS).read_bytes()[:-9])
        with pytest.raises(SourceError, match="not a whole safetensors file"):
            Adapter(lora)

    def test_one_factor_is_missing(self, lora: Path) -> None:
        _tensors(lora, layers__0__self_attn__q_proj__lora_A__weight=None)
        with pytest.raises(
            SourceError, match=r"'model\.layers\.0\.self_attn\.q_proj' has not exactly one factor A and one B"
        ):
            Adapter(lora)

    def test_factors_of_different_rank(self, lora: Path) -> None:
        _tensors(lora, layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(3, 16))
        with pytest.raises(SourceError, match=r"have the shapes \(3, 16\) and \(16, 4\)"):
            Adapter(lora)

    def test_more_than_factors(self, lora: Path) -> None:
        tensors = load_file(lora / WEIGHTS)
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
        save_file({**tensors, key: torch.ones(16)}, lora / WEIGHTS)
        with pytest.raises(SourceError, match="lora_magnitude_vector' is not part of a plain LoRA"):
            Adapter(lora)

    @pytest.mark.parametrize(
        ("sizes", "text"),
        [
            ({"hidden": 8}, r"shape \(16, 32\), but the model .*other has \(8, 16\) \(it names its model 'llama'\)"),
            ({"layers": 1}, r"changes 'model.layers.1\..*', which the model .*other lacks"),
        ],
    )
    def test_another_model(self, lora: Path, tmp_path: Path, sizes: dict[str, int], text: str) -> None:
        other = write_tiny_llama(tmp_path / "other", **sizes)
        with pytest.raises(SourceError, match=text):
            adapted(other, lora)

    def test_a_whole_tensor_of_another_shape(self, lora: Path, llama: Path) -> None:
        save_file({**load_file(lora / WEIGHTS), "base_model.model.lm_head.weight": torch.zeros(40, 16)}, lora / WEIGHTS)
        with pytest.raises(SourceError, match=r"tensor 'lm_head.weight' of shape \(40, 16\).* has \(32, 16\)"):
            adapted(llama, lora)
