"""From a training set to a bundle: fit the encoding, train by a recipe, test once.

Nothing here knows Feast or a workspace: parts of a pull come in as Arrow tables (or, for training, as files), so a test
or a notebook trains exactly as the command line does.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.scenes import features_of
from trainers.batch import Batch
from trainers.batches import Batches, InMemory, Streamed, fit_encoding, whole_lists
from trainers.bundle import Bundle, Manifest, build_ranker, spaces_of
from trainers.encoding import Encoding
from trainers.knowledge import VectorMatrix
from trainers.loop import History, Progress, fit
from trainers.losses import ranking_loss
from trainers.metrics import Outcomes, Report, evaluate
from trainers.models.ranker import Ranker
from trainers.plain import to_plain
from trainers.recipes import Recipe

RUNTIME = ("torch", "safetensors", "pyarrow", "numpy")
CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A training set, cut by time.

    Args:
        train: the rows to learn from (history and train), as a table, or as Parquet files where memory is short.
        oracle: row ids with the true probabilities `p_click` and `p_order`, for simulated worlds.
    """

    train: pa.Table | Sequence[Path]
    valid: pa.Table
    test: pa.Table
    oracle: pa.Table | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the parts came from: the service, its feature references, and the moment that training rows end at."""

    service: str
    features: tuple[str, ...]
    trained_until: datetime


@dataclass(frozen=True)
class Trained:
    """A bundle, and how it came to be."""

    bundle: Bundle
    history: History
    report: Report


def train(
    parts: Parts,
    schema: Schema,
    matrices: Mapping[str, VectorMatrix],
    recipe: Recipe,
    provenance: Provenance,
    *,
    seed: int = 0,
    progress: Progress = lambda done, planned, note: None,
) -> Trained:
    """Train one ranker.

    Args:
        matrices: vector spaces at hand; the bundle takes those that the recipe reads.
        seed: of the initial weights, the order of rows and dropout.
    Raises:
        ValueError: parts overlap in time, or the recipe reads a vector space or scene features that are not there.
        TrainingError: training broke down.
    """
    _check_order(parts, schema.split.by_user)
    encoding, source = _source(parts.train, schema, lists=recipe.loss.lists)
    used = {space: matrices[space] for space in spaces_of(recipe.model) if space in matrices}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ranker = build_ranker(recipe.model, encoding, used)
    ranker.fit_vectors(source.sample())
    valid = Batch.from_arrow(parts.valid, encoding)
    valid_outcomes = outcomes(parts.valid)

    def measure() -> dict[str, float]:
        measures = _measures(evaluate(*probabilities(ranker, valid), valid_outcomes))
        if recipe.loss.lists:
            measures["log_likelihood"] = -_loss_of(ranker, valid, recipe)
        return measures

    history = fit(
        ranker,
        lambda batch: ranking_loss(ranker(batch), batch, recipe.loss),
        source,
        measure,
        recipe.fit,
        seed=seed,
        progress=progress,
    )
    test = Batch.from_arrow(parts.test, encoding)
    report = evaluate(*probabilities(ranker, test), outcomes(parts.test, parts.oracle))
    manifest = Manifest(
        model=recipe.name,
        service=provenance.service,
        features=provenance.features,
        scene_fingerprints=_fingerprints(encoding, schema) if recipe.model.scene is not None else {},
        knowledge_versions={space: vectors.version for space, vectors in used.items()},
        dataset=schema.dataset,
        trained_until=provenance.trained_until,
        seed=seed,
        recipe=recipe,
        metrics=to_plain(report),
        runtime={"python": platform.python_version(), **{name: version(name) for name in RUNTIME}},
    )
    return Trained(Bundle.of(manifest, encoding, schema, ranker, used), history, report)


def probabilities(ranker: Ranker, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """p(click) and p(click and order) of all rows, float64 (B,) each, computed in pieces."""
    rows = torch.arange(len(batch))
    with torch.inference_mode():
        scores = [ranker(batch.rows(rows[at : at + CHUNK_ROWS])) for at in range(0, len(batch), CHUNK_ROWS)]
        click = torch.cat([s.p_click_B for s in scores]).double().numpy()
        order = torch.cat([s.p_order_B for s in scores]).double().numpy()
    return click, order


def _loss_of(ranker: Ranker, batch: Batch, recipe: Recipe) -> float:
    """The click's loss on a whole part, its requests taken together."""
    assert batch.request_B is not None
    order = torch.argsort(batch.request_B, stable=True)
    total, clicks = 0.0, 0.0
    with torch.inference_mode():
        for piece in whole_lists(order, batch.request_B, CHUNK_ROWS):
            part = batch.rows(piece)
            assert part.click_B is not None
            here = float(part.click_B.sum())
            total += here * float(ranking_loss(ranker(part), part, recipe.loss).parts["click"])
            clicks += here
    return total / max(clicks, 1.0)


