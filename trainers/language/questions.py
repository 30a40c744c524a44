"""What embedders are asked: about places that none of them was tuned on, in texts that all of them can read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.language.clicks import (
    POIS,
    SPACES,
    TEST_HOLD_OUT,
    ClickConfig,
    ClickLog,
    HeldOut,
    HoldOut,
    PairError,
    hold_out,
    read_clicks,
)
from trainers.language.heads import Groups

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is asked.

    Args:
        hold_out: what no embedder was tuned on.
        moments: clicks of held-out POIs that are asked for, drawn by `seed`.
        depths: k of recall@k.
        neighbours: k of the purity of neighbourhoods.
    """

    hold_out: HoldOut = field(default_factory=lambda: TEST_HOLD_OUT)
    moments: int = 1000
    depths: tuple[int, ...] = (1, 5, 10)
    neighbours: int = 4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Letters: Q clicks, P held-out POIs with different texts.

    Attributes:
        log: all clicks of the history part, nothing held out.
        held_out: what no embedder was tuned on.
        groups: what vectors are centred by.
        click_Q: the clicks that are asked for, as positions in the log.
        poi_Q: which of the held-out POIs was clicked.
        poi_P, category_P: the number of the text and the category of each held-out POI.
        halves: the first and the second half of the sentences of each held-out POI that has several.
    """

    log: ClickLog
    held_out: HeldOut
    groups: Groups
    click_Q: np.ndarray
    poi_Q: np.ndarray
    poi_P: np.ndarray
    category_P: np.ndarray
    halves: tuple[tuple[str, str], ...]


def ask(workspace: Workspace, config: ProbeConfig) -> Questions:
    """The questions on a workspace. Raises PairError where no POI is held out or nobody clicked one.

    A held-out POI that has its text in common with another one (a chain) is not asked about: its text was seen.
    """
    schema = Schema.load(workspace.schema)
    cut = schema.split.train
    held_out = hold_out(workspace, cut, config.hold_out)
    log = read_clicks(workspace, cut, ClickConfig())
    names = [columns.POI_ID, columns.TEXT, columns.CATEGORY]
    pois = pq.read_table(workspace.source("pois"), columns=names).to_pylist()
    hidden = {poi[columns.TEXT]: poi[columns.CATEGORY] for poi in pois if poi[columns.POI_ID] in held_out.pois}
    seen = {poi[columns.TEXT] for poi in pois if poi[columns.POI_ID] not in held_out.pois}
    poi_P = np.array(
        [n for n, t in enumerate(log.texts) if t.space == POIS and t.text in hidden.keys() - seen], np.int64
    )
    asked = np.flatnonzero(np.isin(log.poi_C, poi_P))
    if not len(asked):
        raise PairError(f"{len(held_out.pois)} POIs are held out and nobody clicked one before {cut}; hold out more")
    asked = np.sort(np.random.default_rng(config.seed).permutation(asked)[: config.moments])
    texts = [log.texts[n].text for n in poi_P]
    return Questions(
        log=log,
        held_out=held_out,
        groups=Groups.of_schema(SPACES, schema),
        click_Q=asked,
        poi_Q=np.searchsorted(poi_P, log.poi_C[asked]),
        poi_P=poi_P,
        category_P=np.array([hidden[text] for text in texts]),
        halves=tuple(half for half in map(halves, texts) if half),
    )


def halves(text: str) -> tuple[str, str] | None:
    """The first and the second half of a text's sentences, the shorter half first; None for a single sentence."""
    sentences = SENTENCE_END.split(text.strip())
    half = len(sentences) // 2
    return (" ".join(sentences[:half]), " ".join(sentences[half:])) if half else None
