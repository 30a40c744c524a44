"""The log: every user's requests in turn, what was shown, clicked and ordered, and the true probabilities.

Users do not influence each other, so turn r of all users of a block is computed at once; a user's own clicks and orders
of earlier turns are the state of the next. Outcomes come within twenty minutes, requests of one user are at least half
an hour apart, so the state of a request holds everything that its user had done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import date
from typing import TypeVar

import numpy as np

from feature_repo.datasets.city import behaviour, logging_policy, moments, people
from feature_repo.datasets.city.behaviour import City, State
from feature_repo.datasets.city.moments import Requests
from feature_repo.datasets.city.people import People
from feature_repo.datasets.city.venues import Venues
from feature_repo.datasets.city.world import World

Progress = Callable[[str, int, int], None]
BLOCK = 4096  # users that are simulated together, each block from a random stream of its own
LATEST_OUTCOME_S = 20 * 60


@dataclass(frozen=True, kw_only=True)
class Log:
    """m impressions; `request` is the row of `Requests`, `scene` the scene's part of the true click logit."""

    request: np.ndarray
    venue: np.ndarray
    position: np.ndarray
    propensity: np.ndarray
    click: np.ndarray
    order: np.ndarray
    outcome_us: np.ndarray
    p_click: np.ndarray
    p_order: np.ndarray
    scene: np.ndarray


T = TypeVar("T", Requests, Log)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one seed drew."""

    people: People
    requests: Requests
    log: Log


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a sample, and the fixed parts of the world it is drawn in."""

    tables: World
    venues: Venues
    opening_day: np.ndarray
    start: date
    days: int
    users: int
    requests_per_user_day: float
    candidates: int


def run(plan: Plan, seed: int, progress: Progress) -> Sample:
    """Draw people and their requests and let them live through the log."""
    sizes = [min(BLOCK, plan.users - first) for first in range(0, plan.users, BLOCK)]
    blocks = []
    for number, (size, stream) in enumerate(zip(sizes, np.random.SeedSequence(seed).spawn(len(sizes)), strict=True)):
        blocks.append(_block(plan, size, np.random.default_rng(stream), _share(progress, number, len(sizes))))
    users, rows = 0, 0
    requests, logs = [], []
    for block in blocks:
        requests.append(_shift(block.requests, "user", users))
        logs.append(_shift(block.log, "request", rows))
        users, rows = users + len(block.people), rows + len(block.requests)
    return Sample(
        people=People.concatenate([b.people for b in blocks]), requests=_concatenate(requests), log=_concatenate(logs)
    )


def _block(plan: Plan, users: int, rng: np.random.Generator, progress: Progress) -> Sample:
    crowd = people.draw(users, plan.requests_per_user_day, plan.tables, rng)
    city = City(tables=plan.tables, venues=plan.venues, people=crowd)
    requests = moments.draw(crowd, plan.start, plan.days, rng)
    want = behaviour.wanted(plan.tables, requests, crowd.weather_sense[requests.user])
    state = State.empty(users)
    turns = int(requests.turn.max()) + 1 if len(requests) else 0
    logs = []
    for turn in range(turns):
        rows = np.flatnonzero(requests.turn == turn)
        logs.append(_turn(plan, city, requests, rows, want[rows], state, rng))
        progress("simulate the city", turn + 1, turns)
    return Sample(people=crowd, requests=requests, log=_concatenate(logs))


def _turn(
    plan: Plan,
    city: City,
    requests: Requests,
    rows: np.ndarray,
    want: np.ndarray,
    state: State,
    rng: np.random.Generator,
) -> Log:
    """One request of each user that has one left; brings `state` up to date."""
    now = requests.take(rows)
    mine = State(**{name: values[now.user] for name, values in vars(state).items()})
    slates = logging_policy.show(city, now, plan.opening_day, plan.candidates, rng)
    logits = city.respond(now, mine, slates.venues, want)
    p_click, p_if = logits.p_click, logits.p_order_if_clicked
    click = rng.random(p_click.shape) < p_click
    order = click & (rng.random(p_click.shape) < p_if)
    outcome_us = now.time_us[:, None] + delays(click, order, rng)
    remember(state, now.user, slates.venues, click, order, outcome_us)
    shape = p_click.shape
    return Log(
        request=np.repeat(rows, shape[1]),
        venue=slates.venues.ravel(),
        position=np.tile(np.arange(shape[1]), shape[0]),
        propensity=slates.propensity.ravel(),
        click=click.ravel(),
        order=order.ravel(),
        outcome_us=outcome_us.ravel(),
        p_click=p_click.ravel(),
        p_order=(p_click * p_if).ravel(),
        scene=logits.scene.ravel(),
    )


def delays(click: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Microseconds until the outcome is known: seconds for a look, a minute for a click, some minutes for an order."""
    seconds = 1.0 + 1.5 * np.arange(click.shape[1]) + rng.exponential(2.0, click.shape)
    seconds += click * rng.exponential(40.0, click.shape) + order * rng.uniform(60.0, 600.0, click.shape)
    return (np.minimum(seconds, LATEST_OUTCOME_S) * 1e6).astype(np.int64) + rng.integers(1000, size=click.shape)


def remember(
    state: State, user: np.ndarray, slate: np.ndarray, click: np.ndarray, order: np.ndarray, outcome_us: np.ndarray
) -> None:
    """The newest click and the newest order of each request, by the time of the outcome."""
    for event, place in ((click, state.last_click), (order, state.last_order)):
        newest = np.where(event, outcome_us, behaviour.NEVER).argmax(axis=1)
        hit = event.any(axis=1)
        at = np.arange(len(user))[hit], newest[hit]
        place[user[hit]] = slate[at]
        if event is order:
            state.last_order_us[user[hit]] = outcome_us[at]


def _share(progress: Progress, block: int, blocks: int) -> Progress:
    """Progress of one block as a part of all."""

    def report(stage: str, done: int, total: int) -> None:
        progress(stage, block * 1000 + done * 1000 // total, blocks * 1000)

    return report


def _shift(table: T, column: str, by: int) -> T:
    values = {f.name: getattr(table, f.name) for f in fields(table)}
    return type(table)(**{**values, column: values[column] + by})


def _concatenate(parts: list[T]) -> T:
    kind = type(parts[0])
    return kind(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)})
