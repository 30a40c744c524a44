from __future__ import annotations

import importlib
import math
import time
import urllib.request
from datetime import UTC

import grpc
import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.auth import Tokens
from serving.client import Wish
from serving.metrics import Metrics
from serving.opening import open_pipeline
from serving.server import ServerOptions, create_server

RANK = "/scenerank.v1.RecommenderService/Rank"
RECOMMEND = "/scenerank.v1.RecommenderService/Recommend"
LE = ("0.001", "0.0025", "0.2", "0.3", "1.0", "+Inf")


def scrape(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    return samples(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, tuple(sorted(s.labels.values()))): s.value for s in samples}


def test_requests_and_values_are_counted(running, client, asker, poi_ids):
    before = scrape(running.metrics_port)
    ranking = client.rank(asker, [*poi_ids[:3], "nowhere"])
    with pytest.raises(grpc.RpcError):
        client.rank(asker, [])
    after = scrape(running.metrics_port)

    def grown(name: str, *labels: str) -> float:
        key = (name, tuple(sorted(labels)))
        return after[key] - before.get(key, 0.0)

    assert grown("scenerank_requests_total", RANK, "OK") == 1
    assert grown("scenerank_requests_total", RANK, "INVALID_ARGUMENT") == 1
    assert grown("scenerank_request_seconds_count", RANK) == 2
    profile = next(view for view in ranking.views if view.view == "poi_profile")
    assert grown("scenerank_values_total", "poi_profile", "present") == profile.values.present
    assert grown("scenerank_values_total", "poi_profile", "missing") == profile.values.missing > 0


def test_where_the_time_went_and_what_was_answered_is_seen(running, client, asker, poi_ids, pipeline, moment):
    before = scrape(running.metrics_port)
    ranking = client.rank(asker, poi_ids[:20])
    client.recommend(asker, Wish(limit=5))
    after = scrape(running.metrics_port)

    def grown(name: str, *labels: str) -> float:
        key = (name, tuple(sorted(labels)))
        return after[key] - before.get(key, 0.0)

    for stage in ("queue", "read", "score", "encode"):
        assert grown("scenerank_stage_seconds_count", stage) == 2
    assert grown("scenerank_stage_seconds_count", "retrieve") == 1
    stages = sum(
        grown("scenerank_stage_seconds_sum", stage) for stage in ("queue", "read", "retrieve", "score", "encode")
    )
    whole = grown("scenerank_request_seconds_sum", RANK) + grown("scenerank_request_seconds_sum", RECOMMEND)
    assert 0.5 * whole < stages <= whole
    assert grown("scenerank_score_count", "lunch_deals", "click") == 25
    manifest = pipeline.bundle.manifest
    assert after["scenerank_bundle_info", tuple(sorted((manifest.model, manifest.version)))] == 1
    view = next(view for view in ranking.views if view.view == "poi_profile")
    age = (moment - view.oldest.ToDatetime(UTC)).total_seconds()
    assert after["scenerank_feature_age_seconds", ("oldest", "poi_profile")] >= age > 0
    assert after["process_resident_memory_bytes", ()] > 0


def test_probabilities_are_counted_in_their_buckets() -> None:
    metrics = Metrics()
    p_click = np.array([0.0, 0.0009, 0.0011, 0.25, 1.0], np.float32)
    metrics.scored("lunch", p_click[:2], p_click[:2] / 2)
    metrics.scored("lunch", p_click[2:], p_click[2:] / 2)
    found = samples(generate_latest(metrics.registry).decode())
    cumulated = {le: found["scenerank_score_bucket", tuple(sorted(("click", "lunch", le)))] for le in LE}
    assert [cumulated[le] for le in LE] == [2, 3, 3, 4, 5, 5]
    assert found["scenerank_score_count", ("click", "lunch")] == 5
    assert found["scenerank_score_sum", ("click", "lunch")] == pytest.approx(1.252)
    assert found["scenerank_score_sum", ("lunch", "order")] == pytest.approx(1.252 / 2)


def test_how_old_the_kept_values_of_places_are_is_seen(running, workspace) -> None:
    assert scrape(running.metrics_port)["scenerank_poi_cache_age_seconds", ()] == 0  # it keeps none
    keeping = open_pipeline(workspace, workspace.bundles / "larr", None, unproven=True, poi_age_s=60.0)
    server = create_server(keeping, ServerOptions(metrics_port=0))
    assert server.metrics_port is not None
    assert scrape(server.metrics_port)["scenerank_poi_cache_age_seconds", ()] == math.inf
    keeping.start()
    while math.isinf(age := scrape(server.metrics_port)["scenerank_poi_cache_age_seconds", ()]):
        time.sleep(0.01)
    assert 0 < age < 60
    time.sleep(0.05)
    assert scrape(server.metrics_port)["scenerank_poi_cache_age_seconds", ()] >= age + 0.05
    server.stop()
    keeping.close()


def test_what_an_answer_made_do_with_is_counted() -> None:
    metrics = Metrics()
    metrics.degraded("popularity", "store away")
    metrics.degraded("popularity", "store away")
    found = samples(generate_latest(metrics.registry).decode())
    assert found["scenerank_degraded_total", ("popularity", "store away")] == 2


def test_servers_of_one_process_count_apart() -> None:
    importlib.import_module("feast.metrics")  # which would have them share files
    first, second = Metrics(), Metrics()
    first.recorded(3, 0)
    second.recorded(1, 0)
    found = [samples(generate_latest(metrics.registry).decode()) for metrics in (first, second)]
    assert [one["scenerank_feedback_events_total", ("new",)] for one in found] == [3, 1]


def test_names_that_a_caller_makes_up_are_one_label(pipeline) -> None:
    server = create_server(pipeline, ServerOptions(metrics_port=0, tokens=lambda: Tokens.one("secret" * 4, "test")))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for number in range(20):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/made.up/{number}")(b"")
    assert server.metrics_port is not None
    counted = {labels for name, labels in scrape(server.metrics_port) if name == "scenerank_requests_total"}
    assert counted == {("UNAUTHENTICATED", "other")}
    server.stop()
