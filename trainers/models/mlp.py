"""Several multi-layer perceptrons of one shape, computed as one: every layer is a single batched matrix product.

And a dropout that is cheap on a CPU.
Letters: G perceptrons (experts, towers), B rows, I and O widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FEW_ROWS = 256  # up to so many, laying the weights side by side costs more than it saves


class GroupedLinear(nn.Module):
    """G linear maps: (G, B, I) -> (G, B, O), or (B, I) -> (G, B, O) when all read the same rows."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight_GIO = nn.Parameter(torch.empty(groups, inputs, outputs).uniform_(-bound, bound))
        self.bias_G1O = nn.Parameter(torch.zeros(groups, 1, outputs))

    def forward(self, rows: Tensor) -> Tensor:
        if rows.dim() == 3:
            return torch.baddbmm(self.bias_G1O, rows, self.weight_GIO)
        groups, inputs, outputs = self.weight_GIO.shape
        if len(rows) <= FEW_ROWS:
            return torch.baddbmm(self.bias_G1O, rows.expand(groups, *rows.shape), self.weight_GIO)
        # Of many rows, one product with the weights side by side is faster than G products that read the rows G times.
        weight_IH = self.weight_GIO.transpose(0, 1).reshape(inputs, groups * outputs)
        return (rows @ weight_IH).view(-1, groups, outputs).transpose(0, 1) + self.bias_G1O


class Dropout(nn.Module):
    """Dropout with a mask of random bytes, eight from one draw: on a CPU drawing the mask costs as much as the layers.

    The rate is rounded to 1 / 256. Raises ValueError for a rate outside 0 .. 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a dropout rate lies in 0 .. 1 (exclusive), got {rate}")
        self.kept = max(1, round((1.0 - rate) * 256))

    def forward(self, rows: Tensor) -> Tensor:
        if not self.training or self.kept == 256:
            return rows
        words = torch.empty((rows.numel() + 7) // 8, dtype=torch.int64, device=rows.device).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: rows.numel()].view(rows.shape) < self.kept
        return rows * (keep * (256.0 / self.kept))


class GroupedMLP(nn.Module):
    """G perceptrons with ReLU after every layer; reads (G, B, I) or, shared by all, (B, I)."""

    def __init__(self, groups: int, inputs: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        sizes = [inputs, *widths]
        self.layers = nn.ModuleList(GroupedLinear(groups, i, o) for i, o in zip(sizes, widths, strict=False))
        self.dropout = Dropout(dropout)
        self.width = sizes[-1]

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = self.dropout(torch.relu(layer(rows)))
        return rows
