"""Inputs of a network: one fused table for all ids, frozen vectors looked up by row, and their products with the POI.

Letters: B rows, F categorical columns, E width of an id, N recent POIs, I width of the flat input, P width of a
product, V width of a frozen vector. `FusedEmbedding` and `FrozenVectors` stand on their own: retrieval towers use
them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.models.mlp import Dropout

SPARSE_ABOVE_ROWS = (
    200_000  # a larger table gets sparse gradients: a dense optimiser would touch every row at each step
)


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """How large the tensors of one Encoding's batches are.

    Attributes:
        cardinalities: ids of each column of `categorical_BF`, the unknown one included.
        user_fields: how many of these, the first ones, describe scenario and user, their ids first; the others describe
            the POI, and the first of the others is the POI id itself.
        numbers: columns of `numeric_BD`.
        scene_cardinalities: ids of each scene slot.
        text_spaces: names of the columns of `text_row_BK`.
        scene_space: name of the space of `scene_row_US`.
    """

    cardinalities: tuple[int, ...]
    user_fields: int
    numbers: int
    scene_cardinalities: tuple[int, ...]
    text_spaces: tuple[str, ...]
    scene_space: str


class FusedEmbedding(nn.Module):
    """Embeddings of several categorical columns in one table: column f's id i is row `offset[f] + i`.

    One gather and one gradient serve all columns. Id 0 of each column (unknown) starts at zero: until it is trained, an
    unknown value says nothing. In training each id becomes unknown with probability `unknown_rate`, which trains that
    row and keeps the network from leaning on ids alone.
    """

    offset_F: Tensor

    def __init__(
        self, cardinalities: Sequence[int], width: int, *, unknown_rate: float = 0.0, deviation: float | None = None
    ) -> None:
        """`deviation` of the initial entries; by default such that a vector has a length of about 1."""
        super().__init__()
        rows = sum(cardinalities)
        self.unknown_rate = unknown_rate
        self.table = nn.Embedding(rows, width, sparse=rows > SPARSE_ABOVE_ROWS)
        offsets = torch.tensor([0, *accumulate(cardinalities)][:-1], dtype=torch.int64)
        self.register_buffer("offset_F", offsets, persistent=False)
        with torch.no_grad():
            self.table.weight.normal_(std=deviation or width**-0.5)
            self.table.weight[offsets] = 0.0

    def forward(self, ids_BF: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, E)."""
        if self.training and self.unknown_rate > 0.0:
            ids_BF = ids_BF * (torch.rand(ids_BF.shape, device=ids_BF.device) >= self.unknown_rate)
        found: Tensor = self.table(ids_BF + self.offset_F)
        return found

    def column(self, field: int, ids: Tensor) -> Tensor:
        """Ids of any shape, all of column `field` -> (..., E)."""
        found: Tensor = self.table(ids + self.offset_F[field])
        return found


