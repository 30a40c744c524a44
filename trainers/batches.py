"""Where training batches come from: a part held in memory, or Parquet files streamed through a shuffle buffer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feature_repo.datasets.schema import Schema
from trainers.batch import Batch
from trainers.encoding import Encoding, Vocabulary


class Batches(Protocol):
    """A training part."""

    def steps(self, size: int) -> int:
        """How many batches one epoch has, at least about."""
        ...

    def sample(self) -> Batch:
        """As many rows as fit in memory, for statistics."""
        ...

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """All rows once, in an order drawn from the generator, in batches of at most `size` rows."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A part that fits in memory: one large Batch, cut anew for each epoch.

    Rows of one scene stay together, so that a scene is encoded about once an epoch instead of once a row; scenes come
    in random order, and so do the rows of each.

    Args:
        lists: rows of one request stay together instead, and no batch ends within a request.
    """

    whole: Batch
    lists: bool = False

    def steps(self, size: int) -> int:
        if not self.lists:
            return math.ceil(len(self.whole) / size)
        group_B = self._groups()
        return sum(1 for _ in whole_lists(torch.argsort(group_B), group_B, size))  # of one order; others differ little

    def sample(self) -> Batch:
        return self.whole

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(self.whole), generator=generator)
        group_B = self._groups()
        place = torch.randperm(int(group_B.max()) + 1 if len(group_B) else 0, generator=generator)
        order = order[torch.argsort(place[group_B[order]], stable=True)]
        for rows in whole_lists(order, group_B, size) if self.lists else pieces(order, size):
            yield self.whole.rows(rows)

    def _groups(self) -> Tensor:
        if not self.lists:
            return self.whole.scene_of_row_B
        if self.whole.request_B is None:
            raise ValueError("lists need to know which rows are one request's; this table names no requests")
        return self.whole.request_B


def pieces(order: Tensor, size: int) -> Iterator[Tensor]:
    """Ordered rows, `size` at a time; none of none."""
    return (order[start : start + size] for start in range(0, len(order), size))


def whole_lists(order: Tensor, group_B: Tensor, size: int) -> Iterator[Tensor]:
    """Cut ordered rows where a group ends: at most `size` rows a piece, unless one group alone is larger."""
    changes = torch.nonzero(torch.diff(group_B[order])).flatten() + 1
    ends = torch.cat([changes, torch.tensor([len(order)])])
    start = 0
    while start < len(order):
        fitting = ends[(ends > start) & (ends <= start + size)]
        end = int(fitting[-1] if len(fitting) else ends[ends > start][0])
        yield order[start:end]
        start = end


@dataclass(frozen=True)
class Streamed:
    """Parquet files larger than memory, read in random order through a buffer in which rows are shuffled.

    Args:
        files: parts of a pull. Rows of one file that lie together should not all be alike in their labels: the buffer
            mixes no further than `buffer_rows`.
        lists: as in `InMemory`; the rows of a request that lie in two buffers are two lists.
    """

    files: tuple[Path, ...]
    encoding: Encoding
    buffer_rows: int = 500_000
    lists: bool = False

    def steps(self, size: int) -> int:
        rows = sum(pq.read_metadata(path).num_rows for path in self.files)
        if not self.lists:
            return math.ceil(rows / size)
        buffer = InMemory(self.sample(), lists=True)
        return math.ceil(buffer.steps(size) * rows / len(buffer.whole))

    def sample(self) -> Batch:
        return next(self._buffers(self.files))

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(self.files), generator=generator)
        for buffer in self._buffers([self.files[int(at)] for at in order]):
            yield from InMemory(buffer, lists=self.lists).epoch(size, generator)

    def _buffers(self, files: Sequence[Path]) -> Iterator[Batch]:
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for path in files:
            for piece in pq.ParquetFile(path).iter_batches(batch_size=min(self.buffer_rows, 65_536)):
                waiting.append(piece)
                rows += len(piece)
                if rows >= self.buffer_rows:
                    yield Batch.from_arrow(pa.Table.from_batches(waiting), self.encoding)
                    waiting, rows = [], 0
        if waiting:
            yield Batch.from_arrow(pa.Table.from_batches(waiting), self.encoding)


def fit_encoding(files: Sequence[Path], schema: Schema, scaler_rows: int = 500_000) -> Encoding:
    """`Encoding.fit` for parts larger than memory: vocabularies from all rows, column by column; scalers (ranges
    too) and rates from about `scaler_rows` rows, read from files spread evenly over the part, the first and the last
    among them: counts grow, and what lies beyond a range is cut off."""
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    wanted = min(len(files), max(2, math.ceil(len(files) * scaler_rows / rows)))
    spread = [files[round(at * (len(files) - 1) / max(wanted - 1, 1))] for at in range(wanted)]
    encoding = Encoding.fit(pa.concat_tables([pq.read_table(path) for path in spread]), schema)
    vocabularies = {
        name: Vocabulary.fit(pa.concat_tables([pq.read_table(path, columns=[name]) for path in files])[name])
        for name in encoding.vocabularies
    }
    return replace(encoding, vocabularies=vocabularies)
