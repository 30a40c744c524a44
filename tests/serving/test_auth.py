from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from queue import SimpleQueue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serving import watched
from serving.auth import (
    ALL,
    SCOPES,
    TOKEN_VARIABLE,
    AuthError,
    Scope,
    Tokens,
    require_loopback,
    token_for,
    tokens_from,
)
from serving.client import Access, AsyncRecommender, Happened, Recommender
from serving.feedback import FeedbackLog
from serving.operator_client import Operator
from serving.server import SERVICE, ServerOptions, create_server
from serving.tries import Hedging
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from serving.watched import FileError, Watched
from tests.serving.conftest import refused

TOKEN = "correct-horse-battery-staple"
RANK, FEEDBACK, ADMIN = (f"{scope.value}-{TOKEN}" for scope in Scope)
TOKEN_FILE = f"""# whose they are stands behind them
{RANK}  rank            # the app

{FEEDBACK} feedback,rank
{ADMIN}\tadmin # night shift
{TOKEN}
"""


def code_of(call) -> grpc.StatusCode:
    error = refused(call)
    assert TOKEN not in str(error)
    return error.code()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:80", "localhost:50051", "[::1]:0", "unix:/tmp/s"])
def test_plain_text_stays_on_this_machine(address):
    require_loopback(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:80", "example.org:443", ":50051", "localhost.org:1"]
)
def test_plain_text_is_refused_where_others_can_reach_it(address, pipeline):
    with pytest.raises(AuthError, match="give TLS files"):
        create_server(pipeline, ServerOptions(address=address))


HERE = ("localhost:1", "dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1", "[::1]:1", "unix:/tmp/s")
ELSEWHERE = (
    *("prod:50051", "10.0.0.1:50051", "dns:///prod:50051", "dns://localhost:53/prod:1", "ipv4:127.0.0.1:1,10.0.0.1:1"),
    *("localhost.org:1", "dns:///prod:1?/localhost:1", "xds:///localhost:1", "", ":1"),
)
SECRETS = (Access(token=TOKEN), Access(certificate=b"certificate", key=b"key"))


@pytest.mark.parametrize("secret", SECRETS, ids=["token", "certificate"])
@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_client_sends_no_secret_to_another_machine_in_plain_text(address, secret):
    async def asynchronous():
        AsyncRecommender(address, secret)

    def hedged():
        Recommender("localhost:1", secret, hedging=Hedging(to=address or ":2", after_seconds=1.0))

    for client in (lambda: Recommender(address, secret), lambda: asyncio.run(asynchronous()), hedged):
        with pytest.raises(ValueError, match=r"is on another machine.*root certificate.*tls") as caught:
            client()
        assert TOKEN not in str(caught.value)
    with pytest.raises(ValueError, match="is on another machine"):
        Operator(address, secret)


@pytest.mark.parametrize("secret", SECRETS, ids=["token", "certificate"])
def test_plain_text_is_for_this_machine_or_for_who_has_no_secret(secret):
    assert [secret.credentials(address) for address in HERE] == [None] * len(HERE)
    assert [Access().credentials(address) for address in ELSEWHERE] == [None] * len(ELSEWHERE)


def test_a_certificate_and_its_key_come_together():
    for half in ({"certificate": b"certificate"}, {"key": b"key"}):
        with pytest.raises(ValueError, match="certificate and key come together"):
            Access(root_certificate=b"root", **half)


def test_tokens_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert tokens_from(None) is None
    for blank in ("", " \n"):  # a secret that was not filled in must not open the door
        monkeypatch.setenv(TOKEN_VARIABLE, blank)
        with pytest.raises(AuthError, match="SCENERANK_TOKEN: the token has under 16 characters"):
            tokens_from(None)
    monkeypatch.setenv(TOKEN_VARIABLE, " from the environment\n")
    assert tokens_from(None)().scopes_of(b"from the environment") == ALL
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert tokens_from(tmp_path / "token")().scopes_of(TOKEN.encode()) == ALL


def test_a_line_of_the_file_is_a_token_with_its_scopes():
    tokens = Tokens.parse(TOKEN_FILE.encode(), "tokens")
    found = {token: tokens.scopes_of(token.encode()) for token in (RANK, FEEDBACK, ADMIN, TOKEN)}
    assert found == {
        RANK: {Scope.RANK},
        FEEDBACK: {Scope.RANK, Scope.FEEDBACK},
        ADMIN: {Scope.ADMIN},
        TOKEN: ALL,
    }
    for unknown in (b"", b"rank", b"#", TOKEN[:-1].encode(), TOKEN.upper().encode(), f"{RANK} rank".encode()):
        assert tokens.scopes_of(unknown) is None
    assert TOKEN not in repr(tokens)


