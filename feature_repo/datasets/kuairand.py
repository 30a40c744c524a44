"""KuaiRand's standard feed as a ranking log: the tab is the scenario, a click that became a long view is the order.

Reads the public file names of KuaiRand-Pure (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624), CSV or Parquet:
`log_standard_*`, `user_features*` and `video_features_basic*`. What the columns become:

- `is_click` is the click; `is_click and long_view` the order (a few rows are long views without a click: no order).
- The time is `time_ms`, which is UTC. `hourmin` and `date` are not used: they do not agree with it.
- The outcome is known `play_time_ms` after the impression.
- Rows that are equal in every column are one row.
- Rows that one user got in one millisecond are one request; almost every request has a single row, because the
  Pure log keeps a small selection of the videos that were shown.
- A video's category is how it was uploaded, in words; its specialty is its first tag (tags are published as numbers).
  It is available from the end of its upload day. Users' attributes are available from the start of the log.
- There are no coordinates, positions or propensities: they are null.

The published watch histories before the log (`user_sequences`) carry no times of their own and are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from feature_repo import columns
from feature_repo.datasets import frames, splits
from feature_repo.datasets.raw import RawTable
from feature_repo.datasets.schema import DataError, Dataset, Schema, Split

TIMEZONE = "Asia/Shanghai"
LOG_COLUMNS = ("user_id", "video_id", "time_ms", "is_click", "long_view", "play_time_ms", "tab")
RANGES = ("follow_user_num_range", "fans_user_num_range", "friend_user_num_range", "register_days_range")
FLAGS = ("is_lowactive_period", "is_live_streamer", "is_video_author")
USER_ATTRIBUTES = ("user_active_degree", *FLAGS, *RANGES, *(f"onehot_feat{i}" for i in range(18)))
VIDEO_ATTRIBUTES = ("author_id", "video_type", "music_type", "tags", "duration_band")
DURATION_BORDERS_S = {
    "up to 10 seconds": 10,
    "10 to 30 seconds": 30,
    "30 to 60 seconds": 60,
    "1 to 3 minutes": 180,
    "3 to 10 minutes": 600,
}


@dataclass(frozen=True, kw_only=True)
class KuaiRandConfig:
    """Where KuaiRand is and what to take of it.

    Args:
        folder: holds the log and the two feature tables.
        tabs: the tabs to keep; the default are the five that the Scenario-Wise Rec benchmark uses (arXiv 2412.17374),
            which hold 98 % of the rows; empty means all.
        users: keep this many users, drawn by `seed`; None means all.
        split: borders in place of the default, which is `splits.by_days`: the last local day is the test part.
    """

    folder: Path
    tabs: tuple[int, ...] = (1, 0, 4, 2, 6)
    users: int | None = None
    seed: int = 0
    split: Split | None = None


def load(config: KuaiRandConfig) -> Dataset:
    """Read KuaiRand. Raises DataError for missing files and columns, and for ids without a row in their table."""
    log = _log(config)
    users = _users(_read(config.folder, "user_features*", ("user_id", *USER_ATTRIBUTES)))
    videos = _videos(config.folder)
    first, last = log[columns.EVENT_TIMESTAMP].sort()[[0, -1]]
    schema = Schema(
        dataset="kuairand",
        timezone=TIMEZONE,
        split=config.split or splits.by_days(first, last, TIMEZONE),
        user_attributes=USER_ATTRIBUTES,
        poi_attributes=VIDEO_ATTRIBUTES,
        notes="Videos stand for POIs. An order is a click that became a long view.",
    )
    start = frames.day_start(first)
    return frames.assemble(
        schema,
        impressions=log,
        users=frames.known_since(users.join(log, on=columns.USER_ID, how="semi"), start),
        pois=videos,
        scenarios=frames.known_since(_tabs(log), start),
    )


def _log(config: KuaiRandConfig) -> pl.DataFrame:
    """The impressions, without exact duplicates (compared in every column that the file has)."""
    raw = _read(config.folder, "log_standard_*", LOG_COLUMNS, numbers=LOG_COLUMNS).unique(maintain_order=True)
    if config.tabs:
        raw = raw.filter(pl.col("tab").is_in([str(tab) for tab in config.tabs]))
    if config.users is not None:
        users = raw["user_id"].unique(maintain_order=True)
        drawn = users.sample(min(config.users, len(users)), seed=config.seed)
        raw = raw.filter(pl.col("user_id").is_in(drawn.implode()))
    if raw.is_empty():
        raise DataError(f"{config.folder}: no rows of the tabs {list(config.tabs)}; name tabs that the log has")
    shown = pl.from_epoch(pl.col("time_ms").cast(pl.Int64), time_unit="ms").cast(frames.MICROSECONDS)
    click = pl.col("is_click").cast(pl.Int8)
    return raw.select(
        pl.concat_str("user_id", "time_ms", separator="@").alias(columns.REQUEST_ID),
        shown.alias(columns.EVENT_TIMESTAMP),
        (shown + pl.duration(milliseconds=pl.col("play_time_ms").cast(pl.Int64))).alias(columns.OUTCOME_TIMESTAMP),
        pl.col("user_id").alias(columns.USER_ID),
        pl.col("video_id").alias(columns.POI_ID),
        pl.format("tab_{}", "tab").alias(columns.SCENARIO_ID),
        click.alias(columns.CLICK),
        (click * pl.col("long_view").cast(pl.Int8)).alias(columns.ORDER),
    )


def _read(folder: Path, pattern: str, wanted: tuple[str, ...], numbers: tuple[str, ...] = ()) -> pl.DataFrame:
    """All files of one pattern, every column as text; whole numbers lose the `.0` that some tables give them."""
    files = sorted(f for f in folder.glob(pattern) if f.suffix in (".csv", ".parquet"))
    if not files:
        raise DataError(f"{folder}: no {pattern}.csv or .parquet; point at the data folder of KuaiRand-Pure")
    parts = []
    for file in files:
        table = RawTable.read(file)
        table.require(wanted)
        for name in numbers:
            table.refuse(name, table.numbers(name).is_null(), "is empty; every row needs a number")
        parts.append(table.frame.select(pl.all().cast(pl.String).str.replace(r"^(-?\d+)\.0$", "$1")))
    return pl.concat(parts, how="diagonal")


def _users(raw: pl.DataFrame) -> pl.DataFrame:
    """Users' published attributes, and the readable ones in a plain sentence."""
    degree = pl.col("user_active_degree").fill_null("unknown").str.to_lowercase().str.replace_all("_", " ")
    follows, fans, friends, days = (
        pl.col(name).fill_null("unknown").map_elements(range_words, return_dtype=pl.String) for name in RANGES
    )
    sentence = "An app user (activity: {}) who follows {} accounts, has {} fans and {} friends, registered {} days ago."
    return raw.select(
        pl.col("user_id").alias(columns.USER_ID),
        *USER_ATTRIBUTES,
        pl.format(sentence, degree, follows, fans, friends, days).alias(columns.TEXT),
    )


