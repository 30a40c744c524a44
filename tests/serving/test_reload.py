"""Another bundle while requests run, back again, and one in the shadow: over a socket, with real bundles."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from feature_repo.stores.packed import StoreUnavailable
from serving import shadow as shadows
from serving.attribution import KEY_BYTES, Signer
from serving.client import Asker, Happened, Recommender, Wish
from serving.feedback import FeedbackLog
from serving.guard import StoreGuard
from serving.opening import open_pipeline
from serving.operator_client import Operator
from serving.pipeline import Pipeline
from serving.request import RankRequest, RequestContext
from serving.retriever import Retriever
from serving.scorer import Scorer
from serving.served import answers_of
from serving.server import ServerOptions, create_server
from serving.shadow import Shadow
from serving.v1 import admin_pb2, admin_pb2_grpc
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
            assert len(error_id) == 32 and error_id in caplog.text and "secret-host" in caplog.text
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


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["Reload", "Shadow", "RollBack", "GetServing"]), st.binary(max_size=300))
def test_any_bytes_are_answered_and_change_nothing(running, method, content):
    known = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        try:
            channel.unary_unary(f"/scenerank.v1.AdminService/{method}")(content, timeout=30)
        except grpc.RpcError as error:
            assert error.code() in known
    assert running.live.previous is None


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


def report_of(operator, answers, within_s=60.0):
    """What is told of the shadow once so many answers were compared."""
    end = time.monotonic() + within_s
    while (report := operator.serving().shadow).answers < answers:
        assert time.monotonic() < end, report
        time.sleep(0.02)
    return report


def test_the_same_bundle_in_the_shadow_is_the_same(both, moment, poi_ids):
    client, operator = both
    assert operator.shadow("larr", 1.0).shadow.share == 1.0
    for done in range(5):
        ask(client, moment, poi_ids)
        report = report_of(operator, done + 1)
    assert (report.answers, report.failed, report.overlap_at_10) == (5, 0, 1.0)
    (scenario,) = report.scenarios
    assert (scenario.scenario_id, scenario.places) == ("search", 100)
    assert scenario.mean_p_click == scenario.shadow_mean_p_click > 0
    assert not operator.shadow("").HasField("shadow")


def test_another_bundle_in_the_shadow_is_compared_by_value(load, expected, moment, poi_ids, tmp_path):
    feedback = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    with serving(load, feedback) as (client, operator):
        answers, shadow = expected["larr"], expected["ple"]
        operator.shadow("ple", 1.0)
        ranking = ask(client, moment, poi_ids)
        report = report_of(operator, 1)
        common = len({*answers.poi_ids[:10]} & {*shadow.poi_ids[:10]})
        assert report.overlap_at_10 == pytest.approx(common / 10)
        (scenario,) = report.scenarios
        assert scenario.mean_p_click == pytest.approx(float(answers.p_click.mean()), rel=1e-6)
        assert scenario.shadow_mean_p_click == pytest.approx(float(shadow.p_click.mean()), rel=1e-6)
        token, (first, second, third) = ranking.attribution_token, ranking.poi_ids[:3]
        events = [
            Happened(token=token, poi_id=first, outcome="shown"),
            Happened(token=token, poi_id=first, outcome="clicked"),
            Happened(token=token, poi_id=second, outcome="shown"),
            Happened(token=token, poi_id=third, outcome="ordered"),
        ]
        client.record(events)
        client.record(events)
        (scenario,) = operator.serving().shadow.scenarios
        assert (scenario.shown, scenario.clicks) == (3, 2)
        of_shadow = dict(zip(shadow.poi_ids, shadow.p_click.tolist(), strict=True))
        assert scenario.expected_clicks == pytest.approx(sum(ranking.p_click[:3]), rel=1e-6)
        assert scenario.shadow_expected_clicks == pytest.approx(sum(of_shadow[p] for p in (first, second, third)))
    feedback.close()


def test_first_tens_of_all_candidates_are_compared_whatever_the_limit(both, expected, moment, poi_ids):
    client, operator = both
    operator.shadow("ple", 1.0)
    for done, limit in enumerate((1, 10)):
        client.rank(Asker(user_id="u3", scenario_id="search", time=moment), poi_ids[:20], Wish(limit=limit))
        report = report_of(operator, done + 1)
    common = len({*expected["larr"].poi_ids[:10]} & {*expected["ple"].poi_ids[:10]})
    assert common < 10, "the two order alike: a comparison of them says nothing"
    assert report.overlap_at_10 == pytest.approx(common / 10)
    assert sum(scenario.places for scenario in report.scenarios) == 11, "those that were answered"


def test_a_shadow_is_compared_with_what_answers_by_now(both, moment, poi_ids):
    client, operator = both
    operator.shadow("ple", 1.0)
    ask(client, moment, poi_ids)
    assert report_of(operator, 1).overlap_at_10 < 1.0
    assert operator.reload("ple").shadow.answers == 0
    ask(client, moment, poi_ids)
    report = report_of(operator, 1)
    assert report.overlap_at_10 == 1.0
    (scenario,) = report.scenarios
    assert scenario.mean_p_click == scenario.shadow_mean_p_click, "of one pair of bundles"


def test_what_a_server_explores_is_no_difference(workspace, folder, moment, poi_ids):
    with serving(lambda name: open_pipeline(workspace, folder / name, None, unproven=True, explore=5.0)) as both:
        client, operator = both
        operator.shadow("larr", 1.0)
        orders = set()
        for done in range(3):
            orders.add(tuple(ask(client, moment, poi_ids).poi_ids))
            report = report_of(operator, done + 1)
    assert len(orders) == 3 and (report.failed, report.overlap_at_10) == (0, 1.0)


def test_what_the_shadow_read_is_no_answer_that_was_served(workspace, folder, moment, poi_ids):
    def load(name):
        return open_pipeline(workspace, folder / name, None, unproven=True, served_share=1.0)

    try:
        with serving(load) as (client, operator):
            operator.shadow("ple", 1.0)
            ask(client, moment, poi_ids)
            report_of(operator, 1)
        larr, ple = (list(answers_of(workspace.served, bundles.load(folder / n).manifest.version)) for n in MODELS)
        assert sum(map(len, larr)) == 20 and not ple
    finally:
        shutil.rmtree(workspace.served)


@pytest.fixture
def shadow(load):
    shadow = Shadow(load("ple"), 1.0)
    yield shadow
    shadow.close()


def compared(shadow, answers):
    end = time.monotonic() + 60
    while (tally := shadow.tally("larr")).answers + tally.skipped + tally.failed < answers:
        assert time.monotonic() < end
        time.sleep(0.01)
    return tally


def test_as_many_places_are_remembered_as_may_be(shadow, load, request_of, monkeypatch):
    monkeypatch.setattr(shadows, "REMEMBERED", 50)
    answering, ids = load("larr"), []
    for done in range(5):
        ranking = answering.rank(request_of)
        ids.append(ranking.answer_id)
        shadow.answered(request_of, ranking, 0.01, "larr")
        compared(shadow, done + 1)
    assert list(shadow._answers) == ids[-2:], "of 20 places each"
    monkeypatch.setattr(shadows, "ANSWERS", 1)
    shadow.answered(request_of, answering.rank(request_of), 0.01, "larr")
    compared(shadow, 6)
    assert len(shadow._answers) == 1
    answering.close()


def test_an_answer_that_the_shadow_gave_without_the_store_is_no_comparison(load, request_of):
    def away():
        raise StoreUnavailable("away")

    guard, alike = StoreGuard(1, rest_s=3600.0), load("ple")
    with pytest.raises(StoreUnavailable):
        guard.ask(away)
    shadow = Shadow(Pipeline(alike.reader, Scorer(alike.bundle), guard=guard), 1.0)
    answering = load("larr")
    shadow.answered(request_of, answering.rank(request_of), 0.01, "larr")
    tally = compared(shadow, 1)
    assert (tally.answers, tally.skipped, tally.failed) == (0, 1, 0)
    shadow.close()
    answering.close()


def test_the_time_to_find_candidates_is_in_neither_of_the_times_compared(workspace, folder, moment, monkeypatch):
    embed = Retriever.embed
    monkeypatch.setattr(Retriever, "embed", lambda self, table: time.sleep(2.0) or embed(self, table))
    with serving(lambda name: open_pipeline(workspace, folder / name, workspace.index, unproven=True)) as both:
        client, operator = both
        asker = Asker(user_id="u3", scenario_id="search", time=moment)
        client.recommend(asker)  # the first one takes longer
        operator.shadow("larr", 1.0)
        client.recommend(asker, Wish(limit=3))
        report = report_of(operator, 1)
    assert report.failed == 0 and report.latency_ratio > 0.1, "the same work on both sides"


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
