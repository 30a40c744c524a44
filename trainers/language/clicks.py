"""The clicks of the history part as texts: who clicked what, in which moment, and what else was on the screen.

A language model never reads a whole scene. What stands for the user's side of a click is therefore a set of texts, the
profile and one sentence for each aspect of the moment, each of which occurs in many clicks and is embedded once. Which
POIs, categories and scene values are held out is decided here too: their texts are not in the log that comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns, scenes
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.knowledge import POI_SPACE, USER_SPACE
from trainers.language.texts import SCENES, collect, moments, scene_values

POIS, USERS = POI_SPACE, USER_SPACE
SPACES = (POIS, USERS, SCENES)  # the vector spaces that a click has texts in
NONE = -1  # in an array of text numbers: no text


class PairError(ValueError):
    """No pairs can be made of a log. The message names what is missing and the remedy."""


class SpaceText(NamedTuple):
    """A text in a vector space."""

    space: str
    text: str


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """How much is kept from a model so that it can be tested on it: shares in 0 .. 1, drawn by `seed`.

    Args:
        categories: of the categories, with all their POIs and the scene values that name them.
        pois: of the POIs of the other categories.
        scene_values: of the values of each scene feature that has at least `open_values`: names of places and dishes.
            The handful of values of features such as the weekday are all needed to say what a moment is.
    """

    categories: float = 0.0
    pois: float = 0.0
    scene_values: float = 0.0
    open_values: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= share < 1 for share in (self.categories, self.pois, self.scene_values)):
            raise PairError(f"shares to hold out must lie in 0 .. 1, 1 excluded, got {self}")

    @property
    def nothing(self) -> bool:
        return not (self.categories or self.pois or self.scene_values)


# What a model that is to be tested does not see, where nothing else is said.
TEST_HOLD_OUT = HoldOut(categories=0.15, pois=0.2, scene_values=0.2)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a model has not seen: external ids and words, sorted. `pois` includes those of the categories."""

    pois: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    scene_values: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClickConfig:
    """Which clicks are read, and as which texts.

    Args:
        positives: "click", or only clicks that became an "order".
        user_side: "aspects": the profile and the sentence of each scene value, every one a text of its own (what LARR
            can look up when a request comes); "profile" alone; "whole": all of them joined to one text.
        bucket: scene features whose values together say which moments are alike; empty: all are.
        exposed: at most this many POIs that were shown in the same request and not clicked are kept for a click.
    """

    positives: Literal["click", "order"] = "click"
    user_side: Literal["aspects", "profile", "whole"] = "aspects"
    bucket: tuple[str, ...] = ("daypart",)
    exposed: int = 24
    hold_out: HoldOut = field(default_factory=HoldOut)


@dataclass(frozen=True, kw_only=True)
class ClickLog:
    """C clicks; numbers of texts are positions in `texts`, `NONE` where there is none.

    Attributes:
        texts: every text that was known at the cut-off and is not held out, clicked or not, each once.
        user_C, request_C, bucket_C: int64 codes.
        profile_C, poi_C: int32, the texts of the user and of the clicked POI.
        side_CK: int32, the texts of the user's side; K = 1 + scene features for "aspects".
        exposed_CE: int32, POIs of the same request that nobody clicked there.
    """

    texts: tuple[SpaceText, ...]
    held_out: HeldOut
    user_C: np.ndarray
    request_C: np.ndarray
    bucket_C: np.ndarray
    profile_C: np.ndarray
    poi_C: np.ndarray
    side_CK: np.ndarray
    exposed_CE: np.ndarray


