"""When, where and in what company people open the app, and what the world is like then: one row a request."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date, timedelta

import numpy as np
import pandas as pd

from feature_repo.datasets.city import world
from feature_repo.datasets.city.people import People

GAP_US = 30 * 60 * 1_000_000  # requests of one user are at least half an hour apart: what they caused is known by then
SNOW_MELTS = 3.0  # degrees Celsius
NEAR_KM = 0.35  # a local event counts for people this near


@dataclass(frozen=True, kw_only=True)
class Requests:
    """n requests, sorted by user, then time. Words are numpy strings.

    Attributes:
        landmark, occasion: positions in `landmark_names` and `occasion_names`, one past the end where there is none.
        occasion_theme: |-joined, empty where there is none.
        user: index into the people; turn: 0, 1, ... within the user.
        time_us: UTC; hour: local hour of the week 0..167; day: days since the start, local.
    """

    user: np.ndarray
    turn: np.ndarray
    time_us: np.ndarray
    hour: np.ndarray
    day: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    temperature: np.ndarray
    weather: np.ndarray
    place_kind: np.ndarray
    company: np.ndarray
    landmark: np.ndarray
    landmark_kind: np.ndarray
    occasion: np.ndarray
    occasion_theme: np.ndarray
    scenario: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Requests:
        return Requests(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def clock(self) -> np.ndarray:
        """The word of CLOCK for the local hour."""
        return world.band(self.hour % 24, world.CLOCK)

    @property
    def weekday(self) -> np.ndarray:
        return np.array(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"))[self.hour // 24]

    @property
    def temperature_band(self) -> np.ndarray:
        return world.band(self.temperature, world.TEMPERATURE)


def draw(people: People, start: date, days: int, rng: np.random.Generator) -> Requests:
    """All requests of these people in `days` local days from `start`."""
    user, time_us, local = _times(people, start, days, rng)
    day = ((local - pd.Timestamp(start)) // pd.Timedelta(days=1)).to_numpy()
    hour = (local.dayofweek * 24 + local.hour).to_numpy()
    place_kind, at = _places(people, user, hour, rng)
    landmark = _nearest_landmark(at)
    weather, temperature = weather_by_hour(start, days)
    company = _company(people, user, place_kind, hour, rng)
    occasion = _occasions(start, day, at)
    first = np.r_[True, user[1:] != user[:-1]]
    turn = np.arange(len(user)) - np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
    return Requests(
        user=user,
        turn=turn,
        time_us=time_us,
        hour=hour,
        day=day,
        latitude=at[:, 0],
        longitude=at[:, 1],
        temperature=temperature[day, hour % 24],
        weather=weather[day, hour % 24],
        place_kind=place_kind,
        company=company,
        landmark=landmark,
        landmark_kind=np.array([row["kind"] for row in world.rows("landmarks.csv")])[landmark],
        occasion=occasion,
        occasion_theme=np.array([*(row["themes"] for row in world.rows("tables/occasions.csv")), ""])[occasion],
        scenario=_scenario(place_kind, company, hour, rng),
    )


def weather_by_hour(start: date, days: int) -> tuple[np.ndarray, np.ndarray]:
    """Words and degrees Celsius, (days, 24) each, from the daily table; nothing is drawn at random.

    Temperature follows a cosine between the day's minimum at 03:00 and its maximum at 15:00. A wet day is wet in some
    of its eight three-hour blocks (more of them with more precipitation) and overcast, or windy, in the others; drizzle
    and fog last until noon. Snow falls as rain above SNOW_MELTS.
    """
    table = world.rows("weather.csv")
    first = [row["date"] for row in table].index(start.isoformat())
    words = np.empty((days, 24), dtype="U12")
    degrees = np.empty((days, 24))
    swing = np.cos(2 * np.pi * (np.arange(24) - 15) / 24)
    for day, row in enumerate(table[first : first + days]):
        low, high = float(row["temp_min"]), float(row["temp_max"])
        degrees[day] = np.round((low + high) / 2 + (high - low) / 2 * swing, 1)
        words[day] = _words_of_day(row, first + day)
    words[(words == "snow") & (degrees > SNOW_MELTS)] = "rain"
    return words, degrees


def _words_of_day(row: dict[str, str], number: int) -> list[str]:
    wet, windy = float(row["precipitation"]), float(row["wind"]) >= 5.0
    dry = "wind" if windy else "overcast"
    if row["weather"] == "sun":
        return ["sun"] * 24
    if row["weather"] in ("drizzle", "fog"):
        return [row["weather"]] * 12 + [dry] * 12
    share = min(0.3 + wet / 20, 0.9) if wet else 0.0
    word = "heavy rain" if row["weather"] == "rain" and wet >= 10 else row["weather"]
    blocks = [(number * 5 + block * 3) % 8 < share * 8 for block in range(8)]
    return [word if blocks[hour // 3] else dry for hour in range(24)]


def _times(
    people: People, start: date, days: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, pd.DatetimeIndex]:
    """Users, UTC microseconds and local clock of all requests, sorted by user and time, at least `GAP_US` apart."""
    dates = [start + timedelta(days=d) for d in range(days)]
    weekend = np.array([d.weekday() >= 5 for d in dates])
    factor = np.array([world.DAY_FACTOR[d.weekday()] for d in dates])
    counts = rng.poisson(people.rate * days * (1 - people.joins))
    user = np.repeat(np.arange(len(people)), counts)
    ends = np.cumsum(factor) / factor.sum()
    share = people.joins[user] + (1 - people.joins[user]) * rng.random(len(user))
    signed_up = np.floor(people.joins[user] * days).astype(np.int64)
    day = np.maximum(np.searchsorted(ends, share).clip(0, days - 1), signed_up)
    second = np.empty(len(user), dtype=np.int64)
    for kind, mask in (("weekday", ~weekend[day]), ("weekend", weekend[day])):
        weights = np.array(world.OPENINGS[kind], dtype=float)
        hour = rng.choice(24, size=int(mask.sum()), p=weights / weights.sum())
        second[mask] = hour * 3600 + rng.integers(3600, size=len(hour))
    local = pd.DatetimeIndex(pd.Timestamp(start) + pd.to_timedelta(day, unit="D") + pd.to_timedelta(second, unit="s"))
    # The hour that daylight saving skips does not exist: those requests move to the next valid moment.
    moment = local.tz_localize(world.TIMEZONE, nonexistent="shift_forward", ambiguous=np.ones(len(local), dtype=bool))
    time_us = moment.as_unit("us").astype("int64").to_numpy() + rng.integers(1_000_000, size=len(user))
    order = np.lexsort((time_us, user))
    user, time_us, moment = user[order], time_us[order], moment[order]
    apart = np.r_[True, (np.diff(time_us) >= GAP_US) | (np.diff(user) > 0)]
    return user[apart], time_us[apart], moment[apart].tz_localize(None)


def _places(
    people: People, user: np.ndarray, hour: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The kind of place and (n, 2) coordinates: own home or work place, or a landmark of the kind, 30 m off."""
    words, weekend = world.band(hour % 24, world.CLOCK), (hour // 24 >= 5).astype(int)
    kind = np.empty(len(user), dtype="U16")
    for word, tables in world.PLACES.items():
        for side in (0, 1):
            mask = (words == word) & (weekend == side)
            weights = np.array(tables[side], dtype=float)
            kind[mask] = rng.choice(world.PLACE_KINDS, size=int(mask.sum()), p=weights / weights.sum())
    role = people.role[user]
    kind[(kind == "work") & (role == "resident") & (people.age_band[user] == "65+")] = "home"
    kind[(kind == "work") & (role == "visitor")] = "culture"
    kind[(kind == "work") & (role == "student")] = "campus"
    kind[(kind == "home") & (role == "visitor")] = "hotel"
    at = np.where(np.isin(kind, ("home", "hotel"))[:, None], people.home[user], people.work[user])
    for word, kinds in world.LANDMARKS_OF_PLACE.items():
        if word in ("campus", "hotel"):
            continue
        choices = np.array(
            [[float(r["latitude"]), float(r["longitude"])] for r in world.rows("landmarks.csv") if r["kind"] in kinds]
        )
        mask = kind == word
        visits = world.zipf(len(choices), world.VISITS_POWER)
        ranked = np.random.default_rng(len(choices)).permutation(choices)
        at[mask] = ranked[rng.choice(len(choices), size=int(mask.sum()), p=visits)]
    return kind, np.round(at + rng.standard_normal(at.shape) * (0.0003, 0.0006), 6)


def landmark_names() -> list[str]:
    """`Esplanadinpuisto park`: the name, with the kind behind it where the name does not say it itself."""
    rows = world.rows("landmarks.csv")
    return [r["name"] if r["kind"] in r["name"].lower() else f"{r['name']} {r['kind']}" for r in rows]


def occasion_names() -> list[str]:
    """The names of the calendar's rows; a name that comes back has several rows."""
    return [row["name"] for row in world.rows("tables/occasions.csv")]


def _nearest_landmark(at: np.ndarray) -> np.ndarray:
    """Row of the nearest landmark (flat earth: a degree of longitude is half one of latitude here)."""
    table = np.array([[float(r["latitude"]), float(r["longitude"]) / 2] for r in world.rows("landmarks.csv")])
    here = at * (1.0, 0.5)
    nearest = np.empty(len(at), dtype=np.int64)
    for first in range(0, len(at), 8192):
        part = here[first : first + 8192]
        nearest[first : first + 8192] = ((part[:, None, :] - table[None]) ** 2).sum(axis=2).argmin(axis=1)
    return nearest


def _company(
    people: People, user: np.ndarray, place_kind: np.ndarray, hour: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Weights by household, shifted by place and hour."""
    household, late = people.household[user], hour % 24
    weekend = hour // 24 >= 5
    evening = (late >= 17) & (late < 24)
    weights = np.stack(
        [
            1.5 + 1.0 * (household == "single"),
            0.2
            + 2.0 * (household == "couple") * (evening | weekend)
            + 0.5 * (household == "family with children") * evening,
            0.3 + 1.2 * (evening & (hour // 24 >= 4)) + 0.6 * (household == "shared flat"),
            0.02 + 2.2 * (household == "family with children") * (weekend | (late >= 15)) * (late < 21),
            0.05 + 2.5 * np.isin(place_kind, ("work", "campus")),
        ],
        axis=1,
    )
    point = rng.random(len(user)) * weights.sum(axis=1)
    which = (np.cumsum(weights, axis=1) < point[:, None]).sum(axis=1)
    return np.array(("alone", "with a partner", "with friends", "with children", "with colleagues"))[which]


def _occasions(start: date, day: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Row of the day's occasion: a local event nearby, else a holiday of the whole city, else one past the end."""
    landmarks = {r["name"]: (float(r["latitude"]), float(r["longitude"])) for r in world.rows("landmarks.csv")}
    calendar = world.rows("tables/occasions.csv")
    occasion = np.full(len(day), len(calendar))
    for number, row in sorted(enumerate(calendar), key=lambda item: bool(item[1]["near"])):
        first, last = ((date.fromisoformat(row[k]) - start).days for k in ("first", "last"))
        here = (day >= first) & (day <= last)
        if row["near"]:
            offset = (at - np.array(landmarks[row["near"]])) * (111.195, 55.3)
            here &= (offset**2).sum(axis=1) < NEAR_KM**2
        occasion[here] = number
    return occasion


def _scenario(place_kind: np.ndarray, company: np.ndarray, hour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which surface people open: weights by hour, place and company."""
    day, clock_hour = hour // 24, hour % 24
    out = ~np.isin(place_kind, ("home", "work", "campus"))
    together = np.isin(company, ("with a partner", "with children", "with friends"))
    weights = {
        "home_feed": 3.0 + 0.0 * hour,
        "search": 2.0 + 0.0 * hour,
        "lunch_deals": 4.0 * ((day < 5) & (clock_hour >= 10) & (clock_hour < 14)),
        "late_night": 4.5 * ((clock_hour >= 22) | (clock_hour < 4)),
        "nearby_map": 0.6 + 2.0 * out,
        "weekend_table": 2.6 * ((day >= 4) & together & (clock_hour >= 9) & (clock_hour < 22)),
    }
    table = np.stack([weights[name] for name in world.SCENARIOS], axis=1).astype(float)
    point = rng.random(len(hour)) * table.sum(axis=1)
    return np.array(list(world.SCENARIOS))[(np.cumsum(table, axis=1) < point[:, None]).sum(axis=1)]
