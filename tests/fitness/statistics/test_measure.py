"""Fisher and Gram matrices against per-example autograd and hooks in float64; interrupted and continued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.checkpoints import Checkpoint, StatisticFile, open_checkpoint
from evomerge.errors import ConfigError, SourceError
from evomerge.fitness.statistics import Calibration, MeasureConfig, encode, measure, read_texts, write_moments
from evomerge.fitness.statistics.fisher import draw_labels
from evomerge.seeds import generator
from evomerge.testing.checkpoints import write_tiny_llama
from tests.merging.architectures import write_model

ON_CPU = MeasureConfig(device="cpu")
OF_TEXT = MeasureConfig(device="cpu", labels="text")
EXPERTS = {
    "mixtral": {"down_proj": ["w2"], "gate_up_proj": ["w1", "w3"]},
    "qwen3_moe": {"down_proj": ["down_proj"], "gate_up_proj": ["gate_proj", "up_proj"]},
}
"""What transformers stacks, and for each the parts of an expert as it is stored."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    return Calibration(tuple(tuple(rng.integers(3, 32, size=length).tolist()) for length in (7, 2, 12, 5)))


@pytest.fixture(scope="module")
def oracle(source: Checkpoint) -> Any:
    """transformers' own reading of the checkpoint, in float64."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float64)


def squared_gradients(oracle: Any, calibration: Calibration, labels: list[Tensor]) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(parameter) for name, parameter in oracle.named_parameters()}
    count = 0
    for tokens, wanted in zip(calibration.examples, labels, strict=True):
        oracle.zero_grad()
        logits = oracle(torch.tensor([tokens])).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").backward()
        for name, parameter in oracle.named_parameters():
            sums[name] += parameter.grad**2
        count += len(wanted)
    return {name: total / count for name, total in sums.items()}


def check_close(file: StatisticFile, expected: dict[str, Tensor]) -> None:
    assert set(file.names()) == set(expected)
    for name, exact in expected.items():
        found = file.tensor(name)
        assert found is not None
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-6 * float(exact.max()))


class TestFisher:
    def test_of_the_text_it_is_the_mean_of_squared_gradients_of_single_examples(
        self, source: Checkpoint, calibration: Calibration, oracle: Any, tmp_path: Path
    ) -> None:
        (written,) = measure(source, tmp_path, calibration, ["fisher"], OF_TEXT)
        expected = squared_gradients(oracle, calibration, [torch.tensor(one[1:]) for one in calibration.examples])
        check_close(StatisticFile(written.path), expected)

    def test_it_is_not_the_square_of_the_batch_gradient(
        self, source: Checkpoint, calibration: Calibration, oracle: Any, tmp_path: Path
    ) -> None:
        (written,) = measure(source, tmp_path, calibration, ["fisher"], OF_TEXT)
        oracle.zero_grad()
        for tokens in calibration.examples:
            logits = oracle(torch.tensor([tokens])).logits[0, :-1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="sum").backward()
        batch = oracle.lm_head.weight.grad**2
        found = StatisticFile(written.path).tensor("lm_head.weight")
        assert found is not None
        assert float((found / found.sum() - batch / batch.sum()).abs().max()) > 1e-3

    def test_of_the_model_labels_are_drawn_by_seed_and_example(
        self, source: Checkpoint, calibration: Calibration, oracle: Any, tmp_path: Path
    ) -> None:
        (written,) = measure(source, tmp_path, calibration, ["fisher"], MeasureConfig(device="cpu", seed=7))
        labels = []
        for index, tokens in enumerate(calibration.examples):
            with torch.no_grad():
                shares = oracle(torch.tensor([tokens])).logits[0, :-1].softmax(-1).cumsum(-1)
            numbers = generator(7, "fisher", index).random(len(tokens) - 1)
            labels.append(torch.tensor([int((row <= u).sum()) for row, u in zip(shares, numbers, strict=True)]))
        check_close(StatisticFile(written.path), squared_gradients(oracle, calibration, labels))

    def test_drawn_labels_follow_the_models_distribution(self) -> None:
        logits = torch.tensor([0.0, 1.0, 2.0, -30.0])
        numbers = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        drawn = torch.bincount(draw_labels(logits.expand(4000, -1), numbers), minlength=4) / 4000
        torch.testing.assert_close(drawn.double(), logits.double().softmax(0), rtol=0, atol=1e-3)

    def test_the_header_tells_mean_median_and_norm_of_the_whole_model(
        self, source: Checkpoint, calibration: Calibration, tmp_path: Path
    ) -> None:
        (written,) = measure(source, tmp_path, calibration, ["fisher"], OF_TEXT)
        file = StatisticFile(written.path)
        whole = np.concatenate([file.tensor(name).numpy().ravel() for name in file.names()]).astype(np.float64)  # type: ignore[union-attr]
        assert file.note.mean == pytest.approx(whole.mean())
        assert file.note.norm == pytest.approx(np.linalg.norm(whole))
        above = np.sort(whole[whole > 0])[::-1]
        assert file.note.median == above[len(above) // 2 - 1]


class TestGram:
    def test_it_is_the_mean_outer_product_of_the_inputs(
        self, source: Checkpoint, calibration: Calibration, oracle: Any, tmp_path: Path
    ) -> None:
        rows: dict[str, list[Tensor]] = {}
        hooks = [
            module.register_forward_hook(
                lambda _m, args, _o, name=name: rows.setdefault(f"{name}.weight", []).append(args[0][0].detach())
            )
            for name, module in oracle.model.layers.named_modules(prefix="model.layers")
            if isinstance(module, torch.nn.Linear)
        ]
        for tokens in calibration.examples:
            oracle(torch.tensor([tokens]))
        for hook in hooks:
            hook.remove()

        (written,) = measure(source, tmp_path, calibration, ["gram"], ON_CPU)
        file = StatisticFile(written.path)
        assert len(rows) == 14
        for name, parts in rows.items():
            inputs = torch.cat(parts)
            found = file.tensor(name)
            assert found is not None
            torch.testing.assert_close(found.double(), inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-5)

    def test_layers_that_read_the_same_share_one_matrix(
        self, source: Checkpoint, calibration: Calibration, tmp_path: Path
    ) -> None:
        (written,) = measure(source, tmp_path, calibration, ["gram"], ON_CPU)
        file = StatisticFile(written.path)
        layer = "model.layers.0."
        kept = ("mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj")
        assert [name for name in file.names() if name.startswith(layer)] == [f"{layer}{name}.weight" for name in kept]
        assert {name: other for name, other in file.note.shared.items() if name.startswith(layer)} == {
            f"{layer}self_attn.k_proj.weight": f"{layer}self_attn.q_proj.weight",
            f"{layer}self_attn.v_proj.weight": f"{layer}self_attn.q_proj.weight",
            f"{layer}mlp.up_proj.weight": f"{layer}mlp.gate_proj.weight",
        }
        assert file.tensor("lm_head.weight") is None


class Killed(BaseException):
    """What no handler catches."""


class Killer:
    """A progress that ends the process, as far as Python can tell, after some examples."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.told = 0

    def start(self, title: str, total_bytes: int) -> None:
        self.told = -1  # the first word is of what is done already

    def advance(self, num_bytes: int) -> None:
        if self.told == -1:
            self.told = num_bytes
            return
        if self.left == 0:
            raise Killed
        self.left -= 1

    def finish(self) -> None:
        pass


