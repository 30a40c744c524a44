"""Anyone's interaction log as a dataset, through a small mapping file that says which column is what.

docs/mapping.md explains the file. Every value is checked where it is read: a bad one is a DataError that names file,
column, data row (counted from 1) and value. Nothing is written before everything was read (`Dataset.write`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Literal
from zoneinfo import ZoneInfo

import polars as pl

from feature_repo import columns
from feature_repo.datasets import frames, splits, tables
from feature_repo.datasets.mapping_file import (
    Key,
    LabelRule,
    Mapping,
    PoiTable,
    SceneRule,
    ShownRule,
    SplitRule,
    read_mapping,
    words_in,
)
from feature_repo.datasets.raw import RawTable, nearest
from feature_repo.datasets.schema import DataError, Dataset, RequestField, Schema, Split

UNKNOWN = "unknown"
SHIPPED = Path(__file__).parent / "mappings"


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """A mapping file, and what to take of its log.

    Args:
        folder: of the data; None: the mapping file's own.
        users: keep this many users, drawn by `seed`; None means all.
        now: the moment after which an event lies in the future; None: the present one.
    """

    file: Path
    folder: Path | None = None
    users: int | None = None
    seed: int = 0
    now: datetime | None = None

    @property
    def data(self) -> Path:
        """The folder of the data."""
        return self.folder or self.file.parent


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Where the rows of an entity table come from: its own file, or the log, of which it has each id's first row."""

    table: RawTable
    ids: pl.Series
    times: pl.Series | None  # of the log's rows; None for a file of its own


def shipped() -> dict[str, Path]:
    """The mapping files of public sets, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def files(config: MappingConfig) -> tuple[Path, ...]:
    """Every file that a mapping reads, itself first. Raises DataError."""
    mapping = read_mapping(config.file)
    named = dict.fromkeys(s.file for source in (mapping.log, mapping.users.file, mapping.pois.file) for s in source)
    return (config.file, *(config.data / name for name in named))


def load(config: MappingConfig) -> Dataset:
    """Read a log through its mapping file. Raises DataError (see the module) for a wrong mapping or wrong data."""
    mapping = read_mapping(config.file)
    log, left_out = _log(mapping, config)
    rule = mapping.time
    times = log.times(mapping.columns.time, timezone=mapping.timezone, unit=rule.unit, pattern=rule.pattern)
    now = config.now or datetime.now(UTC)
    log.refuse(mapping.columns.time, times > now, f"lies in the future (now is {now:%Y-%m-%d %H:%M} UTC)")
    split = _split(mapping.split, mapping.timezone, times)
    log.refuse(mapping.columns.time, times >= split.end, f"is not before the end of the split, {split.end}")
    scene = [_scene(rule, log, times < split.train) for rule in mapping.scene]
    schema = Schema(
        dataset=mapping.dataset or config.file.stem,
        timezone=mapping.timezone,
        split=split,
        user_attributes=tuple(a.field for a in mapping.users.attributes),
        poi_attributes=tuple(a.field for a in mapping.pois.attributes),
        request_fields=tuple(field for field, _ in scene),
        scene_fields=tuple(rule.field for rule in mapping.scene if not rule.numeric),
        statistics=tuple(dict.fromkeys((*columns.USUAL_STATISTICS, *mapping.statistics))),
        window_days=mapping.window_days,
        like_minded=mapping.like_minded,
        shown_in=mapping.pois.scenarios is not None,
        near_km=mapping.near_km,
        notes=_notes(mapping, config, left_out),
    )
    impressions = _impressions(mapping, log, times).with_columns([values for _, values in scene])
    users = _owners(mapping, config, "users", log, times)
    pois = _owners(mapping, config, "pois", log, times)
    start = frames.day_start(times.sort()[0])
    user_table = _users(mapping, users, start, config.file)
    scenarios = _scenarios(mapping, impressions[columns.SCENARIO_ID], start)
    poi_table = _pois(mapping, pois, start, config.file, scenarios[columns.SCENARIO_ID])
    return frames.assemble(schema, impressions=impressions, users=user_table, pois=poi_table, scenarios=scenarios)


def _log(mapping: Mapping, config: MappingConfig) -> tuple[RawTable, int]:
    """The rows of the log that count, and how many orders without a click were left out on request."""
    names = mapping.columns
    only = None
    if config.users is not None:
        only = tables.drawn(config.data, mapping.log, names.user, config.users, config.seed)
    wanted = None if mapping.duplicates == "drop" else words_in(mapping)
    log = tables.read(config.data, mapping.log, wanted, only)
    if log.frame.is_empty():
        raise DataError(f"{log.file}: has no rows; a dataset needs at least one impression")
    if mapping.duplicates == "drop":
        log = log.where(log.frame.select(pl.struct(pl.all()).is_first_distinct()).to_series())
    left_out = 0
    if mapping.unclicked_orders == "drop":
        unclicked = _label(names.order, log) > _label(names.click, log)
        log, left_out = log.where(~unclicked), int(unclicked.sum())
    return log, left_out


def _notes(mapping: Mapping, config: MappingConfig, left_out: int) -> str:
    """What people should know of where the data came from."""
    notes = [f"Mapped from {', '.join(dict.fromkeys(s.file for s in mapping.log))} by {config.file.name}."]
    if config.users is not None:
        notes.append(f"Users that were kept: {config.users}.")
    if left_out:
        notes.append(f"Orders without a click that were left out: {left_out}.")
    if mapping.time.invented:
        notes.append("It has no times: invented ones tell which file comes before which, and nothing else.")
    return " ".join(notes)


def _impressions(mapping: Mapping, log: RawTable, times: pl.Series) -> pl.DataFrame:
    """The log's rows under canonical names, in the order of the file."""
    names = mapping.columns
    users, clicks, orders = _key(log, names.user), _label(names.click, log), _label(names.order, log)
    if names.order.column is not None:
        log.refuse(names.order.column, orders > clicks, "is an order without a click; an order needs its click")
    outcomes = times
    if names.duration is not None:
        seconds = log.numbers(names.duration).fill_null(0)
        log.refuse(names.duration, seconds < 0, "is a negative duration; give seconds from 0 on")
        outcomes = times + (seconds * 1e6).cast(pl.Duration("us"))
    if names.request is not None:
        requests = _key(log, names.request)
    else:
        requests = users + "@" + times.cast(pl.Int64).cast(pl.String)
    named = {
        columns.REQUEST_ID: requests,
        columns.EVENT_TIMESTAMP: times,
        columns.OUTCOME_TIMESTAMP: outcomes,
        columns.USER_ID: users,
        columns.POI_ID: _key(log, names.poi),
        columns.SCENARIO_ID: _scenario(mapping, log),
        columns.CLICK: clicks,
        columns.ORDER: orders,
    }
    if names.position is not None:
        named[columns.POSITION] = _whole(log, names.position)
    if names.propensity is not None:
        named[columns.PROPENSITY] = _within(log, names.propensity, 0, 1)
    if names.latitude is not None and names.longitude is not None:
        named[columns.LATITUDE] = _within(log, names.latitude, -90, 90)
        named[columns.LONGITUDE] = _within(log, names.longitude, -180, 180)
    return pl.DataFrame(named)


