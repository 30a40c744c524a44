"""Two more controls of LLM4MSR on the city: users known by their POIs in place of prompts, and prompts that leak.

The mean over the vectors of the POIs that a user clicked is what prompted knowledge of users has to beat. A leaky
prompt holds a user's whole log, the test part too: the gap between leaky and clean is what such prompts would fake.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.experiments.asked import Leaky, PoiClicks, PromptChoice
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import AskedCity, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.msr_city import CONTROLLED, WHERE
from benchmarks.experiments.run import main
from benchmarks.experiments.vectors import PoiMeans, Vectors
from trainers.models.backbones import BackboneConfig


def experiment(scale: Scale) -> Experiment:
    def cell(backbone: BackboneConfig, asked: PromptChoice, vectors: Vectors | None, seed: int) -> Cell:
        world = AskedCity(config=scale.world(seed).config, prompts=asked)
        return scale.asked_cell(world, backbone, scale.knowledge, prompts=vectors)

    def alone(backbone: BackboneConfig, seed: int) -> Cell:
        return scale.asked_cell(AskedCity(config=scale.world(seed).config), backbone)

    arms: dict[str, Callable[[int], Cell]] = {}
    comparisons = []
    for name in CONTROLLED[:1] if scale.quick else CONTROLLED:
        backbone = BACKBONES[name]
        clean, means, leaky = (f"{name} + {what}" for what in ("LLM4MSR", "means of POIs", "leaky prompts"))
        arms[name] = partial(alone, backbone)
        arms[clean] = partial(cell, backbone, PromptChoice(), None)
        arms[means] = partial(cell, backbone, PoiClicks(), PoiMeans())
        arms[leaky] = partial(cell, backbone, Leaky(), None)
        pairs = ((clean, means), (means, name), (leaky, clean), (leaky, name))
        comparisons += [Comparison(ours=ours, reference=reference, slices=WHERE) for ours, reference in pairs]
    return Experiment(
        name="msr_controls",
        question="Do prompts say more of users than the mean of their POIs, and what would prompts fake that leak?",
        arms=arms,
        seeds=scale.core_seeds[:1] if scale.quick else scale.core_seeds,
        comparisons=tuple(comparisons),
        measures=("ctr_auc", "ctcvr_auc", "ctr_gauc", "ctr_log_loss", "ctcvr_log_loss"),
        resampled=False,
        slices=WHERE,
    )


if __name__ == "__main__":
    main(experiment)
