"""STAR: the weights of a scenario are its own times shared ones, behind a normalisation of each scenario's own.

Sheng et al.: "One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction", CIKM 2021.
For a row x of scenario s, with elementwise products o:

    x'    = (g o g_s) o (x - m_s) / sqrt(v_s + eps) + c + c_s                       partitioned normalisation
    h'    = relu((W_s o W)^T h + b_s + b)  layer upon layer, h = x' at first         star topology
    logit = (w_s o w)^T h + b_s + b + auxiliary([x ; scenario embedding])

The last star layer is linear: neither ReLU nor normalisation stands before the sum. W_s and g_s start at one and b_s
and c_s at zero, so all scenarios start as the shared network. The first star layers are for all tasks, the others for
each task.

In training m_s and v_s are those of the scenario's rows in the batch. Later they are running averages of these, so
that a score depends on its own row only. A scenario without enough rows in the batch is normalised by its running
averages in training too; one that never had enough borrows the mean of the others'.

Letters: B rows, I and O widths, S scenarios, G groups (tasks, or one for all), H width of the bottom, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import linear_by_scenario
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedLinear, GroupedMLP

LEAST_ROWS = 2  # fewer have no deviation
# Large beside usual: the columns of the scenario's own embedding are constant within it, and while they are learned the
# running mean lags behind them; with a tiny variance to divide by, this lag would be all that the network sees.
EPSILON = 1e-3


class Star(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            normalisation: partitioned normalisation of the star layers' input.
            momentum: share of the newest batch in a running average; larger for a scenario's first batches, whose
                plain mean counts.
        """

        kind: Literal["star"] = "star"
        bottom_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        auxiliary_widths: tuple[int, ...] = (32,)
        normalisation: bool = True
        momentum: float = 0.1
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.bottom_widths[-1]

        def __post_init__(self) -> None:
            if not self.bottom_widths:
                raise ValueError(f"STAR needs at least one layer for all tasks, got {self}")
            if not 0.0 < self.momentum <= 1.0:
                raise ValueError(f"the momentum of running averages lies in 0 (exclusive) .. 1, got {self.momentum}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        scenarios, tasks = sizes.scenarios, sizes.tasks
        self.norm = PartitionedNorm(scenarios, sizes.inputs, config.momentum) if config.normalisation else None
        self.bottom = StarMLP(scenarios, 1, sizes.inputs, config.bottom_widths, config.dropout)
        self.tower = StarMLP(scenarios, tasks, config.hidden_width, config.tower_widths, config.dropout)
        self.head = StarLinear(scenarios, tasks, self.tower.width, 1)
        self.auxiliary = GroupedMLP(1, sizes.inputs + sizes.width, config.auxiliary_widths, config.dropout)
        self.auxiliary_head = GroupedLinear(1, self.auxiliary.width, tasks)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        rows_BI, scenario_B = features.flat_BI, features.scenario_B
        normal_BI = rows_BI if self.norm is None else self.norm(rows_BI, scenario_B)
        hidden_BH = self.bottom(normal_BI, scenario_B)[0]
        logit_TB1 = self.head(self.tower(hidden_BH, scenario_B), scenario_B)
        beside_BI = torch.cat([rows_BI, features.id_BFE[:, 0]], dim=1)
        auxiliary_BT = self.auxiliary_head(self.auxiliary(beside_BI))[0]
        return logit_TB1.squeeze(2).transpose(0, 1) + auxiliary_BT, hidden_BH


class PartitionedNorm(nn.Module):
    """Rows (B, I) and scenarios (B,) int64 -> normalised rows (B, I)."""

    mean_SI: Tensor
    variance_SI: Tensor
    updates_S: Tensor

    def __init__(self, scenarios: int, inputs: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.scale_I = nn.Parameter(torch.ones(inputs))
        self.own_scale_SI = nn.Parameter(torch.ones(scenarios, inputs))
        self.shift_I = nn.Parameter(torch.zeros(inputs))
        self.own_shift_SI = nn.Parameter(torch.zeros(scenarios, inputs))
        self.register_buffer("mean_SI", torch.zeros(scenarios, inputs))
        self.register_buffer("variance_SI", torch.ones(scenarios, inputs))
        self.register_buffer("updates_S", torch.zeros(scenarios, dtype=torch.int64))

    def forward(self, rows_BI: Tensor, scenario_B: Tensor) -> Tensor:
        mean_SI, variance_SI = self.mean_SI, self.variance_SI
        if self.training:
            enough_S, of_batch_SI, spread_SI = self._of_batch(rows_BI, scenario_B)
            mean_SI = torch.where(enough_S[:, None], of_batch_SI, mean_SI)
            variance_SI = torch.where(enough_S[:, None], spread_SI, variance_SI)
            self._remember(enough_S, mean_SI, variance_SI)
        scale_SI = self.scale_I * self.own_scale_SI * torch.rsqrt(variance_SI + EPSILON)
        shift_SI = self.shift_I + self.own_shift_SI
        centred_BI = rows_BI - mean_SI.index_select(0, scenario_B)
        return centred_BI * scale_SI.index_select(0, scenario_B) + shift_SI.index_select(0, scenario_B)

    def _of_batch(self, rows_BI: Tensor, scenario_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which scenarios have enough rows, and the means and unbiased variances of each."""
        count_S = torch.bincount(scenario_B, minlength=len(self.mean_SI))
        zero_SI, count_S1 = torch.zeros_like(self.mean_SI), count_S[:, None]
        mean_SI = zero_SI.index_add(0, scenario_B, rows_BI) / count_S1.clamp(min=1)
        square_BI = (rows_BI - mean_SI.index_select(0, scenario_B)).square()
        variance_SI = zero_SI.index_add(0, scenario_B, square_BI) / (count_S1 - 1).clamp(min=1)
        return count_S >= LEAST_ROWS, mean_SI, variance_SI

    @torch.no_grad()
    def _remember(self, enough_S: Tensor, mean_SI: Tensor, variance_SI: Tensor) -> None:
        self.updates_S += enough_S
        share_S = (1.0 / self.updates_S.clamp(min=1)).clamp(min=self.momentum) * enough_S
        known_S = self.updates_S > 0
        for average_SI, newest_SI in ((self.mean_SI, mean_SI), (self.variance_SI, variance_SI)):
            average_SI += share_S[:, None].to(average_SI) * (newest_SI - average_SI)
            if known_S.any():
                average_SI[~known_S] = average_SI[known_S].mean(dim=0)


class StarLinear(nn.Module):
    """S x G linear maps, own weights times shared ones: rows (G, B, I) or (B, I), scenarios (B,) -> (G, B, O)."""

    def __init__(self, scenarios: int, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.shared_weight_GIO = nn.Parameter(torch.empty(groups, inputs, outputs).uniform_(-bound, bound))
        self.shared_bias_G1O = nn.Parameter(torch.zeros(groups, 1, outputs))
        self.own_weight_SGIO = nn.Parameter(torch.ones(scenarios, groups, inputs, outputs))
        self.own_bias_SG1O = nn.Parameter(torch.zeros(scenarios, groups, 1, outputs))

    def forward(self, rows: Tensor, scenario_B: Tensor) -> Tensor:
        weight_SGIO = self.own_weight_SGIO * self.shared_weight_GIO
        return linear_by_scenario(rows, scenario_B, weight_SGIO, self.own_bias_SG1O + self.shared_bias_G1O)


class StarMLP(nn.Module):
    """Star layers with ReLU after each: rows (G, B, I) or (B, I), scenarios (B,) -> (G, B, width)."""

    def __init__(self, scenarios: int, groups: int, inputs: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        sizes = [inputs, *widths]
        self.layers = nn.ModuleList(StarLinear(scenarios, groups, i, o) for i, o in zip(sizes, widths, strict=False))
        self.dropout = Dropout(dropout)
        self.width = sizes[-1]

    def forward(self, rows: Tensor, scenario_B: Tensor) -> Tensor:
        for layer in self.layers:
            rows = self.dropout(torch.relu(layer(rows, scenario_B)))
        return rows
