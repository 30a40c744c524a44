"""What keeps something of answers, as they are given: a pipeline tells it, and knows nothing of what becomes of it."""

from __future__ import annotations

from typing import Protocol

from serving.features import ContextReading, Reading
from serving.request import RequestContext


class Keeper(Protocol):
    """Keeps something of answers; safe to call from threads."""

    def start(self) -> None:
        """Begin what runs in the background."""

    def answered(self, asked: RequestContext, context: ContextReading, reading: Reading) -> None:
        """One answer, of which all was read that there is."""

    def close(self) -> None:
        """Write what is to be kept, end what runs in the background."""
