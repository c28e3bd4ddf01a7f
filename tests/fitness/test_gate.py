"""The sanity gate: broken models are stopped, healthy ones never."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from evomerge.errors import InfeasibleError
from evomerge.fitness.gate import Gate, GateConfig, is_babble

CONFIG = GateConfig()


class Fake:
    """Answers with fixed texts and likelihoods."""

    max_length = 64

    def __init__(self, answers: list[str], likelihood: float = -1.0) -> None:
        self.answers = answers
        self.likelihood = likelihood
        self.asked: list[Any] = []

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.asked.extend(requests)
        return [(self.likelihood, False)] * len(requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.asked.extend(requests)
        return (self.answers * len(requests))[: len(requests)]


def questions(count: int = 10, **options: Any) -> list[Any]:
    return [Instance("generate_until", {}, (f"question {index}", options), index) for index in range(count)]


def check(lm: Fake, requests: list[Any], config: GateConfig = CONFIG) -> None:
    Gate(requests, config).check(lm)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["", "7", "the answer is 12.", "x" * 20, "0123456789" * 5])
def test_an_answer_that_is_no_endless_cycle_passes(answer: str) -> None:
    check(Fake([answer]), questions())


@pytest.mark.parametrize("answer", ["x" * 48, "ab" * 30, "no, " * 20, "fine so far: " + "\n" * 40])
def test_endless_cycles_in_every_answer_are_infeasible(answer: str) -> None:
    with pytest.raises(InfeasibleError, match="repeats itself"):
        check(Fake([answer]), questions())


def test_one_sane_answer_is_enough() -> None:
    check(Fake(["x" * 48, "x" * 48, "x" * 48, "7"]), questions())


@pytest.mark.parametrize("likelihood", [float("nan"), float("-inf"), float("inf")])
def test_logits_that_are_not_finite_are_infeasible(likelihood: float) -> None:
    with pytest.raises(InfeasibleError, match="not finite"):
        check(Fake(["7"], likelihood), questions())


def test_tasks_with_short_answers_are_not_probed_for_babble() -> None:
    """Within four tokens nobody can tell babble from an answer, and the probe would cost a generation."""
    lm = Fake(["xxxx"])
    check(lm, questions(max_gen_toks=4))
    assert {item.request_type for item in lm.asked} == {"loglikelihood"}


def test_probes_are_greedy_short_and_keep_the_tasks_stop_sequences() -> None:
    lm = Fake(["7"])
    check(lm, questions(until=["\n"], max_gen_toks=900, do_sample=True, temperature=0.7, top_p=0.9))
    asked = [item.args[1] for item in lm.asked if item.request_type == "generate_until"]
    expected = {"until": ["\n"], "max_gen_toks": 48, "do_sample": False, "temperature": 0.0}
    assert asked == [expected] * CONFIG.prompts


def test_prompts_fit_the_models_context() -> None:
    lm = Fake([])
    check(lm, [Instance("loglikelihood_rolling", {}, ("long " * 1000,), 0)])
    assert all(len(item.args[1]) <= lm.max_length // 4 for item in lm.asked)


def test_no_prompts_turn_the_gate_off() -> None:
    lm = Fake(["x" * 48], float("nan"))
    check(lm, questions(), GateConfig(prompts=0))
    assert lm.asked == []


@given(st.text("abcdefgh ", max_size=31))
def test_a_text_shorter_than_the_run_is_never_babble(text: str) -> None:
    assert not is_babble(text, CONFIG)


@given(st.text("abc", min_size=1, max_size=4), st.text("xyz", max_size=40))
def test_a_cycle_is_found_wherever_the_text_began(cycle: str, start: str) -> None:
    assert is_babble(start + cycle * 40, CONFIG)
