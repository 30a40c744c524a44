"""Texts a second: our encoder against sentence-transformers, with the same model, texts, numbers, threads and length.

Both sides turn the texts of a city (POIs, users, scene sentences, and prompts over a person's last places) into vectors
of the last token's state, kind by kind and turn by turn in one process; their vectors have to agree. The peer gets the
best of several batch sizes, found on the texts themselves. The machine's matmul peak is measured between the turns.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from feature_repo import aggregates, columns
from feature_repo.datasets.city import CityConfig, build
from feature_repo.workspace import Workspace
from trainers.language.encoder import SLOT, TEMPLATES, EncoderConfig, TextEncoder
from trainers.language.local import BATCH_TOKENS, Prompts
from trainers.language.model import fastest_dtype
from trainers.language.texts import collect
from trainers.language.token_tree import TokenTree, batch_by_beginning

PROMPT = "prompt"
PLACES = 4  # of one prompt: about 160 tokens
LAST_PLACES = f'A person went to these places. "{SLOT}" Summed up in one word, what this person likes is "'
CONFIG = EncoderConfig(templates={**TEMPLATES, PROMPT: LAST_PLACES})
BATCH_SIZES = (16, 32, 64, 128)
# Texts of each kind, times the size that is asked for.
SHARES = {"poi_text": 4, "user_text": 8, "scene_text": 8, PROMPT: 1}
COSINE_DISTANCE = {"float32": 1e-4, "bfloat16": 1e-2}

Texts = dict[str, list[str]]
Dtype = Literal["float32", "bfloat16"]
Encode = Callable[[str, list[str]], np.ndarray]  # kind, texts -> vectors


def city_texts(size: int) -> Texts:
    """A random sample of the distinct texts that a small city's log gives rise to, by kind."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="embed-") as folder:
        workspace = Workspace(Path(folder))
        build(CityConfig(days=14), lambda what, done, total: None).write(workspace.sources)
        aggregates.build(workspace)
        texts = {k: sorted(set(collect(workspace, k)[columns.TEXT].to_pylist())) for k in SHARES if k != PROMPT}
    places = [" ".join(rng.choice(texts["poi_text"], PLACES, replace=False)) for _ in range(len(texts["poi_text"]))]
    texts[PROMPT] = sorted(set(places))
    return {k: sorted(rng.choice(t, min(len(t), size * SHARES[k]), replace=False)) for k, t in texts.items()}


def ours(config: EncoderConfig) -> Encode:
    encoder = TextEncoder(config)
    return lambda kind, texts: encoder.encode(texts, kind)


def peer(config: EncoderConfig) -> Callable[[int], Encode]:
    """sentence-transformers, by batch size. Its prompts are prefixes only, so it gets the texts in their templates."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    module = Transformer(
        str(config.folder()),
        max_seq_length=config.max_length,
        model_kwargs={"dtype": getattr(torch, config.dtype)},
        # Text as it is: by default it would become a message in the chat template.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    model = SentenceTransformer(modules=[module, Pooling(module.get_embedding_dimension(), "lasttoken")], device="cpu")

    def encode(size: int, kind: str, texts: list[str]) -> np.ndarray:
        prompts = [config.template(kind).replace(SLOT, text) for text in texts]
        return np.asarray(model.encode(prompts, batch_size=size, show_progress_bar=False), dtype=np.float32)

    return lambda size: partial(encode, size)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest cosine distance between rows."""
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((1 - (a * b).sum(1) / scale).max())


