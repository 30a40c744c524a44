"""Both papers on a log of your own, or on a public set that you have: what `scenerank data` can read, is compared.

python -m benchmarks.experiments.own_log --mapping FILE --source FOLDER

--mapping FILE   a mapping file (docs/mapping.md), or the name of one that is shipped: kuaisar, amazon, ali_ccp
--source FOLDER  of the data; default: the mapping file's own
--users N        keep so many users, drawn at random; default: all
--every DAYS     between two looks of the language model at each user; default: 7

A log whose mapping invents its times has no moments: arms that read the moment are left out. A seed is of the weights
alone, people and requests are the same for all: intervals over users hold the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import arguments, run
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import Knowing, LanguageModel, PromptStates, Vectors
from feature_repo.datasets.choose import Choice, Options, mapped
from feature_repo.datasets.mapping import MappingConfig, files, shipped
from feature_repo.datasets.mapping_file import read_mapping
from trainers import recipes
from trainers.language.facts import FactsConfig
from trainers.recipes import Recipe, Size

QUICK_USERS = 500
ARMS: dict[str, Callable[[Size], Recipe]] = {"PLE": recipes.ple, "LLM4MSR": recipes.llm4msr}
ARMS_OF_MOMENTS: dict[str, Callable[[Size], Recipe]] = {
    "PLE": recipes.ple,
    "PLE + scene ids": recipes.ple_scene_ids,
    "LARR": recipes.larr,
    "LLM4MSR": recipes.llm4msr,
    "LARR + LLM4MSR": recipes.larr_llm4msr,
}
# Ours -> what each is compared with, where it is there.
REFERENCES = {
    "LARR": ("PLE", "PLE + scene ids"),
    "LLM4MSR": ("PLE",),
    "LARR + LLM4MSR": ("PLE", "PLE + scene ids", "LARR", "LLM4MSR"),
}
MEASURES = ("auc", "gauc", "log_loss", "ece")


@dataclass(frozen=True, kw_only=True)
class OwnLog:
    """A log and its mapping file.

    Args:
        file: the mapping. folder: of the data; None: the mapping's own.
        state: of the mapping and of the data's files: others make another world.
        users: keep so many; None: all.
        every_days: between snapshots of what is known of each user.
    """

    file: str
    folder: str | None
    state: str
    users: int | None = None
    every_days: int = 7

    @property
    def seed(self) -> int:
        return 0

    @property
    def name(self) -> str:
        return read_mapping(Path(self.file)).dataset or Path(self.file).stem

    def choice(self) -> Choice:
        return mapped(Path(self.file), self.folder and Path(self.folder), Options(users=self.users))

    def asked(self) -> PromptChoice:
        return PromptChoice(facts=FactsConfig(every_days=self.every_days))


def own_log(file: Path, folder: Path | None, users: int | None = None, every_days: int = 7) -> OwnLog:
    """Raises DataError for a wrong mapping, FileNotFoundError for a file that is not there."""
    digest = hashlib.sha256(file.read_bytes())
    for path in files(MappingConfig(file=file, folder=folder))[1:]:
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}".encode())
    return OwnLog(
        file=str(file.resolve()),
        folder=folder and str(folder.resolve()),
        state=digest.hexdigest()[:16],
        users=users,
        every_days=every_days,
    )


def reading(scale: Scale) -> Vectors:
    """What one language model makes of texts and of prompts, as it comes: nothing is tuned on the log."""
    model = {"model": scale.language_model} if scale.language_model else {}
    return Knowing(texts=LanguageModel(**model), prompts=PromptStates(**model))


def experiment(scale: Scale, world: OwnLog, vectors: Vectors) -> Experiment:
    """The arms that the log has what it takes for."""
    mapping = read_mapping(Path(world.file))

    def cell(recipe: Recipe, seed: int) -> Cell:
        return Cell(world=world, recipe=recipe, vectors=vectors, seed=seed)

    arms = ARMS if mapping.time.invented else ARMS_OF_MOMENTS
    pairs = [(ours, other) for ours, others in REFERENCES.items() for other in others if {ours, other} <= arms.keys()]
    tasks = ("ctr",) if mapping.columns.order.constant == 0 else ("ctr", "ctcvr")
    return Experiment(
        name=f"own_log_{world.name}",
        question="What do the moment, and knowledge of users and scenarios, add on this log?",
        arms={name: partial(cell, make(scale.size)) for name, make in arms.items()},
        seeds=scale.seeds,
        comparisons=tuple(Comparison(ours=ours, reference=other) for ours, other in pairs),
        measures=tuple(f"{task}_{measure}" for measure in MEASURES for task in tasks),
        compared=tuple(f"{task}_auc" for task in tasks),
        slices=(ALL, *(f"scenario {name}" for name in mapping.scenarios)),
    )


def main() -> None:
    """The command line: the options of every experiment, and which log."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--mapping", required="--help" not in sys.argv)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--users", type=int)
    parser.add_argument("--every", type=int, default=7)
    command = f"python -m {__spec__.name} {' '.join(sys.argv[1:])}"
    given, others = parser.parse_known_args()
    sys.argv[1:] = others
    scale, options = arguments(__doc__, None)
    users = given.users or (QUICK_USERS if scale.quick else None)
    world = own_log(shipped().get(given.mapping, Path(given.mapping)), given.source, users, given.every)
    run([experiment(scale, world, reading(scale))], replace(options, command=command))


if __name__ == "__main__":
    main()
