"""Foursquare check-ins at food venues as a ranking log: each check-in stands among sampled venues nobody recorded.

The log (Yang et al., IEEE TSMC 45(1), 2015, with venue names, category paths and the day's weather) holds positives
only. For each check-in, `negatives` other venues are drawn, without replacement, with weights

    w = (check-ins of the venue before this local day) * exp(-distance to the checked-in venue / `distance_km`)

among the venues whose kind is open at that hour: popularity-matched, nearby, open. Nearness is measured from the
venue that was chosen, not from the user's known place, so that distance alone does not tell the sampled from the
real ones. Venues publish no hours: a kind of venue counts as open at the hours (weekdays and weekends apart) within
one hour of which it has check-ins in the history part. Popularity is as of the day, so a row sees no later check-in.

- `propensity` is the probability that the venue is in the list: 1 for the check-in; for a sampled venue
  1 - exp(-w * t) with t the arrival time of the first venue left out of the list, drawn as exponential clocks with
  rates w (bottom-k sampling, Cohen and Kaplan, PODC 2007): sums weighted by its inverse are unbiased.
- The click is the check-in. There is no second label: `order` is 0. Positions are random: nothing was displayed.
- A request's place never comes from its own answer: it is the user's check-in before, if that is at most
  `recent_hours` old, else the middle of the area (about 2 km wide) where the user checked in most before, else null.
  `landmark` is the locality of that place.
- `weather` is the word of the day, `temperature` runs between the day's extremes as a cosine, warmest at 15 o'clock.
- `multiplicity`, the count of equal lines that were merged into one, is not used: a merged line is one check-in.
- Local minutes become UTC; in the hour that clocks repeat, the first one is taken. A check-in is known a minute later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from feature_repo import columns
from feature_repo.datasets import frames, splits
from feature_repo.datasets.frames import MICROSECONDS
from feature_repo.datasets.places import request_places
from feature_repo.datasets.raw import RawTable
from feature_repo.datasets.schema import DataError, Dataset, RequestField, Schema, Split
from feature_repo.geo import distance_km

TIMEZONE = "America/New_York"
SCENARIO = "check_in"
FILE_COLUMNS = (
    "user_id", "venue_id", "name", "category_path", "locality", "latitude", "longitude", "local_time", "temp_max",
    "temp_min", "weather",
)  # fmt: skip
NOTES = (
    "Impressions are sampled negatives around real check-ins (nearby, open by kind, popularity-matched): metrics rank "
    "against sampled venues, not against venues that were shown. There is no order label: order is 0 everywhere."
)
REQUEST_FIELDS = (
    RequestField(name="weather", help="one word for the day: sun, rain, drizzle, snow, fog"),
    RequestField(name="temperature", dtype="float", help="degrees Celsius at the hour"),
    RequestField(name="landmark", help="locality of the user's last known place"),
)
MINIMUM_CHECKINS = 30  # a leaf category with fewer in history takes the hours of its parent
WARMEST_HOUR = 15


@dataclass(frozen=True, kw_only=True)
class FoursquareConfig:
    """Where the check-ins are and how impressions are drawn around them.

    Args:
        folder: holds `checkins*.csv`, `.csv.gz` or `.parquet`.
        negatives: sampled venues a check-in (fewer where fewer are open).
        distance_km: scale of the exponential decay of nearness.
        recent_hours: for how long the last check-in tells where the user is.
        seed: draws negatives and positions.
        split: borders in place of the default, `splits.by_months`: the last local month is the test part.
    """

    folder: Path
    negatives: int = 19
    distance_km: float = 1.5
    recent_hours: float = 12.0
    seed: int = 0
    split: Split | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Venues of n lists, flat: which check-in, which venue, whether it is the real one, and its propensity."""

    checkin: np.ndarray
    venue: np.ndarray
    click: np.ndarray
    propensity: np.ndarray


