"""What one city's sessions say: of arms as their users saw them, as all users would have, and as logs alone foretell.

A session is worth its clicks, its orders and their euros (GMV). "observed" is what an experimenter sees: each arm on
its own users. "drawn" and "certain" are what only a simulation knows: the true chances of every arm's answers in the
same sessions, in orders drawn as they were, or as they would be by score alone, without exploring. Errors are standard
errors of means whose users were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Literal

import numpy as np

from benchmarks.experiments.online.coverage import Known, covered
from benchmarks.experiments.online.days import ARMS, Lived, OnlineCell, Sessions
from benchmarks.experiments.online.off_policy import (
    ESTIMATORS,
    Estimate,
    Estimator,
    Logged,
    certain,
    clustered,
    estimates,
    marginals,
    value,
)

Measure = Literal["clicks", "orders", "gmv"]
MEASURES: tuple[Measure, ...] = ("clicks", "orders", "gmv")
How = Literal["observed", "drawn", "certain"]
REFERENCE = "PLE"


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Of an arm and a session; `sessions` it was taken over."""

    arm: str
    how: How
    measure: Measure
    sessions: int
    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Lift:
    """An arm's mean over that of the reference, less 1."""

    arm: str
    how: How
    measure: Measure
    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class OfDay:
    """Expected clicks of an arm's drawn orders in a session of a day."""

    arm: str
    day: int
    clicks: float


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """An estimate of what `other` brings from the log of `logged`, the truth, and in how many simulated logs of the
    same kind the interval held it."""

    logged: str
    other: str
    measure: Measure
    estimator: Estimator
    value: float
    low: float
    high: float
    truth: float
    covered: int
    logs: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that is told of one city.

    Attributes:
        rows: of feedback in the log at the end. seconds: by stage.
    """

    means: tuple[Mean, ...]
    lifts: tuple[Lift, ...]
    days: tuple[OfDay, ...]
    foretold: tuple[Foretold, ...]
    users: int
    rows: int
    seconds: Mapping[str, float]
    date: str
    machine: str


class Seen:
    """Sessions, and the chance of each candidate to stand at each position under every arm."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self._positions = sessions.shown.shape[1]

    @cached_property
    def drawn(self) -> list[np.ndarray]:
        """(N, M, K) of each arm."""
        return [marginals(self.sessions.logits[:, arm], self._positions) for arm in range(len(ARMS))]

    def chances(self, measure: Measure) -> tuple[np.ndarray, np.ndarray]:
        """(N, M, K) of a reward, and (N, M) how large it is."""
        s = self.sessions
        one = np.ones_like(s.bills)
        return {
            "clicks": (s.click_chance, one),
            "orders": (s.order_chance, one),
            "gmv": (s.order_chance, s.bills),
        }[measure]

    def predicted(self, measure: Measure, arm: int) -> np.ndarray:
        """(N, M) rewards that an arm's ranker expected."""
        s = self.sessions
        return {
            "clicks": s.p_click[:, arm],
            "orders": s.p_order[:, arm],
            "gmv": s.p_order[:, arm] * s.bills,
        }[measure]

    def rewards(self, measure: Measure) -> np.ndarray:
        """(N, K) that were seen to come."""
        s = self.sessions
        bills = np.take_along_axis(s.bills, s.shown, axis=1)
        return {"clicks": s.click * 1.0, "orders": s.order * 1.0, "gmv": s.order * bills}[measure]

    def expected(self, measure: Measure, arm: int, how: How) -> np.ndarray:
        """(N,) what an arm's orders are worth in truth."""
        chance, worth = self.chances(measure)
        if how == "drawn":
            return value(self.drawn[arm], chance * worth[:, :, None])
        best = np.argsort(-self.sessions.logits[:, arm], axis=1)
        return value(certain(best, best.shape[1], self._positions), chance * worth[:, :, None])


