"""TLS and mutual TLS: who is let in by which certificate, files renewed under a running server, files of no use."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import subprocess
from pathlib import Path

import grpc
import pytest

from serving.auth import TOKEN_VARIABLE, AuthError, Tls, Tokens
from serving.client import Access, Recommender
from serving.server import ServerOptions, create_server
from serving.watched import FileError
from tests.serving.conftest import refused

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Self-signed certificates for localhost, which sign one of a client each."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    for name in ("server", "other"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject)
        asked, key, signed = (folder / f"client-of-{name}.{ending}" for ending in ("csr", "key", "pem"))
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", asked, "-subj", "/CN=client")
        by = ["-CA", folder / f"{name}.pem", "-CAkey", folder / f"{name}.key", "-CAcreateserial", "-days", "2"]
        openssl("x509", "-req", "-in", asked, "-out", signed, *by)
    return folder


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
                assert refused(lambda c=client: c.rank(asker, poi_ids[:1])).code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop()


def test_tls_by_authorities_that_everybody_trusts(pipeline, asker, poi_ids, certificates, monkeypatch, checkout):
    tls = Tls(certificate=certificates / "server.pem", key=certificates / "server.key")
    server = create_server(pipeline, ServerOptions(tls=tls, tokens=lambda: Tokens.one(TOKEN, "here")))
    ask = ("-m", "serving.cli", "live", "status", "--tls", "--address", f"localhost:{server.port}")
    try:
        access = Access(tls=True, token=TOKEN)
        with Recommender(f"localhost:{server.port}", access) as client:
            assert refused(lambda: client.rank(asker, poi_ids[:1])).code() is grpc.StatusCode.UNAVAILABLE
        # gRPC reads these once in a process.
        monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(certificates / "server.pem"))
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
        assert "larr" in checkout.run(*ask).stdout
    finally:
        server.stop()


def shown_by(port: int) -> str:
    """The certificate that a new connection gets."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=20)


def test_certificates_are_rotated_while_clients_are_connected(
    pipeline, asker, poi_ids, certificates, tmp_path, quick, caplog
):
    caplog.set_level(logging.INFO)
    pem, key = tmp_path / "live.pem", tmp_path / "live.key"

    def put(name: str, path: Path) -> None:
        """As a renewal does it: written beside, then renamed, one file after the other."""
        shutil.copy(certificates / f"{name}{path.suffix}", tmp_path / "new")
        os.replace(tmp_path / "new", path)

    put("server", pem)
    put("server", key)
    of = {name: (certificates / f"{name}.pem").read_text() for name in ("server", "other")}
    server = create_server(pipeline, ServerOptions(tls=Tls(certificate=pem, key=key), address="127.0.0.1:0"))
    address = f"localhost:{server.port}"
    trusting = {name: Access(root_certificate=of[name].encode()) for name in of}
    try:
        with Recommender(address, trusting["server"]) as connected:
            assert connected.rank(asker, poi_ids[:1]).poi_ids
            assert shown_by(server.port).split() == of["server"].split()
            put("other", pem)  # between the two renames the key is not the certificate's
            for _ in range(3):
                assert shown_by(server.port).split() == of["server"].split()
            assert caplog.text.count("cannot be used together: KEY_VALUES_MISMATCH") == 1
            with Recommender(address, trusting["server"]) as client:
                assert client.rank(asker, poi_ids[:1]).poi_ids
            put("other", key)
            assert shown_by(server.port).split() == of["other"].split()
            with Recommender(address, trusting["other"]) as client:
                assert client.rank(asker, poi_ids[:1]).poi_ids
            assert connected.rank(asker, poi_ids[:1]).poi_ids, "the old connection goes on"
            for damage in (lambda: key.write_bytes(key.read_bytes()[:100]), pem.unlink):
                damage()
                assert shown_by(server.port).split() == of["other"].split()
    finally:
        server.stop()
    assert "changed, and taken up" in caplog.text and "PRIVATE" not in caplog.text


def mine(certificates: Path, name: str) -> Access:
    """A client that shows a certificate which `name` signed."""
    return Access(
        root_certificate=(certificates / "server.pem").read_bytes(),
        certificate=(certificates / f"client-of-{name}.pem").read_bytes(),
        key=(certificates / f"client-of-{name}.key").read_bytes(),
    )


def test_mutual_tls_wants_a_certificate_of_the_client_and_its_authority_is_rotated(
    pipeline, workspace, asker, poi_ids, certificates, tmp_path, quick, caplog, scenerank
):
    pem, key, authority = certificates / "server.pem", certificates / "server.key", tmp_path / "clients.pem"
    shutil.copy(pem, authority)
    tls = Tls(certificate=pem, key=key, client_ca=authority)
    server = create_server(pipeline, ServerOptions(tls=tls, address="127.0.0.1:0"))

    def comes_in(access: Access) -> bool:
        with Recommender(f"localhost:{server.port}", access) as client:
            try:
                return bool(client.rank(asker, poi_ids[:1]).poi_ids)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return False

    try:
        assert not comes_in(Access(root_certificate=pem.read_bytes()))
        assert comes_in(mine(certificates, "server")) and not comes_in(mine(certificates, "other"))
        shutil.copy(certificates / "other.pem", authority)
        assert comes_in(mine(certificates, "other")) and not comes_in(mine(certificates, "server"))
        authority.write_text("no certificate")
        assert comes_in(mine(certificates, "other")) and not comes_in(mine(certificates, "server"))
        assert "clients.pem: holds no PEM certificate" in caplog.text
        authority.write_bytes(pem.read_bytes() + (certificates / "other.pem").read_bytes())
        assert comes_in(mine(certificates, "other")) and comes_in(mine(certificates, "server"))
        assert not comes_in(Access(root_certificate=pem.read_bytes()))
        client_pem, client_key = (certificates / f"client-of-server.{kind}" for kind in ("pem", "key"))
        reach = ("--address", f"localhost:{server.port}", "--root-certificate", pem)
        for verb in (("live", "status"), ("rank", "--workspace", workspace.root)):
            said = scenerank(*verb, *reach, "--certificate", client_pem, "--key", client_key)
            assert said.exit_code == 0, said.output
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("pem", "key", "reason"),
    [
        ("absent.pem", "server.key", r"absent\.pem: No such file"),
        ("server.pem", "other.key", "cannot be used together: KEY_VALUES_MISMATCH"),
        ("server.pem", "server.pem", "cannot be used together"),
    ],
)
def test_files_that_cannot_be_used_are_named(pipeline, certificates, pem, key, reason):
    tls = Tls(certificate=certificates / pem, key=certificates / key)
    with pytest.raises(FileError, match=reason):
        create_server(pipeline, ServerOptions(tls=tls))


def test_a_key_under_a_passphrase_is_refused_and_nobody_is_asked_for_it(pipeline, certificates, tmp_path):
    sealed = tmp_path / "sealed.key"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:hunter2", "-in", certificates / "server.key"]
    subprocess.run([*command, "-out", sealed], check=True, capture_output=True)
    with pytest.raises(AuthError, match="cannot be used together"):
        create_server(pipeline, ServerOptions(tls=Tls(certificate=certificates / "server.pem", key=sealed)))
