"""Two towers: a user in a moment, and a POI, as unit vectors whose inner product says how likely the next click is.

Letters: B queries, P POIs (items), F categorical columns, N recent POIs, S scene slots, G place-code numbers (two for
each spatial frequency), E width of the common space.

A vector is [taste | place], scaled to length 1. The place part is a code of random-Fourier kind (Rahimi & Recht 2007):
cosines and sines of the position at several wavelengths, so that the inner product of two codes depends on nothing but
the displacement between user and POI. The query tower weighs each wavelength: it decides how much nearness counts now.

Training: softmax over the POIs of the batch with log-q correction (Yi et al. 2019, "Sampling-bias-corrected neural
modeling for large corpus item recommendations").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.batch import Batch
from trainers.models.embedding import FrozenVectors, FusedEmbedding


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The choices of one pair of towers.

    Args:
        embedding: width of one categorical embedding.
        hidden: width of the one hidden layer of each tower.
        taste: width of the taste part of a vector; the place part adds the width of the place code.
        temperature: where the learned divisor of inner products starts.
        unknown_rate: share of ids that training replaces by the unknown id, so that users and POIs that training
            never saw are told by their other columns.
        text: width that the POI's text vector is projected to, where there is one.
    """

    embedding: int = 16
    hidden: int = 128
    taste: int = 64
    temperature: float = 0.1
    unknown_rate: float = 0.3
    text: int = 32


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """What the data dictate: numbers of ids (the unknown one included) and widths. The POI id is the first POI column.

    Args:
        numbers: numeric columns of a query before its place code.
        place: width of the place code, 0 where POIs have no coordinates.
    """

    user: tuple[int, ...]
    scene: tuple[int, ...]
    poi: tuple[int, ...]
    numbers: int
    place: int


@dataclass(frozen=True, kw_only=True)
class Items:
    """What the POI tower knows of P POIs; static between two builds of an index."""

    categorical_PF: Tensor  # int64
    place_PG: Tensor  # float32 place code, zeros where the POI has no coordinates
    text_row_P: Tensor  # int64 rows of the matrix of POI texts, 0: no vector

    def __len__(self) -> int:
        return len(self.categorical_PF)

    def rows(self, index: Tensor) -> Items:
        return Items(
            categorical_PF=self.categorical_PF[index],
            place_PG=self.place_PG[index],
            text_row_P=self.text_row_P[index],
        )