def means_and_lifts(seen: Seen) -> tuple[list[Mean], list[Lift]]:
    """Of every arm, way of looking and measure."""
    means, lifts = [], []
    user, own = seen.sessions.user, [seen.sessions.arm == arm for arm in range(len(ARMS))]
    reference = list(ARMS).index(REFERENCE)
    for measure in MEASURES:
        total = seen.rewards(measure).sum(axis=1)
        observed = [clustered(total[mine], user[mine]) for mine in own]
        for arm, name in enumerate(ARMS):
            means.append(_mean(name, "observed", measure, int(own[arm].sum()), observed[arm]))
            if arm != reference:
                lifts.append(_lift(name, "observed", measure, apart(observed[arm], observed[reference])))
        for how in ("drawn", "certain"):
            expected = [seen.expected(measure, arm, how) for arm in range(len(ARMS))]
            for arm, name in enumerate(ARMS):
                means.append(_mean(name, how, measure, len(user), clustered(expected[arm], user)))
                if arm != reference:
                    lifts.append(_lift(name, how, measure, together(expected[arm], expected[reference], user)))
    return means, lifts


def apart(ours: Estimate, reference: Estimate) -> tuple[float, float]:
    """The relative difference of two means of different users, and its error."""
    ratio = ours.value / reference.value
    return ratio - 1.0, ratio * float(np.hypot(ours.error / ours.value, reference.error / reference.value))


def together(ours: np.ndarray, reference: np.ndarray, user: np.ndarray) -> tuple[float, float]:
    """The relative difference of two means of the same (N,) sessions, and its error."""
    ratio = float(ours.mean() / reference.mean())
    return ratio - 1.0, clustered((ours - ratio * reference) / reference.mean(), user).error


def foretold(seen: Seen, cell: OnlineCell) -> Iterator[Foretold]:
    """Every other arm from every arm's own log; and how often such intervals hold, in logs drawn again."""
    s = seen.sessions
    for (logged, log_name), (other, other_name) in permutations(enumerate(ARMS), 2):
        mine = s.arm == logged
        users = len(np.unique(s.user[mine]))
        for number, measure in enumerate(MEASURES):
            chance, worth = seen.chances(measure)
            known = Known(
                user=s.user,
                logits=s.logits[:, logged],
                mu=seen.drawn[logged],
                pi=seen.drawn[other],
                chance=chance,
                worth=worth,
                predicted=seen.predicted(measure, logged),
            )
            log = Logged(
                user=s.user[mine],
                shown=s.shown[mine],
                reward=seen.rewards(measure)[mine],
                predicted=known.predicted[mine],
            )
            found = estimates(log, known.mu[mine], known.pi[mine])
            hits = covered(known, users, cell.logs, seed=number)
            for name in ESTIMATORS:
                yield Foretold(
                    logged=log_name,
                    other=other_name,
                    measure=measure,
                    estimator=name,
                    value=found[name].value,
                    low=found[name].low,
                    high=found[name].high,
                    truth=known.truth,
                    covered=hits[name],
                    logs=cell.logs,
                )


def measure(lived: Lived, cell: OnlineCell, date: str, machine: str) -> Found:
    """All of it."""
    seen = Seen(lived.sessions)
    means, lifts = means_and_lifts(seen)
    days = [
        OfDay(arm=name, day=day, clicks=float(clicks[lived.sessions.day == day].mean()))
        for arm, name in enumerate(ARMS)
        for clicks in [seen.expected("clicks", arm, "drawn")]
        for day in range(cell.days)
    ]
    return Found(
        means=tuple(means),
        lifts=tuple(lifts),
        days=tuple(days),
        foretold=tuple(foretold(seen, cell)),
        users=len(np.unique(lived.sessions.user)),
        rows=lived.rows,
        seconds=lived.seconds,
        date=date,
        machine=machine,
    )


def _mean(arm: str, how: How, measure: Measure, sessions: int, found: Estimate) -> Mean:
    return Mean(arm=arm, how=how, measure=measure, sessions=sessions, value=found.value, error=found.error)


def _lift(arm: str, how: How, measure: Measure, found: tuple[float, float]) -> Lift:
    return Lift(arm=arm, how=how, measure=measure, value=found[0], error=found[1])
