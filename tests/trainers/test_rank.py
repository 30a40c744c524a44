from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from trainers import recipes
from trainers.batch import Batch
from trainers.knowledge import VectorMatrix
from trainers.loop import FitConfig
from trainers.rank import Parts, Provenance, Trained, outcomes, probabilities, train
from trainers.recipes import Recipe


@pytest.fixture(scope="module")
def parts(pull: pa.Table, pull_schema: Schema) -> Parts:
    def cut(name: str) -> pa.Table:
        start, end = pull_schema.split.bounds(name)
        times = pull[columns.EVENT_TIMESTAMP]
        return pull.filter(
            pc.and_(pc.greater_equal(times, pa.scalar(start, times.type)), pc.less(times, pa.scalar(end, times.type)))
        )

    return Parts(train=cut("train"), valid=cut("valid"), test=cut("test"))


def recipe_of(make: Callable[[recipes.Size], Recipe]) -> Recipe:
    return replace(make("tiny"), fit=FitConfig(epochs=6, batch_size=128, learning_rate=1e-2, warmup_steps=3))


Training = Callable[..., Trained]


@pytest.fixture(scope="module")
def training(parts: Parts, pull_schema: Schema, matrices: dict[str, VectorMatrix]) -> Training:
    provenance = Provenance(
        service="planted_1", features=("poi_profile:category",), trained_until=pull_schema.split.valid
    )

    def run(recipe: Recipe, seed: int = 0, parts: Parts = parts, schema: Schema = pull_schema) -> Trained:
        return train(parts, schema, matrices, recipe, provenance, seed=seed)

    return run


@pytest.mark.parametrize("make", [recipes.ple_scene_ids, recipes.larr])
def test_who_sees_the_weather_learns_what_it_wants(training: Training, make: Callable[[recipes.Size], Recipe]) -> None:
    with_scene = training(recipe_of(make))
    assert with_scene.report.click.auc is not None and with_scene.report.click.auc > 0.72  # the truth has about 0.76
    assert with_scene.report.order.auc is not None and with_scene.report.order.auc > 0.65


