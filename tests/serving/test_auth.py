from __future__ import annotations

import shutil
import subprocess

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.auth import TOKEN_VARIABLE, AuthError, Tls, read_token, require_loopback
from serving.client import Access, Recommender
from serving.server import ServerOptions, create_server

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for localhost, and another one."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "other"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert TOKEN not in str(caught.value)
    return caught.value.code()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:80", "localhost:50051", "[::1]:0", "unix:/tmp/s"])
def test_plain_text_stays_on_this_machine(address):
    require_loopback(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:80", "example.org:443", ":50051", "localhost.org:1"]
)
def test_plain_text_is_refused_where_others_can_reach_it(address, pipeline):
    with pytest.raises(AuthError, match="give TLS files"):
        create_server(pipeline, ServerOptions(address=address))


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    assert read_token(None) == "from-the-environment"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


def test_a_short_or_absent_token_is_refused_and_not_repeated(tmp_path):
    with pytest.raises(AuthError, match="No such file"):
        read_token(tmp_path / "absent")
    (tmp_path / "token").write_text("hunter2")
    with pytest.raises(AuthError, match="under 16 characters") as caught:
        read_token(tmp_path / "token")
    assert "hunter2" not in str(caught.value)


def test_only_the_token_lets_in_and_health_needs_none(pipeline, asker, poi_ids, caplog):
    server = create_server(pipeline, ServerOptions(token=TOKEN))
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


def test_tls_from_files(pipeline, asker, poi_ids, certificates):
    tls = Tls(certificate=certificates / "server.pem", key=certificates / "server.key")
    server = create_server(pipeline, ServerOptions(tls=tls, address="127.0.0.1:0"))
    address = f"localhost:{server.port}"
    try:
        right, wrong = ((certificates / f"{name}.pem").read_bytes() for name in ("server", "other"))
        with Recommender(address, Access(root_certificate=right)) as client:
            assert client.rank(asker, poi_ids[:1]).poi_ids == poi_ids[:1]
        for access in (Access(root_certificate=wrong), Access()):
            with Recommender(address, access) as client:
                assert code_of(lambda c=client: c.rank(asker, poi_ids[:1])) is grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop()


def test_mutual_tls_wants_a_certificate_of_the_client(pipeline, asker, poi_ids, certificates):
    pem, key = certificates / "server.pem", certificates / "server.key"
    tls = Tls(certificate=pem, key=key, client_ca=pem)
    server = create_server(pipeline, ServerOptions(tls=tls, address="127.0.0.1:0"))
    try:
        with Recommender(f"localhost:{server.port}", Access(root_certificate=pem.read_bytes())) as client:
            assert code_of(lambda: client.rank(asker, poi_ids[:1])) is grpc.StatusCode.UNAVAILABLE
        mine = Access(root_certificate=pem.read_bytes(), certificate=pem.read_bytes(), key=key.read_bytes())
        with Recommender(f"localhost:{server.port}", mine) as client:
            assert client.rank(asker, poi_ids[:1]).poi_ids == poi_ids[:1]
    finally:
        server.stop()


def test_an_absent_certificate_is_named(pipeline, tmp_path):
    tls = Tls(certificate=tmp_path / "absent.pem", key=tmp_path / "absent.key")
    with pytest.raises(AuthError, match=r"absent\.key: No such file"):
        create_server(pipeline, ServerOptions(tls=tls))
