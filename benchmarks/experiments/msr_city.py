"""Every backbone on the city, with and without what a language model knows of users and scenarios; and its controls.

LLM4MSR's layers are generated from the states of prompts. Controls of equal size have ids, random vectors, or the
vectors of other users and scenarios in their place. Prompts hold what was known before each week, and nothing later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import AskedCity, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import PromptStates, RandomVectors, Shuffled, Vectors
from feature_repo.datasets.city.world import SCENARIOS
from trainers.models.backbones import BackboneConfig
from trainers.models.llm4msr import KnowledgeUse

CONTROLLED = ("SharedBottom", "PLE")
WHERE = (ALL, "short history", "new POI")


def experiment(scale: Scale) -> Experiment:
    states, usual = PromptStates(), scale.knowledge

    def cell(backbone: BackboneConfig, knowledge: KnowledgeUse.Config | None, vectors: Vectors, seed: int) -> Cell:
        return scale.asked_cell(AskedCity(config=scale.world(seed).config), backbone, knowledge, prompts=vectors)

    def drawn(backbone: BackboneConfig, kind: type[RandomVectors | Shuffled], seed: int) -> Cell:
        return cell(backbone, usual, kind(like=states, seed=seed), seed)

    arms: dict[str, Callable[[int], Cell]] = {}
    comparisons = []
    for name, backbone in BACKBONES.items():
        arms[name] = partial(cell, backbone, None, states)
        arms[f"{name} + LLM4MSR"] = partial(cell, backbone, usual, states)
        comparisons.append(Comparison(ours=f"{name} + LLM4MSR", reference=name, slices=WHERE))
    for name in CONTROLLED:
        backbone = BACKBONES[name]
        others: dict[str, Callable[[int], Cell]] = {
            "ids": partial(cell, backbone, replace(usual, source="ids"), states),
            "random vectors": partial(drawn, backbone, RandomVectors),
            "shuffled vectors": partial(drawn, backbone, Shuffled),
            "scenario level only": partial(cell, backbone, replace(usual, user=None), states),
            "user level only": partial(cell, backbone, replace(usual, scenario=None), states),
        }
        for what, make in others.items():
            arms[f"{name} + {what}"] = make
            comparisons.append(Comparison(ours=f"{name} + LLM4MSR", reference=f"{name} + {what}", slices=WHERE))
    return Experiment(
        name="msr_city",
        question="Does prompted knowledge of users and scenarios help rankers, and is it the knowledge?",
        arms=arms,
        seeds=scale.core_seeds[:1] if scale.quick else scale.core_seeds,
        comparisons=tuple(comparisons),
        measures=("ctr_auc", "ctcvr_auc", "ctr_gauc", "ctr_log_loss", "ctcvr_log_loss"),
        resampled=False,
        slices=(*WHERE, *(f"scenario {name}" for name in SCENARIOS)),
    )


if __name__ == "__main__":
    main(experiment)
