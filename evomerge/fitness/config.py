"""The `fitness:` and `engine:` sections of a search file, and suite files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from evomerge.documents import StrictModel


class TaskConfig(StrictModel):
    """One lm-eval task of a suite."""

    task: str
    """lm-eval's name of it (its own, or one found in the suite's `include` folder)."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in the prompt; left out: what the task's own file says."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many documents in all (before the split); left out: all."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the task's `generation_kwargs`."""


class SplitsConfig(StrictModel):
    """Shares of the documents, by a hash of each document. They must sum to 1."""

    search: float = Field(default=0.5, gt=0, le=1)
    validation: float = Field(default=0.2, ge=0, lt=1)
    test: float = Field(default=0.3, ge=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitsConfig:
        total = self.search + self.validation + self.test
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"the shares search + validation + test must sum to 1, got {total:g}")
        return self


class SuiteConfig(StrictModel):
    """A suite file: which tasks, and how their documents are split."""

    suite: Literal[1]
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    include: str | None = None
    """Folder of lm-eval task YAML, relative to the suite file; left out: lm-eval's own tasks only."""
    splits: SplitsConfig = SplitsConfig()
    chat_template: bool = False
    """Whether prompts go through the tokenizer's chat template."""
    system_instruction: str | None = None
    batch_size: int = Field(default=64, ge=1)
    """Requests a forward pass."""


class FitnessConfig(StrictModel):
    """What is measured and what is wanted."""

    suite: str
    """A suite file: relative to the search file, or of the catalogue (`evomerge catalog`)."""
    objectives: tuple[str, ...] = Field(min_length=1)
    """Expressions over metrics, each maximised; a leading `-` minimises."""
    constraints: tuple[str, ...] = ()
    """Comparisons of expressions with numbers, for instance `gsm8k.exact_match >= 0.4`."""


class EngineConfig(StrictModel):
    """Which engine builds and runs the candidates."""

    kind: Literal["auto", "transformers", "vllm"] = "transformers"
    """`auto`: vLLM where it is installed and serves these models, else transformers; decided when a run starts."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest context in tokens; left out: the model's own."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one worker; left out: its share of the machine."""
    trust_remote_code: bool = False
    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    """vLLM on GPUs: the share of each GPU's memory that a worker may fill: model, sources and KV cache."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """vLLM: GiB of KV cache; left out: what the share leaves on a GPU, and on the CPU enough for a batch, at most 4."""
    tensor_parallel: int = Field(default=1, ge=1)
    """vLLM: devices that one worker spreads the model over; on the CPU, processes."""
    eager: bool | None = None
    """vLLM: run the model as it is written, without compiling it; left out: yes on the CPU, no on a GPU."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """vLLM: any further argument of its engine, by vLLM's own name for it."""
