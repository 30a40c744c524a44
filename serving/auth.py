"""Who may come in: TLS from files, a bearer token, and no plain text beyond this machine.

Tokens and keys come from files or the environment, are compared in constant time, and are never logged or repeated.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

TOKEN_VARIABLE = "SCENERANK_TOKEN"
MINIMUM_TOKEN = 16
OPEN_SERVICES = ("/grpc.health.v1.Health/",)  # a probe asks whether the server lives, not what it knows


class AuthError(ValueError):
    """The server cannot be secured as asked; the message says what to change (and holds no secret)."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files of the server; with `client_ca`, clients must show a certificate that it signed (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises AuthError for a file that cannot be read."""
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.certificate))],
            root_certificates=_read(self.client_ca) if self.client_ca else None,
            require_client_auth=self.client_ca is not None,
        )


def read_token(path: Path | None) -> str | None:
    """The bearer token: the file's content, else that of the environment variable, else None (no token asked).

    Raises AuthError for a file that cannot be read and for a token that is too short to keep anyone out.
    """
    token = _read(path).decode().strip() if path else os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if token is not None and len(token) < MINIMUM_TOKEN:
        raise AuthError(
            f"the token of {path or TOKEN_VARIABLE} has under {MINIMUM_TOKEN} characters; take a longer one"
        )
    return token


def require_loopback(address: str) -> None:
    """Raises AuthError for an address that other machines can reach: there, TLS is a must."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise AuthError(f"{address} is reachable from other machines: give TLS files, or listen on 127.0.0.1")


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Lets calls in that carry `authorization: Bearer <token>`; health checks need none."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._refusal = grpc.unary_unary_rpc_method_handler(_refuse)

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        if details.method.startswith(OPEN_SERVICES) or self._is_valid(details.invocation_metadata):
            return continuation(details)
        return self._refusal

    def _is_valid(self, metadata: Any) -> bool:
        sent = next((value for key, value in metadata if key == "authorization"), "")
        return hmac.compare_digest(sent if isinstance(sent, bytes) else sent.encode(), self._expected)


def _refuse(request: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "this server wants the metadata `authorization: Bearer <token>`")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AuthError(f"{path}: {error.strerror}") from error
