"""What LLM4MSR adds to its backbone in cities whose scenarios want the same, or more and more different things.

How alike scenarios are is planted (`PlantedScenarios`), and measured in the true probabilities. Users are known by the
mean over their POIs' vectors: a model would have to be asked anew about every user of every planted city.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.experiments import worlds
from benchmarks.experiments.asked import PoiClicks
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import AskedCity, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.msr_city import CONTROLLED
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import PoiMeans
from feature_repo.datasets import city
from feature_repo.datasets.city import CityConfig, PlantedScenarios, behaviour, moments, people
from feature_repo.datasets.city.behaviour import City, State
from feature_repo.datasets.city.world import SCENARIOS
from trainers.metrics import auc
from trainers.models.backbones import BackboneConfig
from trainers.rank import outcomes

ALIKE = {"copies": PlantedScenarios(spread=0.0), "as they are": None, "far apart": PlantedScenarios(spread=3.0)}
PEOPLE = 300  # whose requests tell how alike scenarios are


def experiment(scale: Scale) -> Experiment:
    def world(alike: str, seed: int) -> AskedCity:
        return AskedCity(config=scale.world(seed, ALIKE[alike]).config, prompts=PoiClicks())

    def cell(backbone: BackboneConfig, knows: bool, alike: str, seed: int) -> Cell:
        return scale.asked_cell(world(alike, seed), backbone, scale.knowledge if knows else None, prompts=PoiMeans())

    def facts(places: Places) -> dict[str, dict[str, float]]:
        found = {}
        for alike in ALIKE:
            of_seed = world(alike, scale.seeds[0])
            found[alike] = {**likeness(of_seed.config), "best attainable CTR AUC": attainable(of_seed, places)}
        return found

    arms: dict[str, Callable[[int], Cell]] = {}
    comparisons = []
    for alike in ALIKE:
        for name in CONTROLLED[:1] if scale.quick else CONTROLLED:
            alone, knowing = f"{name}, {alike}", f"{name} + LLM4MSR, {alike}"
            arms[alone] = partial(cell, BACKBONES[name], False, alike)
            arms[knowing] = partial(cell, BACKBONES[name], True, alike)
            comparisons.append(Comparison(ours=knowing, reference=alone))
    return Experiment(
        name="msr_similarity",
        question="Does knowledge of scenarios help more where scenarios are alike, or where they differ?",
        arms=arms,
        seeds=scale.seeds,
        comparisons=tuple(comparisons),
        measures=("ctr_auc", "ctcvr_auc", "ctr_gauc", "ctr_log_loss", "ctcvr_log_loss"),
        resampled=False,
        slices=(ALL, *(f"scenario {name}" for name in SCENARIOS)),
        facts=facts,
    )


def likeness(config: CityConfig) -> dict[str, float]:
    """Correlations of the true click probabilities of two scenarios, all else being equal: mean and least of all pairs.

    People, moments and places are drawn alike for all variants of a city, places evenly.
    """
    plan = city.prepare(replace(config, users=PEOPLE))
    rng = np.random.default_rng(config.seed)
    crowd = people.draw(PEOPLE, config.requests_per_user_day, plan.tables, rng)
    asked = moments.draw(crowd, config.start, config.days, rng)
    slate = rng.integers(len(plan.venues), size=(len(asked), config.candidates))
    want = behaviour.wanted(plan.tables, asked, crowd.weather_sense[asked.user])
    there = City(tables=plan.tables, venues=plan.venues, people=crowd)
    nothing_yet = State.empty(len(asked))
    clicks = [
        there.respond(replace(asked, scenario=np.full(len(asked), name)), nothing_yet, slate, want).p_click.ravel()
        for name in SCENARIOS
    ]
    pairs = np.corrcoef(clicks)[np.triu_indices(len(clicks), 1)]
    return {"mean correlation": float(pairs.mean()), "least correlation": float(pairs.min())}


def attainable(world: AskedCity, places: Places) -> float:
    """The click AUC of the true probabilities on the test part."""
    prepared = worlds.load(world, places)
    truth = outcomes(prepared.test, prepared.oracle)
    assert truth.true_click is not None
    area = auc(truth.true_click, truth.click)
    assert area is not None
    return area


if __name__ == "__main__":
    main(experiment)
