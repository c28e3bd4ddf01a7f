"""The canary: a fixed prompt after every swap, whose answers show of which weights they are.

* No token of it may come from the prefix cache: the cache was kept from the candidate before.
* Its answers must carry the version that the candidate was given.
* The same weights give the same answers: those of a fingerprint are remembered.
* Other weights give other answers. Two candidates may agree to the last bit all the same (a stream scaled by a power
  of two, signs that cancel), so that equal answers are a suspicion, which the engine settles: it loads other values
  everywhere, sees the answers change, loads the candidate again, whole, and must see them come back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.errors import EvaluationError, InfeasibleError

if TYPE_CHECKING:
    from evomerge.fitness.vllm.warm import WarmLLM

TOLERANCE = 1e-2
"""How far answers of the same weights may differ on a GPU, in nats a token; on the CPU they are equal."""
_REMEMBERED = 4096
_STRIDE = 7919
"""Prime, so that the prompt runs through the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said to the canary prompt."""

    values: tuple[float, ...]
    """Log-likelihood of each prompt token but the first, and of the likeliest token after it."""
    versions: frozenset[str]
    """Versions of the weights that the answers carry."""

    def differ(self, other: Answers, tolerance: float) -> bool:
        """Tell whether these are answers of other weights."""
        pairs = zip(self.values, other.values, strict=True)
        return any(repr(one) != repr(two) and not abs(one - two) <= tolerance for one, two in pairs)  # NaN is NaN


def ask(llm: WarmLLM) -> Answers:
    """Ask the canary prompt, which is longer than a block of the prefix cache where the context is.

    Raises:
        EvaluationError: when tokens of it came from the prefix cache; these have no likelihoods.
    """
    from vllm import SamplingParams, TokensPrompt

    length = min(llm.max_model_len - 2, llm.block_size + 17)
    ids = [(3 + index * _STRIDE) % llm.vocab_size for index in range(max(2, length))]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprobs=1,
        prompt_logprobs=0,
        skip_reading_prefix_cache=False,  # else a request for likelihoods of the prompt does not look into it
        detokenize=False,
    )
    (output,) = llm.ask([TokensPrompt(prompt_token_ids=ids)], [params])
    if output.num_cached_tokens:
        raise EvaluationError(
            f"vLLM's prefix cache still held {output.num_cached_tokens} tokens of an earlier candidate; "
            "it is started anew"
        )
    likelihoods: Any = output.prompt_logprobs
    values = [float(found[token].logprob) for token, found in zip(ids[1:], likelihoods[1:], strict=True)]
    answer: Any = output.outputs[0]
    values.append(float(answer.logprobs[0][answer.token_ids[0]].logprob))
    return Answers(tuple(values), frozenset(span.version for span in answer.weight_versions or ()))


class Canary:
    """Remembers the answers of one engine and judges new ones."""

    def __init__(self, tolerance: float) -> None:
        """Know nothing yet."""
        self._tolerance = tolerance
        self._known: OrderedDict[str, Answers] = OrderedDict()
        self._latest: tuple[str, Answers] | None = None

    def judge(self, fingerprint: str, version: str, answers: Answers, settle: Callable[[Answers], None]) -> None:
        """Judge the answers after a swap.

        Args:
            fingerprint: of the weights that ought to be loaded.
            version: that their answers must carry.
            answers: what the model said.
            settle: settles a suspicion: returns when equal answers of other weights are right, raises else.

        Raises:
            EvaluationError: when they are not, or not only, of these weights.
            InfeasibleError: when they are not finite.
        """
        if answers.versions != {version}:
            raise EvaluationError(
                f"vLLM answered with the weights {sorted(answers.versions)} instead of {version!r}; it is started anew"
            )
        known = self._known.get(fingerprint)
        if known is not None and answers.differ(known, self._tolerance):
            raise EvaluationError("vLLM gave other answers than before with the same weights; it is started anew")
        latest = self._latest
        if known is None and latest and latest[0] != fingerprint and not answers.differ(latest[1], 0.0):
            settle(answers)
        self.remember(fingerprint, answers)
        if not all(map(math.isfinite, answers.values)):
            raise InfeasibleError("the merged model's logits are not finite")

    def remember(self, fingerprint: str, answers: Answers) -> None:
        """Remember what these weights say."""
        self._latest = fingerprint, answers
        self._known[fingerprint] = answers
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
