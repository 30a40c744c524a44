"""Meta layers: layers whose weights and biases are generated from what a language model knows of a user or a scenario.

LLM4MSR (Wang et al., CIKM 2024) generates them from hidden states; form and sizes are not published, so they are
options here. A knowledge vector becomes a code k by a bottleneck, the code generates the layers:

    y_j = y_{j-1} + act(y_{j-1} W_j(k) + b_j(k)),    W_j(k) = D_j(k) P_j(k) of rank R, or a full matrix

Generators start small, so every layer starts near the identity. D, P, W and b are linear in the code,
D(k) = sum_c k_c D_c: rows of many users go through all D_c and are weighted by their codes, with no matrix of any
user's own in memory; rows of few users or scenarios (a request, a bundle's scenarios) go through generated layers,
which are generated once for all their rows, or were before (`Generated`).

Letters: B rows, U distinct codes among them, C width of a code, I width of a row, R rank, O outputs of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.by_scenario import each_kind
from trainers.models.mlp import Dropout

START = 0.1  # of what a generator's entries would be if its layers were to keep the length of a row
FEW = 32  # so many distinct codes or fewer: rows go through their generated layers


@dataclass(frozen=True)
class Generated:
    """The layers of U codes, one after the other."""

    weights_UIO: tuple[tuple[Tensor, ...], ...]  # of each layer, of each map that its matrix is a product of
    biases_UI: tuple[Tensor, ...]

    def of(self, code_V: Tensor) -> Generated:
        """The layers of V of the codes."""
        weights = tuple(tuple(weight_UIO[code_V] for weight_UIO in layer) for layer in self.weights_UIO)
        return Generated(weights, tuple(bias_UI[code_V] for bias_UI in self.biases_UI))


@dataclass(frozen=True)
class Codes:
    """The codes of B rows, each distinct one once, and their layers where these were generated before."""

    code_UC: Tensor
    of_row_B: Tensor  # int64, which code a row has
    layers: Generated | None = None

    @property
    def few(self) -> bool:
        return len(self.code_UC) <= FEW


class MetaLinear(nn.Module):
    """A linear map (I -> O) without bias whose matrix is linear in the code of the row."""

    def __init__(self, codes: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_CIO = nn.Parameter(torch.randn(codes, inputs, outputs) * START * (codes * inputs) ** -0.5)

    def generate(self, code_UC: Tensor) -> Tensor:
        """The matrices of U codes, (U, I, O)."""
        return (code_UC @ self.weight_CIO.flatten(1)).view(-1, *self.weight_CIO.shape[1:])

    def forward(self, row_BI: Tensor, code_BC: Tensor) -> Tensor:
        """Each row by the matrix of its code, with no such matrix in memory: (B, O).

        The sum over codes comes last, or first where that keeps the smaller tensor of all B rows.
        """
        width, inputs, outputs = self.weight_CIO.shape
        if inputs < outputs:
            row_BX = (code_BC[:, :, None] * row_BI[:, None, :]).flatten(1)
            return row_BX @ self.weight_CIO.flatten(0, 1)
        each_BCO = (row_BI @ self.weight_CIO.transpose(0, 1).reshape(inputs, width * outputs)).view(-1, width, outputs)
        return torch.einsum("bc,bco->bo", code_BC, each_BCO)


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
            code_dropout: of the code. Each user's vector is one of its own, by which training knows its rows again.
        """

        layers: int = 2
        bottleneck: int = 32
        rank: int | None = 8
        activation: Literal["relu", "tanh", "none"] = "tanh"
        dropout: float = 0.0
        code_dropout: float = 0.0

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

    def generate(self, code_UC: Tensor) -> Generated:
        """The layers of U codes."""
        weights = tuple(tuple(of_map.generate(code_UC) for of_map in maps) for maps in self._maps())
        return Generated(weights, tuple(bias(code_UC) for bias in self.biases))

    def forward(self, row_BI: Tensor, codes: Codes) -> Tensor:
        if codes.few:
            layers = codes.layers or self.generate(codes.code_UC)
            return each_kind(row_BI[None], codes.of_row_B, lambda rows, kind: self._of_one(rows, layers, kind))[0]
        code_BC = codes.code_UC[codes.of_row_B]
        for maps, bias in zip(self._maps(), self.biases, strict=True):
            added_BI = row_BI
            for of_map in maps:
                added_BI = of_map(added_BI, code_BC)
            row_BI = row_BI + self.dropout(self._activated(added_BI + bias(codes.code_UC)[codes.of_row_B]))
        return row_BI

    def _of_one(self, rows: Tensor, layers: Generated, code: int) -> Tensor:
        """Rows of one code (..., I) through its layers."""
        for weights_UIO, bias_UI in zip(layers.weights_UIO, layers.biases_UI, strict=True):
            added = rows
            for weight_UIO in weights_UIO:
                added = added @ weight_UIO[code]
            rows = rows + self.dropout(self._activated(added + bias_UI[code]))
        return rows

    def _maps(self) -> Iterator[list[MetaLinear]]:
        """The maps of each layer."""
        for maps in self.maps:
            assert isinstance(maps, nn.ModuleList)
            yield [of_map for of_map in maps if isinstance(of_map, MetaLinear)]

    def _activated(self, row_BI: Tensor) -> Tensor:
        match self.activation:
            case "relu":
                return functional.relu(row_BI)
            case "tanh":
                return torch.tanh(row_BI)
            case "none":
                return row_BI