def _videos(folder: Path) -> pl.DataFrame:
    """Videos as POIs; there is no title, so the text is made of the type, length and tag words that exist."""
    wanted = ("video_id", "author_id", "video_type", "upload_dt", "upload_type", "video_duration", "music_type", "tag")
    raw = _read(folder, "video_features_basic*", wanted)
    category = pl.col("upload_type").fill_null("UNKNOWN").map_elements(spoken, return_dtype=pl.String)
    first_tag = pl.format("tag {}", pl.col("tag").str.split(",").list.first())
    tags = pl.format("with tags {}", pl.col("tag").str.replace_all(",", ", ")).fill_null("without tags")
    seconds = pl.col("video_duration").cast(pl.Float64) / 1000
    band = pl.lit("over 10 minutes")
    for words, border in reversed(DURATION_BORDERS_S.items()):
        band = pl.when(seconds < border).then(pl.lit(words)).otherwise(band)
    band = pl.when(seconds.is_null()).then(pl.lit("unknown length")).otherwise(band)
    kind = pl.when(pl.col("video_type") == "AD").then(pl.lit("advertisement")).otherwise(pl.lit("video"))
    uploaded = pl.col("upload_dt").str.to_date("%Y-%m-%d").cast(pl.Datetime("us")).dt.offset_by("1d")
    known = uploaded.dt.replace_time_zone(TIMEZONE).dt.convert_time_zone("UTC")
    return raw.select(
        pl.col("video_id").alias(columns.POI_ID),
        known.alias(columns.EVENT_TIMESTAMP),
        known.alias(columns.CREATED_TIMESTAMP),
        pl.format("video {}", "video_id").alias(columns.NAME),
        pl.format("A short {} of {}, uploaded as {}, {}.", kind, band, category, tags).alias(columns.TEXT),
        category.alias(columns.CATEGORY),
        first_tag.alias(columns.SPECIALTY),
        *(pl.col(name) for name in ("author_id", "video_type", "music_type")),
        pl.col("tag").alias("tags"),
        band.alias("duration_band"),
    )


def _tabs(log: pl.DataFrame) -> pl.DataFrame:
    """The meaning of the tabs is not published, so their names say no more than their numbers."""
    number = pl.col(columns.SCENARIO_ID).str.strip_prefix("tab_")
    return (
        log.select(columns.SCENARIO_ID)
        .unique()
        .sort(columns.SCENARIO_ID)
        .with_columns(
            pl.format("Tab {}", number).alias(columns.NAME),
            pl.format("Tab {} of a short-video app, one of the pages on which videos are shown.", number).alias(
                columns.TEXT
            ),
        )
    )


def spoken(type_name: str) -> str:
    """A type name in words.

    >>> spoken("ShareFromOtherApp")
    'share from other app'
    >>> spoken("UNKNOWN")
    'unknown'
    """
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", type_name)).lower()


def range_words(text: str) -> str:
    """A published range in words; `w` is ten thousand.

    >>> range_words("[1w,10w)"), range_words("(0,10]"), range_words("500+"), range_words("181-365")
    ('10k to 100k', '0 to 10', 'more than 500', '181 to 365')
    """
    if text.endswith("+"):
        return f"more than {text[:-1]}"
    return " to ".join(re.findall(r"\w+", re.sub(r"(\d+)w", r"\g<1>0k", text)))
