"""Backbones: one file each, from the features of a row to the logits of its tasks, plugged in by composition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from trainers.models.backbones.aitm import Aitm
from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.m2m import M2m
from trainers.models.backbones.mmoe import Mmoe
from trainers.models.backbones.omoe import Omoe
from trainers.models.backbones.ple import Ple
from trainers.models.backbones.scenario_ple import ScenarioPle
from trainers.models.backbones.shared_bottom import SharedBottom
from trainers.models.backbones.star import Star

BackboneConfig = (
    Aitm.Config
    | M2m.Config
    | Mmoe.Config
    | Omoe.Config
    | Ple.Config
    | ScenarioPle.Config
    | SharedBottom.Config
    | Star.Config
)

_NETWORKS: Mapping[type, Callable[[Any, BackboneSizes], nn.Module]] = {
    Aitm.Config: Aitm,
    M2m.Config: M2m,
    Mmoe.Config: Mmoe,
    Omoe.Config: Omoe,
    Ple.Config: Ple,
    ScenarioPle.Config: ScenarioPle,
    SharedBottom.Config: SharedBottom,
    Star.Config: Star,
}


def build_backbone(config: BackboneConfig, sizes: BackboneSizes) -> nn.Module:
    """The network of a configuration, a `Backbone`, with fresh weights."""
    return _NETWORKS[type(config)](config, sizes)
