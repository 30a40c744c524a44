"""M2M: a scenario's vector generates the weights that mix experts and that the towers apply.

Zhang et al.: "Leaving No One Behind: A Multi-Scenario Multi-Task Meta Learning Approach for Advertiser Modeling", WSDM
2022. The embedded ids of a row are the tokens of a self-attention, which looks at this row only; x is the features
beside the attended tokens. With the scenario vector c = MLP(scenario embedding), the meta unit is r W(c) + b(c), and

    e_i = E_i(x),   a_ti = v . leakyrelu([e_i ; u_t] W(c) + b(c)),   r_t = sum_i softmax(a_t)_i e_i    meta attention
    r_t <- leakyrelu(r_t W'(c) + b'(c) + r_t),  layer upon layer,    logit_t = head_t(r_t)             meta tower

with a learned vector u_t of each task. The paper generates every entry of W; here W(c) = D M(c) U, where D and U are
learned and only the small square M is generated, for each row: H x H entries of a row would be most of the network.
The paper's tokens are a sequence of months, which these features have no like of.

Letters: B rows, I input width, F fields, E width of an id, X experts, H expert width, T tasks, C width of the scenario
vector, K bottleneck, O outputs, A attention heads, V width of one, N any leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedLinear, GroupedMLP


class M2m(nn.Module):
    """A `Backbone`; the mean of the tasks' last vectors is its hidden vector."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            attention_heads: of the attention over fields; they divide the width of an id.
            scenario_widths: of the perceptron from the scenario's embedding to its vector.
            bottleneck: side of the generated squares.
            tower_layers: meta layers after the experts.
        """

        kind: Literal["m2m"] = "m2m"
        attention_heads: int = 1
        experts: int = 4
        expert_widths: tuple[int, ...] = (128, 64)
        scenario_widths: tuple[int, ...] = (32,)
        bottleneck: int = 8
        tower_layers: int = 2
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.expert_widths[-1]

        def __post_init__(self) -> None:
            counts = (self.attention_heads, self.bottleneck, self.tower_layers, len(self.scenario_widths))
            if self.experts < 2 or min(*counts, len(self.expert_widths)) < 1:
                raise ValueError(f"M2M needs two experts, and at least one of everything else, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        """Raises ValueError if the heads do not divide the width of an id."""
        super().__init__()
        width, bottleneck = config.hidden_width, config.bottleneck
        inputs = sizes.inputs + sizes.fields * sizes.width
        self.fields = FieldAttention(sizes.fields, sizes.width, config.attention_heads, config.dropout)
        self.scenario = GroupedMLP(1, sizes.width, config.scenario_widths)
        self.experts = GroupedMLP(config.experts, inputs, config.expert_widths, config.dropout)
        self.task_TH = nn.Parameter(torch.randn(sizes.tasks, width) * width**-0.5)
        self.score = MetaLinear(2 * width, bottleneck, self.scenario.width, bottleneck)
        self.score_out = nn.Linear(bottleneck, 1, bias=False)  # a softmax does not see a bias
        self.tower = nn.ModuleList(
            MetaLinear(width, width, self.scenario.width, bottleneck) for _ in range(config.tower_layers)
        )
        self.dropout = Dropout(config.dropout)
        self.heads = GroupedLinear(sizes.tasks, width, 1)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        scenario_BC = self.scenario(features.id_BFE[:, 0])[0]
        rows_BI = torch.cat([features.flat_BI, self.fields(features.id_BFE).flatten(1)], dim=1)
        task_TBH = self._mixed(self.experts(rows_BI), scenario_BC)
        for layer in self.tower:
            task_TBH = self.dropout(functional.leaky_relu(layer(task_TBH, scenario_BC) + task_TBH))
        logit_TB1 = self.heads(task_TBH)
        return logit_TB1.squeeze(2).transpose(0, 1), task_TBH.mean(dim=0)

    def _mixed(self, expert_XBH: Tensor, scenario_BC: Tensor) -> Tensor:
        """The meta attention: experts (X, B, H) -> a vector for each task, (T, B, H)."""
        tasks, (experts, rows, width) = len(self.task_TH), expert_XBH.shape
        task_TXBH = self.task_TH[:, None, None].expand(tasks, experts, rows, width)
        pair_TXBH = torch.cat([expert_XBH.expand(tasks, experts, rows, width), task_TXBH], dim=3)
        score_TXB = self.score_out(functional.leaky_relu(self.score(pair_TXBH, scenario_BC))).squeeze(3)
        return torch.einsum("txb,xbh->tbh", torch.softmax(score_TXB, dim=1), expert_XBH)


class MetaLinear(nn.Module):
    """The meta unit: rows (N, B, I) and scenario vectors (B, C) -> r W(c) + b(c), (N, B, O)."""

    def __init__(self, inputs: int, outputs: int, context: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, bottleneck, bias=False)
        self.square = nn.Linear(context, bottleneck * bottleneck)
        self.up = nn.Linear(bottleneck, outputs, bias=False)
        self.shift = nn.Linear(context, outputs)

    def forward(self, rows: Tensor, scenario_BC: Tensor) -> Tensor:
        low = self.down(rows)
        square_BKK = self.square(scenario_BC).view(-1, low.shape[-1], low.shape[-1])
        result: Tensor = self.up(torch.einsum("...bk,bkl->...bl", low, square_BKK)) + self.shift(scenario_BC)
        return result


class FieldAttention(nn.Module):
    """Self-attention over the fields of a row with a residual: (B, F, E) -> (B, F, E); no row sees another one."""

    def __init__(self, fields: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the heads of M2M's attention divide the width of an id; {heads} do not divide {width}")
        self.count = heads
        self.field_FE = nn.Parameter(torch.randn(fields, width) * width**-0.5)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, id_BFE: Tensor) -> Tensor:
        token_BFE = id_BFE + self.field_FE
        query, key, value = (
            part.unflatten(2, (self.count, -1)).transpose(1, 2) for part in self.query_key_value(token_BFE).chunk(3, 2)
        )
        mixed_BAFV = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = token_BFE + self.dropout(self.out(mixed_BAFV.transpose(1, 2).flatten(2)))
        return result
