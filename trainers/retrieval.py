"""Training of the two towers on clicks, and how often the next click is among the first k POIs that they name.

Two rankings that anybody has without learning stand beside the towers in the same run: popularity (clicks of the 28
days before the day of the request) and nearby popularity (that, times exp(-distance / scale)). The scale is the best of
`SCALES_KM` for each k on the validation part, so that the bar is no straw man.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from feature_repo import columns, geo
from feature_repo.datasets.schema import Schema
from feature_repo.scenes import EVENT_TIME_US, fingerprints
from trainers import loop
from trainers.batch import Batch
from trainers.index import (
    IndexArtefact,
    IndexArtefactError,
    IndexConfig,
    IndexManifest,
    build_index,
    filter_columns,
)
from trainers.knowledge import VectorMatrix
from trainers.loop import FitConfig
from trainers.losses import Losses
from trainers.models.tower import Items, PoiTower, QueryTower, TowerConfig, TwoTower
from trainers.tower_inputs import TowerInputs, degrees

HIT_RATES_AT = (20, 50, 200)
POPULARITY_DAYS = 28
SCALES_KM = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DAY_US = 86_400_000_000
ROWS_AT_ONCE, SCORES_AT_ONCE = 2**16, 2**24

Scorer = Callable[[np.ndarray], np.ndarray]  # row numbers of clicks -> scores of all POIs, float (B, P)


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """One run: towers, index and training."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=20, batch_size=256, warmup_steps=10, patience=3, watch="log_likelihood"
        )
    )


@dataclass(frozen=True, kw_only=True)
class RetrievalData:
    """Pulls of a service, by time, with the POIs that may be retrieved.

    Args:
        pois: the source table of POIs.
        earlier: `poi_id` and `event_timestamp` of the clicks before `train`, which popularity counts too.
        text: vectors of POI texts, where the POI tower shall read them.
    """

    schema: Schema
    train: pa.Table = field(repr=False)
    valid: pa.Table = field(repr=False)
    test: pa.Table = field(repr=False)
    pois: pa.Table = field(repr=False)
    text: VectorMatrix | None = field(default=None, repr=False)
    earlier: pa.Table | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Clicks:
    """Clicks of one part: the request of each as a query, and the row of the POI that was clicked."""

    table: pa.Table
    query: Batch
    item_B: np.ndarray

    def __len__(self) -> int:
        return len(self.item_B)


