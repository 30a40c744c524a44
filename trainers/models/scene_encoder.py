"""The scene encoder of LARR: the values of one moment, each a token, become one scene vector.

Wan et al., "LARR: Large Language Model Aided Real-time Scene Recommendation", RecSys 2024: the language model never
reads a whole scene, it embeds each scene value on its own; an encoder with an aggregation token, attending both ways,
joins them. What the paper leaves open (depth, heads, width, missing values) is an option here; other ways to join the
same tokens are options too, so that the encoder can be compared with them, and so are ids in place of vectors.

    z_s = P e(value_s) + t_s                  e: frozen vector, P: learned map, t_s: learned vector of slot s
    c   = MLP(Transformer([agg ; z_1 ; ... ; z_S])_agg) + L sum_s z_s / sqrt(S)

The last term is ours, not the paper's: what each value says on its own adds up, and a linear map learns that from far
fewer rows than the encoder, which is left with what values say together.

It runs once for each of the U distinct scenes of a batch. Letters: U scenes, S slots, W token width, C scene width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.embedding import FrozenVectors, FusedEmbedding
from trainers.models.mlp import Dropout

TOKEN_DEVIATION = 0.5  # of an id's entries: about that of a projected vector, so that ids and vectors start as equals


class SceneEncoder(nn.Module):
    """Ids and matrix rows of U scenes, (U, S) each -> scene vectors (U, C)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            tokens: what a value is made of: its text's vector, its id's embedding, or the sum of both.
            aggregate: how tokens become one: the paper's "encoder", or "attention" (one learned query),
                "mean", "concat".
            width: of a token. heads, layers, feed_forward: of the encoder.
            output: width of the scene vector.
            unknown_rate: share of ids that training replaces by "unknown".
            shortcut: the linear term beside the aggregation; without it the scene vector is the paper's.
        """

        tokens: Literal["vectors", "ids", "both"] = "vectors"
        aggregate: Literal["encoder", "attention", "mean", "concat"] = "encoder"
        width: int = 64
        heads: int = 4
        layers: int = 1
        feed_forward: int = 128
        output: int = 32
        dropout: float = 0.0
        unknown_rate: float = 0.0
        shortcut: bool = True

        def __post_init__(self) -> None:
            if self.width % self.heads or self.layers < 1:
                raise ValueError(f"a scene encoder needs a layer, and a width that its heads divide; got {self}")

    def __init__(self, config: Config, cardinalities: tuple[int, ...], matrix_RV: Tensor | None) -> None:
        """Raises ValueError if the tokens need vectors and there is no matrix, or if there is no scene slot."""
        super().__init__()
        if not cardinalities:
            raise ValueError("the data has no scene features; use a recipe without scenes (ple)")
        if matrix_RV is None and config.tokens != "ids":
            raise ValueError("the recipe wants vectors of scene values and the data has none: embed them, or use ids")
        self.config = config
        slots = len(cardinalities)
        self.ids = (
            FusedEmbedding(cardinalities, config.width, unknown_rate=config.unknown_rate, deviation=TOKEN_DEVIATION)
            if config.tokens != "vectors"
            else None
        )
        self.vectors = (
            FrozenVectors(matrix_RV, config.width, slots=slots)
            if config.tokens != "ids" and matrix_RV is not None
            else None
        )
        self.slot_SW = nn.Parameter(torch.randn(slots, config.width) * config.width**-0.5)
        self.aggregator = _aggregator(config)
        joined = slots * config.width if config.aggregate == "concat" else config.width
        self.head = nn.Sequential(
            nn.LayerNorm(joined), nn.Linear(joined, config.width), nn.GELU(), nn.Linear(config.width, config.output)
        )
        self.shortcut = nn.Linear(config.width, config.output, bias=False) if config.shortcut else None

    def forward(self, scene_id_US: Tensor, scene_row_US: Tensor) -> Tensor:
        token_USW = self.slot_SW.expand(len(scene_id_US), -1, -1)
        if self.vectors is not None:
            token_USW = token_USW + self.vectors(scene_row_US)
        if self.ids is not None:
            token_USW = token_USW + self.ids(scene_id_US)
        scene_UC: Tensor = self.head(self.aggregator(token_USW))
        if self.shortcut is not None:
            scene_UC = scene_UC + self.shortcut(token_USW.sum(dim=1) * token_USW.shape[1] ** -0.5)
        return scene_UC


def _aggregator(config: SceneEncoder.Config) -> nn.Module:
    """The module (U, S, W) -> (U, joined width) of each way to aggregate."""
    match config.aggregate:
        case "encoder":
            return AggregationEncoder(config)
        case "attention":
            return AttentionPooling(config.width)
        case "mean":
            return MeanPooling()
        case "concat":
            return nn.Flatten()


class AggregationEncoder(nn.Module):
    """A bidirectional transformer over [agg ; tokens]; the output at the aggregation token."""

    def __init__(self, config: SceneEncoder.Config) -> None:
        super().__init__()
        self.agg_W = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def forward(self, token_USW: Tensor) -> Tensor:
        rows = torch.cat([self.agg_W.expand(len(token_USW), 1, -1), token_USW], dim=1)
        for layer in self.layers[:-1]:
            rows = layer(rows, rows)
        # Only the aggregation token is read after the last layer, so only it is computed there.
        joined: Tensor = self.layers[-1](rows[:, :1], rows)
        return joined.squeeze(1)


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer whose queries may be fewer than the tokens that they attend to."""

    def __init__(self, config: SceneEncoder.Config) -> None:
        super().__init__()
        width = config.width
        self.heads, self.rate = config.heads, config.dropout
        self.norm_in, self.norm_mid = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.feed = nn.Sequential(
            nn.Linear(width, config.feed_forward), nn.GELU(), nn.Linear(config.feed_forward, width)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, query_UQW: Tensor, token_USW: Tensor) -> Tensor:
        query = self._split(self.query(self.norm_in(query_UQW)))
        key, value = (self._split(part) for part in self.key_value(self.norm_in(token_USW)).chunk(2, dim=2))
        rate = self.rate if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        rows = query_UQW + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        result: Tensor = rows + self.dropout(self.feed(self.norm_mid(rows)))
        return result

    def _split(self, rows: Tensor) -> Tensor:
        """(U, S, W) -> (U, heads, S, W / heads)."""
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class AttentionPooling(nn.Module):
    """A softmax-weighted mean of the tokens; the weights come from one learned query."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1, bias=False)  # a softmax does not see a bias

    def forward(self, token_USW: Tensor) -> Tensor:
        weight_US1 = torch.softmax(self.query(token_USW), dim=1)
        return (weight_US1 * token_USW).sum(dim=1)


class MeanPooling(nn.Module):
    """The plain mean of the tokens."""

    def forward(self, token_USW: Tensor) -> Tensor:
        return token_USW.mean(dim=1)
