"""A transformer over the user's recent POIs, read by the candidate: what was visited, in which order, how long ago.

The block is that of SASRec (Kang, McAuley: "Self-Attentive Sequential Recommendation", ICDM 2018): each recent POI
attends to itself and to older ones. The candidate then weighs what comes out, as in DIN (Zhou et al., KDD 2018):

    t_n = W e_n + p_n + log(1 + hours_n) d           recent POI n: its embedding, place in the list and age
    t <- t + A(norm(t)),   t <- t + W'' relu(W' norm(t))        A: causal attention, within the row's own list
    v = sum_n softmax_n(q . K t_n / sqrt(W)) V t_n,   q = Q e_poi
    h = MLP([x ; v ; v * q]),   logit_t = tower_{s,t}(h)

SASRec scores a POI by its product with the state; here that product, not yet summed, is an input. The list ends in a
learned "start" token, older than all, so that a user without recent POIs has something to attend to.

Letters: B rows, I input width, N recent POIs (newest first), L = N + 1 tokens, E width of an id, W token width, H width
of the perceptron, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedMLP


class SasRec(nn.Module):
    """A `Backbone`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            length: how many of the newest recent POIs are read, of the twenty that lists have.
            width, heads, blocks, feed_forward: of the transformer.
            layer_widths: of the perceptron over flat input and interest.
        """

        kind: Literal["sasrec"] = "sasrec"
        length: int = 20
        width: int = 32
        heads: int = 2
        blocks: int = 1
        feed_forward: int = 64
        layer_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.layer_widths[-1]

        def __post_init__(self) -> None:
            if not self.layer_widths or min(self.length, self.heads, self.blocks, self.feed_forward) < 1:
                raise ValueError(f"SASRec needs at least one position, head, block and layer, got {self}")
            if self.width < 1 or self.width % self.heads:
                raise ValueError(f"heads share the token width, so they divide it; got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.poi_field = sizes.user_fields
        self.token = nn.Linear(sizes.width, config.width, bias=False)  # positions are its bias
        self.age_W = nn.Parameter(torch.zeros(config.width))
        self.position_NW = nn.Parameter(torch.randn(config.length, config.width) * config.width**-0.5)
        self.start_W = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(sizes.width, config.width)
        self.key = nn.Linear(config.width, config.width, bias=False)  # a softmax does not see a bias of keys
        self.value = nn.Linear(config.width, config.width)
        self.bottom = GroupedMLP(1, sizes.inputs + 2 * config.width, config.layer_widths, config.dropout)
        self.towers = ScenarioTowers(
            sizes.scenarios, sizes.tasks, config.hidden_width, config.tower_widths, config.dropout
        )

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        query_BW = self.query(features.id_BFE[:, self.poi_field])
        interest_BW = self._interest(query_BW, features)
        joined_BI = torch.cat([features.flat_BI, interest_BW, interest_BW * query_BW], dim=1)
        hidden_BH = self.bottom(joined_BI)[0]
        return self.towers(hidden_BH, features.scenario_B), hidden_BH

    def _interest(self, query_BW: Tensor, features: Features) -> Tensor:
        """What the candidate finds in the row's own list."""
        recent = min(len(self.position_NW), features.recent_known_BN.shape[1])
        known_BN = features.recent_known_BN[:, :recent]
        rows = len(known_BN)
        token_BNW = self.token(features.recent_BNE[:, :recent]) + self.position_NW[:recent]
        token_BNW = token_BNW + features.recent_age_BN[:, :recent, None] * self.age_W
        token_BLW = torch.cat([token_BNW, self.start_W.expand(rows, 1, -1)], dim=1)
        known_BL = functional.pad(known_BN, (0, 1), value=True)
        older_LL = torch.ones(recent + 1, recent + 1, dtype=torch.bool, device=known_BL.device).triu()
        for block in self.blocks:
            token_BLW = block(token_BLW, known_BL[:, None, None] & older_LL)
        token_BLW = self.norm(token_BLW)
        key_BLW, value_BLW = self.key(token_BLW), self.value(token_BLW)
        mixed_B1W = functional.scaled_dot_product_attention(
            query_BW[:, None], key_BLW, value_BLW, attn_mask=known_BL[:, None]
        )
        return mixed_B1W.squeeze(1)


class Block(nn.Module):
    """One transformer block, normalised before each half; `visible` (B, 1, L, L) says who attends to whom."""

    def __init__(self, config: SasRec.Config) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm_in, self.norm_mid = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.feed_in, self.feed_out = nn.Linear(width, config.feed_forward), nn.Linear(config.feed_forward, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, token_BLW: Tensor, visible: Tensor) -> Tensor:
        normed = self.norm_in(token_BLW)
        query, key, value = (
            part(normed).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        token_BLW = token_BLW + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        fed: Tensor = self.feed_out(torch.relu(self.feed_in(self.norm_mid(token_BLW))))
        return token_BLW + self.dropout(fed)
