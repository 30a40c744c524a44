"""Worlds: a data set of one seed from its raw log to the point-in-time pull, by the same stages that production runs.

A world's workspace holds keys, times and rows of every text, but no vectors of a language model: each cell brings the
kind of vectors that it wants (`vectors`). Feast's definitions belong to one workspace a process, so each world is
prepared in a process of its own; those that compute cells read files and never see Feast.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.places import REPOSITORY, Places
from benchmarks.experiments.vectors import SPACES, Vectors
from benchmarks.report import peak_mib
from feature_repo import columns
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.workspace import Workspace, activate
from trainers.knowledge import VectorMatrix, load_matrix
from trainers.language.parquet import hash_of, knowledge_table, write_changed
from trainers.language.prompted import SPACE_OF
from trainers.plain import from_plain, to_plain
from trainers.training_set import read_part

NOTE = "world.json"
NO_MODEL = "none"
# What a prepared world was made by; a change prepares it again.
MADE_BY = (
    "feature_repo",
    "trainers/training_set.py",
    "trainers/language/texts.py",
    "trainers/language/facts.py",
    "trainers/language/wording.py",
    "trainers/language/snapshots.py",
    "trainers/language/prompts",
    "trainers/language/prompts.py",
    "benchmarks/experiments/asked.py",
    "benchmarks/experiments/worlds.py",
)
Progress = Callable[[str, int, int], None]  # what, done, total


class World(Protocol):
    """A data set and a seed; a frozen dataclass whose fields say all that its rows depend on."""

    @property
    def seed(self) -> int: ...

    @property
    def name(self) -> str:
        """What tables call the data set."""
        ...

    def choice(self) -> Choice:
        """The loader that `scenerank data` would run."""
        ...

    def asked(self) -> PromptChoice | None:
        """How a language model is asked about its users and scenarios; None: it is not."""
        ...


@dataclass(frozen=True, kw_only=True)
class Note:
    """What cells need to know of a prepared world.

    Attributes:
        made_by: hash of the code that prepared it.
        pulled: the folder of the pull, below the workspace.
        features: of each model's service, `view:feature`.
        seconds: of each stage, 0 for one that had nothing to do. peak_mib: largest memory of the process.
    """

    made_by: str
    pulled: str
    features: Mapping[str, tuple[str, ...]]
    seconds: Mapping[str, float]
    peak_mib: float


@dataclass(frozen=True)
class Prepared:
    """A world as cells read it: the parts of the widest pull, and the texts behind every row of its matrices."""

    workspace: Workspace
    schema: Schema
    note: Note
    train: pa.Table
    valid: pa.Table
    test: pa.Table
    oracle: pa.Table | None

    def matrix(self, space: str, vectors: Vectors, places: Places) -> VectorMatrix:
        """One vector space with these vectors in place of none."""
        return matrix_of(self.workspace, space, vectors, places)


def plain_hash(value: object) -> str:
    """SHA-256 of a dataclass's name and plain data, those of its fields' included."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, default=str).encode()).hexdigest()


def plain(value: object) -> dict[str, Any]:
    """A dataclass as plain data under its name, so that two classes with the same fields differ."""
    return {type(value).__name__: to_plain(value)}


def folder(world: World, places: Places) -> Path:
    return places.worlds / plain_hash(world)[:16]


def is_prepared(world: World, places: Places) -> bool:
    path = folder(world, places) / NOTE
    return path.is_file() and json.loads(path.read_text())["made_by"] == made_by()


def note_of(world: World, places: Places) -> Note:
    """The note of a prepared world."""
    return from_plain(Note, json.loads((folder(world, places) / NOTE).read_text()))


def prepare(world: World, places: Places, report: Progress = lambda what, done, total: None) -> None:
    """Make the workspace of a world. Binds this process to it: call it once a process."""
    workspace = activate(folder(world, places))
    (workspace.root / NOTE).unlink(missing_ok=True)
    from serving import stages

    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        stages.data(workspace, world.choice(), report)
    for space in SPACES:
        write_rows(workspace, space)
    if asked := world.asked():
        write_prompts(workspace, asked)
    with timed(seconds, "apply"):
        store = stages.apply(workspace)
    with timed(seconds, "pull"):
        pulled = stages.training_set(workspace, store, report)
    from feature_repo import services

    models = ("ple", "ple_scene_ids", "larr", *(("llm4msr",) if world.asked() else ()))
    features = {model: services.feature_references(getattr(services, model)) for model in models}
    note = Note(
        made_by=made_by(),
        pulled=str(pulled.relative_to(workspace.root)),
        features=features,
        seconds=seconds,
        peak_mib=peak_mib(),
    )
    staged = workspace.root / f".{NOTE}"
    staged.write_text(json.dumps(asdict(note), indent=1))
    os.replace(staged, workspace.root / NOTE)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def write_rows(workspace: Workspace, space: str) -> None:
    """The knowledge file that `scenerank embed` would write, with vectors of one zero."""
    from trainers.language.texts import collect

    texts = collect(workspace, space)
    clocks = (texts[name].cast(pa.int64()) for name in (columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP))
    later = pc.max_element_wise(*clocks).cast(TIME)
    fields = {
        columns.ROW: pa.array(np.arange(1, len(texts) + 1)),
        columns.TEXT_HASH: pa.array([hash_of(text) for text in texts[columns.TEXT].to_pylist()]),
        columns.TEXT: texts[columns.TEXT],
    }
    _write(workspace, space, texts[columns.KNOWLEDGE[space]], later, fields)


