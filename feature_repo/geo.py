"""Distances on the globe."""

from __future__ import annotations

import numpy as np

EARTH_RADIUS_KM = 6371.0088


def distance_km(
    latitude: np.ndarray, longitude: np.ndarray, other_latitude: np.ndarray, other_longitude: np.ndarray
) -> np.ndarray:
    """Great-circle distance (haversine) in km; inputs in degrees, broadcast; NaN where a coordinate is NaN."""
    lat, lon, lat2, lon2 = (np.radians(v) for v in (latitude, longitude, other_latitude, other_longitude))
    half = np.sin((lat2 - lat) / 2) ** 2 + np.cos(lat) * np.cos(lat2) * np.sin((lon2 - lon) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
