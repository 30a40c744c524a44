"""One Batch, two paths: impressions through the offline pull and through the server's reader, compared bit by bit.

The online store holds the newest values up to a moment, so both paths must agree on every impression between that
moment and the next change of a value. Two such moments are tried: the end of the log, which is the night when summer
time ended, and the last change of any value, from which on values outlive their time to live one after the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from feast import FeatureStore

from feature_repo import columns
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.workspace import Workspace
from serving import stages, wire
from serving.client import Asker
from serving.features import FeatureReader
from serving.online import ValueStatus
from serving.v1 import recommender_pb2 as pb
from trainers import bundle as bundles
from trainers import training_set
from trainers.batch import OUTCOMES, Batch
from trainers.bundle import Bundle

SUMMER_TIME_ENDED = datetime(2012, 10, 28, 0, 0, tzinfo=UTC)  # 03:00 in Helsinki for the first time
REPEATED_HOUR = [SUMMER_TIME_ENDED + timedelta(minutes=m) for m in (0, 30, 59, 60, 90, 119, 120)]
NIGHT_REQUESTS, LATE_REQUESTS, POIS_A_REQUEST = 60, 40, 10
WORDS: dict[str, list[object]] = {
    "weather": ["light rain", "frogs", None, ""],  # frogs: never seen, no vector
    "temperature": [-12.5, 5.0, 31.25, None],  # 5.0: a border between two bands
    "place_kind": ["home", "on a roof", None],
    "company": ["alone", "with children", None],
    "landmark": [None, "Atlantis"],
    "occasion": [None, "Opening of the moon bridge"],
}


@dataclass(frozen=True)
class Request:
    """One request as a client sends it; every POI of it is an impression."""

    asker: Asker
    poi_ids: tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """Requests at moments between `until`, up to which the online store is filled, and the next change of a value."""

    until: datetime
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Draw:
    """Draws requests from the ids and words of a workspace, and from ids and words that it has never seen."""

    rng: np.random.Generator
    users: Sequence[str]
    pois: Sequence[str]
    words: dict[str, list[object]]

    @staticmethod
    def of(workspace: Workspace, seed: int) -> Draw:
        log = pq.read_table(workspace.source("impressions"))
        seen = {name: [*pc.unique(log[name]).to_pylist(), *values] for name, values in WORDS.items()}
        users, pois = (
            pq.read_table(workspace.source(table))[key].to_pylist()
            for table, key in (("users", columns.USER_ID), ("pois", columns.POI_ID))
        )
        strangers = [f"nobody-{i}" for i in range(len(users) // 8)]
        nowhere = [f"nowhere-{i}" for i in range(len(pois) // 8)]
        return Draw(np.random.default_rng(seed), users + strangers, pois + nowhere, seen)

    def request(self, moment: datetime) -> Request:
        inputs = {name: values[self.rng.integers(len(values))] for name, values in self.words.items()}
        place = (float(self.rng.uniform(60.15, 60.2)), float(self.rng.uniform(24.9, 25.0)))
        asker = Asker(
            user_id=self.users[self.rng.integers(len(self.users))],
            scenario_id=str(self.rng.choice(["home_feed", "search", "lunch_deals", "late_night", "nearby_map"])),
            time=moment,
            place=place if self.rng.random() < 0.8 else None,
            scene={name: value for name, value in inputs.items() if isinstance(value, str | float)},
        )
        return Request(asker, tuple(str(p) for p in self.rng.choice(self.pois, POIS_A_REQUEST, replace=False)))


@pytest.fixture(scope="module")
def phases(city) -> tuple[Phase, Phase]:
    from feature_repo.behaviour import TTL  # the definitions can be read once the city is there

    draw = Draw.of(city.workspace, seed=3)
    night = [SUMMER_TIME_ENDED + timedelta(seconds=float(s)) for s in draw.rng.uniform(0, 86_399, NIGHT_REQUESTS)]
    night[: len(REPEATED_HOUR)] = REPEATED_HOUR
    changes = pa.chunked_array(
        [
            pq.read_table(city.workspace.source(f"{owner}_stats"))[columns.EVENT_TIMESTAMP].combine_chunks()
            for owner in columns.USUAL_STATISTICS
        ]
    )
    last = pc.max(changes).as_py()
    # Counts last change at a midnight, so some of these moments are just the end of some counts' time to live.
    ends = [last + timedelta(days=d) + TTL for d in range(-28, 1)]
    edges = [end + timedelta(microseconds=us) for end in ends for us in (0, 1) if end >= last]
    late = [last, *edges, *(last + timedelta(days=float(d)) for d in draw.rng.uniform(0, 40, LATE_REQUESTS))]
    chosen = [late[i] for i in draw.rng.choice(len(late), LATE_REQUESTS, replace=False)]
    return (
        Phase(SUMMER_TIME_ENDED, tuple(draw.request(moment) for moment in night)),
        Phase(last, tuple(draw.request(moment) for moment in chosen)),
    )


@pytest.fixture(scope="module")
def store(city, tmp_path_factory) -> FeatureStore:
    """The city's registry and offline store with online values of their own."""
    folder = tmp_path_factory.mktemp("parity")
    config = yaml.safe_load(city.workspace.feature_store_yaml.read_text())
    shutil.copy(city.workspace.root / "registry.db", folder)
    config["registry"]["path"] = f"sqlite:///{folder / 'registry.db'}"
    config["online_store"]["path"] = str(folder / "online.db")
    path = folder / "feature_store.yaml"
    path.write_text(yaml.safe_dump(config))
    opened = FeatureStore(fs_yaml_file=path)
    opened.apply(opened.list_batch_feature_views())  # makes the online tables
    return opened


