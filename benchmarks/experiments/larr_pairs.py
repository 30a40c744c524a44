"""What contrastive tuning learns from: each kind of pairs left out, and the readings of symmetric scoring.

Six models are tuned, the reference among them; to be done within an hour, each for half of the usual steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import LanguageModel
from trainers import recipes
from trainers.language.contrast import ContrastConfig
from trainers.language.contrastive import Scoring
from trainers.language.pairs import KINDS, Kind

REFERENCE = "all pairs, projectors"


def experiment(scale: Scale) -> Experiment:
    whole = scale.contrast()
    usual = replace(whole, tune=replace(whole.tune, steps=whole.tune.steps // 2))

    def without(kind: Kind) -> ContrastConfig:
        return replace(usual, draws=replace(usual.draws, weights={**usual.draws.weights, kind: 0.0}))

    def reading(model: LanguageModel, seed: int) -> Cell:
        return scale.cell(seed, recipes.larr(scale.size), vectors=model)

    stages = {f"without {kind.replace('_', '-')} pairs": without(kind) for kind in KINDS}
    stages["directions, user-POI asymmetric"] = replace(usual, scoring=Scoring(reading="directions"))
    stages["directions, all symmetric"] = replace(usual, scoring=Scoring(reading="directions", symmetric=KINDS))
    if scale.quick:
        stages = {name: stages[name] for name in (*list(stages)[:1], *list(stages)[-1:])}
    models = {
        name: scale.contrasted(name, scale.pretrained, stage) for name, stage in {REFERENCE: usual, **stages}.items()
    }
    where = (ALL, "untold")
    return Experiment(
        name="larr_pairs",
        question="Which pairs of texts does contrastive tuning need, and does it matter how they are scored?",
        arms={name: partial(reading, model) for name, model in models.items()},
        seeds=scale.seeds,
        comparisons=tuple(Comparison(ours=name, reference=REFERENCE, slices=where) for name in stages),
        slices=where,
    )


if __name__ == "__main__":
    main(experiment)
