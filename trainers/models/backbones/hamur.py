"""HAMUR: a perceptron for each scenario, with adapter cells whose weights are made anew for every row.

Li, Yan, Zhao, Wang, Chen, Guo, Tang: "HAMUR: Hyper Adapter for Multi-Domain Recommendation", CIKM 2023. A hyper-network
that all scenarios share maps the input x of a row to a small matrix I(x), from which every cell makes its weights. For
a row of scenario s, a cell after hidden layer h:

    W_down = U I(x) V,   W_up = U' I(x) V'
    z = sigmoid(h W_down + b) W_up + b'
    h <- h + scale_s * norm(z) + shift_s

The paper's norm takes mean and variance of z over a batch; here they are the row's own (layer normalisation), with the
scale and shift of the scenario, so that no score depends on the other rows. I(x) starts near the identity, and U, V
random: with all of them ones the sigmoid is saturated and nothing is learned.

Letters: B rows, I input width, H layer width, S scenarios, A width inside a cell, K side of the matrix I(x), O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioLinear, ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout


class Hamur(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            layer_widths: of a scenario's perceptron, with an adapter cell after each layer.
            adapter_width: A. matrix_side: K. hyper_width: of the hyper-network's hidden layer.
        """

        kind: Literal["hamur"] = "hamur"
        layer_widths: tuple[int, ...] = (128, 64)
        adapter_width: int = 32
        matrix_side: int = 8
        hyper_width: int = 64
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.layer_widths[-1]

        def __post_init__(self) -> None:
            if not self.layer_widths or min(self.adapter_width, self.matrix_side, self.hyper_width) < 1:
                raise ValueError(f"HAMUR needs at least one layer, and widths of at least one, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.side = config.matrix_side
        to_matrix = nn.Linear(config.hyper_width, self.side**2)
        nn.init.eye_(to_matrix.bias.data.view(self.side, self.side))
        self.hyper = nn.Sequential(nn.Linear(sizes.inputs, config.hyper_width), nn.ReLU(), to_matrix)
        self.layers, self.cells = nn.ModuleList(), nn.ModuleList()
        for inputs, width in zip([sizes.inputs, *config.layer_widths], config.layer_widths, strict=False):
            self.layers.append(ScenarioLinear(sizes.scenarios, 1, inputs, width))
            self.cells.append(AdapterCell(sizes.scenarios, width, config.adapter_width, self.side))
        self.dropout = Dropout(config.dropout)
        self.towers = ScenarioTowers(
            sizes.scenarios, sizes.tasks, config.hidden_width, config.tower_widths, config.dropout
        )

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        matrix_BKK = self.hyper(features.flat_BI).view(-1, self.side, self.side)
        hidden_BH = features.flat_BI
        for layer, cell in zip(self.layers, self.cells, strict=True):
            hidden_BH = self.dropout(torch.relu(layer(hidden_BH, features.scenario_B)[0]))
            hidden_BH = cell(hidden_BH, matrix_BKK, features.scenario_B)
        return self.towers(hidden_BH, features.scenario_B), hidden_BH


class AdapterCell(nn.Module):
    """Hidden vectors (B, H), the rows' matrices (B, K, K) and scenarios (B,) -> (B, H)."""

    def __init__(self, scenarios: int, width: int, inner: int, side: int) -> None:
        super().__init__()
        self.down = MadeLinear(width, inner, side)
        self.up = MadeLinear(inner, width, side)
        self.scale_SH = nn.Parameter(torch.ones(scenarios, width))
        self.shift_SH = nn.Parameter(torch.zeros(scenarios, width))

    def forward(self, hidden_BH: Tensor, matrix_BKK: Tensor, scenario_B: Tensor) -> Tensor:
        inner_BA = torch.sigmoid(self.down(hidden_BH, matrix_BKK))
        normed_BH = functional.layer_norm(self.up(inner_BA, matrix_BKK), hidden_BH.shape[1:])
        return hidden_BH + self.scale_SH[scenario_B] * normed_BH + self.shift_SH[scenario_B]


class MadeLinear(nn.Module):
    """A linear map whose weights U I(x) V differ from row to row; no row's weights are ever written out."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.u_IK = nn.Parameter(torch.empty(inputs, side).uniform_(-(inputs**-0.5), inputs**-0.5))
        self.v_KO = nn.Parameter(torch.empty(side, outputs).uniform_(-(side**-0.5), side**-0.5))
        self.bias_O = nn.Parameter(torch.zeros(outputs))

    def forward(self, rows_BI: Tensor, matrix_BKK: Tensor) -> Tensor:
        inner_B1K = torch.bmm((rows_BI @ self.u_IK)[:, None], matrix_BKK)
        return inner_B1K.squeeze(1) @ self.v_KO + self.bias_O
