"""Training speed: samples a second of PLE and LARR against other libraries, and against the bare matrix products.

All train in one run on one machine, the same rows in batches of the same size, with the same widths: 20 ids of 16
numbers, 2 + 2 + 2 experts (256, 128), towers of 64; LARR reads 10 scene slots of 128 beside them, 16 rows a request.
torch-rechub trains its PLE; fuxictr, whose package has no PLE, an MMoE of as many experts made of its own blocks; both
with their own loaders and loops. The bound: every matrix product of one of our steps, forward and backward, alone.

Medians of `ROUNDS` turns in which everybody trains once, so that a slow minute of the machine strikes all.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import Row, write
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from trainers import recipes
from trainers.batch import Batch
from trainers.batches import InMemory
from trainers.loop import FitConfig, Optimizer
from trainers.losses import ranking_loss
from trainers.models.embedding import InputSizes
from trainers.models.ranker import Ranker
from trainers.recipes import Recipe

ROWS, BATCH, ROUNDS = 4096 * 12, 4096, 5
FIELDS, WIDTH, VALUES = 20, 16, 2_000
SLOTS, SCENE_WIDTH, REQUEST_ROWS = 10, 128, 16
EXPERTS, TOWER = (256, 128), (64,)
PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")
SIZES = InputSizes(
    cardinalities=(VALUES,) * FIELDS,
    user_fields=10,
    numbers=1,
    scene_cardinalities=(50,) * SLOTS,
    text_spaces=(),
    scene_space="scene_text",
)
Train = Callable[[], float]  # trains once over `ROWS` rows; seconds


def main() -> None:
    torch.manual_seed(0)
    batch = rows_of()
    ple, larr = (reference(make) for make in (recipes.ple, recipes.larr))
    trains: dict[str, Train] = {
        "PLE": ours(ple, batch),
        "LARR": ours(larr, batch),
        "torch-rechub PLE": rechub(batch),
        "fuxictr MMoE": fuxictr(batch),
        "bound of PLE": bound(ple, batch),
        "bound of LARR": bound(larr, batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in trains}
    for turn in range(ROUNDS + 1):
        for name, train in trains.items():
            taken = train()
            if turn:  # the first turn warms up
                seconds[name].append(taken)
    rate = {name: ROWS / statistics.median(taken) for name, taken in seconds.items()}
    for name, value in rate.items():
        print(f"{name:18s} {value:12,.0f} samples/s")
    peer = max(rate["torch-rechub PLE"], rate["fuxictr MMoE"])
    write(
        "train",
        [
            _row("ple-vs-faster-peer", rate["PLE"], peer),
            _row("ple-vs-torch-rechub", rate["PLE"], rate["torch-rechub PLE"]),
            _row("ple-vs-fuxictr", rate["PLE"], rate["fuxictr MMoE"]),
            _row("ple-vs-matmul-bound", rate["PLE"], rate["bound of PLE"]),
            _row("larr-vs-matmul-bound", rate["LARR"], rate["bound of LARR"]),
        ],
    )


def _row(name: str, value: float, reference: float) -> Row:
    return Row(name=name, ours=value, reference=reference, better="higher", unit="samples/s", n=ROWS)


def reference(make: Callable[[recipes.Size], Recipe]) -> Recipe:
    """The reference sizes, without products and texts, which the other libraries' networks lack."""
    recipe = make("reference")
    features = replace(recipe.model.features, product_width=0, text_spaces=())
    return replace(recipe, model=replace(recipe.model, features=features))


def rows_of() -> Batch:
    """Random rows, `REQUEST_ROWS` of them to a scene."""
    rng = torch.Generator().manual_seed(0)
    scenes = ROWS // REQUEST_ROWS
    scene_id = torch.randint(1, SIZES.scene_cardinalities[0], (scenes, SLOTS), generator=rng)
    click = (torch.rand(ROWS, generator=rng) < 0.2).float()
    return Batch(
        categorical_BF=torch.randint(1, VALUES, (ROWS, FIELDS), generator=rng),
        numeric_BD=torch.randn(ROWS, 1, generator=rng),
        recent_poi_BN=torch.zeros((ROWS, 1), dtype=torch.int64),
        recent_age_BN=torch.zeros((ROWS, 1)),
        text_row_BK=torch.zeros((ROWS, 0), dtype=torch.int64),
        scene_of_row_B=torch.arange(ROWS) // REQUEST_ROWS,
        scene_id_US=scene_id,
        scene_row_US=scene_id + 50 * torch.arange(SLOTS),
        click_B=click,
        order_B=click * (torch.rand(ROWS, generator=rng) < 0.3),
    )


def ours(recipe: Recipe, batch: Batch) -> Train:
    """Batches, steps and optimiser as `trainers.loop` takes them."""
    ranker = _ranker(recipe, batch)
    optimizer = Optimizer(ranker, FitConfig(schedule="constant"), 1)
    generator = torch.Generator().manual_seed(0)

    def train() -> float:
        started = time.perf_counter()
        for part in InMemory(batch).epoch(BATCH, generator):
            optimizer.step(lambda rows: ranking_loss(ranker(rows), rows, recipe.loss), part)
        return time.perf_counter() - started

    return train


