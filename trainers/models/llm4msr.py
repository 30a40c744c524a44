"""LLM4MSR's two levels: meta layers of the user at the bottom, meta layers of the scenario in parallel.

Wang et al.: "LLM4MSR: An LLM-Enhanced Paradigm for Multi-Scenario Recommendation", CIKM 2024 (arXiv 2406.12529). For a
row x of user u and scenario s, with knowledge vectors h_u, h_s and any backbone:

    x' = MetaLayers_user(x; h_u),   logits = backbone(x') + head(MetaLayers_scenario(relu(A x + a); h_s))

Where the parallel branch joins is not published: `merge` names the ways. Vectors come from the feature store and are
frozen; a missing one is a learned vector. With ids in place of vectors the same layers tell whether knowledge helps, or
only weights of each user's and scenario's own. A ranker that answers generates the layers of all scenarios once, and
those of a user once a request.

Letters: B rows, U distinct vectors among them, R all of them, C width of a code, I flat width, W width of the branch,
T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.models.embedding import Features, FrozenVectors, FusedEmbedding, InputSizes
from trainers.models.meta_layers import Codes, Generated, MetaLayers
from trainers.models.mlp import Dropout


class KnowledgeUse(nn.Module):
    """Meta layers around a backbone."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            user, scenario: the layers of each level; None leaves a level out.
            user_space, scenario_space: where the vectors of each level are.
            source: what layers are generated from: the vectors, or (the control of equal size) embeddings of the ids.
            width: W, of the rows that the scenario's layers work on.
            merge: how the parallel branch joins: the "sum" of logits; a sum that the scenario's code weighs ("gate");
                or logits of branch and backbone's hidden vector together ("concat"), added to the backbone's.
        """

        user: MetaLayers.Config | None = field(default_factory=MetaLayers.Config)
        scenario: MetaLayers.Config | None = field(default_factory=MetaLayers.Config)
        user_space: str = "user_knowledge"
        scenario_space: str = "scenario_knowledge"
        source: Literal["vectors", "ids"] = "vectors"
        width: int = 64
        merge: Literal["sum", "gate", "concat"] = "sum"

        def __post_init__(self) -> None:
            if self.user is None and self.scenario is None:
                raise ValueError("knowledge of neither user nor scenario has no use: leave KnowledgeUse out")

        @property
        def spaces(self) -> tuple[str, ...]:
            """The vector spaces that are read."""
            if self.source == "ids":
                return ()
            levels = ((self.user, self.user_space), (self.scenario, self.scenario_space))
            return tuple(space for level, space in levels if level is not None)

    def __init__(
        self,
        config: Config,
        sizes: InputSizes,
        matrices: Mapping[str, Tensor],
        inputs: int,
        hidden: int,
        tasks: int,
    ) -> None:
        """
        Args:
            matrices: for each space, float32 (R, V) with row 0 zeros.
            inputs: I, as the backbone gets it. hidden: width of the backbone's hidden vector.
        Raises:
            ValueError: a vector space that is not there.
        """
        super().__init__()
        absent = [s for s in config.spaces if s not in sizes.text_spaces or s not in matrices]
        if absent:
            raise ValueError(
                f"the recipe wants knowledge of {absent}; the data has {sorted(matrices)}: run `scenerank knowledge` "
                "and pull again, or name other spaces in KnowledgeUse.Config"
            )
        scenarios, users = sizes.cardinalities[:2]
        self.user_level = self.scenario_level = None
        if config.user is not None:
            code = _Code(config, config.user, config.user_space, users, sizes, matrices)
            self.user_level = _Level(code, MetaLayers(config.user, inputs), keeps=False)
        if config.scenario is not None:
            code = _Code(config, config.scenario, config.scenario_space, scenarios, sizes, matrices)
            self.scenario_level = _Level(code, MetaLayers(config.scenario, config.width), keeps=True)
            self.branch = nn.Linear(inputs, config.width)
            self.head = nn.Linear(config.width + (hidden if config.merge == "concat" else 0), tasks)
            nn.init.zeros_(self.head.weight)  # the backbone starts as if it stood alone
            nn.init.zeros_(self.head.bias)
            self.gate = nn.Linear(config.scenario.bottleneck, tasks) if config.merge == "gate" else None
        self.concat = config.merge == "concat"

    def fit_vectors(self, batch: Batch) -> None:
        """Standardise the vectors by the rows that training reads."""
        for level in (self.user_level, self.scenario_level):
            if level is not None:
                level.fit(batch)

    def extend_vectors(self, space: str, matrix_RV: Tensor) -> None:
        """Put a longer matrix of one space in place, where it is read."""
        for level in (self.user_level, self.scenario_level):
            if level is not None:
                level.extend(space, matrix_RV)

    def bottom(self, features: Features, batch: Batch) -> Features:
        """What the backbone reads: rows that went through their users' layers."""
        if self.user_level is None:
            return features
        codes = self.user_level.codes(features.user_B, batch)
        return replace(features, flat_BI=self.user_level.layers(features.flat_BI, codes))

    def parallel(self, features: Features, batch: Batch, logit_BT: Tensor, hidden_BH: Tensor) -> Tensor:
        """The backbone's logits with those of the scenarios' layers, (B, T)."""
        if self.scenario_level is None:
            return logit_BT
        codes = self.scenario_level.codes(features.scenario_B, batch)
        branch_BW = self.scenario_level.layers(torch.relu(self.branch(features.flat_BI)), codes)
        added_BT: Tensor = self.head(torch.cat([branch_BW, hidden_BH], dim=1) if self.concat else branch_BW)
        if self.gate is not None:
            added_BT = added_BT * torch.sigmoid(self.gate(codes.code_UC))[codes.of_row_B]
        return logit_BT + added_BT


