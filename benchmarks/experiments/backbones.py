"""All backbones as the multi-scenario experiments compare them, by the names that tables use."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.models.backbones import BackboneConfig
from trainers.models.backbones.ple import Ple
from trainers.models.backbones.shared_bottom import SharedBottom

BACKBONES: Mapping[str, BackboneConfig] = {
    "SharedBottom": SharedBottom.Config(),
    "PLE (tasks)": Ple.Config(expert_widths=(128, 64), tower_widths=(32,)),
}
