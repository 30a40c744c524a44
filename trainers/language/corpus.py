"""The documents from which a language model learns a workspace's POIs and users, and those that test what it learned.

Nothing that a document says was unknown at the cut-off: the POI had appeared, the click had happened. What is held out
(POIs, users, a family of templates) stands in no training document, not even in a user's history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns, scenes
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.workspace import Workspace
from trainers.language.attributes import (
    CATEGORY,
    DESCRIPTION,
    LOCATION,
    NAME,
    OFFERS,
    attributes_of,
    facts_of,
    token_of,
)
from trainers.language.clicks import HoldOut, hold_out
from trainers.language.families import FAMILIES
from trainers.language.general import read_general_text

USER, CLICKED = "user", "clicked"  # beside the attributes: what the special tokens of a history announce


class CorpusError(ValueError):
    """There is nothing to learn from. The message names what is missing and the remedy."""


class Span(NamedTuple):
    """A piece of a document.

    Attributes:
        content: it says what is so, and is no wording or special token around that.
        target: the model learns to write it; otherwise it is only read.
    """

    text: str
    content: bool = False
    target: bool = True


Document = tuple[Span, ...]
Facts = Mapping[str, str]  # attribute -> words


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which documents are made and which are held out.

    Args:
        hold_out: POIs, and categories with all their POIs, that training never names.
        held_out_users: share of the users whose histories training never reads.
        held_out_family: the family of templates that training never uses.
        given, predicted: of the conditional objective: attributes that are read, and those to be written.
        history_clicks: of a user at most, the newest; users with fewer than `fewest_clicks` have no document.
        general_text: a text file or a folder of *.txt; None for the text that comes with Python.
    """

    hold_out: HoldOut = field(default_factory=lambda: HoldOut(pois=0.1))
    held_out_users: float = 0.1
    held_out_family: str = "letter"
    given: tuple[str, ...] = (NAME, LOCATION)
    predicted: tuple[str, ...] = (DESCRIPTION, OFFERS)
    history_clicks: int = 8
    fewest_clicks: int = 3
    general_text: Path | None = None

    def __post_init__(self) -> None:
        if self.held_out_family not in FAMILIES:
            raise CorpusError(f"no template family {self.held_out_family!r} to hold out; there are {[*FAMILIES]}")
        if not 0 <= self.held_out_users < 1:
            raise CorpusError(f"held_out_users is a share in 0 .. 1, 1 excluded, got {self.held_out_users}")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What there is to read, in the order of the source tables.

    Attributes:
        tokens: the special tokens that documents have.
        places, held_out_places: the facts of each POI.
        histories, held_out_histories: one document a user.
        general, held_out_general: documents of general text.
        available_at: the cut-off.
    """

    config: CorpusConfig
    tokens: tuple[str, ...]
    available_at: datetime
    places: tuple[Facts, ...]
    held_out_places: tuple[Facts, ...]
    histories: tuple[Document, ...]
    held_out_histories: tuple[Document, ...]
    general: tuple[Document, ...]
    held_out_general: tuple[Document, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """The families that training uses."""
        return tuple(name for name in FAMILIES if name != self.config.held_out_family)

    def conditional(self, facts: Facts) -> Document:
        """What is given, read; then what is predicted, written. The token that asks for it is read, too.

        Raises CorpusError where nothing is known that could be predicted.
        """
        given = [a for a in self.config.given if a in facts]
        predicted = [a for a in self.config.predicted if a in facts]
        if not predicted:
            raise CorpusError(f"{dict(facts)} has none of {self.config.predicted}; choose attributes that POIs have")
        read = [span._replace(target=False) for a in given for span in _said(a, facts[a])]
        first, *written = [span for a in predicted for span in _said(a, facts[a])]
        return (*read, first._replace(target=False), *written)


def read_corpus(workspace: Workspace, config: CorpusConfig) -> Corpus:
    """The documents of a workspace up to the end of its history part.

    Raises CorpusError where no POI or no click is left to learn from, GeneralTextError for a general text that is none.
    """
    if not workspace.schema.is_file():
        raise CorpusError(f"{workspace.sources} holds no source tables; build those of this workspace first")
    schema = Schema.load(workspace.schema)
    cut = schema.split.train
    held_out = set(hold_out(workspace, cut, config.hold_out).pois)
    pois = {p[columns.POI_ID]: p for p in pq.read_table(workspace.source("pois")).to_pylist() if _known(p, cut)}
    facts = {poi: facts_of(row, schema) for poi, row in pois.items()}
    places = {poi: known for poi, known in facts.items() if poi not in held_out}
    if not places:
        raise CorpusError(f"no POI appeared before {cut}, the end of the history part; move it or hold out less")
    histories = dict(_histories(workspace, schema, places, config))
    testers = {user for user in histories if _share(user, config.hold_out.seed) < config.held_out_users}
    general = read_general_text(config.general_text)
    return Corpus(
        config=config,
        tokens=tuple(token_of(name) for name in dict.fromkeys((*attributes_of(schema), USER, CLICKED))),
        available_at=cut,
        places=tuple(places.values()),
        held_out_places=tuple(known for poi, known in facts.items() if poi in held_out),
        histories=tuple(document for user, document in histories.items() if user not in testers),
        held_out_histories=tuple(document for user, document in histories.items() if user in testers),
        general=tuple((Span(chunk, content=True),) for chunk in general.chunks),
        held_out_general=tuple((Span(chunk, content=True),) for chunk in general.held_out),
    )


def place_document(facts: Facts, family: str) -> Document:
    """All that is known of a POI, in the words and the order of a family."""
    chosen = FAMILIES[family]
    return tuple(
        span for name in chosen.ordered(list(facts)) for span in _said(name, facts[name], *chosen.around(name))
    )


def _said(attribute: str, value: str, before: str = "", after: str = "") -> Iterator[Span]:
    """An attribute's special token, then its value with the words around it."""
    yield Span(token_of(attribute))
    if before:
        yield Span(f" {before.rstrip()}")
    yield Span(f" {value}", content=True)
    if after:
        yield Span(after)