def load(config: FoursquareConfig) -> Dataset:
    """Read check-ins and sample impressions. Raises DataError for missing files and columns, naming bad values."""
    checkins = _read(config.folder)
    first, last = checkins[columns.EVENT_TIMESTAMP][[0, -1]]
    schema = Schema(
        dataset="foursquare",
        timezone=TIMEZONE,
        split=config.split or splits.by_months(first, last, TIMEZONE),
        poi_attributes=("locality",),
        request_fields=REQUEST_FIELDS,
        # People return to a place for months, each at its own time of the day, and try what their like try.
        statistics=tuple(columns.STATISTICS),
        window_days=(*columns.WINDOW_DAYS, 365),
        like_minded=True,
        near_km=0.1,  # a block or two
        notes=NOTES,
    )
    venues = checkins.unique("venue_id", keep="first", maintain_order=True).sort("venue_id")
    start = frames.day_start(first)
    # Users and venues are known from their first check-in on; before it nobody could have named them.
    begun = pl.col(columns.EVENT_TIMESTAMP).min().alias("begun")
    users = checkins.group_by(pl.col("user_id").alias(columns.USER_ID), maintain_order=True).agg(begun)
    opened = checkins.group_by(pl.col("venue_id").alias(columns.POI_ID)).agg(begun)
    text = pl.lit("Somebody who checks in at food venues in and around New York.")
    scenario = {
        columns.SCENARIO_ID: [SCENARIO],
        columns.NAME: ["Check-in"],
        columns.TEXT: ["The user is about to check in at a place to eat or drink nearby."],
    }
    return frames.assemble(
        schema,
        impressions=_impressions(checkins, venues, schema, config),
        users=frames.known_since(users.with_columns(text.alias(columns.TEXT)), pl.col("begun")),
        pois=frames.known_since(_pois(venues).join(opened, on=columns.POI_ID, how="left"), pl.col("begun")),
        scenarios=frames.known_since(pl.DataFrame(scenario), start),
    )


def sample_lists(weights: np.ndarray, chosen: np.ndarray, negatives: int, rng: np.random.Generator) -> Sample:
    """Draw `negatives` venues without replacement beside the chosen one of each list.

    Args:
        weights: (n, V) non-negative; 0 keeps a venue out.
        chosen: (n,) the venue of the check-in, never drawn.
    """
    n, venues = weights.shape
    rates = weights.copy()
    rates[np.arange(n), chosen] = 0.0
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=(n, venues)) / rates
    count = min(negatives, venues - 1)
    nearest = np.argsort(arrival, axis=1)[:, : count + 1]
    arrivals = np.take_along_axis(arrival, nearest, axis=1)
    border = arrivals[:, count:] if count < nearest.shape[1] else np.full((n, 1), np.inf)
    rows, rank = np.nonzero(np.isfinite(arrivals[:, :count]))
    drawn = nearest[rows, rank]
    probability = -np.expm1(-rates[rows, drawn] * border[rows, 0])
    return Sample(
        checkin=np.concatenate([np.arange(n), rows]),
        venue=np.concatenate([chosen, drawn]),
        click=np.concatenate([np.ones(n, dtype=np.int8), np.zeros(len(rows), dtype=np.int8)]),
        propensity=np.concatenate([np.ones(n), probability]),
    )


def open_hours(checkins: pl.DataFrame, leaves: list[str], parents: list[str]) -> np.ndarray:
    """(V, 48) booleans: is a venue of this leaf category, or else of its parent, open at this hour?

    Args:
        checkins: the history part, with `specialty`, `category` and `slot` (hour; weekends start at 24).
        leaves, parents: the V venues' categories.
    """
    hours = {}
    for column in (columns.SPECIALTY, columns.CATEGORY):
        for (kind,), group in checkins.group_by(column):
            counts = np.bincount(group["slot"].to_numpy(), minlength=48).reshape(2, 24)
            around = counts + np.roll(counts, 1, axis=1) + np.roll(counts, -1, axis=1)
            if column == columns.CATEGORY or counts.sum() >= MINIMUM_CHECKINS:
                hours[column, kind] = (around > 0).reshape(48)
    always = np.ones(48, dtype=bool)
    return np.stack(
        [
            hours.get((columns.SPECIALTY, leaf), hours.get((columns.CATEGORY, parent), always))
            for leaf, parent in zip(leaves, parents, strict=True)
        ]
    )


def temperature(minimum: pl.Expr, maximum: pl.Expr, hour: pl.Expr) -> pl.Expr:
    """Degrees at an hour of the day: a cosine from the minimum at 3 to the maximum at 15 o'clock."""
    share = (1 + ((hour - WARMEST_HOUR) * (np.pi / 12)).cos()) / 2
    return (minimum + (maximum - minimum) * share).round(1)


def _read(folder: Path) -> pl.DataFrame:
    """Check-ins in time order with their UTC time, day, hour slot and category columns."""
    files = sorted(f for f in folder.glob("checkins*") if f.name.endswith((".csv", ".csv.gz", ".parquet")))
    if len(files) != 1:
        raise DataError(f"{folder}: needs one checkins*.csv, .csv.gz or .parquet, has {[f.name for f in files]}")
    table = RawTable.read(files[0])
    table.require(FILE_COLUMNS)
    numbers = [table.numbers(name).alias(name) for name in ("latitude", "longitude", "temp_max", "temp_min")]
    for values in numbers[:2]:
        table.refuse(values.name, values.is_null(), "is empty; every venue needs coordinates")
    words = [table.keys(name).alias(name) for name in ("user_id", "venue_id", "name", "category_path", "weather")]
    times = table.times("local_time", timezone=TIMEZONE).alias(columns.EVENT_TIMESTAMP)
    local = pl.col(columns.EVENT_TIMESTAMP).dt.convert_time_zone(TIMEZONE)
    path = pl.col("category_path").str.split(" > ")
    weekend = (local.dt.weekday() >= 6).cast(pl.Int64)
    return (
        pl.DataFrame([*words, table.text("locality").alias("locality"), *numbers, times])
        .with_columns(
            local.dt.date().alias("day"),
            (weekend * 24 + local.dt.hour()).alias("slot"),
            pl.coalesce(path.list.get(1, null_on_oob=True), path.list.first()).alias(columns.CATEGORY),
            path.list.last().alias(columns.SPECIALTY),
        )
        .sort(columns.EVENT_TIMESTAMP, "user_id", "venue_id")
    )


