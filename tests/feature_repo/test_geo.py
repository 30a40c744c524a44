import numpy as np

from feature_repo.geo import EARTH_RADIUS_KM, distance_km


def test_a_quarter_of_the_equator():
    expected = EARTH_RADIUS_KM * np.pi / 2
    assert np.isclose(distance_km(np.array([0.0]), np.array([0.0]), np.array([0.0]), np.array([90.0]))[0], expected)


def test_one_degree_of_latitude_and_a_missing_coordinate():
    got = distance_km(np.array([60.0, np.nan]), np.array([25.0, 25.0]), np.array([61.0, 61.0]), np.array([25.0, 25.0]))
    assert np.isclose(got[0], EARTH_RADIUS_KM * np.pi / 180) and np.isnan(got[1])