def test_a_choice_out_of_a_list_is_learned_too(training: Training, parts: Parts) -> None:
    """Requests of ten rows of which one, that suits the weather, is chosen: seen as lists, watched by likelihood."""

    def chosen(table: pa.Table) -> pa.Table:
        rows = np.arange(len(table))
        first = [
            rows[(rows // 10 == r) & (table[columns.CLICK].to_numpy() > 0)][:1] for r in range(len(table) // 10 + 1)
        ]
        click = np.isin(rows, np.concatenate(first)).astype(np.int8)
        table = table.set_column(table.column_names.index(columns.CLICK), columns.CLICK, pa.array(click))
        return table.append_column(columns.REQUEST_ID, pa.array([str(row // 10) for row in rows]))

    lists = Parts(train=chosen(parts.train), valid=chosen(parts.valid), test=chosen(parts.test))
    recipe = recipe_of(recipes.larr)
    recipe = replace(
        recipe,
        loss=replace(recipe.loss, lists=True, order=0.0),
        fit=replace(recipe.fit, watch="log_likelihood"),
    )
    trained = training(recipe, parts=lists)
    kept = trained.history.epochs[trained.history.best]
    assert kept.measures["log_likelihood"] > -math.log(10) + 0.4  # what guessing among ten gives, and more
    assert kept.measures["log_likelihood"] == max(epoch.score for epoch in trained.history.epochs)


def test_who_does_not_see_it_cannot(training: Training) -> None:
    without = training(recipe_of(recipes.ple))
    assert without.report.click.auc is not None and without.report.click.auc < 0.7


def test_manifest_says_what_was_trained(training: Training, parts: Parts, pull_schema: Schema) -> None:
    bundle = training(recipe_of(recipes.larr), seed=3).bundle
    manifest = bundle.manifest
    assert (manifest.model, manifest.seed, manifest.dataset) == ("larr", 3, "planted")
    assert manifest.knowledge_versions == {"poi_text": "poi_text-v1", "scene_text": "scene_text-v1"}
    assert set(bundle.matrices) == {"poi_text", "scene_text"}
    assert manifest.trained_until == pull_schema.split.valid
    assert {"weather", "daypart", "last_specialty"} <= set(manifest.scene_fingerprints)
    assert manifest.metrics["click"]["rows"] == len(parts.test)
    assert not bundle.ranker.training


def test_ple_needs_no_knowledge(training: Training) -> None:
    bundle = training(recipe_of(recipes.ple)).bundle
    assert bundle.matrices == {} and bundle.manifest.knowledge_versions == {}
    assert bundle.manifest.scene_fingerprints == {}


def test_one_seed_one_version(training: Training) -> None:
    recipe = replace(recipe_of(recipes.larr), fit=FitConfig(epochs=1, batch_size=256))
    first, second, other = training(recipe, seed=1), training(recipe, seed=1), training(recipe, seed=2)
    assert first.bundle.manifest == second.bundle.manifest
    assert first.bundle.manifest.version != other.bundle.manifest.version


def test_text_vectors_are_inputs_where_wished(
    training: Training, parts: Parts, pull_schema: Schema, matrices: dict[str, VectorMatrix]
) -> None:
    base = recipe_of(recipes.ple)
    features = replace(base.model.features, text_spaces=("poi_text",))
    recipe = replace(base, model=replace(base.model, features=features), fit=FitConfig(epochs=1, batch_size=512))
    bundle = training(recipe).bundle
    assert bundle.manifest.knowledge_versions == {"poi_text": "poi_text-v1"}
    batch = Batch.from_arrow(parts.test, bundle.encoding)
    moved = replace(batch, text_row_BK=batch.text_row_BK.roll(1, 0))
    assert not np.array_equal(probabilities(bundle.ranker, batch)[0], probabilities(bundle.ranker, moved)[0])
    with pytest.raises(ValueError, match=r"wants text vectors of \['poi_text'\]"):
        train(
            parts, pull_schema, {}, recipe, Provenance(service="s", features=(), trained_until=pull_schema.split.valid)
        )


def test_larr_without_vectors_is_refused(parts: Parts, pull_schema: Schema, matrices: dict[str, VectorMatrix]) -> None:
    provenance = Provenance(service="s", features=(), trained_until=pull_schema.split.valid)
    with pytest.raises(ValueError, match=r"wants text vectors of \['poi_text'\]"):
        train(parts, pull_schema, {}, recipes.larr("tiny"), provenance)
    with pytest.raises(ValueError, match="wants vectors of scene values"):
        train(parts, pull_schema, {"poi_text": matrices["poi_text"]}, recipes.larr("tiny"), provenance)


def test_parts_that_overlap_in_time_are_refused(training: Training, parts: Parts) -> None:
    assert isinstance(parts.train, pa.Table)
    late = replace(parts, valid=pa.concat_tables([parts.train.slice(0, 1), parts.valid]))
    with pytest.raises(ValueError, match=r"part train ends .* after valid begins"):
        training(recipes.ple("tiny"), parts=late)
    with pytest.raises(ValueError, match="the test part has no rows"):
        training(recipes.ple("tiny"), parts=replace(parts, test=parts.test.slice(0, 0)))


def test_training_from_files_learns_as_well(training: Training, parts: Parts, tmp_path: Path) -> None:
    assert isinstance(parts.train, pa.Table)
    files = []
    for at, start in enumerate(range(0, len(parts.train), 1000)):
        files.append(tmp_path / f"part-{at}.parquet")
        pq.write_table(parts.train.slice(start, 1000), files[-1])
    trained = training(recipe_of(recipes.ple_scene_ids), parts=replace(parts, train=files))
    assert trained.report.click.auc is not None and trained.report.click.auc > 0.72


def test_probabilities_do_not_depend_on_pieces(training: Training, pull: pa.Table) -> None:
    bundle = training(replace(recipe_of(recipes.larr), fit=FitConfig(epochs=1, batch_size=512))).bundle
    long = pa.concat_tables([pull] * 4)
    click, order = probabilities(bundle.ranker, Batch.from_arrow(long, bundle.encoding))
    assert len(long) > 2 * 8192 and click.dtype == np.float64
    assert np.allclose(click[: len(pull)], click[-len(pull) :], atol=1e-6) and bool((order <= click).all())


def test_the_oracle_is_joined_by_row_id(parts: Parts) -> None:
    rows = parts.test[columns.ROW_ID].to_numpy()
    oracle = pa.table({columns.ROW_ID: rows[::-1], "p_click": rows[::-1] / 1e4, "p_order": rows[::-1] / 1e5})
    known = outcomes(parts.test, oracle)
    assert known.true_click is not None and np.array_equal(known.true_click, rows / 1e4)
    with pytest.raises(ValueError, match="the oracle lacks 1 rows"):
        outcomes(parts.test, oracle.slice(1))


def test_vectors_are_standardised_by_what_training_reads(training: Training) -> None:
    ranker = training(replace(recipe_of(recipes.larr), fit=FitConfig(epochs=1, batch_size=512))).bundle.ranker
    assert ranker.scene is not None and ranker.scene.encoder.vectors is not None
    assert bool(
        (ranker.scene.encoder.vectors.mean_SV.mean(0) - 5.0).abs().max() < 1.0
    )  # the planted vectors centre on 5
    assert ranker.scene.encoder.vectors.mean_SV.dtype == torch.float32


def test_each_user_may_have_borders_of_their_own(training: Training, parts: Parts, pull_schema: Schema) -> None:
    """The first half of the log is one user's, the second another's: each part holds rows of both."""
    log = pa.concat_tables([parts.train, parts.valid, parts.test]).sort_by(columns.EVENT_TIMESTAMP)
    half = len(log) // 2
    at = log.schema.get_field_index(columns.USER_ID)
    log = log.set_column(at, columns.USER_ID, pa.array(["early"] * half + ["late"] * (len(log) - half)))

    def of_both(start: float, end: float) -> pa.Table:
        return pa.concat_tables(
            user.slice(int(start * half), int(end * half) - int(start * half))
            for user in (log.slice(0, half), log.slice(half))
        )

    train_, valid, test = of_both(0, 0.7), of_both(0.7, 0.8), of_both(0.8, 1)
    end = pull_schema.split.end
    by_user = replace(pull_schema, split=replace(pull_schema.split, valid=end, test=end))
    fit = FitConfig(epochs=1, batch_size=128, warmup_steps=1)
    recipe = replace(recipes.ple("tiny"), fit=fit)
    cut = Parts(train=train_, valid=valid, test=test)
    assert training(recipe, parts=cut, schema=by_user).report.click.auc is not None
    with pytest.raises(ValueError, match=r"part train ends .* after valid begins"):
        training(recipe, parts=cut)
    leak = pa.concat_tables([train_, test.slice(len(test) - 1)])  # of a user who has no validation rows
    early = valid.filter(pc.equal(valid[columns.USER_ID], "early"))
    with pytest.raises(ValueError, match=r"part train ends .* after test begins"):
        training(recipe, parts=Parts(train=leak, valid=early, test=test), schema=by_user)
