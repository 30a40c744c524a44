"""Who may come in, and for what: TLS from files, bearer tokens with scopes, and no plain text beyond this machine.

Tokens and keys come from files, which are read again when they change, or from the environment. Tokens are compared in
constant time, kept as hashes only, and never logged or repeated.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from serving.watched import FileError, Watched, read

TOKEN_VARIABLE = "SCENERANK_TOKEN"
MINIMUM_TOKEN = 16
Refused: TypeAlias = tuple[grpc.StatusCode, str]


class AuthError(FileError):
    """The server cannot be secured as asked; the message says what to change (and holds no secret)."""


class Scope(Enum):
    """What a token is good for. None includes another."""

    RANK = "rank"
    FEEDBACK = "feedback"
    ADMIN = "admin"


ALL = frozenset(Scope)
OPEN_SERVICES = ("/grpc.health.v1.Health/",)  # a probe asks whether the server lives, not what it knows
ANY_SCOPE_SERVICES = ("/grpc.reflection.",)  # tells what the proto file tells
_SERVICE = "/scenerank.v1.RecommenderService/"
# A method that does not stand here takes `admin`: what is forgotten is closed, not open.
SCOPES: Mapping[str, Scope] = {
    f"{_SERVICE}Rank": Scope.RANK,
    f"{_SERVICE}Recommend": Scope.RANK,
    f"{_SERVICE}Explain": Scope.RANK,
    f"{_SERVICE}RecordFeedback": Scope.FEEDBACK,
    f"{_SERVICE}RecordFeedbackStream": Scope.FEEDBACK,
}


@dataclass(frozen=True)
class Tokens:
    """The tokens that are let in: SHA-256 of each, with its scopes."""

    scopes: Mapping[bytes, frozenset[Scope]] = field(repr=False)

    def scopes_of(self, token: bytes) -> frozenset[Scope] | None:
        """None for a token that is unknown. How long it takes says nothing about which tokens there are."""
        sent, found = hashlib.sha256(token).digest(), None
        for digest, scopes in self.scopes.items():
            if hmac.compare_digest(sent, digest):
                found = scopes
        return found

    @staticmethod
    def one(token: str, source: str) -> Tokens:
        """A single token, good for everything. Raises AuthError for one too short to keep anyone out."""
        return Tokens({_digest(token, source): ALL})

    @staticmethod
    def parse(content: bytes, source: str) -> Tokens:
        """One token a line, then its scopes, joined by commas (without any: all), then `#` and whose it is:

            3f0c77...  rank,feedback  # the app
            9d21ab...  admin          # night shift

        Raises AuthError naming the line, and nothing that stands in it.
        """
        found: dict[bytes, frozenset[Scope]] = {}
        try:
            lines = content.decode().splitlines()
        except UnicodeDecodeError as error:
            raise AuthError(f"{source}: is no text in UTF-8") from error
        for number, line in enumerate(lines, start=1):
            words = line.split()
            comment = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
            if not (words := words[:comment]):
                continue
            place = f"{source}, line {number}"
            digest = _digest(words[0], place)
            if digest in found:
                raise AuthError(f"{place}: repeats the token of an earlier line; name all its scopes in one")
            found[digest] = _scopes(words[1:], place)
        if not found:
            raise AuthError(f"{source}: holds no token; write one, such as that of `openssl rand -hex 32`")
        return Tokens(found)


def _digest(token: str, place: str) -> bytes:
    if len(token) < MINIMUM_TOKEN:
        raise AuthError(f"{place}: the token has under {MINIMUM_TOKEN} characters; take a longer one")
    if not (token.isascii() and token.isprintable()):
        raise AuthError(f"{place}: the token has characters that no call can carry; take printable ASCII")
    return hashlib.sha256(token.encode()).digest()


def _scopes(words: list[str], place: str) -> frozenset[Scope]:
    if len(words) > 1:
        raise AuthError(f"{place}: has more than a token and its scopes; join scopes by commas, put # before a comment")
    known = {scope.value: scope for scope in Scope}
    names = words[0].split(",") if words else list(known)
    if not set(names) <= known.keys():  # the word may be a secret in the wrong place: it is not repeated
        raise AuthError(f"{place}: the second word must be scopes out of {', '.join(known)}, joined by commas")
    return frozenset(known[name] for name in names)


def tokens_from(path: Path | None) -> Callable[[], Tokens] | None:
    """The tokens of a file, as it stands by then, else the one of the environment, else None (no token is asked).

    Raises FileError for a file that cannot be read or does not say what is needed, and for a variable that is set and
    holds no token: whoever sets it does not want to let everybody in.
    """
    if path is not None:
        return Watched([path], lambda content: Tokens.parse(content, str(path)))
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    tokens = Tokens.one(token.strip(), TOKEN_VARIABLE)
    return lambda: tokens


def token_for(scope: Scope, path: Path) -> str:
    """The first token of a file that has this scope: the file of a server, or one that holds a token only.

    Raises FileError for a file that cannot be read or has no such token.
    """
    content = read(path)
    tokens = Tokens.parse(content, str(path))
    first_words = (line.split()[0] for line in content.decode().splitlines() if line.strip())
    for word in first_words:
        if scope in (tokens.scopes_of(word.encode()) or ()):
            return word
    raise AuthError(f"{path}: no token in it has the scope {scope.value}; add a line with one")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files of the server; with `client_ca`, clients must show a certificate that it signed (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """A connection gets what the files hold when it begins; files that do not fit together change nothing.

        Raises FileError where they cannot be used from the start.
        """
        watched = Watched(self._paths, self._configuration)
        given = watched()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            before, given = given, watched()
            return None if given is before else given

        return grpc.dynamic_ssl_server_credentials(given, changed, self.client_ca is not None)

    @property
    def _paths(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))

    def _configuration(self, certificate: bytes, key: bytes, client_ca: bytes | None = None) -> Any:
        """Raises AuthError for a key that is not the certificate's, and for what is no certificate or key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # It takes paths only, so what was checked is what was read if they still hold the same afterwards.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "no PEM certificate and unencrypted private key"
            raise AuthError(f"{self.certificate}, {self.key}: cannot be used together: {reason}") from error
        if (read(self.certificate), read(self.key)) != (certificate, key):
            raise AuthError(f"{self.certificate}, {self.key}: changed while they were read")
        if client_ca is not None:
            try:
                context.load_verify_locations(cadata=client_ca.decode("ascii"))
            except (OSError, ValueError) as error:
                raise AuthError(f"{self.client_ca}: holds no PEM certificate of an authority") from error
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)