def outcomes(table: pa.Table, oracle: pa.Table | None = None) -> Outcomes:
    """What metrics need of a part. Raises ValueError for a row that the oracle does not know."""
    true: dict[str, np.ndarray] = {}
    if oracle is not None:
        at = pc.index_in(table[columns.ROW_ID], value_set=oracle[columns.ROW_ID].combine_chunks())
        if at.null_count:
            raise ValueError(f"the oracle lacks {at.null_count} rows of this part; build it with the same data set")
        true = {name: oracle[name].take(at).to_numpy() for name in ("p_click", "p_order")}
    return Outcomes(
        click=table[columns.CLICK].to_numpy(),
        order=table[columns.ORDER].to_numpy(),
        user=table[columns.USER_ID].to_numpy(),
        scenario=table[columns.SCENARIO_ID].to_numpy(),
        true_click=true.get("p_click"),
        true_order=true.get("p_order"),
    )


def _source(train: pa.Table | Sequence[Path], schema: Schema, lists: bool) -> tuple[Encoding, Batches]:
    if isinstance(train, pa.Table):
        encoding = Encoding.fit(train, schema)
        return encoding, InMemory(Batch.from_arrow(train, encoding), lists=lists)
    encoding = fit_encoding(train, schema)
    return encoding, Streamed(tuple(train), encoding, lists=lists)


def _check_order(parts: Parts, by_user: bool) -> None:
    """Training rows before validation rows before test rows, by event time; `by_user`: among the rows of each user.

    Raises ValueError."""
    known = {"valid": parts.valid, "test": parts.test}
    if isinstance(parts.train, pa.Table):
        known = {"train": parts.train, **known}
    else:
        times = [pq.read_table(path, columns=[columns.USER_ID, columns.EVENT_TIMESTAMP]) for path in parts.train]
        known = {"train": pa.concat_tables(times), **known}
    for name, table in known.items():
        if not len(table):
            raise ValueError(f"the {name} part has no rows; widen the time range of the pull")
    for before, after in combinations(known, 2):
        late = _first_overlap(known[before], known[after], [columns.USER_ID] if by_user else [])
        if late is not None:
            raise ValueError(
                f"part {before} ends {late['end']}, after {after} begins ({late['start']}); "
                "parts follow each other in time, or a ranker would be tested on what it has seen"
            )


def _first_overlap(before: pa.Table, after: pa.Table, keys: list[str]) -> dict[str, Any] | None:
    """The end of one part and the start of the next, of the first key of which the end is not before the start."""
    time = columns.EVENT_TIMESTAMP
    ends = before.group_by(keys).aggregate([(time, "max")]).rename_columns([*keys, "end"])
    starts = after.group_by(keys).aggregate([(time, "min")]).rename_columns([*keys, "start"])
    both = ends.join(starts, keys, join_type="inner") if keys else ends.append_column("start", starts["start"])
    late = both.filter(pc.greater_equal(both["end"], both["start"]))
    return late.slice(0, 1).to_pylist()[0] if len(late) else None


def _measures(report: Report) -> dict[str, float]:
    """The numbers of `FitConfig.watch`; AUCs that the part cannot tell are left out."""
    areas = {"click_auc": report.click.auc, "order_auc": report.order.auc}
    known = {name: area for name, area in areas.items() if area is not None}
    if known:
        known["auc"] = sum(known.values()) / len(known)
    known["log_likelihood"] = -report.click.log_loss - report.order.log_loss
    return known


def _fingerprints(encoding: Encoding, schema: Schema) -> dict[str, str]:
    return {f.name: f.fingerprint() for f in features_of(schema) if f.name in encoding.scene_features}
