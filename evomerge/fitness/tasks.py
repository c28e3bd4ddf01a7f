"""Tasks and their requests, built once a worker; per-sample scores a candidate.

lm-eval's own work (rendering prompts, building requests, hashing documents) costs about a millisecond a
document and is the same for every candidate, so it is done once. What is done for a candidate follows
`lm_eval.evaluator.evaluate` step by step: requests grouped by type over all tasks, repeats, filters, and
`process_results` for each document and filter. A test holds the scores to `simple_evaluate`'s, sample by
sample.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, EvaluationError, InfeasibleError
from evomerge.fitness.config import TaskConfig
from evomerge.fitness.objectives import RESPONSE_TOKENS
from evomerge.fitness.splits import assign, document_hash
from evomerge.fitness.suite import LOG_LIKELIHOOD, Suite
from evomerge.fitness.types import Minibatch, Split

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

CountTokens = Callable[[Sequence[str]], list[int]]
"""Texts to their number of tokens."""
_LIKELIHOODS = ("loglikelihood", "loglikelihood_rolling")


@dataclass(frozen=True, slots=True)
class Document:
    """One document and its requests."""

    content: Mapping[str, Any]
    digest: str
    requests: tuple[Instance, ...]
    """In the order in which `process_results` takes their responses."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One lm-eval task, restricted to the documents of a split."""

    name: str
    task: Task
    documents: tuple[Document, ...]

    def instances(self) -> Iterator[Instance]:
        """Yield every request, in lm-eval's order."""
        yield from self.task.instances


@dataclass(frozen=True, slots=True)
class Scores:
    """What the tasks of a split gave for one model."""

    samples: dict[str, NDArray[np.float64]]
    documents: dict[str, tuple[str, ...]]


class SplitTasks:
    """Every task of a suite on one split, with requests ready to be sent to a model again and again.

    Args:
        entries: the tasks of each entry of the suite, by its name.
    """

    def __init__(self, entries: Mapping[str, tuple[Leaf, ...]]) -> None:
        self._entries = entries
        self._by_type = _requests_by_type(entries)

    @classmethod
    def build(cls, suite: Suite, split: Split, lm: LM) -> SplitTasks:
        """Load the tasks and build their requests.

        Args:
            suite: the suite.
            split: which documents.
            lm: renders chat templates, where the suite wants them.

        Raises:
            ConfigError: when a task cannot be loaded, or the split has too few documents.
        """
        return cls({entry.task: _build(suite, entry, split, lm) for entry in suite.config.tasks})

    def part(self, minibatch: Minibatch) -> SplitTasks:
        """Return the same tasks on a random part of their documents; nothing is built again."""
        return SplitTasks({name: _part(leaves, minibatch) for name, leaves in self._entries.items()})

    def requests(self, request_type: str) -> Sequence[Instance]:
        """Return all requests of a type, repeats included."""
        return self._by_type.get(request_type, [])

    @property
    def request_types(self) -> tuple[str, ...]:
        """The types of request that the tasks make."""
        return tuple(self._by_type)

    def score(self, lm: LM, count_tokens: CountTokens) -> Scores:
        """Send every request to the model and score the responses.

        Args:
            lm: the model.
            count_tokens: its tokenizer's measure of a response's length.

        Returns:
            Per-sample scores and the documents' hashes, in the documents' order.

        Raises:
            InfeasibleError: when a score is not finite: the model broke on a document.
            EvaluationError: when the model answers the wrong number of requests.
        """
        from evomerge.fitness._lm_eval import quiet, seeded

        try:
            with quiet(), seeded():
                self._respond(lm)
            samples: dict[str, NDArray[np.float64]] = {}
            documents: dict[str, tuple[str, ...]] = {}
            for name, leaves in self._entries.items():
                samples.update(_entry_samples(name, leaves, count_tokens))
                documents[name] = tuple(item.digest for leaf in leaves for item in leaf.documents)
            return Scores(samples, documents)
        finally:
            self._reset()

    def _respond(self, lm: LM) -> None:
        for request_type, instances in self._by_type.items():
            responses = getattr(lm, request_type)(list(instances))
            if len(responses) != len(instances):
                raise EvaluationError(
                    f"the engine answered {len(responses)} of {len(instances)} {request_type} requests"
                )
            for instance, response in zip(instances, responses, strict=True):
                instance.resps.append(response)

    def _leaves(self) -> Iterator[Leaf]:
        for leaves in self._entries.values():
            yield from leaves

    def _reset(self) -> None:
        for leaf in self._leaves():
            for instance in leaf.instances():
                instance.resps = []
                instance.filtered_resps = {}


def _requests_by_type(entries: Mapping[str, tuple[Leaf, ...]]) -> dict[str, list[Instance]]:
    by_type: dict[str, list[Instance]] = {}
    for leaves in entries.values():
        for leaf in leaves:
            for instance in leaf.instances():
                # `K` copies of a request that is repeated K times, as the evaluator does.
                by_type.setdefault(instance.request_type, []).extend([instance] * (instance.repeats or 1))
    return by_type


def _part(leaves: tuple[Leaf, ...], minibatch: Minibatch) -> tuple[Leaf, ...]:
    """Choose documents of one entry of the suite by the hash of their own hash and the draw, in their order."""

    def lot(document: Document) -> bytes:
        return hashlib.sha256(f"{minibatch.draw} {document.digest}".encode()).digest()

    lots = sorted(lot(document) for leaf in leaves for document in leaf.documents)
    limit = lots[min(minibatch.documents, len(lots)) - 1]
    chosen = []
    for leaf in leaves:
        documents = tuple(document for document in leaf.documents if lot(document) <= limit)
        if documents:
            task = copy.copy(leaf.task)
            # lm-eval's filters run over a task's requests, which it gives no other way to choose.
            task._instances = [request for document in documents for request in document.requests]  # noqa: SLF001
            chosen.append(Leaf(leaf.name, task, documents))
    return tuple(chosen)


