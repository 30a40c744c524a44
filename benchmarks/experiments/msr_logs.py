"""Five backbones on public logs, with and without what a language model knows of users and scenarios.

kuairand          a feed of short videos, its tabs are the scenarios; the last day is tested
movielens_users   films, bands of age are the scenarios; the last fifth of each user's ratings is tested
movielens_time    the same people, cut by time: many who are tested rated nothing, or little, in training

No prompt holds an event of a test part. Of most people MovieLens has one sitting, so besides the snapshot of every four
weeks everybody is asked about after so many ratings (`OWN`). A seed is of the weights alone: people, requests and cut
are the same for all seeds, so intervals over users hold the rest, and those of single scenarios, which are over seeds,
describe and decide nothing. In `movielens_users` a model has learnt from ratings that others gave later than a tested
one. KuaiRand is whole; of MovieLens some people, drawn once: `MOVIELENS_USERS` of 6,040.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.experiments import scenario_wise, worlds
from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.larr_kuairand import KuaiRandWorld
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.worlds import World
from feature_repo import columns
from feature_repo.datasets import kuairand, movielens
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.movielens import MovieLensConfig
from trainers.knowledge import MISSING_ROW
from trainers.language.facts import FactsConfig
from trainers.models.backbones import BackboneConfig
from trainers.models.llm4msr import KnowledgeUse

NAMES = ("SharedBottom", "PLE", "STAR", "SASRec", "LightGCN")
WHERE = (ALL, "short history", "new POI")
OWN = (10, 40, 160)
USER_FRACTIONS = (0.7, 0.1, 0.2)
DAILY = FactsConfig(every_days=1, test_part=False)
SITTINGS = FactsConfig(every_days=28, own=OWN, test_part=False)
MOVIELENS_USERS = 800
QUICK_USERS = {"kuairand": 60, "movielens": 15}


@dataclass(frozen=True, kw_only=True)
class AskedKuaiRand(KuaiRandWorld):
    """The log, or some of its users, with a snapshot of everybody a day."""

    def asked(self) -> PromptChoice:
        return PromptChoice(facts=DAILY)


@dataclass(frozen=True, kw_only=True)
class MovieLensWorld:
    """MovieLens-1M, or some of its users.

    Args:
        user_fractions: of each user's ratings; None: the log is cut by time.
    """

    users: int | None = None
    user_fractions: tuple[float, float, float] | None = None

    @property
    def seed(self) -> int:
        return 0

    @property
    def name(self) -> str:
        return "movielens-1m"

    def choice(self) -> Choice:
        source = scenario_wise.wheel(Places())
        config = MovieLensConfig(source=source, users=self.users, user_fractions=self.user_fractions)
        return Choice(config, lambda progress: movielens.load(config), (source,))

    def asked(self) -> PromptChoice:
        return PromptChoice(facts=SITTINGS)


def kuairand_tabs(scale: Scale) -> Experiment:
    world = AskedKuaiRand(users=QUICK_USERS["kuairand"] if scale.quick else None)
    tabs = tuple(f"tab_{number}" for number in kuairand.KuaiRandConfig.tabs)
    return _experiment("msr_kuairand", "on a feed of short videos", world, tabs, scale)


def movielens_users(scale: Scale) -> Experiment:
    world = MovieLensWorld(users=_people(scale), user_fractions=USER_FRACTIONS)
    return _experiment("msr_movielens_users", "on everybody's last films", world, tuple(movielens.SCENARIOS), scale)


def movielens_time(scale: Scale) -> Experiment:
    world = MovieLensWorld(users=_people(scale))
    return _experiment("msr_movielens_time", "on films of later people", world, tuple(movielens.SCENARIOS), scale)


def _people(scale: Scale) -> int:
    return QUICK_USERS["movielens"] if scale.quick else MOVIELENS_USERS


EXPERIMENTS = (kuairand_tabs, movielens_users, movielens_time)


def _experiment(name: str, where: str, world: World, scenarios: tuple[str, ...], scale: Scale) -> Experiment:
    def cell(backbone: BackboneConfig, knowledge: KnowledgeUse.Config | None, seed: int) -> Cell:
        return scale.asked_cell(world, backbone, knowledge, seed=seed)

    arms: dict[str, Callable[[int], Cell]] = {}
    for backbone in NAMES:
        arms[backbone] = partial(cell, BACKBONES[backbone], None)
        arms[f"{backbone} + LLM4MSR"] = partial(cell, BACKBONES[backbone], scale.knowledge)
    slices = (*WHERE, *(f"scenario {scenario}" for scenario in scenarios))
    return Experiment(
        name=name,
        question=f"Does prompted knowledge of users and scenarios help rankers {where}?",
        arms=arms,
        seeds=scale.core_seeds[:1] if scale.quick else scale.core_seeds,
        comparisons=tuple(Comparison(ours=f"{b} + LLM4MSR", reference=b, slices=slices) for b in NAMES),
        measures=("ctr_auc", "ctcvr_auc", "ctr_gauc", "ctr_log_loss", "ctcvr_log_loss"),
        slices=slices,
        facts=partial(_told, world),
    )


def _told(world: World, places: Places) -> dict[str, dict[str, float]]:
    """Of each level, prompts and how many differ, and the share of rows that have a snapshot before them."""
    prepared = worlds.load(world, places)
    found = {}
    for space in columns.PROMPTED:
        prompts = worlds.texts_of_rows(prepared.workspace, space)[1]
        row = columns.knowledge(space, columns.ROW)
        found[space] = {"prompts": float(len(prompts)), "different": float(len(set(prompts)))}
        for name, part in (("training rows with one", prepared.train), ("test rows with one", prepared.test)):
            found[space][name] = float(np.mean(part[row].fill_null(MISSING_ROW).to_numpy() != MISSING_ROW))
    return found


if __name__ == "__main__":
    main(*EXPERIMENTS)
