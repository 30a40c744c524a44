"""The network that contrastive tuning trains: prompts through a language model and its heads, each text once.

Layers below the first adapter are frozen, so what they make of a text never changes: it is computed once and kept, and
a step runs the upper layers only. Letters: N prompts, b prompts of one piece, L tokens, W width of a state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from trainers.language.adapters import layers_of
from trainers.language.contrastive import encode_pieces
from trainers.language.heads import Heads
from trainers.language.model import ModelError
from trainers.language.token_tree import batch_by_length

TRIAL = (5, 6, 7, 8, 9)  # a prompt in any vocabulary
TRIAL_DISTANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """How texts are run through the model.

    Args:
        max_tokens: a piece holds at most this many tokens, padding included (a longer text goes alone).
        cached_gradients: hold the activations of one piece only (`contrastive.encode_pieces`): batches of any size in
            the memory of one piece, for one more forward pass.
        kept_megabytes: of states of the frozen layers; texts beyond that are run through them again at every step.
    """

    max_tokens: int = 3072
    cached_gradients: bool = False
    kept_megabytes: int = 2048


class Reader(nn.Module):
    """A causal language model with heads. Where it is sharded, every process reads its texts in one piece.

    Args:
        language: a causal model, with adapters or without.
        pooling: "last" token or "mean" over all, of the final layer.
        frozen: layers from the first on that are not trained, nor is anything below them.
    """

    def __init__(
        self,
        language: nn.Module,
        heads: Heads,
        config: ReaderConfig,
        *,
        pooling: Literal["last", "mean"] = "last",
        frozen: int = 0,
    ) -> None:
        super().__init__()
        self.language, self.heads = language, heads
        self._config, self._pooling, self._frozen = config, pooling, frozen
        self._kept: dict[tuple[int, ...], Tensor] = {}  # prompt -> states (L, W) above the frozen layers
        self._room = config.kept_megabytes * 2**20
        self._backbone, _, self._layers = layers_of(language)[0].rpartition(".")
        if frozen:
            self._try()

    def forward(self, prompts: Sequence[Sequence[int]], group_N: Tensor) -> dict[str, Tensor]:
        """The vectors of N prompts (token ids) in the space of every head: name -> (N, D)."""
        pooled_NW = self.pooled(prompts)
        with torch.autocast(pooled_NW.device.type, enabled=False):
            vectors: dict[str, Tensor] = self.heads(pooled_NW, group_N.to(pooled_NW.device))
        return vectors

    def pooled(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """One state a prompt: float32 (N, W)."""
        lengths = [len(prompt) for prompt in prompts]
        # Processes that share layers must call each layer equally often.
        sharded = any(isinstance(p, DTensor) for p in self.parameters())
        pieces = [np.arange(len(prompts))] if sharded else list(batch_by_length(lengths, self._config.max_tokens))
        states = encode_pieces(
            lambda at: self._read([prompts[i] for i in at], keep=not sharded),
            pieces,
            cached=self._config.cached_gradients,
        )
        order = torch.from_numpy(np.concatenate(pieces)).argsort()
        return torch.cat(states)[order.to(states[0].device)]

    def _read(self, prompts: Sequence[Sequence[int]], *, keep: bool) -> Tensor:
        """The pooled states of one piece: float32 (b, W)."""
        backbone: Any = self.language.get_submodule(self._backbone)
        if self._frozen:
            given = {"inputs_embeds": self._frozen_states(backbone, prompts, keep=keep)}
            backbone = self._part(backbone, slice(self._frozen, None))
        else:
            given = {"input_ids": self._padded(prompts)}
        # Padding is to the right of a causal model: no real token sees it.
        state_bLW = backbone(**given, use_cache=False).last_hidden_state.float()
        length_b = torch.tensor([len(prompt) for prompt in prompts], device=state_bLW.device)
        if self._pooling == "last":
            return state_bLW[torch.arange(len(prompts), device=state_bLW.device), length_b - 1]
        real_bL = torch.arange(state_bLW.shape[1], device=state_bLW.device) < length_b[:, None]
        return (state_bLW * real_bL[:, :, None]).sum(1) / length_b[:, None]

    def _frozen_states(self, backbone: Any, prompts: Sequence[Sequence[int]], *, keep: bool) -> Tensor:
        """What the frozen layers make of each prompt, kept or computed, right-padded: (b, L, W)."""
        wanted = [tuple(prompt) for prompt in prompts]
        states = {prompt: self._kept[prompt] for prompt in wanted if prompt in self._kept}
        missing = [prompt for prompt in dict.fromkeys(wanted) if prompt not in states]
        if missing:
            with torch.no_grad():
                lower = self._part(backbone, slice(0, self._frozen), final=False)
                fresh = lower(input_ids=self._padded(missing), use_cache=False).last_hidden_state
            states |= {prompt: state[: len(prompt)].clone() for prompt, state in zip(missing, fresh, strict=True)}
        if keep:
            self._keep({prompt: states[prompt] for prompt in missing})
        return pad_sequence([states[prompt] for prompt in wanted], batch_first=True)

    def _keep(self, fresh: Mapping[tuple[int, ...], Tensor]) -> None:
        for prompt, state in fresh.items():
            size = state.numel() * state.element_size()
            if size <= self._room:
                self._kept[prompt] = state
                self._room -= size

    def _part(self, backbone: Any, layers: slice, *, final: bool = True) -> Any:
        """The same backbone with some of its layers only, and without the norm at its end; weights are shared."""
        part = copy.copy(backbone)
        part._modules = {**backbone._modules, self._layers: backbone._modules[self._layers][layers]}
        if not final:
            part._modules["norm"] = nn.Identity()
        return part

    def _padded(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        device = next(self.parameters()).device
        return pad_sequence([torch.tensor(prompt, device=device) for prompt in prompts], batch_first=True)

    def _try(self) -> None:
        """See that the layers in two parts are the model. Raises ModelError where they are not."""
        backbone: Any = self.language.get_submodule(self._backbone)
        with torch.no_grad():
            whole = backbone(input_ids=self._padded([TRIAL]), use_cache=False).last_hidden_state.float()
            lower = self._frozen_states(backbone, [TRIAL], keep=False)
            upper = self._part(backbone, slice(self._frozen, None))
            parts = upper(inputs_embeds=lower, use_cache=False).last_hidden_state.float()
        if not bool((1 - torch.cosine_similarity(whole, parts, dim=-1) < TRIAL_DISTANCE).all()):
            raise ModelError(
                f"the layers of {type(backbone).__name__} cannot be run in two parts; adapt all of them (first layer 0)"
            )
