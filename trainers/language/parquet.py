"""Knowledge files on disk: vectors as Arrow lists, written all or nothing, and one file under two names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def vector_array(vectors: Sequence[np.ndarray]) -> pa.Array:
    """n vectors of one width as list<float32>."""
    width = len(vectors[0]) if vectors else 0
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([np.zeros(0, np.float32), *vectors])))


def vectors_of(array: pa.ChunkedArray) -> list[np.ndarray]:
    """The inverse: n vectors of one width."""
    chunks = (chunk for chunk in array.chunks if len(chunk))
    return [vector for chunk in chunks for vector in chunk.flatten().to_numpy().reshape(len(chunk), -1)]


def write(table: pa.Table, path: Path) -> None:
    """All or nothing: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, staged, compression="zstd")
    os.replace(staged, path)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, in one step."""
    if target.is_file() and target.samefile(source):
        return
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    try:
        os.link(source, staged)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, staged)
    os.replace(staged, target)
