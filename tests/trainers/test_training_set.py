"""Leak tests: a tiny Feast repo whose feature values are known row by row, joined through the real store."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Int64
from feast.value_type import ValueType

from feature_repo import columns
from feature_repo.datasets.schema import TIME, Schema, Split
from feature_repo.workspace import Workspace
from trainers import training_set
from trainers.training_set import Pull, TrainingSetError

START = datetime(2015, 3, 1, tzinfo=UTC)
TTL = timedelta(days=2)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def time_column(hours: list[float]) -> pa.Array:
    return pa.array([at(h) for h in hours], TIME)


def impressions(hours: list[float], poi: str = "a") -> pa.Table:
    n = len(hours)
    text = {columns.USER_ID: "u", columns.POI_ID: poi, columns.SCENARIO_ID: "home", columns.REQUEST_ID: "r"}
    return pa.table(
        {
            columns.ROW_ID: pa.array(range(n), pa.int64()),
            columns.EVENT_TIMESTAMP: time_column(hours),
            columns.OUTCOME_TIMESTAMP: time_column(hours),
            **{name: [value] * n for name, value in text.items()},
            columns.CLICK: pa.array([1] * n, pa.int8()),
            columns.ORDER: pa.array([0] * n, pa.int8()),
        }
    )


STORES = ("duckdb", "feature_repo.stores.asof.AsofOfflineStore")  # Feast's own, and the one that ships


@pytest.fixture(params=STORES, autouse=True)
def offline(request, monkeypatch):
    monkeypatch.setattr(TinyRepo, "offline", request.param)


class TinyRepo:
    """One POI view `rating` with a TTL of two days, from rows (hours of event, hours of creation, value)."""

    offline = STORES[-1]

    def __init__(self, root: Path, rows: list[tuple[float, float, int]]) -> None:
        self.workspace = Workspace(root)
        self.workspace.sources.mkdir(parents=True)
        split = Split(train=START, valid=at(100), test=at(200), end=at(300))
        Schema(dataset="tiny", timezone="UTC", split=split).save(self.workspace.schema)
        pois = pa.table({columns.POI_ID: ["a", "b"], columns.CATEGORY: ["soup", "grill"]})
        pois = pois.append_column(columns.SPECIALTY, pa.array(["ramen", None], pa.string()))
        pq.write_table(pois, self.workspace.source("pois"))
        values = pa.table(
            {
                columns.POI_ID: ["a"] * len(rows),
                columns.EVENT_TIMESTAMP: time_column([r[0] for r in rows]),
                columns.CREATED_TIMESTAMP: time_column([r[1] for r in rows]),
                "rating": pa.array([r[2] for r in rows], pa.int64()),
            }
        )
        pq.write_table(values, self.workspace.source("rating"))
        self.store = self._store(root)

    def _store(self, root: Path) -> FeatureStore:
        config = RepoConfig(
            project="tiny",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{root}/registry.db"},
            offline_store={"type": self.offline},
            online_store={"type": "sqlite", "path": f"{root}/online.db"},
            entity_key_serialization_version=3,
        )
        source = FileSource(
            path=str(self.workspace.source("rating")),
            timestamp_field=columns.EVENT_TIMESTAMP,
            created_timestamp_column=columns.CREATED_TIMESTAMP,
        )
        poi = Entity(name="poi", join_keys=[columns.POI_ID], value_type=ValueType.STRING)
        view = FeatureView(
            name="rating", entities=[poi], ttl=TTL, schema=[Field(name="rating", dtype=Int64)], source=source
        )
        store = FeatureStore(config=config)
        store.apply([poi, view, FeatureService(name="rated", features=[view])])
        return store

    def ratings(self, hours: list[float], poi: str = "a") -> list[int | None]:
        table = training_set.join(self.workspace, self.store, "rated", impressions(hours, poi))
        assert table[columns.EVENT_TIMESTAMP].to_pylist() == [at(h) for h in hours]
        return table["rating"].to_pylist()


def test_a_value_that_changes_after_the_impression_is_not_seen(tmp_path):
    repo = TinyRepo(tmp_path, [(0, 0, 1), (10, 10, 2)])
    assert repo.ratings([9.999, 10.001]) == [1, 2]


def test_a_value_created_after_the_impression_is_not_seen_whatever_moment_it_describes(tmp_path):
    repo = TinyRepo(tmp_path, [(0, 0, 1), (5, 20, 2)])
    assert repo.ratings([6, 19, 20, 21]) == [1, 1, 2, 2]


def test_an_equal_timestamp_counts_as_existing(tmp_path):
    # What an event causes is therefore stamped after it (aggregates): the join itself is closed on the right.
    assert TinyRepo(tmp_path, [(0, 0, 1), (10, 10, 2)]).ratings([10]) == [2]


def test_the_edge_of_the_ttl(tmp_path):
    repo = TinyRepo(tmp_path, [(0, 0, 1)])
    assert repo.ratings([48, 48 + 1e-6]) == [1, None]


def test_order_and_duplicates_of_the_spine_are_kept_and_nothing_is_lost(tmp_path):
    repo = TinyRepo(tmp_path, [(0, 0, 1), (10, 10, 2)])
    assert repo.ratings([12, 3, 12, -5, 3]) == [2, 1, 2, None, 1]
    assert repo.ratings([12, 12], poi="b") == [None, None]


@pytest.fixture
def repo(tmp_path):
    tiny = TinyRepo(tmp_path, [(0, 0, 1), (10, 10, 2)])
    pq.write_table(impressions([1, 2, 11, 12, 13]), tiny.workspace.source("impressions"))
    return tiny


def pull(end: float = 300) -> Pull:
    return Pull(service="rated", start=START, end=at(end))


def test_a_backfill_in_parts_equals_one_in_one_piece(repo):
    folder = training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    assert sorted(p.name for p in folder.glob("*.parquet")) == [f"part-0000{i}.parquet" for i in range(3)]
    parts = training_set.read(folder, START, at(300))
    whole = training_set.join(repo.workspace, repo.store, "rated", impressions([1, 2, 11, 12, 13]))
    assert parts.equals(whole.combine_chunks())


def test_rows_keep_their_values_in_any_order(repo):
    spine = impressions([1, 2, 11, 12, 13])
    whole = training_set.join(repo.workspace, repo.store, "rated", spine)
    mixed = pa.array([3, 0, 4, 2, 1])
    found = training_set.join(repo.workspace, repo.store, "rated", spine.take(mixed))
    assert found.to_pylist() == whole.take(mixed).to_pylist()
    assert len(set(whole["rating"].to_pylist())) > 1


def test_a_backfill_goes_on_where_it_was_interrupted(repo):
    folder = training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    (folder / "part-00001.parquet").unlink()
    kept = (folder / "part-00000.parquet").stat().st_mtime_ns
    training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == kept
    assert len(training_set.read(folder, START, at(300))) == 5


def test_changed_sources_are_pulled_again(repo):
    folder = training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    rows = pq.read_table(repo.workspace.source("rating"))
    rows = rows.set_column(3, "rating", pa.array([7, 8, 9], pa.int64()).slice(0, len(rows)))
    pq.write_table(rows, repo.workspace.source("rating"))
    training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    assert training_set.read(folder, START, at(300))["rating"].to_pylist() == [7, 7, 8, 8, 8]


def register(repo: TinyRepo, path: Path, ttl: timedelta = TTL, field_mapping: dict[str, str] | None = None) -> None:
    """The view once more, of another declaration."""
    source = FileSource(
        path=str(path),
        timestamp_field=columns.EVENT_TIMESTAMP,
        created_timestamp_column=columns.CREATED_TIMESTAMP,
        field_mapping=field_mapping,
    )
    poi = Entity(name="poi", join_keys=[columns.POI_ID], value_type=ValueType.STRING)
    fields = [Field(name="rating", dtype=Int64)]
    repo.store.apply([FeatureView(name="rating", entities=[poi], ttl=ttl, schema=fields, source=source)])


@pytest.mark.parametrize("change", ["its file", "its path", "its time to live", "its column"])
def test_a_view_that_changed_is_pulled_again_wherever_its_source_lies(repo, tmp_path, change):
    """Any registered service may be pulled, also of files that are not the workspace's."""
    rows = pq.read_table(repo.workspace.source("rating")).append_column("stars", pa.array([5, 6]))
    elsewhere, other = tmp_path / "elsewhere.parquet", tmp_path / "other.parquet"
    pq.write_table(rows, elsewhere)
    register(repo, elsewhere)
    folder = training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    assert training_set.read(folder, START, at(300))["rating"].to_pylist() == [1, 1, 2, 2, 2]
    changed = rows.drop_columns(["rating"]).append_column("rating", rows["stars"])
    if change == "its file":
        pq.write_table(changed, elsewhere)
    elif change == "its path":
        pq.write_table(changed, other)
        register(repo, other)
    elif change == "its time to live":
        register(repo, elsewhere, ttl=timedelta(hours=2))
    else:
        pq.write_table(changed.rename_columns({"rating": "score"}), elsewhere)
        register(repo, elsewhere, field_mapping={"score": "rating"})
    training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    expected = [1, 1, 2, 2, None] if change == "its time to live" else [5, 5, 6, 6, 6]
    assert training_set.read(folder, START, at(300))["rating"].to_pylist() == expected