class TestContinuing:
    @pytest.mark.parametrize("kind", ["fisher", "gram"])
    def test_a_killed_run_goes_on_to_the_same_bytes(
        self, source: Checkpoint, calibration: Calibration, tmp_path: Path, kind: Any
    ) -> None:
        (whole,) = measure(source, tmp_path / "whole", calibration, [kind], ON_CPU)
        config = MeasureConfig(device="cpu", save_every_s=0)
        with pytest.raises(Killed):
            measure(source, tmp_path / "cut", calibration, [kind], config, Killer(after=2))
        assert not (tmp_path / "cut" / f"{kind}.safetensors").exists()

        again = Killer(after=99)
        (continued,) = measure(source, tmp_path / "cut", calibration, [kind], config, again)
        assert again.told >= 7, "the first example is not measured again"
        assert continued.path.read_bytes() == whole.path.read_bytes()
        assert continued.content_hash == whole.content_hash
        assert [path.name for path in (tmp_path / "cut").iterdir()] == [f"{kind}.safetensors"]

    def test_a_process_that_was_killed_outright_leaves_what_another_goes_on_from(
        self, source: Checkpoint, tmp_path: Path
    ) -> None:
        many = Calibration(tuple((1, 3 + index % 29, 5, 7) for index in range(20_000)))
        code = (
            "import sys; from pathlib import Path; from evomerge.checkpoints import open_checkpoint;"
            "from evomerge.fitness.statistics import Calibration, MeasureConfig, measure;"
            "many = Calibration(tuple((1, 3 + index % 29, 5, 7) for index in range(20_000)));"
            "config = MeasureConfig(device='cpu', save_every_s=0);"
            "measure(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), many, ['gram'], config)"
        )
        partial = tmp_path / ".gram.partial.safetensors"
        process = subprocess.Popen([sys.executable, "-c", code, str(source.folder), str(tmp_path)])
        while not partial.exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "gram.safetensors").exists()

        measured = StatisticFile(partial)
        assert 0 < measured.note.done < 20_000
        heard = Killer(after=0)
        with pytest.raises(Killed):
            measure(source, tmp_path, many, ["gram"], ON_CPU, heard)
        assert heard.told == 4 * measured.note.done

    def test_what_was_left_of_other_texts_is_not_continued(
        self, source: Checkpoint, calibration: Calibration, tmp_path: Path
    ) -> None:
        config = MeasureConfig(device="cpu", save_every_s=0)
        with pytest.raises(Killed):
            measure(source, tmp_path, calibration, ["gram"], config, Killer(after=2))
        others = Calibration(calibration.examples[::-1])
        heard = Killer(after=99)
        measure(source, tmp_path, others, ["gram"], config, heard)
        assert heard.told == 0

    def test_what_is_there_is_kept_and_never_replaced_by_something_else(
        self, source: Checkpoint, calibration: Calibration, tmp_path: Path
    ) -> None:
        (first,) = measure(source, tmp_path, calibration, ["gram"], ON_CPU)
        (second,) = measure(source, tmp_path, calibration, ["gram"], ON_CPU)
        assert (first.was_there, second.was_there) == (False, True)
        with pytest.raises(ConfigError, match="from other texts or with other options; give another folder"):
            measure(source, tmp_path, Calibration(calibration.examples[:2]), ["gram"], ON_CPU)


