"""Another bundle while requests run, and back again: over a socket, with real bundles."""

from __future__ import annotations

import secrets
import shutil
import threading
import time

import grpc
import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from serving.attribution import KEY_BYTES, Signer
from serving.client import Happened, shown
from serving.feedback import FeedbackLog
from serving.opening import open_pipeline
from serving.operator_client import Operator
from serving.server import ServerOptions, create_server
from serving.v1 import admin_pb2, admin_pb2_grpc
from tests.serving.conftest import refused
from tests.serving.live.conftest import MODELS, ask, report_of, serving


def test_reloads_and_rollbacks_under_load_lose_no_request_and_mix_no_answer(both, expected, moment, poi_ids):
    client, operator = both
    ended, answers, errors = threading.Event(), [], []

    def load_it() -> None:
        while not ended.is_set():
            try:
                answers.append(ask(client, moment, poi_ids))
            except grpc.RpcError as error:
                errors.append(error)

    threads = [threading.Thread(target=load_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for name in ("ple", "larr", "ple", "ple", "larr", "ple"):
            assert operator.reload(name).current.name == name
        for _ in range(20):
            operator.roll_back()
        with pytest.raises(grpc.RpcError):
            operator.reload("damaged")
        time.sleep(0.2)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert {answer.model.name for answer in answers} == set(MODELS)
    for answer in answers:
        whole = expected[answer.model.name]
        assert tuple(answer.poi_ids) == whole.poi_ids
        np.testing.assert_array_equal(np.array(answer.scores, dtype=np.float32), whole.scores)


def test_what_answers_is_told_with_the_one_before(both, moment, poi_ids):
    client, operator = both
    first = operator.serving()
    assert first.current.name == "larr" and not first.HasField("previous") and not first.HasField("shadow")
    with pytest.raises(grpc.RpcError) as nothing:
        operator.roll_back()
    assert nothing.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    second = operator.reload("ple")
    assert (second.current.name, second.previous) == ("ple", first.current)
    assert second.since.ToNanoseconds() > first.since.ToNanoseconds()
    assert ask(client, moment, poi_ids).model == second.current
    back = operator.roll_back()
    assert (back.current, back.previous) == (first.current, second.current)
    assert ask(client, moment, poi_ids).model == first.current


def test_a_bundle_that_is_loaded_again_leaves_the_one_to_go_back_to(both):
    _, operator = both
    operator.reload("ple")
    again = operator.reload("ple")
    assert (again.current.name, again.previous.name) == ("ple", "larr")
    assert operator.roll_back().current.name == "larr"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("damaged", "SHA-256"),
        ("otherwise", "declared otherwise"),
        ("wider", "has no ['moon']"),
        ("absent", "a bundle is a folder with a manifest"),
        ("elsewhere", "this server answers for 'city'"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_refused_and_the_one_before_goes_on(both, moment, poi_ids, name, reason):
    client, operator = both
    before = operator.serving()
    for change in (operator.reload, operator.shadow):
        with pytest.raises(grpc.RpcError) as refused:
            change(name)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason in refused.value.details()
    assert operator.serving() == before
    assert ask(client, moment, poi_ids).model == before.current


def test_what_is_read_beside_a_bundle_is_refused_with_the_reason_and_a_fault_with_an_id(
    workspace, folder, load, tmp_path, caplog
):
    def registry_away():
        raise OperationalError("SELECT 1", {}, Exception("secret-host refused"))

    shutil.copytree(workspace.index, tmp_path / "index")
    for file in (tmp_path / "index").glob("*.safetensors"):
        file.write_bytes(b"damaged")
    others = {
        "index": lambda: open_pipeline(workspace, folder / "ple", tmp_path / "index", unproven=True),
        "key": lambda: Signer(b"too short"),
        "registry": registry_away,
    }
    server = create_server(load("larr"), ServerOptions(), None, lambda name: others[name]())
    with Operator(f"127.0.0.1:{server.port}") as operator:
        for change in (operator.reload, operator.shadow):
            for name, reason in (("index", "does not have the hash"), ("key", "needs 32 bytes")):
                with pytest.raises(grpc.RpcError) as refused:
                    change(name)
                assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert reason in refused.value.details()
            with pytest.raises(grpc.RpcError) as fault:
                change("registry")
            assert fault.value.code() is grpc.StatusCode.INTERNAL
            error_id = fault.value.details().removeprefix("internal error ")
            assert len(error_id) == 32 and error_id in caplog.text and "OperationalError" in caplog.text
        assert operator.serving().current.name == "larr"
    server.stop()
    server.live.close()


def test_an_unproven_bundle_is_refused_by_a_server_that_wants_proof(workspace, folder, load):
    def strict(name):
        return open_pipeline(workspace, folder / name, None)

    server = create_server(load("larr"), ServerOptions(), None, strict)
    with Operator(f"127.0.0.1:{server.port}") as operator, pytest.raises(grpc.RpcError) as refused:
        operator.reload("ple")
    assert "no certificate" in refused.value.details()
    server.stop()
    server.live.close()


@pytest.mark.parametrize("name", ["", "..", "../larr", "a/b", "/etc", "larr\0", ".hidden", "x" * 129])
def test_only_names_are_taken(both, name):
    _, operator = both
    with pytest.raises(grpc.RpcError) as refused:
        operator.reload(name)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("share", [-0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(both, share):
    _, operator = both
    with pytest.raises(grpc.RpcError) as refused:
        operator.shadow("ple", share)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_one_change_at_a_time(load):
    begun, go_on = threading.Event(), threading.Event()

    def slow(name):
        begun.set()
        go_on.wait(30)
        return load(name)

    server = create_server(load("larr"), ServerOptions(), None, slow)
    with Operator(f"127.0.0.1:{server.port}") as operator:
        first = threading.Thread(target=operator.reload, args=("ple",))
        first.start()
        assert begun.wait(30)
        for change in (lambda: operator.reload("larr"), operator.roll_back):
            with pytest.raises(grpc.RpcError) as refused:
                change()
            assert refused.value.code() is grpc.StatusCode.ABORTED
        go_on.set()
        first.join()
        assert operator.serving().current.name == "ple"
    server.stop()
    server.live.close()


def test_a_server_without_other_bundles_says_so(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Reload(admin_pb2.ReloadRequest(bundle="ple"))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_key_that_was_replaced_counts_from_the_next_reload_on(load, workspace, moment, poi_ids, tmp_path):
    feedback = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    before = workspace.attribution_key.read_bytes()
    with serving(load, feedback) as (client, operator):
        operator.shadow("ple", 1.0)
        workspace.attribution_key.write_bytes(secrets.token_bytes(KEY_BYTES))
        try:
            operator.reload("larr")
        finally:
            workspace.attribution_key.write_bytes(before)
        answer = ask(client, moment, poi_ids)  # the first one, which calibration remembers
        report = report_of(operator, 1)
        assert (report.answers, report.failed) == (1, 0)
        client.record([Happened(token=answer.attribution_token, poi_id=answer.poi_ids[0], outcome="shown")])
        (scenario,) = operator.serving().shadow.scenarios
        assert scenario.shown == 1
    feedback.close()


def test_no_token_is_lost_while_a_key_is_replaced_on_one_server_after_the_other(
    load, workspace, moment, poi_ids, tmp_path
):
    """The steps of docs/operations.md, on two servers, of which the second one is always a step behind."""
    feedback = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    key = workspace.attribution_key
    before, after = key.read_bytes(), secrets.token_bytes(KEY_BYTES)
    next_key, old_key = key.with_name("attribution.next.key"), key.with_name("attribution.old.key")
    given = []

    def one_more_is_taken_by_both() -> None:
        for client, _ in (first, second):
            given.append(ask(client, moment, poi_ids))
        for ranking in given:
            events = shown(ranking, moment)
            assert first[0].record(events).recorded == second[0].record(events).repeated == len(events)

    def everywhere() -> None:
        for _, operator in (first, second):
            operator.reload("larr")
            one_more_is_taken_by_both()

    with serving(load, feedback) as first, serving(load, feedback) as second:
        try:
            one_more_is_taken_by_both()
            next_key.write_bytes(after)
            everywhere()
            shutil.copyfile(key, old_key)
            next_key.rename(key)
            everywhere()
            assert Signer(before).read(given[-5].attribution_token) and Signer(after).read(given[-1].attribution_token)
            old_key.unlink()
            first[1].reload("larr")
            error = refused(lambda: first[0].record(shown(given[0], moment)))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, "the old key is good for nothing any more"
            one = Happened(token=given[-1].attribution_token, poi_id="p", outcome="clicked", time=moment)
            assert first[0].record([one]).recorded == 1
        finally:
            key.write_bytes(before)
            next_key.unlink(missing_ok=True)
            old_key.unlink(missing_ok=True)
    feedback.close()
