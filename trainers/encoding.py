"""What a ranker learns before its first step: vocabularies and scalers, fitted on history and train only.

An `Encoding` turns the named columns of a pull (or of an online read) into dense ids and standardised numbers. It is
plain data: it travels in the bundle as JSON and it is all that `Batch.from_arrow` needs beside the table.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns, geo, hours
from feature_repo.datasets.schema import Schema
from feature_repo.scenes import EVENT_TIME_US, features_of
from trainers.plain import from_plain
from trainers.rows import Rows

FEW = 512  # values: up to so many, as of a request, are looked up sooner than Arrow has indexed the vocabulary
UNKNOWN = 0  # the id of a value that is missing or was not seen in training
# The numbers made of one owner's counts in one window.
COUNT_NUMBERS = ("log_impressions", "log_clicks", "click_rate", "order_rate")
LIKE_MINDED_UNIT = 0.02  # scores well below are alike
RATE_PRIOR_COUNT = 20.0  # a rate from few events is drawn towards the overall rate with this weight


@dataclass(frozen=True)
class Vocabulary:
    """Known values of one column; the i-th has id i + 1, everything else has id 0."""

    values: tuple[str, ...]

    @cached_property
    def _value_set(self) -> pa.Array:
        return pa.array(self.values, pa.string())

    def __len__(self) -> int:
        """The number of ids, the unknown one included."""
        return len(self.values) + 1

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {value: at for at, value in enumerate(self.values, start=1)}

    def ids(self, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Ids, int64 (n,), of n strings or nulls."""
        if len(values) <= FEW and values.type == pa.string():
            return np.array([self._id_of.get(value, UNKNOWN) for value in values.to_pylist()], dtype=np.int64)
        found = pc.fill_null(pc.index_in(values.cast(pa.string()), value_set=self._value_set), -1)
        return found.to_numpy().astype(np.int64) + 1

    @staticmethod
    def fit(values: pa.ChunkedArray, minimum_count: int = 1) -> Vocabulary:
        """All values seen at least `minimum_count` times, in alphabetical order (so that ids do not depend on rows)."""
        counts = pc.drop_null(values.cast(pa.string()).combine_chunks()).value_counts()
        frequent = counts.filter(pc.greater_equal(counts.field("counts"), minimum_count)).field("values")
        return Vocabulary(tuple(sorted(frequent.to_pylist())))


