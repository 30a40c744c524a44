"""The people of the city from the day on which rankers go online: when they ask, what they may be shown, what they do.

Requests, tastes and moments are those that the city's own log would have gone on with (`simulate.run`); what is shown
comes from elsewhere, so what is clicked and ordered does, and with it what their next request wants. A reward depends
on place, position and request, not on the places beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.datasets import city
from feature_repo.datasets.city import CityConfig, behaviour, logging_policy, simulate
from feature_repo.datasets.city.behaviour import City, State

EUROS = 10.0  # of an order, for each of the four price levels


@dataclass(frozen=True, kw_only=True)
class Chances:
    """Probabilities of a click, and of a click and an order; one a candidate and position."""

    click: np.ndarray
    order: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What became of what was shown, (n, K) each: clicks and orders as booleans, and when it was known."""

    click: np.ndarray
    order: np.ndarray
    known_us: np.ndarray


class Crowd:
    """Everybody of one city, and what they did last.

    Args:
        first_day: of the city's days, from which on others than its logging policy say what is shown.
    """

    def __init__(self, config: CityConfig, first_day: int) -> None:
        plan = city.prepare(config)
        sample = simulate.run(plan, config.seed, lambda stage, done, total: None)
        self.venues = plan.venues
        self.requests = sample.requests.take(np.flatnonzero(sample.requests.day >= first_day))
        self._opening_day = plan.opening_day
        self._city = City(tables=plan.tables, venues=plan.venues, people=sample.people)
        self._want = behaviour.wanted(plan.tables, self.requests, sample.people.weather_sense[self.requests.user])
        self._state = _state(sample, first_day)

    @property
    def bills(self) -> np.ndarray:
        """(places,) euros of an order."""
        bills: np.ndarray = EUROS * self.venues.price
        return bills

    def turns(self, day: int) -> list[np.ndarray]:
        """Rows of the day's requests: everybody's first ones, then everybody's second ones, and so on."""
        rows = np.flatnonzero(self.requests.day == day)
        user = self.requests.user[rows]
        turn = np.arange(len(rows)) - np.searchsorted(user, user)  # requests are sorted by user, then time
        return [rows[turn == number] for number in range(int(turn.max(initial=-1)) + 1)]

    def candidates(self, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """(n, count) places that some rule found for these requests: draws of the city's logging policy."""
        requests = self.requests.take(rows)
        return logging_policy.show(self._city, requests, self._opening_day, count, rng).venues

    def chances(self, rows: np.ndarray, places: np.ndarray, positions: int) -> Chances:
        """(n, M, K) of these places (n, M) at each position, as their users are now."""
        count = places.shape[1]
        each = np.repeat(rows, count)
        requests = self.requests.take(each)
        mine = State(**{name: values[requests.user] for name, values in vars(self._state).items()})
        slates = np.repeat(places.reshape(-1, 1), positions, axis=1)  # one place everywhere: neighbours do not matter
        logits = self._city.respond(requests, mine, slates, self._want[each])
        shape = (len(rows), count, positions)
        click = logits.p_click
        return Chances(click=click.reshape(shape), order=(click * logits.p_order_if_clicked).reshape(shape))

    def act(self, rows: np.ndarray, shown: np.ndarray, chances: Chances, rng: np.random.Generator) -> Outcomes:
        """Draw what becomes of the places (n, K) that are shown, and remember it for these users' next requests.

        Args:
            chances: of the shown places, (n, K).
        """
        click = rng.random(shown.shape) < chances.click
        order = click & (rng.random(shown.shape) < chances.order / chances.click)
        asked_us, user = self.requests.time_us[rows], self.requests.user[rows]
        known_us = asked_us[:, None] + simulate.delays(click, order, rng)
        simulate.remember(self._state, user, shown, click, order, known_us)
        return Outcomes(click=click, order=order, known_us=known_us)


def _state(sample: simulate.Sample, first_day: int) -> State:
    """What everybody did last before a day, from the log."""
    log, requests = sample.log, sample.requests
    before = requests.day[log.request] < first_day
    state = State.empty(len(sample.people))
    for event, place in ((log.click, state.last_click), (log.order, state.last_order)):
        rows = np.flatnonzero(event & before)
        rows = rows[np.argsort(log.outcome_us[rows], kind="stable")]
        user = requests.user[log.request[rows]]
        place[user] = log.venue[rows]  # of several rows of one user the last one stays
        if event is log.order:
            state.last_order_us[user] = log.outcome_us[rows]
    return state
