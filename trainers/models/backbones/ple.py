"""Progressive layered extraction: shared and task-specific experts, mixed for each task by a gate, level upon level.

Tang, Liu, Zhao, Gong: "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations", RecSys 2020. At each level, for task t with its own experts E_t and the shared ones E_s:

    g_t(x) = softmax(W_t x),   h_t = sum_i g_t(x)_i [E_t ; E_s]_i(x)

and, below the last level, a shared vector gated over all experts. Tower t reads h_t of the last level. The gates read
what their experts read: the input at the first level, h_t and the shared vector above it.

Letters: B rows, I input width, T tasks, G expert groups (tasks, then the shared one), X experts in all, H expert width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear, GroupedMLP


class Ple(nn.Module):
    """Tasks are the groups: each has experts of its own, for the rows of all scenarios."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        kind: Literal["ple"] = "ple"
        levels: int = 1
        task_experts: int = 2
        shared_experts: int = 2
        expert_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (64,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.expert_widths[-1]

        def __post_init__(self) -> None:
            if min(self.levels, self.task_experts, self.shared_experts, len(self.expert_widths)) < 1:
                raise ValueError(f"PLE needs at least one level, expert of each kind and expert layer, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        inputs, tasks = sizes.inputs, sizes.tasks
        widths = [inputs, *[config.expert_widths[-1]] * (config.levels - 1)]
        self.levels = nn.ModuleList(
            Extraction(config, width, tasks, first=at == 0, last=at == config.levels - 1)
            for at, width in enumerate(widths)
        )
        self.towers = GroupedMLP(tasks, config.expert_widths[-1], config.tower_widths, config.dropout)
        self.heads = GroupedLinear(tasks, self.towers.width, 1)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        group_GBH = features.flat_BI
        for level in self.levels:
            group_GBH = level(group_GBH)
        logit_TB1 = self.heads(self.towers(group_GBH))
        return logit_TB1.squeeze(2).transpose(0, 1), group_GBH.mean(dim=0)


class Extraction(nn.Module):
    """One level: (B, I) shared by all groups, or (G, B, I), -> (G, B, H); the last level has no shared group."""

    group_of_X: Tensor
    reach_GX: Tensor

    def __init__(self, config: Ple.Config, inputs: int, tasks: int, *, first: bool, last: bool) -> None:
        super().__init__()
        group_of_X = [t for t in range(tasks) for _ in range(config.task_experts)] + [tasks] * config.shared_experts
        groups = tasks if last else tasks + 1
        self.first = first
        self.experts = GroupedMLP(len(group_of_X), inputs, config.expert_widths, config.dropout)
        self.gates = GroupedLinear(groups, inputs, len(group_of_X))
        # A task's gate reaches its own and the shared experts, the shared gate reaches all.
        reach = [[g == tasks or of in (g, tasks) for of in group_of_X] for g in range(groups)]
        self.register_buffer("group_of_X", torch.tensor(group_of_X), persistent=False)
        self.register_buffer("reach_GX", torch.tensor(reach), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        groups = len(self.reach_GX)
        expert_XBH = self.experts(rows if self.first else rows[self.group_of_X])
        gate_GBX = self.gates(rows if self.first else rows[:groups])
        gate_GBX = torch.softmax(gate_GBX.masked_fill(~self.reach_GX[:, None, :], -torch.inf), dim=2)
        return torch.einsum("gbx,xbh->gbh", gate_GBX, expert_XBH)
