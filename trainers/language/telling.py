"""What a model freely writes about a scenario or a user, for a person to read, always with the model's name before it.

Small models write fluently and say what is not so; that is why nothing is learned from these texts, and why they are
written on request only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns
from trainers.language.encoder import EncoderConfig, Progress
from trainers.language.model import model_identity, threads_of
from trainers.language.parquet import hash_of, write


def tell(
    folder: Path, config: EncoderConfig, prompts: Sequence[str], tokens: int, progress: Progress
) -> dict[str, str]:
    """Prompt -> what was written after it, those kept in `folder` first; a call that is new is put away at once."""
    path = folder / f"told-{_version(config, tokens)}"
    known: dict[str, str] = {}
    for file in sorted(path.glob("[0-9]*.parquet")):
        table = pq.read_table(file)
        known |= dict(zip(table[columns.TEXT_HASH].to_pylist(), table[columns.TOLD].to_pylist(), strict=True))
    missing = sorted({prompt for prompt in prompts if hash_of(prompt) not in known})
    if missing:
        known |= _write(path, config, missing, tokens, progress)
    return {prompt: known[hash_of(prompt)] for prompt in prompts}


def _write(
    folder: Path, config: EncoderConfig, prompts: Sequence[str], tokens: int, progress: Progress
) -> dict[str, str]:
    from trainers.language.generation import continuations
    from trainers.language.local import CausalModel

    model = CausalModel(config)
    said: dict[str, str] = {}
    number = len(list(folder.glob("[0-9]*.parquet")))
    with threads_of(config.threads):
        for at, written in continuations(model, prompts, tokens):
            new = {
                hash_of(prompts[i]): f"{model.name}: {first_paragraph(model.prompts.text(w.ids))}"
                for i, w in zip(at, written, strict=True)
            }
            table = pa.table({columns.TEXT_HASH: list(new), columns.TOLD: list(new.values())})
            write(table, folder / f"{number:06d}.parquet")
            number += 1
            said |= new
            progress("free text", len(said), len(prompts))
    return said


def _version(config: EncoderConfig, tokens: int) -> str:
    identity = model_identity(config.model, config.revision, config.models)
    return hashlib.sha256(f"{identity}\0{tokens}".encode()).hexdigest()[:12]


def first_paragraph(text: str) -> str:
    """
    >>> first_paragraph(" pubs, and cakes.\\nThe answer")
    'pubs, and cakes.'
    """
    return text.strip().partition("\n")[0]
