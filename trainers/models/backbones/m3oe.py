"""M3oE: experts that all share, experts of each scenario and experts of each task, added up with learned weights.

Zhang, Liu, Yu, Cai, Zhao, Zhang, Liu, Liu, Zhao, Hu, Jiang, Gai: "M3oE: Multi-Domain Multi-Task Mixture-of Experts
Recommendation Framework", SIGIR 2024. For a row x of scenario s and task t, with weights a, a', b, b' in 0 .. 1 (each
the sigmoid of a learned number):

    z = relu(A (x (W * W_s) + w + w_s) + c) + relu(B x + d)               star layer and skip
    shared  = sum_i softmax(G_{s,t} stopgrad(z))_i E_i(z)
    of_s = a  D_s(z) + (1 - a)  mean over s' != s of D_s'(z)              experts of scenarios
    of_t = a' T_t(z) + (1 - a') mean over t' != t of T_t'(z)              experts of tasks
    logit_t = tower_{s,t}(shared + b of_s + b' of_t)

W_s starts at ones, w_s at zeros: all scenarios start as the shared layer. The paper learns a .. b' on a part of their
own, in turns with the network (a search of structures); here they are weights like any other. Its layer normalisations
are left out. Every row goes through the experts of all scenarios: the work grows with their number.

Letters: B rows, I input width, O outputs, Z width of z, X shared experts, S scenarios, T tasks, G a group of experts (S
or T of them), H expert width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioLinear, ScenarioTowers, linear_by_scenario
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedMLP


class M3oE(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            star_width: of the star layer. width: of z.
            shared_experts: how many; each scenario and each task has one of its own.
        """

        kind: Literal["m3oe"] = "m3oe"
        star_width: int = 64
        width: int = 128
        shared_experts: int = 4
        expert_widths: tuple[int, ...] = (64,)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.expert_widths[-1]

        def __post_init__(self) -> None:
            if min(self.star_width, self.width, self.shared_experts, len(self.expert_widths)) < 1:
                raise ValueError(f"M3oE needs widths, shared experts and expert layers of at least one, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        scenarios, tasks = sizes.scenarios, sizes.tasks
        self.star = StarLinear(scenarios, sizes.inputs, config.star_width)
        self.after_star = nn.Linear(config.star_width, config.width)
        self.skip = nn.Linear(sizes.inputs, config.width)
        self.dropout = Dropout(config.dropout)
        self.gates = ScenarioLinear(scenarios, tasks, config.width, config.shared_experts)
        self.shared_experts, self.scenario_experts, self.task_experts = (
            GroupedMLP(experts, config.width, config.expert_widths, config.dropout)
            for experts in (config.shared_experts, scenarios, tasks)
        )
        self.own_scenario, self.own_task, self.of_scenario, self.of_task = (
            nn.Parameter(torch.tensor(0.0)) for _ in range(4)
        )
        self.towers = ScenarioTowers(scenarios, tasks, config.hidden_width, config.tower_widths, config.dropout)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        rows_BI, scenario_B = features.flat_BI, features.scenario_B
        star_BZ = torch.relu(self.after_star(self.star(rows_BI, scenario_B)))
        row_BZ = self.dropout(star_BZ + torch.relu(self.skip(rows_BI)))
        gate_TBX = torch.softmax(self.gates(row_BZ.detach(), scenario_B), dim=2)
        shared_TBH = torch.einsum("tbx,xbh->tbh", gate_TBX, self.shared_experts(row_BZ))
        scenario_SBH = _own_and_others(self.scenario_experts(row_BZ), torch.sigmoid(self.own_scenario))
        scenario_BH = scenario_SBH[scenario_B, torch.arange(len(scenario_B), device=scenario_B.device)]
        task_TBH = _own_and_others(self.task_experts(row_BZ), torch.sigmoid(self.own_task))
        of_scenario, of_task = torch.sigmoid(self.of_scenario), torch.sigmoid(self.of_task)
        hidden_TBH = shared_TBH + of_scenario * scenario_BH + of_task * task_TBH
        return self.towers(hidden_TBH, scenario_B), hidden_TBH.mean(dim=0)


def _own_and_others(expert_GBH: Tensor, own: Tensor) -> Tensor:
    """For each expert: itself with weight `own`, the mean of the others with what is left."""
    others = max(len(expert_GBH) - 1, 1)
    return own * expert_GBH + (1 - own) / others * (expert_GBH.sum(dim=0) - expert_GBH)


class StarLinear(nn.Module):
    """A linear map that all scenarios share, times (weights) and plus (biases) what is a scenario's own."""

    def __init__(self, scenarios: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shared = nn.Linear(inputs, outputs)
        self.own_SIO = nn.Parameter(torch.ones(scenarios, inputs, outputs))
        self.own_SO = nn.Parameter(torch.zeros(scenarios, outputs))

    def forward(self, rows_BI: Tensor, scenario_B: Tensor) -> Tensor:
        weight_SIO = self.shared.weight.T * self.own_SIO
        bias_SO = self.shared.bias + self.own_SO
        return linear_by_scenario(rows_BI, scenario_B, weight_SIO[:, None], bias_SO[:, None, None])[0]
