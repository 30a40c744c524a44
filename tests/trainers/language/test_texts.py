"""Texts of a town whose scenes can be worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from feature_repo import columns, scenes
from feature_repo.workspace import Workspace
from trainers.language.texts import TextError, collect

MONDAY = {hour: datetime(2026, 3, 2, hour, tzinfo=UTC) for hour in (6, 7, 8, 11, 21)}  # UTC; Helsinki is two ahead


def test_static_texts_come_with_their_first_appearance(town: Workspace) -> None:
    assert collect(town, "poi_text").to_pylist() == [
        {
            columns.POI_ID: poi,
            columns.TEXT: text,
            columns.EVENT_TIMESTAMP: MONDAY[hour],
            columns.CREATED_TIMESTAMP: MONDAY[hour],
        }
        for poi, text, hour in (("p2", "A ramen bar.", 6), ("p1", "A bakery by the park.", 7))
    ]
    assert collect(town, "user_text")[columns.USER_ID].to_pylist() == ["u2", "u1"]
    assert collect(town, "scenario_text")[columns.TEXT].to_pylist() == ["The first page."]


DECLARED = (
    scenes.SceneFeature(name="daypart", inputs=(columns.LOCAL_TIME,), value=scenes.daypart, sentence="It is {value}."),
    scenes.SceneFeature(name="weather", inputs=("weather",), value=scenes.as_given, sentence="Outside: {value}."),
    scenes.SceneFeature(name="wind", inputs=("wind",), value=scenes.as_given, sentence="No request carries {value}."),
    scenes.SceneFeature(
        name="last_category", inputs=(columns.LAST_CATEGORY,), value=scenes.as_given, sentence="Saw a {value}."
    ),
    scenes.SceneFeature(
        name="last_specialty", inputs=(columns.LAST_SPECIALTY,), value=scenes.as_given, sentence="Saw {value}."
    ),
)


def test_every_scene_value_has_its_sentence_and_its_first_moment(
    town: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "FEATURES", DECLARED)
    rows = collect(town, "scene_text").to_pylist()
    found = {row[columns.SCENE_VALUE]: (row[columns.TEXT], row[columns.EVENT_TIMESTAMP]) for row in rows}
    assert found == {
        "daypart=morning": ("It is morning.", MONDAY[8]),
        "daypart=lunch": ("It is lunch.", MONDAY[11]),
        "daypart=night": ("It is night.", MONDAY[21]),
        "weather=clear": ("Outside: clear.", MONDAY[8]),
        "weather=rain": ("Outside: rain.", MONDAY[11]),
        "mood=in a hurry": ("mood: in a hurry.", MONDAY[8]),
        # What may be clicked is known from the POIs, before any click.
        "last_category=bakery": ("Saw a bakery.", MONDAY[7]),
        "last_category=noodles": ("Saw a noodles.", MONDAY[6]),
        "last_specialty=rye bread": ("Saw rye bread.", MONDAY[7]),
    }


def test_state_as_of_the_impression_is_read(town: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature of the last click is seen at 11:00 UTC only, when u1 is back: not before, and not for u2."""
    came_back = scenes.SceneFeature(
        name="returned",
        inputs=(columns.LAST_CATEGORY, scenes.EVENT_TIME_US),
        value=lambda last, now: last and f"after {last}",
        sentence="The user is back {value}.",
    )
    monkeypatch.setattr(scenes, "FEATURES", (came_back,))
    rows = collect(town, "scene_text").to_pylist()
    assert {r[columns.SCENE_VALUE]: r[columns.EVENT_TIMESTAMP] for r in rows} == {
        "returned=after bakery": MONDAY[11],
        "mood=in a hurry": MONDAY[8],
    }


def test_a_missing_table_and_an_unknown_space_are_named(town: Workspace) -> None:
    town.source("user_state").unlink()
    with pytest.raises(TextError, match=r"user_state\.parquet is missing"):
        collect(town, "scene_text")
    with pytest.raises(TextError, match="'menu_text'"):
        collect(town, "menu_text")
