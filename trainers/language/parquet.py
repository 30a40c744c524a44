"""Knowledge files on disk: their table, vectors as Arrow lists, written all or nothing, one file under two names."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.workspace import Workspace
from trainers.knowledge import served_from, version_in


def vector_array(vectors: Sequence[np.ndarray]) -> pa.Array:
    """n vectors of one width as list<float32>."""
    width = len(vectors[0]) if vectors else 0
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([np.zeros(0, np.float32), *vectors])))


def vectors_of(array: pa.ChunkedArray) -> list[np.ndarray]:
    """The inverse: n vectors of one width."""
    chunks = (chunk for chunk in array.chunks if len(chunk))
    return [vector for chunk in chunks for vector in chunk.flatten().to_numpy().reshape(len(chunk), -1)]


def hash_of(text: str) -> str:
    """Sixteen hex digits by which a text, or a prompt, is known."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(table: pa.Table, path: Path) -> None:
    """All or nothing: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, staged, compression="zstd")
    os.replace(staged, path)


def write_changed(table: pa.Table, path: Path) -> None:
    """The same, and a file that holds this table already is left as it is."""
    if not path.is_file() or not pq.read_table(path).equals(table):
        write(table, path)


def knowledge_table(space: str, keys: pa.Array, times: pa.Array, fields: Mapping[str, pa.Array]) -> pa.Table:
    """The table of a knowledge file: a line for each key and time from which on it was available.

    Args:
        keys: of the space's entity, text. times: `schema.TIME`. fields: by their names within the space.
    """
    clock = {columns.EVENT_TIMESTAMP: times, columns.CREATED_TIMESTAMP: times}
    named = {columns.knowledge(space, name): values for name, values in fields.items()}
    return pa.table({columns.SPACES[space]: keys, **clock, **named})


def serve(archive: Path, workspace: Workspace, space: str, version: str, *, beside: bool) -> None:
    """Have a version's table served: as the one in use, or beside it; and wherever this version is served already."""
    in_use, own = served_from(workspace, space), served_from(workspace, space, version)
    if beside or own.is_file():
        link(archive, own)
    if not beside or (in_use.is_file() and version_in(in_use, space) == version):
        link(archive, in_use)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, in one step."""
    if target.is_file() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    try:
        os.link(source, staged)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, staged)
    os.replace(staged, target)
