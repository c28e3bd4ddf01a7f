"""The `executor:` section of a search file."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from evomerge.documents import StrictModel


class ExecutorConfig(StrictModel):
    """Where scoring runs."""

    kind: Literal["inline", "ray"] = "ray"
    workers: int = Field(default=1, ge=1)
    """Ray actors; the inline executor has one worker, this process."""
    address: str | None = None
    """A running Ray cluster: `auto` or `host:port`. Left out: a local one is started, and ends with the run."""
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    """Whole GPUs, all of one machine; a fraction lets workers share one, whose memory nobody divides for them."""
    attempts: int = Field(default=3, ge=1)
    """How often a job is given out at most."""
    quarantine_after: int = Field(default=2, ge=1)
    """A job that killed or hung so many workers is not given out again."""
    timeout_s: float = Field(default=3600, gt=0)
    """Longest time one attempt may take; the worker is then replaced."""
    timeout_factor: float | None = Field(default=10, gt=1)
    """After a few successes an attempt may take so many times the longest of them, but at least a minute and at most
    `timeout_s`; null: always `timeout_s`."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Longest time a worker may take to start; also how long all workers together may wait for resources."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_gpus(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"expected a whole number, or a fraction below 1 of a shared GPU, got {gpus:g}")
        return gpus

    @field_validator("address")
    @classmethod
    def _plain_address(cls, address: str | None) -> str | None:
        if address is None or address == "auto" or re.fullmatch(r"(?!-)[^\s/@]+:\d{1,5}", address):
            return address
        raise ValueError(f"expected `auto` or `host:port` (the port of `ray start`, often 6379), got {address!r}")
