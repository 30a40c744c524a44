"""What is known of a POI, in words: its columns as attributes that a language model reads and writes.

Every data set has a name, a category and a text; some have streets, menus or opening hours under columns of their own.
Columns that say a known thing are joined into one attribute (`SOURCES`), any other is an attribute of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np

from feature_repo import columns, hours
from feature_repo.datasets.schema import Schema

NAME, LOCATION, CATEGORY = "name", "location", "category"
DESCRIPTION, OFFERS, HOURS = "description", "offers", "hours"
# The columns whose words make each known attribute, in the order in which they are said.
SOURCES: Mapping[str, tuple[str, ...]] = {
    NAME: (columns.NAME,),
    LOCATION: ("location", "address", "street", "neighbourhood", "locality", "district", "area", "city", "region"),
    CATEGORY: (columns.CATEGORY,),
    DESCRIPTION: (columns.TEXT, "description"),
    OFFERS: (columns.SPECIALTY, "offers", "menu", "dishes"),
    HOURS: ("hours", "opening_hours"),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def attributes_of(schema: Schema) -> tuple[str, ...]:
    """The attributes that POIs of a data set may have: the known ones, then its own."""
    taken = {column for sources in SOURCES.values() for column in sources}
    return (*SOURCES, *(name for name in schema.poi_attributes if name not in taken))


def facts_of(poi: Mapping[str, Any], schema: Schema) -> dict[str, str]:
    """The attributes of one row of the POI table that have a value, in the order of `attributes_of`.

    Without any word for its place, a POI is where its coordinates say.
    """
    said = {attribute: _joined(poi, SOURCES.get(attribute, (attribute,))) for attribute in attributes_of(schema)}
    place = (poi.get(columns.POI_LATITUDE), poi.get(columns.POI_LONGITUDE))
    if not said[LOCATION] and None not in place:
        said[LOCATION] = f"{place[0]:.3f}, {place[1]:.3f}"
    if not said[HOURS] and poi.get(columns.OPEN_HOURS):
        said[HOURS] = hours_in_words(poi[columns.OPEN_HOURS])
    return {attribute: words for attribute, words in said.items() if words}


def token_of(attribute: str) -> str:
    """The special token that stands before an attribute's value.

    >>> token_of("price_level")
    '<|price_level|>'
    """
    return f"<|{attribute}|>"


def label_of(attribute: str) -> str:
    """
    >>> label_of("price_level")
    'price level'
    """
    return attribute.replace("_", " ")


def hours_in_words(text: str) -> str:
    """Opening hours in few words; days that are closed are not mentioned.

    >>> import numpy as np
    >>> week = np.zeros((7, 24), dtype=bool)
    >>> week[:5, 10:22] = week[6, :2] = week[6, 12:] = True
    >>> hours_in_words(hours.encode(week.ravel()))
    'Monday to Friday 10 to 22, Sunday 0 to 2 and 12 to 24'
    """
    week = hours.decode(text).reshape(7, 24)
    if week.all():
        return "always open"
    said = []
    for times, run in groupby(range(7), key=lambda day: _times(week[day])):
        days = list(run)
        if times:
            name = DAYS[days[0]] + (f" to {DAYS[days[-1]]}" if len(days) > 1 else "")
            said.append(f"{name} {times}")
    return ", ".join(said) or "always closed"


def _times(open_hours: np.ndarray) -> str:
    """The spans of one day's open hours."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], open_hours.astype(int), [0]])))
    return " and ".join(f"{start} to {end}" for start, end in edges.reshape(-1, 2).tolist())


def _joined(poi: Mapping[str, Any], sources: tuple[str, ...]) -> str:
    values = (str(poi[name]).strip() for name in sources if poi.get(name) is not None)
    return ", ".join(dict.fromkeys(value for value in values if value))
