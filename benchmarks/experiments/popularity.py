"""Popularity: a ranking by how often each POI was clicked, and ordered, for each time that training showed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """In a recipe's place.

    Args:
        prior: impressions at the overall rate that every POI is given beside its own.
    """

    name: str = "popularity"
    prior: float = 20.0


def scores(train: pa.Table, asked: pa.Table, rule: Popularity) -> tuple[np.ndarray, np.ndarray]:
    """Clicks, and orders, an impression of each asked row's POI in training, smoothed: float64 (n,) each."""
    counts = train.group_by(columns.POI_ID).aggregate(
        [(columns.POI_ID, "count"), *((n, "sum") for n in columns.LABELS)]
    )
    at = pc.index_in(asked[columns.POI_ID].cast(pa.string()), value_set=counts[columns.POI_ID].combine_chunks())
    shown = _taken(counts[f"{columns.POI_ID}_count"], at)
    found = []
    for label in columns.LABELS:
        overall = pc.mean(train[label]).as_py()
        found.append((_taken(counts[f"{label}_sum"], at) + rule.prior * overall) / (shown + rule.prior))
    return found[0], found[1]


def _taken(values: pa.ChunkedArray, at: pa.ChunkedArray) -> np.ndarray:
    """The value at each place, 0 where there is none."""
    taken: np.ndarray = pc.fill_null(values.take(at), 0).to_numpy().astype(np.float64)
    return taken
