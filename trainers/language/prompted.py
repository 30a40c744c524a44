"""Asks a frozen language model about every scenario and every user, and keeps what it says as knowledge.

    log -> facts as of each snapshot -> prompts -> calls of the model, each prompt once -> knowledge/<space>.parquet

There is one prompt for each scenario and each user a snapshot, never one for an impression. A snapshot as of T holds
what was known before T and is available from T on, or from when the model was there. Each vector space has one table a
version, as in `embed`; a row number means one prompt for as long as the version lives.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.workspace import Workspace
from trainers.knowledge import MODEL, POI_SPACE, SCENARIO_KNOWLEDGE, USER_KNOWLEDGE, VectorMatrix, load_matrix
from trainers.language.calls import Call, Calls
from trainers.language.embed import available_us
from trainers.language.encoder import EncoderConfig, Progress
from trainers.language.facts import FactsConfig
from trainers.language.model import ModelError, model_identity
from trainers.language.parquet import hash_of, knowledge_table, serve, vector_array, write_changed
from trainers.language.poolings import POI_MEAN, POOLINGS, PoiMean, Pooling, PromptReader, reader_of
from trainers.language.prompts import LEVELS, Level, Prompt, read_prompt
from trainers.language.snapshots import Question, Wording, read_questions
from trainers.language.tastes import TasteReport, knowledge_report
from trainers.language.telling import tell
from trainers.language.texts import TextError
from trainers.language.verbaliser import Verbaliser, words_of
from trainers.language.wording import platform_of
from trainers.plain import to_plain

SPACE_OF: Mapping[Level, str] = {"scenario": SCENARIO_KNOWLEDGE, "user": USER_KNOWLEDGE}
CHECKPOINT_CALLS = 128
EXAMPLES: Mapping[str, int] = {SCENARIO_KNOWLEDGE: 8, USER_KNOWLEDGE: 3}  # in a report
TELL = "tell"  # the prompts after which a model writes freely


@dataclass(frozen=True, kw_only=True)
class KnowledgeConfig:
    """How a model is asked.

    Args:
        encoder: which causal model, and how it computes; its templates and pooling are not used.
        pooling: which states are the vector: of the "last" token of the prompt; "generated-last" or "generated-mean",
            of what the model writes after it; "poi-mean": no prompt, the mean over the vectors of the POIs that were
            clicked last, which prompts have to beat.
        scenario_prompt, user_prompt: a prompt of `prompts/`, or the path of a file.
        facts: what the prompts are made of, and how often.
        platform: what kind of service this is, as a noun with a capital letter; None: what is known of the data set.
        words: a file of words that may describe a user or a scenario; None: the workspace's own.
        tokens: at most, of what the model writes.
        tell: also let the model write freely, for a person to read.
        beside: leave the version in use, and have this one served beside it.
    """

    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(max_length=1024))
    pooling: Pooling = "last"
    scenario_prompt: str = "contrast"
    user_prompt: str = "interests"
    facts: FactsConfig = field(default_factory=FactsConfig)
    platform: str | None = None
    words: Path | None = None
    tokens: int = 32
    tell: bool = False
    beside: bool = False

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ModelError(f"no pooling {self.pooling!r}; there are {', '.join(POOLINGS)}")
        if self.tokens < 1:
            raise ModelError(f"tokens must be positive, got {self.tokens}")

    def prompts(self) -> dict[Level, Prompt]:
        return {
            "scenario": read_prompt("scenario", self.scenario_prompt),
            "user": read_prompt("user", self.user_prompt),
        }


@dataclass(frozen=True, kw_only=True)
class LevelReport:
    """What one level took: `prompts` of all snapshots, of which `different` texts, of which `computed` just now."""

    space: str
    version: str
    snapshots: int
    prompts: int
    different: int
    computed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """What a person can be shown of one scenario or user."""

    space: str
    key: str
    words: str
    text: str
    told: str | None


@dataclass(frozen=True, kw_only=True)
class KnowledgeReport:
    """
    Attributes:
        examples: from the newest snapshot.
        tastes: only where the truth is known and the words name its categories.
    """

    levels: tuple[LevelReport, ...]
    examples: tuple[Example, ...]
    tastes: TasteReport | None


def ask(
    workspace: Workspace, config: KnowledgeConfig, progress: Progress = lambda what, done, total: None
) -> KnowledgeReport:
    """Bring the prompted knowledge of a workspace up to date with its log. An interrupted run keeps what it computed.

    Raises TextError, PromptError, ModelError or KnowledgeError where something that is needed is missing or wrong.
    """
    asking = _Asking(workspace, config)
    questions = asking.questions(progress)
    answers = [asking.answer(level, questions[level], progress) for level in LEVELS]
    return KnowledgeReport(
        levels=tuple(answer.report for answer in answers),
        examples=tuple(example for answer in answers for example in answer.examples),
        tastes=next((answer.tastes for answer in answers if answer.tastes), None),
    )


class _Answer(NamedTuple):
    """What asking about one level brought, beside its file."""

    report: LevelReport
    examples: list[Example]
    tastes: TasteReport | None


class _Asking:
    """One run: what it reads, and the models that it loads when they are needed."""

    def __init__(self, workspace: Workspace, config: KnowledgeConfig) -> None:
        self._workspace, self._config = workspace, config
        if not workspace.schema.is_file():
            raise TextError(f"{workspace.sources} holds no source tables; build those of this workspace first")
        means = config.pooling == POI_MEAN
        self._pois = load_matrix(workspace.knowledge / f"{POI_SPACE}.parquet") if means else None
        tell_after: dict[Level, Prompt] = {level: read_prompt(level, TELL) for level in LEVELS} if config.tell else {}
        self._wording = Wording(
            prompts={} if means else config.prompts(),
            tell=tell_after,
            platform=config.platform or platform_of(Schema.load(workspace.schema)),
            pois=self._pois,
        )
        self._words = words_of(workspace, config.words)

    def questions(self, progress: Progress) -> dict[Level, list[Question]]:
        model_us = available_us(self._config.encoder)
        return read_questions(self._workspace, self._config.facts, self._wording, model_us, progress)

    def answer(self, level: Level, asked: list[Question], progress: Progress) -> _Answer:
        started = time.perf_counter()
        space, version = SPACE_OF[level], self._version(level)
        if not asked:
            raise TextError(
                f"nothing is known of any {level} at any snapshot; was `embed` run, is the log long enough?"
            )
        verbaliser = self._verbaliser  # its model is gone before the one that reads is there: each may fill the memory
        folder = self._workspace.knowledge / space
        calls = Calls(folder / f"{self._reading(level)}.calls")
        missing = sorted({q.prompt for q in asked if hash_of(q.prompt) not in calls.known})
        if missing:
            _call(self._reader, calls, missing, lambda done, of: progress(space, done, of))
        calls.close()
        table = _table(
            space, version, asked, calls, _words(asked, calls, verbaliser), self._told(asked, folder, progress)
        )
        archive = folder / f"{version}.parquet"
        write_changed(table, archive)
        serve(archive, self._workspace, space, version, beside=self._config.beside)
        newest = [question for question in asked if question.time_us == asked[-1].time_us]
        report = LevelReport(
            space=space,
            version=version,
            snapshots=len({q.time_us for q in asked}),
            prompts=len(asked),
            different=len({q.prompt for q in asked}),
            computed=len(missing),
            seconds=time.perf_counter() - started,
        )
        tastes = self._tastes(newest, calls) if level == "user" else None
        return _Answer(report, _examples(table.slice(len(asked) - len(newest)), space), tastes)

    def _version(self, level: Level) -> str:
        """Twelve hex digits that change with how prompts are read, and with what of the past is told in them, and when:
        under one version, whoever knows a row knows it for good."""
        told = json.dumps(to_plain(self._config.facts), sort_keys=True)
        parts = [self._reading(level), self._wording.platform, told]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def _reading(self, level: Level) -> str:
        """Twelve hex digits that change with the model, the prompt file or the pooling: calls are kept under them."""
        config, encoder = self._config, self._config.encoder
        if self._pois is not None:
            parts = [self._pois.version, config.pooling]
        else:
            parts = [model_identity(encoder.model, encoder.revision, encoder.models), config.pooling]
            parts += [self._wording.prompts[level].digest]
            parts += [] if config.pooling == "last" else [str(config.tokens)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    @cached_property
    def _reader(self) -> PromptReader:
        if self._pois is not None:
            return PoiMean(self._pois)
        return reader_of(self._config.pooling, self._config.encoder, self._config.tokens)

    @cached_property
    def _verbaliser(self) -> Verbaliser | None:
        """None where the vectors are not states of this model, so that its head has nothing to say to them."""
        from trainers.language.local import CausalModel

        if self._pois is not None and not _reads_as(self._config.encoder, self._pois):
            return None
        return Verbaliser(self._words, CausalModel(self._config.encoder).directions(self._words))

    def _told(self, asked: list[Question], folder: Path, progress: Progress) -> list[str | None]:
        if not self._config.tell:
            return [None] * len(asked)
        told = tell(folder, self._config.encoder, [q.tell for q in asked], self._config.tokens, progress)
        return [told[question.tell] for question in asked]

    def _tastes(self, asked: list[Question], calls: Calls) -> TasteReport | None:
        """What the words say of users against what a simulation knows, as of one snapshot."""
        path = self._workspace.source("favourites")
        if self._verbaliser is None or not path.is_file():
            return None
        table = pq.read_table(path)
        truth = dict(zip(table[columns.USER_ID].to_pylist(), table[columns.CATEGORY].to_pylist(), strict=True))
        categories = sorted(set(truth.values()))
        if not set(categories) <= set(self._words):
            return None
        said = self._verbaliser.best_of(_scores(asked, calls, self._verbaliser), categories)
        users = [question.key for question in asked]
        clicked = {question.key: question.clicked_most for question in asked}
        return knowledge_report(dict(zip(users, said, strict=True)), truth, clicked)


def _reads_as(encoder: EncoderConfig, pois: VectorMatrix) -> bool:
    """Whether the vectors of POIs are states from which this causal model would say a word, as `embed` makes them."""
    from trainers.language.local import is_causal

    usual = EncoderConfig(model=encoder.model, revision=encoder.revision, models=encoder.models)
    noted = usual.embedder()
    states = noted.pooling == "last" and not noted.project and is_causal(usual)
    return states and usual.version(POI_SPACE) == pois.version


def _call(reader: PromptReader, calls: Calls, prompts: Sequence[str], report: Callable[[int, int], None]) -> None:
    """Put prompts to a model, and what it says away as soon as there is enough of it, or when something stops us."""
    fresh: dict[str, Call] = {}
    done = 0
    try:
        for at, vectors_nE, asked_nE in reader.read(prompts):
            now = int(datetime.now(UTC).timestamp() * 1e6)
            for i, vector_E, asked_E in zip(at, vectors_nE, asked_nE, strict=True):
                fresh[prompts[i]] = Call(vector_E, asked_E, reader.name, now)
            done += len(at)
            if len(fresh) >= CHECKPOINT_CALLS:
                calls.keep(list(fresh), list(fresh.values()))
                fresh = {}
            report(done, len(prompts))
    finally:
        calls.keep(list(fresh), list(fresh.values()))


def _scores(asked: Sequence[Question], calls: Calls, verbaliser: Verbaliser) -> np.ndarray:
    """float32 (n, W) of the questions of one snapshot, which are each other's prior."""
    return verbaliser.scores(np.stack([calls.known[hash_of(question.prompt)].asked_E for question in asked]))