def _key(table: RawTable, names: Key) -> pl.Series:
    """Keys as text; several columns are joined with `|`."""
    parts = [table.keys(name).alias(name) for name in names]
    return pl.DataFrame(parts).select(pl.concat_str(pl.all(), separator="|")).to_series()


def _scenario(mapping: Mapping, log: RawTable) -> pl.Series:
    rule = mapping.columns.scenario
    if rule.column is not None:
        return log.keys(rule.column)
    return pl.repeat(rule.constant, log.frame.height, dtype=pl.String, eager=True)


def _label(rule: LabelRule, log: RawTable) -> pl.Series:
    """A label as int8 0 or 1."""
    if rule.column is None:
        return pl.repeat(rule.constant, log.frame.height, dtype=pl.Int8, eager=True)
    if rule.equals is not None:
        return (log.keys(rule.column) == rule.equals).cast(pl.Int8)
    values = log.numbers(rule.column)
    log.refuse(rule.column, values.is_null(), "is empty; every row needs a label")
    if rule.at_least is not None:
        return (values >= rule.at_least).cast(pl.Int8)
    log.refuse(rule.column, ~values.is_in([0.0, 1.0]), "is neither 0 nor 1; add at_least or equals to the mapping")
    return values.cast(pl.Int8)


def _within(table: RawTable, column: str, low: float, high: float) -> pl.Series:
    values = table.numbers(column)
    table.refuse(column, ~values.is_between(low, high), f"is outside {low} .. {high}")
    return values