def test_what_did_not_change_is_not_pulled_again(repo):
    folder = training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    register(repo, repo.workspace.source("rating"))  # as `scenerank apply` does
    training_set.backfill(repo.workspace, repo.store, pull(), part_rows=2)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("part-*")} == written


def test_parts_do_not_depend_on_how_many_of_them_are_joined_at_once(repo, monkeypatch):
    """Nor on which of them were there already: the same bytes."""
    spine = impressions([float(hour) for hour in range(40)])
    pq.write_table(spine, repo.workspace.source("impressions"))
    found, joins, usual = [], [], training_set.join

    def counted(*asked):
        joins.append(len(asked[-1]))
        return usual(*asked)

    monkeypatch.setattr(training_set, "join", counted)
    for parts, expected in ((1, [3] * 13 + [1]), (10, [30, 10]), (3, [9, 9, 9, 9, 4])):
        monkeypatch.setattr(training_set, "JOINED_PARTS", parts)
        joins.clear()
        folder = training_set.backfill(repo.workspace, repo.store, pull(), part_rows=3)
        assert joins == expected
        found.append({path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))})
        (folder / "part-00001.parquet").unlink()
        (folder / "part-00005.parquet").unlink()
        training_set.backfill(repo.workspace, repo.store, pull(), part_rows=3)
        assert {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))} == found[-1]
        shutil.rmtree(folder)
    assert len(found[0]) == 14 and found[0] == found[1] == found[2]


