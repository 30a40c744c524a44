"""The verb of `scenerank` by which an operator changes what a running server answers with."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from serving.options import AddressOption, explained


class Change(Enum):
    """What to do."""

    STATUS = "status"
    RELOAD = "reload"
    ROLLBACK = "rollback"
    SHADOW = "shadow"


def live(
    change: Annotated[Change, typer.Argument(help="What to do.")] = Change.STATUS,
    bundle: Annotated[str, typer.Argument(help="Name of a bundle of the server's workspace.")] = "",
    address: AddressOption = "127.0.0.1:50051",
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the requests, for a bundle in the shadow.")] = 0.1,
    token_file: Annotated[
        Path | None, typer.Option(help="Its first token of scope admin is sent; or the one of SCENERANK_TOKEN.")
    ] = None,
    root_certificate: Annotated[Path | None, typer.Option(help="PEM that the server is signed by, for TLS.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="TLS to a server that a public authority signed.")] = False,
    certificate: Annotated[Path | None, typer.Option(help="PEM of yours, where the server wants mutual TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM of its private key.")] = None,
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds: a bundle is loaded and verified meanwhile.")
    ] = 120.0,
) -> None:
    """Which bundle a running server answers with; have it take another one, and go back, without a restart.

    `live reload larr` has the server load and verify WORKSPACE/bundles/larr; what is damaged or does not fit is
    refused, and the one before goes on. `live rollback` brings that one back at once. `live shadow ple` lets a bundle
    score a share of the requests beside the one that answers (`live shadow`: none any more); `live status` shows how
    they compare.
    """
    import grpc

    from serving import screen
    from serving.auth import TOKEN_VARIABLE, Scope, token_for
    from serving.client import Access
    from serving.operator_client import Operator

    with explained():
        if change is Change.RELOAD and not bundle:
            raise ValueError("reload needs the name of a bundle, such as `scenerank live reload larr`")
        if bundle and change in (Change.STATUS, Change.ROLLBACK):
            raise ValueError(f"{change.value} takes no bundle; `scenerank live reload {bundle}` has that one answer")
        if share == 0.0:
            raise ValueError("a share of 0 compares nothing; `scenerank live shadow` ends the shadow")
        token = token_for(Scope.ADMIN, token_file) if token_file else os.environ.get(TOKEN_VARIABLE, "").strip()
        root, mine, secret = (path.read_bytes() if path else None for path in (root_certificate, certificate, key))
        access = Access(root_certificate=root, tls=tls, certificate=mine, key=secret, token=token or None)
        with Operator(address, access, timeout) as operator:
            try:
                match change:
                    case Change.STATUS:
                        serving = operator.serving()
                    case Change.RELOAD:
                        serving = operator.reload(bundle)
                    case Change.ROLLBACK:
                        serving = operator.roll_back()
                    case Change.SHADOW:
                        serving = operator.shadow(bundle, share)
            except grpc.RpcError as error:
                raise ValueError(f"{error.code().name}: {error.details()}") from error
    screen.console.print(screen.serving_line(serving))
    if serving.HasField("shadow"):
        screen.console.print(screen.shadow_table(serving.shadow))


VERBS = (live,)