def _whole(table: RawTable, column: str) -> pl.Series:
    values = table.numbers(column)
    table.refuse(column, (values < 0) | (values != values.round()), "is no position; give whole numbers from 0 on")
    return values.cast(pl.Int32)


def _scene(rule: SceneRule, log: RawTable, history: pl.Series) -> tuple[RequestField, pl.Series]:
    """One request field and its values; the borders of quantile bands are those of the history part."""
    if rule.numeric:
        return RequestField(name=rule.field, dtype="float"), log.numbers(rule.column).alias(rule.field)
    if not rule.borders and rule.bands is None:
        values = log.text(rule.column).replace({"": None})
        return RequestField(name=rule.field), values.alias(rule.field)
    numbers = log.numbers(rule.column)
    borders = list(rule.borders)
    if rule.bands is not None:
        known = numbers.filter(history).drop_nulls()
        if known.is_empty():
            raise DataError(f"{log.file}, column {rule.column!r}: no numbers in the history part; give borders instead")
        cuts = [known.quantile(k / rule.bands, "linear") for k in range(1, rule.bands)]
        borders = sorted({cut for cut in cuts if cut is not None})
    words = [
        f"below {borders[0]:.12g}",
        *(f"{low:.12g} to {high:.12g}" for low, high in pairwise(borders)),
        f"{borders[-1]:.12g} or more",
    ]
    bands = pl.Series(borders).search_sorted(numbers.fill_null(0), side="right")
    values = pl.Series(rule.field, words).gather(bands).set(numbers.is_null(), None)
    return RequestField(name=rule.field, help=f"one of: {'; '.join(words)}"), values


def _split(rule: SplitRule, timezone: str, times: pl.Series) -> Split:
    if rule.fractions is not None:
        return splits.by_fractions(times, rule.fractions)
    if rule.by is not None:
        first, last = times.sort()[[0, -1]]
        return {"days": splits.by_days, "months": splits.by_months}[rule.by](first, last, timezone)
    borders = {}
    for name in ("train", "valid", "test", "end"):
        border: datetime = getattr(rule, name)
        local = border if border.tzinfo else border.replace(tzinfo=ZoneInfo(timezone))
        borders[name] = local.astimezone(UTC)
    return Split(**borders)


def _owners(
    mapping: Mapping, config: MappingConfig, what: Literal["users", "pois"], log: RawTable, times: pl.Series
) -> Entities:
    """The source of an entity table. A table must have every id of the log, unless its POIs are those `shown`."""
    rule, log_key = (mapping.users, mapping.columns.user) if what == "users" else (mapping.pois, mapping.columns.poi)
    names = rule.key or log_key
    if not rule.file:
        ids = _key(log, names)
        first = pl.DataFrame({"id": ids, "time": times}).with_row_index().sort("time", maintain_order=True)
        rows = first.unique("id", keep="first", maintain_order=True)["index"]
        return Entities(table=log.take(rows), ids=ids[rows], times=times[rows])
    table = tables.read(config.data, rule.file, words_in(mapping))
    ids, used = _key(table, names), _key(log, log_key)
    if isinstance(rule, PoiTable) and rule.which == "shown":
        return _shown(table, ids, names, used.unique().sort())
    table.refuse(names[0], ~ids.is_first_distinct(), "stands in an earlier row too; keys are unique")
    log.refuse(log_key[0], ~used.is_in(ids.implode()), f"is not in {table.file.name}; add it there")
    if what == "users" and config.users is not None:
        known = ids.is_in(used.implode())
        table, ids = table.where(known), ids.filter(known)
    return Entities(table=table, ids=ids, times=None)


def _shown(table: RawTable, ids: pl.Series, names: Key, used: pl.Series) -> Entities:
    """Each id that is used, with its first row of the table or, without any, with nothing but itself."""
    told = table.where(ids.is_first_distinct() & ids.is_in(used.implode()))
    told_ids = _key(told, names)
    untold = used.filter(~used.is_in(told_ids.implode()))
    nothing = pl.DataFrame({names[0]: untold}) if len(names) == 1 else pl.DataFrame(height=len(untold))
    frame = pl.concat([told.frame, nothing], how="diagonal_relaxed")
    return Entities(table=replace(told, frame=frame), ids=told_ids.append(untold), times=None)


