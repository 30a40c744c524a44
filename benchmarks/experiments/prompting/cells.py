"""One cell of the prompt study: some users (or all scenarios) read once under one configuration, kept by its hash.

    <results>/cells/<hash>.json          the cell as plain data and its `Result`
    <scratch>/prompting/<hash>.parquet   vectors, and what the model's head says of each kind of place

A prompt that would be longer than the limit is made of fewer facts, never cut.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.experiments import worlds
from benchmarks.experiments.cells import read_json, rounded, said, staged, write_json
from benchmarks.experiments.city import CityWorld
from benchmarks.experiments.places import Places
from benchmarks.experiments.prompting.people import facts_of, people_of
from benchmarks.experiments.vectors import PROMPT_LENGTH, LanguageModel, Reading, read
from benchmarks.experiments.worlds import matrix_of, plain, plain_hash
from benchmarks.report import machine, peak_mib
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.knowledge import POI_SPACE, VectorMatrix
from trainers.language.encoder import EncoderConfig
from trainers.language.facts import FactsConfig
from trainers.language.model import model_identity
from trainers.language.parquet import vector_array, vectors_of
from trainers.language.poolings import POI_MEAN, PoiMean, Pooling, PromptReader, reader_of
from trainers.language.prompts import Level, Prompt, read_prompt
from trainers.language.snapshots import Question, Wording
from trainers.language.verbaliser import Verbaliser
from trainers.language.wording import platform_of
from trainers.plain import from_plain, to_plain

# Raise it by hand with any change of what is read under the same configuration.
VERSION = 1
WORDINGS = Path(__file__).with_name("wordings")
KEY, VECTOR, HEAD = "key", "vector", "head"


@dataclass(frozen=True, kw_only=True)
class PromptCell:
    """One reading.

    Args:
        model: what reads; for "poi-mean" what has read the POIs.
        dtype: of its arithmetic.
        level, structure: which prompt of the project; wording 1 is the project's own, others say the same in other
            words.
        limit: tokens of a prompt, where few enough facts fit it.
        liked: places of a user at most, and half as many that were left.
        tokens: that the model writes at most, where the pooling reads them.
        users: so many of the people that are asked.
    """

    world: CityWorld
    model: LanguageModel = field(default_factory=LanguageModel)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    pooling: Pooling = "last"
    level: Level = "user"
    structure: str = "interests"
    wording: int = 1
    limit: int = 160
    liked: int = 8
    tokens: int = 32
    users: int = 1000

    @property
    def prompt(self) -> Prompt:
        other = WORDINGS / self.level / f"{self.structure}-{self.wording}.txt"
        return read_prompt(self.level, self.structure if self.wording == 1 else str(other))

    def config(self, places: Places) -> EncoderConfig:
        return EncoderConfig(model=self.model.source(places), dtype=self.dtype, max_length=PROMPT_LENGTH)

    def plain(self) -> dict[str, Any]:
        """All that the result depends on, and nothing else."""
        unread = {"world", "model"}
        unread |= {"structure", "wording", "limit", "liked", "dtype"} if self.pooling == POI_MEAN else set()
        unread |= set() if self.pooling.startswith("generated") else {"tokens"}
        unread |= set() if self.level == "user" else {"limit", "liked", "users"}
        return {
            "version": VERSION,
            "world": plain(self.world),
            "model": plain(self.model),
            "prompt": None if self.pooling == POI_MEAN else self.prompt.text,
            "asked": {name: value for name, value in to_plain(self).items() if name not in unread},
        }

    @property
    def hash(self) -> str:
        """Sixteen hex digits."""
        text = json.dumps(said(self.plain()), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one reading took.

    Attributes:
        prompts: how many. tokens: of a prompt, the mean; longest: of them. over: share of prompts beyond the limit,
            because the fewest facts are too many for it.
        seconds: of the reading alone, on one thread.
        identity: of the model's weights.
    """

    prompts: int
    tokens: float
    longest: int
    over: float
    seconds: float
    identity: str
    peak_mib: float
    date: str
    machine: str

    @property
    def prompts_per_second(self) -> float:
        return self.prompts / self.seconds


