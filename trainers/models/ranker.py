"""Ranker: the features of a row, perhaps its scene, perhaps knowledge of user and scenario, and a backbone, composed.

Every ranker of the project is a value of `Ranker.Config`: PLE without scene, PLE with scene ids, LARR with vectors of
the scene, LLM4MSR with meta layers around any backbone, and both in one.
Scores of a row never depend on the other rows of its batch: no batch statistics, no attention across rows.

Letters: B rows, T tasks (click, conversion), R rows of a matrix, V its width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.models.backbones import BackboneConfig, build_backbone
from trainers.models.backbones.backbone import BackboneSizes, FittedBackbone
from trainers.models.backbones.ple import Ple
from trainers.models.embedding import FeatureEmbedding, Features, InputSizes
from trainers.models.larr import Aligned, SceneUse
from trainers.models.llm4msr import KnowledgeUse

TASKS = 2


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Logits of B rows; sigmoids belong to losses and to the edge.

    Attributes:
        click_logit_B: of a click.
        conversion_logit_B: of an order given the click: p(order) = p(click) p(conversion), ESMM (Ma et al. 2018).
            With `direct` it is the logit of the order itself.
        aligned: pairs for guidance, in training mode only.
    """

    click_logit_B: Tensor
    conversion_logit_B: Tensor
    direct: bool = False
    aligned: Aligned | None = None

    @property
    def p_click_B(self) -> Tensor:
        return torch.sigmoid(self.click_logit_B)

    @property
    def p_order_B(self) -> Tensor:
        """Probability of click and order."""
        conversion_B = torch.sigmoid(self.conversion_logit_B)
        return conversion_B if self.direct else self.p_click_B * conversion_B


class Ranker(nn.Module):
    """Batch -> Scores."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            scene: how the scene is used; None: not at all.
            knowledge: meta layers of user and scenario around the backbone; None: none.
            ctcvr: p(order) as the product of click and conversion, or from a head of its own ("direct").
        """

        features: FeatureEmbedding.Config = field(default_factory=FeatureEmbedding.Config)
        scene: SceneUse.Config | None = None
        knowledge: KnowledgeUse.Config | None = None
        backbone: BackboneConfig = field(default_factory=Ple.Config)
        ctcvr: Literal["multiply", "direct"] = "multiply"

        @property
        def reads_scene_vectors(self) -> bool:
            return self.scene is not None and self.scene.encoder.tokens != "ids"

    def __init__(self, config: Config, sizes: InputSizes, matrices: Mapping[str, Tensor]) -> None:
        """
        Args:
            matrices: for each space, float32 (R, V) with row 0 zeros.
        Raises:
            ValueError: if the configuration wants vectors or scene features that the data lacks.
        """
        super().__init__()
        self.config = config
        self.scene_space = sizes.scene_space
        self._known = {space: len(matrix_RV) for space, matrix_RV in matrices.items()}
        self.features = FeatureEmbedding(config.features, sizes, matrices)
        self.scene = (
            SceneUse(config.scene, sizes, matrices.get(sizes.scene_space), self.features, config.backbone.hidden_width)
            if config.scene is not None
            else None
        )
        inputs = self.features.width + (self.scene.width if self.scene is not None else 0)
        hidden = config.backbone.hidden_width
        self.knowledge = (
            KnowledgeUse(config.knowledge, sizes, matrices, inputs, hidden, TASKS) if config.knowledge else None
        )
        self.backbone = build_backbone(config.backbone, _backbone_sizes(config, sizes, inputs))

    def fit_vectors(self, batch: Batch) -> None:
        """Take from the rows that training reads what is counted, not learned; call once, before training.

        Means and scales of frozen vectors, and the graph of a backbone that has one.
        """
        self.features.fit_vectors(batch.text_row_BK)
        if self.scene is not None and self.scene.encoder.vectors is not None:
            self.scene.encoder.vectors.fit(batch.scene_row_US)
        if self.knowledge is not None:
            self.knowledge.fit_vectors(batch)
        if isinstance(self.backbone, FittedBackbone):
            self.backbone.fit(batch)

    def extend_vectors(self, space: str, matrix_RV: Tensor) -> None:
        """Put a longer matrix of one space in place: texts embedded after training. Raises ValueError if it is none."""
        if space == self.scene_space and self.scene is not None and self.scene.encoder.vectors is not None:
            self.scene.encoder.vectors.extend(matrix_RV)
        self.features.extend_vectors(space, matrix_RV)
        if self.knowledge is not None:
            self.knowledge.extend_vectors(space, matrix_RV)
        self._known[space] = len(matrix_RV)

    def vectors_known(self, space: str) -> int:
        """Rows of a space that batches may name; more after `extend_vectors`, once all parts know them."""
        return self._known[space]

    def forward(self, batch: Batch, scene_UC: Tensor | None = None) -> Scores:
        """
        Args:
            scene_UC: what `scene.scenes(batch)` gives, where that was computed before.
        """
        features = self.features(batch)
        if self.scene is None:
            return self._scores(self._logits(features, batch)[0], None)
        scene_BC = (self.scene.scenes(batch) if scene_UC is None else scene_UC)[batch.scene_of_row_B]
        logit_BT, hidden_BH = self._logits(self.scene.utilize(scene_BC, features), batch)
        return self._scores(logit_BT, self.scene.align(scene_BC, features, hidden_BH) if self.training else None)

    def _logits(self, features: Features, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, T) and hidden vectors (B, H), with the meta layers before and beside the backbone."""
        if self.knowledge is None:
            logit_BT, hidden_BH = self.backbone(features)
            return logit_BT, hidden_BH
        logit_BT, hidden_BH = self.backbone(self.knowledge.bottom(features, batch))
        return self.knowledge.parallel(features, batch, logit_BT, hidden_BH), hidden_BH

    def _scores(self, logit_BT: Tensor, aligned: Aligned | None) -> Scores:
        direct = self.config.ctcvr == "direct"
        return Scores(click_logit_B=logit_BT[:, 0], conversion_logit_B=logit_BT[:, 1], direct=direct, aligned=aligned)


def _backbone_sizes(config: Ranker.Config, sizes: InputSizes, inputs: int) -> BackboneSizes:
    scenarios, users = sizes.cardinalities[:2]
    return BackboneSizes(
        inputs=inputs,
        tasks=TASKS,
        scenarios=scenarios,
        users=users,
        pois=sizes.cardinalities[sizes.user_fields],
        fields=len(sizes.cardinalities),
        user_fields=sizes.user_fields,
        width=config.features.width,
        numbers=sizes.numbers,
    )
