"""The sites of a model: the parts that share one set of coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evomerge.errors import ConfigError
from evomerge.recipe import MODULES, Module
from evomerge.spaces.config import GroupsConfig


@dataclass(frozen=True, slots=True)
class Site:
    """A part of the model with coefficients of its own."""

    label: str
    """How the names of its dimensions end, for instance `layers.0-3/attention`; empty for the whole model."""
    part: Literal["layers", "embeddings", "head"]
    layers: tuple[int, int] = (0, 0)
    """First layer and first layer after the group."""
    modules: tuple[Module, ...] = MODULES
    """The module groups of these layers that it covers."""

    @property
    def leads(self) -> bool:
        """Whether it speaks for its layer group where a module, the embeddings or the head say nothing."""
        return self.part == "layers" and "other" in self.modules


@dataclass(frozen=True, slots=True)
class Sites:
    """All sites of a space."""

    every: tuple[Site, ...]
    """In the order of the dimensions: embeddings, layer groups with their modules, head."""
    leaders: tuple[Site, ...]
    """One site for each layer group, in order."""

    @property
    def whole(self) -> bool:
        """Whether all layers are one group."""
        return len(self.leaders) == 1

    def leader_of(self, part: Literal["embeddings", "head"]) -> Site:
        """Return the site of the embeddings or the head: their own, or that of the nearest layers."""
        own = [site for site in self.every if site.part == part]
        return own[0] if own else self.leaders[0 if part == "embeddings" else -1]

    def group(self, leader: Site) -> tuple[Site, ...]:
        """Return the sites that share the layers of a leader, itself included."""
        return tuple(site for site in self.every if site.part == "layers" and site.layers == leader.layers)


def build_sites(config: GroupsConfig, num_layers: int) -> Sites:
    """Divide a model of `num_layers` layers.

    Raises:
        ConfigError: when there are more groups than layers.
    """
    bounds = _bounds(config, num_layers)
    parts = _module_parts(config)
    sites = [Site("embeddings", "embeddings")] if config.embeddings else []
    for first, end in bounds:
        depth = "" if len(bounds) == 1 else f"layers.{first}" + (f"-{end - 1}" if end - first > 1 else "")
        for name, modules in parts:
            label = "/".join(word for word in (depth, name) if word)
            sites.append(Site(label, "layers", (first, end), modules))
    if config.head:
        sites.append(Site("head", "head"))
    return Sites(tuple(sites), tuple(site for site in sites if site.leads))


def _bounds(config: GroupsConfig, num_layers: int) -> list[tuple[int, int]]:
    """Return (first, end) of each layer group; sizes differ by one layer at most."""
    number = {"whole": 1, "every": num_layers}.get(str(config.layers), config.layers)
    if not isinstance(number, int) or number > num_layers:
        text = f"{number} groups of layers were asked for, but the models have {num_layers} layers"
        raise ConfigError(f"space.groups.layers: {text}; give at most {num_layers}, or `every`")
    return [(index * num_layers // number, (index + 1) * num_layers // number) for index in range(number)]


def _module_parts(config: GroupsConfig) -> list[tuple[str, tuple[Module, ...]]]:
    """Return name and modules of each part of a layer."""
    if not config.modules:
        return [("", MODULES)]
    named: list[tuple[str, tuple[Module, ...]]] = [(name, (name,)) for name in MODULES if name in config.modules]
    rest = tuple(name for name in MODULES if name not in config.modules)
    return [*named, ("rest", rest)] if rest else named
