"""Cells of one scenario and of a new one, from the world to the table, and what the table says of losers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from benchmarks.experiments import msr_cold_scenario, msr_negative_transfer, msr_similarity, run, worlds
from benchmarks.experiments.analysis import Difference
from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.cells import Cell, Store
from benchmarks.experiments.city import AskedCity, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.places import Places
from benchmarks.experiments.popularity import Popularity
from benchmarks.experiments.scenario_rows import NewScenario, OneScenario
from benchmarks.experiments.statistics import Interval
from benchmarks.experiments.vectors import HashedWords
from feature_repo.datasets.city import CityConfig, PlantedScenarios, Variant
from trainers.metrics import auc
from trainers.models.backbones.shared_bottom import SharedBottom

TINY = CityConfig(users=80, pois=40, days=21, requests_per_user_day=0.8, candidates=6)
NEW = "search"
WORLD = msr_cold_scenario.NewScenarioCity(config=TINY, prompts=PromptChoice(scenario="brief"), new=NEW)


def cell(rows, knows: bool, seed: int) -> Cell:
    scale = Scale(quick=True)
    made = scale.asked_cell(WORLD, SharedBottom.Config(), scale.knowledge if knows else None, rows=rows)
    return replace(made, vectors=HashedWords(width=16))


COLD = {
    "popularity": lambda seed: replace(cell(NewScenario(scenario=NEW), False, seed), recipe=Popularity()),
    "cold": partial(cell, NewScenario(scenario=NEW), False),
    "knowing": partial(cell, NewScenario(scenario=NEW), True),
    "warm": partial(cell, NewScenario(scenario=NEW, given=50), False),
    "alone": partial(cell, OneScenario(scenario=NEW), False),
    "joint": partial(cell, None, False),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenarios")
    places = Places(scratch=root / "scratch", results=root / "results")
    experiment = Experiment(
        name="tiny",
        question="Does it run?",
        arms=COLD,
        seeds=(0,),
        comparisons=(Comparison(ours="knowing", reference="popularity"),),
        conclude=lambda differences: [f"There are {len(differences)} differences."],
    )
    run.run([experiment], run.Options(places=places, command="a command"))
    return places


def test_a_cell_is_tested_on_its_own_rows(places):
    prepared = worlds.load(WORLD, places)
    searched = prepared.test["scenario_id"].to_numpy() == NEW
    store = Store(places)
    sizes = {name: store.result(make(0)).metrics["all"]["rows"] for name, make in COLD.items()}
    assert sizes.pop("joint") == len(searched) and set(sizes.values()) == {searched.sum()}
    scores, click = store.scores(COLD["knowing"](0)).click, prepared.test["click"].to_numpy()[searched]
    assert store.result(COLD["knowing"](0)).metrics["all"]["ctr_auc"] == pytest.approx(auc(scores, click), rel=1e-4)


def test_the_world_of_a_new_scenario_knows_its_paragraph_and_no_more(places):
    prepared = worlds.load(WORLD, places)
    searched = prepared.train["scenario_id"].to_numpy() == NEW
    days = prepared.schema.window_days[0]
    assert prepared.train.column(f"scenario_clicks_{days}d").filter(searched).null_count == searched.sum()
    assert prepared.train.column(f"scenario_clicks_{days}d").filter(~searched).null_count < (~searched).sum()
    rows, prompts = worlds.texts_of_rows(prepared.workspace, "scenario_knowledge")
    assert len(set(prompts)) == 6  # one each, at all times
    known = set(prepared.test["scenario_knowledge_row"].to_numpy()[prepared.test["scenario_id"].to_numpy() == NEW])
    spoken = dict(zip(rows.tolist(), prompts, strict=True))
    assert all("people typed what they are hungry for" in spoken[row] for row in known)


def test_popularity_costs_nothing_and_is_compared_like_any_other(places):
    assert Store(places).result(COLD["popularity"](0)).parameters == 0
    text = (places.results / "tiny.md").read_text()
    assert "| knowing | popularity | all | CTR AUC |" in text and "There are 2 differences." in text


def difference(joint: str, scenario: str, verdict: str, mean: float) -> Difference:
    interval = Interval(mean=mean, low=mean - 0.01, high=mean + 0.01, by="seeds")
    return Difference(
        dataset="city",
        slice=f"scenario {scenario}",
        metric="ctr_auc",
        ours=joint,
        reference=f"{scenario} alone",
        values=(mean,),
        absolute=interval,
        relative=interval,
        margin=None,
        verdict=verdict,
    )


def test_losers_are_named():
    differences = [
        difference("PLE", "search", "above", 0.02),
        difference("PLE", "late_night", "below", -0.02),
        difference("STAR", "late_night", "undecided", -0.005),
        difference("STAR", "search", "undecided", 0.005),
    ]
    assert msr_negative_transfer.losers(differences) == [
        "CTR AUC: joint training loses in late_night (PLE); behind, but undecided, in late_night (STAR)."
    ]
    better = msr_negative_transfer.losers(differences[:1])
    assert better == ["CTR AUC: joint training loses in no scenario; behind, but undecided, in no scenario."]


def test_likeness_falls_with_the_planted_spread():
    found = [
        msr_similarity.likeness(replace(TINY, variant=variant))["mean correlation"]
        for variant in (PlantedScenarios(spread=0.0), Variant(), PlantedScenarios(spread=3.0))
    ]
    assert found[0] > 0.98 > found[1] > 0.9 > 0.8 > found[2]


def test_every_joint_ranker_is_compared_in_every_scenario():
    experiment = msr_negative_transfer.experiment(Scale())
    assert len(experiment.comparisons) == 4 * 6 and len(experiment.seeds) == 5
    alone = [make(0) for name, make in experiment.arms.items() if name.endswith(" alone")]
    assert len({c.rows.scenario for c in alone}) == 6 and all(isinstance(c.world, AskedCity) for c in alone)