def _ranker(recipe: Recipe, batch: Batch) -> Ranker:
    matrix = torch.randn(50 * SLOTS + 1, SCENE_WIDTH)
    matrix[0] = 0.0
    ranker = Ranker(recipe.model, SIZES, {"scene_text": matrix}).train()
    ranker.fit_vectors(batch)
    return ranker


def rechub(batch: Batch) -> Train:
    """torch-rechub's PLE, trainer and data set, in its default optimiser."""
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import PLE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import TorchDataset

    names = [f"f{n}" for n in range(FIELDS)]
    columns = {name: column.numpy() for name, column in zip(names, batch.categorical_BF.unbind(1), strict=True)}
    features = [SparseFeature(name, vocab_size=VALUES, embed_dim=WIDTH) for name in names]
    tower = {"dims": list(TOWER)}
    model = PLE(features, ["classification"] * 2, 1, 2, 2, {"dims": list(EXPERTS)}, [tower, tower])
    trainer = MTLTrainer(model, ["classification"] * 2, device="cpu", model_path=tempfile.mkdtemp())
    loader = DataLoader(TorchDataset(columns, _labels(batch)), batch_size=BATCH, shuffle=True)

    def train() -> float:
        started = time.perf_counter()
        trainer.train_one_epoch(loader)
        return time.perf_counter() - started

    return train


def fuxictr(batch: Batch) -> Train:
    """An MMoE of fuxictr's embedding and perceptrons, in its multi-task model and its loader."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
    from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import MultiTaskModel

    logging.disable(logging.INFO)

    class Mmoe(MultiTaskModel):
        def __init__(self, feature_map: Any, **settings: Any) -> None:
            super().__init__(feature_map, task=["binary_classification"] * 2, num_tasks=2, gpu=-1, **settings)
            width = FIELDS * WIDTH
            self.embedding_layer = FeatureEmbedding(feature_map, WIDTH)
            self.experts = nn.ModuleList(MLP_Block(width, hidden_units=list(EXPERTS)) for _ in range(6))
            self.gates = nn.ModuleList(MLP_Block(width, output_dim=6) for _ in range(2))
            self.towers = nn.ModuleList(
                MLP_Block(EXPERTS[-1], hidden_units=list(TOWER), output_dim=1) for _ in range(2)
            )

        def forward(self, inputs: Any) -> dict[str, Tensor]:
            flat = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            expert = torch.stack([e(flat) for e in self.experts], dim=1)
            found = {}
            for task, (gate, tower) in enumerate(zip(self.gates, self.towers, strict=True)):
                mixed = torch.einsum("bx,bxh->bh", gate(flat).softmax(dim=1), expert)
                found[f"{('click', 'order')[task]}_pred"] = self.output_activation[task](tower(mixed))
            return found

    folder = Path(tempfile.mkdtemp())
    feature_map = FeatureMap("rows", str(folder))
    feature_map.labels = ["click", "order"]
    for n in range(FIELDS):
        feature_map.features[f"f{n}"] = {"type": "categorical", "source": "", "vocab_size": VALUES}
    feature_map.num_fields, feature_map.total_features = FIELDS, FIELDS * VALUES
    feature_map.set_column_index()
    columns = {f"f{n}": column.numpy() for n, column in enumerate(batch.categorical_BF.unbind(1))}
    labels = _labels(batch)
    np.savez(folder / "rows.npz", click=labels[:, 0], order=labels[:, 1], **columns)
    model = Mmoe(feature_map, verbose=0, model_root=str(folder), metrics=["AUC"])
    model.compile("adam", "binary_crossentropy", 1e-3)
    model._max_gradient_norm = 10.0
    loader = NpzDataLoader(feature_map, str(folder / "rows.npz"), batch_size=BATCH, shuffle=True, num_workers=0)

    def train() -> float:
        model.train()
        started = time.perf_counter()
        for part in loader:
            model.train_step(part)
        return time.perf_counter() - started

    return train


def _labels(batch: Batch) -> np.ndarray:
    assert batch.click_B is not None and batch.order_B is not None
    labels: np.ndarray = torch.stack([batch.click_B, batch.order_B], dim=1).numpy()
    return labels


class Products(TorchDispatchMode):
    """Writes down the two factors' shapes of every matrix product that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        if name in PRODUCTS:
            first, second = args[-2:] if name.endswith(("addmm", "baddbmm")) else args[:2]
            self.shapes.append((first.shape, second.shape))
        return func(*args, **(kwargs or {}))


def bound(recipe: Recipe, batch: Batch) -> Train:
    """The matrix products of a step, one after the other, for as many steps as an epoch has."""
    ranker = _ranker(recipe, batch)
    part = next(iter(InMemory(batch).epoch(BATCH, torch.Generator().manual_seed(0))))
    with Products() as products:
        ranking_loss(ranker(part), part, recipe.loss).total.backward()
    factors = [(torch.randn(a), torch.randn(b)) for a, b in products.shapes]

    def train() -> float:
        started = time.perf_counter()
        for _ in range(ROWS // BATCH):
            for first, second in factors:
                first @ second
        return time.perf_counter() - started

    return train


if __name__ == "__main__":
    main()
