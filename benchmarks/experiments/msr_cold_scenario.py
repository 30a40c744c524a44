"""A new scenario, of which one paragraph is known: ranked without a row of it, with 100 impressions, and with 1,000.

Each number is over runs, which stand in the place of seeds: run r holds out the scenario r % 3 of `NEW` in the city of
seed r // 3, and tests in it alone. The log says nothing of the new scenario before its end (`NewScenarioCity`), so
neither statistics nor prompts count it; what is given back are rows to learn from. What a prompt says of any scenario
is its paragraph. Of LLM4MSR this is the scenario level alone: what is known of users says nothing of a new scenario.

With the most impressions, controls of equal size have ids, random vectors, or the paragraphs of other scenarios in the
place of its paragraph: the slice where knowledge of a scenario should matter, if it does.

An unknown scenario has parts of a ranker to itself (a tower, in PLE experts and a gate), which no row of a known
scenario reaches: they stay what the parts of all scenarios began as. So a tenth of the training rows hides its
scenario, that is its id and its statistics, and keeps its knowledge; one arm shows what happens without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import AskedCity, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.msr_city import CONTROLLED
from benchmarks.experiments.popularity import Popularity
from benchmarks.experiments.run import main
from benchmarks.experiments.scenario_rows import NewScenario
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import PromptStates, RandomVectors, Shuffled, Vectors
from feature_repo import columns
from feature_repo.datasets import city
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.schema import TIME, Dataset
from trainers.models.backbones import BackboneConfig
from trainers.models.llm4msr import KnowledgeUse

NEW = ("lunch_deals", "nearby_map", "weekend_table")
GIVEN, QUICK_GIVEN = (0, 100, 1000), (0, 10, 100)
DRAWN = "SharedBottom, unknown tower as drawn"


@dataclass(frozen=True, kw_only=True)
class NewScenarioCity(AskedCity):
    """The same city, in which the outcomes of one scenario come to be known when the log ends, and not before."""

    new: str

    def choice(self) -> Choice:
        return Choice(
            self.config, lambda progress: unknown_until_the_end(city.build(self.config, progress), self.new), ()
        )


def unknown_until_the_end(dataset: Dataset, scenario: str) -> Dataset:
    """A data set in which no statistic, state or prompt counts a row of this scenario."""
    log = dataset.tables["impressions"]
    at = log.column_names.index(columns.OUTCOME_TIMESTAMP)
    its = pc.equal(log[columns.SCENARIO_ID].cast(pa.string()), scenario)
    late = pc.if_else(its, pa.scalar(dataset.schema.split.end, TIME), log[columns.OUTCOME_TIMESTAMP])
    changed = log.set_column(at, columns.OUTCOME_TIMESTAMP, late)
    return replace(dataset, tables={**dataset.tables, "impressions": changed})


def experiment(scale: Scale) -> Experiment:
    states, level = PromptStates(), replace(scale.knowledge, user=None)

    def cell(
        backbone: BackboneConfig,
        knowledge: KnowledgeUse.Config | None,
        rows: Callable[[str], NewScenario],
        run: int,
        *,
        prompts: Vectors = states,
    ) -> Cell:
        new, seed = NEW[run % len(NEW)], run // len(NEW)
        world = NewScenarioCity(config=scale.world(seed).config, prompts=PromptChoice(scenario="brief"), new=new)
        return scale.asked_cell(world, backbone, knowledge, prompts=prompts, rows=rows(new))

    def drawn(backbone: BackboneConfig, kind: type[RandomVectors | Shuffled], given: int, run: int) -> Cell:
        return cell(backbone, level, partial(_given, given), run, prompts=kind(like=states, seed=run))

    def popular(run: int) -> Cell:
        return replace(cell(BACKBONES["SharedBottom"], None, partial(_given, 0), run), recipe=Popularity())

    def as_drawn(new: str) -> NewScenario:
        return NewScenario(scenario=new, unknown=0.0)

    arms: dict[str, Callable[[int], Cell]] = {
        "popularity": popular,
        DRAWN: partial(cell, BACKBONES["SharedBottom"], None, as_drawn),
    }
    comparisons = [Comparison(ours="SharedBottom, 0", reference=DRAWN)]
    names, amounts = (CONTROLLED[:1], QUICK_GIVEN) if scale.quick else (CONTROLLED, GIVEN)
    for given in amounts:
        for name in names:
            alone, knowing = f"{name}, {given:,}", f"{name} + scenario level, {given:,}"
            arms[alone] = partial(cell, BACKBONES[name], None, partial(_given, given))
            arms[knowing] = partial(cell, BACKBONES[name], level, partial(_given, given))
            pairs = dict.fromkeys([(knowing, alone), (knowing, f"SharedBottom, {given:,}"), (knowing, "popularity")])
            comparisons += [Comparison(ours=ours, reference=reference) for ours, reference in pairs]
        comparisons.append(Comparison(ours=f"SharedBottom, {given:,}", reference="popularity"))
    most = amounts[-1]
    for name in names:
        backbone = BACKBONES[name]
        controls: dict[str, Callable[[int], Cell]] = {
            "ids": partial(cell, backbone, replace(level, source="ids"), partial(_given, most)),
            "random vectors": partial(drawn, backbone, RandomVectors, most),
            "shuffled vectors": partial(drawn, backbone, Shuffled, most),
        }
        for what, make in controls.items():
            control = f"{name} + {what}, {most:,}"
            arms[control] = make
            comparisons.append(Comparison(ours=f"{name} + scenario level, {most:,}", reference=control))
    return Experiment(
        name="msr_cold_scenario",
        question="How well is a scenario ranked of which one paragraph is known, and how soon do impressions help?",
        arms=arms,
        seeds=(0,) if scale.quick else tuple(range(len(NEW) * len(scale.seeds))),
        comparisons=tuple(comparisons),
        measures=("ctr_auc", "ctcvr_auc", "ctr_gauc", "ctr_log_loss", "ctcvr_log_loss"),
        resampled=False,
        slices=(ALL, *(f"scenario {name}" for name in NEW)),
    )


def _given(count: int, new: str) -> NewScenario:
    return NewScenario(scenario=new, given=count)


if __name__ == "__main__":
    main(experiment)