def _build(suite: Suite, entry: TaskConfig, split: Split, lm: LM) -> tuple[Leaf, ...]:
    loaded = suite.load_tasks(entry)
    limited = {name: _limited(list(task.eval_docs), entry.limit) for name, task in loaded.items()}
    digests = {name: [document_hash(content) for content in contents] for name, contents in limited.items()}
    order = [(name, position) for name, found in digests.items() for position in range(len(found))]
    chosen = assign(entry.task, [digests[name][position] for name, position in order], suite.config.splits)[split]
    if not chosen:
        raise ConfigError(f"{suite.path}: the {split} split has no share of the documents; give it one")
    leaves = []
    for name, task in loaded.items():
        positions = [order[index][1] for index in chosen if order[index][0] == name]
        if positions:  # lm-eval takes an empty choice for all documents
            _build_requests(suite, task, positions, lm)
            leaves.append(Leaf(name, task, _documents(task, positions, limited[name], digests[name])))
    return tuple(leaves)


def _limited(contents: list[Any], limit: int | None) -> list[Any]:
    return contents if limit is None else contents[:limit]


def _build_requests(suite: Suite, task: Task, positions: list[int], lm: LM) -> None:
    from evomerge.fitness._lm_eval import compiled_templates, quiet, seeded

    chat = suite.config.chat_template
    with quiet(), seeded(), compiled_templates():
        task.build_all_requests(
            samples=set(positions),  # asked `in` for every document
            rank=0,
            world_size=1,
            system_instruction=suite.config.system_instruction,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=getattr(lm, "apply_chat_template", None) if chat else None,
            tokenizer_name=getattr(lm, "tokenizer_name", "") if chat else "",
        )


def _documents(task: Task, positions: list[int], contents: list[Any], digests: list[str]) -> tuple[Document, ...]:
    # With chosen documents, lm-eval counts `doc_id` within the choice.
    requests: dict[int, list[Instance]] = {}
    for instance in task.instances:
        requests.setdefault(int(instance.doc_id or 0), []).append(instance)
    return tuple(
        Document(contents[position], digests[position], tuple(sorted(requests[rank], key=lambda item: item.idx)))
        for rank, position in enumerate(positions)
    )


def _entry_samples(name: str, leaves: tuple[Leaf, ...], count_tokens: CountTokens) -> dict[str, NDArray[np.float64]]:
    """Return the samples of one entry of the suite; of a group: the metrics all its tasks have, joined."""
    parts = [_leaf_samples(leaf, count_tokens) for leaf in leaves]
    common = [metric for metric in parts[0] if all(metric in part for part in parts)]
    joined: dict[str, NDArray[np.float64]] = {}
    for metric in common:
        values = np.asarray([value for part in parts for value in part[metric]], dtype=np.float64)
        if not np.isfinite(values).all():
            raise InfeasibleError(f"{name}.{metric} is not finite on {int((~np.isfinite(values)).sum())} documents")
        joined[f"{name}.{metric}"] = values
    return joined


def _leaf_samples(leaf: Leaf, count_tokens: CountTokens) -> dict[str, list[float]]:
    from evomerge.fitness._lm_eval import compiled_templates, quiet

    with quiet(), compiled_templates():
        leaf.task.apply_filters()
        filters = list(leaf.documents[0].requests[0].filtered_resps)
        columns: dict[str, list[float]] = {}
        for name in filters:
            suffix = f".{name}" if len(filters) > 1 else ""
            for metric, values in _metrics(leaf, name).items():
                columns[f"{metric}{suffix}"] = values
    # Only a metric that every document has, as one number, whose aggregate is a mean, is a per-sample score.
    columns = {metric: values for metric, values in columns.items() if len(values) == len(leaf.documents)}
    if leaf.task.OUTPUT_TYPE == "generate_until":
        columns[RESPONSE_TOKENS] = _response_tokens(leaf, count_tokens)
    elif leaf.task.OUTPUT_TYPE in _LIKELIHOODS:
        columns[LOG_LIKELIHOOD] = [_log_likelihood(item) for item in leaf.documents]
    return columns


def _metrics(leaf: Leaf, filter_name: str) -> dict[str, list[float]]:
    from lm_eval.api.metrics import mean

    columns: dict[str, list[float]] = {}
    for item in leaf.documents:
        responses = [request.filtered_resps[filter_name] for request in item.requests]
        # A copy: a task may write into the document, and this one serves every candidate.
        for metric, value in leaf.task.process_results(dict(item.content), responses).items():
            if isinstance(value, (bool, int, float, np.bool_, np.number)):
                columns.setdefault(metric, []).append(float(value))
    aggregation = leaf.task.aggregation()
    return {metric: values for metric, values in columns.items() if aggregation.get(metric, mean) is mean}


def _response_tokens(leaf: Leaf, count_tokens: CountTokens) -> list[float]:
    """Return each document's response length in tokens, stop sequence cut off; of repeats, the mean."""
    texts = [str(text) for item in leaf.documents for request in item.requests for text in request.resps]
    counts = iter(count_tokens(texts))
    lengths = []
    for item in leaf.documents:
        own = [next(counts) for request in item.requests for _ in request.resps]
        lengths.append(math.fsum(own) / len(own))
    return lengths


def _log_likelihood(document: Document) -> float:
    response = document.requests[0].resps[0]
    return float(response[0] if isinstance(response, (tuple, list)) else response)
