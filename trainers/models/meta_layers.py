"""Meta layers: layers whose weights and biases are generated from what a language model knows of a user or a scenario.

LLM4MSR (Wang et al., CIKM 2024) generates them from hidden states; form and sizes are not published, so they are
options here. A knowledge vector becomes a code k by a bottleneck, the code generates the layers:

    y_j = y_{j-1} + act(y_{j-1} W_j(k) + b_j(k)),    W_j(k) = D_j(k) P_j(k) of rank R, or a full matrix

Generators start small, so every layer starts near the identity. D, P, W and b are linear in the code,
D(k) = sum_c k_c D_c: rows of many users go through all D_c and are weighted by their codes, with no matrix of any
user's own in memory; rows of few users or scenarios (a request, a bundle's scenarios) go through generated matrices.

Letters: B rows, U distinct codes among them, C width of a code, I width of a row, R rank, O outputs of a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.by_scenario import each_kind
from trainers.models.mlp import Dropout

START = 0.1  # of what a generator's entries would be if its layers were to keep the length of a row
FEW = 32  # so many distinct codes or fewer: their matrices are generated


@dataclass(frozen=True)
class Codes:
    """The codes of B rows, each distinct one once."""

    code_UC: Tensor
    of_row_B: Tensor  # int64, which code a row has

    @property
    def few(self) -> bool:
        return len(self.code_UC) <= FEW


class MetaLinear(nn.Module):
    """A linear map (I -> O) without bias whose matrix is linear in the code of the row."""

    def __init__(self, codes: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_CIO = nn.Parameter(torch.randn(codes, inputs, outputs) * START * (codes * inputs) ** -0.5)

    def forward(self, row_BI: Tensor, codes: Codes) -> Tensor:
        width, inputs, outputs = self.weight_CIO.shape
        if codes.few:
            weight_UIO = (codes.code_UC @ self.weight_CIO.flatten(1)).view(-1, inputs, outputs)
            return each_kind(row_BI[None], codes.of_row_B, lambda rows, kind: rows @ weight_UIO[kind])[0]
        each_BCO = (row_BI @ self.weight_CIO.transpose(0, 1).reshape(inputs, width * outputs)).view(-1, width, outputs)
        return torch.einsum("bc,bco->bo", codes.code_UC[codes.of_row_B], each_BCO)


class MetaLayers(nn.Module):
    """Rows (B, I) and the codes of their users or scenarios -> rows (B, I)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            layers: meta layers, one after the other.
            bottleneck: C, width of a code.
            rank: R of the generated matrices; None: full ones.
            activation: of every layer.
            dropout: of what a layer adds.
        """

        layers: int = 2
        bottleneck: int = 32
        rank: int | None = 8
        activation: Literal["relu", "tanh", "none"] = "tanh"
        dropout: float = 0.0

        def __post_init__(self) -> None:
            if min(self.layers, self.bottleneck, 1 if self.rank is None else self.rank) < 1:
                raise ValueError(f"meta layers need a layer, a bottleneck and a rank of at least 1, got {self}")

    def __init__(self, config: Config, inputs: int) -> None:
        super().__init__()
        widths = (inputs, inputs) if config.rank is None else (inputs, config.rank, inputs)
        self.maps = nn.ModuleList(
            nn.ModuleList(MetaLinear(config.bottleneck, i, o) for i, o in pairwise(widths))
            for _ in range(config.layers)
        )
        self.biases = nn.ModuleList(nn.Linear(config.bottleneck, inputs) for _ in range(config.layers))
        for bias in self.biases:
            assert isinstance(bias, nn.Linear)
            nn.init.normal_(bias.weight, std=START * config.bottleneck**-0.5)
            nn.init.zeros_(bias.bias)
        self.activation = config.activation
        self.dropout = Dropout(config.dropout)

    def forward(self, row_BI: Tensor, codes: Codes) -> Tensor:
        for maps, bias in zip(self.maps, self.biases, strict=True):
            assert isinstance(maps, nn.ModuleList)
            added_BI = row_BI
            for of_map in maps:
                added_BI = of_map(added_BI, codes)
            added_BI = self._activated(added_BI + bias(codes.code_UC)[codes.of_row_B])
            row_BI = row_BI + self.dropout(added_BI)
        return row_BI

    def _activated(self, row_BI: Tensor) -> Tensor:
        match self.activation:
            case "relu":
                return functional.relu(row_BI)
            case "tanh":
                return torch.tanh(row_BI)
            case "none":
                return row_BI
