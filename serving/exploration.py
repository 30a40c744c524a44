"""Answers that explore: their order is drawn from the scores, and every place's chance to stand where it does is known.

Places fill the positions one after the other, each drawn from a softmax over those that are left (Plackett-Luce), of
the logits of the scores over a temperature. The propensity of a place is what the city's own log means by that word
(`feature_repo.datasets.city.logging_policy`, of one slice):

    softmax(logit(score) / temperature  over the places not above it)

the chance to stand at this position given what stands above; the product over the first k places is the probability of
these k in this order, however many more there were. Known places are drawn before unknown ones.

All chance comes from the answer's id, so that the same scores, in the order of the candidates, give the same answer and
the same propensities again.

Reference: Plackett, "The Analysis of Permutations" (1975); the draw is that of Yellott (1977), the largest of logits
with Gumbel noise.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

SEED_BYTES = 16


@dataclass(frozen=True)
class Exploration:
    """How far answers stray from the order of their scores.

    Args:
        temperature: in logits, above 0. Of two places whose logits differ by it, the worse one stands first in 27 % of
            answers; by three times as much, in 5 %. Towards 0 the order becomes that of the scores.
    Raises:
        ValueError: a temperature that is none.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"the temperature of exploration is a number above 0, not {self.temperature}")

    def perturbed(self, scores: np.ndarray, answer_id: str) -> np.ndarray:
        """float64 (n,): the descending order of these is the order that was drawn.

        Args:
            scores: (n,) probabilities, in the order of the candidates.
        """
        return self._logits(scores) + gumbel(len(scores), answer_id)

    def propensities(self, scores: np.ndarray, known: np.ndarray) -> np.ndarray:
        """float64 (n,), above 0 and at most 1: each place's chance to stand where it stands, given those above it.

        Args:
            scores: (n,) of all places, in the order of the answer.
            known: (n,) whether the store knows the place; those that it does not know come last.
        """
        logits, first = self._logits(scores), int(known.sum())
        return np.concatenate([_chances(part) for part in (logits[:first], logits[first:])])

    def _logits(self, scores: np.ndarray) -> np.ndarray:
        # A float32 may be so near 0 or 1 that it is 0 or 1.
        edge = float(np.finfo(np.float32).eps)
        p = np.clip(scores.astype(np.float64), edge**2, 1.0 - edge)
        return (np.log(p) - np.log1p(-p)) / self.temperature


def gumbel(count: int, answer_id: str) -> np.ndarray:
    """float64 (n,) of standard Gumbel noise, the same for the same id in every version of NumPy: of its generators only
    the bits are promised to stay."""
    seed = int.from_bytes(hashlib.sha256(answer_id.encode()).digest()[:SEED_BYTES])
    bits: np.ndarray = np.random.PCG64(seed).random_raw(count)
    uniform = ((bits >> 11) + 0.5) * 2.0**-53  # neither 0 nor 1
    noise: np.ndarray = -np.log(-np.log(uniform))
    return noise


def _chances(logits: np.ndarray) -> np.ndarray:
    """exp(logit) over the sum of its own and all later ones; sums from the last on, so that none cancels."""
    left = np.logaddexp.accumulate(logits[::-1])[::-1]
    return np.exp(logits - left)
