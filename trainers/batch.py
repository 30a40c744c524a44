"""Batch: the frozen, shape-named tensors that every ranker takes, built by one function offline and online.

Letters: B rows (one user, POI and moment each), F categorical columns, D numbers, N recent POIs, K text spaces,
U distinct scenes among the rows, S scene slots. A scene stands once per batch however many rows share it, so a scene
encoder runs once per request, and rows with the same `scene_of_row_B` have the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from feature_repo import columns
from feature_repo.scenes import EVENT_TIME_US
from trainers.encoding import Encoding, derive_numbers, log_hours, recent_clicks, standardised
from trainers.rows import Rows

# What is learned from, not known: absent from a request that is to be answered.
OUTCOMES = ("click_B", "order_B", "request_B", "log_q_B")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a ranker knows of B rows. Ids are dense (0: unknown); rows point into vector matrices (0: no vector)."""

    categorical_BF: Tensor  # int64, columns in the order of Encoding.categorical_columns
    numeric_BD: Tensor  # float32, standardised
    recent_poi_BN: Tensor  # int64 POI ids, newest first, 0 beyond the end
    recent_age_BN: Tensor  # float32, log(1 + hours) since each click, 0 beyond the end
    text_row_BK: Tensor  # int64 rows of the matrices of Encoding.text_spaces
    scene_of_row_B: Tensor  # int64, which of the U scenes a row has
    scene_id_US: Tensor  # int64 ids of scene values
    scene_row_US: Tensor  # int64 rows of the scene matrix
    click_B: Tensor | None = None  # float32 0/1
    order_B: Tensor | None = None  # float32 0/1, unconditional: click and order
    request_B: Tensor | None = None  # int64, rows of one request have the same number
    log_q_B: Tensor | None = None  # float32, log of the probability with which a row came into its request's list

    def __len__(self) -> int:
        return len(self.categorical_BF)

    def rows(self, index: Tensor) -> Batch:
        """The batch of the chosen rows (int64 or bool index); scenes that none of them has are dropped."""
        used, scene_of_row = torch.unique(self.scene_of_row_B[index], return_inverse=True)
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {name: v[index] if v is not None and "_B" in name else v for name, v in chosen.items()}
        chosen["scene_of_row_B"] = scene_of_row
        chosen["scene_id_US"] = self.scene_id_US[used]
        chosen["scene_row_US"] = self.scene_row_US[used]
        return Batch(**chosen)

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in moved.items() if v is not None})

    @staticmethod
    def from_arrow(table: pa.Table | Rows, encoding: Encoding) -> Batch:
        """Encode n rows of a pull or of an online read; the labels are taken where the table has them.

        Raises KeyError for a column that the encoding needs and the table lacks.
        """
        rows = Rows.of(table)
        n = len(rows)
        categorical = [encoding.vocabularies[name].ids(rows[name]) for name in encoding.categorical_columns]
        numbers = derive_numbers(rows, encoding.timezone, encoding.rates, encoding.near_km)
        recent_poi, recent_age = _recent(rows, encoding)
        scene_of_row, scene_id, scene_row = _scenes(rows, encoding)
        labels = [rows[m].to_numpy().astype(np.float32) if m in rows.columns else None for m in columns.LABELS]
        text_rows = [_matrix_rows(rows, columns.knowledge(space, columns.ROW)) for space in encoding.text_spaces]
        return Batch(
            categorical_BF=torch.from_numpy(_beside(categorical, n)),
            numeric_BD=torch.from_numpy(standardised(numbers, encoding.scalers, n)),
            recent_poi_BN=torch.from_numpy(recent_poi),
            recent_age_BN=torch.from_numpy(recent_age),
            text_row_BK=torch.from_numpy(_beside(text_rows, n)),
            scene_of_row_B=torch.from_numpy(scene_of_row),
            scene_id_US=torch.from_numpy(scene_id),
            scene_row_US=torch.from_numpy(scene_row),
            click_B=None if labels[0] is None else torch.from_numpy(labels[0]),
            order_B=None if labels[1] is None else torch.from_numpy(labels[1]),
            **_lists(rows),
        )


def _lists(rows: Rows) -> dict[str, Tensor]:
    """Which rows are one request's, and log q of each (0 where nothing is said), where the table has requests."""
    if columns.REQUEST_ID not in rows.columns:
        return {}
    request = rows[columns.REQUEST_ID].dictionary_encode().indices.to_numpy().astype(np.int64)
    q = np.ones(len(rows))
    if columns.PROPENSITY in rows.columns:
        q = pc.fill_null(rows[columns.PROPENSITY].cast(pa.float64()), 1.0).to_numpy()
    return {"request_B": torch.from_numpy(request), "log_q_B": torch.from_numpy(np.log(q).astype(np.float32))}


def _recent(rows: Rows, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log ages, (B, N) each, of the lists of recent POIs, cut or padded to `columns.RECENT_LENGTH`."""
    event_us = rows[EVENT_TIME_US].to_numpy()
    lists = max(len(rows[columns.RECENT_POIS]), len(event_us))
    row, pois, times = recent_clicks(rows, spread=lists > 1)
    ids = np.zeros((lists, columns.RECENT_LENGTH), dtype=np.int64)
    ages = np.zeros((lists, columns.RECENT_LENGTH), dtype=np.float32)
    first = np.searchsorted(row, np.arange(lists))
    slot = np.arange(len(row)) - first[row]
    kept = slot < columns.RECENT_LENGTH
    age_us = np.broadcast_to(event_us, lists)[row] - times
    ids[row[kept], slot[kept]] = encoding.vocabularies[columns.POI_ID].ids(pois)[kept]
    ages[row[kept], slot[kept]] = log_hours(age_us.astype(np.float64)).astype(np.float32)[kept]
    shape = (len(rows), columns.RECENT_LENGTH)
    return np.broadcast_to(ids, shape).copy(), np.broadcast_to(ages, shape).copy()


def _scenes(rows: Rows, encoding: Encoding) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which scene each row has (B,), and ids and matrix rows (U, S) of the distinct scenes, in sorted order."""
    names = encoding.scene_features
    ids = [encoding.vocabularies[columns.scene(name)].ids(rows[columns.scene(name)]) for name in names]
    matrix_rows = [_matrix_rows(rows, columns.scene_row(name)) for name in names]
    given = max((len(column) for column in ids + matrix_rows), default=len(rows))  # one, where all share their scene
    both = np.concatenate([_beside(ids, given), _beside(matrix_rows, given)], axis=1)
    distinct, scene_of_row = (both, np.zeros(1)) if given == 1 else np.unique(both, axis=0, return_inverse=True)
    of_row = np.broadcast_to(scene_of_row.reshape(-1), len(rows)).astype(np.int64)
    return of_row, distinct[:, : len(names)].copy(), distinct[:, len(names) :].copy()


def _matrix_rows(rows: Rows, name: str) -> np.ndarray:
    if name not in rows.columns:
        return np.zeros(1, dtype=np.int64)
    if len(rows[name]) == 1:
        return np.array([rows[name][0].as_py() or 0], dtype=np.int64)
    return pc.fill_null(rows[name].cast(pa.int64()), 0).to_numpy()


def _beside(vectors: list[np.ndarray], n: int) -> np.ndarray:
    """int64 (n, k), of k columns of n ids, or of one that all rows share."""
    joined = np.empty((n, len(vectors)), dtype=np.int64)
    for at, vector in enumerate(vectors):
        joined[:, at] = vector
    return joined
