"""A language model in this process, in bfloat16 where the hardware has it: pooled states, and what its head says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trainers.language.encoder import SLOT, EncoderConfig, Pooled
from trainers.language.model import LOADING, ModelError, fastest_dtype, quiet, threads_of
from trainers.language.token_tree import TokenTree, attend, batch_by_beginning, batch_by_length

TREE = "token_tree"  # the name under which transformers knows our attention
# Texts that are read at a time; sorted texts share most of what they can share within a window of this size.
WINDOW_TEXTS = 16_384
BATCH_TOKENS = {"cpu": 1536, "cuda": 32_768}
# Beginnings alike and ends not, of different length: what tells a tree of tokens from padding, in any vocabulary.
TRIAL = ([5, 6, 7, 8, 9], [5, 6, 9], [4, 7])
# Cosine distances that are rounding; a model that is wrongly taken for one that does not share is slower, not wrong.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-3}


class Prompt(NamedTuple):
    text: str
    ids: list[int]


class Prompts:
    """A model's tokenizer: texts in their template, at most `max_length` tokens; only the text is ever cut."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._max_length = max_length

    def fit(self, texts: Sequence[str], template: str) -> list[Prompt]:
        """Raises ModelError for a prompt without tokens and for a template that leaves no room."""
        if not texts:
            return []
        prompts = [template.replace(SLOT, text) for text in texts]
        fitted = [Prompt(*pair) for pair in zip(prompts, self._tokenizer(prompts)["input_ids"], strict=True)]
        room = self._max_length - len(self._tokenizer(template.replace(SLOT, ""))["input_ids"])
        for i in [i for i, prompt in enumerate(fitted) if len(prompt.ids) > self._max_length]:
            fitted[i] = self._cut(texts[i], template, room)
        if empty := [text for text, prompt in zip(texts, fitted, strict=True) if not prompt.ids]:
            raise ModelError(f"text {empty[0]!r} in template {template!r} is empty; remove it")
        return fitted

    def whole(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts of which nothing may be cut. Raises ModelError for one that is too long, or empty."""
        ids: list[list[int]] = self._tokenizer(list(prompts))["input_ids"] if prompts else []
        longest = max(range(len(ids)), key=lambda i: len(ids[i]), default=0)
        if ids and len(ids[longest]) > self._max_length:
            raise ModelError(
                f"a prompt has {len(ids[longest])} tokens and {self._max_length} are allowed; tell less or raise "
                f"max_length: {prompts[longest][:200]!r} ..."
            )
        if not all(ids):
            raise ModelError("a prompt is empty; give it words")
        return ids

    def pieces(self, word: str) -> list[int]:
        """The tokens of a word in the middle of a text."""
        ids: list[int] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids

    def text(self, ids: Sequence[int]) -> str:
        words: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return words

    def _cut(self, text: str, template: str, room: int) -> Prompt:
        """Shorten the text, in whole tokens, until text and template fit: tokens may merge where they meet."""
        starts = [start for start, _ in self._tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
        for keep in range(min(room, len(starts) - 1), -1, -1):
            prompt = template.replace(SLOT, text[: starts[keep]])
            ids: list[int] = self._tokenizer(prompt)["input_ids"]
            if len(ids) <= self._max_length:
                return Prompt(prompt, ids)
        raise ModelError(f"max_length {self._max_length} has no room for the template {template!r}; raise it")


def state_width(folder: Path) -> int:
    """The width of a model's states; only its settings are read."""
    config: Any = AutoConfig.from_pretrained(folder)
    return int(config.get_text_config().hidden_size)


class LocalModel:
    """A loaded model. Prompts share the computation of what they begin with, where the model lets them.

    Attributes:
        shares: whether it does: it is causal and tokens meet in its attention only. Found out by a trial.
    """

    def __init__(self, config: EncoderConfig) -> None:
        quiet()
        AttentionInterface.register(TREE, attend)
        folder = config.folder()
        self._config = config
        self._pooling = config.embedder().pooling
        self._prompts = Prompts(folder, config.max_length)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._max_tokens = config.max_tokens or BATCH_TOKENS[self._device]
        self._dtype = getattr(torch, fastest_dtype(config.dtype, self._device))
        # AutoModel is the backbone without the vocabulary head, for causal models and sentence encoders alike.
        with LOADING:
            self._model: Any = AutoModel.from_pretrained(folder, dtype=self._dtype).to(self._device).eval()
        longest = getattr(self._model.config, "max_position_embeddings", None) or config.max_length
        if config.max_length > longest:
            raise ModelError(f"max_length {config.max_length}: {config.model} reads {longest} tokens; lower it")
        self.shares = self._trial()

    @property
    def name(self) -> str:
        return f"{self._config.model} {str(self._dtype).removeprefix('torch.')}"

    def pooled(self, texts: Sequence[str], template: str) -> Iterator[Pooled]:
        for start in range(0, len(texts), WINDOW_TEXTS):
            ids = [prompt.ids for prompt in self._prompts.fit(texts[start : start + WINDOW_TEXTS], template)]
            for at in self._batches(ids):
                with threads_of(self._config.threads), torch.inference_mode():
                    states = self._pool([ids[i] for i in at])
                yield start + at, states.cpu().numpy()

    def _batches(self, ids: Sequence[list[int]]) -> Iterator[np.ndarray]:
        if self.shares:
            return batch_by_beginning(ids, self._max_tokens)
        return batch_by_length([len(i) for i in ids], self._max_tokens)

    def _pool(self, ids: Sequence[list[int]]) -> torch.Tensor:
        """float32 (b, width) of the final layer."""
        states_bLE = (self._tree_states(ids) if self.shares else self._padded_states(ids)).float()
        lengths_b = torch.tensor([len(i) for i in ids], device=self._device)
        places_L = torch.arange(states_bLE.shape[1], device=self._device)
        read_bL = places_L == lengths_b[:, None] - 1 if self._pooling == "last" else places_L < lengths_b[:, None]
        return (states_bLE * read_bL[:, :, None]).sum(1) / read_bL.sum(1, keepdim=True)

    def _tree_states(self, ids: Sequence[list[int]]) -> torch.Tensor:
        """Final states of the tokens of each prompt, right-padded: (b, L, width)."""
        tree = TokenTree.of(ids, self._device)
        output = self._model(
            input_ids=tree.tokens_T[None], position_ids=tree.positions_T[None], tree=tree, use_cache=False
        )
        states: torch.Tensor = output.last_hidden_state[0][tree.paths_nL]
        return states

    def _padded_states(self, ids: Sequence[list[int]]) -> torch.Tensor:
        """The same, without a tree."""
        longest = max(len(i) for i in ids)
        tokens = torch.tensor([i + [0] * (longest - len(i)) for i in ids], device=self._device)
        # Real tokens are known by length, never by the padding id: some models pad with their end-of-text token.
        mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids], device=self._device)
        states: torch.Tensor = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return states

    @torch.inference_mode()
    def _trial(self) -> bool:
        """Whether a tree gives the states that padding gives; the model is left in the way that works."""
        padded = self._padded_states(TRIAL)
        usual = self._model.config._attn_implementation
        try:
            self._model.set_attn_implementation(TREE)
            shared = self._tree_states(TRIAL)
        except (ValueError, TypeError):  # its attention cannot be replaced, or takes no arguments of ours
            shared = torch.full_like(padded, torch.nan)
        distance = 1 - torch.cosine_similarity(shared.float(), padded.float(), dim=-1)
        real = [(row, place) for row, ids in enumerate(TRIAL) for place in range(len(ids))]
        same = all(bool(distance[at] < ROUNDING[self._dtype]) for at in real)
        if not same:
            self._model.set_attn_implementation(usual)
        return same


