"""The verbs that ask a running server; what is not said is taken from the last request of the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serving.options import WorkspaceOption, explained, gathered, utc, workspace_of
from serving.reaching import Reach

if TYPE_CHECKING:
    from serving.client import Asker, Recommender, Wish
    from serving.v1.recommender_pb2 import Ranking


@dataclass(frozen=True)
class Question:
    """What a person asks on the command line."""

    user: Annotated[str | None, typer.Option(help="User id.")] = None
    scenario: Annotated[str | None, typer.Option(help="Scenario id.")] = None
    time: Annotated[datetime | None, typer.Option(help="UTC.")] = None
    place: Annotated[str | None, typer.Option(help="latitude,longitude in degrees, such as 60.17,24.94.")] = None
    scene: Annotated[list[str] | None, typer.Option(help="name=value, such as weather=rain; may be repeated.")] = None
    objective: Annotated[Literal["click", "order"], typer.Option(help="What the answer is ordered by.")] = "click"
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 10

    def asker(self, otherwise: Asker) -> Asker:
        """Who asks, where and when; what is not said is as `otherwise` has it. Raises ValueError for what is none."""
        from serving.client import Asker

        return Asker(
            user_id=self.user or otherwise.user_id,
            scenario_id=self.scenario or otherwise.scenario_id,
            time=utc(self.time) or otherwise.time,
            place=otherwise.place if self.place is None else _place(self.place),
            scene={**otherwise.scene, **dict(_scene_input(text) for text in self.scene or [])},
        )

    def wish(self, limit: int | None = None) -> Wish:
        """What is wanted of an answer; `limit`: in place of the one asked for."""
        from serving.client import Wish

        return Wish(limit=limit or self.limit, objective=self.objective, details=True)


@gathered(reach=Reach, question=Question)
def rank(
    reach: Reach,
    question: Question,
    candidates: Annotated[list[str] | None, typer.Argument(help="POI ids; those of the log's last request.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask a running server to order POIs. What is not said is taken from the last request of the log."""
    with _asked(reach, question, workspace) as (recommender, asker, shown):
        _print_ranking(recommender.rank(asker, candidates or shown, question.wish()), asker)


@gathered(reach=Reach, question=Question)
def recommend(
    reach: Reach,
    question: Question,
    radius_km: Annotated[float | None, typer.Option(help="Only places within so many km.")] = None,
    only_open: Annotated[bool, typer.Option("--only-open", help="Only places that are open at that time.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask a running server for the best POIs of all. What is not said is taken from the last request of the log."""
    with _asked(reach, question, workspace) as (recommender, asker, _):
        wish = replace(question.wish(), radius_km=radius_km, only_open=only_open)
        _print_ranking(recommender.recommend(asker, wish), asker)


@gathered(reach=Reach, question=Question)
def explain(
    reach: Reach,
    question: Question,
    poi: Annotated[str | None, typer.Argument(help="POI id; the best one of the log's last request.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask a running server what moved a POI's score: the moment, knowledge and features, each by what is left without
    it. What is not said is taken from the last request of the log."""
    from serving import screen

    with _asked(reach, question, workspace) as (recommender, asker, shown):
        best = poi or recommender.rank(asker, shown, question.wish(limit=1)).poi_ids[0]
        explanation = recommender.explain(asker, best, question.wish())
        screen.console.print(screen.scene_line(explanation))
        title = f"{explanation.details.name or best} for {asker.user_id} in {asker.scenario_id}"
        screen.console.print(screen.explanation_table(explanation, title))


VERBS = (rank, recommend, explain)


@contextmanager
def _asked(
    reach: Reach, question: Question, workspace: Path | None
) -> Iterator[tuple[Recommender, Asker, tuple[str, ...]]]:
    """A client, who asks, and the POIs of the log's last request; a server's errors end the verb in words."""
    import grpc

    from serving import demo
    from serving.auth import Scope
    from serving.client import Recommender, violations

    with explained():
        moment = demo.last_moment(workspace_of(workspace))
        asker = question.asker(moment.asker)
        try:
            with Recommender(reach.address, reach.access(Scope.RANK)) as recommender:
                yield recommender, asker, moment.poi_ids
        except grpc.RpcError as error:
            rules = [f"{name}: {rule}" for name, rule in violations(error).items()]
            raise ValueError("; ".join(rules) or f"{error.code().name}: {error.details()}") from error


def _print_ranking(ranking: Ranking, asker: Asker) -> None:
    from serving import screen

    screen.console.print(screen.scene_line(ranking))
    found = screen.ranking_table(ranking, f"{asker.user_id} in {asker.scenario_id}")
    screen.console.print(found if ranking.poi_ids else "no place fits what was asked")


def _place(text: str) -> tuple[float, float]:
    try:
        latitude, longitude = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--place {text!r} is not latitude,longitude in degrees, such as 60.17,24.94") from None
    return latitude, longitude


def _scene_input(text: str) -> tuple[str, str | float]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--scene {text!r} is not name=value, such as weather=rain")
    try:
        return name, float(value)
    except ValueError:
        return name, value
