"""Backbones: one file each, from the features of a row to the logits of its tasks, plugged in by composition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from trainers.models.backbones.adasparse import AdaSparse
from trainers.models.backbones.aitm import Aitm
from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.hamur import Hamur
from trainers.models.backbones.light_gcn import LightGcn
from trainers.models.backbones.m2m import M2m
from trainers.models.backbones.m3oe import M3oE
from trainers.models.backbones.mmoe import Mmoe
from trainers.models.backbones.omoe import Omoe
from trainers.models.backbones.pepnet import PepNet
from trainers.models.backbones.ple import Ple
from trainers.models.backbones.sar_net import SarNet
from trainers.models.backbones.sasrec import SasRec
from trainers.models.backbones.scenario_ple import ScenarioPle
from trainers.models.backbones.shared_bottom import SharedBottom
from trainers.models.backbones.star import Star

BackboneConfig = (
    AdaSparse.Config
    | Aitm.Config
    | Hamur.Config
    | LightGcn.Config
    | M2m.Config
    | M3oE.Config
    | Mmoe.Config
    | Omoe.Config
    | PepNet.Config
    | Ple.Config
    | SarNet.Config
    | SasRec.Config
    | ScenarioPle.Config
    | SharedBottom.Config
    | Star.Config
)

_NETWORKS: Mapping[type, Callable[[Any, BackboneSizes], nn.Module]] = {
    AdaSparse.Config: AdaSparse,
    Aitm.Config: Aitm,
    Hamur.Config: Hamur,
    LightGcn.Config: LightGcn,
    M2m.Config: M2m,
    M3oE.Config: M3oE,
    Mmoe.Config: Mmoe,
    Omoe.Config: Omoe,
    PepNet.Config: PepNet,
    Ple.Config: Ple,
    SarNet.Config: SarNet,
    SasRec.Config: SasRec,
    ScenarioPle.Config: ScenarioPle,
    SharedBottom.Config: SharedBottom,
    Star.Config: Star,
}


def by_kind(kind: str) -> BackboneConfig:
    """A backbone at its usual size. Raises ValueError for a kind that does not exist."""
    configs: dict[str, BackboneConfig] = {config.kind: config for config in (make() for make in _NETWORKS)}
    if kind not in configs:
        raise ValueError(f"no backbone {kind!r}; there are {', '.join(configs)}")
    return configs[kind]


def build_backbone(config: BackboneConfig, sizes: BackboneSizes) -> nn.Module:
    """The network of a configuration, a `Backbone`, with fresh weights."""
    return _NETWORKS[type(config)](config, sizes)