def _users(mapping: Mapping, users: Entities, start: datetime, where: Path) -> pl.DataFrame:
    rules = mapping.users.attributes
    named = {columns.USER_ID: users.ids} | {rule.field: users.table.text(rule.column) for rule in rules}
    template = mapping.users.text or " ".join(["A user.", *(f"{r.field}: {{{r.column}}}." for r in rules)])
    named[columns.TEXT] = _fill(template, users.table, f"{where}: users.text")
    return _first_rows(named, users, start)


def _pois(mapping: Mapping, pois: Entities, start: datetime, where: Path, scenarios: pl.Series) -> pl.DataFrame:
    rule, table = mapping.pois, pois.table
    named = {columns.POI_ID: pois.ids, columns.NAME: pois.ids}
    if rule.name is not None:
        named[columns.NAME] = table.text(rule.name).fill_null(pois.ids)
    named[columns.CATEGORY] = pl.repeat(UNKNOWN, table.frame.height, dtype=pl.String, eager=True)
    if rule.category is not None:
        named[columns.CATEGORY] = table.text(rule.category).fill_null(UNKNOWN)
    if rule.specialty is not None:
        named[columns.SPECIALTY] = table.text(rule.specialty)
    if rule.latitude is not None and rule.longitude is not None:
        named[columns.POI_LATITUDE] = _within(table, rule.latitude, -90, 90)
        named[columns.POI_LONGITUDE] = _within(table, rule.longitude, -180, 180)
    if rule.scenarios is not None:
        named[columns.SHOWN_IN] = _shown_in(rule.scenarios, table, scenarios)
    named |= {attribute.field: table.text(attribute.column) for attribute in rule.attributes}
    told = [name for name in (rule.name, rule.category, rule.specialty) if name is not None]
    default = " ".join(f"{{{name}}}." for name in told) or " ".join(f"{{{n}}}" for n in rule.key or mapping.columns.poi)
    named[columns.TEXT] = _fill(rule.text or default, table, f"{where}: pois.text")
    return _first_rows(named, pois, start)


def _shown_in(rule: ShownRule, table: RawTable, scenarios: pl.Series) -> pl.Series:
    """Of each POI the scenarios that may show it, a list; null: every one."""
    table.require([rule.column])
    lists = table.frame[rule.column]
    if isinstance(lists.dtype, pl.List) and not lists.dtype.inner.is_nested():
        lists = lists.cast(pl.List(pl.String))
    else:
        lists = table.text(rule.column).replace({"": None}).str.split(rule.separator)
    unknown = lists.list.set_difference(scenarios.to_list())
    bad = unknown.list.len() > 0
    if bad.any():
        word = unknown.filter(bad)[0][0]
        why = f"names the unknown scenario {word!r}; add it under scenarios{nearest(str(word), scenarios)}"
        table.refuse(rule.column, bad, why)
    return lists


def _first_rows(named: dict[str, pl.Series], source: Entities, start: datetime) -> pl.DataFrame:
    """A table with its clocks: known from the start of the log, or (from the log) from an id's first row on."""
    frame = pl.DataFrame(named)
    if source.times is None:
        return frames.known_since(frame, start)
    return frame.with_columns(source.times.alias(name) for name in (columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP))


def _scenarios(mapping: Mapping, used: pl.Series, start: datetime) -> pl.DataFrame:
    ids = sorted({*used.unique(), *mapping.scenarios})
    texts = {key: (rule.name, rule.text) for key, rule in mapping.scenarios.items()}
    rows = [(key, *texts.get(key, (key, f"The page or channel called {key}."))) for key in ids]
    frame = pl.DataFrame(rows, schema=[columns.SCENARIO_ID, columns.NAME, columns.TEXT], orient="row")
    return frames.known_since(frame, start)


def _fill(template: str, table: RawTable, place: str) -> pl.Series:
    """A text for each row: the template with the values of the columns that it names in braces."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"{place}: {template!r} is not a template: {error}; write columns as {{column}}") from error
    parts: list[pl.Expr] = []
    for literal, name, form, conversion in parsed:
        parts.append(pl.lit(literal))
        if name is None:
            continue
        if form or conversion:
            raise DataError(
                f"{place}: {{{name}{'!' if conversion else ':'}...}}: values stand as they are; write {{{name}}}"
            )
        if name not in table.frame.columns:
            raise DataError(f"{place}: {table.file.name} has no column {name!r}{table.nearest(name)}")
        parts.append(pl.lit(table.text(name).fill_null(UNKNOWN)))
    return table.frame.with_columns(pl.concat_str(parts).alias(columns.TEXT))[columns.TEXT]
