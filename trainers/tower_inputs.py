"""What the two towers read: a `Batch` without a POI on one side, a table of POIs on the other.

The query's Batch comes from `Batch.from_arrow`, as every ranker's does; the table need not have POI columns. Its
numbers are those that hold whatever the POI is (of user and scenario), followed by the place code of the request.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from trainers.batch import Batch
from trainers.encoding import COUNT_NUMBERS, Encoding, kept_statistics
from trainers.knowledge import VectorMatrix
from trainers.models.tower import Items, TowerSizes

KM_PER_DEGREE = 111.195
WAVELENGTHS_KM = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
DIRECTIONS = 4
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
USUAL_COUNTS = tuple((owner, days) for owner in columns.USUAL_STATISTICS for days in columns.WINDOW_DAYS)
POI_FREE_OWNERS = tuple(
    o for o, keys in columns.STATISTICS.items() if keys in ((columns.USER_ID,), (columns.SCENARIO_ID,))
)


@dataclass(frozen=True)
class PlaceFrame:
    """A flat map around one point, and waves across it: positions as numbers whose inner product tells distance.

    Each wavelength runs in `DIRECTIONS` directions, turned from one wavelength to the next so that together they cover
    the circle. Flat-map distances are right to about 1 % within 100 km of the origin (degrees).
    """

    latitude: float
    longitude: float

    def code(self, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
        """Degrees (n,) -> float32 (n, G): cosines, then sines, of length 1 in all; zeros where a coordinate is NaN."""
        north_km = (latitude - self.latitude) * KM_PER_DEGREE
        east = (longitude - self.longitude + 180.0) % 360.0 - 180.0
        east_km = east * KM_PER_DEGREE * math.cos(math.radians(self.latitude))
        steps = np.arange(DIRECTIONS)[None, :] + np.arange(len(WAVELENGTHS_KM))[:, None] * GOLDEN_RATIO
        angle = (np.pi * steps / DIRECTIONS).ravel()
        frequency = np.repeat(2 * np.pi / np.array(WAVELENGTHS_KM), DIRECTIONS)
        phase = north_km[:, None] * (np.sin(angle) * frequency) + east_km[:, None] * (np.cos(angle) * frequency)
        code = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / math.sqrt(len(frequency))
        return np.nan_to_num(code, nan=0.0).astype(np.float32)

    @staticmethod
    def fit(pois: pa.Table) -> PlaceFrame | None:
        """Around the median of the POIs' coordinates; None where no POI has any."""
        latitude, longitude = (degrees(pois, name) for name in (columns.POI_LATITUDE, columns.POI_LONGITUDE))
        known = ~(np.isnan(latitude) | np.isnan(longitude))
        if not known.any():
            return None
        return PlaceFrame(float(np.median(latitude[known])), float(np.median(longitude[known])))


@dataclass(frozen=True)
class TowerInputs:
    """The fitted meaning of all that both towers read; plain data that travels in the index artefact as JSON."""

    encoding: Encoding
    frame: PlaceFrame | None

    @staticmethod
    def fit(train: pa.Table, pois: pa.Table, schema: Schema) -> TowerInputs:
        """Fit on a pull of history and train rows, and on the places of all POIs."""
        return TowerInputs(Encoding.fit(train, schema), PlaceFrame.fit(pois))

    def query(self, table: pa.Table) -> Batch:
        """The query tower's Batch of n rows of a pull or an online read; POI columns are not needed."""
        batch = Batch.from_arrow(
            with_nulls(table, self.encoding.vocabularies, kept_statistics(self.encoding.scalers, COUNT_NUMBERS)),
            self.encoding,
        )
        numbers = batch.numeric_BD[:, self._poi_free_numbers()]
        if self.frame is not None:
            code = self.frame.code(degrees(table, columns.LATITUDE), degrees(table, columns.LONGITUDE))
            numbers = torch.cat([numbers, torch.from_numpy(code)], dim=1)
        return replace(batch, numeric_BD=numbers)

    def items(self, pois: pa.Table, text: VectorMatrix | None, time_us: int) -> Items:
        """The POI tower's input for all rows of a POI table, with the text vectors available at `time_us`."""
        encoding, n = self.encoding, len(pois)
        ids = [encoding.vocabularies[name].ids(pois[name]) for name in encoding.poi_columns]
        place = np.zeros((n, 0), dtype=np.float32)
        if self.frame is not None:
            place = self.frame.code(degrees(pois, columns.POI_LATITUDE), degrees(pois, columns.POI_LONGITUDE))
        text_row = (
            np.zeros(n, dtype=np.int64) if text is None else text.rows_at(pois[columns.POI_ID], np.full(n, time_us))
        )
        return Items(
            categorical_PF=torch.from_numpy(np.stack(ids, axis=1)),
            place_PG=torch.from_numpy(place),
            text_row_P=torch.from_numpy(text_row),
        )

    @property
    def sizes(self) -> TowerSizes:
        encoding = self.encoding
        return TowerSizes(
            user=encoding.cardinalities(encoding.user_columns),
            scene=encoding.cardinalities([columns.scene(name) for name in encoding.scene_features]),
            poi=encoding.cardinalities(encoding.poi_columns),
            numbers=len(self._poi_free_numbers()),
            place=0 if self.frame is None else 2 * len(WAVELENGTHS_KM) * DIRECTIONS,
        )

    def to_json(self) -> str:
        frame = None if self.frame is None else [self.frame.latitude, self.frame.longitude]
        return json.dumps({"encoding": json.loads(self.encoding.to_json()), "frame": frame}, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> TowerInputs:
        """Raises ValueError or KeyError for what these are not."""
        raw = json.loads(text)
        frame = None if raw["frame"] is None else PlaceFrame(*(float(degree) for degree in raw["frame"]))
        if frame is not None and not (abs(frame.latitude) <= 90 and abs(frame.longitude) <= 180):
            raise ValueError(f"the frame's origin must lie on the globe, is {raw['frame']}")
        return TowerInputs(Encoding.from_json(json.dumps(raw["encoding"])), frame)

    def _poi_free_numbers(self) -> list[int]:
        """Which numbers of the encoding say nothing of the POI."""
        poi_free = re.compile(rf"({'|'.join(POI_FREE_OWNERS)})_(log|click|order)_|log_hours_since_order$")
        return [i for i, name in enumerate(self.encoding.scalers) if poi_free.match(name)]


def with_nulls(table: pa.Table, ids: Iterable[str], kept: Iterable[tuple[str, int]] = USUAL_COUNTS) -> pa.Table:
    """The table with nulls in every column of `Batch.from_arrow` that it lacks.

    Args:
        ids: names the columns of strings.
        kept: owner and window in days of the statistics.
    """
    counts = (columns.statistic(owner, count, days) for owner, days in kept for count in columns.COUNTS)
    places = (columns.LATITUDE, columns.LONGITUDE, columns.POI_LATITUDE, columns.POI_LONGITUDE)
    types: Mapping[str, pa.DataType] = {
        **dict.fromkeys((*ids, columns.OPEN_HOURS), pa.string()),
        **dict.fromkeys((*counts, *places, columns.LAST_ORDER_TIME, columns.LIKE_MINDED), pa.float64()),
        columns.RECENT_POIS: pa.list_(pa.string()),
        columns.RECENT_TIMES: pa.list_(pa.int64()),
    }
    for name, dtype in types.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), dtype))
    return table


def degrees(table: pa.Table, name: str) -> np.ndarray:
    """A coordinate column, float64 (n,), NaN where it is null or absent."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return pc.fill_null(table[name].cast(pa.float64()), np.nan).to_numpy()
