"""How the verbs that ask a running server reach it: the options that they share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.auth import Scope
    from serving.client import Access


@dataclass(frozen=True)
class Reach:
    """Where a server is, and what it is told of who asks."""

    address: Annotated[str, typer.Option(help="Of a running server.")] = "127.0.0.1:50051"
    token_file: Annotated[
        Path | None, typer.Option(help="Its first token of the scope is sent; or the one of SCENERANK_TOKEN.")
    ] = None
    root_certificate: Annotated[Path | None, typer.Option(help="PEM that the server is signed by, for TLS.")] = None
    tls: Annotated[bool, typer.Option("--tls", help="TLS to a server that a public authority signed.")] = False
    certificate: Annotated[Path | None, typer.Option(help="PEM of yours, where the server wants mutual TLS.")] = None
    key: Annotated[Path | None, typer.Option(help="PEM of its private key.")] = None

    def access(self, scope: Scope) -> Access:
        """For calls that need a scope. Raises FileError or ValueError for files that cannot be used."""
        from serving.auth import TOKEN_VARIABLE, token_for
        from serving.client import Access

        token = token_for(scope, self.token_file) if self.token_file else os.environ.get(TOKEN_VARIABLE, "").strip()
        files = (self.root_certificate, self.certificate, self.key)
        root, mine, secret = (path.read_bytes() if path else None for path in files)
        return Access(root_certificate=root, tls=self.tls, certificate=mine, key=secret, token=token or None)
