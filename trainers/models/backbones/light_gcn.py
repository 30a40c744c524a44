"""LightGCN: users and POIs of a graph of clicks, each described by its neighbours and theirs.

He, Deng, Wang, Li, Zhang, Wang: "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation",
SIGIR 2020. With learned vectors e^0 and d the number of neighbours in the graph:

    e_u^(k+1) = sum over p of u of e_p^k / sqrt(d_u d_p),   e_p^(k+1) likewise,   e = (e^0 + .. + e^K) / (K + 1)
    h = MLP([x ; e_u * e_p]),   logit_t = tower_{s,t}(h)

LightGCN scores a pair by the sum of e_u * e_p; here the summands are inputs beside all else that is known of a row.

The edge of a clicked row is its label. So the edges of a training batch's pairs leave the graph for its step, which the
paper does not do: with its own edge in sight a row is easy to fit, and probabilities on fresh rows suffer. Later clicks
of other pairs do stay in the graph. In evaluation the graph is whole, and what comes out of it is kept until the mode,
the graph or the type of weights changes, or weights are loaded: a row then costs two look-ups.

Letters: B rows, I input width, U users, P POIs, V = U + P nodes, W width of a node, M edges, H width of the perceptron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioTowers
from trainers.models.embedding import Features
from trainers.models.mlp import Dropout, GroupedMLP


class LightGcn(nn.Module):
    """A `Backbone`, and a `FittedBackbone`: without `fit` its graph has no edges. The graph is saved with the weights.

    Gradients of all nodes are dense, whatever their number: propagation reaches nodes that no row of a batch names.
    """

    edge_M: Tensor  # int64, user * P + POI, ascending

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            width: of a node. layers: K.
            leave_out: the pairs of a training batch leave the graph for its step.
            layer_widths: of the perceptron.
        """

        kind: Literal["light_gcn"] = "light_gcn"
        width: int = 32
        layers: int = 2
        leave_out: bool = True
        layer_widths: tuple[int, ...] = (128, 64)
        tower_widths: tuple[int, ...] = (32,)
        dropout: float = 0.0

        @property
        def hidden_width(self) -> int:
            return self.layer_widths[-1]

        def __post_init__(self) -> None:
            if min(self.width, self.layers, len(self.layer_widths)) < 1:
                raise ValueError(f"LightGCN needs a width, and at least one layer of each kind, got {self}")

    def __init__(self, config: Config, sizes: BackboneSizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.user, self.poi = nn.Embedding(sizes.users, config.width), nn.Embedding(sizes.pois, config.width)
        with torch.no_grad():
            for table in (self.user, self.poi):
                table.weight.normal_(std=config.width**-0.5)
                table.weight[0] = 0.0  # until it is trained, an unknown one says nothing
        self.register_buffer("edge_M", torch.empty(0, dtype=torch.int64))
        self.dropout = Dropout(config.dropout)
        self.bottom = GroupedMLP(1, sizes.inputs + config.width, config.layer_widths, config.dropout)
        self.towers = ScenarioTowers(
            sizes.scenarios, sizes.tasks, config.hidden_width, config.tower_widths, config.dropout
        )
        self._kept_VW: Tensor | None = None

    def fit(self, batch: Batch) -> None:
        """Take the clicked pairs of training rows as the graph, each once; pairs with an unknown id are left out.

        What a graph lacks it does not know: of a part that is streamed, `batch` is a sample, and so is the graph.
        Raises ValueError for rows without clicks.
        """
        if batch.click_B is None:
            raise ValueError("the graph is made of clicks: fit on training rows, which have them")
        user_B, poi_B = batch.categorical_BF[:, 1], batch.categorical_BF[:, self.sizes.user_fields]
        edge_B = (batch.click_B > 0) & (user_B > 0) & (poi_B > 0)
        self.edge_M = torch.unique(user_B[edge_B] * self.sizes.pois + poi_B[edge_B]).to(self.edge_M.device)
        self._kept_VW = None

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        node_VW = self._nodes(features)
        product_BW = node_VW[features.user_B] * node_VW[self.sizes.users + features.poi_B]
        hidden_BH = self.bottom(torch.cat([features.flat_BI, self.dropout(product_BW)], dim=1))[0]
        return self.towers(hidden_BH, features.scenario_B), hidden_BH

    def _nodes(self, features: Features) -> Tensor:
        if self.training:
            return self.propagate(self._without(features) if self.config.leave_out else self.edge_M)
        if torch.is_grad_enabled():  # what is kept has no gradient
            return self.propagate(self.edge_M)
        if self._kept_VW is None:
            self._kept_VW = self.propagate(self.edge_M)
        return self._kept_VW

    def _without(self, features: Features) -> Tensor:
        """The edges whose pairs are not among the rows."""
        keep_M = torch.ones_like(self.edge_M, dtype=torch.bool)
        if len(keep_M):
            pair_B = features.user_B * self.sizes.pois + features.poi_B
            at_B = torch.searchsorted(self.edge_M, pair_B).clamp(max=len(keep_M) - 1)
            keep_M[at_B[self.edge_M[at_B] == pair_B]] = False
        return self.edge_M[keep_M]

    def propagate(self, edge_M: Tensor) -> Tensor:
        """Users, then POIs, over the given edges: (V, W), the mean of all layers."""
        node_VW = torch.cat([self.user.weight, self.poi.weight])
        nodes = len(node_VW)
        user_M = torch.div(edge_M, self.sizes.pois, rounding_mode="floor")
        ends_2M = torch.stack([user_M, self.sizes.users + edge_M % self.sizes.pois])
        both_ways = torch.cat([ends_2M, ends_2M.flip(0)], dim=1)
        degree_V = torch.bincount(both_ways[0], minlength=nodes).to(node_VW)
        scale = (degree_V[both_ways[0]] * degree_V[both_ways[1]]).rsqrt()
        adjacency_VV = torch.sparse_coo_tensor(both_ways, scale, (nodes, nodes), check_invariants=False)
        total_VW = node_VW
        for _ in range(self.config.layers):
            node_VW = torch.sparse.mm(adjacency_VV, node_VW)
            total_VW = total_VW + node_VW
        return total_VW / (self.config.layers + 1)

    def train(self, mode: bool = True) -> Self:
        self._kept_VW = None  # the weights may change now, or have changed
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept_VW = None  # of the old type, or on the old device
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Make room for as many edges as were saved: a network that was just built has none.

        Raises ValueError for edges that are not in the graph: a product with such a matrix reads what is not its own.
        """
        self._kept_VW = None
        saved = state_dict.get(f"{prefix}edge_M")
        if saved is not None:
            pairs = self.sizes.users * self.sizes.pois
            if len(saved) and not (saved[0] >= 0 and (saved.diff() > 0).all() and saved[-1] < pairs):
                raise ValueError(f"{prefix}edge_M: edges must ascend from 0 to {pairs - 1}")
            self.edge_M = self.edge_M.new_empty(saved.numel())
        super()._load_from_state_dict(state_dict, prefix, *rest)