def seconds(encode: Encode, kind: str, texts: list[str]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    vectors = encode(kind, texts)
    return time.perf_counter() - started, vectors


def matmul_flops(dtype: torch.dtype, size: int = 2048) -> float:
    """The most operations a second of a few large square products."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


@dataclass(frozen=True)
class Work:
    """What the prompts of one kind are to each side: tokens of all of them, and of the trees that they share."""

    texts: int
    tokens: int
    computed: int


def work(config: EncoderConfig, kind: str, texts: list[str]) -> Work:
    fitted = Prompts(config.folder(), config.max_length).fit(texts, config.template(kind))
    ids = [prompt.ids for prompt in fitted]
    trees = (TokenTree.of([ids[i] for i in at], "cpu") for at in batch_by_beginning(ids, BATCH_TOKENS["cpu"]))
    return Work(len(texts), sum(map(len, ids)), sum(len(tree.tokens_T) for tree in trees))


def flops_a_token(config: EncoderConfig) -> float:
    """Two a weight of the layers; attention over so few tokens is left out."""
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(config.folder(), dtype=torch.bfloat16)
    return 2.0 * sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)


def best_batch_size(encoders: Callable[[int], Encode], texts: Texts) -> int:
    """The one with which the peer is fastest on an eighth of the texts, sizes taking turns."""
    some = {kind: t[::8] for kind, t in texts.items()}
    taken: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for _ in range(2):
        for size in BATCH_SIZES:
            taken[size].append(sum(seconds(encoders(size), k, t)[0] for k, t in some.items()))
    print({size: f"{min(times):.1f} s" for size, times in taken.items()}, flush=True)
    return min(taken, key=lambda size: min(taken[size]))


def agree(texts: Texts, dtype: Dtype) -> float:
    """The greatest distance between the vectors of both sides. Raises AssertionError where it is too great."""
    config = replace(CONFIG, dtype=dtype)
    mine, theirs = ours(config), peer(config)(BATCH_SIZES[0])
    greatest = max(distance(mine(k, t[:8]), theirs(k, t[:8])) for k, t in texts.items())
    assert greatest <= COSINE_DISTANCE[dtype], f"{dtype}: cosine distance {greatest}"
    return greatest


def measure(config: EncoderConfig, texts: Texts, rounds: int) -> tuple[dict[str, np.ndarray], float]:
    """Seconds of both sides, (rounds, 2) a kind, and the matmul peak; all take turns."""
    encoders = peer(config)
    size = best_batch_size(encoders, texts)
    print(f"sentence-transformers is fastest with batches of {size}", flush=True)
    sides = (ours(config), encoders(size))
    taken: dict[str, list[list[float]]] = {kind: [] for kind in texts}
    peaks = []
    for turn in range(rounds):
        for kind, some in texts.items():
            order = (0, 1) if turn % 2 else (1, 0)
            both = {side: seconds(sides[side], kind, some) for side in order}
            assert distance(both[0][1], both[1][1]) <= COSINE_DISTANCE[config.dtype]
            taken[kind].append([both[0][0], both[1][0]])
            peaks.append(matmul_flops(getattr(torch, config.dtype)))
    return {kind: np.array(times) for kind, times in taken.items()}, float(np.median(peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", type=int, default=10, help="prompts over places; other kinds have 4 to 8 times as many"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    from report import Row, write

    torch.set_num_threads(options.threads)
    dtype = cast(Dtype, fastest_dtype("auto", "cpu"))
    config = replace(CONFIG, dtype=dtype)
    texts = city_texts(options.size)
    print("cosine distance in float32:", f"{agree(texts, 'float32'):.1e}", flush=True)
    taken, peak = measure(config, texts, options.rounds)
    works = {kind: work(config, kind, some) for kind, some in texts.items()}
    rows = []
    for kind, times in [*taken.items(), ("texts", np.sum(list(taken.values()), axis=0))]:
        n = sum(w.texts for k, w in works.items() if kind in (k, "texts"))
        mine, theirs = n / np.median(times, axis=0)
        rows.append(
            Row(
                name=f"{kind}-vs-sentence-transformers",
                ours=mine,
                reference=theirs,
                better="higher",
                unit="texts/s",
                n=n,
            )
        )
    spent = float(np.median(np.sum(list(taken.values()), axis=0)[:, 0]))
    tokens, computed = (sum(getattr(w, name) for w in works.values()) for name in ("tokens", "computed"))
    print(f"{tokens / spent:,.0f} tokens/s, of which {computed / spent:,.0f} computed ({computed / tokens:.0%})")
    used = computed * flops_a_token(config) / spent / 1e9
    rows.append(
        Row(name="layers-vs-matmul-peak", ours=used, reference=peak / 1e9, better="higher", unit="GFLOP/s", n=computed)
    )
    write("embed", rows)


if __name__ == "__main__":
    main()
