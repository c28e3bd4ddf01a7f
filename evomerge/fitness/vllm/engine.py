"""The `vllm` engine: one warm vLLM, into whose workers candidates are merged in place.

A candidate costs a swap: its recipe goes to the workers, which merge what is different from the candidate before and
write it into vLLM's model, or stream it into its weight reload. Nothing is written to the disk. What the engine
answers is held against what ought to be loaded, see `canary`; an engine that fails there is replaced, and the
candidate is to be tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from evomerge.checkpoints import copy_assets, is_buffer
from evomerge.errors import EvaluationError, EvomergeError, InfeasibleError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm.blueprints import blueprint, summary
from evomerge.fitness.vllm.canary import TOLERANCE, Answers, Canary, ask
from evomerge.fitness.vllm.keeping import serves
from evomerge.fitness.vllm.memory import plan_worker
from evomerge.fitness.vllm.options import engine_args
from evomerge.fitness.vllm.startup import prepare
from evomerge.fitness.vllm.warm import WarmLLM
from evomerge.fitness.vocabulary import ServedVocabulary
from evomerge.merging import (
    Frame,
    Kind,
    MergePlan,
    Sources,
    needed_slots,
    open_sources,
    own_slots,
    plan,
    seat,
    slots_config,
    widened,
)
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from vllm import LLM

    from evomerge.fitness.vllm.lm import VllmLM

_log = logging.getLogger(__name__)


class VllmEngine:
    """A resident vLLM; candidates are swapped into it."""

    def __init__(self, template: Recipe, *, base_dir: Path, config: EngineConfig, batch_size: int) -> None:
        """Open the sources and start vLLM on the architecture of the reference.

        Args:
            template: names sources, base and tokenizer; its blend is not used.
            base_dir: where relative model folders start.
            config: how vLLM is started.
            batch_size: requests that are served at once.

        Raises:
            SourceError: when a source cannot be used.
            ConfigError: for what the configuration asks and vLLM, the model or the device does not allow.
            EvaluationError: when vLLM does not start for another reason.
        """
        prepare(config)
        self._template, self._base_dir, self._config = template, base_dir.resolve(), config
        self._batch_size = batch_size
        self._all = self._sources = open_sources(template, base_dir, any_depth=True)
        self._vocabulary = ServedVocabulary(template, self._all)
        self._warm = WarmLLM(config)
        self._serial = 0
        self._swap_seconds: dict[str, float] = {}
        self._slots: tuple[Kind, ...] = ()
        self._frame: Frame | None = None
        self._facts: Mapping[str, float] = _reference_facts(self._sources)
        try:
            self._start(own_slots(self._sources))
            self._lm = self._serve()
        except BaseException:
            self._warm.stop()
            raise

    @property
    def lm(self) -> VllmLM:
        """The engine as an lm-eval model."""
        return self._lm

    def load(self, recipe: Recipe) -> None:
        """Make a recipe the model that is served.

        Raises:
            InfeasibleError: when a merged weight, a scale of a route or a logit is not finite; the engine stays.
            SourceError: when the sources do not fit the recipe or each other, or vLLM's model them.
            NotBuiltError: for a recipe that this version cannot build.
            EvaluationError: when vLLM did not come to serve the candidate; the next load starts it anew.
        """
        self._warm.version = None
        if not serves(self._sources, recipe):
            sources = open_sources(recipe, self._base_dir, any_depth=True, like=self._all)
            self._vocabulary.check(recipe, sources)
            self._sources = sources
        merge = plan(recipe, self._sources)
        seated = self._seated(merge)
        try:
            self._swap(recipe, seated)
        except InfeasibleError:
            raise
        except EvomergeError:
            self._warm.stop()
            raise
        self._facts = _facts(merge)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens, special tokens not added."""
        if not texts:
            return []
        encoded = self._lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def facts(self) -> Mapping[str, float]:
        """Return `parameters` and `hops` of the loaded recipe's model, as it would be exported."""
        return self._facts

    @property
    def swap_seconds(self) -> Mapping[str, float]:
        """What the latest load took, by stage: `merge`, `load` into vLLM, `reset` of its cache, `canary`."""
        return self._swap_seconds

    def close(self) -> None:
        """Stop vLLM."""
        self._warm.stop()

    def _seated(self, merge: MergePlan) -> MergePlan:
        """Lay a merge into the engine's slots; where it does not fit, start an engine into which it does."""
        frame, slots = Frame.of(self._sources), self._slots
        needed = needed_slots(merge)
        if frame != self._frame:
            slots, reason = needed, "a candidate of another architecture"
        elif (seated := seat(merge, slots)) is None:
            slots = widened(merge, slots)
            reason = f"a candidate of {len(needed)} layers: {len(slots)} instead of {len(self._slots)}"
        elif self._warm.runs:
            return seated
        else:
            reason = "the next candidate, after a failure"
        _log.warning("vLLM is started anew for %s", reason)
        self._start(slots)
        return self._seated(merge)

    def _start(self, slots: Sequence[Kind]) -> None:
        """Start vLLM with these slots; it holds random weights then."""
        with TemporaryDirectory(prefix="evomerge-") as name:
            folder = Path(name)
            config = slots_config(self._sources, slots)
            copy_assets(folder, source=self._vocabulary.folder, config=config)
            residency = plan_worker(self._all, self._config, self._batch_size, folder)
            arguments = engine_args(self._config, folder, sequences=self._batch_size, plan=residency)
            self._warm.start(arguments)
        self._slots, self._frame = tuple(slots), Frame.of(self._sources)
        self._warm.order(
            "evomerge_open",
            {
                "template": self._template.to_mapping(),
                "base_dir": str(self._base_dir),
                "where": residency.where,
            },
        )
        self._canary = Canary(0.0 if self._warm.is_on_cpu else TOLERANCE)
        self._canary.remember("", ask(self._warm))  # even the first swap must change the answers

    def _serve(self) -> VllmLM:
        from transformers import AutoTokenizer

        from evomerge.fitness.vllm.lm import VllmLM, generation_defaults  # imports vLLM, which has been started now

        folder = self._vocabulary.folder
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=self._config.trust_remote_code)
        return VllmLM(
            cast("LLM", self._warm),  # what it uses of one
            tokenizer,
            max_length=self._warm.max_model_len - 1,
            generation=generation_defaults(folder),
            version=lambda: str(self._warm.version),
        )

    def _swap(self, recipe: Recipe, seated: MergePlan) -> None:
        """Load a seated merge and make sure of it."""
        self._serial += 1
        expected = summary(blueprint(seated))
        version = f"{self._serial}-{expected[:12]}"
        load = partial(self._ordered, recipe, version, expected)
        fingerprint = load()
        answers = self._asked(version)
        self._canary.judge(fingerprint, version, answers, partial(self._settle, version, load))
        self._warm.version = version

    def _ordered(self, recipe: Recipe, version: str, expected: str) -> str:
        """Have the workers load a recipe; return the fingerprint of what they hold."""
        order = {"recipe": recipe.to_mapping(), "slots": list(self._slots), "version": version}
        answers = self._warm.order("evomerge_swap", order)
        for answer in answers:
            if answer["version"] != version or answer["blueprint"] != expected:
                raise EvaluationError(
                    f"a worker of vLLM loaded {answer['version']!r} ({answer['blueprint'][:12]}) instead of "
                    f"{version!r} ({expected[:12]}); it is started anew"
                )
        self._swap_seconds = {stage: max(answer[f"{stage}_s"] for answer in answers) for stage in ("merge", "load")}
        whole = answers[0]["whole"]
        for answer in answers[1:]:
            if any(answer["whole"].get(name, value) != value for name, value in whole.items()):
                raise EvaluationError("the workers of vLLM merged different weights; they are started anew")
        return "-".join(answer["fingerprint"] for answer in answers)

    def _asked(self, version: str) -> Answers:
        started = time.perf_counter()
        self._warm.drop_cache()
        self._warm.label(version)
        emptied = time.perf_counter()
        answers = ask(self._warm)
        self._swap_seconds |= {"reset": emptied - started, "canary": time.perf_counter() - emptied}
        return answers

    def _settle(self, version: str, load: Callable[[], str], answers: Answers) -> None:
        """Find out whether other weights may give the answers of the candidate before; see `canary`.

        Raises:
            EvaluationError: when they may not.
        """
        self._warm.order("evomerge_disturb")
        disturbed = self._asked(version)
        load()
        if not disturbed.differ(answers, 0.0) or self._asked(version).differ(answers, 0.0):
            raise EvaluationError("vLLM answered with the weights of an earlier candidate; it is started anew")
        _log.info("two candidates of different weights give the same answers")


def _facts(merge: MergePlan) -> Mapping[str, float]:
    infos = merge.infos
    count = sum(info.num_elements for name, info in infos.items() if not is_buffer(name, info))
    return {"parameters": float(count), "hops": float(len(merge.route.hops))}


def _reference_facts(sources: Sources) -> Mapping[str, float]:
    model = sources.models[sources.reference]
    infos: dict[str, Any] = {name: model.info(name) for name in model.names()}
    count = sum(info.num_elements for name, info in infos.items() if not is_buffer(name, info))
    return {"parameters": float(count), "hops": float(model.layout.num_layers)}
