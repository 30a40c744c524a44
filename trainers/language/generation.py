"""What a causal model writes after prompts, greedily, and the state of every token that it wrote.

Letters: n prompts, L tokens of the longest, E width of a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from trainers.language.local import CausalModel
from trainers.language.token_tree import batch_by_length


class Continuation(NamedTuple):
    """What was written after one prompt.

    Attributes:
        asked_E: the state of the prompt's last token.
        ids: the tokens that were written, the end of the text not among them. states_mE: the state of each.
    """

    asked_E: np.ndarray
    ids: list[int]
    states_mE: np.ndarray


def continuations(
    model: CausalModel, prompts: Sequence[str], tokens: int
) -> Iterator[tuple[np.ndarray, list[Continuation]]]:
    """Positions of some prompts and at most `tokens` tokens after each, always the likeliest one; longest first."""
    ids = model.prompts.whole(prompts)
    for at in batch_by_length([len(prompt) + tokens for prompt in ids], model.max_tokens):
        yield at, _continue(model, [ids[i] for i in at], tokens)


@torch.inference_mode()
def _continue(model: CausalModel, prompts: Sequence[list[int]], tokens: int) -> list[Continuation]:
    """Prompts stand side by side, padded on the left, so that all of them go on in the same column."""
    backbone, head = model.model.base_model, model.model.get_output_embeddings()
    longest = max(len(prompt) for prompt in prompts)
    ids_nL = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    real_nL = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    places_nL = (real_nL.cumsum(1) - 1).clamp(min=0)
    output: Any = backbone(input_ids=ids_nL, attention_mask=real_nL, position_ids=places_nL, use_cache=True)
    # What transformers calls the keys and values of the tokens so far: `cache` since 5.24, another name before.
    remembered = "cache" if "cache" in output else "past_key_values"
    asked_nE = state_nE = output.last_hidden_state[:, -1]
    going_n = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    ends = torch.tensor(model.ends, device=model.device, dtype=torch.long)
    written: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    lengths_n = torch.zeros_like(going_n, dtype=torch.long)
    for step in range(tokens):
        next_n = head(state_nE).argmax(-1)
        going_n = going_n & ~torch.isin(next_n, ends)
        if not going_n.any():
            break
        lengths_n += going_n
        real_nL = torch.cat([real_nL, torch.ones_like(real_nL[:, :1])], dim=1)
        output = backbone(
            input_ids=next_n[:, None],
            attention_mask=real_nL,
            position_ids=places_nL[:, -1:] + 1 + step,
            use_cache=True,
            **{remembered: output[remembered]},
        )
        state_nE = output.last_hidden_state[:, -1]
        written.append(next_n)
        states.append(state_nE)
    return [
        Continuation(
            asked_E=asked_nE[row].float().cpu().numpy(),
            ids=[int(token[row]) for token in written[:length]],
            states_mE=_stacked([state[row] for state in states[:length]], asked_nE.shape[1]),
        )
        for row, length in enumerate(lengths_n.tolist())
    ]


def _stacked(states: Sequence[torch.Tensor], width: int) -> np.ndarray:
    """float32 (m, width), also for m = 0."""
    if not states:
        return np.zeros((0, width), np.float32)
    stacked: np.ndarray = torch.stack(list(states)).float().cpu().numpy()
    return stacked