class _Level(nn.Module):
    """One level: where its codes come from, and the layers that they generate.

    Args:
        keeps: in evaluation without gradients the layers of all R codes are generated at first use and kept, in R times
            the memory of one's. Whatever may change them drops them: a switch of the mode (to evaluation too), weights
            or vectors put in place, another type or device. They are no part of the weights.
    """

    def __init__(self, code: _Code, layers: MetaLayers, *, keeps: bool) -> None:
        super().__init__()
        self.code, self.layers, self.keeps = code, layers, keeps
        self.kept: _Kept | None = None
        self.register_load_state_dict_post_hook(_drop)  # type: ignore[no-untyped-call]

    def codes(self, id_B: Tensor, batch: Batch) -> Codes:
        """The codes of B rows, with their layers where these are kept."""
        row_U, of_row_B = torch.unique(self.code.rows(id_B, batch), return_inverse=True)
        if not self.keeps or self.training or torch.is_grad_enabled():
            return Codes(self.code(row_U), of_row_B)
        kept = self.kept
        # Another thread may have put a longer matrix in place while codes of the shorter one were made.
        if kept is None or len(kept.code_RC) != self.code.count:
            kept = self._keep(row_U.device)
        codes = Codes(kept.code_RC[row_U], of_row_B)
        return replace(codes, layers=kept.layers.of(row_U)) if codes.few else codes

    def _keep(self, device: torch.device) -> _Kept:
        code_RC = self.code(torch.arange(self.code.count, device=device))
        kept = self.kept = _Kept(code_RC, self.layers.generate(code_RC))
        return kept

    def fit(self, batch: Batch) -> None:
        self.code.fit(batch)
        self.kept = None

    def extend(self, space: str, matrix_RV: Tensor) -> None:
        self.code.extend(space, matrix_RV)
        self.kept = None

    def train(self, mode: bool = True) -> Self:
        self.kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.kept = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Kept:
    """The codes of all rows of a matrix, and their layers."""

    code_RC: Tensor
    layers: Generated


def _drop(level: nn.Module, incompatible: object) -> None:
    assert isinstance(level, _Level)
    level.kept = None


class _Code(nn.Module):
    """Knowledge vectors, or ids in their place, through the bottleneck."""

    def __init__(
        self,
        use: KnowledgeUse.Config,
        layers: MetaLayers.Config,
        space: str,
        cardinality: int,
        sizes: InputSizes,
        matrices: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.space, self.cardinality = space, cardinality
        self.column = sizes.text_spaces.index(space) if use.source == "vectors" else None
        self.vectors = FrozenVectors(matrices[space], layers.bottleneck) if use.source == "vectors" else None
        self.ids = FusedEmbedding((cardinality,), layers.bottleneck) if use.source == "ids" else None
        self.dropout = Dropout(layers.code_dropout)

    def fit(self, batch: Batch) -> None:
        if self.vectors is not None:
            self.vectors.fit(batch.text_row_BK[:, self.column])

    def extend(self, space: str, matrix_RV: Tensor) -> None:
        if self.vectors is not None and space == self.space:
            self.vectors.extend(matrix_RV)

    @property
    def count(self) -> int:
        """R, the rows that there are codes of."""
        return len(self.vectors.matrix) if self.vectors is not None else self.cardinality

    def rows(self, id_B: Tensor, batch: Batch) -> Tensor:
        """Which of the R vectors, or ids, each of B rows has."""
        return id_B if self.column is None else batch.text_row_BK[:, self.column]

    def forward(self, row_U: Tensor) -> Tensor:
        """The codes of U rows, (U, C)."""
        if self.vectors is not None:
            return self.dropout(torch.tanh(self.vectors(row_U)))
        assert self.ids is not None
        return self.dropout(torch.tanh(self.ids(row_U[:, None])[:, 0]))