def read_clicks(workspace: Workspace, cut: datetime, config: ClickConfig) -> ClickLog:
    """All clicks whose outcome was known before `cut`.

    Raises PairError for a cut-off after the history part, an unknown bucket, or where no click is left.
    """
    schema = Schema.load(workspace.schema)
    if cut > schema.split.train:
        raise PairError(f"the cut-off {cut} lies after the history part, which ends {schema.split.train}; move it back")
    features = [f.name for f in scenes.features_of(schema)]
    if unknown := sorted(set(config.bucket) - set(features)):
        raise PairError(f"bucket {unknown}: {schema.dataset} has no such scene features; it has {features}")
    held_out = hold_out(workspace, cut, config.hold_out)
    texts = _Texts(workspace, cut, held_out)
    rows = _clicked(workspace, schema, cut, config)
    rows = rows.filter(pa.array([poi in texts.pois for poi in rows[columns.POI_ID].to_pylist()], pa.bool_()))
    if not len(rows):
        raise PairError(f"no {config.positives} before {cut} is left to learn from; move the cut-off or hold out less")
    words = {name: rows[columns.scene(name)].to_pylist() for name in features}
    users = rows[columns.USER_ID].to_pylist()
    sides = texts.sides(users, words, config.user_side)
    buckets = list(zip(*(words[name] for name in config.bucket), strict=True)) or [()] * len(rows)
    requests = rows[columns.REQUEST_ID].to_pylist()
    return ClickLog(
        held_out=held_out,
        user_C=_codes(users),
        request_C=_codes(requests),
        bucket_C=_codes(buckets),
        profile_C=np.array([texts.users.get(user, NONE) for user in users], np.int32),
        poi_C=np.array([texts.pois[poi] for poi in rows[columns.POI_ID].to_pylist()], np.int32),
        side_CK=sides,
        exposed_CE=_exposed(workspace, cut, requests, texts.pois, config.exposed),
        texts=tuple(texts.all),
    )


def hold_out(workspace: Workspace, cut: datetime, config: HoldOut) -> HeldOut:
    """Draw what is held out; the same source tables, cut-off and seed give the same."""
    if config.nothing:
        return HeldOut()
    names = [columns.POI_ID, columns.CATEGORY, columns.SPECIALTY]
    pois = pq.read_table(workspace.source("pois"), columns=names).to_pylist()
    rng = np.random.default_rng(config.seed)
    categories = set(_share(rng, {poi[columns.CATEGORY] for poi in pois}, config.categories))
    others = [poi[columns.POI_ID] for poi in pois if poi[columns.CATEGORY] not in categories]
    chosen = set(_share(rng, others, config.pois))
    held = {poi[columns.POI_ID]: poi for poi in pois if poi[columns.CATEGORY] in categories}
    sold = {poi[columns.SPECIALTY] for poi in pois if poi[columns.POI_ID] not in held}
    named = {columns.scene_value(columns.LAST_CATEGORY, category) for category in categories}
    dishes = {poi[columns.SPECIALTY] for poi in held.values()} - sold - {None}
    named |= {columns.scene_value(columns.LAST_SPECIALTY, dish) for dish in dishes}
    values: dict[str, list[str]] = {}
    for key in _known(collect(workspace, SCENES), cut, columns.SCENE_VALUE):
        values.setdefault(feature_of(key), []).append(key)
    for _, keys in sorted(values.items()):
        if len(keys) >= config.open_values:
            named.update(_share(rng, keys, config.scene_values))
    return HeldOut(
        pois=tuple(sorted({*held, *chosen})), categories=tuple(sorted(categories)), scene_values=tuple(sorted(named))
    )


def feature_of(scene_value: str) -> str:
    """The scene feature of a key such as `daypart=lunch`."""
    return scene_value.partition("=")[0]


