"""The embedded data set: real venues, streets, weather and calendar of a city, and people simulated in it.

Every click and order was drawn from probabilities that are written down (`behaviour`, `world`), so the best attainable
quality of any model is known. A seed draws the sample (people, requests, what was shown and chosen); the world itself
does not change with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns, hours
from feature_repo.datasets.city import moments, simulate, texts, variants, venues, world
from feature_repo.datasets.city.simulate import Plan, Progress, Sample
from feature_repo.datasets.city.variants import PlantedScenarios, Variant
from feature_repo.datasets.city.venues import Venues
from feature_repo.datasets.schema import TIME, Dataset, RequestField, Schema, Split

__all__ = ["SIZES", "CityConfig", "Plan", "PlantedScenarios", "Variant", "build", "prepare"]

USER_ATTRIBUTES = ("age_band", "household", "role", "home_district", "diet", "price_taste")
POI_ATTRIBUTES = ("price_level", "street")
REQUEST_FIELDS = (
    RequestField(name="weather", help="The weather outside in a word or two, such as rain."),
    RequestField(name="temperature", dtype="float", help="Degrees Celsius outside."),
    RequestField(name="place_kind", help="What kind of place the user is at, such as home or transit stop."),
    RequestField(name="company", help="Who is with the user, such as alone or with children."),
    RequestField(name="landmark", help="The nearest street, square, shop or sight, by name."),
    RequestField(name="occasion", help="The holiday, or the event nearby, if there is one."),
)


@dataclass(frozen=True, kw_only=True)
class CityConfig:
    """Size, period, sample and variant of the city.

    Args:
        users, pois: how many; beyond the real venues, places are multiplied with new names and nearby addresses.
        start, days: local days of the log; the weather table holds the year 2012.
        requests_per_user_day: mean number of requests.
        candidates: places shown in a request.
        seed: draws people, requests, what was shown and chosen.
    """

    users: int = 2000
    pois: int = 460
    start: date = date(2012, 3, 12)
    days: int = 56
    requests_per_user_day: float = 0.3
    candidates: int = 10
    seed: int = 0
    variant: Variant = field(default_factory=Variant)

    def __post_init__(self) -> None:
        for name, low in (("users", 1), ("pois", 1), ("days", 7), ("candidates", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"CityConfig.{name} must be at least {low}, got {getattr(self, name)}")
        if self.requests_per_user_day <= 0:
            raise ValueError(f"CityConfig.requests_per_user_day must be positive, got {self.requests_per_user_day}")
        last = self.start + timedelta(days=self.days - 1)
        if self.start.year != 2012 or last.year != 2012:
            raise ValueError(f"CityConfig: {self.start} .. {last} leaves 2012, the year of the weather table")

    def split(self) -> Split:
        """First three sevenths history, the last eighth test, the four days (at most an eighth) before it valid."""
        test = max(1, round(self.days / 8))
        valid = max(1, min(4, test))
        borders = (self.days * 3 // 7, self.days - test - valid, self.days - test, self.days)
        train, valid_at, test_at, end = (self.at_day(day) for day in borders)
        return Split(train=train, valid=valid_at, test=test_at, end=end)

    def at_day(self, day: int) -> datetime:
        """UTC of the local midnight that begins a day of the log."""
        midnight = pd.Timestamp(self.start) + pd.Timedelta(days=day)
        moment: datetime = midnight.tz_localize(world.TIMEZONE).tz_convert("UTC").to_pydatetime()
        return moment


SIZES: Mapping[str, CityConfig] = MappingProxyType(
    {
        "small": CityConfig(users=500, requests_per_user_day=0.25),
        "default": CityConfig(),
    }
)


def build(config: CityConfig = SIZES["default"], progress: Progress = lambda stage, done, total: None) -> Dataset:
    """Simulate the city and return its source tables, and the truth (`oracle`, `favourites`) beside them."""
    plan = prepare(config)
    sample = simulate.run(plan, config.seed, progress)
    schema = Schema(
        dataset="city",
        timezone=world.TIMEZONE,
        split=config.split(),
        user_attributes=USER_ATTRIBUTES,
        poi_attributes=POI_ATTRIBUTES,
        request_fields=REQUEST_FIELDS,
        world=hashlib.sha256(repr(config).encode()).hexdigest()[:12],
        notes="Simulated people among real venues, (c) OpenStreetMap contributors, ODbL 1.0; weather: NOAA.",
    )
    impressions, oracle = _impressions(plan, sample)
    tables = {
        "impressions": impressions,
        "oracle": oracle,
        "favourites": _favourites(plan, sample),
        "users": _users(config, sample),
        "pois": _pois(config, plan.venues, plan.opening_day),
        "scenarios": _scenarios(config),
    }
    return Dataset(schema=schema, tables=tables)


def prepare(config: CityConfig) -> Plan:
    """The fixed parts of a city: its tables and its places."""
    tables = variants.tables(config.variant)
    places = venues.build(config.pois, tables)
    return Plan(
        tables=tables,
        venues=places,
        opening_day=np.floor(places.opens * config.days).astype(np.int64),
        start=config.start,
        days=config.days,
        users=config.users,
        requests_per_user_day=config.requests_per_user_day,
        candidates=config.candidates,
    )


def _impressions(plan: Plan, sample: Sample) -> tuple[pa.Table, pa.Table]:
    """Rows in the order of time, then user, then position; request ids count in that order."""
    log, requests = sample.log, sample.requests
    order = np.lexsort((log.position, requests.user[log.request], requests.time_us[log.request]))
    request = log.request[order]
    number = np.cumsum(np.r_[True, request[1:] != request[:-1]]) - 1

    def of_request(values: np.ndarray) -> pa.Array:
        return pa.array(values).take(request)

    row_id = pa.array(np.arange(len(order), dtype=np.int64))
    data = {
        columns.ROW_ID: row_id,
        columns.REQUEST_ID: _numbered("r", number),
        columns.EVENT_TIMESTAMP: of_request(requests.time_us).cast(TIME),
        columns.OUTCOME_TIMESTAMP: pa.array(log.outcome_us[order]).cast(TIME),
        columns.USER_ID: _numbered("u", requests.user[request]),
        columns.POI_ID: pa.array(plan.venues.ids).take(log.venue[order]),
        columns.SCENARIO_ID: of_request(requests.scenario),
        columns.CLICK: pa.array(log.click[order].astype(np.int8)),
        columns.ORDER: pa.array(log.order[order].astype(np.int8)),
        columns.POSITION: pa.array(log.position[order].astype(np.int32)),
        columns.PROPENSITY: pa.array(log.propensity[order]),
        columns.LATITUDE: of_request(requests.latitude),
        columns.LONGITUDE: of_request(requests.longitude),
        "weather": of_request(requests.weather),
        "temperature": of_request(requests.temperature),
        "place_kind": of_request(requests.place_kind),
        "company": of_request(requests.company),
        "landmark": pa.array(moments.landmark_names()).take(requests.landmark[request]),
        "occasion": pa.array([*moments.occasion_names(), None]).take(requests.occasion[request]),
    }
    truth = {columns.ROW_ID: row_id, "p_click": log.p_click[order], "p_order": log.p_order[order]}
    return pa.table(data), pa.table(truth)


def _users(config: CityConfig, sample: Sample) -> pa.Table:
    people = sample.people
    data = {
        columns.USER_ID: _numbered("u", np.arange(len(people))),
        **_clock(config, np.floor(people.joins * config.days).astype(np.int64)),
        **{name: pa.array(getattr(people, name)) for name in USER_ATTRIBUTES},
    }
    known = zip(*(getattr(people, name).tolist() for name in USER_ATTRIBUTES), strict=True)
    data[columns.TEXT] = pa.array([texts.of_user(*words) for words in known])
    return pa.table(data)


def _favourites(plan: Plan, sample: Sample) -> pa.Table:
    """The category whose places suit each person's own taste best, on average; moments and distances left aside."""
    places = plan.venues
    kinds, of_place = np.unique(places.categories, return_inverse=True)
    means = np.array([places.concepts[of_place == kind].mean(axis=0) for kind in range(len(kinds))])
    best = (sample.people.taste @ means.T).argmax(axis=1)
    return pa.table({columns.USER_ID: _numbered("u", np.arange(len(best))), columns.CATEGORY: pa.array(kinds[best])})


