"""LiNeS: how much of what a merge adds to the base is kept, by depth; and a global scale as its simplest case.

Wang et al. 2024, "LiNeS: Post-training layer scaling prevents forgetting and enhances model merging",
<https://arxiv.org/abs/2410.17146>. It composes with any method: θ_0 + s·(merged - θ_0), where s = α + β·l/(L-1) in
layer l of a merged model of L layers, and s = α outside of its layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evomerge.documents import StrictModel


class LinesConfig(StrictModel):
    """A share of the merged task vector that grows linearly with depth; `{alpha: 0.7}` alone is a global scale."""

    alpha: float | Literal["auto"] = 1.0
    """Share in the first layer, and outside of the layers. `auto`: (‖Σ τ_i‖₁ / ‖τ_merged‖₁) / N over the whole model,
    N being the number of sources that take part (0 where the merge is the base); 1/N for a sum of task vectors."""
    beta: float = 0.0
    """How much larger the share is in the last layer than in the first; of no meaning with one layer."""

    @property
    def is_neutral(self) -> bool:
        """Whether it changes nothing."""
        return self.alpha == 1 and self.beta == 0


@dataclass(frozen=True, slots=True)
class Lines:
    """The share at one place."""

    base: str
    """Alias of the base, θ_0."""
    factor: float
    """s; where α is `auto`, what is added to α."""
    auto: str = ""
    """Where α is `auto`, a digest of the recipe that it is computed for."""

    @property
    def is_zero(self) -> bool:
        """Whether the base is left as it is."""
        return self.factor == 0 and not self.auto

    @property
    def is_one(self) -> bool:
        """Whether the merge is left as it is."""
        return self.factor == 1 and not self.auto
