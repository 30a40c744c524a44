"""From readings to findings: what each tells of tastes, and how alike two readings of the same people are.

Letters: n users, E width of a vector, K kinds of places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
Target = Literal["tastes", "clicks"]
TARGETS: tuple[Target, ...] = ("tastes", "clicks")


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
class Told:
    """How much a linear probe of vectors foretells of people that it was not fitted on.

    Attributes:
        explained: share of the differences between people. against: the same less that of the control on the same
            users; None for the control itself.
    """

    explained: Interval
    against: Interval | None


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
        tastes: what the vectors tell of how well each kind of place suits a user, which is planted.
        clicks: likewise, of the share of each kind among the newest clicks, which prompts are made of.
        favourite: share of users whose favourite kind the probe names.
        words: what the model itself says of them; None where it says no words.
    """

    group: str
    name: str
    users: int
    result: Result | None
    tastes: Told
    clicks: Told
    favourite: Interval
    words: Spoken | None


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Two readings beside each other; intervals are over users.

    Attributes:
        cosine: of the two vectors of a user, centred. neighbours: share of nearest others that are so in both; by
            `chance`.
        words: share whose best word is the same; None without a head.
        tastes, clicks: what `b` explains of each less what `a` does.
        swapped: what is explained of clicks where a probe of `a` meets vectors of `b`, less what a probe of `b`
            explains of them. These three are None of scenarios.
    """

    group: str
    a: str
    b: str
    users: int
    cosine: Interval
    neighbours: Interval
    chance: float
    words: Interval | None
    tastes: Interval | None
    clicks: Interval | None
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
    """What lines share: the people, what is to be told of them, and how well the control tells it."""

    def __init__(self, people: People, control: PromptCell, store: Store) -> None:
        self._people, self._control, self._store = people, control, store
        shares_nK = people.counts_nK / people.counts_nK.sum(axis=1, keepdims=True)
        self._true: Mapping[Target, np.ndarray] = {"tastes": people.suits_nK, "clicks": shares_nK}
        self._known: dict[tuple[str, int, Target], Foretold] = {}

    def row(self, line: Line) -> Row:
        vectors = self._vectors(line.cell, line.users)
        tastes, clicks = (self._probe(line.cell, line.users, target) for target in TARGETS)
        return replace(self._row(line.group, line.name, vectors, tastes, clicks), result=self._store.result(line.cell))

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
            self._row(
                CONTROLS,
                name,
                Vectors(vectors.keys, vectors_nE, head_nK),
                *(foretold(vectors_nE, self._of(target, line.users)) for target in TARGETS),
            )
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
            tastes=self._gained(pair, "tastes") if of_users else None,
            clicks=self._gained(pair, "clicks") if of_users else None,
            swapped=self._swapped(pair) if of_users else None,
        )

    def _row(self, group: str, name: str, vectors: Vectors, tastes: Foretold, clicks: Foretold) -> Row:
        users = len(vectors.keys)
        return Row(
            group=group,
            name=name,
            users=users,
            result=None,
            tastes=self._told(tastes, "tastes", users),
            clicks=self._told(clicks, "clicks", users),
            favourite=tastes.first(self._of("tastes", users)).interval(),
            words=None if vectors.head_nK is None else self._spoken(vectors.keys, vectors.head_nK),
        )

    def _told(self, said: Foretold, target: Target, users: int) -> Told:
        control, true_nK = self._probe(self._control, users, target), self._of(target, users)
        explained = said.explained(true_nK)
        against = None if said is control else explained.less(control.explained(true_nK))
        return Told(explained=explained.interval(), against=against)

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

    def _gained(self, pair: Pair, target: Target) -> Interval:
        return self._explained(pair.b, target).less(self._explained(pair.a, target))

    def _swapped(self, pair: Pair) -> Interval:
        a, b = (self._vectors(line.cell, line.users).vectors_nE for line in (pair.a, pair.b))
        true_nK = self._of("clicks", len(a))
        return foretold(a, true_nK, b).explained(true_nK).less(self._explained(pair.b, "clicks"))

    def _explained(self, line: Line, target: Target) -> Share:
        return self._probe(line.cell, line.users, target).explained(self._of(target, line.users))

    def _probe(self, cell: PromptCell, users: int, target: Target) -> Foretold:
        """What a probe of a reading says; found once."""
        key = (cell.hash, users, target)
        if key not in self._known:
            self._known[key] = foretold(self._vectors(cell, users).vectors_nE, self._of(target, users))
        return self._known[key]

    def _of(self, target: Target, users: int) -> np.ndarray:
        return self._true[target][:users]

    def _vectors(self, cell: PromptCell, users: int) -> Vectors:
        found = self._store.vectors(cell)
        assert found is not None
        return found.first(users) if cell.level == "user" else found