def test_the_token_of_a_caller_is_the_first_one_with_its_scope(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(TOKEN_FILE)
    assert [token_for(scope, path) for scope in Scope] == [RANK, FEEDBACK, ADMIN]
    path.write_text(f"{RANK} rank\n{TOKEN}\n{ADMIN} admin\n")
    assert token_for(Scope.ADMIN, path) == TOKEN, "a token without scopes has all"
    path.write_text(f"\n {TOKEN}\n")
    assert token_for(Scope.ADMIN, path) == TOKEN
    path.write_text(f"{RANK} rank # {ADMIN} admin\n# {TOKEN}\n")
    with pytest.raises(AuthError, match="tokens: no token in it has the scope admin") as caught:
        token_for(Scope.ADMIN, path)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("verb", ["rank", "recommend", "explain"])
def test_a_verb_sends_the_first_token_of_its_scope(pipeline, workspace, tmp_path, scenerank, verb):
    path = tmp_path / "tokens"
    path.write_text(TOKEN_FILE)
    server = create_server(pipeline, ServerOptions(tokens=tokens_from(path)))
    try:
        command = (verb, "--address", f"127.0.0.1:{server.port}", "--workspace", workspace.root)
        said = scenerank(*command, "--token-file", path)
        assert said.exit_code == 0, said.output
        said = scenerank(*command)
        assert said.exit_code == 2 and "UNAUTHENTICATED" in said.words
    finally:
        server.stop()


def test_an_operator_s_command_takes_the_server_s_own_token_file(pipeline, tmp_path, scenerank):
    path = tmp_path / "tokens"
    path.write_text(TOKEN_FILE)
    server = create_server(pipeline, ServerOptions(tokens=tokens_from(path)))
    try:
        command = ("live", "status", "--address", f"127.0.0.1:{server.port}", "--token-file", path)
        said = scenerank(*command)
        assert said.exit_code == 0, said.output
        path.write_text(f"{RANK} rank\n")
        said = scenerank(*command)
        assert said.exit_code == 2 and "no token in it has the scope admin" in said.words
        for wrong, remedy in (
            (("live", "rollback", "ple"), "rollback takes no bundle"),
            (("live", "shadow", "ple", "--share", "0"), "`scenerank live shadow` ends the shadow"),
            (("live", "status", "--certificate", path), "certificate and key come together"),
        ):
            said = scenerank(*wrong)
            assert said.exit_code == 2 and remedy in said.words
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no token"),
        (b"# nobody\n\n", "holds no token"),
        (b"hunter2-secret", r"line 1: the token has under 16 characters"),
        (f"{TOKEN} rank\n{TOKEN} feedback".encode(), r"line 2: repeats the token of an earlier line"),
        (f"{TOKEN} hunter2-secret".encode(), r"the second word must be scopes out of rank, feedback, admin"),
        (f"{TOKEN} rank, feedback".encode(), r"has more than a token and its scopes"),
        (f"{TOKEN} rank the hunter2-secret".encode(), r"has more than a token and its scopes"),
        ("hunter2-secret-пароль".encode(), r"characters that no call can carry"),
        (b"hunter2-secret-\xff\xfe", "is no text in UTF-8"),
    ],
)
def test_a_file_that_keeps_nobody_out_is_refused_and_not_repeated(tmp_path, content, reason):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(AuthError, match=reason) as caught:
        tokens_from(tmp_path / "token")
    assert "hunter2" not in str(caught.value) and TOKEN not in str(caught.value)
    with pytest.raises(FileError, match="absent: No such file"):
        tokens_from(tmp_path / "absent")


def test_every_method_has_a_scope():
    methods = {f"/{SERVICE}/{method.name}" for method in pb.DESCRIPTOR.services_by_name["RecommenderService"].methods}
    assert methods <= SCOPES.keys(), "a method without a scope takes admin: say so in serving.auth.SCOPES"


def test_only_the_token_lets_in_and_health_needs_none(pipeline, asker, poi_ids, caplog):
    server = create_server(pipeline, ServerOptions(tokens=lambda: Tokens.one(TOKEN, "here")))
    address = f"127.0.0.1:{server.port}"
    try:
        for token in (None, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "Bearer " + TOKEN):
            with Recommender(address, Access(token=token)) as client:
                assert code_of(lambda c=client: c.rank(asker, poi_ids[:1])) is grpc.StatusCode.UNAUTHENTICATED
        with Recommender(address, Access(token=TOKEN)) as client:
            assert client.rank(asker, poi_ids[:1]).poi_ids == poi_ids[:1]
        with grpc.insecure_channel(address) as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
            assert status == health_pb2.HealthCheckResponse.SERVING
    finally:
        server.stop()
    assert TOKEN not in caplog.text