@dataclass(frozen=True)
class Vectors:
    """What one reading brought: the vector of each key, (n, E), and how apt the model's head finds each kind, the prior
    taken off, (n, K); None for a model that says no words."""

    keys: tuple[str, ...]
    vectors_nE: np.ndarray
    head_nK: np.ndarray | None

    def first(self, count: int) -> Vectors:
        """Those of the first keys alone, which are then each other's prior."""
        head_nK = None if self.head_nK is None else self.head_nK[:count] - self.head_nK[:count].mean(axis=0)
        return Vectors(self.keys[:count], self.vectors_nE[:count], head_nK)


class Asked(NamedTuple):
    """Keys, what is asked of each, and its length in tokens (0 where no model is asked)."""

    keys: tuple[str, ...]
    prompts: tuple[str, ...]
    tokens: np.ndarray


def compute_cell(cell: PromptCell, places: Places) -> None:
    """The work of one process of a pool."""
    Store(places).keep(cell, *compute(cell, places))


def compute(cell: PromptCell, places: Places) -> tuple[Result, Vectors]:
    """Read the users of one cell, whose model and world are at hand."""
    asked, reader = asked_of(cell, places), _reader(cell, places)
    prompts = list(dict.fromkeys(asked.prompts))
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    started = time.perf_counter()
    for at, vectors_nE, states_nE in reader.read(prompts):
        found |= {prompts[i]: (v, s) for i, v, s in zip(at, vectors_nE, states_nE, strict=True)}
    seconds = time.perf_counter() - started
    vectors_nE, states_nE = (np.stack([found[prompt][part] for prompt in asked.prompts]) for part in (0, 1))
    result = Result(
        prompts=len(prompts),
        tokens=float(asked.tokens.mean()),
        longest=int(asked.tokens.max()),
        over=float((asked.tokens > cell.limit).mean()) if cell.level == "user" else 0.0,
        seconds=seconds,
        identity=_identity(cell, places),
        peak_mib=peak_mib(),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=machine(),
    )
    verbaliser = _verbaliser(cell.config(places), people_of(cell.world, places).kinds)
    head_nK = verbaliser.scores(states_nE) if verbaliser else None
    return result, Vectors(asked.keys, vectors_nE, head_nK)


def asked_of(cell: PromptCell, places: Places) -> Asked:
    """What is asked in a cell: of each user as much as fits the limit, and the least there is where nothing does."""
    if cell.level == "scenario" or cell.pooling == POI_MEAN:
        found = _questions(cell, cell.liked, places)
        keys = tuple(found) if cell.level == "scenario" else people_of(cell.world, places).users[: cell.users]
        prompts = [found[key].prompt for key in keys]
        lengths = _lengths(cell, prompts, places) if cell.level == "scenario" else np.zeros(len(prompts), np.int64)
        return Asked(keys, tuple(prompts), lengths)
    users = people_of(cell.world, places).users[: cell.users]
    chosen: dict[str, tuple[str, int]] = {}
    liked = cell.liked
    while waiting := [user for user in users if chosen.get(user, ("", cell.limit + 1))[1] > cell.limit]:
        found = _questions(cell, liked, places)
        prompts = [found[user].prompt for user in waiting]
        chosen |= dict(zip(waiting, zip(prompts, _lengths(cell, prompts, places).tolist(), strict=True), strict=True))
        if liked == 1:
            break
        liked //= 2
    return Asked(users, tuple(chosen[u][0] for u in users), np.array([chosen[u][1] for u in users]))


