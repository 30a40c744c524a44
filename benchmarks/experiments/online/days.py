"""Days online: every arm answers every session of the day, users see their own arm's answer, and at night what became
of it goes into the log that all arms learn from.

    session -> Rank of each arm over gRPC -> the first places of the user's own arm are shown
      -> clicks and orders -> RecordFeedback, and the stream of clicks that keeps users' states up to the second
    night: export -> materialise -> pull -> train each arm -> new servers

Which arm a user is of follows from a hash of the id. Answers of the other arms are never shown: they say what these
would have done in the same session.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from benchmarks.experiments.online import world as worlds
from benchmarks.experiments.online.crowd import Chances, Crowd
from benchmarks.experiments.online.servers import Servers, serving
from benchmarks.experiments.online.world import OnlineCity
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import Vectors
from benchmarks.experiments.worlds import timed
from feature_repo.workspace import Workspace
from serving import stages
from serving.feedback_tables import opened, url_of
from trainers.recipes import Size

ARMS: Mapping[str, str] = {"PLE": "ple", "LARR": "larr", "LARR + LLM4MSR": "larr_llm4msr"}  # name -> model
SESSIONS = "sessions.npz"  # in the workspace
KNOWN_AFTER = timedelta(minutes=30)  # an answer's outcome


@dataclass(frozen=True, kw_only=True)
class OnlineCell:
    """One run of the experiment in one city.

    Args:
        days: online. candidates: of a request; positions: that its user sees.
        temperature: with which all arms explore.
        logs: that coverage is counted over, for each pair of arms.
    """

    world: OnlineCity
    vectors: Vectors
    size: Size = "default"
    days: int = 4
    candidates: int = 20
    positions: int = 10
    temperature: float = 0.5
    logs: int = 200


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """N sessions, A arms, M candidates, of which K are seen.

    Attributes:
        user, day, arm: (N,) codes; day counts from the first one online, arm is the one that was shown.
        bills: (N, M) euros of an order.
        click_chance, order_chance: (N, M, K) the truth.
        logits, p_click, p_order: (N, A, M) how each arm's order was drawn, and what it expected.
        shown: (N, K) candidates in the order of the positions; click, order: what came of them.
    """

    user: np.ndarray
    day: np.ndarray
    arm: np.ndarray
    bills: np.ndarray
    click_chance: np.ndarray
    order_chance: np.ndarray
    logits: np.ndarray
    p_click: np.ndarray
    p_order: np.ndarray
    shown: np.ndarray
    click: np.ndarray
    order: np.ndarray

    @staticmethod
    def joined(parts: list[Sessions]) -> Sessions:
        return Sessions(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Sessions)})


@dataclass(frozen=True)
class Lived:
    """All sessions, how many rows the log has grown by, and seconds by stage."""

    sessions: Sessions
    rows: int
    seconds: Mapping[str, float]


def live(cell: OnlineCell, name: str, places: Places) -> Lived:
    """Run all days of a cell, whose world is prepared and read, in a workspace of this name."""
    torch.set_num_threads(1)
    logging.getLogger("serving.server").setLevel(logging.ERROR)  # that no bundle is proved is known
    workspace = worlds.begun(cell.world, cell.vectors, name, places)
    store = stages.apply(workspace)
    crowd = Crowd(cell.world.config, cell.world.first_day)
    parts: list[Sessions] = []
    seconds: dict[str, float] = {}
    rows = 0
    for day in range(cell.days):
        with added(seconds, "learn"):
            _learn(workspace, store, cell)
        with added(seconds, "serve"), serving(workspace, store, crowd, [*ARMS.values()], cell.temperature) as servers:
            parts += _day(day, crowd, servers, cell)
        with added(seconds, "export"):
            engine = opened(url_of(workspace))
            rows = stages.feedback(workspace, engine, KNOWN_AFTER, _quietly).rows
            engine.dispose()
    sessions = Sessions.joined(parts)
    np.savez_compressed(workspace.root / SESSIONS, **vars(sessions))  # to be looked at in other ways
    return Lived(sessions, rows, seconds)


def arm_of(user_id: str) -> int:
    """The same for the same user, whatever the day."""
    return int.from_bytes(hashlib.sha256(f"online_ab {user_id}".encode()).digest()[:8]) % len(ARMS)


@contextmanager
def added(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add what a stage takes to what it took before."""
    once: dict[str, float] = {}
    with timed(once, stage):
        yield
    seconds[stage] = seconds.get(stage, 0.0) + once[stage]


def _learn(workspace: Workspace, store: Any, cell: OnlineCell) -> None:
    """From the log as it is to the bundles of all arms, by the stages that an operator runs."""
    stages.materialize(workspace, store)
    pulled = stages.training_set(workspace, store, _quietly)
    for model in ARMS.values():
        options = stages.TrainOptions(model=model, size=cell.size, seed=cell.world.seed)
        stages.train(workspace, store, pulled, options, _quietly)


def _quietly(what: str, done: int, total: int) -> None:
    pass


def _day(day: int, crowd: Crowd, servers: Servers, cell: OnlineCell) -> Iterator[Sessions]:
    """Everybody's first session of the day, then everybody's second one, and so on."""
    rng = np.random.default_rng([cell.world.seed, day])
    for rows in crowd.turns(cell.world.first_day + day):
        user = crowd.requests.user[rows]
        arm = np.array([arm_of(f"u{number}") for number in user])
        places = crowd.candidates(rows, cell.candidates, rng)
        chances = crowd.chances(rows, places, cell.positions)
        answers = servers.ask(rows, places)
        each, position = np.arange(len(rows))[:, None], np.arange(cell.positions)
        seen = answers.order[arm, each[:, 0], : cell.positions]
        of_seen = Chances(click=chances.click[each, seen, position], order=chances.order[each, seen, position])
        outcomes = crowd.act(rows, places[each, seen], of_seen, rng)
        servers.report(rows, arm, answers, outcomes)
        yield Sessions(
            user=user,
            day=np.full(len(rows), day),
            arm=arm,
            bills=crowd.bills[places],
            click_chance=chances.click,
            order_chance=chances.order,
            logits=answers.logits.swapaxes(0, 1),
            p_click=answers.p_click.swapaxes(0, 1),
            p_order=answers.p_order.swapaxes(0, 1),
            shown=seen,
            click=outcomes.click,
            order=outcomes.order,
        )
