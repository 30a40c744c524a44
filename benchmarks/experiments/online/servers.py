"""A day's servers, one an arm, and the caller of all of them: asks, reports what became of answers, streams clicks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from benchmarks.experiments.online.crowd import Crowd, Outcomes
from benchmarks.experiments.online.off_policy import logits_of
from feature_repo.datasets.city import moments
from feature_repo.streaming.consume import Consumer
from feature_repo.streaming.ledger import Ledger
from feature_repo.streaming.tail import FileTail
from feature_repo.workspace import Workspace
from serving.client import Access, Asker, Happened, Recommender, shown
from serving.feedback import FeedbackLog
from serving.feedback_tables import url_of
from serving.opening import open_pipeline
from serving.request import MAX_EVENTS
from serving.server import ServerOptions, create_server
from serving.v1 import recommender_pb2 as pb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PATIENCE = Access(timeout_seconds=60.0)  # the machine has other work too


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What A arms said of n requests with M candidates each.

    Attributes:
        rankings: of each arm, n answers.
        order: (A, n, M) candidates in the order of the answer.
        logits: (A, n, M) of the candidates, with which the order was drawn; p_click, p_order: what the arm expected.
    """

    rankings: Sequence[Sequence[pb.Ranking]]
    order: np.ndarray
    logits: np.ndarray
    p_click: np.ndarray
    p_order: np.ndarray


class Servers:
    """Servers of one workspace's bundles, over gRPC."""

    def __init__(self, workspace: Workspace, store: Any, crowd: Crowd, clients: Sequence[Recommender]) -> None:
        self._crowd, self._clients = crowd, clients
        self._clicks = workspace.root / "clicks.jsonl"
        self._stream = Consumer(store, FileTail(self._clicks), Ledger(f"sqlite:///{workspace.stream}"))
        self._landmarks, self._occasions = moments.landmark_names(), [*moments.occasion_names(), None]

    def ask(self, rows: np.ndarray, places: np.ndarray) -> Answers:
        """Every arm about every request.

        Args:
            places: (n, M) candidates.
        """
        askers, poi_ids = [self._asker(row) for row in rows], self._crowd.venues.ids[places]
        rankings = [
            [client.rank(asker, of_one.tolist()) for asker, of_one in zip(askers, poi_ids, strict=True)]
            for client in self._clients
        ]
        order = np.stack([_places(of_arm, poi_ids) for of_arm in rankings])
        told = {name: _told(rankings, name) for name in ("propensities", "p_click", "p_order")}
        drawn = np.stack([logits_of(of_arm) for of_arm in told["propensities"]])
        back = np.argsort(order, axis=2)  # where each candidate stands
        return Answers(
            rankings=rankings,
            order=order,
            logits=np.take_along_axis(drawn, back, axis=2),
            p_click=np.take_along_axis(told["p_click"], back, axis=2),
            p_order=np.take_along_axis(told["p_order"], back, axis=2),
        )

    def report(self, rows: np.ndarray, arm: np.ndarray, answers: Answers, outcomes: Outcomes) -> None:
        """What became of the answers that were shown, as feedback to their arm and as clicks for users' states."""
        events: list[list[Happened]] = [[] for _ in self._clients]
        with self._clicks.open("a") as stream:
            for at, row in enumerate(rows):
                ranking = answers.rankings[arm[at]][at]
                asked = _moment(self._crowd.requests.time_us[row])
                events[arm[at]] += shown(ranking, asked)[: outcomes.click.shape[1]]
                for position in np.flatnonzero(outcomes.click[at]):
                    known, ordered = _moment(outcomes.known_us[at, position]), bool(outcomes.order[at, position])
                    poi_id = ranking.poi_ids[position]
                    became = Happened(
                        token=ranking.attribution_token,
                        poi_id=poi_id,
                        outcome="ordered" if ordered else "clicked",
                        time=known,
                    )
                    events[arm[at]].append(became)
                    click = {
                        "event_id": became.event_id,
                        "user_id": f"u{self._crowd.requests.user[row]}",
                        "poi_id": poi_id,
                        "time": known.isoformat(),
                        "ordered": ordered,
                    }
                    stream.write(json.dumps(click) + "\n")
        for client, of_arm in zip(self._clients, events, strict=True):
            for start in range(0, len(of_arm), MAX_EVENTS):
                client.record(of_arm[start : start + MAX_EVENTS])
        while self._stream.step(wait_s=0.0).messages:
            pass

    def _asker(self, row: int) -> Asker:
        requests = self._crowd.requests
        told = {
            "weather": str(requests.weather[row]),
            "temperature": float(requests.temperature[row]),
            "place_kind": str(requests.place_kind[row]),
            "company": str(requests.company[row]),
            "landmark": self._landmarks[requests.landmark[row]],
            "occasion": self._occasions[requests.occasion[row]],
        }
        return Asker(
            user_id=f"u{requests.user[row]}",
            scenario_id=str(requests.scenario[row]),
            time=_moment(requests.time_us[row]),
            place=(float(requests.latitude[row]), float(requests.longitude[row])),
            scene={name: value for name, value in told.items() if value is not None},
        )


@contextmanager
def serving(
    workspace: Workspace, store: Any, crowd: Crowd, models: Sequence[str], temperature: float
) -> Iterator[Servers]:
    """A server of each model, on a port of its own, that explores; all write one log of feedback."""
    with ExitStack() as ends:
        log = FeedbackLog(url_of(workspace))
        ends.callback(log.close)
        clients = []
        for model in models:
            pipeline = open_pipeline(workspace, workspace.bundles / model, None, unproven=True, explore=temperature)
            server = create_server(pipeline, ServerOptions(workers=1), log)
            ends.callback(server.stop)
            clients.append(ends.enter_context(Recommender(f"127.0.0.1:{server.port}", PATIENCE)))
        yield Servers(workspace, store, crowd, clients)


def _places(rankings: Sequence[pb.Ranking], poi_ids: np.ndarray) -> np.ndarray:
    """(n, M) candidates in the order of the answers."""
    found = []
    for ranking, of_one in zip(rankings, poi_ids, strict=True):
        number = {poi_id: at for at, poi_id in enumerate(of_one)}
        found.append([number[poi_id] for poi_id in ranking.poi_ids])
    return np.array(found)


def _told(rankings: Sequence[Sequence[pb.Ranking]], name: str) -> np.ndarray:
    """(A, n, M) one array of all answers, in their order."""
    return np.array([[list(getattr(ranking, name)) for ranking in of_arm] for of_arm in rankings])


def _moment(time_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=int(time_us))
