"""A warm vLLM engine as an lm-eval `LM`.

It asks the questions that lm-eval's `hf` model asks, token for token, so that scores equal those of the
`transformers` engine: the same split of context and continuation, the same windows, the same cut answers. What is
different inside, and why the results are not:

* vLLM always samples a token, so the last token of a continuation is never sent: its log-likelihood is read where the
  next token would be sampled. Continuations of one token need no likelihood of the prompt at all, and those that share
  their context (the choices of a question) are one request.
* The likelihoods of earlier tokens are vLLM's `prompt_logprobs`. Such requests do not read the prefix cache (vLLM
  computes no logits for cached tokens); all others do, where the engine has one.
* A token counts as greedy when no token is likelier. Of exactly tied tokens, all do, as in lm-eval's own `vllm` model;
  its `hf` model takes the one with the lowest id.
* Answers are decoded from their tokens with special ones left out, as `hf` does; lm-eval's `vllm` model spells them
  out. With neither `do_sample` nor a temperature an answer is greedy, as in `hf`; lm-eval's `vllm` model would sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.exceptions import VLLMValidationError
from vllm.logprobs import FlatLogprobs

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError, EvaluationError
from evomerge.seeds import derive

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook
    from transformers import PreTrainedTokenizerBase
    from vllm import RequestOutput

DEFAULT_TOKENS = 256
"""Longest answer, in tokens, of a task that does not say; as in lm-eval."""
MAX_FINALS = 128
"""Last tokens that vLLM scores in one request."""
_SAMPLING = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "min_tokens", "seed", "stop_token_ids", "ignore_eos", "bad_words", "logit_bias", "allowed_token_ids",
    }
)  # fmt: skip
"""Generation options that go to vLLM as they are."""
_ANSWERED = ("stop", "length")
"""Why an answer ends that was not broken off."""
_DEFAULTS = ("repetition_penalty", "top_p", "top_k", "min_p")

Tokens = list[int]
Scored = tuple[float, bool]
"""Log-likelihood in nats, and whether greedy decoding would say the same."""


@dataclass(slots=True)
class _Question:
    """Requests that are alike in all tokens but the last, as one request to vLLM."""

    prompt: Tokens
    inside: int = 0
    """Tokens at the prompt's end whose likelihood is wanted."""
    finals: dict[int, None] = field(default_factory=dict)
    """The last tokens, in the order in which they came up."""

    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            flat_logprobs=True,
            logprob_token_ids=list(self.finals),
            prompt_logprobs=1 if self.inside else None,
        )


class VllmLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """Serves lm-eval's requests through an engine that somebody else starts, swaps and stops.

    Args:
        llm: the engine. With `max_model_len` above `max_length`, likelihood windows are those of lm-eval's `hf` model;
            with `max_model_len` equal to it, one token shorter.
        tokenizer: its tokenizer.
        max_length: longest context in tokens.
        generation: sampling options under those of the tasks; see `generation_defaults`.
        chat_options: further arguments of the tokenizer's chat template, for instance `enable_thinking`.
        think_end: text that ends a model's thinking; an answer starts after it.
        version: names the weights that ought to be served. It is asked before and after each batch, and every output
            must carry that version.
        seed: of sampled answers. An answer depends on it, on its prompt and on how often that prompt came before.

    Example:
        `VllmLM(llm, llm.get_tokenizer(), max_length=2048, generation=generation_defaults(folder))`
    """

    def __init__(
        self,
        llm: LLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        generation: Mapping[str, Any] | None = None,
        chat_options: Mapping[str, Any] | None = None,
        think_end: str | None = None,
        version: Callable[[], str] | None = None,
        seed: int = 1234,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._llm = llm
        self._max_length = max_length
        self._generation = dict(generation or {})
        self._chat_options = dict(chat_options or {})
        self._think_end = think_end
        self._version = version
        self._seed = seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a context is conditioned on."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def max_length(self) -> int:
        """Longest context in tokens."""
        return self._max_length

    @property
    def _window(self) -> int:
        """Tokens that can be sent of a text whose last token is asked about."""
        return min(self._max_length, int(self._llm.llm_engine.model_config.max_model_len) - 1)

    @property
    def max_gen_toks(self) -> int:
        """Longest answer, in tokens, of a task that does not say."""
        return DEFAULT_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer that a file may have."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def set_cache_hook(self, cache_hook: CacheHook) -> NoReturn:  # noqa: ARG002  lm-eval's signature
        """Refuse lm-eval's response cache, which knows requests but not weights.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("lm-eval's response cache would give one candidate's answers to the next; leave it off")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001, FBT002  lm-eval's signature
        """Return a conversation as a prompt; a template that has no place for a system message goes without."""
        from jinja2 import TemplateError

        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            **self._chat_options,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **options))
        except TemplateError:
            others = [message for message in chat_history if message["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(others, **options))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Tokens:  # noqa: FBT001  lm-eval's signature
        """Return a text's tokens; one that starts with the prefix token, as rendered chats do, gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Scored]:  # noqa: FBT001, FBT002, ARG002  lm-eval's signature
        """Return each continuation's log-likelihood given its context, and whether it is greedy.

        Raises:
            ConfigError: for a continuation longer than the longest context.
            EvaluationError: when the outputs are of other weights than those that ought to be served.
        """
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:  # noqa: FBT001, FBT002, ARG002  lm-eval's signature
        """Return each text's log-likelihood, every token once, in windows of the longest context.

        Raises:
            EvaluationError: when the outputs are of other weights than those that ought to be served.
        """
        windows: list[tuple[None, Tokens, Tokens]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._window,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, parts):
                windows.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: FBT001, FBT002, ARG002  lm-eval's signature
        """Return an answer to each context, cut at the first of its stop strings.

        Raises:
            ConfigError: for a generation option that vLLM does not have, and for answers that leave no room for the
                context.
            EvaluationError: when the outputs are of other weights than those that ought to be served.
        """
        seen: Counter[str] = Counter()
        prompts, params, stops = [], [], []
        for request in requests:
            context, options = request.args
            until, limit, sampling = self._options(options)
            # Answers to a repeated prompt differ, and none depends on what else is asked.
            sampling.setdefault("seed", derive(self._seed, "answer", context, seen[context]) % (1 << 31))
            seen[context] += 1
            prompts.append((self.tok_encode(context) or [self.prefix_token_id])[-(self._max_length - limit) :])
            params.append(self._sampling_params(until, limit, sampling))
            stops.append(until)
        answers = (output.outputs[0].token_ids for output in self._run(prompts, params))
        return [
            postprocess_generated_text(
                self.tokenizer.decode(list(tokens), skip_special_tokens=True),
                stop=until,
                think_end_token=self._think_end,
            )
            for tokens, until in zip(answers, stops, strict=True)
        ]

    def _options(self, options: Mapping[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
        """Return a request's stop strings, its longest answer in tokens, and its sampling options."""
        given = dict(normalize_gen_kwargs(dict(options), DEFAULT_TOKENS))
        until = handle_stop_sequences(given.pop("until"), eos=self.tokenizer.decode(self.eot_token_id))
        limit = int(given.pop("max_gen_toks"))
        if not 0 < limit < self._max_length:
            raise ConfigError(
                f"answers of up to {limit} tokens leave no room for the question in {self._max_length} tokens; "
                "lower the task's `max_gen_toks` or raise `engine.max_length`"
            )
        sampled = given.pop("do_sample")
        given["temperature"] = given.get("temperature", 1.0) if sampled else 0.0
        if given.get("num_beams") == 1:
            del given["num_beams"]
        for name in given:
            if name not in _SAMPLING:
                raise ConfigError(f"vLLM has no generation option {name!r}{did_you_mean(name, _SAMPLING)}")
        return [text for text in until if text], limit, {**self._generation, **given}

    def _sampling_params(self, until: list[str], limit: int, sampling: Mapping[str, Any]) -> SamplingParams:
        if self._think_end is not None:
            # A stop string within the thinking would end it before the answer; the answer is cut afterwards.
            until = until[-1:]
        try:
            # Stop strings may be special tokens, which must be spelled out for vLLM to see them.
            return SamplingParams(max_tokens=limit, stop=until, skip_special_tokens=False, **sampling)
        except (TypeError, ValueError, VLLMValidationError) as error:
            raise ConfigError(f"generation options {dict(sampling)} are refused by vLLM: {error}") from error

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, Tokens, Tokens]], **_: Any
    ) -> list[Scored]:
        found: list[tuple[int, Tokens]] = []
        questions: list[_Question] = []
        latest: dict[tuple[int, ...], int] = {}
        for _key, context, continuation in requests:
            if not continuation:
                found.append((-1, continuation))
                continue
            prompt = self._prompt(context or [self.prefix_token_id], continuation)
            index = latest.get(tuple(prompt), -1)
            if index < 0 or len(questions[index].finals) == MAX_FINALS:
                index = latest[tuple(prompt)] = len(questions)
                questions.append(_Question(prompt))
            questions[index].finals[continuation[-1]] = None
            questions[index].inside = max(questions[index].inside, len(continuation) - 1)
            found.append((index, continuation))
        outputs = self._run([item.prompt for item in questions], [item.params() for item in questions])
        answers = [_Answer.read(question, output) for question, output in zip(questions, outputs, strict=True)]
        return [answers[index].score(tokens) if index >= 0 else (0.0, True) for index, tokens in found]

    def _prompt(self, context: Tokens, continuation: Tokens) -> Tokens:
        """Return what is sent: the end of the text that fits, without its last token."""
        if len(continuation) > self._window:
            raise ConfigError(
                f"a continuation of {len(continuation)} tokens does not fit into the engine's {self._window}; "
                "raise `engine.max_length`"
            )
        return (context + continuation)[-(self._window + 1) : -1]

    def _run(self, prompts: Sequence[Tokens], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        """Answer all prompts in one call, and make sure of the weights that did."""
        if not prompts:
            return []
        before = self._version() if self._version else None
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], params, use_tqdm=False
        )
        answered = sum(output.outputs[0].finish_reason in _ANSWERED for output in outputs)
        if not answered == len(outputs) == len(prompts):
            raise EvaluationError(f"vLLM answered {answered} of {len(prompts)} requests; start a new engine")
        if self._version:
            self._check_versions({before, self._version()}, outputs)
        return outputs

    @staticmethod
    def _check_versions(expected: set[str | None], outputs: Iterable[RequestOutput]) -> None:
        served = {span.version for output in outputs for span in output.outputs[0].weight_versions or ()}
        if len(expected) != 1 or served != expected:
            raise EvaluationError(
                f"vLLM answered with the weights {sorted(served)} where {sorted(map(str, expected))} ought to be "
                "loaded; its answers are not used"
            )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What vLLM says to a question."""

    inside: list[Scored]
    """Of the prompt's last tokens."""
    finals: Mapping[int, float]
    """Log-likelihood of each last token, and of the likeliest one."""

    @classmethod
    def read(cls, question: _Question, output: RequestOutput) -> _Answer:
        inside = []
        if question.inside:
            prompt = cast("FlatLogprobs", output.prompt_logprobs)
            for start in prompt.start_indices[-question.inside :]:  # the token itself, then the likeliest one
                own, best = prompt.logprobs[start : start + 2]
                inside.append((own, own >= best))
        sampled = cast("FlatLogprobs", output.outputs[0].logprobs)
        return cls(inside, dict(zip(sampled.token_ids, sampled.logprobs, strict=True)))

    def score(self, continuation: Tokens) -> Scored:
        earlier = self.inside[len(self.inside) - (len(continuation) - 1) :]
        final = self.finals[continuation[-1]]
        value = math.fsum([*(value for value, _ in earlier), final])
        return value, all(greedy for _, greedy in earlier) and final >= max(self.finals.values())


def generation_defaults(folder: Path) -> dict[str, Any]:
    """Return the sampling options that transformers would read with a checkpoint: penalties, cut-offs, end tokens.

    A temperature is left out: tasks say whether they sample. vLLM itself is to be started with
    `generation_config="vllm"`, or its own reading of the same file would come on top.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(folder)
    except OSError:
        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    found = {name: getattr(settings, name, None) for name in _DEFAULTS}
    ends = settings.eos_token_id
    found["stop_token_ids"] = list(ends) if isinstance(ends, (list, tuple)) else [ends] if ends is not None else None
    return {name: value for name, value in found.items() if value is not None}
