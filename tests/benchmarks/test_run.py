import json
import shutil
from dataclasses import replace
from functools import partial

import pytest

from benchmarks.experiments import resamples, run, tables, worlds
from benchmarks.experiments.__main__ import SETS
from benchmarks.experiments.analysis import _refuse_mixed
from benchmarks.experiments.cells import Cell, Store
from benchmarks.experiments.city import AskedCity, CityWorld, Scale, unaligned
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import HashedWords, LanguageModel
from feature_repo import columns
from feature_repo.datasets.city import CityConfig
from trainers import recipes
from trainers.recipes import Recipe

TINY = CityConfig(users=60, pois=40, days=14, requests_per_user_day=0.6, candidates=6)


def cell(recipe: Recipe, seed: int) -> Cell:
    return Cell(world=CityWorld(config=TINY), recipe=recipe, vectors=HashedWords(width=16), seed=seed)


LARR = replace(recipes.larr("tiny"), fit=replace(recipes.larr("tiny").fit, epochs=1))
EXPERIMENT = Experiment(
    name="small",
    question="Does it run?",
    arms={"guided": partial(cell, LARR), "not guided": partial(cell, unaligned(LARR))},
    seeds=(0, 1),
    comparisons=(Comparison(ours="guided", reference="not guided", margin=0.5),),
    facts=lambda places: {"a fact": {"seconds": 1.5}},
)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A world, four cells, their resamples and the tables."""
    root = tmp_path_factory.mktemp("experiments")
    options = run.Options(places=Places(scratch=root / "scratch", results=root / "results"), command="a command")
    run.run([EXPERIMENT], options)
    return options


def times(options: run.Options) -> dict[str, int]:
    """When each result was written."""
    return {file.name: file.stat().st_mtime_ns for file in options.places.results.rglob("*") if file.is_file()}


def test_a_table_says_what_its_cells_came_to(options):
    plain = json.loads((options.places.results / "small.json").read_text())
    store = Store(options.places)
    found = [store.result(cell(LARR, seed)).metrics["all"]["ctr_auc"] for seed in (0, 1)]
    row = next(r for r in plain["rows"] if (r["model"], r["metric"], r["slice"]) == ("guided", "ctr_auc", "all"))
    assert row["values"] == found
    assert row["mean"] == pytest.approx(sum(found) / 2, rel=1e-5)
    difference = next(d for d in plain["differences"] if d["metric"] == "ctr_auc")
    other = [store.result(cell(unaligned(LARR), seed)).metrics["all"]["ctr_auc"] for seed in (0, 1)]
    assert difference["absolute"]["mean"] == pytest.approx((sum(found) - sum(other)) / 2, abs=1e-5)
    assert difference["absolute"]["low"] < difference["absolute"]["mean"] < difference["absolute"]["high"]
    assert plain["about"]["seeds"] == [0, 1] and plain["about"]["command"] == "a command"
    assert plain["facts"] == {"a fact": {"seconds": 1.5}}


def test_people_get_a_table_and_a_picture(options):
    text = (options.places.results / "small.md").read_text()
    assert "| guided | not guided | all | CTR AUC |" in text and "`a command`" in text and "seeds 0, 1" in text
    assert (options.places.results / "small.png").read_bytes().startswith(b"\x89PNG")


def test_guidance_is_known_by_its_loss(options):
    store = Store(options.places)
    assert store.result(cell(LARR, 0)).alignment > 0
    assert store.result(cell(unaligned(LARR), 0)).alignment is None


def test_nothing_is_computed_twice(options):
    before = times(options)
    run.run([EXPERIMENT], options)
    assert times(options) == before


def test_a_lost_cell_is_computed_again_and_no_other(options):
    before = times(options)
    lost = cell(LARR, 1)
    result = Store(options.places).result(lost)
    (options.places.cells / f"{lost.hash}.json").unlink()
    run.run([EXPERIMENT], options)
    after = times(options)
    tables_of = {"small.json", "small.md", "small.png"}
    assert {name for name in after if after[name] != before[name]} == {f"{lost.hash}.json", *tables_of}
    assert Store(options.places).result(lost).metrics == result.metrics


def test_replicates_of_earlier_scores_go_with_them(options):
    again, places = cell(LARR, 0), options.places
    before = resamples.path(again, places).read_bytes()
    run.compute_cell(again, places)
    assert not resamples.path(again, places).exists()
    run.resample(again, places)
    assert resamples.path(again, places).read_bytes() == before


def test_weights_of_one_name_and_two_versions_make_no_table(options):
    one = Store(options.places).result(cell(LARR, 0))
    results = [replace(one, language_models={"tuned": {"poi_text": version}}) for version in ("aaaa", "bbbb")]
    with pytest.raises(ValueError, match="poi_text of tuned in version bbbb, others in aaaa"):
        _refuse_mixed(results)


@pytest.mark.parametrize("name", sorted(SETS))
def test_no_experiment_calls_two_models_by_one_name(name):
    """It would be taken for one whose weights changed between cells, and make no table."""
    for experiment in (make(Scale(quick=quick)) for make in SETS[name] for quick in (True, False)):
        models = {}
        for cell in (cell for cells in experiment.cells.values() for cell in cells):
            for space in cell.spaces:
                for model in cell.vectors.models(space):
                    assert models.setdefault((model.label, space), worlds.plain(model)) == worlds.plain(model)


def test_a_table_of_other_seeds_is_another_one(options):
    assert tables.written(EXPERIMENT, options.places) is not None
    assert tables.written(replace(EXPERIMENT, seeds=(0,)), options.places) is None


def test_cells_that_were_computed_elsewhere_are_enough_where_no_users_are_drawn(options, tmp_path):
    shutil.copytree(options.places.cells, tmp_path / "results" / "cells")
    places = Places(scratch=tmp_path / "scratch", results=tmp_path / "results")
    over_seeds = replace(EXPERIMENT, name="over_seeds", resampled=False, facts=None)
    run.run([over_seeds], replace(options, places=places))
    assert not (tmp_path / "scratch").exists(), "no world was prepared and no cell computed"
    plain = json.loads((places.results / "over_seeds.json").read_text())
    difference = next(d for d in plain["differences"] if d["metric"] == "ctr_auc")
    values = difference["values"]
    half = 12.706 * abs(values[0] - values[1]) / 2  # t of one degree of freedom times the standard error of two
    assert difference["absolute"]["high"] - difference["absolute"]["mean"] == pytest.approx(half, rel=1e-3)
    assert over_seeds.fingerprint != EXPERIMENT.fingerprint


def test_a_cell_that_read_other_weights_is_computed_again_with_those_that_were_just_trained(tiny_model, tmp_path):
    usual = Scale(quick=True).pretrained
    tuned = replace(usual, base=LanguageModel(model=str(tiny_model)), world=CityWorld(config=TINY))
    read = Cell(world=CityWorld(config=TINY), recipe=LARR, vectors=tuned, seed=0)
    arms = {"tuned": lambda seed: replace(read, seed=seed)}
    small = Experiment(name="tuned", question="Of which weights?", arms=arms, seeds=(0,))
    options = run.Options(places=Places(scratch=tmp_path / "scratch", results=tmp_path / "results"))
    run.run([small], options)
    own = Store(options.places).result(read)
    assert own is not None
    file = options.places.cells / f"{read.hash}.json"
    elsewhere = {tuned.model: dict.fromkeys(own.language_models[tuned.model], "trained elsewhere")}
    plain = json.loads(file.read_text())
    plain["result"]["language_models"] = elsewhere
    file.write_text(json.dumps(plain))
    shutil.rmtree(options.places.language)
    assert Store(options.places).result(read) is not None, "as good as any while no weights are at hand"
    run.run([replace(small, seeds=(0, 1))], options)
    again = Store(options.places).result(read)
    assert again is not None and again.language_models != elsewhere


def test_a_world_may_hold_what_a_model_is_asked_of_its_users(options):
    recipe = recipes.llm4msr("tiny")
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=1))
    world = AskedCity(config=TINY)

    def asked(seed: int) -> Cell:
        return Cell(world=world, recipe=recipe, vectors=HashedWords(width=16), seed=seed)

    run.run([Experiment(name="asked", question="What is known?", arms={"asked": asked}, seeds=(0,))], options)
    prepared = worlds.load(world, options.places)
    rows, prompts = worlds.texts_of_rows(prepared.workspace, "user_knowledge")
    assert len(set(rows)) == len(set(prompts)) > 20
    known = prepared.test[columns.knowledge("user_knowledge", columns.ROW)].to_numpy()
    assert 0 < (known > 0).mean() < 1  # some have not clicked yet
    spoken = dict(zip(rows.tolist(), prompts, strict=True))
    assert all("this person likes most" in spoken[row] for row in set(known[known > 0].tolist()))
    assert Store(options.places).result(asked(0)) is not None
