import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.experiments import cells, worlds
from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import Cell, Result, Scores, Store
from benchmarks.experiments.city import AskedCity, CityWorld, Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.scenario_rows import NewScenario, OneScenario
from benchmarks.experiments.vectors import HashedWords, Knowing, LanguageModel, RandomVectors, Shuffled
from feature_repo.datasets.city import CityConfig, PlantedScenarios, Variant
from trainers import recipes

RESULT = Result(
    metrics={"all": {"rows": 3, "ctr_auc": 0.123456789, "ctcvr_auc": None}},
    validation={"auc": 0.5},
    alignment=None,
    epochs=2,
    kept=1,
    train_seconds=1.5,
    rows_per_second=100.0,
    inference_ms=0.5,
    inference_mflops=9.0,
    parameters=10,
    peak_mib=100.0,
    language_models={},
    date="2012-05-07",
    machine="a machine",
)
SCORES = Scores(click=np.array([0.1, 0.2, 0.3]), order=np.array([0.01, 0.02, 0.03]))
CELL = Cell(world=CityWorld(), recipe=recipes.larr(), vectors=LanguageModel(), seed=0)


@pytest.fixture
def store(tmp_path):
    return Store(Places(scratch=tmp_path / "scratch", results=tmp_path / "results"))


def test_the_same_cell_has_the_same_hash_however_it_was_made():
    again = Cell(world=CityWorld(config=CityConfig()), recipe=recipes.larr(), vectors=LanguageModel(), seed=0)
    assert again.hash == CELL.hash == Cell(**{f: getattr(CELL, f) for f in CELL.__dataclass_fields__}).hash
    assert len(CELL.hash) == 16


@pytest.mark.parametrize(
    "other",
    [
        replace(CELL, seed=1),
        replace(CELL, slots=("weather",)),
        replace(CELL, world=CityWorld(config=CityConfig(seed=1))),
        replace(CELL, world=CityWorld(config=CityConfig(variant=Variant(semantics=False)))),
        replace(CELL, vectors=LanguageModel(model="minilm")),
        replace(CELL, vectors=RandomVectors(like=LanguageModel())),
        replace(CELL, vectors=HashedWords()),
        replace(CELL, world=CityWorld(config=CityConfig(variant=PlantedScenarios(spread=1.0)))),
        replace(CELL, rows=OneScenario(scenario="search")),
        replace(CELL, rows=NewScenario(scenario="search")),
        replace(CELL, recipe=replace(CELL.recipe, loss=replace(CELL.recipe.loss, alignment=0.2))),
    ],
)
def test_another_cell_has_another_hash(other):
    assert other.hash != CELL.hash


def test_worlds_and_cells_that_are_kept_are_found_again():
    """Another name means that all that was computed is computed again: change it only on purpose."""
    assert worlds.plain_hash(CityWorld())[:16] == "949fbd80d58a2df8"
    assert worlds.plain_hash(AskedCity())[:16] == "42e05bc542bfbf3d"
    assert Scale().larr(0).hash == "960a5c93bd6e5f6d"


def test_an_edited_prompt_makes_other_cells_of_the_rankers_that_read_it(tmp_path):
    prompt = tmp_path / "mine.txt"

    def hashes(text: str) -> tuple[str, str]:
        prompt.write_text(text)
        world = AskedCity(prompts=PromptChoice(user=str(prompt)))
        return tuple(
            Scale().asked_cell(world, BACKBONES["PLE"], knowledge).hash for knowledge in (Scale().knowledge, None)
        )

    before, after = hashes('{likes} is "'), hashes('{likes}: "')
    assert before[0] != after[0] and before[1] == after[1]


def test_an_option_that_says_nothing_makes_no_other_cell():
    plain = {"a": 1, "b": None, "c": [{"d": None, "e": 0}], "f": {"g": None}}
    assert cells.said(plain) == {"a": 1, "c": [{"e": 0}], "f": {}}


def test_kinds_of_vectors_differ_within_others_too():
    kinds = (RandomVectors(like=LanguageModel()), Shuffled(like=LanguageModel()), LanguageModel())
    made = [replace(CELL, vectors=Knowing(texts=LanguageModel(), prompts=kind)).hash for kind in kinds]
    assert len(set(made)) == 3


def test_a_new_version_is_another_cell(monkeypatch):
    before = CELL.hash
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    assert CELL.hash != before


def test_vectors_that_a_recipe_does_not_read_do_not_count():
    cell = replace(CELL, recipe=recipes.ple_scene_ids())
    assert cell.hash == replace(cell, vectors=HashedWords()).hash


def test_experiments_share_cells_of_the_same_meaning():
    assert Scale().larr(3).hash == Scale().cell(3, recipes.larr(), vectors=Scale().tuned).hash


def test_what_is_kept_comes_back(store):
    assert store.result(CELL) is None and store.scores(CELL) is None
    store.keep(CELL, RESULT, SCORES)
    assert store.result(CELL) == replace(RESULT, metrics={"all": {"rows": 3, "ctr_auc": 0.123457, "ctcvr_auc": None}})
    np.testing.assert_array_equal(store.scores(CELL).click, SCORES.click.astype(np.float32))
    assert json.loads((store.places.cells / f"{CELL.hash}.json").read_text())["cell"] == json.loads(
        json.dumps(CELL.plain(), default=str)
    )


def test_scores_that_are_gone_are_wanted_only_where_they_are_needed(store):
    store.keep(CELL, RESULT, SCORES)
    assert store.has(CELL, scores=True)
    for file in store.places.scores.iterdir():
        file.unlink()
    assert store.has(CELL, scores=False) and not store.has(CELL, scores=True)


def test_an_interrupted_write_leaves_no_cell(store, monkeypatch):
    monkeypatch.setattr(cells, "rounded", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.keep(CELL, RESULT, SCORES)
    assert store.result(CELL) is None
    assert not [f for f in store.places.results.rglob("*") if f.is_file()]


def test_a_cell_of_other_weights_is_not_the_one_that_is_asked_for(store, tiny_model):
    path = store.places.scratch / "tiny"
    model = LanguageModel(model=str(path))
    cell = replace(CELL, vectors=model)
    store.keep(cell, replace(RESULT, language_models={str(path): {"scene_text": "a version"}}), SCORES)
    assert store.result(cell) is not None  # the model is not at hand: nothing speaks against the cell
    path.symlink_to(tiny_model)
    assert store.result(cell) is None
    version = model.versions(store.places)["scene_text"]
    store.keep(cell, replace(RESULT, language_models={str(path): {"scene_text": version}}), SCORES)
    assert store.result(cell) is not None
