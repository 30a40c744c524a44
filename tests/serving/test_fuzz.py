"""No input brings the server down, makes it err, or changes what it answers to others: every RPC, over a socket.

Two kinds of input: messages whose fields have any values, made from the descriptors of the proto file, and bytes, made
by damaging valid messages. `make test` sends some thousands, `make test-full` over 100,000. What is sent is the same in
every run.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.client import Asker, Recommender, Wish, shown
from serving.feedback import FeedbackLog
from serving.opening import open_pipeline
from serving.operator_client import Operator
from serving.server import ADMIN_SERVICE, SERVICE, ServerOptions, create_server
from serving.v1 import admin_pb2
from serving.v1 import recommender_pb2 as pb
from tests.serving.fuzzed import damaged, messages, varied

OURS = pb.DESCRIPTOR.services_by_name["RecommenderService"]
OPERATORS = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
OTHERS = {
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service=SERVICE),
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest(service=SERVICE),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
        file_containing_symbol=SERVICE
    ),
}
STREAMS = ("RecordFeedbackStream", "ServerReflectionInfo", "Watch")
METHODS = [*(f"/{of.full_name}/{method.name}" for of in (OURS, OPERATORS) for method in of.methods), *OTHERS]
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
# What is said of a bundle that is refused, or taken without a certificate.
OF_A_RELOAD = {("serving.admin", logging.WARNING), ("serving.opening", logging.WARNING)}
# Inputs of each method: in every run, and at full size. Over twelve methods that makes 234,000.
STRUCTURED, BYTES = (150, 1_500), (400, 18_000)


@dataclass(frozen=True)
class Target:
    """A server under fire, and what it answered before."""

    channel: grpc.Channel
    client: Recommender
    operator: Operator
    asker: Asker
    poi_ids: list[str]
    valid: dict[str, Message]
    before: tuple[pb.Ranking, pb.Ranking]

    def status_of(self, method: str, *contents: bytes) -> grpc.StatusCode:
        """Of one call with these messages; OK where it was answered."""
        try:
            if method.endswith(STREAMS):
                call = self.channel.stream_stream(method)(iter(contents), timeout=30)
                if method.endswith("Watch"):  # it has no end of its own
                    next(call)
                    call.cancel()
                else:
                    list(call)
            else:
                self.channel.unary_unary(method)(contents[0], timeout=30)
        except grpc.RpcError as error:
            assert "Traceback" not in error.details() and "Exception" not in error.details()
            return error.code()
        except StopIteration:
            pass
        return grpc.StatusCode.OK

    def is_unmoved(self) -> bool:
        """Whether good requests are answered as before, whatever bundle an operator has answer by now."""
        self.operator.shadow("")
        assert self.operator.reload("larr").previous.name == "ple"
        return (_ranked(self), _found(self)) == self.before


def _ranked(target: Target) -> pb.Ranking:
    return _comparable(target.client.rank(target.asker, target.poi_ids[:20], Wish(details=True)))


def _found(target: Target) -> pb.Ranking:
    return _comparable(target.client.recommend(target.asker, Wish(limit=20)))


def _comparable(ranking: pb.Ranking) -> pb.Ranking:
    ranking.ClearField("attribution_token")  # of this answer alone
    ranking.ClearField("distance_km")  # NaN where unknown, which equals nothing
    return ranking


@pytest.fixture(scope="module")
def target(workspace, moment, poi_ids, tmp_path_factory) -> Iterator[Target]:
    def load(name):
        return open_pipeline(workspace, workspace.bundles / name, workspace.index, unproven=True)

    log = FeedbackLog(f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'feedback.db'}")
    server = create_server(load("ple"), ServerOptions(), log, load, "ple")
    asker = Asker(user_id="u3", scenario_id="lunch_deals", time=moment, place=(60.17, 24.94), scene={"weather": "rain"})
    address = f"127.0.0.1:{server.port}"
    with grpc.insecure_channel(address) as channel, Recommender(address) as client, Operator(address) as operator:
        operator.reload("larr")
        ranking = client.rank(asker, poi_ids[:3])
        context = asker.message()
        events = [one.message() for one in shown(ranking, moment + timedelta(seconds=1))[:1]]
        feedback = pb.RecordFeedbackRequest(events=events)
        valid = {
            "Rank": pb.RankRequest(context=context, poi_ids=poi_ids[:3]),
            "Recommend": pb.RecommendRequest(context=context, radius_km=3.0, only_open=True, limit=5),
            "Explain": pb.ExplainRequest(context=context, poi_id=poi_ids[0], limit=5),
            "RecordFeedback": feedback,
            "RecordFeedbackStream": feedback,
        }
        operators = {
            "GetServing": admin_pb2.GetServingRequest(),
            "Reload": admin_pb2.ReloadRequest(bundle="ple"),
            "RollBack": admin_pb2.RollBackRequest(),
            "Shadow": admin_pb2.ShadowRequest(bundle="ple", share=0.5),
        }
        named = {f"/{SERVICE}/{name}": message for name, message in valid.items()} | OTHERS
        named |= {f"/{ADMIN_SERVICE}/{name}": message for name, message in operators.items()}
        made = Target(channel, client, operator, asker, poi_ids, named, (pb.Ranking(), pb.Ranking()))
        yield replace(made, before=(_ranked(made), _found(made)))
    assert server.stop()
    assert server.live.close()
    log.close()


@contextlib.contextmanager
def unshaken(target: Target, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is sent in this block logs no error and leaves good answers as they are."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield
        assert target.is_unmoved()
    assert not [record for record in caplog.records if (record.name, record.levelno) not in OF_A_RELOAD]


def sizes(small_and_full: tuple[int, int]) -> list:
    small, full = small_and_full
    return [small, pytest.param(full, marks=[pytest.mark.full, pytest.mark.timeout(3600)])]


def of_every_method(count: tuple[int, int]) -> Callable:
    def parametrised(test: Callable) -> Callable:
        named = pytest.mark.parametrize("method", METHODS, ids=[name.rpartition("/")[2] for name in METHODS])
        return named(pytest.mark.parametrize("count", sizes(count))(test))

    return parametrised


@of_every_method(STRUCTURED)
def test_any_values_of_fields(target, caplog, method, count):
    valid = target.valid[method]
    any_message = st.one_of(varied(valid), varied(valid), messages(valid.DESCRIPTOR))

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(any_message, min_size=1, max_size=2))
    def send(requests: list[Message]) -> None:
        statuses[target.status_of(method, *(r.SerializeToString() for r in requests))] += 1
        assert not FAULTS & statuses.keys()

    statuses: Counter[grpc.StatusCode] = Counter()
    with unshaken(target, caplog):
        send()
    assert statuses[grpc.StatusCode.OK] > statuses.total() / 100, "hardly anything got past the rules"


@of_every_method(BYTES)
def test_any_bytes(target, caplog, method, count):
    draw, valid = random.Random(f"{method} {count}"), target.valid[method].SerializeToString()
    with unshaken(target, caplog):
        assert target.status_of(method, valid) is grpc.StatusCode.OK
        for _ in range(count):
            contents = [damaged(valid, draw)]
            if method.endswith("Stream") and draw.random() < 0.5:
                contents.insert(0, valid)
            assert target.status_of(method, *contents) not in FAULTS, contents


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_the_callers_mistake(target, caplog, method):
    with unshaken(target, caplog):
        no_text = [b"\x0a\x02\xff\xfe"] if target.valid[method].DESCRIPTOR.fields else []  # else: an unknown field
        for content in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200, *no_text):
            assert target.status_of(method, content) is grpc.StatusCode.INVALID_ARGUMENT
        if method.endswith("FeedbackStream"):  # also after a good one
            good = target.valid[method].SerializeToString()
            assert target.status_of(method, good, b"\xff") is grpc.StatusCode.INVALID_ARGUMENT
        good = target.valid[method].SerializeToString()
        assert target.status_of(method, good) is grpc.StatusCode.OK


@pytest.mark.parametrize("method", [m for m in METHODS if not m.endswith("Watch")])
def test_an_oversized_message_is_refused(target, caplog, method):
    with unshaken(target, caplog):
        assert target.status_of(method, bytes(2 * 1024 * 1024 + 1)) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_of_up_to_8_kib_is_taken_and_more_is_refused(target):
    rank = target.channel.unary_unary(f"/{SERVICE}/Rank")
    good = target.valid[f"/{SERVICE}/Rank"].SerializeToString()
    assert rank(good, metadata=[("x-trace", "a" * 7000)])
    for metadata in ([("x-trace", "a" * 9000)], [(f"x-{n}", "a" * 100) for n in range(100)]):
        for _ in range(20):  # a limit, not a chance
            with pytest.raises(grpc.RpcError) as caught:
                rank(good, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert target.is_unmoved()


@pytest.mark.parametrize("letter", ["x", "\u00e4", "\U0001f600", "\0", "%", "\n"])
def test_what_is_told_of_many_long_mistakes_fits_into_a_status(target, letter):
    inputs = {f"{n:02d}" + letter * 254: pb.SceneInput(text="y" * 300) for n in range(100)}
    request = pb.RankRequest(context=pb.RequestContext(user_id="u", scenario_id=letter * 300, scene_inputs=inputs))
    with pytest.raises(grpc.RpcError) as caught:
        target.channel.unary_unary(f"/{SERVICE}/Rank")(request.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = rpc_details(caught.value)
    assert 5 <= len(details.field_violations) < 20
    named = caught.value.details()
    untold = 102 - len(details.field_violations)  # the scenario, 100 inputs, no candidate
    assert named.endswith(f"and {untold} more") and named.startswith("context.scenario_id: ")


def rpc_details(error: grpc.RpcError) -> error_details_pb2.BadRequest:
    details = error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    assert status is not None and status.details[0].Unpack(details)
    return details
