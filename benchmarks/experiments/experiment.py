"""An experiment: named arms (a cell for each seed) and the comparisons that it was made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from benchmarks.experiments import worlds
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.measures import MEASURES
from benchmarks.experiments.places import Places
from benchmarks.experiments.slices import ALL
from trainers.plain import to_plain

if TYPE_CHECKING:
    from benchmarks.experiments.analysis import Difference

# Raise it by hand with any change of what tables say of the same cells.
VERSION = 1
AUCS = ("ctr_auc", "ctcvr_auc")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against a reference, arms of one world by name.

    Args:
        margin: of an equivalence test on relative differences; None: the question is which one is better.
        slices: where.
    """

    ours: str
    reference: str
    margin: float | None = None
    slices: tuple[str, ...] = (ALL,)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table.

    Args:
        name: of its files.
        question: what it is for, a sentence.
        arms: name -> the cell of a seed, in the order of the table.
        measures: of `measures.MEASURES`, the columns of the table.
        compared: measures whose differences are told.
        slices: rows of the table beside the whole test part.
        resampled: whether intervals hold users too, by a bootstrap, for which scores of all compared cells have to lie
            here; else they are over seeds alone, and cells that were computed elsewhere are enough.
        facts: measures what is not of a cell, once, when the table is written: what -> name and unit -> number.
        conclude: what the differences amount to, in sentences that the table begins with.
    """

    name: str
    question: str
    arms: Mapping[str, Callable[[int], Cell]]
    seeds: tuple[int, ...]
    comparisons: tuple[Comparison, ...] = ()
    measures: tuple[str, ...] = tuple(MEASURES)
    compared: tuple[str, ...] = AUCS
    slices: tuple[str, ...] = (ALL,)
    resampled: bool = True
    facts: Callable[[Places], Mapping[str, Mapping[str, float]]] | None = None
    conclude: Callable[[Sequence[Difference]], Sequence[str]] | None = None

    @cached_property
    def cells(self) -> dict[str, tuple[Cell, ...]]:
        """Arm -> its cells in the order of the seeds."""
        return {name: tuple(make(seed) for seed in self.seeds) for name, make in self.arms.items()}

    @cached_property
    def compared_cells(self) -> tuple[Cell, ...]:
        """The cells whose scores a bootstrap needs."""
        if not self.resampled:
            return ()
        names = dict.fromkeys(name for c in self.comparisons for name in (c.ours, c.reference))
        return tuple(cell for name in names for cell in self.cells[name])

    @property
    def fingerprint(self) -> str:
        """Changes with anything that its table depends on but the results of the cells."""
        plain = {
            "version": VERSION,
            "question": self.question,
            "cells": {name: [cell.hash for cell in cells] for name, cells in self.cells.items()},
            "comparisons": [to_plain(c) for c in self.comparisons],
            "shown": [self.measures, self.compared, self.slices],
            **({} if self.resampled else {"resampled": False}),
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def once(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once, those of one world together."""
    found = {cell.hash: cell for cell in cells}
    return sorted(found.values(), key=lambda cell: (worlds.plain_hash(cell.world), cell.hash))
