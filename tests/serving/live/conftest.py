"""Bundles, good ones and bad ones, and a server that answers with the one or the other."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from serving.client import Asker, Recommender
from serving.opening import open_pipeline
from serving.operator_client import Operator
from serving.request import RankRequest, RequestContext
from serving.server import ServerOptions, create_server
from serving.v1 import recommender_pb2 as pb
from trainers import bundle as bundles
from trainers.bundle import Bundle

MODELS = ("larr", "ple")


@pytest.fixture(scope="module")
def folder(workspace, tmp_path_factory):
    """Bundles, good ones and bad ones, of the one workspace."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in MODELS:
        shutil.copytree(workspace.bundles / name, folder / name)
    shutil.copytree(folder / "ple", folder / "damaged")
    with open(folder / "damaged" / "weights.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    _changed(folder / "larr", folder / "otherwise", scene_fingerprints={"daypart": "another"})
    _changed(folder / "larr", folder / "wider", features=("user_profile:text", "poi_profile:name", "poi_profile:moon"))
    there = bundles.load(folder / "larr")
    schema = replace(there.schema, dataset="elsewhere")
    Bundle.of(there.manifest, there.encoding, schema, there.ranker, there.matrices).save(folder / "elsewhere")
    return folder


def _changed(source, target, **changes):
    """A copy whose manifest says something else, with the hash that fits."""
    shutil.copytree(source, target)
    path = target / "manifest.json"
    plain = json.loads(path.read_text()) | {name: _plain(value) for name, value in changes.items()}
    path.write_text(json.dumps(plain))
    manifest = bundles.from_plain(bundles.Manifest, plain)
    path.write_text(json.dumps(plain | {"version": manifest.content_hash()}))


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.fixture(scope="module")
def load(workspace, folder):
    return lambda name: open_pipeline(workspace, folder / name, None, unproven=True, poi_age_s=60.0)


@contextmanager
def serving(load, feedback=None):
    server = create_server(load("larr"), ServerOptions(workers=4, waiting=64), feedback, load)
    address = f"127.0.0.1:{server.port}"
    with Recommender(address) as client, Operator(address) as operator:
        yield client, operator
    assert server.stop()
    assert server.live.close()


@pytest.fixture
def both(load):
    with serving(load) as both:
        yield both


@pytest.fixture(scope="module")
def expected(load, request_of):
    """Name of a bundle -> what it answers alone."""
    answers = {}
    for name in MODELS:
        pipeline = load(name)
        answers[name] = pipeline.rank(request_of)
        pipeline.close()
    return answers


@pytest.fixture(scope="module")
def request_of(moment, poi_ids):
    context = RequestContext(user_id="u3", scenario_id="search", time_us=int(moment.timestamp() * 1e6))
    return RankRequest(context=context, poi_ids=tuple(poi_ids[:20]))


def ask(client, moment, poi_ids) -> pb.Ranking:
    return client.rank(Asker(user_id="u3", scenario_id="search", time=moment), poi_ids[:20])


def report_of(operator, answers, within_s=60.0):
    """What is told of the shadow once so many answers were compared."""
    end = time.monotonic() + within_s
    while (report := operator.serving().shadow).answers < answers:
        assert time.monotonic() < end, report
        time.sleep(0.02)
    return report
