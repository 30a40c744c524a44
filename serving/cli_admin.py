"""The verb of `scenerank` by which an operator changes what a running server answers with."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from serving.options import explained, gathered
from serving.reaching import Reach


class Change(Enum):
    """What to do."""

    STATUS = "status"
    RELOAD = "reload"
    ROLLBACK = "rollback"
    SHADOW = "shadow"


@gathered(reach=Reach)
def live(
    reach: Reach,
    change: Annotated[Change, typer.Argument(help="What to do.")] = Change.STATUS,
    bundle: Annotated[str, typer.Argument(help="Name of a bundle of the server's workspace.")] = "",
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the requests, for a bundle in the shadow.")] = 0.1,
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
    from serving.auth import Scope
    from serving.operator_client import Operator

    with explained():
        if change is Change.RELOAD and not bundle:
            raise ValueError("reload needs the name of a bundle, such as `scenerank live reload larr`")
        if bundle and change in (Change.STATUS, Change.ROLLBACK):
            raise ValueError(f"{change.value} takes no bundle; `scenerank live reload {bundle}` has that one answer")
        if share == 0.0:
            raise ValueError("a share of 0 compares nothing; `scenerank live shadow` ends the shadow")
        with Operator(reach.address, reach.access(Scope.ADMIN), timeout) as operator:
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
