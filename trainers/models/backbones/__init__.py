"""Backbones: one file each, from the features of a row to the logits of its tasks, plugged in by composition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from trainers.models.backbones.adasparse import AdaSparse
from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.hamur import Hamur
from trainers.models.backbones.light_gcn import LightGcn
from trainers.models.backbones.m3oe import M3oE
from trainers.models.backbones.pepnet import PepNet
from trainers.models.backbones.ple import Ple
from trainers.models.backbones.sar_net import SarNet
from trainers.models.backbones.sasrec import SasRec
from trainers.models.backbones.shared_bottom import SharedBottom

BackboneConfig = (
    AdaSparse.Config
    | Hamur.Config
    | LightGcn.Config
    | M3oE.Config
    | PepNet.Config
    | Ple.Config
    | SarNet.Config
    | SasRec.Config
    | SharedBottom.Config
)

_NETWORKS: Mapping[type, Callable[[Any, BackboneSizes], nn.Module]] = {
    AdaSparse.Config: AdaSparse,
    Hamur.Config: Hamur,
    LightGcn.Config: LightGcn,
    M3oE.Config: M3oE,
    PepNet.Config: PepNet,
    Ple.Config: Ple,
    SarNet.Config: SarNet,
    SasRec.Config: SasRec,
    SharedBottom.Config: SharedBottom,
}


def build_backbone(config: BackboneConfig, sizes: BackboneSizes) -> nn.Module:
    """The network of a configuration, a `Backbone`, with fresh weights."""
    return _NETWORKS[type(config)](config, sizes)