def _questions(cell: PromptCell, liked: int, places: Places) -> dict[str, Question]:
    """Key -> what is asked of it when so many places are told."""
    workspace = Workspace(worlds.folder(cell.world, places))
    means = cell.pooling == POI_MEAN
    wording = Wording(
        prompts={} if means else {cell.level: cell.prompt},
        tell={},
        platform=platform_of(Schema.load(workspace.schema)),
        pois=_pois(cell, places) if means else None,
    )
    usual = FactsConfig()
    told = replace(usual, liked=liked, left=liked // 2, kinds=min(usual.kinds, liked))
    return {q.key: q for q in wording.questions(facts_of(cell.world, told, places), cell.level)}


def _lengths(cell: PromptCell, prompts: list[str], places: Places) -> np.ndarray:
    return np.array([len(ids) for ids in _tokenizer(cell.config(places)).whole(prompts)])


def _reader(cell: PromptCell, places: Places) -> PromptReader:
    if cell.pooling == POI_MEAN:
        return PoiMean(_pois(cell, places))
    return _loaded(cell.pooling, cell.config(places), cell.tokens)


def _pois(cell: PromptCell, places: Places) -> VectorMatrix:
    """The vectors that are averaged, read by the cell's model where it has not read them yet."""
    workspace = Workspace(worlds.folder(cell.world, places))
    texts = tuple(dict.fromkeys(worlds.texts_of_rows(workspace, POI_SPACE)[1]))
    reading = Reading(model=cell.model, space=POI_SPACE, texts=texts)
    if reading.missing(places):
        read(reading, places)
    return matrix_of(workspace, POI_SPACE, cell.model, places)


@lru_cache(maxsize=1)
def _loaded(pooling: Pooling, config: EncoderConfig, tokens: int) -> PromptReader:
    return reader_of(pooling, config, tokens)


@lru_cache(maxsize=1)
def _tokenizer(config: EncoderConfig) -> Any:
    from trainers.language.local import Prompts

    return Prompts(config.folder(), config.max_length)


@lru_cache
def _verbaliser(config: EncoderConfig, kinds: tuple[str, ...]) -> Verbaliser | None:
    """None for a model that says no words."""
    from trainers.language.local import CausalModel, is_causal

    return Verbaliser(kinds, CausalModel(config).directions(kinds)) if is_causal(config) else None


def _identity(cell: PromptCell, places: Places) -> str:
    return model_identity(cell.model.source(places))


@dataclass(frozen=True)
class Store:
    """Readings on disk."""

    places: Places

    def result(self, cell: PromptCell) -> Result | None:
        """What a reading took; None where there is none, or one with other weights than those at hand."""
        path = self.places.cells / f"{cell.hash}.json"
        if not path.is_file():
            return None
        result = from_plain(Result, read_json(path)["result"])
        other = cell.model.is_at_hand(self.places) and result.identity != _identity(cell, self.places)
        return None if other else result

    def vectors(self, cell: PromptCell) -> Vectors | None:
        path = self._vectors(cell)
        if not path.is_file():
            return None
        table = pq.read_table(path)
        head_nK = np.stack(vectors_of(table[HEAD])) if HEAD in table.column_names else None
        return Vectors(tuple(table[KEY].to_pylist()), np.stack(vectors_of(table[VECTOR])), head_nK)

    def has(self, cell: PromptCell) -> bool:
        """Whether nothing is left to read."""
        return self.result(cell) is not None and self._vectors(cell).is_file()

    def keep(self, cell: PromptCell, result: Result, vectors: Vectors) -> None:
        """Vectors first: a cell whose JSON is there is complete."""
        fields = {KEY: pa.array(vectors.keys), VECTOR: vector_array(list(vectors.vectors_nE))}
        if vectors.head_nK is not None:
            fields[HEAD] = vector_array(list(vectors.head_nK))
        with staged(self._vectors(cell)) as file:
            pq.write_table(pa.table(fields), file)
        content = {"cell": cell.plain(), "result": rounded(asdict(result))}
        write_json(self.places.cells / f"{cell.hash}.json", content)

    def _vectors(self, cell: PromptCell) -> Path:
        return self.places.scratch / "prompting" / f"{cell.hash}.parquet"


def once(cells: list[PromptCell]) -> list[PromptCell]:
    """Each cell once, those of one model together, so that it is loaded seldom."""
    found = {cell.hash: cell for cell in cells}
    return sorted(found.values(), key=lambda cell: (plain_hash(cell.model), cell.dtype, cell.pooling, cell.tokens))
