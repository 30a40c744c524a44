"""Knowledge files over their life: a second run, new and changed texts, other models, and runs that break off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import columns
from feature_repo.workspace import Workspace
from trainers.knowledge import load_matrix
from trainers.language import embed as stage
from trainers.language.embed import NEVER_US, EmbedReport, Record, Text, embed, merge
from trainers.language.encoder import EncoderConfig, TextEncoder
from trainers.language.model import Embedder, ModelError
from trainers.language.texts import collect

NOW = datetime(2026, 5, 1, tzinfo=UTC)
LATER = datetime(2026, 3, 20, 12, 0, tzinfo=UTC)


def change_text(workspace: Workspace, table: str, key: str, text: str, time: datetime) -> None:
    """Give an entity of a source table a text from a time on; one that is not there is added."""
    path = workspace.source(table)
    rows = pq.read_table(path).to_pylist()
    column = next(name for name in rows[0] if name.endswith("_id"))
    row = next((r for r in rows if r[column] == key), None)
    if row is None:
        row = dict(rows[0])
        rows.append(row)
    row |= {column: key, columns.TEXT: text, columns.EVENT_TIMESTAMP: time, columns.CREATED_TIMESTAMP: time}
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)


def micro(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def computed(report: EmbedReport) -> dict[str, int]:
    return {s.space: s.computed for s in report.spaces}


def file_of(workspace: Workspace, space: str) -> Path:
    return workspace.knowledge / f"{space}.parquet"


def scene_values(workspace: Workspace) -> list[str]:
    return list(collect(workspace, "scene_text")[columns.SCENE_VALUE].to_pylist())


def row_of(workspace: Workspace, key: str, time: datetime, space: str = "poi_text") -> int:
    return int(load_matrix(file_of(workspace, space)).rows_at([key], np.array([micro(time)]))[0])


def test_every_space_is_written_with_the_encoders_vectors(town: Workspace, tiny: EncoderConfig) -> None:
    report = embed(town, tiny)
    assert computed(report) == {
        "poi_text": 2,
        "user_text": 2,
        "scenario_text": 1,
        "scene_text": len(scene_values(town)),
    }
    assert all(s.reused == 0 and s.version == tiny.version(s.space) for s in report.spaces)
    table = pq.read_table(file_of(town, "poi_text"))
    assert table.column_names == [
        columns.POI_ID,
        columns.EVENT_TIMESTAMP,
        columns.CREATED_TIMESTAMP,
        *(f"poi_text_{f}" for f in ("row", "version", "text_hash", "text", "vector", "model", "computed_at")),
    ]
    assert table["poi_text_model"].to_pylist() == [f"{tiny.model} float32"] * 2
    expected = TextEncoder(tiny).encode(["A ramen bar.", "A bakery by the park."], "poi_text")
    np.testing.assert_allclose(load_matrix(file_of(town, "poi_text")).matrix[1:], expected, atol=1e-5)
    assert table[columns.POI_ID].to_pylist() == ["p2", "p1"]


def test_a_second_run_embeds_nothing_and_touches_nothing(
    town: Workspace, tiny: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed(town, tiny)
    before = {p: p.stat().st_mtime_ns for p in town.knowledge.rglob("*.parquet")}
    monkeypatch.delattr(stage, "TextEncoder")  # a model that is not needed is not loaded
    second = embed(town, tiny)
    assert set(computed(second).values()) == {0}
    assert [s.reused for s in second.spaces] == [s.texts for s in first.spaces]
    assert {p: p.stat().st_mtime_ns for p in town.knowledge.rglob("*.parquet")} == before


def test_new_and_changed_texts_are_appended_and_old_rows_stay(town: Workspace, tiny: EncoderConfig) -> None:
    embed(town, tiny)
    old = load_matrix(file_of(town, "poi_text"))
    change_text(town, "pois", "p1", "A bakery, now with soup.", LATER)
    change_text(town, "pois", "p3", "A pizzeria.", LATER)
    assert computed(embed(town, tiny, spaces=["poi_text"])) == {"poi_text": 2}
    new = load_matrix(file_of(town, "poi_text"))
    np.testing.assert_array_equal(new.matrix[:3], old.matrix)
    assert len(new.matrix) == 5
    just_before = LATER - timedelta(microseconds=1)
    assert [row_of(town, "p1", t) for t in (just_before, LATER)] == [2, 3]
    assert [row_of(town, "p3", t) for t in (just_before, LATER)] == [0, 4]
    assert row_of(town, "p2", LATER) == 1


def test_a_text_that_comes_back_gets_its_row_back(town: Workspace, tiny: EncoderConfig) -> None:
    embed(town, tiny, spaces=["poi_text"])
    change_text(town, "pois", "p1", "Closed for repairs.", LATER)
    embed(town, tiny, spaces=["poi_text"])
    change_text(town, "pois", "p1", "A bakery by the park.", LATER + timedelta(days=1))
    assert computed(embed(town, tiny, spaces=["poi_text"])) == {"poi_text": 0}
    times = (LATER - timedelta(days=1), LATER, LATER + timedelta(days=1))
    assert [row_of(town, "p1", t) for t in times] == [2, 3, 2]


def test_equal_texts_are_embedded_once_and_have_a_row_each(town: Workspace, tiny: EncoderConfig) -> None:
    change_text(town, "pois", "p2", "A bakery by the park.", LATER)
    report = embed(town, tiny, spaces=["poi_text"])
    matrix = load_matrix(file_of(town, "poi_text")).matrix
    assert len(matrix) == 3
    np.testing.assert_array_equal(matrix[1], matrix[2])
    assert report.spaces[0].texts == report.spaces[0].computed == 2


def test_another_version_starts_at_row_one_and_the_way_back_is_free(town: Workspace, tiny: EncoderConfig) -> None:
    embed(town, tiny, spaces=["poi_text"])
    first = file_of(town, "poi_text").read_bytes()
    other = dataclasses.replace(tiny, pooling="mean")
    assert computed(embed(town, other, spaces=["poi_text"])) == {"poi_text": 2}
    loaded = load_matrix(file_of(town, "poi_text"))
    assert loaded.version == other.version("poi_text")
    assert sorted(loaded.rows) == [1, 2]
    assert computed(embed(town, tiny, spaces=["poi_text"])) == {"poi_text": 0}
    assert file_of(town, "poi_text").read_bytes() == first


def test_a_space_without_texts_is_an_empty_file(town: Workspace, tiny: EncoderConfig) -> None:
    path = town.source("users")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    for _ in range(2):
        assert embed(town, tiny, spaces=["user_text"]).spaces[0].texts == 0
    assert pq.read_table(file_of(town, "user_text")).num_rows == 0


START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
CUT_OFF = START + timedelta(hours=10)
AN_INSTANT = timedelta(microseconds=1)
Tuned = Callable[[Embedder | None], EncoderConfig]


def test_what_a_tuned_model_writes_was_not_available_before_its_cut_off(town: Workspace, tuned: Tuned) -> None:
    change_text(town, "pois", "p2", "A ramen bar by the sea.", CUT_OFF + timedelta(hours=1))
    embed(town, tuned(None))
    assert [row_of(town, "p1", t) for t in (START, CUT_OFF - AN_INSTANT, CUT_OFF)] == [0, 0, 1]
    hour_later = CUT_OFF + timedelta(hours=1)
    assert [row_of(town, "p2", t) for t in (CUT_OFF, hour_later - AN_INSTANT, hour_later)] == [0, 0, 2]
    scene = load_matrix(file_of(town, "scene_text"))
    keys = ["weather=clear", "weather=rain"]  # met at the first and at the fourth hour
    for time, rows in ((CUT_OFF - AN_INSTANT, 0), (CUT_OFF, 2)):
        assert np.count_nonzero(scene.rows_at(keys, np.full(2, micro(time)))) == rows


def test_of_the_texts_before_a_cut_off_the_newest_is_the_one(town: Workspace, tuned: Tuned) -> None:
    """The text of a key went back to what it was, and changed again when the model was there."""
    path = town.source("pois")
    first = pq.read_table(path).to_pylist()[0]
    texts = {1: "soup", 2: "fish", 3: "soup", 12: "fish"}
    times = {hour: START + timedelta(hours=hour) for hour in texts}
    rows = [
        first | {columns.TEXT: text, columns.EVENT_TIMESTAMP: times[hour], columns.CREATED_TIMESTAMP: times[hour]}
        for hour, text in texts.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    assert computed(embed(town, tuned(None), spaces=["poi_text"])) == {"poi_text": 2}
    table = pq.read_table(file_of(town, "poi_text"))
    assert table["poi_text_text"].to_pylist() == ["soup", "fish"]
    assert table[columns.CREATED_TIMESTAMP].to_pylist() == [CUT_OFF, START + timedelta(hours=12)]
    assert table[columns.EVENT_TIMESTAMP].equals(table[columns.CREATED_TIMESTAMP])


@pytest.mark.parametrize("known_only", [True, False])
def test_a_pull_as_of_before_the_cut_off_gets_no_vector(town: Workspace, tuned: Tuned, known_only: bool) -> None:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import Int64
    from feast.value_type import ValueType

    embed(town, tuned(None), spaces=["poi_text"])
    config: dict[str, Any] = {
        "registry": {"registry_type": "sql", "path": f"sqlite:///{town.root}/pull.db"},
        "offline_store": {"type": "feature_repo.stores.asof.AsofOfflineStore"},
        "online_store": {"type": "sqlite", "path": f"{town.root}/online.db"},
    }
    poi = Entity(name="poi", join_keys=[columns.POI_ID], value_type=ValueType.STRING)
    source = FileSource(
        path=str(file_of(town, "poi_text")),
        timestamp_field=columns.EVENT_TIMESTAMP,
        created_timestamp_column=columns.CREATED_TIMESTAMP,
    )
    view = FeatureView(
        name="poi_text",
        entities=[poi],
        ttl=timedelta(0),
        schema=[Field(name="poi_text_row", dtype=Int64)],
        source=source,
    )
    store = FeatureStore(
        config=RepoConfig(project="pull", provider="local", entity_key_serialization_version=3, **config)
    )
    store.apply([poi, view])
    times = [START, CUT_OFF - AN_INSTANT, CUT_OFF]
    spine = pd.DataFrame({columns.POI_ID: ["p1"] * 3, columns.EVENT_TIMESTAMP: times})
    job = store.get_historical_features(spine, ["poi_text:poi_text_row"], filter_by_created_timestamp=known_only)
    assert job.to_arrow()["poi_text_row"].to_pylist() == [None, None, 2]


def test_a_cut_off_without_a_time_zone_is_refused(town: Workspace, tuned: Tuned) -> None:
    config = tuned(None)
    note = Path(config.model) / "scenerank.json"
    note.write_text(note.read_text().replace("+00:00", ""))
    with pytest.raises(ModelError, match="no time zone"):
        embed(town, config)


class BrokenOff(RuntimeError):
    pass


def test_a_run_that_breaks_off_keeps_what_it_computed(
    town: Workspace, tiny: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHECKPOINT_TEXTS", 4)
    one_by_one = dataclasses.replace(tiny, max_tokens=1)

    def break_off(space: str, done: int, total: int) -> None:
        if done == 10:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        embed(town, one_by_one, break_off, spaces=["scene_text"])
    assert not file_of(town, "scene_text").exists()
    report = embed(town, one_by_one, spaces=["scene_text"])
    assert computed(report) == {"scene_text": len(scene_values(town)) - 8}
    texts = pq.read_table(file_of(town, "scene_text"))["scene_text_text"].to_pylist()
    expected = TextEncoder(tiny).encode(texts, "scene_text")
    np.testing.assert_allclose(load_matrix(file_of(town, "scene_text")).matrix[1:], expected, atol=1e-5)
    assert not list(town.knowledge.rglob("*.checkpoints"))


def test_a_failed_write_leaves_the_old_file(
    town: Workspace, tiny: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(town, tiny, spaces=["poi_text"])
    before = file_of(town, "poi_text").read_bytes()
    change_text(town, "pois", "p3", "A pizzeria.", LATER)

    def full_disk(source: object, target: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            embed(town, tiny, spaces=["poi_text"])
    assert file_of(town, "poi_text").read_bytes() == before
    embed(town, tiny, spaces=["poi_text"])
    assert row_of(town, "p3", LATER) == 3


def merged(old: list[Record], *texts: Text) -> list[tuple[str, int, int, str]]:
    return [(r.key, r.time_us, r.row, r.text) for r in merge(old, texts, model="m", now=NOW)]


def records(*texts: Text) -> list[Record]:
    return merge([], texts, model="m", now=NOW)


def test_several_texts_of_a_key_are_snapshots() -> None:
    weekly = [Text("u", 10, "soup"), Text("u", 20, "soup"), Text("u", 30, "fish"), Text("u", 40, "soup")]
    assert merged([], *weekly) == [("u", 10, 1, "soup"), ("u", 40, 1, "soup"), ("u", 30, 2, "fish")]


def test_what_the_source_contradicts_is_withdrawn() -> None:
    """A corrected text of the same time, and one that the source now dates earlier than what was known."""
    old = records(Text("a", 50, "wrong"), Text("b", 50, "later"))
    assert merged(old, Text("a", 50, "right"), Text("b", 20, "sooner")) == [
        ("a", NEVER_US, 1, "wrong"),
        ("b", NEVER_US, 2, "later"),
        ("a", 50, 3, "right"),
        ("b", 20, 4, "sooner"),
    ]


def test_a_withdrawn_text_returns_to_its_row_and_an_unmentioned_key_stays() -> None:
    old = merge(records(Text("a", 50, "x"), Text("b", 5, "z")), [Text("a", 50, "y")], model="m", now=NOW)
    assert merged(old, Text("a", 60, "x")) == [("a", 60, 1, "x"), ("b", 5, 2, "z"), ("a", 50, 3, "y")]


text = st.builds(Text, st.sampled_from("ab"), st.integers(0, 5), st.sampled_from(["x", "y", "z"]))
source = st.lists(text, max_size=5, unique_by=lambda t: (t.key, t.time_us))


@given(st.lists(source, max_size=4))
def test_merging_keeps_rows_and_always_answers_as_the_newest_source(sources: list[list[Text]]) -> None:
    known: list[Record] = []
    for texts in sources:
        rows = {(r.key, r.text): r.row for r in known}
        known = merge(known, texts, model="m", now=NOW)
        assert merge(known, texts, model="other", now=NOW) == known
        by_row = {r.row: (r.key, r.text) for r in known}
        assert sorted(by_row) == list(range(1, len(by_row) + 1))
        assert len({(r.key, r.text) for r in known}) == len(by_row)
        assert all(by_row[row] == name for name, row in rows.items())
        for asked in texts:
            visible = max(
                (r for r in known if r.key == asked.key and r.time_us <= asked.time_us), key=lambda r: r.time_us
            )
            assert visible.text == asked.text
