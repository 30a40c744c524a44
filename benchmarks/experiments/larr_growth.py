"""More users and more POIs: quality, time and memory of every stage.

Vectors are hashed words in place of a language model's; how long a language model takes is measured on 2,000 texts. To
run here, a hundredfold of users sends a tenth of the requests each, and rankers train for two epochs.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from benchmarks.experiments import worlds
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import CityWorld, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import main
from benchmarks.experiments.vectors import HashedWords, LanguageModel
from feature_repo.workspace import Workspace
from trainers import recipes
from trainers.knowledge import POI_SPACE
from trainers.language.encoder import TextEncoder
from trainers.recipes import Recipe

TEXTS = 2000
EPOCHS = 2


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Factors on the city's numbers of users, POIs, and requests of each user."""

    users: int = 1
    pois: int = 1
    requests: float = 1.0


SIZES = {
    "x 1": Growth(),
    "users x 10": Growth(users=10),
    "users x 100": Growth(users=100, requests=0.1),
    "POIs x 10": Growth(pois=10),
    "POIs x 100": Growth(pois=100),
}
QUICK_SIZES = ("x 1", "users x 10", "POIs x 10")


def experiment(scale: Scale) -> Experiment:
    texts = 100 if scale.quick else TEXTS
    sizes = {name: SIZES[name] for name in (QUICK_SIZES if scale.quick else SIZES)}

    def world(size: Growth, seed: int) -> CityWorld:
        config = scale.world(seed).config
        grown = replace(
            config,
            users=config.users * size.users,
            pois=config.pois * size.pois,
            requests_per_user_day=config.requests_per_user_day * size.requests,
        )
        return CityWorld(config=grown)

    def cell(size: Growth, recipe: Recipe, seed: int) -> Cell:
        fit = replace(recipe.fit, epochs=EPOCHS)
        return Cell(world=world(size, seed), recipe=replace(recipe, fit=fit), vectors=HashedWords(), seed=seed)

    def facts(places: Places) -> dict[str, dict[str, float]]:
        found = {name: preparing(world(size, scale.seeds[0]), places) for name, size in sizes.items()}
        largest = max(sizes, key=lambda name: sizes[name].pois)
        return {**found, "embedding": embedding(world(sizes[largest], scale.seeds[0]), texts, places)}

    models = {"PLE": recipes.ple(scale.size), "LARR": recipes.larr(scale.size)}
    arms = {
        f"{model}, {name}": lambda seed, size=size, recipe=recipe: cell(size, recipe, seed)
        for name, size in sizes.items()
        for model, recipe in models.items()
    }
    return Experiment(
        name="larr_growth",
        question="What do more users and more POIs do to quality, time and memory?",
        arms=arms,
        seeds=scale.seeds,
        comparisons=tuple(Comparison(ours=f"LARR, {name}", reference=f"PLE, {name}") for name in sizes),
        measures=("ctr_auc", "ctcvr_auc", "ctr_log_loss", "ctcvr_log_loss"),
        facts=facts,
    )


def preparing(world: CityWorld, places: Places) -> dict[str, float]:
    """What it took to prepare a world."""
    note = worlds.note_of(world, places)
    prepared = worlds.load(world, places)
    rows = sum(map(len, (prepared.train, prepared.valid, prepared.test)))
    pull = note.seconds["pull"]
    return {
        "pulled rows": rows,
        "data s": note.seconds["data"],
        "pull s": pull,
        "pulled rows/s": rows / pull,
        "peak MiB": note.peak_mib,
    }


def embedding(world: CityWorld, count: int, places: Places) -> dict[str, float]:
    """The embedded language model on `count` POI texts (or all that there are), with all processors."""
    texts = worlds.texts_of_rows(Workspace(worlds.folder(world, places)), POI_SPACE)[1][:count]
    encoder = TextEncoder(replace(LanguageModel().config(places), threads=os.cpu_count()))
    encoder.encode(texts[:16], POI_SPACE)
    started = time.perf_counter()
    encoder.encode(texts, POI_SPACE)
    seconds = time.perf_counter() - started
    return {"texts": len(texts), "embedding s": seconds, "texts/s": len(texts) / seconds}


if __name__ == "__main__":
    main(experiment)
