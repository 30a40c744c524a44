"""Neither statuses nor logs tell ids, tokens or where in the code something went wrong, whatever the call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from feature_repo.workspace import Workspace
from serving.auth import tokens_from
from serving.client import Access, Asker, Happened, Recommender, Wish
from serving.feedback import FeedbackLog
from serving.opening import open_pipeline
from serving.server import RunningServer, ServerOptions, create_server
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from tests.serving.damage import copied, spoil_records

MARK = "c0ffee5ca1ab1e"  # in every id and every secret that is sent
TOKEN, OTHER_TOKEN = f"token-of-everything-{MARK}", f"token-of-nobody-{MARK}"
TRACES = ("Traceback", 'File "', ".py", "Exception", "Error(")


@pytest.fixture(scope="module")
def damaged(workspace: Workspace, tmp_path_factory) -> Workspace:
    """The workspace, with an online store whose records nobody can read."""
    broken = copied(workspace, tmp_path_factory.mktemp("damaged") / "city")
    spoil_records(broken, "scenario_stats")
    return broken


@pytest.fixture
def servers(pipeline, damaged, tmp_path: Path) -> Iterator[dict[str, RunningServer]]:
    """One in order; one whose feedback log is closed; one whose online store is damaged."""
    (tmp_path / "tokens").write_text(f"{TOKEN}\n{TOKEN}-feedback feedback # {MARK}\n")
    options = ServerOptions(tokens=tokens_from(tmp_path / "tokens"))
    logs = [FeedbackLog(f"sqlite:///{tmp_path / f'{name}.db'}") for name in ("good", "closed")]
    started = {
        "in order": create_server(pipeline, options, logs[0]),
        "no log": create_server(pipeline, options, logs[1]),
        "no store": create_server(open_pipeline(damaged, damaged.bundles / "ple", None, unproven=True), options),
    }
    logs[1].close()
    yield started
    for server in started.values():
        server.stop()
    logs[0].close()


def statuses_of(server: RunningServer, token: str, asker: Asker, poi_ids: list[str], moment) -> list[grpc.RpcError]:
    """Every method, with a good request and with several bad ones; those that failed."""
    failed: list[grpc.RpcError] = []
    own = [f"{poi_id}-{MARK}" for poi_id in poi_ids[:3]]
    marked = replace(asker, user_id=f"user-{MARK}", scene={"weather": f"word-{MARK}"})
    bad = (
        replace(marked, user_id=f"\0{MARK}"),
        replace(marked, user_id=MARK * 40),
        replace(marked, scene={"temperature": MARK}),
        replace(marked, place=(91.0, 0.0)),
    )
    with Recommender(f"127.0.0.1:{server.port}", Access(token=token)) as client:

        def tried(call) -> pb.Ranking | None:
            try:
                return call()
            except grpc.RpcError as error:
                failed.append(error)
                return None

        answer = tried(lambda: client.rank(marked, own))
        for one in (marked, *bad):
            tried(lambda one=one: client.rank(one, own))
            tried(lambda one=one: client.recommend(one, Wish(radius_km=3.0)))
        for candidates in ([own[0]] * 2, [f"{MARK}\0"], [MARK * 40], []):
            tried(lambda candidates=candidates: client.rank(marked, candidates))
        given = answer.attribution_token if answer else f"attribution-{MARK}"
        later = moment + timedelta(seconds=1)
        for happened in (
            Happened(token=given, poi_id=own[0], outcome="shown", time=later, event_id=f"event-{MARK}"),
            Happened(token=given, poi_id=f"{MARK}\0", outcome="shown", time=later, event_id=f"event-{MARK}"),
            Happened(token=given[:-9] + MARK, poi_id=own[0], outcome="shown", event_id=f"event-{MARK}"),
        ):
            tried(lambda happened=happened: client.record([happened]))
            tried(lambda happened=happened: streamed(server, token, happened))
    return failed


def streamed(server: RunningServer, token: str, happened: Happened) -> list[pb.RecordFeedbackResponse]:
    requests = iter([pb.RecordFeedbackRequest(events=[happened.message()])])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        metadata = [("authorization", f"Bearer {token}")]
        return list(stub.RecordFeedbackStream(requests, metadata=metadata, timeout=30))


def test_nothing_is_told(servers, asker, poi_ids, moment, caplog, capfd):
    caplog.set_level(logging.INFO)  # as `serve` logs
    seen = set()
    for server in servers.values():
        for token in (TOKEN, f"{TOKEN}-feedback", OTHER_TOKEN):
            for error in statuses_of(server, token, asker, poi_ids, moment):
                seen.add(error.code().name)
                trailers = b" ".join(v if isinstance(v, bytes) else v.encode() for _, v in error.trailing_metadata())
                told = f"{error.details()} {trailers!r}"
                assert MARK not in told
                assert not [trace for trace in TRACES if trace in told], told
    assert {
        "INVALID_ARGUMENT",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "FAILED_PRECONDITION",
        "UNAVAILABLE",
        "INTERNAL",
    } <= seen
    assert "request failed, error id" in caplog.text
    printed = capfd.readouterr()
    assert MARK not in caplog.text + printed.out + printed.err
