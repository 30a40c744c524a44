"""Scene features: what the moment of a request is made of, declared once and computed by the same code everywhere.

To register one, write one `SceneFeature` into `FEATURES`. The on-demand view, the sentences that are embedded, the
training column and the model slot follow from it. A feature is a pure function of its declared inputs; inputs are
fields that requests carry (`Schema.request_fields`), `LOCAL_TIME`, and stored state of the user (`STORED_INPUTS`). It
returns a short value in words, or None where the inputs say nothing. A dataset has the features whose inputs it has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from feature_repo import columns
from feature_repo.datasets.schema import DataError, Schema
from feature_repo.hours import hour_of_week, local_times
from feature_repo.spelled import spelled

EVENT_TIME_US = "event_time_us"  # microseconds since the epoch, UTC: the moment of the request
STORED_INPUTS = (columns.LAST_CATEGORY, columns.LAST_SPECIALTY, columns.LAST_ORDER_TIME)


@dataclass(frozen=True, kw_only=True)
class SceneFeature:
    """One discrete aspect of the moment.

    Args:
        name: what stands before `=` in a scene value (`daypart=lunch`).
        inputs: names of the arguments that `value` gets, in order.
        value: a pure function of a module; the result is the scene value, or None.
        sentence: the text that a language model reads, with `{value}` in it.
        numbers: those of the inputs that requests carry as numbers; the other fields of requests are words.
    """

    name: str
    inputs: tuple[str, ...]
    value: Callable[..., str | None]
    sentence: str
    numbers: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Changes with anything that changes a value or its text: declarations are compared by it.

        Raises ValueError for a value whose source does not tell all of it (`spelled`).
        """
        text = "\n".join([self.name, *self.inputs, self.sentence, spelled(self.value)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints(schema: Schema) -> dict[str, str]:
    """Feature -> fingerprint, of the features that a data set has."""
    return {feature.name: feature.fingerprint() for feature in features_of(schema)}


def daypart_of_hour(hour: int) -> str:
    """The part of the day of a local hour, 0..23; also a key of statistics."""
    borders = ((5, "night"), (11, "morning"), (14, "lunch"), (17, "afternoon"), (22, "evening"), (24, "night"))
    return next(word for end, word in borders if hour < end)


def daypart_keys(times_us: np.ndarray, timezone: str) -> list[str]:
    """The part of the day of n times (microseconds since the epoch, UTC), by the local clock."""
    return [daypart_of_hour(int(h)) for h in hour_of_week(times_us, timezone) % 24]


def daypart(local_time: datetime) -> str:
    return daypart_of_hour(local_time.hour)


def hour(local_time: datetime) -> str:
    return f"{local_time.hour:02d}:00"


def weekday(local_time: datetime) -> str:
    return ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[local_time.weekday()]


def temperature_band(temperature: float | None) -> str | None:
    """Degrees Celsius as a word; borders belong to the warmer band."""
    if temperature is None:
        return None
    borders = ((-5.0, "freezing"), (5.0, "cold"), (14.0, "cool"), (22.0, "mild"), (28.0, "warm"))
    return next((word for end, word in borders if temperature < end), "hot")


def since_last_order(event_time_us: int, last_order_us: int | None) -> str | None:
    """How long ago the user last ordered; None for a user who never did."""
    if last_order_us is None:
        return None
    hours = (event_time_us - last_order_us) / 3.6e9
    borders = ((3, "just now"), (8, "some hours ago"), (30, "a day ago"), (24 * 7, "this week"))
    return next((word for end, word in borders if hours < end), "long ago")


def as_given(value: str | None) -> str | None:
    """The request's own word."""
    return value or None


FEATURES: tuple[SceneFeature, ...] = (
    SceneFeature(name="daypart", inputs=(columns.LOCAL_TIME,), value=daypart, sentence="The time of day is {value}."),
    SceneFeature(name="hour", inputs=(columns.LOCAL_TIME,), value=hour, sentence="The clock shows about {value}."),
    SceneFeature(name="weekday", inputs=(columns.LOCAL_TIME,), value=weekday, sentence="Today is {value}."),
    SceneFeature(name="weather", inputs=("weather",), value=as_given, sentence="The weather outside: {value}."),
    SceneFeature(
        name="temperature_band",
        inputs=("temperature",),
        numbers=("temperature",),
        value=temperature_band,
        sentence="The air outside feels {value}.",
    ),
    SceneFeature(name="place_kind", inputs=("place_kind",), value=as_given, sentence="The user is at: {value}."),
    SceneFeature(name="company", inputs=("company",), value=as_given, sentence="The user is out {value}."),
    SceneFeature(name="landmark", inputs=("landmark",), value=as_given, sentence="The user is near {value}."),
    SceneFeature(name="occasion", inputs=("occasion",), value=as_given, sentence="Today's occasion: {value}."),
    SceneFeature(
        name="last_category",
        inputs=(columns.LAST_CATEGORY,),
        value=as_given,
        sentence="The kind of place that the user looked at last: {value}.",
    ),
    SceneFeature(
        name="last_specialty",
        inputs=(columns.LAST_SPECIALTY,),
        value=as_given,
        sentence="What the user looked at last: {value}.",
    ),
    SceneFeature(
        name="since_last_order",
        inputs=(EVENT_TIME_US, columns.LAST_ORDER_TIME),
        value=since_last_order,
        sentence="The user's last order was {value}.",
    ),
)


def features_of(schema: Schema) -> tuple[SceneFeature, ...]:
    """The scene features of a dataset: declared ones whose inputs it has, then its own fields as they stand.

    Raises DataError for a field of numbers that a declared feature would read as words, and for two meanings of a name.
    """
    numbers = {f.name for f in schema.request_fields if f.dtype == "float"}
    at_hand = {EVENT_TIME_US, columns.LOCAL_TIME, *STORED_INPUTS, *(f.name for f in schema.request_fields)}
    # A field that a dataset has in words is a feature of its own.
    declared = tuple(f for f in FEATURES if at_hand.issuperset(f.inputs) and numbers.issuperset(f.numbers))
    for feature in declared:
        if unread := sorted(numbers.intersection(feature.inputs).difference(feature.numbers)):
            raise DataError(
                f"scene feature {feature.name!r} reads {unread} of {schema.dataset}, which are numbers: declare it "
                f"with numbers={tuple(unread)} in feature_repo/scenes.py, or call the field otherwise"
            )
    taken = {f.name for f in declared}
    if other := sorted({f.name for f in declared if f.inputs != (f.name,)}.intersection(schema.scene_fields)):
        raise DataError(
            f"scene fields {other} of {schema.dataset} mean something else in feature_repo/scenes.py; rename"
        )
    own = tuple(
        SceneFeature(name=name, inputs=(name,), value=as_given, sentence=f"{name.replace('_', ' ')}: {{value}}.")
        for name in schema.scene_fields
        if name not in taken
    )
    return declared + own


def evaluate(inputs: Mapping[str, Sequence[object]], schema: Schema) -> dict[str, list[str | None]]:
    """Compute every scene feature of a dataset for n requests.

    Args:
        inputs: n values each of `EVENT_TIME_US`, the stored inputs and the schema's request fields; None, NaN and an
            absent column all mean "unknown".
    Returns:
        For each feature, under its column name (`scene_daypart`), n values in words or None.
    """
    times = [int(time) for time in inputs[EVENT_TIME_US]]  # type: ignore[call-overload]
    features = features_of(schema)
    needed = {name for feature in features for name in feature.inputs} & set(inputs)
    known: dict[str, list[object]] = {name: [_plain(v) for v in inputs[name]] for name in needed}
    known[EVENT_TIME_US] = list(times)
    known[columns.LOCAL_TIME] = list(local_times(times, schema.timezone))
    unknown: list[object] = [None] * len(times)
    values: dict[str, list[str | None]] = {}
    for feature in features:
        arguments = list(zip(*(known.get(name, unknown) for name in feature.inputs), strict=True))
        once = {key: feature.value(*key) for key in dict.fromkeys(arguments)}
        values[columns.scene(feature.name)] = [once[key] for key in arguments]
    return values


def _plain(value: object) -> object:
    """A Python value, with None for every spelling of missing (None, NaN, NaT, pandas.NA)."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    item = getattr(value, "item", None)
    return item() if callable(item) else value
