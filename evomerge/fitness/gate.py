"""The sanity gate: a broken merge costs a moment and becomes an infeasible point, not an hour of babble.

Two checks on a few prompts of the search split, through the engine's `LM` alone, so that they serve every
engine:

* every log-likelihood along the prompts is a number (a NaN or infinite logit anywhere would spoil it);
* not all of the probe answers end in a short cycle that goes on and on. One answer that stops, or says
  anything else, is enough to pass: small healthy models give short answers, and some healthy answers do
  repeat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.errors import InfeasibleError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_PROMPT_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class GateConfig:
    """How hard the gate looks."""

    prompts: int = 4
    """Prompts to probe; 0 turns the gate off."""
    max_tokens: int = 48
    """Longest probe answer; a task's own limit, where shorter, goes first."""
    run: int = 32
    """Characters that a cycle must go on for at the end of an answer to count as babble."""
    period: int = 24
    """Longest cycle that is looked for, in characters."""
    repeats: int = 6
    """How often a cycle must come around to count as babble."""


class Gate:
    """The sanity gate over fixed prompts."""

    def __init__(self, requests: Sequence[Instance], config: GateConfig) -> None:
        """Choose the prompts.

        Args:
            requests: requests of the search split, of any type.
            config: how hard to look.
        """
        self._config = config
        self._texts = tuple(_prompt(item) for item in _spread(requests, config.prompts))
        generative = [item for item in requests if item.request_type == "generate_until"]
        self._probes = tuple(_spread(generative, config.prompts))

    def check(self, lm: LM) -> None:
        """Check the model that is loaded.

        Raises:
            InfeasibleError: with what is wrong.
        """
        from evomerge.fitness._lm_eval import quiet

        with quiet():
            self._check_finite(lm)
            self._check_babble(lm)

    def _check_finite(self, lm: LM) -> None:
        from lm_eval.api.instance import Instance

        limit = int(getattr(lm, "max_length", _PROMPT_CHARACTERS * 4))
        keep = max(2, min(_PROMPT_CHARACTERS, limit // 4))  # a character may take several tokens
        texts = [text[-keep:] for text in self._texts if text.strip()]
        requests = [Instance("loglikelihood", {}, ("", text), index) for index, text in enumerate(texts)]
        if not requests:
            return
        for value, _ in lm.loglikelihood(requests):
            if not math.isfinite(value):
                raise InfeasibleError("the merged model's logits are not finite")

    def _check_babble(self, lm: LM) -> None:
        from lm_eval.api.instance import Instance

        requests = []
        for index, probe in enumerate(self._probes):
            options = _probe_options(probe.args[1], self._config.max_tokens)
            if options["max_gen_toks"] < self._config.run:
                return  # answers too short to tell babble from a short answer
            requests.append(Instance("generate_until", {}, (probe.args[0], options), index))
        if not requests:
            return
        answers = lm.generate_until(requests)
        if all(is_babble(answer, self._config) for answer in answers):
            shown = answers[0] if len(answers[0]) <= 40 else f"{answers[0][:37]}..."
            raise InfeasibleError(f"the merged model repeats itself without end, for instance {shown!r}")


def is_babble(text: str, config: GateConfig) -> bool:
    """Tell whether a text ends in a short cycle that goes on and on.

    Example:
        >>> is_babble("The answer is 42.", GateConfig()), is_babble("no " * 16, GateConfig())
        (False, True)
    """
    for period in range(1, config.period + 1):
        length = period
        while length < len(text) and text[-length - 1] == text[-length - 1 + period]:
            length += 1
        if length >= max(config.run, config.repeats * period):
            return True
    return False


def _spread(items: Sequence[Instance], count: int) -> list[Instance]:
    """Return up to `count` different items, evenly spread over the sequence."""
    distinct = list({id(item): item for item in items}.values())
    if len(distinct) <= count:
        return distinct
    return [distinct[index * len(distinct) // count] for index in range(count)]


def _prompt(request: Instance) -> str:
    parts = [part for part in request.args if isinstance(part, str)]
    return "".join(parts)


def _probe_options(options: dict[str, Any], longest: int) -> dict[str, Any]:
    """Return a task's generation options, greedy and at most `longest` tokens long."""
    own = next((int(options[key]) for key in _TOKEN_LIMITS if options.get(key) is not None), longest)
    sampling = ("do_sample", "temperature", "top_p", "top_k", "num_beams")
    kept = {key: value for key, value in options.items() if key not in (*_TOKEN_LIMITS, *sampling)}
    return {**kept, "do_sample": False, "temperature": 0.0, "max_gen_toks": min(own, longest)}
