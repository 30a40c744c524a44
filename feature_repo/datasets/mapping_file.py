"""The mapping file, typed: a YAML that says which column of somebody's log is what (docs/mapping.md shows one).

Parsed strictly: an unknown key, a missing one or a value of the wrong kind is a DataError that names the place in the
file and, for a misspelt key, the nearest one that exists.
"""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from feature_repo.columns import WINDOW_DAYS
from feature_repo.datasets.raw import nearest
from feature_repo.datasets.schema import DataError

STRICT = ConfigDict(extra="forbid")


def _column(value: object) -> object:
    """The short form: a bare name means `{column: name}`."""
    return {"column": value} if isinstance(value, str) else value


def _names(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _files(value: object) -> object:
    """The short forms: a bare name means `{file: name}`, and one file a list of one."""
    files = value if isinstance(value, list | tuple) else [value]
    return [{"file": file} if isinstance(file, str) else file for file in files]


# The columns whose values, joined with `|`, make a key; usually one.
Key = Annotated[tuple[str, ...], BeforeValidator(_names)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceFile:
    """One of the files whose rows, one after the other, make a table.

    Args:
        rename: its columns under the names that the mapping uses, old name: new name.
        add: columns with one value in all of its rows.
        every, offset: take only the rows `offset`, `offset + every` and so on, counted from 0.
    """

    file: str
    rename: dict[str, str] = dataclasses.field(default_factory=dict)
    add: dict[str, str] = dataclasses.field(default_factory=dict)
    every: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.offset < self.every:
            raise ValueError("offset must be from 0 to every - 1")


Files = Annotated[tuple[SourceFile, ...], BeforeValidator(_files)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelRule:
    """A label of 0 or 1: a column of 0/1 or true/false, made so by `at_least` or `equals`; or a constant."""

    column: str | None = None
    at_least: float | None = None
    equals: str | None = None
    constant: Literal[0, 1] | None = None

    def __post_init__(self) -> None:
        if (self.column is None) == (self.constant is None):
            raise ValueError("needs either a column or a constant")
        if self.at_least is not None and self.equals is not None:
            raise ValueError("takes at_least or equals, not both")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScenarioRule:
    """The scenario of a row: a column, or one constant for the whole log."""

    column: str | None = None
    constant: str | None = None

    def __post_init__(self) -> None:
        if (self.column is None) == (self.constant is None):
            raise ValueError("needs either a column or a constant")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LogColumns:
    """Which column of the log is what; only user, poi, time and click must exist."""

    user: Key
    poi: Key
    time: str
    click: Annotated[LabelRule, BeforeValidator(_column)]
    order: Annotated[LabelRule, BeforeValidator(_column)] = LabelRule(constant=0)
    scenario: Annotated[ScenarioRule, BeforeValidator(_column)] = ScenarioRule(constant="all")
    request: Key | None = None
    position: str | None = None
    propensity: str | None = None
    latitude: str | None = None
    longitude: str | None = None
    duration: str | None = None

    def __post_init__(self) -> None:
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError("latitude and longitude come together")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TimeRule:
    """How times are written: a unit since 1970 (UTC), a strptime pattern, or (neither) ISO 8601.

    Args:
        invented: the log has no times, and the mapping's only say which file comes before which.
    """

    unit: Literal["seconds", "milliseconds", "microseconds"] | None = None
    pattern: str | None = None
    invented: bool = False

    def __post_init__(self) -> None:
        if self.unit and self.pattern:
            raise ValueError("takes unit or pattern, not both")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SceneRule:
    """One field of the request's context.

    Words are taken as they stand. Numbers become words by `borders` (a border belongs to the upper band) or by
    `bands` (that many quantiles of the history part); `numeric: true` hands the number to a declared scene feature.
    """

    column: str
    name: str = ""
    borders: tuple[float, ...] = ()
    bands: int | None = None
    numeric: bool = False

    def __post_init__(self) -> None:
        if bool(self.borders) + (self.bands is not None) + self.numeric > 1:
            raise ValueError("takes one of borders, bands, numeric")
        if list(self.borders) != sorted(set(self.borders)):
            raise ValueError("borders must rise")
        if self.bands is not None and self.bands < 2:
            raise ValueError("bands must be 2 or more")

    @property
    def field(self) -> str:
        return self.name or self.column


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttributeRule:
    """A column carried as an attribute, under its own or another name."""

    column: str
    name: str = ""

    @property
    def field(self) -> str:
        return self.name or self.column


Attributes = tuple[Annotated[AttributeRule, BeforeValidator(_column)], ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShownRule:
    """The scenarios that may show a POI: a column of lists of ids, or of texts with `separator` between ids."""

    column: str
    separator: str = "|"

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("separator needs at least one character")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UserTable:
    """Users from a table of their own, or (no file) from the log's columns as of a user's first row."""

    file: Files = ()
    key: Key | None = None
    attributes: Attributes = ()
    text: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoiTable:
    """POIs from a table of their own, or (no file) from the log's columns as of a POI's first row.

    Args:
        which: `all`: each row of the table is a POI, and the log shows no others; `shown`: the POIs are those that the
            log shows, of which the table may tell more (its first row of each counts) or nothing.
        scenarios: that may show a POI; every one where a text is empty or null, or there is no such column.
    """

    file: Files = ()
    key: Key | None = None
    name: str | None = None
    category: str | None = None
    specialty: str | None = None
    latitude: str | None = None
    longitude: str | None = None
    attributes: Attributes = ()
    text: str | None = None
    scenarios: Annotated[ShownRule, BeforeValidator(_column)] | None = None
    which: Literal["all", "shown"] = "all"

    def __post_init__(self) -> None:
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError("latitude and longitude come together")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScenarioText:
    """What a scenario is called and what it is, in words."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitRule:
    """Shares of the rows in time order, whole local days or months, or four local times.

    Args:
        by: the last one is the test part, the one before it the validation part (`splits`).
        train, valid, test, end: where the parts begin and where all ends.
    """

    fractions: tuple[float, float, float, float] | None = None
    by: Literal["days", "months"] | None = None
    train: datetime | None = None
    valid: datetime | None = None
    test: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        given = [border is not None for border in (self.train, self.valid, self.test, self.end)]
        ways = (self.fractions is not None) + (self.by is not None) + any(given)
        if any(given) != all(given) or ways != 1:
            raise ValueError("needs fractions, by, or all of train, valid, test and end")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Mapping:
    """One mapping file. Paths in it are relative to it, or to the folder of the data where that is another one."""

    log: Files
    columns: LogColumns
    dataset: str = ""
    timezone: str = "UTC"
    time: TimeRule = TimeRule()
    duplicates: Literal["keep", "drop"] = "keep"
    unclicked_orders: Literal["refuse", "drop"] = "refuse"
    scene: tuple[Annotated[SceneRule, BeforeValidator(_column)], ...] = ()
    users: UserTable = UserTable()
    pois: PoiTable = PoiTable()
    scenarios: dict[str, ScenarioText] = dataclasses.field(default_factory=dict)
    split: SplitRule = SplitRule(fractions=(0.4, 0.4, 0.1, 0.1))
    statistics: tuple[str, ...] = ()
    window_days: tuple[int, ...] = WINDOW_DAYS
    like_minded: bool = False
    near_km: float = 1.0

    def __post_init__(self) -> None:
        if not self.log:
            raise ValueError("log needs a file")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"timezone {self.timezone!r} is not known; give a name such as Europe/Helsinki") from error


def read_mapping(file: Path) -> Mapping:
    """Parse a mapping file. Raises DataError naming the file, the place in it and the remedy."""
    if not file.is_file():
        raise DataError(f"{file}: no such mapping file")
    try:
        raw = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise DataError(f"{file}: holds no keys; a mapping needs at least log and columns")
    try:
        return TypeAdapter(Mapping).validate_python(raw)
    except ValidationError as error:
        raise DataError(f"{file}: {_explain(error)}") from error


def words_in(mapping: Mapping) -> frozenset[str]:
    """Every word of a mapping, and every name in braces: among them are all columns that it reads."""
    found: set[str] = set()
    waiting: list[object] = [dataclasses.asdict(mapping)]
    while waiting:
        match waiting.pop():
            case dict() as entries:
                waiting += entries.values()
            case list() | tuple() as items:
                waiting += items
            case str() as text:
                found |= {text, *re.findall(r"{([^{}]*)}", text)}
    return frozenset(found)


def _explain(error: ValidationError) -> str:
    """One problem, in words: an unknown key first, since it is often the misspelt form of a missing one."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "unexpected_keyword_argument"), problems[0])
    place = ".".join(str(step) for step in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        *parents, key = (str(step) for step in first["loc"])
        return f"{place}: unknown key{nearest(key, _keys_at(parents))}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{place}: is missing; every mapping needs it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place or 'mapping'}: {message} (got {first['input']!r})" if place else message


def _keys_at(parents: list[str]) -> list[str]:
    """The keys that a place in the file may have: follow the type hints down from `Mapping`."""
    at: object = Mapping
    for step in parents:
        if dataclasses.is_dataclass(at) and step in (hints := get_type_hints(at)):
            at = _dataclass_in(hints[step])
    return [f.name for f in dataclasses.fields(at)] if dataclasses.is_dataclass(at) else []


def _dataclass_in(hint: object) -> object:
    """The dataclass inside `X | None`, `tuple[X, ...]` or `dict[str, X]`."""
    if dataclasses.is_dataclass(hint):
        return hint
    inner = (_dataclass_in(argument) for argument in get_args(hint))
    return next((found for found in inner if found is not None), None)
