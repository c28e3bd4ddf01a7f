"""The contract of engines: what every engine must do, as tests to inherit.

A plug-in's test suite subclasses `EngineContract` and gives the fixtures `engine`, `recipes` and `broken`::

    class TestMyEngine(EngineContract):
        @pytest.fixture(scope="class")
        def engine(self): ...
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from evomerge.errors import InfeasibleError
from evomerge.fitness.types import Engine
from evomerge.recipe import Recipe

PROMPTS = ("1+2=", "a", "what is 3+4? ")


def likelihoods(engine: Engine, prompts: Sequence[str] = PROMPTS) -> list[float]:
    """Return the log-likelihood, in nats, of each prompt under the loaded model."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, ("", text), index) for index, text in enumerate(prompts)]
    return [float(value) for value, _ in engine.lm.loglikelihood(requests)]


def answers(engine: Engine, prompts: Sequence[str] = PROMPTS) -> list[str]:
    """Return the greedy answer, of at most eight tokens, to each prompt."""
    from lm_eval.api.instance import Instance

    options = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, dict(options)), index) for index, text in enumerate(prompts)]
    return [str(text) for text in engine.lm.generate_until(requests)]


class EngineContract:
    """What every engine must do."""

    @pytest.fixture
    def engine(self) -> Engine:
        """Give the engine under test; nothing need be loaded."""
        raise NotImplementedError("give the engine under test")

    @pytest.fixture
    def recipes(self) -> tuple[Recipe, Recipe]:
        """Give two recipes over the engine's sources that make different models."""
        raise NotImplementedError("give two recipes")

    @pytest.fixture
    def broken(self) -> Recipe:
        """Give a recipe whose merged weights are not finite."""
        raise NotImplementedError("give a recipe that is infeasible")

    def test_a_recipe_loaded_twice_gives_the_same_model(self, engine: Engine, recipes: tuple[Recipe, Recipe]) -> None:
        """The same likelihoods to the last bit and the same answers, whatever was loaded in between."""
        engine.load(recipes[0])
        first = likelihoods(engine), answers(engine)
        engine.load(recipes[1])
        engine.load(recipes[0])
        assert (likelihoods(engine), answers(engine)) == first

    def test_another_recipe_gives_another_model(self, engine: Engine, recipes: tuple[Recipe, Recipe]) -> None:
        """No trace of the candidate before stays: neither weights nor cached keys and values."""
        engine.load(recipes[0])
        first = likelihoods(engine)
        engine.load(recipes[1])
        assert likelihoods(engine) != first

    def test_an_infeasible_recipe_is_said_and_leaves_the_engine_healthy(
        self, engine: Engine, recipes: tuple[Recipe, Recipe], broken: Recipe
    ) -> None:
        """`InfeasibleError`, and the next recipe scores as before."""
        engine.load(recipes[0])
        first = likelihoods(engine)
        with pytest.raises(InfeasibleError):
            engine.load(broken)
        engine.load(recipes[0])
        assert likelihoods(engine) == first

    def test_every_kind_of_request_is_served(self, engine: Engine, recipes: tuple[Recipe, Recipe]) -> None:
        """Likelihoods, rolling likelihoods and generation, in the order asked."""
        from lm_eval.api.instance import Instance

        engine.load(recipes[0])
        forward, backward = likelihoods(engine), likelihoods(engine, PROMPTS[::-1])
        assert forward == pytest.approx(backward[::-1], rel=1e-4)
        assert all(value < 0 for value in forward)
        requests = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(PROMPTS)]
        rolling = [float(value) for value in engine.lm.loglikelihood_rolling(requests)]
        if len(engine.lm.tok_encode(PROMPTS[0])) == engine.count_tokens(PROMPTS[:1])[0]:
            assert rolling == pytest.approx(forward, rel=1e-4)
        else:  # as in lm-eval, the start token that the tokenizer writes stands behind the one that is always there
            assert all(value < 0 for value in rolling)
        assert all(isinstance(text, str) for text in answers(engine))

    def test_the_lm_is_one_object_for_life(self, engine: Engine, recipes: tuple[Recipe, Recipe]) -> None:
        """Requests are built once against it."""
        before = engine.lm
        engine.load(recipes[1])
        assert engine.lm is before

    def test_tokens_are_counted(self, engine: Engine) -> None:
        """A longer text has more tokens, an empty one none, and special tokens do not count."""
        short, double, empty = engine.count_tokens(["1+2", "1+21+2", ""])
        assert 0 < short < double
        assert empty == 0
        assert engine.count_tokens([]) == []

    def test_facts_say_the_size_of_the_model(self, engine: Engine) -> None:
        """Positive whole numbers of parameters and of layers that are run."""
        facts = engine.facts()
        for number in (facts["parameters"], facts["hops"]):
            assert number > 0
            assert number == int(number)