def _pois(config: CityConfig, places: Venues, opening_day: np.ndarray) -> pa.Table:
    described = zip(
        places.names.tolist(),
        places.categories.tolist(),
        places.specialties.tolist(),
        places.menus.tolist(),
        places.price.tolist(),
        places.streets.tolist(),
        strict=True,
    )
    weeks = [hours.encode(week) if known else None for week, known in zip(places.open, places.hours_known, strict=True)]
    data = {
        columns.POI_ID: pa.array(places.ids),
        **_clock(config, opening_day),
        columns.NAME: pa.array(places.names),
        columns.TEXT: pa.array([texts.of_place(*row) for row in described]),
        columns.CATEGORY: pa.array(places.categories),
        columns.SPECIALTY: pa.array(places.specialties),
        columns.OPEN_HOURS: pa.array(weeks, pa.string()),
        columns.POI_LATITUDE: pa.array(places.latitude),
        columns.POI_LONGITUDE: pa.array(places.longitude),
        "price_level": pa.array(["€" * round(price) for price in places.price.tolist()]),
        "street": pa.array(places.streets),
    }
    return pa.table(data)


def _scenarios(config: CityConfig) -> pa.Table:
    data = {
        columns.SCENARIO_ID: pa.array(list(world.SCENARIOS)),
        **_clock(config, np.zeros(len(world.SCENARIOS), dtype=np.int64)),
        columns.NAME: pa.array([rules.name for rules in world.SCENARIOS.values()]),
        columns.TEXT: pa.array([rules.text for rules in world.SCENARIOS.values()]),
    }
    return pa.table(data)


def _clock(config: CityConfig, day: np.ndarray) -> dict[str, pa.Array]:
    """Both timestamps at the beginning of a day of the log: what was there before it is known from its first moment."""
    moments = pa.array([config.at_day(int(d)) for d in day], TIME)
    return {columns.EVENT_TIMESTAMP: moments, columns.CREATED_TIMESTAMP: moments}


def _numbered(prefix: str, numbers: np.ndarray) -> pa.Array:
    """`u7`, `u12`: ids that sort by nothing and mean nothing."""
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")
