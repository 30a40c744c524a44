"""Projector heads: from the pooled state of a language model to the space in which texts are compared.

States of a causal model share a large common part, which differs between prompts and, among scene values, between the
sentences of different features: it says what is asked, not what is answered. Each text is therefore centred by the mean
of its group first, a group being a vector space or the sentences of one scene feature. Heads lie beside the weights of
their model in one file that holds numbers and names only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from feature_repo import scenes
from feature_repo.datasets.schema import Schema
from trainers.language.texts import SCENES
from trainers.plain import from_plain, to_plain

FILE = "heads.safetensors"
VALUE = "{value}"
START_LENGTH = 0.5  # of each row of a projector that starts from principal directions: about that of a random one


class HeadError(ValueError):
    """Heads cannot be read or used. The message names the file or the space, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The form of every projector.

    Args:
        width: of the vectors that come out.
        hidden: width of one hidden layer with GELU; 0 is a linear projector.
        centre_features: centre the sentences of each scene feature by their own mean, not all by one.
        principal: linear projectors start as the principal directions of the states, the same ones in each: learning
            starts from what the untuned model finds alike. Otherwise, and with a hidden layer, they start at random.
    """

    width: int = 128
    hidden: int = 0
    centre_features: bool = True
    principal: bool = True

    def __post_init__(self) -> None:
        if self.width < 1 or self.hidden < 0:
            raise HeadError(f"a head needs a positive width and a hidden width of at least 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which mean a text is centred by.

    Attributes:
        spaces: vector spaces; each is a group.
        sentences: scene feature -> the sentence that its values stand in, with `{value}`; each is a group of its own.
    """

    spaces: tuple[str, ...]
    sentences: Mapping[str, str]

    @staticmethod
    def of_schema(spaces: Sequence[str], schema: Schema, *, features: bool = True) -> Groups:
        """The groups of a data set; without `features` every space is one."""
        sentences = {f.name: f.sentence for f in scenes.features_of(schema)} if features else {}
        return Groups(spaces=tuple(spaces), sentences=sentences)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.spaces, *self.sentences)

    def of(self, space: str, texts: Sequence[str]) -> np.ndarray:
        """Positions in `names`, int64 (n,). A scene text in no known sentence belongs to its space.

        Raises HeadError for a space that the heads were not made for.
        """
        if space not in self.spaces:
            raise HeadError(f"the heads know no texts of space {space!r}, only of {list(self.spaces)}")
        if space != SCENES:
            return np.full(len(texts), self.spaces.index(space), np.int64)
        return np.array([self._of_scene(text) for text in texts], np.int64)

    def _of_scene(self, text: str) -> int:
        return next(
            (at for before, after, at in self._parts if text.startswith(before) and text.endswith(after)),
            self.spaces.index(SCENES),
        )

    @cached_property
    def _parts(self) -> list[tuple[str, str, int]]:
        """What stands before and after each value, the longest first, as it may begin like a shorter one."""
        split = ((name, sentence.partition(VALUE)) for name, sentence in self.sentences.items())
        parts = [(before, after, self.names.index(name)) for name, (before, _, after) in split]
        return sorted(parts, key=lambda part: -len(part[0]))


@dataclass(frozen=True, kw_only=True)
class _Note:
    """What the file of heads says of itself beside its tensors."""

    names: tuple[str, ...]
    width_in: int
    config: HeadConfig
    groups: Groups


class Heads(nn.Module):
    """Named projectors over one standardised input. Letters: N texts, W width of a state, D width of a vector."""

    mean_GW: Tensor
    scale: Tensor

    def __init__(self, names: Sequence[str], width_in: int, config: HeadConfig, groups: Groups) -> None:
        super().__init__()
        self.note = _Note(names=tuple(names), width_in=width_in, config=config, groups=groups)
        self.projectors = nn.ModuleDict({name: _projector(width_in, config) for name in names})
        self.register_buffer("mean_GW", torch.zeros(len(groups.names), width_in))
        self.register_buffer("scale", torch.ones(()))

    @property
    def groups(self) -> Groups:
        return self.note.groups

    def fit(self, pooled_NW: Tensor, group_N: Tensor) -> None:
        """Take means and scale from states of texts; a group without any keeps the mean of all.

        The scale is one number, the deviation within groups: coordinates keep their proportions. Untrained projectors
        get their start here.
        """
        pooled_NW = pooled_NW.float()
        self.mean_GW[:] = pooled_NW.mean(0)
        for group in set(group_N.tolist()):
            self.mean_GW[group] = pooled_NW[group_N == group].mean(0)
        self.scale.fill_((pooled_NW - self.mean_GW[group_N]).square().mean().sqrt().clamp(min=1e-6).item())
        if self.note.config.principal and not self.note.config.hidden:
            self._start((pooled_NW - self.mean_GW[group_N]) / self.scale)

    def _start(self, standard_NW: Tensor) -> None:
        """Every projector takes the directions in which states differ most; fewer states fix fewer of them."""
        directions_RW = torch.linalg.svd(standard_NW, full_matrices=False).Vh[: self.note.config.width]
        with torch.no_grad():
            for projector in self.projectors.values():
                linear = projector.get_submodule("0")
                assert isinstance(linear, nn.Linear)
                linear.weight[: len(directions_RW)] = START_LENGTH * directions_RW
                linear.bias.zero_()

    def forward(self, pooled_NW: Tensor, group_N: Tensor) -> dict[str, Tensor]:
        """The vectors of N texts in every head's space: name -> (N, D)."""
        standard_NW = (pooled_NW.float() - self.mean_GW[group_N]) / self.scale
        return {name: projector(standard_NW) for name, projector in self.projectors.items()}

    def save(self, folder: Path) -> None:
        """Write `heads.safetensors`."""
        tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / FILE, metadata={"note": json.dumps(to_plain(self.note))})

    @staticmethod
    def load(folder: Path) -> Heads:
        """The heads of a model folder, on the CPU. Raises HeadError for an absent or broken file."""
        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as file:
                note = from_plain(_Note, json.loads(file.metadata()["note"]))
                heads = Heads(note.names, note.width_in, note.config, note.groups)
                heads.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise HeadError(f"{path}: no heads can be read ({error}); tune the model again") from error
        return heads.eval()


def project(pooled: np.ndarray, texts: Sequence[str], space: str, heads: Heads, name: str) -> np.ndarray:
    """Pooled states of n texts of one space through one head: float32 (n, D), raw as all vectors are.

    Raises HeadError for a head or a space that is not there.
    """
    if name not in heads.projectors:
        raise HeadError(f"no head {name!r} for space {space!r}; there are {list(heads.note.names)}")
    groups = torch.from_numpy(heads.groups.of(space, texts))
    with torch.no_grad():
        vectors = heads(torch.from_numpy(np.ascontiguousarray(pooled, np.float32)), groups)[name]
    return np.asarray(vectors.numpy(), np.float32)


def _projector(width_in: int, config: HeadConfig) -> nn.Sequential:
    if not config.hidden:
        return nn.Sequential(nn.Linear(width_in, config.width))
    return nn.Sequential(nn.Linear(width_in, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width))
