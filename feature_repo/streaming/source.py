"""Where clicks come from: messages with positions, read again from the last position that was committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Message:
    """One message; `position` says where to go on after it, in its source's own words."""

    position: str
    text: bytes


class Source(Protocol):
    """A sequence of messages that can be read again."""

    @property
    def name(self) -> str:
        """What its positions are kept under."""

    def resume(self, position: str | None) -> None:
        """Go on after this position; None: at the beginning."""

    def read(self, most: int, wait_s: float) -> list[Message]:
        """The next messages, none after `wait_s` without one. Raises ConnectionError or OSError while out of reach."""

    def done(self, messages: Sequence[Message]) -> None:
        """These were dealt with, and that is on record."""