@dataclass(frozen=True)
class Both:
    """All impressions as the two paths give them, in the same order."""

    offline: pa.Table
    online: pa.Table
    statuses: frozenset[ValueStatus]


@pytest.fixture(scope="module")
def bundle(city) -> Bundle:
    return bundles.load(city.workspace.bundles / "larr")


@pytest.fixture(scope="module")
def both(city, store, phases, bundle) -> Both:
    online, offline, statuses = [], [], set()
    for phase in phases:
        store.materialize(stages.BEGINNING, phase.until)
        reader = FeatureReader(store, bundle)
        for request in phase.requests:
            reading = read_online(reader, request)
            online.append(reading.table)
            statuses |= {s for v in reading.views for s in ValueStatus if getattr(v, s.name.lower())}
        rows = spine(phase.requests, bundle.schema)
        offline.append(training_set.join(city.workspace, store, bundle.manifest.service, rows))
    return Both(pa.concat_tables(offline), pa.concat_tables(online), frozenset(statuses))


def read_online(reader: FeatureReader, request: Request) -> Any:
    """What the server reads for a request that came over the wire."""
    message = pb.RankRequest(context=request.asker.message(), poi_ids=request.poi_ids)
    plain = wire.rank_request(pb.RankRequest.FromString(message.SerializeToString()))
    assert plain.context.time_us is not None
    return reader.read_pois(reader.read_context(plain.context, plain.context.time_us), plain.poi_ids)


def spine(requests: Sequence[Request], schema: Schema) -> pa.Table:
    """The same requests as rows of a log."""
    rows = list(_rows(requests, schema))
    types = {f.name: f.type for f in schema.tables()["impressions"]}
    types |= {columns.EVENT_TIMESTAMP: TIME}
    return pa.table({name: pa.array([row[name] for row in rows], types[name]) for name in rows[0]})


def _rows(requests: Sequence[Request], schema: Schema) -> Iterator[dict[str, object]]:
    for number, request in enumerate(requests):
        asker = request.asker
        latitude, longitude = asker.place or (None, None)
        for position, poi_id in enumerate(request.poi_ids):
            yield {
                columns.ROW_ID: number * POIS_A_REQUEST + position,
                columns.REQUEST_ID: f"r{number}",
                columns.EVENT_TIMESTAMP: asker.time,
                columns.OUTCOME_TIMESTAMP: asker.time,
                columns.USER_ID: asker.user_id,
                columns.POI_ID: poi_id,
                columns.SCENARIO_ID: asker.scenario_id,
                columns.CLICK: 0,
                columns.ORDER: 0,
                columns.LATITUDE: latitude,
                columns.LONGITUDE: longitude,
                **{f.name: asker.scene.get(f.name) for f in schema.request_fields},
            }


def test_the_impressions_are_as_hard_as_they_are_meant_to_be(both, bundle):
    online = both.online
    assert len(online) == 1000
    assert both.statuses == set(ValueStatus)
    assert pc.sum(pc.starts_with(online[columns.USER_ID], "nobody")).as_py() > 50
    assert pc.sum(pc.starts_with(online[columns.POI_ID], "nowhere")).as_py() > 50
    weather = online["scene_weather"].to_pylist()
    assert weather.count("frogs") > 10 and weather.count(None) > 10
    assert "frogs" not in bundle.encoding.vocabularies["scene_weather"].values
    hours = online["scene_hour"].to_pylist()
    assert hours.count("03:00") >= 6 * POIS_A_REQUEST  # the hour that came twice
    known = online[columns.statistic("poi", "impressions", 28)].null_count
    assert 0 < known < len(online)


def test_every_column_is_the_same(both):
    for name in both.online.column_names:
        ours, theirs = both.online[name], both.offline[name]
        assert ours.type == theirs.type, name
        different = [
            (i, ours[i].as_py(), theirs[i].as_py()) for i in range(len(ours)) if ours[i].as_py() != theirs[i].as_py()
        ]
        assert not different, f"{name}: {len(different)} rows differ, the first (row, online, offline): {different[0]}"


def test_the_batch_is_the_same_bit_by_bit(both, bundle):
    online = Batch.from_arrow(both.online, bundle.encoding)
    offline = Batch.from_arrow(both.offline, bundle.encoding)
    compared = [f.name for f in fields(Batch) if f.name not in OUTCOMES]
    assert len(compared) == 8
    for name in compared:
        ours, theirs = getattr(online, name), getattr(offline, name)
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


def test_the_scores_are_the_same(both, bundle):
    online, offline = (bundle.ranker(Batch.from_arrow(table, bundle.encoding)) for table in (both.online, both.offline))
    assert torch.equal(online.p_click_B, offline.p_click_B)
    assert torch.equal(online.p_order_B, offline.p_order_B)
