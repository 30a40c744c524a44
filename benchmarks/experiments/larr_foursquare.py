"""Another domain: where in New York does somebody check in next, out of all food venues?

Against what needs no learning and is hard to beat: people go where they went before, at the same time of the day, and
where they are new, to what is popular nearby. Baselines and rankers are asked about the same check-ins. Everything was
chosen on the validation part (each baseline's variant even for each slice and measure), the test part is the month
after it. Rankers order what `check_ins.pairs` finds; a venue that it does not find counts as not hit.

People are the same for every seed, which is of the draws and the weights: intervals over users hold the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rich.markdown import Markdown

from benchmarks.experiments import pool, run, tables
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.check_ins.analysis import analyse
from benchmarks.experiments.check_ins.cells import Store, compute_cell
from benchmarks.experiments.check_ins.log import MEASURES, NEW, NEW_AMONG_ALL, SLICES, VISITED
from benchmarks.experiments.check_ins.pairs import Retrieval
from benchmarks.experiments.check_ins.rules import NEARBY_DAYPART, OWN, OWN_DAYPART, OWN_NEARBY
from benchmarks.experiments.check_ins.world import CheckInWorld, is_prepared, prepare
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import Options, console
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import LanguageModel, RandomVectors, Vectors
from trainers import recipes
from trainers.loop import FitConfig
from trainers.losses import LossConfig
from trainers.models.backbones.ple import Ple
from trainers.models.embedding import FeatureEmbedding
from trainers.recipes import Recipe

PLE, IDS, RANDOM, LARR = "PLE", "PLE + scene ids", "PLE + random vectors", "LARR"
HABITS = (OWN, OWN_DAYPART, OWN_NEARBY)
RULES = (*HABITS, NEARBY_DAYPART)
QUICK = Retrieval(size=40, drawn=10)


def sparse(recipe: Recipe) -> Recipe:
    """A recipe for few check-ins of many venues: ids are narrow and seldom trusted, the click is one choice of a list.

    Chosen on the validation part, for PLE first.
    """
    features = FeatureEmbedding.Config(
        width=4,
        product_width=16,
        text_spaces=recipe.model.features.text_spaces,
        text_width=8,
        unknown_rate=0.5,
        deviation=0.02,
        dropout=0.3,
    )
    scene = recipe.model.scene
    if scene is not None:
        scene = replace(scene, encoder=replace(scene.encoder, width=32, feed_forward=64, output=16))
    backbone = Ple.Config(expert_widths=(64, 32), tower_widths=(32,), dropout=0.3)
    fit = FitConfig(epochs=4, batch_size=2048, learning_rate=2e-3, table_decay=3.0, watch="log_likelihood")
    return replace(
        recipe,
        model=replace(recipe.model, features=features, scene=scene, backbone=backbone),
        loss=LossConfig(order=0.0, lists=True),
        fit=fit,
    )


def experiment(scale: Scale) -> Experiment:
    def cell(recipe: Recipe, vectors: Vectors, seed: int) -> Cell:
        world = CheckInWorld(retrieval=QUICK, every=40) if scale.quick else CheckInWorld()
        fit = replace(recipe.fit, epochs=1) if scale.quick else recipe.fit
        return Cell(world=world, recipe=replace(recipe, fit=fit), vectors=vectors, seed=seed)

    def random(seed: int) -> Cell:
        return cell(larr, RandomVectors(like=untuned, seed=seed), seed)

    untuned, larr = LanguageModel(), sparse(recipes.larr())
    rankers: dict[str, Callable[[int], Cell]] = {
        PLE: partial(cell, sparse(recipes.ple()), untuned),
        IDS: partial(cell, sparse(recipes.ple_scene_ids()), untuned),
        RANDOM: random,
        LARR: partial(cell, larr, untuned),
    }
    return Experiment(
        name="larr_foursquare",
        question="Does LARR know where people go better than their habits, and than what is popular nearby?",
        arms=rankers,
        seeds=scale.seeds,
        comparisons=(
            # A habit has no opinion of venues where the user has never been.
            *(Comparison(ours=LARR, reference=name, slices=(ALL, VISITED)) for name in HABITS),
            Comparison(ours=LARR, reference=NEARBY_DAYPART, slices=(ALL, NEW, NEW_AMONG_ALL)),
            *(Comparison(ours=LARR, reference=name, slices=SLICES) for name in (PLE, IDS, RANDOM)),
        ),
        measures=MEASURES,
        compared=MEASURES,
        slices=SLICES,
    )


def main(scale: Scale, options: Options) -> None:
    """Compute what is not there yet, then write and show the table."""
    made, places, store = experiment(scale), options.places, Store(options.places)
    if options.seeds:
        made = replace(made, seeds=options.seeds)
    cells = [cell for of_arm in made.cells.values() for cell in of_arm]
    world = cells[0].world
    assert isinstance(world, CheckInWorld)
    text = tables.written(made, places) if all(map(store.result, cells)) else None
    if text is None:
        if not is_prepared(world, places):
            pool.each(partial(prepare, places=places), [world], "worlds", workers=1, fresh=True, console=console)
        missing = [cell for cell in cells if not (store.result(cell) and store.ranks(cell))]
        run.embed(missing, options)
        pool.each(partial(compute_cell, places=places), missing, "cells", workers=options.workers, console=console)
        text = tables.write(made, analyse(made, RULES, store), run.about(made, options), places)
    console.print(Markdown(tables.brief(text)))
    console.print(f"[green]✓[/] {places.results / made.name}.md, .json, .png\n", highlight=False)


if __name__ == "__main__":
    main(*run.arguments(__doc__, None))
