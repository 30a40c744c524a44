"""AITM: scenarios in an order, each with a bottom of its own, and what one has learned handed on to the next.

Xi et al.: "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in
Targeted Display Advertising", KDD 2021, with scenarios as its tasks. With the scenarios in an order, for a row x whose
scenario is the t-th:

    z_1 = bottom_1(x),   p_i = g_i(z_{i-1}),   q_i = bottom_i(x)
    z_i = sum over u in {p_i, q_i} of softmax(K(u) . Q(u) / sqrt(H)) V(u),   logit = tower_t(z_t)

K, Q and V are linear maps, the same at every place of the order. The unknown scenario stands first: all rows train its
bottom, and a row of no known scenario needs no other; its tower stays as it was drawn unless some rows of training are
of no known scenario. The paper's calibrator is left out: it says that a later task happens less often than an earlier
one, which scenarios do not promise.

A row at place t goes through t bottoms and transfers, and no further, so the work grows with the number of scenarios
(by half of it for scenarios of equal size), and a batch takes as many steps as there are scenarios.

Letters: B rows, I input width, H bottom width, S scenarios, T tasks; p and q of a row are the two of U.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedMLP


class Aitm(nn.Module):
    """A `Backbone`."""

    place_S: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            order: ids of all known scenarios (from 1), each once, from the one that only gives to the one that gets
                from all; None: by id.
        """

        kind: Literal["aitm"] = "aitm"
        order: tuple[int, ...] | None = None
        bottom_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.bottom_widths[-1]

        def __post_init__(self) -> None:
            if not self.bottom_widths:
                raise ValueError(f"AITM needs at least one layer in a bottom, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        """Raises ValueError if the order is none of the data's scenarios."""
        super().__init__()
        known = range(1, sizes.scenarios)
        order = tuple(known) if config.order is None else config.order
        if sorted(order) != list(known):
            raise ValueError(f"the order of scenarios has each id of 1 .. {sizes.scenarios - 1} once, got {order}")
        width = config.hidden_width
        self.order = (0, *order)
        self.register_buffer("place_S", torch.argsort(torch.tensor(self.order)), persistent=False)
        self.bottoms = nn.ModuleList(
            GroupedMLP(1, sizes.inputs, config.bottom_widths, config.dropout) for _ in self.order
        )
        self.transfers = nn.ModuleList(nn.Linear(width, width) for _ in order)
        self.attention = TransferAttention(width)
        self.towers = ScenarioTowers(sizes.scenarios, sizes.tasks, width, config.tower_widths, config.dropout)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        place_B = self.place_S[features.scenario_B]
        order_B = torch.argsort(place_B, stable=True)
        hidden_BH = torch.cat(self._chain(features.flat_BI[order_B], torch.bincount(place_B).tolist()))
        back_B = torch.empty_like(order_B)
        back_B[order_B] = torch.arange(len(order_B), device=order_B.device)
        hidden_BH = hidden_BH[back_B]
        return self.towers(hidden_BH, features.scenario_B), hidden_BH

    def _chain(self, rows_BI: Tensor, counts: list[int]) -> list[Tensor]:
        """Rows sorted by place, and how many stand at each -> z of those at each place, where they leave the chain."""
        carried_BH = self.bottoms[0](rows_BI)[0]
        done = []
        for place, count in enumerate(counts):
            if place > 0:
                own_BH = self.bottoms[self.order[place]](rows_BI)[0]
                carried_BH = self.attention(self.transfers[place - 1](carried_BH), own_BH)
            done.append(carried_BH[:count])
            carried_BH, rows_BI = carried_BH[count:], rows_BI[count:]
        return done


class TransferAttention(nn.Module):
    """What was handed on and what is a scenario's own, (B, H) each -> (B, H)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key, self.query, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, handed_BH: Tensor, own_BH: Tensor) -> Tensor:
        both_BUH = torch.stack([handed_BH, own_BH], dim=1)
        score_BU1 = (self.key(both_BUH) * self.query(both_BUH)).sum(dim=2, keepdim=True) * both_BUH.shape[2] ** -0.5
        return (torch.softmax(score_BU1, dim=1) * self.value(both_BUH)).sum(dim=1)