def _words(asked: Sequence[Question], calls: Calls, verbaliser: Verbaliser | None) -> list[str | None]:
    """The best words for each question; a snapshot knows nothing of later ones, not even what is usual in them."""
    if verbaliser is None:
        return [None] * len(asked)
    snapshots = (list(of) for _, of in groupby(asked, key=lambda question: question.time_us))
    return [words for of in snapshots for words in verbaliser.say(_scores(of, calls, verbaliser))]


def _table(
    space: str,
    version: str,
    asked: Sequence[Question],
    calls: Calls,
    words: Sequence[str | None],
    told: Sequence[str | None],
) -> pa.Table:
    """A knowledge file: a line for each question, from when on it was available."""
    times = pa.array([q.time_us for q in asked], pa.int64()).cast(TIME)
    hashes = [hash_of(q.prompt) for q in asked]
    answers = [calls.known[h] for h in hashes]
    fields: dict[str, pa.Array] = {
        columns.ROW: pa.array([calls.rows[h] for h in hashes], pa.int64()),
        columns.VERSION: pa.array([version] * len(asked), pa.string()),
        columns.TEXT_HASH: pa.array(hashes, pa.string()),
        columns.TEXT: pa.array([q.text for q in asked], pa.string()),
        columns.WORDS: pa.array(words, pa.string()),
        columns.TOLD: pa.array(told, pa.string()),
        columns.PROMPT: pa.array([q.prompt for q in asked], pa.string()),
        columns.VECTOR: vector_array([answer.vector_E for answer in answers]),
        MODEL: pa.array([answer.model for answer in answers], pa.string()),
        columns.COMPUTED_AT: pa.array([answer.computed_us for answer in answers], pa.int64()).cast(TIME),
    }
    return knowledge_table(space, pa.array([q.key for q in asked], pa.string()), times, fields)


def _examples(table: pa.Table, space: str) -> list[Example]:
    """The first lines of a table, as a person would see them."""
    names = (
        columns.PROMPTED[space],
        *(columns.knowledge(space, n) for n in (columns.WORDS, columns.TEXT, columns.TOLD)),
    )
    rows = zip(*(table[name].to_pylist()[: EXAMPLES[space]] for name in names), strict=True)
    return [Example(space=space, key=key, words=words or "", text=text, told=told) for key, words, text, told in rows]
