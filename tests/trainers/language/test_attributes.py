"""What POIs of different data sets are known for, written down by hand."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime

import numpy as np

from feature_repo import columns, hours
from feature_repo.datasets.schema import Schema, Split
from trainers.language import attributes
from trainers.language.attributes import attributes_of, facts_of, hours_in_words

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def schema(*poi_attributes: str) -> Schema:
    return Schema(
        dataset="town",
        timezone="UTC",
        split=Split(train=NOW, valid=NOW, test=NOW, end=NOW),
        poi_attributes=poi_attributes,
    )


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(attributes).failed == 0


def test_columns_become_attributes_and_absent_values_none():
    open_hours = np.zeros((7, 24), dtype=bool)
    open_hours[:, 8:12] = True
    poi = {
        columns.NAME: "Crumb",
        columns.TEXT: "A bakery by the park.",
        columns.CATEGORY: "bakery",
        columns.SPECIALTY: "rye bread",
        columns.OPEN_HOURS: hours.encode(open_hours.ravel()),
        columns.POI_LATITUDE: 60.17,
        columns.POI_LONGITUDE: 24.94,
        "street": "Kluuvikatu",
        "locality": "Helsinki",
        "price_level": None,
    }
    town = schema("price_level", "street", "locality")
    assert attributes_of(town) == ("name", "location", "category", "description", "offers", "hours", "price_level")
    assert facts_of(poi, town) == {
        "name": "Crumb",
        "location": "Kluuvikatu, Helsinki",
        "category": "bakery",
        "description": "A bakery by the park.",
        "offers": "rye bread",
        "hours": "Monday to Sunday 8 to 12",
    }


def test_a_video_has_no_place_and_a_film_its_own_attributes():
    video = {
        columns.NAME: "video 7",
        columns.TEXT: "A short video.",
        columns.CATEGORY: "music",
        columns.SPECIALTY: None,
    }
    coordinates = {columns.POI_LATITUDE: None, columns.POI_LONGITUDE: None, columns.OPEN_HOURS: None}
    facts = facts_of(
        {**video, **coordinates, "release_year": "1999", "menu": "soup, bread"}, schema("release_year", "menu")
    )
    assert facts == {
        "name": "video 7",
        "category": "music",
        "description": "A short video.",
        "offers": "soup, bread",
        "release_year": "1999",
    }


def test_coordinates_are_the_last_resort():
    place = {columns.NAME: "Slurp", columns.POI_LATITUDE: 60.1699, columns.POI_LONGITUDE: -24.9}
    assert facts_of(place, schema())["location"] == "60.170, -24.900"
    assert facts_of({**place, "street": "Kluuvikatu"}, schema("street"))["location"] == "Kluuvikatu"


def test_hours():
    assert hours_in_words(hours.encode(np.ones(168, dtype=bool))) == "always open"
    assert hours_in_words(hours.encode(np.zeros(168, dtype=bool))) == "always closed"
    one = np.zeros((7, 24), dtype=bool)
    one[2, 23] = True
    assert hours_in_words(hours.encode(one.ravel())) == "Wednesday 23 to 24"