def host_and_port(address: str) -> tuple[str, int]:
    """Of an address to listen on. Raises ValueError for one that is not both.

    >>> host_and_port("127.0.0.1:50051"), host_and_port("[::1]:0")
    (('127.0.0.1', 50051), ('::1', 0))
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 2**16) or address.startswith("unix:"):
        raise ValueError(f"address {address!r} is no host:port, such as 127.0.0.1:50051; port 0 takes any free one")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine has to do with an address: a host with a port, or a Unix socket."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(address: str) -> None:
    """Raises AuthError for an address that other machines can reach: there, TLS is a must."""
    if not is_loopback(address):
        raise AuthError(f"{address} is reachable from other machines: give TLS files, or listen on 127.0.0.1")


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Lets calls in that carry `authorization: Bearer <token>` with the method's scope; health checks need none.

    A stream may last longer than its token is good for. So it is let in with each of its requests; and when tokens have
    changed, the next call of anybody ends those that lost theirs, which would hold a place and say nothing.
    """

    def __init__(self, tokens: Callable[[], Tokens]) -> None:
        self._tokens = tokens
        self._streams: dict[grpc.ServicerContext, Callable[[], Refused | None]] = {}
        self._seen = tokens()
        self._lock = threading.Lock()

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        self._end_streams()
        handler = continuation(details)
        if details.method.startswith(OPEN_SERVICES):
            return handler
        if (reason := self._objection(details)) is not None:
            return _refusal(reason)
        is_stream = handler is not None and handler.request_streaming and handler.response_streaming
        return self._asked_again(handler, partial(self._objection, details)) if is_stream else handler

    def _end_streams(self) -> None:
        """Those whose token is none any more, if tokens have changed."""
        tokens = self._tokens()
        with self._lock:
            streams = {} if tokens is self._seen else dict(self._streams)
            self._seen = tokens
        for context, objection in streams.items():
            if objection() is not None:
                context.cancel()

    def _asked_again(self, handler: Any, objection: Callable[[], Refused | None]) -> Any:
        """A handler of streams that ends one at the first request to which there is an objection."""

        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            def let_in() -> Iterator[Any]:
                for request in requests:
                    if (reason := objection()) is not None:
                        context.abort(*reason)
                    yield request

            with self._lock:
                self._streams[context] = objection
            if not context.add_callback(partial(self._ended, context)):
                self._ended(context)
            responses: Iterator[Any] = handler.stream_stream(let_in(), context)
            return responses

        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    def _ended(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._streams.pop(context, None)

    def _objection(self, details: Any) -> Refused | None:
        """Why a call is not let in; None: it is."""
        scopes = self._tokens().scopes_of(_sent(details.invocation_metadata))
        if scopes is None:
            wanted = "this server wants the metadata `authorization: Bearer <token>`"
            return grpc.StatusCode.UNAUTHENTICATED, wanted
        needed = SCOPES.get(details.method, Scope.ADMIN)
        if needed in scopes or details.method.startswith(ANY_SCOPE_SERVICES):
            return None
        return grpc.StatusCode.PERMISSION_DENIED, f"the token lacks the scope that this method needs: {needed.value}"


def _sent(metadata: Any) -> bytes:
    """The bearer token of a call; empty where there is none."""
    value = next((value for key, value in metadata if key == "authorization"), b"")
    scheme, _, token = (value if isinstance(value, bytes) else value.encode()).partition(b" ")
    return token if scheme.lower() == b"bearer" else b""


def _refusal(reason: Refused) -> Any:
    """A handler that ends a call of any kind, and reads nothing of it: the message may never come."""

    def refuse(_: object, context: grpc.ServicerContext) -> None:
        context.abort(*reason)

    return grpc.stream_stream_rpc_method_handler(refuse)
