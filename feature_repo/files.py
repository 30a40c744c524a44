"""Files on disk: a finished folder in the place of another one, all or nothing; and how a changed file is known."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def state_of(files: Iterable[Path]) -> dict[str, list[int]]:
    """Name -> size and time of the last change. Raises FileNotFoundError for a file that is not there."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; at the end it becomes `folder`. After any failure `folder` is what it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    replaced = staging.with_name(f"{staging.name}-replaced")
    try:
        yield staging
        if folder.exists():
            os.rename(folder, replaced)
        try:
            os.rename(staging, folder)
        except OSError:
            if replaced.exists():
                os.rename(replaced, folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
