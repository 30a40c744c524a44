"""How old the values of every view are, in its source and in the online store, and whether that is as was promised.

A view promises by a tag (`columns.FRESH_WITHIN`) that its newest value is no older than so long; a view without one
promises nothing: attributes change when they change. Ages are those of the newest value of each entity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from feast import FeatureStore, FeatureView
from feast.utils import _get_column_names
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from feature_repo import columns
from feature_repo.stores.duck import DuckConfig, relation_of
from feature_repo.stores.latest import LatestJob
from feature_repo.stores.packed import PackedOnlineStore, micros_of
from serving.stages import BEGINNING

Side = Literal["offline", "online"]
QUANTILES = (0.0, 0.5, 0.99)  # of ages: the newest value, the middle one, nearly the oldest


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """One view on one side.

    Attributes:
        entities: that have a value.
        ages_s: seconds at `QUANTILES`; empty where there is no value.
        stale: share of the entities whose value has outlived its time to live.
        within_s: what the view promises; None: nothing.
    """

    view: str
    side: Side
    entities: int
    ages_s: tuple[float, ...]
    stale: float
    within_s: float | None

    @property
    def late(self) -> bool:
        """Whether a promise is broken; a view without any value breaks it too."""
        return self.within_s is not None and (not self.ages_s or self.ages_s[0] > self.within_s)


def measure(store: FeatureStore, at: datetime) -> Iterator[Freshness]:
    """Every view that is served online, in alphabetical order: its source as of `at`, then the online store.

    Only packed stores tell how old their records are; of others there is the offline side alone.
    """
    online = store._get_provider().online_store
    for view in sorted(store.list_batch_feature_views(), key=lambda v: v.name):
        if view.online:
            yield _of(view, "offline", offline_times(store, view, at), at)
            if isinstance(online, PackedOnlineStore):
                yield _of(view, "online", online.times(store.config, online.prepare(store.config, view).table), at)


def offline_times(store: FeatureStore, view: FeatureView, at: datetime) -> np.ndarray:
    """Event time of each entity's newest row at or before `at`, int64 microseconds."""
    keys, _, time, _ = _get_column_names(view, [store.get_entity(name) for name in view.entities])
    job = LatestJob(
        relation=relation_of(view.batch_source, str(store.config.repo_path)),
        keys=keys,
        features=(),
        time=time,
        created=None,
        between=(BEGINNING, at),
        config=DuckConfig(),
    )
    return micros_of(job.to_arrow()[time])


def _of(view: FeatureView, side: Side, times_us: np.ndarray, at: datetime) -> Freshness:
    ages_s = at.timestamp() - times_us / 1e6
    promised = view.tags.get(columns.FRESH_WITHIN)
    ttl_s = view.ttl.total_seconds() if view.ttl else np.inf
    return Freshness(
        view=view.name,
        side=side,
        entities=len(ages_s),
        ages_s=tuple(np.quantile(ages_s, QUANTILES).tolist()) if len(ages_s) else (),
        stale=float((ages_s > ttl_s).mean()) if len(ages_s) else 0.0,
        within_s=None if promised is None else pd.Timedelta(promised).total_seconds(),
    )


def export(found: Sequence[Freshness], path: Path) -> None:
    """Write gauges as Prometheus' text, for the textfile collector of a node exporter; the whole file at once."""
    registry = CollectorRegistry()
    labels: Any = ("view", "side")
    ages = Gauge("scenerank_view_age_seconds", "Age of values.", (*labels, "quantile"), registry=registry)
    entities = Gauge("scenerank_view_entities", "Entities with a value.", labels, registry=registry)
    stale = Gauge("scenerank_view_stale_share", "Entities whose value expired.", labels, registry=registry)
    late = Gauge("scenerank_view_late", "1 where the newest value is older than promised.", labels, registry=registry)
    for one in found:
        for quantile, age in zip(QUANTILES, one.ages_s, strict=False):
            ages.labels(one.view, one.side, str(quantile)).set(age)
        entities.labels(one.view, one.side).set(one.entities)
        stale.labels(one.view, one.side).set(one.stale)
        late.labels(one.view, one.side).set(one.late)
    write_to_textfile(str(path), registry)
