"""The verbs of `scenerank` that ask a running server and show its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

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
    _ask(_Question(address, user, scenario, scene or [], limit), workspace, candidates or None)


def recommend(
    address: AddressOption = "127.0.0.1:50051",
    user: UserOption = None,
    scenario: ScenarioOption = None,
    scene: SceneOption = None,
    limit: LimitOption = 10,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask a running server for the best POIs of all. What is not said is taken from the last request of the log."""
    _ask(_Question(address, user, scenario, scene or [], limit), workspace, [])


@dataclass(frozen=True)
class _Question:
    """What a person asks on the command line; None and absent scene inputs are taken from the log."""

    address: str
    user: str | None
    scenario: str | None
    scene: list[str]
    limit: int


def _ask(question: _Question, workspace: Path | None, candidates: list[str] | None) -> None:
    """Print an answer; candidates: ids to rank, None for those of the log, empty to recommend."""
    import grpc

    from serving import demo, screen
    from serving.client import Recommender, Wish, violations

    with explained():
        moment = demo.last_moment(workspace_of(workspace))
        asker = replace(
            moment.asker,
            user_id=question.user or moment.asker.user_id,
            scenario_id=question.scenario or moment.asker.scenario_id,
            scene={**moment.asker.scene, **dict(_scene_input(text) for text in question.scene)},
        )
        wish = Wish(limit=question.limit, details=True)
        try:
            with Recommender(question.address) as recommender:
                if candidates == []:
                    ranking = recommender.recommend(asker, wish)
                else:
                    ranking = recommender.rank(asker, candidates or moment.poi_ids, wish)
        except grpc.RpcError as error:
            rules = [f"{name}: {rule}" for name, rule in violations(error).items()]
            raise ValueError("; ".join(rules) or f"{error.code().name}: {error.details()}") from error
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


VERBS = (rank, recommend)