def _never():
    """Messages of a call that says nothing for longer than anybody waits."""
    time.sleep(60)
    yield pb.RecordFeedbackRequest()


CALLS: dict[str, Callable] = {
    "Rank": lambda stub, **how: stub.Rank(pb.RankRequest(), **how),
    "Recommend": lambda stub, **how: stub.Recommend(pb.RecommendRequest(), **how),
    "Explain": lambda stub, **how: stub.Explain(pb.ExplainRequest(), **how),
    "RecordFeedback": lambda stub, **how: stub.RecordFeedback(pb.RecordFeedbackRequest(), **how),
    "RecordFeedbackStream": lambda stub, **how: next(
        stub.RecordFeedbackStream(iter([pb.RecordFeedbackRequest()]), **how)
    ),
}


def refused_for(method: str, stub: pb_grpc.RecommenderServiceStub, token: str | None) -> grpc.RpcError:
    metadata = [("authorization", f"bearer {token}")] if token else []
    error = refused(lambda: CALLS[method](stub, metadata=metadata, timeout=20))
    assert TOKEN not in str(error)
    return error


@pytest.mark.parametrize("method", CALLS)
def test_each_method_wants_its_scope(pipeline, method):
    server = create_server(pipeline, ServerOptions(tokens=lambda: Tokens.parse(TOKEN_FILE.encode(), "tokens")))
    own = SCOPES[f"/{SERVICE}/{method}"]
    # Past the door, an empty request is refused for what it lacks, or for the feedback that this server does not keep.
    inside = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = pb_grpc.RecommenderServiceStub(channel)
            for token, scopes in ((RANK, {Scope.RANK}), (ADMIN, {Scope.ADMIN}), (TOKEN, ALL)):
                error = refused_for(method, stub, token)
                if own in scopes:
                    assert error.code() in inside
                else:
                    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
                    assert error.details().endswith(f"this method needs: {own.value}")
            assert refused_for(method, stub, FEEDBACK).code() in inside
            for token in (None, "unknown-" + TOKEN):
                assert refused_for(method, stub, token).code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        server.stop()


def test_a_call_that_says_nothing_is_refused_at_once(pipeline):
    server = create_server(pipeline, ServerOptions(tokens=lambda: Tokens.parse(TOKEN_FILE.encode(), "tokens")))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = pb_grpc.RecommenderServiceStub(channel)
            for token, code in ((TOKEN + "x", "UNAUTHENTICATED"), (RANK, "PERMISSION_DENIED")):
                call = stub.RecordFeedbackStream(_never(), metadata=[("authorization", f"Bearer {token}")], timeout=20)
                assert code_of(lambda c=call: next(c)).name == code
            for method in CALLS:
                silent = channel.stream_unary(f"/{SERVICE}/{method}")
                assert code_of(lambda c=silent: c(_never(), timeout=20)) is grpc.StatusCode.UNAUTHENTICATED
            unknown = channel.unary_unary(f"/{SERVICE}/Nothing")
            assert code_of(lambda: unknown(b"")) is grpc.StatusCode.UNAUTHENTICATED
            told = [("authorization", f"Bearer {RANK}")]
            assert code_of(lambda: unknown(b"", metadata=told)) is grpc.StatusCode.PERMISSION_DENIED
            told = [("authorization", f"Bearer {ADMIN}")]
            assert code_of(lambda: unknown(b"", metadata=told)) is grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.stop()


def test_reflection_takes_any_token_and_only_a_token(pipeline):
    server = create_server(pipeline, ServerOptions(tokens=lambda: Tokens.parse(TOKEN_FILE.encode(), "tokens")))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                ProtoReflectionDescriptorDatabase(channel).get_services()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            told = _Told(channel, [("authorization", f"Bearer {FEEDBACK}")])
            assert SERVICE in ProtoReflectionDescriptorDatabase(told).get_services()
    finally:
        server.stop()


class _Told:
    """A channel that sends metadata with every stream."""

    def __init__(self, channel: grpc.Channel, metadata: list[tuple[str, str]]) -> None:
        self._channel, self._metadata = channel, metadata

    def stream_stream(self, *arguments, **named):
        call = self._channel.stream_stream(*arguments, **named)
        return lambda requests, **how: call(requests, metadata=self._metadata)