def is_causal(config: EncoderConfig) -> bool:
    """Whether a model was made to go on writing; only its settings are read."""
    made: Any = getattr(AutoConfig.from_pretrained(config.folder()), "architectures", None)
    return bool(set(made or ()) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


class CausalModel:
    """A loaded causal language model with its head, which says what comes next.

    Attributes:
        model: the network. prompts: its tokenizer.
        ends: tokens after which nothing more is said.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Raises ModelError for a model that was not made to go on writing."""
        quiet()
        if not is_causal(config):
            raise ModelError(f"{config.model} is no causal language model, and prompts need one; choose another")
        self.prompts = Prompts(config.folder(), config.max_length)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.max_tokens = config.max_tokens or BATCH_TOKENS[self.device]
        dtype = getattr(torch, fastest_dtype(config.dtype, self.device))
        with LOADING:
            loaded: Any = AutoModelForCausalLM.from_pretrained(config.folder(), dtype=dtype)
        self.model: Any = loaded.to(self.device).eval()
        end = self.model.generation_config.eos_token_id
        self.ends: list[int] = end if isinstance(end, list) else [] if end is None else [end]
        self.name = f"{config.model} {str(dtype).removeprefix('torch.')}"

    def directions(self, words: Sequence[str]) -> np.ndarray:
        """For each word the direction of states after which the head would say it: float32 (W, width).

        The mean over the word's tokens, spelt with and without a blank before it. A bias of the head is left out: it is
        the same after every prompt.
        """
        head_VE = self.model.get_output_embeddings().weight.detach().float()
        spelt = [[self.prompts.pieces(spelling) for spelling in (word, f" {word}")] for word in words]
        means = [torch.stack([head_VE[ids].mean(0) for ids in both]).mean(0) for both in spelt]
        directions_WE: np.ndarray = torch.stack(means).cpu().numpy()
        return directions_WE
