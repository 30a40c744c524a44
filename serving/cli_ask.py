"""The verbs that ask a running server; what is not said is taken from the last request of the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.options import (
    AddressOption,
    LimitOption,
    ScenarioOption,
    SceneOption,
    UserOption,
    WorkspaceOption,
    explained,
    workspace_of,
)

if TYPE_CHECKING:
    from serving.client import Asker, Recommender, Wish
    from serving.v1.recommender_pb2 import Ranking


def rank(
    candidates: Annotated[list[str] | None, typer.Argument(help="POI ids; those of the log's last request.")] = None,
    address: AddressOption = "127.0.0.1:50051",
    user: UserOption = None,
    scenario: ScenarioOption = None,
    scene: SceneOption = None,
    limit: LimitOption = 10,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask a running server to order POIs. What is not said is taken from the last request of the log."""
    with _asked(_Question(address, user, scenario, scene or []), workspace) as (recommender, asker, shown):
        _print_ranking(recommender.rank(asker, candidates or shown, _wish(limit)), asker)


def recommend(
    address: AddressOption = "127.0.0.1:50051",
    user: UserOption = None,
    scenario: ScenarioOption = None,
    scene: SceneOption = None,
    limit: LimitOption = 10,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask a running server for the best POIs of all. What is not said is taken from the last request of the log."""
    with _asked(_Question(address, user, scenario, scene or []), workspace) as (recommender, asker, _):
        _print_ranking(recommender.recommend(asker, _wish(limit)), asker)


def explain(
    poi: Annotated[str | None, typer.Argument(help="POI id; the best one of the log's last request.")] = None,
    address: AddressOption = "127.0.0.1:50051",
    user: UserOption = None,
    scenario: ScenarioOption = None,
    scene: SceneOption = None,
    limit: LimitOption = 10,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask a running server what moved a POI's score: the moment, knowledge and features, each by what is left without
    it. What is not said is taken from the last request of the log."""
    from serving import screen

    with _asked(_Question(address, user, scenario, scene or []), workspace) as (recommender, asker, shown):
        best = poi or recommender.rank(asker, shown, _wish(1)).poi_ids[0]
        explanation = recommender.explain(asker, best, _wish(limit))
        screen.console.print(screen.scene_line(explanation))
        title = f"{explanation.details.name or best} for {asker.user_id} in {asker.scenario_id}"
        screen.console.print(screen.explanation_table(explanation, title))


VERBS = (rank, recommend, explain)


@dataclass(frozen=True)
class _Question:
    """What a person asks on the command line; None and absent scene inputs are taken from the log."""

    address: str
    user: str | None
    scenario: str | None
    scene: list[str]


@contextmanager
def _asked(question: _Question, workspace: Path | None) -> Iterator[tuple[Recommender, Asker, tuple[str, ...]]]:
    """A client, who asks, and the POIs of the log's last request; a server's errors end the verb in words."""
    import grpc

    from serving import demo
    from serving.client import Recommender, violations

    with explained():
        moment = demo.last_moment(workspace_of(workspace))
        asker = replace(
            moment.asker,
            user_id=question.user or moment.asker.user_id,
            scenario_id=question.scenario or moment.asker.scenario_id,
            scene={**moment.asker.scene, **dict(_scene_input(text) for text in question.scene)},
        )
        try:
            with Recommender(question.address) as recommender:
                yield recommender, asker, moment.poi_ids
        except grpc.RpcError as error:
            rules = [f"{name}: {rule}" for name, rule in violations(error).items()]
            raise ValueError("; ".join(rules) or f"{error.code().name}: {error.details()}") from error


def _wish(limit: int) -> Wish:
    from serving.client import Wish

    return Wish(limit=limit, details=True)


def _print_ranking(ranking: Ranking, asker: Asker) -> None:
    from serving import screen

    screen.console.print(screen.scene_line(ranking))
    screen.console.print(screen.ranking_table(ranking, f"{asker.user_id} in {asker.scenario_id}"))


def _scene_input(text: str) -> tuple[str, str | float]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--scene {text!r} is not name=value, such as weather=rain")
    try:
        return name, float(value)
    except ValueError:
        return name, value
