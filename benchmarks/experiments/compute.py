"""Computing one cell: the parts of its world, its vectors, one training run, one look at the test part."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from benchmarks.experiments import measures, popularity, worlds
from benchmarks.experiments.cells import Cell, Result, Scores
from benchmarks.experiments.places import Places
from benchmarks.experiments.popularity import Popularity
from benchmarks.experiments.scenario_rows import Parts
from benchmarks.experiments.slices import slices
from benchmarks.experiments.worlds import Prepared
from benchmarks.report import machine, peak_mib
from feature_repo import columns
from feature_repo.scenes import features_of
from trainers import rank
from trainers.batch import Batch
from trainers.recipes import Recipe
from trainers.training_set import narrow


def compute(cell: Cell, places: Places) -> tuple[Result, Scores]:
    """Train and test one cell on a prepared world. Deterministic but for what is measured in seconds."""
    world = worlds.load(cell.world, places)
    parts = cell.parts(world)
    if isinstance(cell.recipe, Popularity):
        return _counted(cell.recipe, parts, world)
    matrices = {space: world.matrix(space, cell.vectors, places) for space in cell.spaces}
    features = world.note.features[service_of(cell.recipe)]
    train, valid, test = (seen(part, world, cell, features) for part in parts)
    trained = rank.train(
        rank.Parts(train=train, valid=valid, test=test),
        world.schema,
        matrices,
        cell.recipe,
        rank.Provenance(service=cell.recipe.name, features=features, trained_until=world.schema.split.valid),
        seed=cell.seed,
    )
    ranker, history = trained.bundle.ranker, trained.history
    batch = Batch.from_arrow(test, trained.bundle.encoding)
    click, order = rank.probabilities(ranker, batch)
    asked = measures.request(batch)
    kept = history.epochs[history.best]
    result = Result(
        metrics=_quality(click, order, parts, world),
        validation=dict(kept.measures),
        alignment=kept.losses.get("alignment"),
        epochs=len(history.epochs),
        kept=history.best,
        train_seconds=sum(epoch.seconds for epoch in history.epochs),
        rows_per_second=history.rows_per_second,
        inference_ms=measures.inference_ms(ranker, asked),
        inference_mflops=measures.inference_mflops(ranker, asked),
        parameters=measures.parameters(ranker),
        peak_mib=peak_mib(),
        language_models=_versions(cell, places),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=machine(),
    )
    return result, Scores(click=click, order=order)


def _counted(rule: Popularity, parts: Parts, world: Prepared) -> tuple[Result, Scores]:
    """A rule on the test part; it costs nothing that is worth measuring."""
    click, order = popularity.scores(parts.train, parts.test, rule)
    result = Result(
        metrics=_quality(click, order, parts, world),
        validation={},
        alignment=None,
        epochs=0,
        kept=0,
        train_seconds=0.0,
        rows_per_second=0.0,
        inference_ms=0.0,
        inference_mflops=0.0,
        parameters=0,
        peak_mib=peak_mib(),
        language_models={},
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=machine(),
    )
    return result, Scores(click=click, order=order)


def _quality(click: np.ndarray, order: np.ndarray, parts: Parts, world: Prepared) -> dict[str, dict[str, float | None]]:
    names = [f.name for f in features_of(world.schema)]
    return measures.quality(click, order, rank.outcomes(parts.test), slices(parts.train, parts.test, names))


def service_of(recipe: Recipe) -> str:
    """The model whose service holds what a recipe reads, and no more."""
    if recipe.model.knowledge is not None and recipe.model.knowledge.spaces:
        return "llm4msr"
    if recipe.model.features.text_spaces or recipe.model.reads_scene_vectors:
        return "larr"
    return "ple" if recipe.model.scene is None else "ple_scene_ids"


def seen(part: pa.Table, world: Prepared, cell: Cell, features: tuple[str, ...]) -> pa.Table:
    """The columns of a part that the cell's ranker may see."""
    table = narrow(part, features)
    if cell.slots is None:
        return table
    hidden = [f.name for f in features_of(world.schema) if f.name not in cell.slots]
    dropped = {columns.scene(name) for name in hidden} | {columns.scene_row(name) for name in hidden}
    return table.drop_columns([name for name in table.column_names if name in dropped])


def _versions(cell: Cell, places: Places) -> dict[str, dict[str, str]]:
    """Which vectors of which language models the cell read."""
    found: dict[str, dict[str, str]] = {}
    for space in cell.spaces:
        for model in cell.vectors.models(space):
            found.setdefault(model.label, {})[space] = (model.versions(places) or {})[space]
    return found
