"""Pairs of a log that can be counted by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.workspace import Workspace
from trainers.language.clicks import NONE, ClickConfig, HoldOut, PairError
from trainers.language.pairs import Kind, Mined, PairConfig, mine, partners

CUT = datetime(2026, 3, 3, 8, 0, tzinfo=UTC)  # the history part begins a day before, at 10:00 in Helsinki
PLACES = [(f"p{i}", "pub") for i in range(6)]
# Morning until 11:00, lunch until 14:00. In the morning u1 and u2 click p0, at lunch u3 does. u1 also clicks p1 and p2
# in the morning and p3 at lunch.
SHOWN = [
    (0.0, "u1", "p0"),
    (0.0, "u1", "p4", False),
    (0.2, "u1", "p1"),
    (0.2, "u1", "p2"),
    (0.4, "u2", "p0"),
    (1.0, "u1", "p3"),
    (2.0, "u3", "p0"),
]
Street = Callable[..., Workspace]


def sides(mined: Mined, kind: Kind) -> list[tuple[str, ...]]:
    """Every pair by the names that its texts mention; sides of several texts joined."""
    pairs = mined.pairs[kind]

    def name(side: np.ndarray) -> str:
        found = (mined.texts[n].text for n in side if n != NONE)
        return " ".join(t.split()[1] if t.startswith("Place") else t.split()[-1].strip(".") for t in found)

    return [(name(a), name(p)) for a, p in zip(pairs.anchor_NK, pairs.positive_NK, strict=True)]


def test_users_of_one_place_in_one_bucket_are_pairs(street: Street) -> None:
    mined = mine(street(PLACES, SHOWN), CUT, PairConfig())
    assert sorted(sides(mined, "user_user")) == [("u1", "u2"), ("u2", "u1")]  # u3 came at lunch
    anytime = mine(street(PLACES, SHOWN), CUT, PairConfig(clicks=ClickConfig(bucket=())))
    assert Counter(sides(anytime, "user_user")) == Counter([(a, b) for a in U for b in U if a != b])


U = ("u1", "u2", "u3")


def test_places_of_one_user_in_one_bucket_are_pairs(street: Street) -> None:
    """p3 at lunch goes with nothing; popular places are drawn less: clicks 3 of p0, 1 of p1 and of p2."""
    mined = mine(street(PLACES, SHOWN), CUT, PairConfig())
    drawn = dict(zip(sides(mined, "poi_poi"), mined.pairs["poi_poi"].probability_N, strict=True))
    assert set(drawn) == {(a, b) for a in P for b in P if a != b}
    assert drawn["p1", "p2"] / drawn["p0", "p1"] == pytest.approx(3**0.5)
    assert sum(drawn.values()) == pytest.approx(1)
    plain = mine(street(PLACES, SHOWN), CUT, PairConfig(discount=0)).pairs["poi_poi"].probability_N
    assert plain == pytest.approx(np.full(6, 1 / 6))


P = ("p0", "p1", "p2")


def test_a_moment_and_its_place_are_a_pair(street: Street) -> None:
    mined = mine(street(PLACES, SHOWN), CUT, PairConfig(clicks=ClickConfig(user_side="profile")))
    assert sides(mined, "user_poi") == [(row[1], row[2]) for row in SHOWN if row[3:] != (False,)]
    pairs = mined.pairs["user_poi"]
    assert [mined.texts[n].text for n in pairs.exposed_NE[0] if n != NONE] == ["Place p4 is a pub."]
    assert (pairs.exposed_NE[1:] == NONE).all()
    assert pairs.anchor_N.tolist() == [0, 1, 1, 2, 3, 4]  # one request, one anchor
    assert pairs.positive_N[0] == pairs.positive_N[3] == pairs.positive_N[5]
    assert not set(pairs.anchor_N) & set(pairs.positive_N)


def test_groups_say_what_belongs_together(street: Street) -> None:
    """Pairs of one user and bucket are of one group; sides are known by their text."""
    mined = mine(street(PLACES, SHOWN), CUT, PairConfig())
    for kind in ("user_user", "poi_poi"):
        pairs = mined.pairs[kind]
        assert len(set(pairs.group_N)) == 1
        assert (pairs.anchor_N == pairs.anchor_NK[:, 0]).all() and (pairs.positive_N == pairs.positive_NK[:, 0]).all()


def test_halves_of_one_history_share_nothing(street: Street) -> None:
    mined = mine(street(PLACES, SHOWN), CUT, PairConfig(users="halves", partners=5))
    found = sides(mined, "user_user")
    assert len(found) == 5  # of u1, who clicked four places; the others clicked one
    for first, second in found:
        assert len(first.split()) == len(second.split()) == 2
        assert {*first.split(), *second.split()} == {"p0", "p1", "p2", "p3"}
    assert len(set(found)) > 1
    short = mine(street(PLACES, SHOWN), CUT, PairConfig(users="halves", half=1))
    assert {len(side.split()) for pair in sides(short, "user_user") for side in pair} == {1}


def test_the_split_is_respected_by_every_kind(street: Street) -> None:
    """Days of later events change no pair at all; with a later split they would."""
    later = [(24 + i / 10, user, poi) for i, (user, poi) in enumerate((u, p[0]) for u in U for p in PLACES)]
    before = mine(street(PLACES, SHOWN), CUT, PairConfig())
    after = mine(street(PLACES, [*SHOWN, *later]), CUT, PairConfig())
    for kind, pairs in before.pairs.items():
        assert sides(after, kind) == sides(before, kind)
        assert after.pairs[kind].probability_N.tolist() == pairs.probability_N.tolist()
    with pytest.raises(PairError, match="after the history part"):
        mine(street(PLACES, SHOWN), CUT + timedelta(days=1), PairConfig())


def test_held_out_places_are_in_no_pair(street: Street) -> None:
    config = PairConfig(clicks=ClickConfig(hold_out=HoldOut(pois=0.5, seed=1)))
    mined = mine(street(PLACES, SHOWN), CUT, config)
    assert len(mined.held_out.pois) == 3
    named = {word for kind in mined.pairs for pair in sides(mined, kind) for side in pair for word in side.split()}
    assert named & set(P) and not named & set(mined.held_out.pois)
    shown = {mined.texts[n].text for n in mined.pairs["user_poi"].exposed_NE.ravel() if n != NONE}
    assert not any(f"Place {poi} " in text for poi in mined.held_out.pois for text in shown)


def test_kinds_without_a_pair_are_absent(street: Street) -> None:
    mined = mine(street(PLACES, [(0, "u1", "p0"), (1, "u2", "p1")]), CUT, PairConfig())
    assert set(mined.pairs) == {"user_poi"}
    with pytest.raises(PairError, match="must be positive"):
        dataclasses.replace(PairConfig(), partners=0)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 6), st.integers(0, 3))
def test_partners_are_of_one_group_never_oneself_and_never_twice(groups: list[int], most: int, seed: int) -> None:
    group = np.array(groups, np.int64)
    left, right = partners(group, most, np.random.default_rng(seed))
    assert (group[left] == group[right]).all() and (left != right).all()
    found = Counter(zip(left.tolist(), right.tolist(), strict=True))
    assert all(count == 1 for count in found.values())
    sizes = Counter(groups)
    assert len(found) == sum(min(most, sizes[g] - 1) for g in groups)