class _Texts:
    """Numbers the texts that were known at the cut-off; held-out ones get none."""

    def __init__(self, workspace: Workspace, cut: datetime, held_out: HeldOut) -> None:
        self._number: dict[SpaceText, int] = {}
        self.pois = self._add(workspace, POIS, cut, held_out.pois)
        self.users = self._add(workspace, USERS, cut, ())
        self.values = self._add(workspace, SCENES, cut, held_out.scene_values)

    @property
    def all(self) -> list[SpaceText]:
        return list(self._number)

    def sides(self, users: Sequence[str], words: Mapping[str, Sequence[str | None]], kind: str) -> np.ndarray:
        """The texts of the user's side of each click: int32 (C, K)."""
        profiles = [self.users.get(user, NONE) for user in users]
        if kind == "profile":
            return np.array(profiles, np.int32)[:, None]
        aspects = [[self._aspect(name, word) for word in values] for name, values in words.items()]
        side_CK = np.array([profiles, *aspects], np.int32).T
        if kind == "aspects":
            return side_CK
        known = self.all
        joined = (" ".join(known[text].text for text in side if text != NONE) for side in side_CK)
        return np.array([self._at(SpaceText(USERS, text)) for text in joined], np.int32)[:, None]

    def _aspect(self, feature: str, word: str | None) -> int:
        return self.values.get(columns.scene_value(feature, word), NONE) if word else NONE

    def _add(self, workspace: Workspace, space: str, cut: datetime, without: Iterable[str]) -> dict[str, int]:
        key = columns.KNOWLEDGE[space]
        known = _known(collect(workspace, space), cut, key)
        for left_out in without:
            known.pop(left_out, None)
        return {k: self._at(SpaceText(space, text)) for k, text in known.items()}

    def _at(self, text: SpaceText) -> int:
        return self._number.setdefault(text, len(self._number))


def _known(texts: pa.Table, cut: datetime, key: str) -> dict[str, str]:
    """Key -> text of what was known before the cut-off, oldest first."""
    times = [texts[name].to_pylist() for name in (columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP)]
    rows = zip(texts[key].to_pylist(), texts[columns.TEXT].to_pylist(), *times, strict=True)
    return {k: text for k, text, event, created in rows if max(event, created) < cut}


def _clicked(workspace: Workspace, schema: Schema, cut: datetime, config: ClickConfig) -> pa.Table:
    """The keys of every positive, and its scene in words under the features' column names."""
    kept = [columns.ROW_ID, columns.REQUEST_ID, columns.USER_ID, columns.POI_ID]
    tables = []
    for chunk in moments(workspace, schema, clicked_before=cut):
        if config.positives == "order":
            chunk = chunk.filter(pc.equal(chunk[columns.ORDER], 1))
        table = chunk.select(kept)
        for name, words in scene_values(chunk, schema).items():
            table = table.append_column(columns.scene(name), pa.array(words, pa.string()))
        tables.append(table)
    if not tables:
        raise PairError(f"the log has no click before {cut}; move the cut-off")
    return pa.concat_tables(tables)


def _exposed(
    workspace: Workspace, cut: datetime, requests: Sequence[str], pois: Mapping[str, int], most: int
) -> np.ndarray:
    """For each click the POIs that its request showed and nobody clicked: int32 (C, most), padded with `NONE`.

    A POI whose text is also that of a clicked one (a chain) is no negative of it.
    """
    query = f"""
        SELECT {columns.REQUEST_ID},
               list({columns.POI_ID} ORDER BY {columns.ROW_ID}) FILTER ({columns.CLICK} = 0),
               list({columns.POI_ID} ORDER BY {columns.ROW_ID}) FILTER ({columns.CLICK} = 1)
        FROM read_parquet($impressions)
        WHERE greatest({columns.EVENT_TIMESTAMP}, {columns.OUTCOME_TIMESTAMP}) < $before
        GROUP BY {columns.REQUEST_ID}
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        files = {"impressions": str(workspace.source("impressions")), "before": cut}
        found = connection.execute(query, files).fetchall()
    ignored: dict[str, list[int]] = {}
    for request, shown, clicked in found:
        wanted = {pois.get(poi, NONE) for poi in clicked or ()} | {NONE}
        ignored[request] = [
            text for text in dict.fromkeys(pois.get(p, NONE) for p in shown or ()) if text not in wanted
        ]
    exposed_CE = np.full((len(requests), most), NONE, np.int32)
    for click, request in enumerate(requests):
        texts = ignored[request][:most]
        exposed_CE[click, : len(texts)] = texts
    return exposed_CE


def _share(rng: np.random.Generator, names: Iterable[str], share: float) -> list[str]:
    """A random share of the names, to the nearest whole number."""
    known = sorted(names)
    return [known[at] for at in rng.permutation(len(known))[: round(share * len(known))]]


def _codes(values: Sequence[object]) -> np.ndarray:
    """Equal values, equal numbers, in order of appearance: int64."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], np.int64)
