"""Which rows of its world a cell learns from and is tested on: one scenario's alone, or all but a new scenario's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns
from trainers.encoding import kept_statistics


class Parts(NamedTuple):
    """The parts of a training set, in time."""

    train: pa.Table
    valid: pa.Table
    test: pa.Table


@dataclass(frozen=True, kw_only=True)
class OneScenario:
    """Training, validation and test in one scenario; the rows of the others are as if they were not."""

    scenario: str
    kind: Literal["one scenario"] = "one scenario"

    def of(self, parts: Parts, seed: int) -> Parts:
        return Parts(*(part.filter(_of(part, self.scenario)) for part in parts))


@dataclass(frozen=True, kw_only=True)
class NewScenario:
    """Training and validation without a scenario, but for some impressions that are given back; tested in it alone.

    Args:
        given: impressions of its training rows, of requests drawn by the seed; fewer are among more.
        unknown: share of the other training rows whose scenario is hidden, its statistics too, as if it were new. What
            a ranker has for unknown scenarios (a tower, experts, a gate) learns from these rows; with 0 it stays as it
            was drawn.
    """

    scenario: str
    given: int = 0
    unknown: float = 0.1
    kind: Literal["new scenario"] = "new scenario"

    def of(self, parts: Parts, seed: int) -> Parts:
        """Raises ValueError where the scenario has fewer training rows than are given back."""
        rng = np.random.default_rng(seed)
        its, others = _of(parts.train, self.scenario), pc.invert(_of(parts.train, self.scenario))
        chosen = others.to_numpy(zero_copy_only=False).copy()
        chosen[_first(parts.train, its, self.given, rng)] = True
        hidden = (rng.random(len(chosen)) < self.unknown) & others.to_numpy(zero_copy_only=False)
        train = _hide(parts.train, pa.array(hidden)).filter(pa.array(chosen))
        valid = parts.valid.filter(pc.invert(_of(parts.valid, self.scenario)))
        return Parts(train, valid, parts.test.filter(_of(parts.test, self.scenario)))


Rows = OneScenario | NewScenario


def _of(part: pa.Table, scenario: str) -> pa.Array:
    return pc.equal(part[columns.SCENARIO_ID].cast(pa.string()), scenario).combine_chunks()


def _hide(part: pa.Table, hidden: pa.Array) -> pa.Table:
    """The same rows, of which some do not say in which scenario they are, nor how much went on there."""
    days = [days for owner, days in kept_statistics(part.column_names, columns.COUNTS) if owner == "scenario"]
    counts = [columns.statistic("scenario", count, of) for of in days for count in columns.COUNTS]
    for name in (columns.SCENARIO_ID, *(n for n in counts if n in part.column_names)):
        values = part[name].combine_chunks()
        told = pc.if_else(hidden, pa.scalar(None, values.type), values)
        part = part.set_column(part.column_names.index(name), name, told)
    return part


def _first(part: pa.Table, its: pa.Array, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the first `count` of these rows, once their requests are shuffled."""
    at = np.flatnonzero(its.to_numpy(zero_copy_only=False))
    if len(at) < count:
        raise ValueError(f"{count} training rows of a new scenario are asked for, there are {len(at)}; ask for fewer")
    request = part[columns.REQUEST_ID].to_numpy()[at]
    number = np.unique(request, return_inverse=True)[1]
    place = rng.permutation(number.max() + 1 if len(number) else 0)[number]
    found: np.ndarray = at[np.argsort(place, kind="stable")][:count]
    return found
