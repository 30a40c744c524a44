"""Plain English that has nothing to do with POIs, mixed in so that a language model does not forget how to write it.

The default comes with every Python: the prose of its language reference (`pydoc_data.topics`; Python Software
Foundation License 2.0), about 50,000 tokens without code and tables. Who has better text names a file or a folder of
`*.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CHUNK_CHARACTERS = 300  # paragraphs are joined up to about this length
HELD_OUT_EVERY = 10  # of ten chunks in a row one is held out
FEWEST_WORDS, PLAIN_SHARE = 8, 0.8  # what counts as a paragraph of prose
PLAIN_WORD = re.compile(r"\W*[^\W\d_]+(?:['\u2019-][^\W\d_]+)*\W*")  # letters, with marks around them


class GeneralTextError(ValueError):
    """There is no general text where it was sought. The message names the place and the remedy."""


@dataclass(frozen=True)
class GeneralText:
    """Chunks of a few sentences each; no paragraph stands in two of them."""

    chunks: tuple[str, ...]
    held_out: tuple[str, ...]


def read_general_text(source: Path | None = None) -> GeneralText:
    """The default text, or that of a file or a folder. Raises GeneralTextError for one without any prose."""
    chunks = list(_chunks(dict.fromkeys(p for text in _texts(source) for p in _prose(text))))
    if len(chunks) < HELD_OUT_EVERY:
        raise GeneralTextError(
            f"{source}: {len(chunks)} passages of plain English found, {HELD_OUT_EVERY} are needed; name a text file "
            "or a folder of *.txt, or leave the option out to use Python's own documentation"
        )
    kept = (c for i, c in enumerate(chunks) if i % HELD_OUT_EVERY)
    return GeneralText(tuple(kept), tuple(chunks[::HELD_OUT_EVERY]))


def _texts(source: Path | None) -> Iterator[str]:
    if source is None:
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
        return
    files: Sequence[Path] = sorted(source.rglob("*.txt")) if source.is_dir() else [source]
    for file in files:
        if not file.is_file():
            raise GeneralTextError(f"{file}: no such file; name a text file or a folder of *.txt")
        yield file.read_text(encoding="utf-8", errors="replace")


def _prose(text: str) -> Iterator[str]:
    """The paragraphs that are prose, each on one line."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words)
        if len(words) >= FEWEST_WORDS and plain >= PLAIN_SHARE * len(words) and words[-1][-1] in ".:!?\"”')":
            yield " ".join(words)


def _chunks(paragraphs: Iterable[str]) -> Iterator[str]:
    joined = ""
    for paragraph in paragraphs:
        joined = f"{joined} {paragraph}".strip()
        if len(joined) >= CHUNK_CHARACTERS:
            yield joined
            joined = ""
    if joined:
        yield joined
