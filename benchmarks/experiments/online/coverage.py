"""How often the intervals of off-policy estimates hold the truth: many logs of requests of which all is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.experiments.online.off_policy import Estimator, Logged, estimates, value


@dataclass(frozen=True, kw_only=True)
class Known:
    """N requests with M candidates, of which K are seen.

    Attributes:
        user: (N,) who asked; logs are drawn user by user.
        logits: (N, M) of the logging policy.
        mu, pi: (N, M, K) chances of candidates at positions, of the logging and of the other policy.
        chance: (N, M, K) of a reward; worth: (N, M) how large it is.
        predicted: (N, M) rewards that the logging ranker expects.
    """

    user: np.ndarray
    logits: np.ndarray
    mu: np.ndarray
    pi: np.ndarray
    chance: np.ndarray
    worth: np.ndarray
    predicted: np.ndarray

    @property
    def truth(self) -> float:
        """What the other policy brings a request."""
        return float(value(self.pi, self.chance * self.worth[:, :, None]).mean())


def drawn(known: Known, users: int, rng: np.random.Generator) -> tuple[Logged, np.ndarray, np.ndarray]:
    """A log of so many users, who are drawn with replacement, and `mu` and `pi` of its requests."""
    _, code = np.unique(known.user, return_inverse=True)
    by_user = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code))
    picked = rng.integers(len(ends), size=users)
    of_user = [by_user[(ends[u - 1] if u else 0) : ends[u]] for u in picked]
    rows = np.concatenate(of_user)
    noise = rng.gumbel(size=(len(rows), known.logits.shape[1]))
    shown = np.argsort(-(known.logits[rows] + noise), axis=1)[:, : known.mu.shape[2]]
    each, at = rows[:, None], np.arange(known.mu.shape[2])
    happened = rng.random(shown.shape) < known.chance[each, shown, at]
    log = Logged(
        user=np.repeat(np.arange(users), [len(part) for part in of_user]),
        shown=shown,
        reward=happened * known.worth[each, shown],
        predicted=known.predicted[rows],
    )
    return log, known.mu[rows], known.pi[rows]


def covered(known: Known, users: int, logs: int, seed: int) -> Mapping[Estimator, int]:
    """In how many of so many logs each estimator's interval holds the truth."""
    rng, truth = np.random.default_rng(seed), known.truth
    hits: Counter[Estimator] = Counter()
    for _ in range(logs):
        found = estimates(*drawn(known, users, rng))
        hits.update(name for name, estimate in found.items() if estimate.covers(truth))
    return hits