def write_prompts(workspace: Workspace, asked: PromptChoice) -> None:
    """The knowledge files that `scenerank knowledge` would write, with vectors of one zero."""
    for level, of_level in asked.questions(workspace).items():
        space = SPACE_OF[level]
        prompts = [question.prompt for question in of_level]
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts), start=1)}
        times = pa.array([question.time_us for question in of_level], pa.int64()).cast(TIME)
        nothing = pa.nulls(len(prompts), pa.string())
        fields = {
            columns.ROW: pa.array([row_of[prompt] for prompt in prompts]),
            columns.TEXT_HASH: pa.array([hash_of(prompt) for prompt in prompts]),
            columns.TEXT: pa.array([question.text for question in of_level]),
            columns.WORDS: nothing,
            columns.TOLD: nothing,
            columns.PROMPT: pa.array(prompts),
        }
        _write(workspace, space, pa.array([question.key for question in of_level]), times, fields)


def _write(workspace: Workspace, space: str, keys: pa.Array, times: pa.Array, fields: Mapping[str, pa.Array]) -> None:
    """A knowledge file whose vectors are one zero each."""
    nothing = {
        columns.VERSION: pa.array([NO_MODEL] * len(keys)),
        columns.VECTOR: pa.array([[0.0]] * len(keys), pa.list_(pa.float32())),
    }
    table = knowledge_table(space, keys, times, {**fields, **nothing})
    write_changed(table, workspace.knowledge / f"{space}.parquet")


def texts_of_rows(workspace: Workspace, space: str) -> tuple[np.ndarray, list[str]]:
    """The rows of one vector space and the text, or the prompt, behind each."""
    read = columns.PROMPT if space in columns.PROMPTED else columns.TEXT
    row, text = columns.knowledge(space, columns.ROW), columns.knowledge(space, read)
    table = pq.read_table(workspace.knowledge / f"{space}.parquet", columns=[row, text])
    return table[row].to_numpy(), table[text].to_pylist()


def matrix_of(workspace: Workspace, space: str, vectors: Vectors, places: Places) -> VectorMatrix:
    """The matrix of one vector space of a prepared workspace, with these vectors in place of none."""
    rows, texts = texts_of_rows(workspace, space)
    made = vectors.of(space, texts, places)
    matrix = np.zeros((int(rows.max()) + 1, made.shape[1]), dtype=np.float32)
    matrix[rows] = made
    known = load_matrix(workspace.knowledge / f"{space}.parquet")
    return VectorMatrix(
        space=space,
        version=plain_hash(vectors)[:12],
        matrix=matrix,
        keys=known.keys,
        rows=known.rows,
        available_at=known.available_at,
    )


def load(world: World, places: Places) -> Prepared:
    """A prepared world. Raises FileNotFoundError for one that is not."""
    return _load(folder(world, places))


@lru_cache(maxsize=1)
def _load(root: Path) -> Prepared:
    workspace = Workspace(root)
    note = from_plain(Note, json.loads((root / NOTE).read_text()))
    schema = Schema.load(workspace.schema)
    pulled = root / note.pulled
    parts = {part: read_part(workspace, pulled, part) for part in ("train", "valid", "test")}
    oracle = workspace.source("oracle")
    return Prepared(workspace, schema, note, **parts, oracle=pq.read_table(oracle) if oracle.is_file() else None)


@lru_cache
def made_by(*others: str) -> str:
    """A hash over the code and tables that prepare worlds, and over other files that some worlds need."""
    digest = hashlib.sha256()
    for place in (*MADE_BY, *others):
        root = REPOSITORY / place
        files = [root] if root.is_file() else sorted(f for f in root.rglob("*") if f.suffix in (".py", ".csv", ".txt"))
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