def _pois(venues: pl.DataFrame) -> pl.DataFrame:
    where = pl.format(" in {}", "locality").fill_null("")
    return venues.select(
        pl.col("venue_id").alias(columns.POI_ID),
        columns.NAME,
        pl.format("{}: {} ({}){}.", columns.NAME, columns.SPECIALTY, columns.CATEGORY, where).alias(columns.TEXT),
        columns.CATEGORY,
        columns.SPECIALTY,
        "locality",
        pl.col("latitude").alias(columns.POI_LATITUDE),
        pl.col("longitude").alias(columns.POI_LONGITUDE),
    )


def _impressions(
    checkins: pl.DataFrame, venues: pl.DataFrame, schema: Schema, config: FoursquareConfig
) -> pl.DataFrame:
    """Check-ins and their sampled negatives as rows, each with its request's context."""
    sample = _sample(checkins, venues, schema, config)
    places = request_places(checkins, timedelta(hours=config.recent_hours))
    hour = pl.col("slot") % 24
    moment = pl.col(columns.EVENT_TIMESTAMP)
    requests = pl.concat([checkins.drop("latitude", "longitude"), places], how="horizontal").select(
        pl.format("checkin-{}", pl.int_range(pl.len())).alias(columns.REQUEST_ID),
        moment,
        (moment + timedelta(minutes=1)).cast(MICROSECONDS).alias(columns.OUTCOME_TIMESTAMP),
        pl.col("user_id").alias(columns.USER_ID),
        pl.lit(SCENARIO).alias(columns.SCENARIO_ID),
        pl.lit(0, dtype=pl.Int8).alias(columns.ORDER),
        columns.LATITUDE,
        columns.LONGITUDE,
        "landmark",
        "weather",
        temperature(pl.col("temp_min"), pl.col("temp_max"), hour).alias("temperature"),
    )
    rows = requests[sample.checkin].with_columns(
        venues["venue_id"][sample.venue].alias(columns.POI_ID),
        pl.Series(columns.CLICK, sample.click),
        pl.Series(columns.PROPENSITY, sample.propensity),
        pl.Series("draw", np.random.default_rng(config.seed).random(len(sample.venue))),
    )
    position = (pl.col("draw").rank("ordinal").over(columns.REQUEST_ID) - 1).cast(pl.Int32)
    return rows.with_columns(position.alias(columns.POSITION))


def _sample(checkins: pl.DataFrame, venues: pl.DataFrame, schema: Schema, config: FoursquareConfig) -> Sample:
    """Lists for all check-ins, a local day at a time: popularity is what was known before the day."""
    history = checkins.filter(pl.col(columns.EVENT_TIMESTAMP) < schema.split.train)
    hours = open_hours(history, venues[columns.SPECIALTY].to_list(), venues[columns.CATEGORY].to_list())
    latitude, longitude = (venues[c].to_numpy() for c in ("latitude", "longitude"))
    near = np.exp(
        -distance_km(latitude[:, None], longitude[:, None], latitude, longitude) / config.distance_km
    )  # (V, V)
    chosen = venues["venue_id"].search_sorted(checkins["venue_id"]).to_numpy().astype(np.int64)
    slots = checkins["slot"].to_numpy()
    days = checkins["day"].to_physical().to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
    popularity = np.zeros(len(latitude))  # a venue that nobody has been to yet is not there yet
    rng = np.random.default_rng([config.seed, 1])
    lists = []
    for begin, end in pairwise(borders):
        venue = chosen[begin:end]
        weights = near[venue] * popularity * hours[:, slots[begin:end]].T
        day = sample_lists(weights, venue, config.negatives, rng)
        lists.append((begin, day))
        popularity += np.bincount(venue, minlength=len(popularity))
    return Sample(
        checkin=np.concatenate([begin + day.checkin for begin, day in lists]),
        venue=np.concatenate([day.venue for _, day in lists]),
        click=np.concatenate([day.click for _, day in lists]),
        propensity=np.concatenate([day.propensity for _, day in lists]),
    )