@dataclass(frozen=True)
class Scaler:
    """Mean, standard deviation and range of one number.

    What lies outside of the range is taken as its end: nothing was learnt of numbers out there, and a network goes on
    in a straight line. Counts of a scenario may grow a hundred deviations in a month.
    """

    mean: float
    std: float
    low: float
    high: float

    @staticmethod
    def fit(values: np.ndarray) -> Scaler:
        known = values[~np.isnan(values)]
        if not len(known):
            return Scaler(0.0, 1.0, 0.0, 0.0)
        std = float(known.std())
        return Scaler(float(known.mean()), std if std > 1e-9 else 1.0, float(known.min()), float(known.max()))


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The fitted meaning of every column that one ranker reads, in the order of its tensors.

    Attributes:
        user_columns, poi_columns: categorical columns of the user (and scenario) and of the POI, in tensor order.
        scene_features: scene slots, in tensor order.
        text_spaces: knowledge spaces of the impression itself (POI, user, scenario), in tensor order.
        rates: overall click rate and order-given-click rate of the fitted part, the prior of smoothed rates.
        near_km: the unit of distances, as `Schema.near_km`.
    """

    timezone: str
    user_columns: tuple[str, ...]
    poi_columns: tuple[str, ...]
    scene_features: tuple[str, ...]
    text_spaces: tuple[str, ...]
    vocabularies: Mapping[str, Vocabulary] = field(repr=False)
    scalers: Mapping[str, Scaler] = field(repr=False)
    rates: tuple[float, float]
    near_km: float = 1.0

    @property
    def categorical_columns(self) -> tuple[str, ...]:
        return self.user_columns + self.poi_columns

    def cardinalities(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(len(self.vocabularies[name]) for name in names)

    @staticmethod
    def fit(table: pa.Table, schema: Schema) -> Encoding:
        """Fit on a pull of history and train rows (never valid or test: the caller's duty, checked by `rank`)."""
        user_columns = (columns.SCENARIO_ID, columns.USER_ID, *schema.user_attributes)
        poi_columns = (columns.POI_ID, columns.CATEGORY, columns.SPECIALTY, *schema.poi_attributes)
        scenes = tuple(f.name for f in features_of(schema) if columns.scene(f.name) in table.column_names)
        names = [*user_columns, *poi_columns, *(columns.scene(name) for name in scenes)]
        clicks, orders = (pc.sum(table[label]).as_py() or 0 for label in columns.LABELS)
        rates = ((clicks + 1) / (len(table) + 2), (orders + 1) / (clicks + 2))
        spaces = tuple(s for s in columns.SPACES if columns.knowledge(s, columns.ROW) in table.column_names)
        numbers = derive_numbers(table, schema.timezone, rates, schema.near_km)
        return Encoding(
            timezone=schema.timezone,
            user_columns=user_columns,
            poi_columns=poi_columns,
            scene_features=scenes,
            text_spaces=spaces,
            vocabularies={name: Vocabulary.fit(table[name]) for name in names},
            scalers={name: Scaler.fit(values) for name, values in numbers.items()},
            rates=rates,
            near_km=schema.near_km,
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "timezone": self.timezone,
                "user_columns": self.user_columns,
                "poi_columns": self.poi_columns,
                "scene_features": self.scene_features,
                "text_spaces": self.text_spaces,
                "vocabularies": {name: v.values for name, v in self.vocabularies.items()},
                "scalers": {name: [s.mean, s.std, s.low, s.high] for name, s in self.scalers.items()},
                "rates": self.rates,
                "near_km": self.near_km,
            },
            ensure_ascii=False,
        )

    @staticmethod
    def from_json(text: str) -> Encoding:
        """Raises ValueError for what no encoding is: other entries or types, a column without a vocabulary."""
        raw = json.loads(text)
        written = raw.pop("vocabularies", None) if isinstance(raw, dict) else None
        plain = from_plain(_Plain, raw)
        encoding = Encoding(
            timezone=plain.timezone,
            user_columns=plain.user_columns,
            poi_columns=plain.poi_columns,
            scene_features=plain.scene_features,
            text_spaces=plain.text_spaces,
            vocabularies=_vocabularies(written),
            scalers={name: Scaler(*four) for name, four in plain.scalers.items()},
            rates=(plain.rates[0], plain.rates[1]),
            near_km=plain.near_km,
        )
        named = {*encoding.categorical_columns, *(columns.scene(name) for name in encoding.scene_features)}
        if lacking := sorted(named - encoding.vocabularies.keys()):
            raise ValueError(f"encoding: columns without a vocabulary: {lacking}")
        return encoding


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """An encoding as JSON has it, without its vocabularies, which are too long to be read entry by entry."""

    timezone: str
    user_columns: tuple[str, ...]
    poi_columns: tuple[str, ...]
    scene_features: tuple[str, ...]
    text_spaces: tuple[str, ...]
    scalers: Mapping[str, tuple[float, ...]]
    rates: tuple[float, ...]
    near_km: float = 1.0

    def __post_init__(self) -> None:
        ZoneInfo(self.timezone)
        numbers = [*self.rates, self.near_km, *(number for four in self.scalers.values() for number in four)]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("encoding: holds a number that is not finite")
        if (
            len(self.rates) != 2
            or not self.near_km > 0
            or any(len(four) != 4 or not four[1] > 0 or four[2] > four[3] for four in self.scalers.values())
        ):
            raise ValueError(
                "encoding: two rates, near_km > 0 and a mean, a deviation > 0, a lowest and a highest value of each "
                "scaler are needed; train bundles of earlier versions again"
            )


def _vocabularies(written: object) -> dict[str, Vocabulary]:
    if not isinstance(written, dict):
        raise ValueError("encoding: vocabularies are needed")
    for name, values in written.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"encoding: the vocabulary of {name} must be a list of texts")
        if len(set(values)) != len(values):
            raise ValueError(f"encoding: the vocabulary of {name} holds a value twice")
        pa.array(values, pa.string())  # a text that is no Unicode is found here, not in a request
    return {name: Vocabulary(tuple(values)) for name, values in written.items()}


def standardised(numbers: Mapping[str, np.ndarray], scalers: Mapping[str, Scaler], n: int) -> np.ndarray:
    """float32 (n, D): one column a scaler, with mean 0 and deviation 1 on the training part, and never beyond its range
    there; what is missing is 0, the mean.

    Args:
        numbers: under each scaler's name n values, or one that all rows share.
    """
    raw = np.empty((len(scalers), n))
    for at, name in enumerate(scalers):
        raw[at] = numbers[name]
    fitted = np.array([(s.mean, s.std, s.low, s.high) for s in scalers.values()]).reshape(-1, 4, 1)
    np.clip(raw, fitted[:, 2], fitted[:, 3], out=raw)
    raw -= fitted[:, 0]
    raw /= fitted[:, 1]
    return np.ascontiguousarray(np.nan_to_num(raw, copy=False, nan=0.0).T, dtype=np.float32)