class QueryTower(nn.Module):
    """User columns, scenario, scene, recent clicks, numbers and place of B requests -> unit vectors (B, E).

    The `Batch` is one of `trainers.tower_inputs`: its numbers are [numbers | place code].
    """

    def __init__(self, config: TowerConfig, sizes: TowerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.ids = FusedEmbedding((*sizes.user, *sizes.scene), config.embedding, unknown_rate=config.unknown_rate)
        self.recent = FusedEmbedding(sizes.poi[:1], config.embedding)
        self.decay = nn.Parameter(torch.zeros(()))
        inputs = (len(sizes.user) + len(sizes.scene) + 1) * config.embedding + sizes.numbers
        self.hidden = nn.Linear(inputs, config.hidden)
        self.taste = nn.Linear(config.hidden, config.taste)
        self.reach = nn.Linear(config.hidden, sizes.place // 2) if sizes.place else None
        self.width = config.taste + sizes.place

    def forward(self, batch: Batch) -> Tensor:
        """(B, E), L2-normalised."""
        sizes = self.sizes
        ids_BF = torch.cat([batch.categorical_BF[:, : len(sizes.user)], batch.scene_id_US[batch.scene_of_row_B]], dim=1)
        embedded_BFD = self.ids(ids_BF)
        numbers_BD, place_BG = batch.numeric_BD[:, : sizes.numbers], batch.numeric_BD[:, sizes.numbers :]
        hidden_BH = F.relu(self.hidden(torch.cat([embedded_BFD.flatten(1), self._recent(batch), numbers_BD], dim=1)))
        taste_BE = F.normalize(self.taste(hidden_BH), dim=1)
        if self.reach is None:
            return taste_BE
        reach_BG = F.softplus(self.reach(hidden_BH)).repeat(1, 2)
        return F.normalize(torch.cat([taste_BE, reach_BG * place_BG], dim=1), dim=1)

    def _recent(self, batch: Batch) -> Tensor:
        """(B, D): the recent POIs' embeddings, the older the lighter; zeros for a user without any."""
        known_BN = batch.recent_poi_BN > 0
        weight_BN = torch.exp(-F.softplus(self.decay) * batch.recent_age_BN) * known_BN
        weight_BN = weight_BN / weight_BN.sum(dim=1, keepdim=True).clamp_min(1e-12)
        embedded_BND = self.recent.column(0, batch.recent_poi_BN)
        return (weight_BN[:, :, None] * embedded_BND).sum(dim=1)


class PoiTower(nn.Module):
    """Columns, text vector and place of P POIs -> unit vectors (P, E).

    Args:
        text_RV: the matrix of POI texts' vectors, row 0 missing; None without them.
    """

    def __init__(self, config: TowerConfig, sizes: TowerSizes, text_RV: Tensor | None) -> None:
        super().__init__()
        self.ids = FusedEmbedding(sizes.poi, config.embedding, unknown_rate=config.unknown_rate)
        self.text = None if text_RV is None else FrozenVectors(text_RV, config.text)
        inputs = len(sizes.poi) * config.embedding + (0 if text_RV is None else config.text)
        self.hidden = nn.Linear(inputs, config.hidden)
        self.taste = nn.Linear(config.hidden, config.taste)

    def forward(self, items: Items) -> Tensor:
        """(P, E), L2-normalised."""
        known_PI = self.ids(items.categorical_PF).flatten(1)
        if self.text is not None:
            known_PI = torch.cat([known_PI, self.text(items.text_row_P)], dim=1)
        taste_PE = F.normalize(self.taste(F.relu(self.hidden(known_PI))), dim=1)
        return F.normalize(torch.cat([taste_PE, items.place_PG], dim=1), dim=1)


class TwoTower(nn.Module):
    """Both towers while they train: clicked impressions in, loss out.

    Args:
        items: all POIs.
        item_of_id_V: int64, the row in `items` of each id of the POI vocabulary (row 0, the unknown id, is never used).
        log_q_V: float32, log of the share of training clicks that each id of the POI vocabulary has.
    """

    item_of_id_V: Tensor
    log_q_V: Tensor

    def __init__(
        self, query: QueryTower, poi: PoiTower, items: Items, item_of_id_V: Tensor, log_q_V: Tensor, temperature: float
    ) -> None:
        super().__init__()
        self.query = query
        self.poi = poi
        self.items = items
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.register_buffer("item_of_id_V", item_of_id_V, persistent=False)
        self.register_buffer("log_q_V", log_q_V, persistent=False)

    def loss(self, batch: Batch) -> Tensor:
        """Mean sampled-softmax loss of B clicked impressions, whose POIs are in the vocabulary."""
        id_B = batch.categorical_BF[:, len(self.query.sizes.user)]
        poi_BE = self.poi(self.items.rows(self.item_of_id_V[id_B]))
        return sampled_softmax(self.query(batch), poi_BE, id_B, self.log_q_V[id_B], self.log_temperature.exp())


def sampled_softmax(
    query_BE: Tensor, poi_BE: Tensor, poi_id_B: Tensor, log_q_B: Tensor, temperature: Tensor | float
) -> Tensor:
    """Cross-entropy of each query's own POI among all POIs, estimated from the POIs of the batch.

    The softmax over all POIs has the denominator e^s_own + sum of e^s over the others. A POI other than one's own is in
    the batch (B - 1) q times on average, so its e^s counts divided by that: log q, and log (B - 1), come off its logit
    (Yi et al. 2019, equation 5). One's own is there once, for certain, and is not corrected (Khrylchenko et al. 2025,
    "Correcting the LogQ Correction"); further copies of it are accidental hits and are left out. That makes the
    denominator unbiased, which matters where the pool is so small that a batch holds a popular POI many times.

    Args:
        query_BE, poi_BE: vectors of B clicks, row i of one belongs to row i of the other.
        poi_id_B: int64 ids, equal where POIs are equal.
        log_q_B: log of the probability that a random click is on this POI.
        temperature: divides the inner products; > 0.
    """
    rows = len(poi_id_B)
    own_BB = torch.eye(rows, dtype=torch.bool, device=poi_id_B.device)
    copy_BB = (poi_id_B[:, None] == poi_id_B[None, :]) & ~own_BB
    logits_BB = query_BE @ poi_BE.T / temperature
    corrected_BB = (logits_BB - log_q_B - math.log(max(rows - 1, 1))).masked_fill(copy_BB, -torch.inf)
    return F.cross_entropy(torch.where(own_BB, logits_BB, corrected_BB), torch.arange(rows, device=poi_id_B.device))