def test_a_model_that_transformers_names_otherwise_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_tiny_llama(tmp_path / "odd")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.extra.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SourceError, match="names its weights differently"):
        measure(open_checkpoint(folder), tmp_path / "out", calibration, ["fisher"], ON_CPU)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_that_transformers_keeps_as_one_are_measured_one_by_one(
    tmp_path: Path, calibration: Calibration, kind: str
) -> None:
    source = open_checkpoint(write_model(tmp_path / kind, kind, seed=0))
    (fisher, gram) = measure(source, tmp_path / "out", calibration, ["fisher", "gram"], OF_TEXT)
    found = StatisticFile(fisher.path)
    found.check(source)
    assert set(found.names()) == set(source.names())
    assert not [name for name in StatisticFile(gram.path).names() if "experts" in name]

    from transformers import AutoModelForCausalLM

    # Products of groups of matrices, which it takes otherwise, know no float64.
    oracle = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float64, experts_implementation="eager")
    labels = [torch.tensor(one[1:]) for one in calibration.examples]
    expected = squared_gradients(oracle, calibration, labels)
    stacked = [name for name in expected if "experts" in name]
    assert stacked
    for place in stacked:
        layer, _, which = place.partition(".experts.")
        if kind == "mixtral":
            layer = layer.replace("mlp", "block_sparse_moe")
        for expert, exact in enumerate(expected[place]):
            parts = [found.tensor(f"{layer}.experts.{expert}.{part}.weight") for part in EXPERTS[kind][which]]
            measured = torch.cat([part for part in parts if part is not None]).double()
            torch.testing.assert_close(measured, exact, rtol=1e-3, atol=1e-6 * float(expected[place].max()))