def _histories(
    workspace: Workspace, schema: Schema, places: Mapping[str, Facts], config: CorpusConfig
) -> Iterator[tuple[str, Document]]:
    """User and document: who that is, and the part of the day, name and kind of each POI clicked, oldest first."""
    cut = schema.split.train
    names = [columns.ROW_ID, columns.EVENT_TIMESTAMP, columns.OUTCOME_TIMESTAMP, columns.USER_ID, columns.POI_ID]
    log = pq.read_table(workspace.source("impressions"), columns=[*names, columns.CLICK])
    for name in (columns.EVENT_TIMESTAMP, columns.OUTCOME_TIMESTAMP):
        log = log.filter(pc.less(log[name], pa.scalar(cut, TIME)))
    log = log.filter(pc.equal(log[columns.CLICK], 1))
    log = log.sort_by([(columns.OUTCOME_TIMESTAMP, "ascending"), (columns.ROW_ID, "ascending")])
    times = log[columns.EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
    dayparts = scenes.daypart_keys(times, schema.timezone)
    clicks: dict[str, list[tuple[str, Facts]]] = {}
    for user, poi, part in zip(
        log[columns.USER_ID].to_pylist(), log[columns.POI_ID].to_pylist(), dayparts, strict=True
    ):
        if poi in places:
            clicks.setdefault(user, []).append((part, places[poi]))
    for row in pq.read_table(workspace.source("users")).to_pylist():
        newest = clicks.get(row[columns.USER_ID], [])[-config.history_clicks :]
        if len(newest) >= config.fewest_clicks and _known(row, cut):
            yield row[columns.USER_ID], (*_said(USER, row[columns.TEXT]), *_clicked(newest))


def _clicked(clicks: Sequence[tuple[str, Facts]]) -> Iterator[Span]:
    for part, facts in clicks:
        said = ", ".join(facts[a] for a in (NAME, CATEGORY, OFFERS) if a in facts)
        yield from _said(CLICKED, said, before=f"{part}:")


def _known(row: Mapping[str, Any], cut: datetime) -> bool:
    """Whether both the fact and the knowledge of it were there before the cut-off."""
    return bool(max(row[columns.EVENT_TIMESTAMP], row[columns.CREATED_TIMESTAMP]) < cut)


def _share(name: str, seed: int) -> float:
    """A number in 0 .. 1 that a name always gets, whoever else is there."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
