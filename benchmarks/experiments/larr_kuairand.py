"""Another domain: a feed of short videos, whose moments are the hour, the weekday, and what was watched last.

KuaiRand has no words of its own, only types and numbered tags, so little can be hoped of reading them. People and
requests are the same for every seed, which is of the weights alone: intervals over users hold the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale, reading_pois
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import LanguageModel, RandomVectors, Vectors
from feature_repo.datasets.choose import Choice, DatasetName, Options, choose
from trainers import recipes
from trainers.recipes import Recipe

QUICK_USERS = 1500


@dataclass(frozen=True, kw_only=True)
class KuaiRandWorld:
    """The log below `SCENERANK_DATA`, or some of its users."""

    users: int | None = None

    @property
    def seed(self) -> int:
        return 0

    @property
    def name(self) -> str:
        return "kuairand"

    def choice(self) -> Choice:
        return choose(DatasetName.KUAIRAND, Options(users=self.users))

    def asked(self) -> PromptChoice | None:
        return None


def experiment(scale: Scale) -> Experiment:
    world = KuaiRandWorld(users=QUICK_USERS if scale.quick else None)
    untuned = LanguageModel()

    def cell(recipe: Recipe, vectors: Vectors, seed: int) -> Cell:
        return Cell(world=world, recipe=recipe, vectors=vectors, seed=seed)

    def random(seed: int) -> Cell:
        return cell(larr, RandomVectors(like=untuned, seed=seed), seed)

    larr, ids = recipes.larr(scale.size), recipes.ple_scene_ids(scale.size)
    where = (ALL, "frequent scene", "untold", "new POI")
    references = ("PLE", "PLE + scene ids", "PLE + scene ids + POI text", "PLE + random vectors")
    return Experiment(
        name="larr_kuairand",
        question="Does the moment help on a log that has hardly any words, and do words help?",
        arms={
            "PLE": partial(cell, recipes.ple(scale.size), untuned),
            "PLE + scene ids": partial(cell, ids, untuned),
            "PLE + scene ids + POI text": partial(cell, reading_pois(ids, True), untuned),
            "PLE + random vectors": random,
            "LARR": partial(cell, larr, untuned),
            "LARR, tuned on the city": partial(cell, larr, scale.tuned),
        },
        seeds=scale.seeds,
        comparisons=(
            *(Comparison(ours="LARR", reference=reference, slices=where) for reference in references),
            Comparison(ours="LARR, tuned on the city", reference="LARR", slices=where),
        ),
        slices=where,
    )


if __name__ == "__main__":
    main(experiment)
