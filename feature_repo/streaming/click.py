"""A click as it arrives: one JSON object, checked whole before it changes anything."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from feature_repo.stores.packed import EPOCH, microseconds

AHEAD = timedelta(minutes=1)  # that a sender's clock may be


def _text(value: str) -> str:
    """Databases refuse some control characters, and nobody names a thing with one."""
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ValueError("an id has no control characters")
    return value


Id = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_text)]


class BadClick(ValueError):
    """A message is no click; the message says which field, its value and what is expected."""


class Click(BaseModel):
    """A user opened a POI.

        {"event_id": "e-81", "user_id": "u7", "poi_id": "p42", "time": "2026-03-01T12:00:00.25Z", "ordered": true}

    Args:
        event_id: of the event, the same whenever it is sent again; only the first one counts.
        time: of the click, with its zone, from 1970 on; what the log will say of it (its outcome), or it counts twice.
        ordered: whether it ended in an order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: Id
    user_id: Id
    poi_id: Id
    time: Annotated[AwareDatetime, Field(ge=EPOCH)]
    ordered: bool = False

    @property
    def time_us(self) -> int:
        """Microseconds UTC."""
        return microseconds(self.time)


def parse(text: bytes, now: datetime) -> Click:
    """Raises BadClick for anything but a click that has happened."""
    try:
        click = Click.model_validate_json(text)
    except ValidationError as error:
        raise BadClick("; ".join(_said(fault) for fault in error.errors(include_url=False))) from error
    if click.time > now + AHEAD:
        raise BadClick(f"time: {click.time.isoformat()} is {click.time - now} ahead of this machine's clock")
    return click


def _said(fault: object) -> str:
    assert isinstance(fault, dict)
    place = ".".join(repr(str(part))[1:-1] for part in fault["loc"])  # of a field that does not belong, anything
    got = "" if fault["type"] == "missing" else f" (got {str(fault['input'])[:80]!r})"
    return f"{place}: {fault['msg']}{got}" if place else f"{fault['msg']}{got}"
