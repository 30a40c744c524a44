"""Layers with weights of their own for each scenario: every row goes through those of its scenario, and no others.

Rows are sorted by scenario once a layer, so the work does not grow with the number of scenarios, and a batch of one
scenario is one matrix product.

Letters: S scenarios, G maps of each (tasks, experts), B rows, I and O widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainers.models.mlp import Dropout


def linear_by_scenario(rows: Tensor, scenario_B: Tensor, weight_SGIO: Tensor, bias_SG1O: Tensor) -> Tensor:
    """Rows (G, B, I), or (B, I) for all G, and scenarios (B,) int64 -> (G, B, O), each row by its scenario's maps."""
    rows_GBI = rows if rows.dim() == 3 else rows.expand(weight_SGIO.shape[1], *rows.shape)
    weight, bias = _one_by_one(weight_SGIO), _one_by_one(bias_SG1O)
    return each_kind(rows_GBI, scenario_B, lambda of_one, kind: torch.baddbmm(bias[kind], of_one, weight[kind]))


def _one_by_one(of_all: Tensor) -> Tensor | tuple[Tensor, ...]:
    """What has each scenario's part at its place, at no cost without gradients.

    The gradient of one part that is chosen from all is as large as all, so choosing S times costs S x S; those of parts
    that were taken apart together are put side by side once.
    """
    return of_all.unbind(0) if torch.is_grad_enabled() and of_all.requires_grad else of_all


def each_kind(rows_GBI: Tensor, kind_B: Tensor, through: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`through(rows of one kind (G, n, I), the kind) -> (G, n, O)` once for each kind that rows are of: (G, B, O)."""
    order_B = torch.argsort(kind_B, stable=True)
    present, counts = torch.unique_consecutive(kind_B[order_B], return_counts=True)
    if len(present) == 1:
        return through(rows_GBI, int(present))
    of_kinds = torch.split(rows_GBI[:, order_B], counts.tolist(), dim=1)
    parts = [through(of_one, kind) for kind, of_one in zip(present.tolist(), of_kinds, strict=True)]
    back_B = torch.empty_like(order_B)
    back_B[order_B] = torch.arange(len(order_B), device=order_B.device)
    return torch.cat(parts, dim=1)[:, back_B]


class ScenarioLinear(nn.Module):
    """S x G linear maps: rows (G, B, I), or (B, I) for all G, and scenarios (B,) int64 -> (G, B, O)."""

    def __init__(self, scenarios: int, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        # All scenarios start alike: what differs between them is learned, not drawn.
        weight_GIO = torch.empty(groups, inputs, outputs).uniform_(-bound, bound)
        self.weight_SGIO = nn.Parameter(weight_GIO.repeat(scenarios, 1, 1, 1))
        self.bias_SG1O = nn.Parameter(torch.zeros(scenarios, groups, 1, outputs))

    def forward(self, rows: Tensor, scenario_B: Tensor) -> Tensor:
        return linear_by_scenario(rows, scenario_B, self.weight_SGIO, self.bias_SG1O)


class ScenarioMLP(nn.Module):
    """S x G perceptrons with ReLU after every layer: rows (G, B, I) or (B, I) -> (G, B, width)."""

    def __init__(self, scenarios: int, groups: int, inputs: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        sizes = [inputs, *widths]
        self.layers = nn.ModuleList(
            ScenarioLinear(scenarios, groups, i, o) for i, o in zip(sizes, widths, strict=False)
        )
        self.dropout = Dropout(dropout)
        self.width = sizes[-1]

    def forward(self, rows: Tensor, scenario_B: Tensor) -> Tensor:
        for layer in self.layers:
            rows = self.dropout(torch.relu(layer(rows, scenario_B)))
        return rows


class ScenarioTowers(nn.Module):
    """A tower for each scenario and task: hidden vectors (B, H), or (T, B, H), -> logits (B, T)."""

    def __init__(self, scenarios: int, tasks: int, inputs: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.towers = ScenarioMLP(scenarios, tasks, inputs, widths, dropout)
        self.heads = ScenarioLinear(scenarios, tasks, self.towers.width, 1)

    def forward(self, hidden: Tensor, scenario_B: Tensor) -> Tensor:
        logit_TB1: Tensor = self.heads(self.towers(hidden, scenario_B), scenario_B)
        return logit_TB1.squeeze(2).transpose(0, 1)