def build(
    data: RetrievalData,
    config: RetrievalConfig,
    seed: int,
    progress: loop.Progress = lambda done, planned, note: None,
) -> IndexArtefact:
    """Train the towers, measure them once on the test part, and index all POIs.

    Args:
        progress: called with training steps done and steps at most.
    Raises:
        IndexArtefactError: a part without clicks, or clicked POIs that the POI table lacks.
        trainers.loop.TrainingError: a loss that is not finite.
    """
    filters = filter_columns(data.pois)
    inputs = TowerInputs.fit(data.train, data.pois, data.schema)
    trained_until = pc.max(data.train[columns.EVENT_TIMESTAMP])
    items = inputs.items(data.pois, data.text, pc.max(data.train[EVENT_TIME_US]).as_py())
    train, valid, test = (
        _clicks(name, table, inputs, data.pois)
        for name, table in (("train", data.train), ("valid", data.valid), ("test", data.test))
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        towers = _towers(config.tower, inputs, items, train, None if data.text is None else data.text.matrix)
    fit(towers, train, valid, config.fit, seed, progress)
    # The index serves the time after the log: POIs that opened since training have their text by then.
    served = inputs.items(data.pois, data.text, int(data.schema.split.end.timestamp() * 1e6))
    poi_PE, query_QE = embed_items(towers.poi, served), embed_queries(towers.query, valid.query)
    index, plan = build_index(poi_PE, query_QE, config.index)
    manifest = IndexManifest(
        dataset=data.schema.dataset,
        trained_until=trained_until.as_py().isoformat(),
        seed=seed,
        tower=config.tower,
        sizes=inputs.sizes,
        plan=plan,
        knowledge_versions={} if data.text is None else {data.text.space: data.text.version},
        scene_fingerprints=fingerprints(data.schema),
        metrics=hit_rate_report(towers, data, valid, test),
    )
    return IndexArtefact(manifest=manifest, inputs=inputs, tower=towers.query.eval(), index=index, pois=filters)


def fit(
    towers: TwoTower,
    train: Clicks,
    valid: Clicks,
    config: FitConfig,
    seed: int,
    progress: loop.Progress = lambda done, planned, note: None,
) -> loop.History:
    """Train in place; early stopping watches the likelihood of validation clicks among all POIs."""

    def measure() -> dict[str, float]:
        scorer, temperature = tower_scorer(towers, valid), float(towers.log_temperature.detach().exp())
        return {"log_likelihood": log_likelihood(scorer, valid, len(towers.items), temperature)}

    def objective(batch: Batch) -> Losses:
        return Losses(towers.loss(batch), {})

    return loop.fit(towers, objective, Shuffled(train.query), measure, config, seed=seed, progress=progress)


@dataclass(frozen=True)
class Shuffled:
    """A part in memory, in fully random order.

    `batches.InMemory` keeps the rows of a scene together. Here the other rows are the negatives: were they of the same
    scene, nothing of a scene could be learned from them, and log q would not be their probability.
    """

    whole: Batch

    def steps(self, size: int) -> int:
        return math.ceil(len(self.whole) / size)

    def sample(self) -> Batch:
        return self.whole

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        for rows in torch.randperm(len(self.whole), generator=generator).split(size):  # type: ignore[no-untyped-call]
            yield self.whole.rows(rows)


def hit_rate_report(towers: TwoTower, data: RetrievalData, valid: Clicks, test: Clicks) -> dict[str, Any]:
    """Share of test clicks whose POI is among the first k of all POIs, for the towers and for both popularities."""
    log = _click_log(data)
    n = len(data.pois)
    nearby: dict[str, float] = {}
    scales: dict[str, tuple[float, float]] = {}
    for scale_km in SCALES_KM:
        rates = hit_rates(ranks(popularity_scorer(log, valid, data.pois, scale_km), valid, n))
        scales = {k: max(scales.get(k, (0.0, scale_km)), (rate, scale_km)) for k, rate in rates.items()}
    for scale_km in {scale for _, scale in scales.values()}:
        rates = hit_rates(ranks(popularity_scorer(log, test, data.pois, scale_km), test, n))
        nearby.update({k: rate for k, rate in rates.items() if scales[k][1] == scale_km})
    return {
        "clicks": len(test),
        "pois": n,
        "hit_rate": {
            "towers": hit_rates(ranks(tower_scorer(towers, test), test, n)),
            "nearby_popularity": dict(sorted(nearby.items(), key=lambda item: int(item[0]))),
            "popularity": hit_rates(ranks(popularity_scorer(log, test, data.pois, None), test, n)),
        },
        "nearby_scale_km": {k: scale for k, (_, scale) in scales.items()},
    }


def ranks(scorer: Scorer, clicks: Clicks, items: int) -> np.ndarray:
    """How many of all POIs stand before the clicked one, float64 (B,); half of those with the same score count."""
    found = []
    for rows in _pieces(len(clicks), SCORES_AT_ONCE // items):
        scores = scorer(rows.numpy())
        own = np.take_along_axis(scores, clicks.item_B[rows][:, None], axis=1)
        found.append((scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2)
    return np.concatenate(found).astype(np.float64)


def log_likelihood(scorer: Scorer, clicks: Clicks, items: int, temperature: float) -> float:
    """Mean log of the softmax over all POIs of score / temperature, at the clicked one."""
    total = 0.0
    for rows in _pieces(len(clicks), SCORES_AT_ONCE // items):
        logits = torch.from_numpy(scorer(rows.numpy())) / temperature
        total -= float(F.cross_entropy(logits, torch.from_numpy(clicks.item_B[rows]), reduction="sum"))
    return total / len(clicks)


def hit_rates(rank_B: np.ndarray) -> dict[str, float]:
    """For each k of `HIT_RATES_AT`, as text: the share of ranks (0: first) below k."""
    return {str(k): float((rank_B < k).mean()) for k in HIT_RATES_AT}


def tower_scorer(towers: TwoTower, clicks: Clicks) -> Scorer:
    query_BE, poi_PE = embed_queries(towers.query, clicks.query), embed_items(towers.poi, towers.items)
    return lambda rows: query_BE[rows] @ poi_PE.T


def popularity_scorer(log: Mapping[str, np.ndarray], clicks: Clicks, pois: pa.Table, scale_km: float | None) -> Scorer:
    """Clicks + 1 on each POI in the 28 days before the day of the request, times exp(-distance / scale).

    Args:
        log: `time_us` (sorted) and `item` of every click.
        scale_km: None leaves the distance out, and so does a request without a place.
    """
    day_B = clicks.table[EVENT_TIME_US].to_numpy() // DAY_US
    popularity = {}
    for day in np.unique(day_B):
        first, last = np.searchsorted(log["time_us"], [(day - POPULARITY_DAYS) * DAY_US, day * DAY_US])
        popularity[day] = np.bincount(log["item"][first:last], minlength=len(pois)) + 1.0
    place_B2 = np.stack([degrees(clicks.table, n) for n in (columns.LATITUDE, columns.LONGITUDE)], axis=1)
    place_P2 = np.stack([degrees(pois, n) for n in (columns.POI_LATITUDE, columns.POI_LONGITUDE)], axis=1)

    def score(rows: np.ndarray) -> np.ndarray:
        popular_BP = np.stack([popularity[day] for day in day_B[rows]])
        if scale_km is None:
            return popular_BP
        latitude, longitude = place_B2[rows, 0], place_B2[rows, 1]
        km_BP = geo.distance_km(latitude[:, None], longitude[:, None], place_P2[None, :, 0], place_P2[None, :, 1])
        decay_BP = np.nan_to_num(np.exp(-km_BP / scale_km), nan=0.0)
        decay_BP[np.isnan(latitude + longitude)] = 1.0
        return popular_BP * decay_BP

    return score


@torch.inference_mode()
def embed_queries(tower: QueryTower, query: Batch) -> np.ndarray:
    """Unit vectors, float32 (B, E), of all rows of a query batch."""
    tower.eval()
    return torch.cat([tower(query.rows(rows)) for rows in _pieces(len(query), ROWS_AT_ONCE)]).numpy()


@torch.inference_mode()
def embed_items(tower: PoiTower, items: Items) -> np.ndarray:
    """Unit vectors, float32 (P, E)."""
    tower.eval()
    return torch.cat([tower(items.rows(rows)) for rows in _pieces(len(items), ROWS_AT_ONCE)]).numpy()


def _towers(config: TowerConfig, inputs: TowerInputs, items: Items, train: Clicks, text: np.ndarray | None) -> TwoTower:
    sizes = inputs.sizes
    poi = PoiTower(config, sizes, None if text is None else torch.from_numpy(text))
    if poi.text is not None:
        poi.text.fit(items.text_row_P)
    id_B = train.query.categorical_BF[:, len(sizes.user)]
    item_of_id_V: Tensor = torch.zeros(sizes.poi[0], dtype=torch.int64)
    item_of_id_V[id_B] = torch.from_numpy(train.item_B)
    count_V = torch.bincount(id_B, minlength=sizes.poi[0]).clamp_min(1)
    return TwoTower(
        QueryTower(config, sizes), poi, items, item_of_id_V, torch.log(count_V / len(train)), config.temperature
    )


def _clicks(name: str, table: pa.Table, inputs: TowerInputs, pois: pa.Table) -> Clicks:
    """The clicks of a part. Raises IndexArtefactError where there are none, or on a POI that the table lacks."""
    clicked = table.filter(pc.equal(table[columns.CLICK], 1)).combine_chunks()
    if not len(clicked):
        raise IndexArtefactError(f"the {name} part has no clicks: the towers need some; choose other borders in time")
    return Clicks(table=clicked, query=inputs.query(clicked), item_B=_item_rows(clicked, pois))


def _item_rows(table: pa.Table, pois: pa.Table) -> np.ndarray:
    """The row in the table of POIs of each row's POI, int64 (n,)."""
    found = pc.index_in(table[columns.POI_ID].cast(pa.string()), value_set=pois[columns.POI_ID].combine_chunks())
    if found.null_count:
        absent = table[columns.POI_ID].filter(pc.is_null(found))[0].as_py()
        raise IndexArtefactError(f"POI {absent!r} was clicked but is not in the table of POIs; add it there")
    return found.to_numpy().astype(np.int64)


def _click_log(data: RetrievalData) -> dict[str, np.ndarray]:
    """All clicks in time order; a scorer looks only at those before the day of its request."""
    parts = [t.filter(pc.equal(t[columns.CLICK], 1)) for t in (data.train, data.valid, data.test)]
    items, times = [_item_rows(part, data.pois) for part in parts], [part[EVENT_TIME_US].to_numpy() for part in parts]
    if data.earlier is not None:
        items.append(_item_rows(data.earlier, data.pois))
        times.append(data.earlier[columns.EVENT_TIMESTAMP].cast(pa.int64()).to_numpy())
    item, time_us = np.concatenate(items), np.concatenate(times)
    order = np.argsort(time_us, kind="stable")
    return {"time_us": time_us[order], "item": item[order]}


def _pieces(rows: int, size: int) -> Iterator[Tensor]:
    """0 .. rows - 1 in pieces of at most `size` (at least 1)."""
    return iter(torch.arange(rows).split(max(1, size)))  # type: ignore[no-untyped-call]