def test_gpt2_layers_are_measured_by_their_inputs(tmp_path: Path) -> None:
    """`Conv1D` stores (inputs, outputs): the matrix has the size of the inputs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=32)).save_pretrained(
        tmp_path / "gpt2"
    )
    source = open_checkpoint(tmp_path / "gpt2")
    (written,) = measure(source, tmp_path / "out", Calibration(((1, 2, 3),)), ["gram"], ON_CPU)
    file = StatisticFile(written.path)
    assert {name: file.shape(name)[0] for name in file.names()} == {
        "transformer.h.0.attn.c_attn.weight": 8,
        "transformer.h.0.attn.c_proj.weight": 8,
        "transformer.h.0.mlp.c_fc.weight": 8,
        "transformer.h.0.mlp.c_proj.weight": 32,
    }
    file.check(source)


class TestTexts:
    def test_lines_of_text_and_of_json_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\ntwo\n")
        (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"prompt": "1+1=", "answer": "2"}\n')
        assert read_texts(tmp_path / "a.txt") == ["one", "two"]
        assert read_texts(tmp_path / "b.jsonl") == ["one", "1+1=2"]

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("a.jsonl", '{"text": 1}', r"a.jsonl:1: expected an object with `text`"),
            ("a.jsonl", '\n{"text": "x"', r"a.jsonl:2: not valid JSON"),
            ("a.txt", "\n", "holds no text"),
            ("none.txt", None, "cannot be read"),
        ],
    )
    def test_what_is_no_file_of_texts_is_refused(self, tmp_path: Path, name: str, text: str | None, said: str) -> None:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_texts(tmp_path / name)

    def test_texts_are_cut_counted_and_hashed_as_tokens(self, source: Checkpoint) -> None:
        texts = ["w3 w4 w5 w6", "w3", "w7 w8"]
        found = encode(texts, source, examples=3, max_length=3)
        assert found.examples == ((3, 4, 5), (7, 8))
        assert found.content_hash == encode(["w3 w4 w5", "w7 w8"], source, examples=9).content_hash
        assert found.content_hash != encode(texts, source, examples=3).content_hash
        with pytest.raises(ConfigError, match="no calibration text has two tokens"):
            encode(["w3"], source, examples=1)


class TestMoments:
    def test_second_moments_are_taken_over_by_parameter_name(self, source: Checkpoint, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        moments = {name: torch.full(source.info(name).shape, 1e-18) for name in source.names()[:3]}
        entries = {f"state.{name}.exp_avg_sq": tensor for name, tensor in moments.items()}
        save_file({**entries, "state.step": torch.zeros(1)}, tmp_path / "optimizer.safetensors")
        written = write_moments(source, tmp_path / "out", tmp_path / "optimizer.safetensors")
        file = StatisticFile(written.path)
        assert file.note.kind == "adam"
        assert file.names() == tuple(sorted(moments))
        assert file.note.median == float(torch.tensor(1e-18))
        assert write_moments(source, tmp_path / "out", tmp_path / "optimizer.safetensors").was_there

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("lm_head.weight", torch.zeros(2, 2), "gather its shards first"),
            ("lm_head.weight", -torch.ones(32, 16), "values that are negative"),
            ("other.weight", torch.ones(2), "names no parameter of the model"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, source: Checkpoint, tmp_path: Path, key: str, value: Tensor, said: str
    ) -> None:
        from safetensors.torch import save_file

        save_file({key: value}, tmp_path / "optimizer.safetensors")
        with pytest.raises(SourceError, match=said):
            write_moments(source, tmp_path / "out", tmp_path / "optimizer.safetensors")

    def test_pickle_is_refused_with_the_reason_and_a_way_out(self, source: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"reading pickle can run any code.*docs/statistics.md"):
            write_moments(source, tmp_path, tmp_path / "optimizer.pt")
