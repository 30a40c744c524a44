"""AdaSparse: one perceptron for all scenarios, of which every scenario uses the units that a pruner leaves it.

Yang, Peng, Wei, Liu, Wang, Zheng: "AdaSparse: Learning Adaptively Sparse Structures for Multi-Domain Click-Through Rate
Prediction", CIKM 2022, with its "fusion" of scaling and pruning. Before every layer l, and behind the last one:

    s = beta sigmoid(alpha W^l [e_scenario ; h^l]),   h^l <- h^l * s * (s > epsilon)

alpha rises a little with every training step, which drives s towards 0 or beta; it stands still in evaluation and is
saved with the weights. A unit is cut where it counts for less than epsilon, so a row that rounding pushes over that
edge moves by no more than epsilon of the unit. The paper's regularisation towards a wished share of cut units is not
here: a backbone has no loss of its own.

Letters: B rows, I input width, H layer width, E width of an id, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedLinear, GroupedMLP


class AdaSparse(nn.Module):
    """A `Backbone`. No weight belongs to one scenario; a tower for each task follows the pruned layers."""

    steps: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            beta: the largest factor of a unit. epsilon: the smallest one that is not cut to zero.
            alpha: steepness of the pruners at the start; it rises by `alpha_step` with every training step.
        """

        kind: Literal["adasparse"] = "adasparse"
        layer_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0
        beta: float = 2.0
        epsilon: float = 0.01
        alpha: float = 1.0
        alpha_step: float = 1e-4

        @property
        def hidden_width(self) -> int:
            return self.layer_widths[-1]

        def __post_init__(self) -> None:
            if not self.layer_widths:
                raise ValueError(f"AdaSparse needs at least one layer to prune, got {self}")
            if not 0.0 <= self.epsilon < self.beta / 2:
                raise ValueError(
                    f"epsilon lies in 0 .. beta / 2 (exclusive), or every unit is cut at the start; got {self}"
                )
            if self.alpha <= 0.0 or self.alpha_step < 0.0:
                raise ValueError(f"alpha is positive and does not fall, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.config = config
        widths = [sizes.inputs, *config.layer_widths]
        self.pruners = nn.ModuleList(nn.Linear(sizes.width + width, width) for width in widths)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, config.layer_widths, strict=False))
        self.dropout = Dropout(config.dropout)
        self.towers = GroupedMLP(sizes.tasks, config.hidden_width, config.tower_widths, config.dropout)
        self.heads = GroupedLinear(sizes.tasks, self.towers.width, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        if self.training:
            self.steps += 1
        alpha = self.config.alpha + self.config.alpha_step * self.steps
        scenario_BE = features.id_BFE[:, 0]
        hidden_BH = self._pruned(self.pruners[0], scenario_BE, features.flat_BI, alpha)
        for layer, pruner in zip(self.layers, self.pruners[1:], strict=True):
            hidden_BH = self.dropout(torch.relu(layer(hidden_BH)))
            hidden_BH = self._pruned(pruner, scenario_BE, hidden_BH, alpha)
        logit_TB1 = self.heads(self.towers(hidden_BH))
        return logit_TB1.squeeze(2).transpose(0, 1), hidden_BH

    def _pruned(self, pruner: nn.Module, scenario_BE: Tensor, hidden_BH: Tensor, alpha: Tensor) -> Tensor:
        factor_BH = self.config.beta * torch.sigmoid(alpha * pruner(torch.cat([scenario_BE, hidden_BH], dim=1)))
        return hidden_BH * factor_BH * (factor_BH > self.config.epsilon)