class FrozenVectors(nn.Module):
    """Vectors of a language model, looked up by row, standardised, and projected by a learned map.

    The matrix is a constant and no part of the weights; row 0 means "missing" and becomes a learned vector. Each
    distinct row is projected once per call. Centring matters: the vectors of a language model share one large common
    direction that says nothing, and those of one slot's sentences another one, that of the sentence around the value.

    Args:
        slots: with more than one, the last dimension of rows runs over slots, each centred on its own mean; one scale
            serves all, so that a slot of values that hardly differ is not blown up.
    """

    matrix: Tensor
    mean_SV: Tensor
    scale_V: Tensor

    def __init__(self, matrix_RV: Tensor, width: int, *, slots: int = 1) -> None:
        super().__init__()
        size = matrix_RV.shape[1]
        self.register_buffer("matrix", matrix_RV, persistent=False)
        self.register_buffer("mean_SV", torch.zeros(slots, size))
        self.register_buffer("scale_V", torch.ones(size))
        self.projection = nn.Linear(size, width)
        self.missing = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Take means and deviations from the distinct rows that training reads (row 0 does not count)."""
        slots = len(self.mean_SV)
        centred = []
        for slot, of_slot in enumerate(rows.reshape(-1, slots).unbind(1)):
            used = torch.unique(of_slot)
            vectors = self.matrix[used[used > 0]]
            if len(vectors):
                self.mean_SV[slot] = vectors.mean(dim=0)
                centred.append(vectors - self.mean_SV[slot])
        if sum(map(len, centred)) < 2:
            return
        deviation = torch.cat(centred).square().mean(dim=0).sqrt()
        # The floor keeps a column that hardly varies from being blown up in a row that was not seen.
        self.scale_V.copy_(torch.clamp(deviation, min=0.1 * float(deviation.mean()) + 1e-6))

    def extend(self, matrix_RV: Tensor) -> None:
        """Put a longer matrix in place, whose first rows are the known ones. Raises ValueError if it is none."""
        if matrix_RV.shape[1] != self.matrix.shape[1] or len(matrix_RV) < len(self.matrix):
            raise ValueError(f"a matrix of {tuple(matrix_RV.shape)} does not extend one of {tuple(self.matrix.shape)}")
        self.matrix = matrix_RV.to(self.matrix)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (int64) of any shape -> (..., width)."""
        slots = len(self.mean_SV)
        # A row and its slot in one number, so that each distinct pair is projected once.
        pairs = rows * slots + torch.arange(slots, device=rows.device) if slots > 1 else rows
        used, inverse = torch.unique(pairs, return_inverse=True)
        row = torch.div(used, slots, rounding_mode="floor")
        projected = self.projection((self.matrix[row] - self.mean_SV[used % slots]) / self.scale_V)
        projected = torch.where((row == 0)[:, None], self.missing, projected)
        return projected[inverse]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What B rows offer to scene use and backbones. Most read `flat_BI` and the scenario; some look at the parts."""

    flat_BI: Tensor  # all that is known of a row, side by side
    poi_BP: Tensor  # the POI's side of every product
    scenario_B: Tensor  # int64 id, 0 is unknown
    user_B: Tensor  # int64 id
    poi_B: Tensor  # int64 id
    id_BFE: Tensor  # the embedded ids: scenario, user, the user's attributes, POI, the POI's attributes
    recent_BNE: Tensor  # the embedded recent POIs, newest first
    recent_age_BN: Tensor  # log(1 + hours) since each
    recent_known_BN: Tensor  # bool, false beyond the end of the list
    numeric_BD: Tensor  # standardised numbers


class FeatureEmbedding(nn.Module):
    """A Batch without its scene -> the flat input of a backbone.

    Concatenated: ids, numbers, the recent POIs pooled by how well they match the candidate and how fresh they are, text
    vectors if wished, and the products of user, recent POIs with the POI. A product is there because a preference of
    one thing for another is a dot product, which an MLP over concatenated vectors needs far more data to learn.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            width: of one id's embedding.
            product_width: of each user x POI, recent x POI (and scene x POI) product; 0: no products.
            text_spaces: knowledge spaces whose vectors are inputs, of those that the batches carry.
            text_width: of one projected text vector.
            unknown_rate: share of ids that training replaces by "unknown".
            deviation: of the initial entries of ids; None: such that a vector has a length of about 1. Small where most
                ids are rare, so that an id says nothing before it has learned something.
        """

        width: int = 16
        product_width: int = 32
        text_spaces: tuple[str, ...] = ()
        text_width: int = 32
        unknown_rate: float = 0.0
        deviation: float | None = None
        dropout: float = 0.0

    def __init__(self, config: Config, sizes: InputSizes, matrices: Mapping[str, Tensor]) -> None:
        super().__init__()
        absent = [s for s in config.text_spaces if s not in sizes.text_spaces or s not in matrices]
        if absent:
            raise ValueError(
                f"the recipe wants text vectors of {absent}; the data has {sorted(matrices)}: embed them, "
                "or take them out of FeatureEmbedding.Config.text_spaces"
            )
        self.sizes = sizes
        self.spaces = config.text_spaces
        self.table = FusedEmbedding(
            sizes.cardinalities, config.width, unknown_rate=config.unknown_rate, deviation=config.deviation
        )
        self.recent = RecentPooling(config.width)
        self.texts = nn.ModuleList(FrozenVectors(matrices[space], config.text_width) for space in config.text_spaces)
        user_width = sizes.user_fields * config.width
        poi_width = (len(sizes.cardinalities) - sizes.user_fields) * config.width
        text_width = len(config.text_spaces) * config.text_width
        self.user_side = _side(user_width, config.product_width)
        self.recent_side = _side(config.width, config.product_width)
        self.poi_side = _side(poi_width + text_width, config.product_width)
        self.dropout = Dropout(config.dropout)
        self.product_width = config.product_width
        self.width = user_width + poi_width + text_width + sizes.numbers + config.width + 2 * config.product_width

    def fit_vectors(self, text_row_BK: Tensor) -> None:
        """Standardise the text vectors by the rows that training reads."""
        for space, vectors in zip(self.spaces, self.texts, strict=True):
            assert isinstance(vectors, FrozenVectors)
            vectors.fit(text_row_BK[:, self.sizes.text_spaces.index(space)])

    def extend_vectors(self, space: str, matrix_RV: Tensor) -> None:
        """Put a longer matrix of one space in place, where it is an input."""
        for name, vectors in zip(self.spaces, self.texts, strict=True):
            if name == space:
                assert isinstance(vectors, FrozenVectors)
                vectors.extend(matrix_RV)

    def forward(self, batch: Batch) -> Features:
        users = self.sizes.user_fields
        id_BFE = self.table(batch.categorical_BF)
        user_BI, poi_BI = id_BFE[:, :users].flatten(1), id_BFE[:, users:].flatten(1)
        recent_BNE = self.table.column(users, batch.recent_poi_BN)
        known_BN = batch.recent_poi_BN > 0
        recent_BE = self.recent(id_BFE[:, users], recent_BNE, batch.recent_age_BN, known_BN)
        texts = [
            vectors(batch.text_row_BK[:, self.sizes.text_spaces.index(space)])
            for space, vectors in zip(self.spaces, self.texts, strict=True)
        ]
        poi_BP = self.poi_side(torch.cat([poi_BI, *texts], dim=1))
        products = [self.user_side(user_BI) * poi_BP, self.recent_side(recent_BE) * poi_BP]
        embedded = self.dropout(torch.cat([user_BI, poi_BI, recent_BE, *texts, *products], dim=1))
        return Features(
            flat_BI=torch.cat([batch.numeric_BD, embedded], dim=1),
            poi_BP=poi_BP,
            scenario_B=batch.categorical_BF[:, 0],
            user_B=batch.categorical_BF[:, 1],
            poi_B=batch.categorical_BF[:, users],
            id_BFE=id_BFE,
            recent_BNE=recent_BNE,
            recent_age_BN=batch.recent_age_BN,
            recent_known_BN=known_BN,
            numeric_BD=batch.numeric_BD,
        )


def _side(inputs: int, width: int) -> nn.Module:
    """One side of a product: a linear map, or nothing of nothing."""
    return nn.Linear(inputs, width, bias=False) if width else _Nothing()


class _Nothing(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows[..., :0]


class RecentPooling(nn.Module):
    """Recent POIs weighted by their match with the candidate (as in DIN, Zhou et al. 2018) and by their age.

    weight_n = softmax over n and "nothing" of (q . k_n / sqrt(E) - d * log(1 + hours_n)); the score of "nothing" is
    learned, and a user without recent POIs gets a zero vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.decay = nn.Parameter(torch.tensor(0.1))
        self.nothing = nn.Parameter(torch.tensor(0.0))

    def forward(self, target_BE: Tensor, recent_BNE: Tensor, age_BN: Tensor, known_BN: Tensor) -> Tensor:
        match_BN = torch.einsum("be,bne->bn", self.query(target_BE), recent_BNE) * target_BE.shape[1] ** -0.5
        score_BN = (match_BN - self.decay * age_BN).masked_fill(~known_BN, -torch.inf)
        nothing_B1 = self.nothing.expand(len(score_BN), 1)
        weight_BN = torch.softmax(torch.cat([score_BN, nothing_B1], dim=1), dim=1)[:, :-1]
        return torch.einsum("bn,bne->be", weight_BN, recent_BNE)
