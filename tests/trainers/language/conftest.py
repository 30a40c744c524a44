"""A town of two places whose texts can be written down by hand, and the tiny language model that embeds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from feature_repo import aggregates, columns
from feature_repo.datasets.schema import Dataset, RequestField, Schema, Split
from feature_repo.workspace import Workspace
from trainers.language.encoder import EncoderConfig
from trainers.language.model import Embedder, Provenance

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)  # a Monday, 10:00 in Helsinki


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> EncoderConfig:
    return EncoderConfig(model=str(tiny_model), dtype="float32", threads=1, models=tmp_path / "models")


@pytest.fixture
def tuned(tiny: EncoderConfig, tmp_path: Path) -> Callable[[Embedder | None], EncoderConfig]:
    """The tiny model as training leaves it, having seen ten hours of the log."""

    def leave(embedder: Embedder | None = None) -> EncoderConfig:
        folder = tmp_path / "tuned"
        shutil.copytree(tiny.model, folder, dirs_exist_ok=True)
        note = Provenance(stage="contrast", base="tiny", available_at=at(10), config={}, embedder=embedder)
        note.write(folder)
        return replace(tiny, model=str(folder))

    return leave


@pytest.fixture
def town(tmp_path: Path) -> Workspace:
    """User u1 clicks the bakery at 10:00 and is back at 13:00 in the rain, u2 comes at 23:00 for the first time."""
    schema = Schema(
        dataset="town",
        timezone="Europe/Helsinki",
        split=Split(train=at(24), valid=at(48), test=at(72), end=at(96)),
        request_fields=(RequestField(name="weather"), RequestField(name="mood")),
        scene_fields=("mood",),
    )
    hours = [0.0, 3.0, 13.0]
    tables = {
        "impressions": {
            columns.ROW_ID: [1, 2, 3],
            columns.REQUEST_ID: ["r1", "r2", "r3"],
            columns.EVENT_TIMESTAMP: [at(h) for h in hours],
            columns.OUTCOME_TIMESTAMP: [at(h + 0.01) for h in hours],
            columns.USER_ID: ["u1", "u1", "u2"],
            columns.POI_ID: ["p1", "p2", "p1"],
            columns.SCENARIO_ID: ["home"] * 3,
            columns.CLICK: [1, 0, 0],
            columns.ORDER: [0, 0, 0],
            columns.POSITION: [1, 1, 1],
            columns.PROPENSITY: [0.5] * 3,
            columns.LATITUDE: [60.17] * 3,
            columns.LONGITUDE: [24.94] * 3,
            "weather": ["clear", "rain", "rain"],
            "mood": ["in a hurry", None, ""],
        },
        "users": _entities(columns.USER_ID, {"u1": "Likes rye bread.", "u2": "Likes fish."}),
        "pois": _entities(columns.POI_ID, {"p1": "A bakery by the park.", "p2": "A ramen bar."})
        | {
            columns.NAME: ["Crumb", "Slurp"],
            columns.CATEGORY: ["bakery", "noodles"],
            columns.SPECIALTY: ["rye bread", None],
            columns.OPEN_HOURS: [None, None],
            columns.POI_LATITUDE: [60.17] * 2,
            columns.POI_LONGITUDE: [24.94] * 2,
        },
        "scenarios": _entities(columns.SCENARIO_ID, {"home": "The first page."}) | {columns.NAME: ["Home"]},
    }
    workspace = Workspace(tmp_path / "town")
    Dataset(schema=schema, tables={name: pa.table(table) for name, table in tables.items()}).write(workspace.sources)
    aggregates.build(workspace)
    return workspace


class Shown(NamedTuple):
    """One POI that was shown to a user, an hour of the log in a request."""

    hour: float
    user: str
    poi: str
    click: bool = True
    weather: str = "clear"
    outcome: float = 0.01  # hours until it was known whether there was a click
    scenario: str = "home"


class Place(NamedTuple):
    """A POI of a street."""

    id: str
    category: str
    text: str = ""
    specialty: str | None = None


Street = Callable[[Sequence[tuple[Any, ...]], Sequence[tuple[Any, ...]]], Workspace]


@pytest.fixture
def street(tmp_path: Path) -> Street:
    """`street(places, shown)`: a workspace with these POIs and this log, as tuples of `Place` and `Shown`."""
    return lambda places, shown: _street(tmp_path / "street", [Place(*p) for p in places], [Shown(*s) for s in shown])


def _street(folder: Path, places: Sequence[Place], shown: Sequence[Shown]) -> Workspace:
    """What is shown to a user at one hour is one request. The history part is a day long."""
    split = Split(train=at(24), valid=at(48), test=at(72), end=at(96))
    fields = (RequestField(name="weather"),)
    schema = Schema(dataset="street", timezone="Europe/Helsinki", split=split, request_fields=fields)
    count = len(shown)
    users = sorted({row.user for row in shown})
    texts = {"home": "The first page.", "search": "What was asked for."}
    scenarios = [s for s in texts if s == "home" or s in {row.scenario for row in shown}]
    tables = {
        "impressions": {
            columns.ROW_ID: list(range(count)),
            columns.REQUEST_ID: [f"{row.user} at {row.hour}" for row in shown],
            columns.EVENT_TIMESTAMP: [at(row.hour) for row in shown],
            columns.OUTCOME_TIMESTAMP: [at(row.hour + row.outcome) for row in shown],
            columns.USER_ID: [row.user for row in shown],
            columns.POI_ID: [row.poi for row in shown],
            columns.SCENARIO_ID: [row.scenario for row in shown],
            columns.CLICK: [int(row.click) for row in shown],
            columns.ORDER: [0] * count,
            columns.POSITION: [1] * count,
            columns.PROPENSITY: [0.5] * count,
            columns.LATITUDE: [60.17] * count,
            columns.LONGITUDE: [24.94] * count,
            "weather": [row.weather for row in shown],
        },
        "users": _entities(columns.USER_ID, {user: f"This is {user}." for user in users}),
        "pois": _entities(columns.POI_ID, {p.id: p.text or f"Place {p.id} is a {p.category}." for p in places})
        | {
            columns.NAME: [p.id for p in places],
            columns.CATEGORY: [p.category for p in places],
            columns.SPECIALTY: pa.array([p.specialty for p in places], pa.string()),
            columns.OPEN_HOURS: pa.nulls(len(places), pa.string()),
            columns.POI_LATITUDE: [60.17] * len(places),
            columns.POI_LONGITUDE: [24.94] * len(places),
        },
        "scenarios": _entities(columns.SCENARIO_ID, {s: texts[s] for s in scenarios})
        | {columns.NAME: [s.capitalize() for s in scenarios]},
    }
    workspace = Workspace(folder)
    Dataset(schema=schema, tables={name: pa.table(table) for name, table in tables.items()}).write(workspace.sources)
    aggregates.build(workspace)
    return workspace


def _entities(key: str, texts: dict[str, str]) -> dict[str, list[object]]:
    """The first entity is known an hour before the log starts, the second two hours, and so on."""
    times: list[object] = [at(-1 - i) for i in range(len(texts))]
    return {
        key: list(texts),
        columns.EVENT_TIMESTAMP: times,
        columns.CREATED_TIMESTAMP: times,
        columns.TEXT: list(texts.values()),
    }
