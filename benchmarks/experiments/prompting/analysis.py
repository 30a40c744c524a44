"""From readings to findings: what each tells of tastes, and how alike two readings of the same people are.

Letters: n users, E width of a vector, K kinds of places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.experiments.places import Places
from benchmarks.experiments.prompting.cells import PromptCell, Result, Store, Vectors
from benchmarks.experiments.prompting.measures import (
    NEIGHBOURS,
    Foretold,
    Share,
    cosines,
    foretold,
    shared_neighbours,
)
from benchmarks.experiments.prompting.people import People, people_of
from benchmarks.experiments.statistics import Interval
from benchmarks.experiments.vectors import random_like
from trainers.language.tastes import knowledge_report

CONTROLS = "controls"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table: a reading, of whose users the first ones count."""

    group: str
    name: str
    cell: PromptCell
    users: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two lines of the same users or scenarios whose readings are compared."""

    group: str
    a: Line
    b: Line


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """The best word of each user, out of the kinds of places, the prior taken off.

    Attributes:
        favourite: share of users of whom it is the favourite kind. chance: that share, were the words dealt at random.
        clicked: share of users of whom it is the kind that they clicked most.
    """

    favourite: Interval
    chance: float
    clicked: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one line came to; intervals are over users.

    Attributes:
        result: of the reading; None for a control that reads nothing.
        explained: share of the differences between people's tastes that a linear probe foretells, of people that it was
            not fitted on. against: the same less that of the control on the same users.
        favourite: share of users whose favourite kind the probe names.
        words: what the model itself says of them; None where it says no words.
    """

    group: str
    name: str
    users: int
    result: Result | None
    explained: Interval
    against: Interval | None
    favourite: Interval
    words: Spoken | None


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Two readings beside each other; intervals are over users.

    Attributes:
        cosine: of the two vectors of a user, centred. neighbours: share of nearest others that are so in both; by
            `chance`.
        words: share whose best word is the same; None without a head.
        gained: what `b` explains less what `a` explains of the same users' tastes.
        swapped: what is explained where a probe of `a` meets vectors of `b`, less what a probe of `b` explains of them;
            both are None of scenarios, of which nothing is planted.
    """

    group: str
    a: str
    b: str
    users: int
    cosine: Interval
    neighbours: Interval
    chance: float
    words: Interval | None
    gained: Interval | None
    swapped: Interval | None


@dataclass(frozen=True, kw_only=True)
class Findings:
    rows: tuple[Row, ...]
    likeness: tuple[Likeness, ...]


def analyse(lines: Sequence[Line], pairs: Sequence[Pair], control: PromptCell, places: Places) -> Findings:
    """All lines beside the control, whose readings are all there."""
    study = _Study(people_of(control.world, places), control, Store(places))
    rows = (*study.controls(lines[0]), *(study.row(line) for line in lines))
    return Findings(rows=rows, likeness=tuple(study.likeness(pair) for pair in pairs))


class _Study:
    """What lines share: the people, their tastes, and how well the control foretells these."""

    def __init__(self, people: People, control: PromptCell, store: Store) -> None:
        self._people, self._control, self._store = people, control, store
        self._known: dict[tuple[str, int], Foretold] = {}

    def row(self, line: Line) -> Row:
        vectors, said = self._vectors(line.cell, line.users), self._probe(line.cell, line.users)
        row = self._row(line.group, line.name, vectors, said)
        return replace(
            row,
            result=self._store.result(line.cell),
            against=None if line.cell == self._control else row.against,
        )

    def controls(self, line: Line) -> tuple[Row, ...]:
        """What needs no model: chance, and how often each kind was clicked; and a prompt beside the control."""
        vectors, control = (self._vectors(cell, line.users) for cell in (line.cell, self._control))
        counts_nK = self._people.counts_nK[: line.users]
        sets: Mapping[str, tuple[np.ndarray, np.ndarray | None]] = {
            "random vectors": (random_like(vectors.vectors_nE, vectors.keys, seed=0), None),
            "clicks on each kind": (counts_nK, counts_nK),  # its word is the kind with most clicks
            f"mean over POIs beside {line.name}": (np.hstack([control.vectors_nE, vectors.vectors_nE]), None),
        }
        return tuple(
            self._row(CONTROLS, name, Vectors(vectors.keys, vectors_nE, head_nK), self._foretold(vectors_nE))
            for name, (vectors_nE, head_nK) in sets.items()
        )

    def likeness(self, pair: Pair) -> Likeness:
        a, b = (self._vectors(line.cell, line.users) for line in (pair.a, pair.b))
        assert a.keys == b.keys
        of_users = pair.a.cell.level == "user"
        near = min(NEIGHBOURS if of_users else 1, len(a.keys) - 1)
        same = None if a.head_nK is None or b.head_nK is None else a.head_nK.argmax(1) == b.head_nK.argmax(1)
        return Likeness(
            group=pair.group,
            a=pair.a.name,
            b=pair.b.name,
            users=len(a.keys),
            cosine=Share.mean(cosines(a.vectors_nE, b.vectors_nE)).interval(),
            neighbours=Share.mean(shared_neighbours(a.vectors_nE, b.vectors_nE, near)).interval(),
            chance=near / (len(a.keys) - 1),
            words=None if same is None else Share.mean(same).interval(),
            gained=self._explained(pair.b).less(self._explained(pair.a)) if of_users else None,
            swapped=self._swapped(pair) if of_users else None,
        )

    def _row(self, group: str, name: str, vectors: Vectors, said: Foretold) -> Row:
        true_nK = self._people.suits_nK[: len(vectors.keys)]
        explained = said.explained(true_nK)
        control = self._probe(self._control, len(vectors.keys)).explained(true_nK)
        return Row(
            group=group,
            name=name,
            users=len(vectors.keys),
            result=None,
            explained=explained.interval(),
            against=explained.less(control),
            favourite=said.first(true_nK).interval(),
            words=None if vectors.head_nK is None else self._spoken(vectors.keys, vectors.head_nK),
        )

    def _spoken(self, users: Sequence[str], head_nK: np.ndarray) -> Spoken:
        kinds = np.array(self._people.kinds)
        word, favourite = kinds[head_nK.argmax(axis=1)], kinds[self._people.suits_nK[: len(users)].argmax(axis=1)]
        said, true = dict(zip(users, word, strict=True)), dict(zip(users, favourite, strict=True))
        report = knowledge_report(said, true, {})
        assert report is not None
        return Spoken(
            favourite=Share.mean(word == favourite).interval(),
            chance=report.chance,
            clicked=float((word == np.array(self._people.clicked[: len(users)])).mean()),
        )

    def _swapped(self, pair: Pair) -> Interval:
        a, b = (self._vectors(line.cell, line.users).vectors_nE for line in (pair.a, pair.b))
        true_nK = self._people.suits_nK[: len(a)]
        return foretold(a, true_nK, b).explained(true_nK).less(self._explained(pair.b))

    def _explained(self, line: Line) -> Share:
        return self._probe(line.cell, line.users).explained(self._people.suits_nK[: line.users])

    def _probe(self, cell: PromptCell, users: int) -> Foretold:
        """What a probe of a reading says; found once."""
        key = (cell.hash, users)
        if key not in self._known:
            self._known[key] = self._foretold(self._vectors(cell, users).vectors_nE)
        return self._known[key]

    def _foretold(self, vectors_nE: np.ndarray) -> Foretold:
        return foretold(vectors_nE, self._people.suits_nK[: len(vectors_nE)])

    def _vectors(self, cell: PromptCell, users: int) -> Vectors:
        found = self._store.vectors(cell)
        assert found is not None
        return found.first(users) if cell.level == "user" else found