def derive_numbers(
    table: pa.Table | Rows, timezone: str, rates: tuple[float, float], near_km: float = 1.0
) -> dict[str, np.ndarray]:
    """Every number that a ranker reads, NaN where unknown: log counts, smoothed rates, distance, openness, hours since
    the user's last click and order, and how recently this POI was clicked.

    float64 (n,) each, or (1,) where it is made of columns that all rows share.
    """
    rows = Rows.of(table)
    numbers = _count_numbers(rows, rates)
    places = (columns.LATITUDE, columns.LONGITUDE, columns.POI_LATITUDE, columns.POI_LONGITUDE)
    numbers["log_distance_km"] = np.log1p(geo.distance_km(*(_number(rows, name) for name in places)) / near_km)
    times_us = rows[EVENT_TIME_US].to_numpy()
    numbers["open_now"] = hours.is_open(rows[columns.OPEN_HOURS].to_pylist(), hours.hour_of_week(times_us, timezone))
    numbers["log_hours_since_order"] = log_hours(times_us - _number(rows, columns.LAST_ORDER_TIME))
    numbers["log_hours_since_poi"] = _log_hours_since_poi(rows, times_us)
    if columns.LIKE_MINDED in rows.columns:
        score = np.nan_to_num(_number(rows, columns.LIKE_MINDED), nan=0.0)
        numbers["log_like_minded"] = np.log1p(score / LIKE_MINDED_UNIT)
    return numbers


def _count_numbers(rows: Rows, rates: tuple[float, float]) -> dict[str, np.ndarray]:
    """`COUNT_NUMBERS` of every owner and window that the rows have: all that have as many values in one go."""
    kept = kept_statistics(rows.column_names, columns.COUNTS)
    counts = [[_number(rows, columns.statistic(owner, c, days)) for c in columns.COUNTS] for owner, days in kept]
    numbers: dict[str, np.ndarray] = {}
    for size in {len(shown) for shown, *_ in counts}:
        of_size = [at for at, (shown, *_) in enumerate(counts) if len(shown) == size]
        shown, clicked, ordered = np.nan_to_num(np.array([counts[at] for at in of_size]), nan=0.0).swapaxes(0, 1)
        made = (
            np.log1p(shown),
            np.log1p(clicked),
            smoothed(clicked, shown, rates[0]),
            smoothed(ordered, clicked, rates[1]),
        )
        for name, values in zip(COUNT_NUMBERS, made, strict=True):
            numbers |= {f"{kept[at][0]}_{name}_{kept[at][1]}d": row for at, row in zip(of_size, values, strict=True)}
    order = [f"{owner}_{name}_{days}d" for owner, days in kept for name in COUNT_NUMBERS]
    return {name: numbers[name] for name in order}


def kept_statistics(names: Iterable[str], numbers: Iterable[str]) -> list[tuple[str, int]]:
    """Owner and window in days of all statistics of which one of `numbers` is among the names."""
    return list(_kept_statistics(tuple(names), tuple(numbers)))


@lru_cache(maxsize=64)  # every request asks about the same names
def _kept_statistics(names: tuple[str, ...], numbers: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    owners = list(columns.STATISTICS)
    pattern = re.compile(rf"({'|'.join(owners)})_(?:{'|'.join(numbers)})_(\d+)d")
    found = {(m[1], int(m[2])) for name in names if (m := pattern.fullmatch(name))}
    return tuple(sorted(found, key=lambda kept: (owners.index(kept[0]), kept[1])))


def log_hours(microseconds: np.ndarray) -> np.ndarray:
    """log(1 + hours) of an age in microseconds; a negative age counts as 0."""
    return np.log1p(np.maximum(microseconds, 0.0) / 3.6e9)


def _number(rows: Rows, name: str) -> np.ndarray:
    array = rows[name]
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):  # without Arrow's machinery of casts
        return array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    return array.cast(pa.float64()).to_numpy(zero_copy_only=False)


def smoothed(events: np.ndarray, trials: np.ndarray, prior: float) -> np.ndarray:
    """Rates (n,), those from few trials drawn towards the prior."""
    return (events + RATE_PRIOR_COUNT * prior) / (trials + RATE_PRIOR_COUNT)


def _log_hours_since_poi(rows: Rows, times_us: np.ndarray) -> np.ndarray:
    """log hours since this user last clicked this POI; NaN where it is not among the recent ones."""
    row, pois, times = recent_clicks(rows, spread=True)
    same = pc.equal(pois, rows.spread(columns.POI_ID).take(pa.array(row)))
    hits = np.flatnonzero(pc.fill_null(same, False).to_numpy(zero_copy_only=False))[::-1]
    last = np.full(len(rows), np.nan)
    last[row[hits]] = times[hits]  # backwards, so that the newest click of a row is written last
    return log_hours(times_us - last)


def recent_clicks(rows: Rows, *, spread: bool = False) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """The recent clicks of all rows' users in one list, newest first in each row: row, POI, time in us, (k,) each.

    Args:
        spread: whether a list that all rows share stands once for each of them, or once.
    """
    pois, times = rows[columns.RECENT_POIS], rows[columns.RECENT_TIMES]
    lengths = pc.fill_null(pc.list_value_length(pois), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(pois)), lengths)
    flat, flat_us = pc.list_flatten(pois).cast(pa.string()), pc.list_flatten(times).cast(pa.int64()).to_numpy()
    if not spread or len(pois) == len(rows):
        return row, flat, flat_us
    n, k = len(rows), len(flat)
    again = np.tile(np.arange(k), n)
    return np.repeat(np.arange(n), k), flat.take(pa.array(again)), flat_us[again]
