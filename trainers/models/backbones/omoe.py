"""OMoE: experts for the rows of all scenarios, mixed by one gate, and a tower for each scenario and task.

The mixture of experts with one gate that Ma et al. compare MMoE with: "Modeling Task Relationships in Multi-task
Learning with Multi-gate Mixture-of-Experts", KDD 2018; with scenarios as its tasks. For a row x of scenario s:

    h = sum_i softmax(W x)_i E_i(x),   logit_t = tower_{s,t}(h)

Letters: B rows, I input width, E experts, H expert width, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear, GroupedMLP


class Omoe(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        kind: Literal["omoe"] = "omoe"
        experts: int = 4
        expert_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.expert_widths[-1]

        def __post_init__(self) -> None:
            if self.experts < 2 or not self.expert_widths:
                raise ValueError(f"a gate needs at least two experts, and an expert one layer, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.experts = GroupedMLP(config.experts, sizes.inputs, config.expert_widths, config.dropout)
        self.gate = GroupedLinear(1, sizes.inputs, config.experts)
        self.towers = ScenarioTowers(
            sizes.scenarios, sizes.tasks, config.hidden_width, config.tower_widths, config.dropout
        )

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        gate_BE = torch.softmax(self.gate(features.flat_BI)[0], dim=1)
        hidden_BH = torch.einsum("be,ebh->bh", gate_BE, self.experts(features.flat_BI))
        return self.towers(hidden_BH, features.scenario_B), hidden_BH
