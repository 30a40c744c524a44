"""PEPNet: gates that let scenario and person decide how much of each input and of each hidden unit counts.

Chang, Zhang, Hui, Leng, Niu, Song: "PEPNet: Parameter and Embedding Personalized Network for Infusing with Personalized
Prior Information", KDD 2023. A gate unit is GateNU(x) = 2 sigmoid(W' relu(W x + b) + b'), in 0 .. 2. EPNet weighs the
input x of a row by its scenario, PPNet the hidden units of every layer l of the tower of task t by user and POI:

    o = GateNU([e_scenario ; stopgrad(x)]) * x
    h_t^l = relu(W_t^l h_t^(l-1) + b_t^l) * GateNU^l([e_user ; e_poi ; stopgrad(o)])_t,   h_t^0 = o

Gradients are stopped on the way into gates only: the towers read o itself, so that embeddings learn.

Letters: B rows, I input width, T tasks, H width of a tower's layer, E width of an id, P width of what a gate reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedLinear


class PepNet(nn.Module):
    """A `Backbone`. A tower for each task serves all scenarios: what sets them apart are the gates."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            ep, pp: EPNet's and PPNet's gates; one without the other is a model of its own.
            gate_width: of the hidden layer of a gate unit.
        """

        kind: Literal["pepnet"] = "pepnet"
        ep: bool = True
        pp: bool = True
        gate_width: int = 64
        tower_widths: tuple[int, ...] = (128, 64)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.tower_widths[-1]

        def __post_init__(self) -> None:
            if not (self.ep or self.pp):
                raise ValueError("PEPNet without both of its gates is a plain tower a task: set ep or pp")
            if not self.tower_widths or self.gate_width < 1:
                raise ValueError(f"PEPNet needs at least one tower layer and one hidden unit a gate, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.poi_field = sizes.user_fields
        self.input_gate = GateUnit(sizes.width + sizes.inputs, config.gate_width, sizes.inputs) if config.ep else None
        prior = 2 * sizes.width + sizes.inputs
        self.layers, self.unit_gates = nn.ModuleList(), nn.ModuleList()
        for inputs, width in zip([sizes.inputs, *config.tower_widths], config.tower_widths, strict=False):
            self.layers.append(GroupedLinear(sizes.tasks, inputs, width))
            if config.pp:
                self.unit_gates.append(GateUnit(prior, config.gate_width, sizes.tasks * width))
        self.heads = GroupedLinear(sizes.tasks, config.hidden_width, 1)
        self.dropout = Dropout(config.dropout)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        input_BI, id_BFE = features.flat_BI, features.id_BFE
        if self.input_gate is not None:
            input_BI = input_BI * self.input_gate(torch.cat([id_BFE[:, 0], input_BI.detach()], dim=1))
        prior_BP = torch.cat([id_BFE[:, 1], id_BFE[:, self.poi_field], input_BI.detach()], dim=1)
        hidden_TBH = input_BI  # all tasks read the same input
        for at, layer in enumerate(self.layers):
            hidden_TBH = torch.relu(layer(hidden_TBH))
            if self.unit_gates:
                gate_BTH = self.unit_gates[at](prior_BP).view(len(prior_BP), *hidden_TBH.shape[::2])
                hidden_TBH = hidden_TBH * gate_BTH.transpose(0, 1)
            hidden_TBH = self.dropout(hidden_TBH)
        return self.heads(hidden_TBH).squeeze(2).transpose(0, 1), hidden_TBH.mean(dim=0)


class GateUnit(nn.Module):
    """GateNU: rows -> gates in 0 .. 2, about 1 at the start."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, width)
        self.gate = nn.Linear(width, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(self.gate(torch.relu(self.hidden(rows))))
