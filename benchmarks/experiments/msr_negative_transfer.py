"""Training on all scenarios together against training on each alone: who loses by company.

Alone is a shared-bottom network on the rows of one scenario, which then has one tower, in smaller batches, so that it
takes as many steps. Both sides read the same features, so statistics hold what people did in all scenarios: what is
compared is joint learning, not joint counting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.experiments.analysis import Difference
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import AskedCity, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.scenario_rows import OneScenario
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.tables import NAMES
from feature_repo.datasets.city.world import SCENARIOS
from trainers.models.backbones import BackboneConfig

JOINT = ("SharedBottom", "MMoE", "PLE", "STAR")
# Of the city's rows, about.
SHARES = {
    "home_feed": 0.38,
    "search": 0.25,
    "nearby_map": 0.20,
    "lunch_deals": 0.07,
    "late_night": 0.05,
    "weekend_table": 0.05,
}


def experiment(scale: Scale) -> Experiment:
    def joint(backbone: BackboneConfig, seed: int) -> Cell:
        return scale.asked_cell(AskedCity(config=scale.world(seed).config), backbone)

    def alone(scenario: str, seed: int) -> Cell:
        world = AskedCity(config=scale.world(seed).config)
        cell = scale.asked_cell(world, BACKBONES["SharedBottom"], rows=OneScenario(scenario=scenario))
        fit = cell.recipe.fit
        batch_size = max(1, round(fit.batch_size * SHARES[scenario]))
        return replace(cell, recipe=replace(cell.recipe, fit=replace(fit, batch_size=batch_size)))

    arms: dict[str, Callable[[int], Cell]] = {name: partial(joint, BACKBONES[name]) for name in JOINT}
    arms |= {_alone(scenario): partial(alone, scenario) for scenario in SCENARIOS}
    return Experiment(
        name="msr_negative_transfer",
        question="Does training on all scenarios together help each of them, and which ones lose? "
        "What is trained alone is tested in its own scenario, so only slices compare it with the others.",
        arms=arms,
        seeds=scale.core_seeds[:1] if scale.quick else scale.core_seeds,
        comparisons=tuple(
            Comparison(ours=name, reference=_alone(scenario), slices=(f"scenario {scenario}",))
            for scenario in SCENARIOS
            for name in JOINT
        ),
        measures=("ctr_auc", "ctcvr_auc", "ctr_gauc", "ctr_log_loss", "ctcvr_log_loss"),
        resampled=False,
        slices=(ALL, *(f"scenario {scenario}" for scenario in SCENARIOS)),
        conclude=losers,
    )


def losers(differences: Sequence[Difference]) -> list[str]:
    """A line for each measure that names every scenario in which joint training is behind, decided or not."""
    lines = []
    for metric in dict.fromkeys(d.metric for d in differences):
        behind = [d for d in differences if d.metric == metric and d.absolute.mean < 0]
        lost = [_named(d) for d in behind if d.verdict == "below"]
        open_ = [_named(d) for d in behind if d.verdict != "below"]
        told = f"joint training loses in {_listed(lost)}; behind, but undecided, in {_listed(open_)}"
        lines.append(f"{NAMES[metric]}: {told}.")
    return lines


def _named(difference: Difference) -> str:
    return f"{difference.slice.removeprefix('scenario ')} ({difference.ours})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no scenario"


def _alone(scenario: str) -> str:
    return f"{scenario} alone"


if __name__ == "__main__":
    main(experiment)
