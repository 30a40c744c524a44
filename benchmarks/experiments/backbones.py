"""All backbones as the multi-scenario experiments compare them, by the names that tables use."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.models.backbones import BackboneConfig
from trainers.models.backbones.adasparse import AdaSparse
from trainers.models.backbones.aitm import Aitm
from trainers.models.backbones.hamur import Hamur
from trainers.models.backbones.light_gcn import LightGcn
from trainers.models.backbones.m2m import M2m
from trainers.models.backbones.m3oe import M3oE
from trainers.models.backbones.mmoe import Mmoe
from trainers.models.backbones.omoe import Omoe
from trainers.models.backbones.pepnet import PepNet
from trainers.models.backbones.sar_net import SarNet
from trainers.models.backbones.sasrec import SasRec
from trainers.models.backbones.scenario_ple import ScenarioPle
from trainers.models.backbones.shared_bottom import SharedBottom
from trainers.models.backbones.star import Star

BACKBONES: Mapping[str, BackboneConfig] = {
    "SharedBottom": SharedBottom.Config(),
    "OMoE": Omoe.Config(),
    "MMoE": Mmoe.Config(),
    "PLE": ScenarioPle.Config(),
    "STAR": Star.Config(),
    "AITM": Aitm.Config(),
    "M2M": M2m.Config(),
    "PEPNet": PepNet.Config(),
    "EPNet": PepNet.Config(pp=False),
    "PPNet": PepNet.Config(ep=False),
    "HAMUR": Hamur.Config(),
    "SAR-Net": SarNet.Config(),
    "AdaSparse": AdaSparse.Config(),
    "M3oE": M3oE.Config(),
    "SASRec": SasRec.Config(),
    "LightGCN": LightGcn.Config(),
}
