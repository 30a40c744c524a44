"""Logs of a street that can be read by eye, as texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from feature_repo.workspace import Workspace
from trainers.language.clicks import NONE, ClickConfig, ClickLog, HoldOut, PairError, read_clicks

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)  # a Monday, 10:00 in Helsinki
CUT = START + timedelta(hours=24)
PLACES = [
    ("p1", "bakery", "Crumb bakes rye bread.", "rye bread"),
    ("p2", "noodles", "Slurp cooks ramen.", "ramen"),
    ("p3", "bakery", "Crust bakes buns.", "buns"),
    ("p4", "pub", "The Barrel pours stout.", "stout"),
]
SHOWN = [
    (0, "u1", "p1"),
    (0, "u1", "p2", False),
    (0, "u1", "p4", False),
    (1, "u1", "p2", True, "rain"),
    (1, "u1", "p3", True, "rain"),
    (2, "u2", "p1", True, "rain"),
    (3, "u2", "p3", False),
]
Street = Callable[..., Workspace]


def words(log: ClickLog, numbers: np.ndarray) -> list[str]:
    return [log.texts[n].text for n in numbers if n != NONE]


def test_a_click_is_its_profile_its_moment_and_what_was_left(street: Street) -> None:
    log = read_clicks(street(PLACES, SHOWN), CUT, ClickConfig())
    assert words(log, log.poi_C) == [PLACES[i][2] for i in (0, 1, 2, 0)]
    assert words(log, log.profile_C) == ["This is u1."] * 3 + ["This is u2."]
    assert words(log, log.side_CK[1]) == [
        "This is u1.",
        "The time of day is lunch.",
        "The clock shows about 11:00.",
        "Today is Monday.",
        "The weather outside: rain.",
        # As of the click: what was clicked an hour before, not what is clicked now.
        "The kind of place that the user looked at last: bakery.",
        "What the user looked at last: rye bread.",
    ]
    assert [words(log, row) for row in log.exposed_CE] == [[PLACES[1][2], PLACES[3][2]], [], [], []]
    assert log.request_C.tolist() == [0, 1, 1, 2]
    assert log.user_C.tolist() == [0, 0, 0, 1]


def test_nothing_after_the_cut_off_is_read(street: Street) -> None:
    """Later clicks, POIs that turn up later, and a click whose outcome came after the cut-off."""
    before = read_clicks(street(PLACES, SHOWN), CUT, ClickConfig())
    planted = [*SHOWN, (23.995, "u1", "p4"), (24, "u2", "p4"), (30, "u2", "p2", True, "storm"), (30, "u2", "p1", False)]
    after = read_clicks(street(PLACES, planted), CUT, ClickConfig())
    for name, value in vars(before).items():
        if isinstance(value, np.ndarray):
            assert value.tolist() == getattr(after, name).tolist(), name
    # The moment just before the cut-off is known, its outcome is not.
    fresh = {text.text for text in after.texts} - {text.text for text in before.texts}
    assert fresh == {"The clock shows about 09:00.", "Today is Tuesday."}


def test_what_may_still_be_clicked_was_not_left(street: Street) -> None:
    """Of one request p1 was clicked and p2 was left in time; whether p3 was, came out after the cut-off."""
    shown = [(23.9, "u1", "p1"), (23.9, "u1", "p2", False), (23.9, "u1", "p3", False, "clear", 0.2)]
    log = read_clicks(street(PLACES, shown), CUT, ClickConfig())
    assert words(log, log.exposed_CE[0]) == [PLACES[1][2]]


def test_an_earlier_cut_off_reads_less_and_a_later_one_is_refused(street: Street) -> None:
    workspace = street(PLACES, SHOWN)
    assert len(read_clicks(workspace, START + timedelta(hours=1), ClickConfig()).poi_C) == 1
    with pytest.raises(PairError, match="lies after the history part"):
        read_clicks(workspace, CUT + timedelta(seconds=1), ClickConfig())
    with pytest.raises(PairError, match="no click before"):
        read_clicks(workspace, START, ClickConfig())


def test_a_chain_is_no_negative_of_itself(street: Street) -> None:
    """Two POIs with one text: the one that was left says nothing against the one that was clicked."""
    places = [("p1", "cafe", "A cafe of the chain."), ("p2", "cafe", "A cafe of the chain."), ("p3", "pub")]
    log = read_clicks(
        street(places, [(0, "u1", "p1"), (0, "u1", "p2", False), (0, "u1", "p3", False)]), CUT, ClickConfig()
    )
    assert words(log, log.exposed_CE[0]) == ["Place p3 is a pub."]
    assert len({text.text for text in log.texts}) == len(log.texts)


def test_what_is_held_out_is_in_no_text(street: Street) -> None:
    places = [*PLACES, *((f"q{i}", "kiosk", "", f"snack {i}") for i in range(40))]
    shown = [*SHOWN, *((4 + i / 4, "u1", f"q{i}") for i in range(40)), (15, "u1", "q0"), (15, "u1", "p4", False)]
    workspace = street(places, shown)
    config = HoldOut(categories=0.26, pois=0.25, scene_values=0.5, open_values=30)  # one category of four
    log = read_clicks(workspace, CUT, ClickConfig(hold_out=config))
    held = log.held_out
    assert len(held.categories) == 1
    of_category = {p[0] for p in places if p[1] in held.categories}
    assert of_category < set(held.pois)
    assert len(held.pois) - len(of_category) == round(0.25 * (len(places) - len(of_category)))
    open_values = {value for value in held.scene_values if value.startswith("last_specialty=snack")}
    assert len(open_values) >= 16
    assert f"last_category={held.categories[0]}" in held.scene_values
    assert all(not value.startswith(("daypart", "weather", "weekday")) for value in held.scene_values)
    texts = " ".join(text.text for text in log.texts)
    everything = read_clicks(workspace, CUT, ClickConfig())
    hidden = {f"What the user looked at last: {value.partition('=')[2]}." for value in open_values}
    assert hidden <= {text.text for text in everything.texts}
    assert not any(text in texts for text in hidden)
    assert not any(f"Place {poi} " in texts for poi in held.pois)
    assert len(log.poi_C) < len(everything.poi_C)
    assert read_clicks(workspace, CUT, ClickConfig(hold_out=config)).held_out == held
    assert read_clicks(workspace, CUT, ClickConfig(hold_out=dataclasses.replace(config, seed=5))).held_out != held


def test_the_user_side_can_be_the_profile_or_one_long_text(street: Street) -> None:
    workspace = street(PLACES, SHOWN)
    profile = read_clicks(workspace, CUT, ClickConfig(user_side="profile"))
    assert [words(profile, side) for side in profile.side_CK] == [["This is u1."]] * 3 + [["This is u2."]]
    whole = read_clicks(workspace, CUT, ClickConfig(user_side="whole"))
    assert words(whole, whole.side_CK[0]) == [
        "This is u1. The time of day is morning. The clock shows about 10:00. Today is Monday. "
        "The weather outside: clear."
    ]
    assert words(whole, whole.profile_C)[0] == "This is u1."


def test_buckets_are_named_scene_features(street: Street) -> None:
    workspace = street(PLACES, SHOWN)
    codes = {b: read_clicks(workspace, CUT, ClickConfig(bucket=b)).bucket_C.tolist() for b in ((), ("daypart",))}
    assert codes == {(): [0, 0, 0, 0], ("daypart",): [0, 1, 1, 1]}
    both = read_clicks(workspace, CUT, ClickConfig(bucket=("weather", "hour"))).bucket_C.tolist()
    assert both == [0, 1, 1, 2]
    with pytest.raises(PairError, match=r"\['mood'\].*it has \['daypart'"):
        read_clicks(workspace, CUT, ClickConfig(bucket=("mood",)))


def test_orders_only(street: Street) -> None:
    with pytest.raises(PairError, match="no order before"):
        read_clicks(street(PLACES, SHOWN), CUT, ClickConfig(positives="order"))


def test_shares_are_shares() -> None:
    with pytest.raises(PairError, match=r"0 \.\. 1"):
        HoldOut(pois=1.0)
