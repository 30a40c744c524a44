"""A cell: one recipe on one world with one kind of vectors, trained once, tested once, and kept by what it is made of.

    <results>/cells/<hash>.json       the cell as plain data and its `Result`
    <scratch>/scores/<hash>.parquet   p(click) and p(order) of the test rows, which paired bootstraps need

The hash is that of the cell's plain data (what is None left out) and `VERSION`, so a cell is found again exactly while
it means the same.
Scores are written first, each file in one step: a cell whose JSON is there is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.experiments.places import Places
from benchmarks.experiments.popularity import Popularity
from benchmarks.experiments.scenario_rows import Parts, Rows
from benchmarks.experiments.vectors import Vectors
from benchmarks.experiments.worlds import Prepared, World, plain
from feature_repo import columns
from trainers.bundle import spaces_of
from trainers.plain import from_plain, to_plain
from trainers.recipes import Recipe

# Raise it by hand with any change of worlds, training or metrics that changes results under the same configuration.
VERSION = 2
DIGITS = 6  # significant, of the numbers in a cell's file


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run and its test.

    Args:
        recipe: or a rule that learns nothing but counts.
        vectors: of every space that the recipe reads.
        seed: of the initial weights, the order of rows and dropout.
        slots: the scene features that the ranker sees, by name; None: all of the world.
        rows: of the world's parts that count; None: all.
    """

    world: World
    recipe: Recipe | Popularity
    vectors: Vectors
    seed: int
    slots: tuple[str, ...] | None = None
    rows: Rows | None = None

    @property
    def spaces(self) -> tuple[str, ...]:
        """The vector spaces that the recipe reads."""
        return () if isinstance(self.recipe, Popularity) else spaces_of(self.recipe.model)

    def parts(self, world: Prepared) -> Parts:
        """The rows that the cell learns from, chooses by and is tested on, of its world."""
        parts = Parts(world.train, world.valid, world.test)
        return parts if self.rows is None else self.rows.of(parts, self.seed)

    def plain(self) -> dict[str, Any]:
        """All that the result depends on; vectors and prompts only where the recipe reads any."""
        asked = self.world.asked() if set(self.spaces) & set(columns.PROMPTED) else None
        return {
            "version": VERSION,
            "world": plain(self.world),
            "recipe": to_plain(self.recipe),
            "vectors": plain(self.vectors) if self.spaces else None,
            "seed": self.seed,
            "slots": to_plain(self.slots),
            "rows": to_plain(self.rows),
            "prompts": asked and asked.digests,
        }

    @property
    def hash(self) -> str:
        """Sixteen hex digits."""
        text = json.dumps(said(self.plain()), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def said(plain: Any) -> Any:
    """Plain data without entries of None: an option that was added, and is not used, makes no other cell."""
    if isinstance(plain, dict):
        return {name: said(value) for name, value in plain.items() if value is not None}
    return [said(value) for value in plain] if isinstance(plain, list | tuple) else plain


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one cell came to.

    Attributes:
        metrics: slice -> measure of `measures.MEASURES` (and rows, clicks, orders) -> value; None where a slice cannot
            tell it.
        validation: the measures of the kept epoch, by which recipes are chosen.
        alignment: mean alignment loss of the kept epoch in training; None without guidance.
        epochs: trained; kept: which one's weights, from 0.
        train_seconds: of the steps alone, on one thread; with the rows that passed a second.
        inference_ms: median time of scoring 200 candidates of one request on one thread.
        inference_mflops: of the same, in matrix products.
        parameters: trained ones. peak_mib: largest memory of the process.
        language_models: model -> space -> version of the vectors that were read.
    """

    metrics: Mapping[str, Mapping[str, float | None]]
    validation: Mapping[str, float]
    alignment: float | None
    epochs: int
    kept: int
    train_seconds: float
    rows_per_second: float
    inference_ms: float
    inference_mflops: float
    parameters: int
    peak_mib: float
    language_models: Mapping[str, Mapping[str, str]]
    date: str
    machine: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Probabilities of the cell's test rows in the order of the world's test part, float32 (n,) each."""

    click: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Store:
    """Results and scores of cells on disk."""

    places: Places

    def result(self, cell: Cell) -> Result | None:
        """What a cell came to; None for one that was not computed, or from other weights of a language model than those
        at hand."""
        path = self._result(cell)
        if not path.is_file():
            return None
        result = from_plain(Result, read_json(path)["result"])
        return result if self._of_these_weights(cell, result) else None

    def scores(self, cell: Cell) -> Scores | None:
        path = self._scores(cell)
        if not path.is_file():
            return None
        table = pq.read_table(path)
        return Scores(click=table["click"].to_numpy(), order=table["order"].to_numpy())

    def has(self, cell: Cell, *, scores: bool) -> bool:
        """Whether nothing is left to compute for a cell, its scores included where they are wanted."""
        return self.result(cell) is not None and (not scores or self._scores(cell).is_file())

    def keep(self, cell: Cell, result: Result, scores: Scores) -> None:
        table = pa.table({"click": scores.click.astype(np.float32), "order": scores.order.astype(np.float32)})
        with staged(self._scores(cell)) as file:
            pq.write_table(table, file)
        write_json(self._result(cell), {"cell": cell.plain(), "result": rounded(to_plain(result))})

    def _of_these_weights(self, cell: Cell, result: Result) -> bool:
        for space in cell.spaces:
            for model in cell.vectors.models(space):
                at_hand = model.versions(self.places)
                read = result.language_models.get(model.label, {}).get(space)
                if at_hand is not None and read is not None and at_hand[space] != read:
                    return False
        return True

    def _result(self, cell: Cell) -> Path:
        return self.places.cells / f"{cell.hash}.json"

    def _scores(self, cell: Cell) -> Path:
        return self.places.scores / f"{cell.hash}.parquet"


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """What is written to the path that this yields becomes `path` at the end, or, after a failure, nothing does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Plain data, for programs and for eyes; there is the whole file or the old one."""
    with staged(path) as file:
        file.write_text(json.dumps(content, indent=1, default=str) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def rounded(value: Any) -> Any:
    """Plain data with floats at `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
