"""Shared-Bottom: one perceptron for the rows of all scenarios, and a tower for each scenario and task.

Caruana: "Multitask Learning", Machine Learning 28, 1997, with scenarios as its tasks. For a row x of scenario s:

    h = MLP(x),   logit_t = tower_{s,t}(h)

Letters: B rows, I input width, H width of the bottom, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedMLP


class SharedBottom(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        kind: Literal["shared_bottom"] = "shared_bottom"
        bottom_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.bottom_widths[-1]

        def __post_init__(self) -> None:
            if not self.bottom_widths:
                raise ValueError(f"a shared bottom needs at least one layer, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.bottom = GroupedMLP(1, sizes.inputs, config.bottom_widths, config.dropout)
        self.towers = ScenarioTowers(
            sizes.scenarios, sizes.tasks, config.hidden_width, config.tower_widths, config.dropout
        )

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        hidden_BH = self.bottom(features.flat_BI)[0]
        return self.towers(hidden_BH, features.scenario_B), hidden_BH
