"""Parameters that several methods share, each declared once, and short forms for the kinds of the others."""

from __future__ import annotations

from typing import Literal

from evomerge.operators.metadata import Parameter

Range = tuple[float, float]


def choice(name: str, choices: tuple[str, ...], summary: str, *, default: str | None = None) -> Parameter:
    """Return a parameter that is one of some words; the default is the first unless given."""
    return Parameter(name=name, kind="choice", default=default or choices[0], choices=choices, summary=summary)


def flag(name: str, summary: str, *, default: bool = True, per_source: bool = False) -> Parameter:
    """Return a parameter that is true or false."""
    return Parameter(name=name, kind="bool", default=default, per_source=per_source, summary=summary)


def non_negative(
    name: str,
    default: float,
    summary: str,
    search: Range | None = None,
    *,
    scale: Literal["linear", "log"] = "linear",
    per_source: bool = False,
) -> Parameter:
    """Return a number of at least 0."""
    return Parameter(
        name=name, default=default, low=0.0, search=search, scale=scale, per_source=per_source, summary=summary
    )


def share(
    name: str,
    default: float,
    summary: str,
    search: Range | None = None,
    *,
    low_open: bool = False,
    high: float = 1.0,
    per_source: bool = False,
) -> Parameter:
    """Return a number from 0, which may be excluded, to 1."""
    return Parameter(
        name=name,
        default=default,
        low=0.0,
        low_open=low_open,
        high=high,
        search=search,
        per_source=per_source,
        summary=summary,
    )


def density(default: float, summary: str, *, low: float = 0.1, high: float = 1.0, per_source: bool = True) -> Parameter:
    """Return a share of entries in (0, 1], searched from `low` to `high`."""
    return share("density", default, summary, (low, high), low_open=True, per_source=per_source)


def weight(
    summary: str = "coefficient of each task vector", *, search: Range | None = (0.0, 1.5), default: float = 1.0
) -> Parameter:
    """Return a coefficient of each source, of any sign."""
    return Parameter(name="weight", default=default, search=search, per_source=True, summary=summary)


def scale(search: Range | None) -> Parameter:
    """Return λ, the factor of the merged task vector; None: not searched unless asked for."""
    told = "λ, the factor of the merged task vector"
    if search is None:
        told = "λ, a common factor; not searched unless asked, since the weights already span it"
    return Parameter(name="scale", default=1.0, search=search, summary=told)


def normalize_sum(*, default: bool) -> Parameter:
    """Return whether a sum over all sources is divided by that of their weights."""
    return flag(
        "normalize", "divide by the sum of the weights (a sum nearer to 0 than 1e-8 counts as 1)", default=default
    )


def normalize_agreeing(*, default: bool) -> Parameter:
    """Return whether a sum over those that agree is divided by that of their weights."""
    return flag("normalize", "weighted mean over the sources that agree, not their weighted sum", default=default)


def rank(summary: str) -> Parameter:
    """Return the directions kept of each source, relative to an equal share."""
    return Parameter(name="rank", default=1.0, low=0.0, low_open=True, search=(0.25, 2.0), summary=summary)


def others(default: str) -> Parameter:
    """Return what becomes of tensors that are no matrices: norms, biases, embeddings and the head."""
    return choice(
        "others",
        ("mean", "base"),
        "what norms, biases, embeddings and the head become: λ times the mean of the w_i τ_i, or the base's",
        default=default,
    )


def importance(default: str) -> Parameter:
    """Return which statistic weighs the entries of a source."""
    return choice(
        "importance",
        ("fisher", "adam"),
        "which statistic says how much a weight matters: the diagonal Fisher, or Adam's second moments",
        default=default,
    )


SOURCE_SHARE = non_negative("weight", 1.0, "share of each source", (0.0, 1.0), per_source=True)

RESCALE = choice(
    "rescale",
    ("inv_keep", "l1", "none"),
    "what makes up for dropped entries: 1/probability (the paper), the L1 norm (mergekit), nothing",
)

TRIM_RESCALE = choice(
    "rescale",
    ("none", "l1"),
    "what makes up for dropped entries: nothing (the paper), or the L1 norm (mergekit's rescale)",
)

ZERO_SIGN = choice(
    "zero_sign",
    ("zero", "positive", "negative"),
    "what wins where the votes cancel: nobody, or one sign (positive is mergekit's rule)",
)
