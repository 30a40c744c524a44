"""PLE over scenarios: experts of each scenario's own and shared ones, mixed by the scenario's gate, level upon level.

Tang, Liu, Zhao, Gong: "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations", RecSys 2020, with scenarios as its tasks (`ple.py` has tasks as tasks); one level is CGC. At each
level, for a row of scenario s with own input x and shared input z, which are both the features at the first level:

    e  = [E_s(x) ; E_shared(z)],   x' = sum_i softmax(W_s x)_i e_i,   z' = sum_i softmax(V z)_i e_i

The last level has no z', and logit_t = tower_{s,t}(x'). In the paper the shared gate mixes the experts of all tasks,
because every row belongs to all tasks. A row belongs to one scenario: here its shared vector mixes the experts of this
scenario and the shared ones, with one gate V for all scenarios. So no row pays for, or changes, the experts of another
scenario, and the work does not grow with the number of scenarios.

Letters: B rows, I input width, X experts that a row meets (own, then shared), H expert width, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioLinear, ScenarioMLP, ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear, GroupedMLP


class ScenarioPle(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        kind: Literal["scenario_ple"] = "scenario_ple"
        levels: int = 1
        scenario_experts: int = 2
        shared_experts: int = 2
        expert_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.expert_widths[-1]

        def __post_init__(self) -> None:
            if min(self.levels, self.scenario_experts, self.shared_experts, len(self.expert_widths)) < 1:
                raise ValueError(f"PLE needs at least one level, expert of each kind and expert layer, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        widths = [sizes.inputs, *[config.hidden_width] * (config.levels - 1)]
        self.levels = nn.ModuleList(
            ScenarioExtraction(config, sizes.scenarios, width, last=at == config.levels - 1)
            for at, width in enumerate(widths)
        )
        self.towers = ScenarioTowers(
            sizes.scenarios, sizes.tasks, config.hidden_width, config.tower_widths, config.dropout
        )

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        own_BH = shared_BH = features.flat_BI
        for level in self.levels:
            own_BH, shared_BH = level(own_BH, shared_BH, features.scenario_B)
        return self.towers(own_BH, features.scenario_B), own_BH


class ScenarioExtraction(nn.Module):
    """One level: own and shared vectors, (B, I) each, and scenarios (B,) -> own and shared vectors, (B, H) each."""

    def __init__(self, config: ScenarioPle.Config, scenarios: int, inputs: int, *, last: bool) -> None:
        super().__init__()
        experts = config.scenario_experts + config.shared_experts
        self.own = ScenarioMLP(scenarios, config.scenario_experts, inputs, config.expert_widths, config.dropout)
        self.shared = GroupedMLP(config.shared_experts, inputs, config.expert_widths, config.dropout)
        self.own_gates = ScenarioLinear(scenarios, 1, inputs, experts)
        self.shared_gate = None if last else GroupedLinear(1, inputs, experts)

    def forward(self, own_BI: Tensor, shared_BI: Tensor, scenario_B: Tensor) -> tuple[Tensor, Tensor]:
        expert_XBH = torch.cat([self.own(own_BI, scenario_B), self.shared(shared_BI)])
        own_BH = _mixed(self.own_gates(own_BI, scenario_B)[0], expert_XBH)
        # Nothing reads the shared vector of the last level.
        return own_BH, own_BH if self.shared_gate is None else _mixed(self.shared_gate(shared_BI)[0], expert_XBH)


def _mixed(gate_BX: Tensor, expert_XBH: Tensor) -> Tensor:
    return torch.einsum("bx,xbh->bh", torch.softmax(gate_BX, dim=1), expert_XBH)