def test_reading_takes_a_half_open_range_of_time(repo):
    folder = training_set.backfill(repo.workspace, repo.store, pull())
    assert training_set.read(folder, at(2), at(12))["rating"].to_pylist() == [1, 2]


def test_an_empty_range_is_an_error_that_names_it(repo):
    with pytest.raises(TrainingSetError, match="no impressions of scenario 'search'"):
        wanted = Pull(service="rated", start=START, end=at(1), scenario="search")
        training_set.backfill(repo.workspace, repo.store, wanted)


def test_a_row_is_in_the_part_that_its_own_user_says():
    """Borders of u at hours 2 and 3, of v at hours 5 and 5; a border belongs to the part that it begins."""
    borders = pa.table(
        {
            columns.USER_ID: ["u", "v"],
            "valid": time_column([2, 5]),
            "test": time_column([3, 5]),
        }
    )
    rows = [("u", 1.9), ("v", 2.5), ("u", 2), ("u", 3), ("v", 4.9), ("v", 5)]
    table = pa.table(
        {columns.USER_ID: [u for u, _ in rows], columns.EVENT_TIMESTAMP: time_column([h for _, h in rows])}
    )
    found = training_set.part_of_rows(table, borders).to_pylist()
    assert found == ["train", "train", "valid", "test", "train", "test"]


def test_parts_are_read_by_the_borders_of_users_where_there_are_any(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.sources.mkdir()
    split = Split(train=at(0), valid=at(4), test=at(6), end=at(8))
    Schema(dataset="tiny", timezone="UTC", split=split).save(workspace.schema)
    folder = tmp_path / "pulled"
    folder.mkdir()
    table = pa.table({columns.USER_ID: ["u"] * 4 + ["v"] * 4, columns.EVENT_TIMESTAMP: time_column(list(range(8)))})
    pq.write_table(table, folder / "part-00000.parquet")

    def sizes() -> list[int]:
        return [len(training_set.read_part(workspace, folder, part)) for part in ("train", "valid", "test")]

    assert sizes() == [4, 2, 2]
    by_user = Split(train=at(0), valid=at(8), test=at(8), end=at(8))
    Schema(dataset="tiny", timezone="UTC", split=by_user).save(workspace.schema)
    borders = pa.table({columns.USER_ID: ["u", "v"], "valid": time_column([1, 7]), "test": time_column([2, 7])})
    pq.write_table(borders, workspace.source("borders"))
    assert sizes() == [1 + 3, 1, 2 + 1]


@pytest.mark.parametrize("changed", ["the source", "the rows"])
def test_a_change_is_seen_though_ones_own_rows_are_called_as_a_source_is(tmp_path, changed):
    repo = TinyRepo(tmp_path / "workspace", [(0, 0, 1)])
    own = tmp_path / "pois.parquet"
    pq.write_table(impressions([1]), own)
    pull = Pull(service="rated", start=at(0), end=at(2), entities=own)
    before = training_set._sources_state(repo.workspace, repo.store, pull)
    path = own if changed == "the rows" else repo.workspace.source("pois")
    path.write_bytes(path.read_bytes() + b"more")
    assert training_set._sources_state(repo.workspace, repo.store, pull) != before
