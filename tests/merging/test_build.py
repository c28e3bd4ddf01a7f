from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import open_checkpoint
from evomerge.errors import ConfigError, InfeasibleError, RecipeError, SourceError
from evomerge.merging import build, materialise, merge, open_sources, plan, terminal_progress
from evomerge.recipe import Recipe, identity, read_recipe
from evomerge.testing.checkpoints import write_checkpoint, write_tiny_llama

Make = Callable[..., Recipe]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


class TestFolder:
    def test_holds_what_a_server_needs(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        (models / "base" / "generation_config.json").write_text('{"eos_token_id": 2}')
        (models / "base" / "chat_template.jinja").write_text("{{ messages }}")
        (models / "base" / "modeling_custom.py").write_text("raise SystemExit")
        (models / "base" / "pytorch_model.bin").write_bytes(b"\x80")
        recipe = make_recipe(dtype="bfloat16")
        report = build(recipe, tmp_path / "out", base_dir=models, card="# A merge\n")

        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "recipe.yaml",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
        assert (tmp_path / "out" / "README.md").read_text() == "# A merge\n"
        written = weights(tmp_path / "out")
        assert report.num_tensors == len(written) == 21
        assert report.num_parameters == sum(tensor.numel() for tensor in written.values())
        assert report.num_bytes == 2 * report.num_parameters
        assert report.recipe_id == identity(recipe, open_sources(recipe, models).infos)

    def test_holds_exactly_what_is_materialised(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        recipe = make_recipe({"method": "dare_ties", "weight": {"math": 0.7, "ja": 0.4}}, seed=3)
        build(recipe, tmp_path / "out", base_dir=models)

        assert same(weights(tmp_path / "out"), dict(materialise(plan(recipe, open_sources(recipe, models)))))

    def test_shards_in_and_out_do_not_matter(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        """Sharded sources and a sharded result give the same weights, masks included."""
        for seed, name in enumerate(("base", "math", "ja")):
            write_tiny_llama(tmp_path / "sharded" / name, seed, shards=3)
        recipe = make_recipe({"method": "dare_linear", "weight": {"math": 0.7, "ja": 0.4}})
        build(recipe, tmp_path / "one", base_dir=models)
        build(recipe, tmp_path / "many", base_dir=tmp_path / "sharded", max_shard_bytes=4000)

        assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
        assert same(weights(tmp_path / "one"), weights(tmp_path / "many"))

    def test_a_tied_head_is_written_once(self, tmp_path: Path, make_recipe: Make) -> None:
        """Whether or not the sources repeat it; the configuration still says so."""
        for seed, name in enumerate(("base", "math", "ja")):
            folder = write_tiny_llama(tmp_path / name, seed, tied=True)
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors")
        build(make_recipe(), tmp_path / "out", base_dir=tmp_path)

        assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True

    def test_the_tokenizer_comes_from_the_source_that_is_named(
        self, tmp_path: Path, models: Path, make_recipe: Make
    ) -> None:
        (models / "ja" / "chat_template.jinja").write_text("ja")
        build(make_recipe(tokenizer={"from": "ja"}), tmp_path / "ja", base_dir=models)
        build(make_recipe(), tmp_path / "base", base_dir=models)

        assert (tmp_path / "ja" / "chat_template.jinja").read_text() == "ja"
        assert not (tmp_path / "base" / "chat_template.jinja").exists()


class TestTransformers:
    @pytest.mark.parametrize("tied", [False, True])
    def test_loads_the_result_and_computes_the_same(self, tmp_path: Path, make_recipe: Make, tied: bool) -> None:
        """A state dict merged by hand, loaded by hand, gives the logits of the exported folder."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        for seed, name in enumerate(("base", "math", "ja")):
            write_tiny_llama(tmp_path / name, seed, tied=tied)
        build(make_recipe(), tmp_path / "out", base_dir=tmp_path, max_shard_bytes=10_000)
        base, math, ja = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "math", "ja"))
        by_hand = {name: base[name] + 0.7 * (math[name] - base[name]) + 0.4 * (ja[name] - base[name]) for name in base}
        expected = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "base"))
        missing = expected.load_state_dict(by_hand, strict=False).missing_keys
        assert missing == (["lm_head.weight"] if tied else [])
        expected.tie_weights()

        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        tokens = torch.arange(3, 23).view(2, 10)
        with torch.no_grad():
            torch.testing.assert_close(loaded(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-5)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert tokenizer("w3 w31 what")["input_ids"] == [3, 31, 0]


class TestNested:
    def test_equals_a_merge_of_merges_on_disk(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        """In float32, bit by bit; also when the outer sources are resident."""
        inner = make_recipe({"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "scope": "global"})
        outer = {"method": "linear", "weight": {"base": 0.5, "mix": 0.6}}
        build(inner, models / "mix", base_dir=models)
        on_disk = make_recipe(outer, sources={"base": {"model": "base"}, "mix": {"model": "mix"}})
        nested = make_recipe(outer, sources={"base": {"model": "base"}, "mix": {"model": inner.to_mapping()}})
        build(on_disk, tmp_path / "one", base_dir=models)
        build(nested, tmp_path / "two", base_dir=models)

        assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
        resident = open_sources(nested, models, resident=True)
        assert same(weights(tmp_path / "one"), dict(materialise(plan(nested, resident))))

    def test_the_inner_dtype_rounds(self, models: Path, make_recipe: Make) -> None:
        """A nested recipe is the model it describes, in its own dtype."""
        inner = make_recipe(dtype="bfloat16")
        outer = make_recipe({"method": "linear"}, base=None, sources={"mix": {"model": inner.to_mapping()}})
        inner_weights = dict(materialise(plan(inner, open_sources(inner, models))))

        for name, tensor in materialise(plan(outer, open_sources(outer, models))):
            assert torch.equal(tensor, inner_weights[name].to(torch.float32))


class TestRecipeFile:
    def test_the_written_recipe_builds_the_same_model(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        """Read from where it lies: local folders are named relative to it, inner recipes' too."""
        inner = make_recipe().to_mapping()
        recipe = make_recipe(
            {"method": "linear", "weight": {"base": 0.5, "mix": 0.6}},
            sources={"base": {"model": str(models / "base")}, "mix": {"model": inner}},
        )
        first = build(recipe, tmp_path / "a" / "b" / "out", base_dir=models)
        again = merge(tmp_path / "a" / "b" / "out" / "recipe.yaml", tmp_path / "again")

        assert str(tmp_path) not in (tmp_path / "a" / "b" / "out" / "recipe.yaml").read_text()
        assert first.recipe_id == again.recipe_id
        assert same(weights(tmp_path / "a" / "b" / "out"), weights(tmp_path / "again"))

    def test_relative_folders_start_at_the_file(
        self, tmp_path: Path, models: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (models / "recipe.yaml").write_text(make_recipe().to_yaml())
        monkeypatch.chdir(tmp_path)
        merge("models/recipe.yaml", "out")

        assert read_recipe(tmp_path / "out" / "recipe.yaml").sources["math"].model == "../models/math"

    def test_a_recipe_object_starts_at_the_working_folder(
        self, tmp_path: Path, models: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(models)

        assert merge(make_recipe(), tmp_path / "out").num_tensors == 21

    def test_a_missing_file_is_an_error_about_the_recipe(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="no such file"):
            merge(tmp_path / "none.yaml", tmp_path / "out")


class TestAllOrNothing:
    def test_a_taken_folder_is_refused_before_anything_is_read(self, tmp_path: Path, make_recipe: Make) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x").write_text("theirs")
        with pytest.raises(ConfigError, match="nothing is overwritten"):
            build(make_recipe(), tmp_path / "out", base_dir=tmp_path / "nowhere")

    def test_a_bad_tensor_in_the_middle_leaves_nothing(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        file = models / "math" / "model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.1.input_layernorm.weight"][0] = float("inf")
        save_file(tensors, file)
        with pytest.raises(SourceError, match="source 'math'"):
            build(make_recipe(), tmp_path / "out", base_dir=models, progress=terminal_progress(io.StringIO()))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]

    def test_an_overflow_in_the_middle_leaves_nothing(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        blend = {"method": "linear", "weight": 1e30, "normalize": False}
        with pytest.raises(InfeasibleError, match="in float16"):
            build(make_recipe(blend, dtype="float16"), tmp_path / "out", base_dir=models)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


class TestProgress:
    def test_plain_lines_where_there_is_no_terminal(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        stream = io.StringIO()
        build(make_recipe(), tmp_path / "out", base_dir=models, progress=terminal_progress(stream))

        assert stream.getvalue().splitlines()[-1].startswith("merging out: 100% of ")

    def test_a_bar_on_a_terminal(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        stream = Terminal()
        build(make_recipe(), tmp_path / "out", base_dir=models, progress=terminal_progress(stream))

        assert "merging out" in stream.getvalue()


_MEASURE = """
import sys, threading
from pathlib import Path
from evomerge.merging import build
from evomerge.recipe import Recipe

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

class Watch:
    def __init__(self):
        self.peak, self.over = 0, threading.Event()
    def start(self, title, total_bytes):
        self.before = anonymous_bytes()
        self.thread = threading.Thread(target=self.poll)
        self.thread.start()
    def poll(self):
        while not self.over.wait(0.001):
            self.peak = max(self.peak, anonymous_bytes())
    def advance(self, num_bytes): pass
    def finish(self):
        self.over.set()
        self.thread.join()

for folder in map(Path, sys.argv[1:]):
    for method in ("task_arithmetic", "ties"):
        recipe = Recipe.from_mapping({
            "recipe": 1, "base": "base", "dtype": "float32",
            "sources": {name: {"model": name} for name in ("base", "math", "ja")},
            "blend": {"method": method, "weight": {"math": 0.7, "ja": 0.4}},
        })
        watch = Watch()
        build(recipe, folder / f"out-{method}", base_dir=folder, progress=watch)
        print(watch.peak - watch.before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """64 tensors of 2 MiB from three sources: what is allocated at a time is a few tensors, not the model.

    Another model is merged before it, so that code and threads which the first merge loads are not counted.
    """
    folders = tmp_path / "small", tmp_path / "large"
    for folder, count in zip(folders, (33, 64), strict=True):
        config: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": count}
        for seed, name in enumerate(("base", "math", "ja")):
            row = torch.randn(512, 1024, generator=torch.Generator().manual_seed(seed))
            tensors = {f"model.layers.{i}.mlp.up_proj.weight": row.roll(i) for i in range(count)}
            write_checkpoint(folder / name, config, tensors)
            del tensors
    command = [sys.executable, "-c", _MEASURE, *map(str, folders)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)

    _, _, *peaks = (int(line) for line in result.stdout.splitlines())
    assert len(peaks) == 2
    # The kernels' own buffers have a fixed size; 128 MiB are written, 384 MiB are read.
    assert max(peaks) < 20 * 2 * 1024 * 1024
