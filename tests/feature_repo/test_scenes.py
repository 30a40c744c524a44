import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from feature_repo import columns, scenes
from feature_repo.datasets.schema import DataError, RequestField, Schema, Split

START = datetime(2015, 3, 1, tzinfo=UTC)


def schema(*fields: RequestField, scene_fields: tuple[str, ...] = ()) -> Schema:
    days = [START + timedelta(days=d) for d in (1, 2, 3, 4)]
    split = Split(train=days[0], valid=days[1], test=days[2], end=days[3])
    return Schema(
        dataset="tiny", timezone="Europe/Helsinki", split=split, request_fields=fields, scene_fields=scene_fields
    )


def microseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1e6)


def test_the_local_clock_decides_through_daylight_saving():
    # 2015-03-29 in Helsinki: 00:30 UTC is 02:30, an hour later it is 04:30; 02:00 UTC is 05:00, morning.
    times = [microseconds(f"2015-03-29T{hour}+00:00") for hour in ("00:30", "01:30", "02:00")]
    values = scenes.evaluate({scenes.EVENT_TIME_US: times}, schema())
    assert values[columns.scene("hour")] == ["02:00", "04:00", "05:00"]
    assert values[columns.scene("daypart")] == ["night", "night", "morning"]
    assert values[columns.scene("weekday")] == ["Sunday"] * 3


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, pd.NaT])
def test_every_spelling_of_missing_is_none(missing):
    wanted = schema(RequestField(name="weather"), RequestField(name="temperature", dtype="float"))
    inputs = {scenes.EVENT_TIME_US: [0], "weather": [missing], "temperature": [missing]}
    values = scenes.evaluate(inputs, wanted)
    assert values[columns.scene("weather")] == [None]
    assert values[columns.scene("temperature_band")] == [None]


@pytest.mark.parametrize(("degrees", "word"), [(-5.1, "freezing"), (-5.0, "cold"), (21.9, "mild"), (28.0, "hot")])
def test_borders_of_temperature_belong_to_the_warmer_band(degrees, word):
    assert scenes.temperature_band(degrees) == word


@pytest.mark.parametrize(
    ("hours", "word"), [(0, "just now"), (3, "some hours ago"), (29.9, "a day ago"), (200, "long ago")]
)
def test_time_since_the_last_order(hours, word):
    assert scenes.since_last_order(int(hours * 3.6e9), 0) == word


def test_a_dataset_has_the_features_whose_inputs_it_has():
    names = {f.name for f in scenes.features_of(schema())}
    assert "daypart" in names and "weather" not in names
    named = scenes.features_of(schema(RequestField(name="mood"), scene_fields=("mood",)))
    assert named[-1].name == "mood" and named[-1].sentence.format(value="glad") == "mood: glad."


def test_a_declaration_changes_its_fingerprint_with_its_words_and_its_code():
    feature = scenes.FEATURES[0]
    reworded = scenes.SceneFeature(
        name=feature.name, inputs=feature.inputs, value=feature.value, sentence="Now it is {value}."
    )
    recoded = scenes.SceneFeature(
        name=feature.name, inputs=feature.inputs, value=lambda local_time: "late", sentence=feature.sentence
    )
    assert len({f.fingerprint() for f in (feature, reworded, recoded)}) == 3


def test_one_row_and_many_rows_agree():
    times = [microseconds("2015-03-05T10:00+00:00") + i * 3_600_000_000 for i in range(50)]
    whole = scenes.evaluate({scenes.EVENT_TIME_US: times}, schema())
    for i, time in enumerate(times):
        alone = scenes.evaluate({scenes.EVENT_TIME_US: [time]}, schema())
        assert {name: [v[i]] for name, v in whole.items()} == alone


def test_words_are_not_taken_for_the_numbers_that_a_declared_feature_reads():
    wanted = schema(RequestField(name="temperature"), scene_fields=("temperature",))
    values = scenes.evaluate({scenes.EVENT_TIME_US: [0], "temperature": ["chilly"]}, wanted)
    assert values[columns.scene("temperature")] == ["chilly"]
    assert columns.scene("temperature_band") not in values


def test_a_number_is_read_by_a_feature_that_says_so(monkeypatch):
    def wetness(rainfall: float | None) -> str | None:
        return None if rainfall is None else "wet" if rainfall > 1 else "dry"

    wanted = schema(RequestField(name="rainfall", dtype="float"))
    feature = scenes.SceneFeature(name="wetness", inputs=("rainfall",), value=wetness, sentence="It is {value}.")
    monkeypatch.setattr(scenes, "FEATURES", (feature,))
    with pytest.raises(DataError, match=r"'wetness' reads \['rainfall'\] of tiny, which are numbers.*numbers="):
        scenes.features_of(wanted)
    monkeypatch.setattr(scenes, "FEATURES", (replace(feature, numbers=("rainfall",)),))
    values = scenes.evaluate({scenes.EVENT_TIME_US: [0, 0], "rainfall": [3.0, None]}, wanted)
    assert values[columns.scene("wetness")] == ["wet", None]


def test_a_scene_field_cannot_take_the_name_of_another_feature():
    with pytest.raises(DataError, match="hour"):
        scenes.features_of(schema(RequestField(name="hour"), scene_fields=("hour",)))


@pytest.mark.parametrize("name", ["category", "specialty", "user_id", "event_time_us"])
def test_a_request_field_cannot_take_the_name_of_a_column_of_any_table(name):
    with pytest.raises(DataError, match=name):
        schema(RequestField(name=name))
