"""SAR-Net: what a person did anywhere, seen from this scenario; then a scenario's own transform, and gated experts.

Shen, Tao, Zhang, Wen, Chen, Lu: "SAR-Net: A Scenario-Aware Ranking Network for Personalized Fair Recommendation in
Hundreds of Travel Scenarios", CIKM 2021. For a row of scenario s with recent POIs r_1 .. r_N from all scenarios:

    a = softmax over n and "nothing" of (W_q [e_poi ; e_scenario] . r_n / sqrt(E)),   v = sum_n a_n r_n
    z = scale_s * [x ; v] + shift_s
    h = sum_i softmax(W z + b)_i D_i(z)     over the shared experts and those of scenario s, all linear
    logit_t = tower_{s,t}(h)

The exponent is a sum of a POI's and a scenario's match, so a_n is the product of the paper's two attention modules. Not
here: the scenario in which a POI was visited (the list does not say it), the batch normalisation in the experts, and
the fairness coefficient, which needs a record of what was promoted by hand.

Letters: B rows, I input width, Z = I + E width of z, N recent POIs, E width of an id, X experts a row (shared, then the
scenario's own), H expert width, S scenarios, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioLinear, ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedLinear


class SarNet(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            shared_experts: of all scenarios. scenario_experts: of each scenario.
        """

        kind: Literal["sar_net"] = "sar_net"
        shared_experts: int = 4
        scenario_experts: int = 2
        expert_width: int = 64
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.expert_width

        def __post_init__(self) -> None:
            if min(self.shared_experts, self.scenario_experts, self.expert_width) < 1:
                raise ValueError(f"SAR-Net needs at least one expert of each kind, and a width, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.poi_field = sizes.user_fields
        width = sizes.inputs + sizes.width
        self.behaviour = CrossScenarioAttention(sizes.width)
        self.scale_SZ = nn.Parameter(torch.ones(sizes.scenarios, width))
        self.shift_SZ = nn.Parameter(torch.zeros(sizes.scenarios, width))
        self.shared_experts = GroupedLinear(config.shared_experts, width, config.expert_width)
        self.scenario_experts = ScenarioLinear(sizes.scenarios, config.scenario_experts, width, config.expert_width)
        self.gate = nn.Linear(width, config.shared_experts + config.scenario_experts)
        self.dropout = Dropout(config.dropout)
        self.towers = ScenarioTowers(
            sizes.scenarios, sizes.tasks, config.hidden_width, config.tower_widths, config.dropout
        )

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        scenario_B = features.scenario_B
        seen_BZ = torch.cat([features.flat_BI, self.behaviour(features, self.poi_field)], dim=1)
        row_BZ = self.scale_SZ[scenario_B] * seen_BZ + self.shift_SZ[scenario_B]
        expert_XBH = torch.cat([self.shared_experts(row_BZ), self.scenario_experts(row_BZ, scenario_B)])
        gate_BX = torch.softmax(self.gate(row_BZ), dim=1)
        hidden_BH = self.dropout(torch.einsum("bx,xbh->bh", gate_BX, expert_XBH))
        return self.towers(hidden_BH, scenario_B), hidden_BH


class CrossScenarioAttention(nn.Module):
    """Recent POIs weighted by POI and scenario; a user without any gets a zero vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(2 * width, width, bias=False)
        self.nothing = nn.Parameter(torch.tensor(0.0))

    def forward(self, features: Features, poi_field: int) -> Tensor:
        id_BFE, recent_BNE = features.id_BFE, features.recent_BNE
        query_BE = self.query(torch.cat([id_BFE[:, poi_field], id_BFE[:, 0]], dim=1))
        match_BN = torch.einsum("be,bne->bn", query_BE, recent_BNE) * query_BE.shape[1] ** -0.5
        match_BN = match_BN.masked_fill(~features.recent_known_BN, -torch.inf)
        nothing_B1 = self.nothing.expand(len(match_BN), 1)
        weight_BN = torch.softmax(torch.cat([match_BN, nothing_B1], dim=1), dim=1)[:, :-1]
        return torch.einsum("bn,bne->be", weight_BN, recent_BNE)