def test_tokens_are_rotated_while_the_server_runs(pipeline, asker, poi_ids, tmp_path, quick, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "tokens"
    path.write_text(f"{RANK} rank\n")
    server = create_server(pipeline, ServerOptions(tokens=tokens_from(path)))
    address = f"127.0.0.1:{server.port}"
    try:
        with (
            Recommender(address, Access(token=RANK)) as before,
            Recommender(address, Access(token=ADMIN)) as after,
        ):
            rank = {name: lambda c=client: c.rank(asker, poi_ids[:1]) for name, client in (("b", before), ("a", after))}
            assert rank["b"]().poi_ids and code_of(rank["a"]) is grpc.StatusCode.UNAUTHENTICATED
            path.write_text(f"{RANK} rank\n{ADMIN} rank\n")
            assert rank["b"]().poi_ids and rank["a"]().poi_ids
            path.write_text(f"{ADMIN} rank\n")
            assert code_of(rank["b"]) is grpc.StatusCode.UNAUTHENTICATED and rank["a"]().poi_ids
            for damage in (lambda: path.write_text(f"{RANK} everything"), path.unlink):
                caplog.clear()
                damage()
                for _ in range(3):
                    assert code_of(rank["b"]) is grpc.StatusCode.UNAUTHENTICATED and rank["a"]().poi_ids
                assert caplog.text.count("what was read before stays in use") == 1, "told once"
            path.write_text(f"{RANK} rank")
            assert rank["b"]().poi_ids
    finally:
        server.stop()
    assert TOKEN not in caplog.text


def test_a_stream_ends_with_its_token(pipeline, asker, poi_ids, tmp_path, quick):
    path, feedback = tmp_path / "tokens", FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    path.write_text(f"{FEEDBACK} rank,feedback\n")
    server = create_server(pipeline, ServerOptions(tokens=tokens_from(path)), feedback)
    address, access = f"127.0.0.1:{server.port}", Access(token=FEEDBACK)
    to_send: SimpleQueue[pb.RecordFeedbackRequest] = SimpleQueue()
    try:
        with Recommender(address, access) as client, grpc.insecure_channel(address) as channel:
            token = client.rank(asker, poi_ids[:1]).attribution_token
            stub = pb_grpc.RecommenderServiceStub(channel)
            said = stub.RecordFeedbackStream(iter(to_send.get, None), metadata=access.metadata, timeout=30)
            to_send.put(_clicked(token, poi_ids[0], "first"))
            assert next(said).recorded == 1
            path.write_text(f"{RANK} rank,feedback\n")
            to_send.put(_clicked(token, poi_ids[0], "second"))
            assert code_of(lambda: next(said)) is grpc.StatusCode.UNAUTHENTICATED
        path.write_text(f"{FEEDBACK} rank,feedback\n")
        with Recommender(address, access) as client:
            again = client.record([_happened(token, poi_ids[0], "second")])
        assert (again.recorded, again.repeated) == (1, 0), "what came without a token was not kept"
    finally:
        server.stop()
        feedback.close()


def test_a_stream_that_says_nothing_ends_when_its_token_is_gone(pipeline, asker, poi_ids, tmp_path, quick):
    path = tmp_path / "tokens"
    path.write_text(f"{FEEDBACK} feedback\n{RANK} rank\n")
    server = create_server(pipeline, ServerOptions(tokens=tokens_from(path)))
    address, never = f"127.0.0.1:{server.port}", SimpleQueue()
    try:
        with Recommender(address, Access(token=RANK)) as other, grpc.insecure_channel(address) as channel:
            stub = pb_grpc.RecommenderServiceStub(channel)
            metadata = Access(token=FEEDBACK).metadata
            said = stub.RecordFeedbackStream(iter(never.get, None), metadata=metadata, timeout=30)
            while not server.streams._open:
                time.sleep(0.01)
            assert other.rank(asker, poi_ids[:1]).poi_ids and said.is_active()
            path.write_text(f"{RANK} rank\n")
            assert other.rank(asker, poi_ids[:1]).poi_ids
            assert code_of(lambda: next(said)) is grpc.StatusCode.CANCELLED
            never.put(None)
            while server.streams._open:
                time.sleep(0.01)
    finally:
        server.stop()


def _happened(token: str, poi_id: str, event_id: str) -> Happened:
    return Happened(token=token, poi_id=poi_id, outcome="clicked", event_id=event_id)


def _clicked(token: str, poi_id: str, event_id: str) -> pb.RecordFeedbackRequest:
    return pb.RecordFeedbackRequest(events=[_happened(token, poi_id, event_id).message()])


def test_a_file_is_looked_at_once_a_second(tmp_path, monkeypatch):
    path, clock = tmp_path / "file", [100.0]
    monkeypatch.setattr(watched.time, "monotonic", lambda: clock[0])
    path.write_text("1")
    value = Watched([path], int)
    path.write_text("2")
    assert value() == 1
    clock[0] += watched.EVERY_S
    assert value() == 2


def test_a_file_that_is_too_large_to_be_one_is_not_read_whole(tmp_path):
    with (tmp_path / "tokens").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match="more than 1048576 bytes"):
        tokens_from(tmp_path / "tokens")
