from __future__ import annotations

import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

RANK = "/scenerank.v1.RecommenderService/Rank"


def scrape(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
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
