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
from trainers.encoding import Encoding, derive_numbers, log_hours, recent_clicks

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
    def from_arrow(table: pa.Table, encoding: Encoding) -> Batch:
        """Encode n rows of a pull or of an online read; the labels are taken where the table has them.

        Raises KeyError for a column that the encoding needs and the table lacks.
        """
        categorical = [encoding.vocabularies[name].ids(table[name]) for name in encoding.categorical_columns]
        numbers = derive_numbers(table, encoding.timezone, encoding.rates, encoding.near_km)
        numeric = [scaler.scale(numbers[name]) for name, scaler in encoding.scalers.items()]
        recent_poi, recent_age = _recent(table, encoding)
        scene_of_row, scene_id, scene_row = _scenes(table, encoding)
        labels = [table[n].to_numpy().astype(np.float32) if n in table.column_names else None for n in columns.LABELS]
        text_rows = [_matrix_rows(table, columns.knowledge(space, columns.ROW)) for space in encoding.text_spaces]
        return Batch(
            categorical_BF=torch.from_numpy(np.stack(categorical, axis=1)),
            numeric_BD=torch.from_numpy(np.stack(numeric, axis=1)),
            recent_poi_BN=torch.from_numpy(recent_poi),
            recent_age_BN=torch.from_numpy(recent_age),
            text_row_BK=torch.from_numpy(_stack(text_rows, len(table))),
            scene_of_row_B=torch.from_numpy(scene_of_row),
            scene_id_US=torch.from_numpy(scene_id),
            scene_row_US=torch.from_numpy(scene_row),
            click_B=None if labels[0] is None else torch.from_numpy(labels[0]),
            order_B=None if labels[1] is None else torch.from_numpy(labels[1]),
            **_lists(table),
        )


def _lists(table: pa.Table) -> dict[str, Tensor]:
    """Which rows are one request's, and log q of each (0 where nothing is said), where the table has requests."""
    if columns.REQUEST_ID not in table.column_names:
        return {}
    request = table[columns.REQUEST_ID].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    q = np.ones(len(table))
    if columns.PROPENSITY in table.column_names:
        q = pc.fill_null(table[columns.PROPENSITY].cast(pa.float64()), 1.0).to_numpy()
    return {"request_B": torch.from_numpy(request), "log_q_B": torch.from_numpy(np.log(q).astype(np.float32))}


def _recent(table: pa.Table, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log ages, (B, N) each, of the lists of recent POIs, cut or padded to `columns.RECENT_LENGTH`."""
    shape = (len(table), columns.RECENT_LENGTH)
    ids, ages = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    row, pois, times = recent_clicks(table)
    first = np.searchsorted(row, np.arange(len(table)))
    slot = np.arange(len(row)) - first[row]
    kept = slot < columns.RECENT_LENGTH
    age_us = table[EVENT_TIME_US].to_numpy()[row] - times
    ids[row[kept], slot[kept]] = encoding.vocabularies[columns.POI_ID].ids(pois)[kept]
    ages[row[kept], slot[kept]] = log_hours(age_us.astype(np.float64)).astype(np.float32)[kept]
    return ids, ages


def _scenes(table: pa.Table, encoding: Encoding) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which scene each row has (B,), and ids and matrix rows (U, S) of the distinct scenes, in sorted order."""
    names = encoding.scene_features
    ids = [encoding.vocabularies[columns.scene(name)].ids(table[columns.scene(name)]) for name in names]
    rows = [_matrix_rows(table, columns.scene_row(name)) for name in names]
    both = np.concatenate([_stack(ids, len(table)), _stack(rows, len(table))], axis=1)
    distinct, scene_of_row = np.unique(both, axis=0, return_inverse=True)
    return scene_of_row.reshape(-1).astype(np.int64), distinct[:, : len(names)].copy(), distinct[:, len(names) :].copy()


def _matrix_rows(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.zeros(len(table), dtype=np.int64)
    return pc.fill_null(table[name].cast(pa.int64()), 0).to_numpy()


def _stack(vectors: list[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(vectors, axis=1) if vectors else np.zeros((rows, 0), dtype=np.int64)
