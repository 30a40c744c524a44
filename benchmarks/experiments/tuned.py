"""Language models that experiments tune themselves: once each, on the history of the development city.

A model is named by all of its stages' configurations, so that cells that read it know what they read before it is
there; it is trained when a cell wants it and its folder is absent. Nobody of a reported seed was in its history.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.experiments import worlds
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import LanguageModel
from benchmarks.experiments.worlds import World
from feature_repo.workspace import Workspace
from trainers.language.contrast import ContrastConfig, contrast
from trainers.language.pretrain import PretrainConfig, pretrain

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True, kw_only=True)
class TunedModel(LanguageModel):
    """A model folder that one stage makes of another model.

    Args:
        model: its name, for people.
        stage: the configuration of the stage; the model that it names is not read.
        base: what the stage begins with.
        world: whose history part it learns from.
    """

    stage: PretrainConfig | ContrastConfig
    base: LanguageModel
    world: World

    def source(self, places: Places) -> str:
        return str(self.workspace(places).language / self._verb / "model")

    def workspace(self, places: Places) -> Workspace:
        """Sources are those of the world; what is trained lies apart from other models of the same world."""
        return Workspace(places.language / f"{self.model.replace(' ', '-')}-{worlds.plain_hash(self)[:8]}")

    def stages(self) -> tuple[TunedModel, ...]:
        """This model and all that it is made of, the first to be trained first."""
        before = self.base.stages() if isinstance(self.base, TunedModel) else ()
        return (*before, self)

    @property
    def _verb(self) -> str:
        return "pretrain" if isinstance(self.stage, PretrainConfig) else "contrast"


def train(tuned: TunedModel, places: Places, progress: Progress = lambda what, done, total: None) -> Path:
    """Run one stage on a prepared world, with all processors; goes on where it was interrupted. Returns the model.

    Raises FileNotFoundError where the base is not there yet.
    """
    workspace = tuned.workspace(places)
    workspace.root.mkdir(parents=True, exist_ok=True)
    if not workspace.sources.exists():
        workspace.sources.symlink_to(worlds.folder(tuned.world, places) / "sources", target_is_directory=True)
    stage: Any = tuned.stage
    tune = replace(stage.tune, threads=os.cpu_count())
    config = replace(stage, model=tuned.base.source(places), tune=tune)
    if isinstance(config, PretrainConfig):
        pretrain(workspace, config, progress)
    else:
        contrast(workspace, config, progress)
    return Path(tuned.source(places))
