"""Tokens say what was signed, and nothing that was changed afterwards is believed."""

from __future__ import annotations

import base64
import hmac
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.attribution import KEY_BYTES, InvalidToken, Signer, key_of, signer_of
from serving.request import Place, RequestContext

SIGNER = Signer(b"k" * KEY_BYTES)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
CONTEXTS = st.builds(
    RequestContext,
    user_id=WORDS,
    scenario_id=WORDS,
    time_us=st.integers(0, 2**52),
    place=st.none() | st.builds(Place, st.floats(-90, 90), st.floats(-180, 180)),
    scene_inputs=st.dictionaries(WORDS, WORDS | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
ASKED = RequestContext(user_id="u1", scenario_id="search", time_us=1)
TOKEN = SIGNER.token("bundle", "city", ASKED)


@given(CONTEXTS)
def test_a_token_says_who_asked_where_and_when(context: RequestContext) -> None:
    read = SIGNER.read(SIGNER.token("bundle", "city/1", context))
    assert (read.bundle, read.dataset, read.context) == ("bundle", "city/1", context)
    assert read.time_us == context.time_us


def test_a_token_of_a_server_that_did_not_name_its_data_set_is_read() -> None:
    body = json.dumps(["a1", "bundle", "u1", "search", 1, None, {}]).encode()
    signature = hmac.digest(b"k" * KEY_BYTES, body, "sha256")[:16]
    read = SIGNER.read(base64.urlsafe_b64encode(signature + body).decode())
    assert (read.answer_id, read.dataset, read.context) == ("a1", "", ASKED)


def test_each_answer_has_an_id_of_its_own() -> None:
    assert len({SIGNER.read(SIGNER.token("b", "city", ASKED)).answer_id for _ in range(100)}) == 100


@given(st.data())
def test_a_token_that_was_changed_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TOKEN) - 2))  # the last character may hold bits that say nothing
    other = data.draw(st.sampled_from([c for c in "ABCabc123-_" if c != TOKEN[at]]))
    with pytest.raises(InvalidToken):
        SIGNER.read(TOKEN[:at] + other + TOKEN[at + 1 :])


@given(st.text(max_size=200))
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        SIGNER.read(text)


def test_a_token_of_another_key_or_too_long_is_refused() -> None:
    with pytest.raises(InvalidToken, match="of this service"):
        SIGNER.read(Signer().token("bundle", "city", ASKED))
    long = replace(ASKED, user_id="u" * 100_000)
    with pytest.raises(InvalidToken, match="at most"):
        SIGNER.read(SIGNER.token("bundle", "city", long))
    for key in (b"", b"short"):
        with pytest.raises(ValueError, match="32 bytes"):
            Signer(key)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path) -> None:
    path = tmp_path / "new" / "attribution.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(key_of, [path] * 32))
    assert keys == {path.read_bytes()} and len(path.read_bytes()) == KEY_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_tokens_of_the_next_and_the_old_key_are_taken_and_no_others(tmp_path) -> None:
    keys = {name: bytes([at]) * KEY_BYTES for at, name in enumerate(["", ".next", ".old", ".bak"])}
    for name, key in keys.items():
        (tmp_path / f"attribution{name}.key").write_bytes(key)
    signer = signer_of(tmp_path / "attribution.key")
    assert Signer(keys[""]).read(signer.token("bundle", "city", ASKED)).context == ASKED
    for name in ("", ".next", ".old"):
        assert signer.read(Signer(keys[name]).token("bundle", "city", ASKED)).context == ASKED
    with pytest.raises(InvalidToken, match="of this service"):
        signer.read(Signer(keys[".bak"]).token("bundle", "city", ASKED))
    assert signer.fingerprint == Signer(keys[""], [keys[".old"], keys[".next"]]).fingerprint, "in whatever order"
    alone = {Signer(key).fingerprint for key in keys.values()} | {Signer(keys[""], [keys[".next"]]).fingerprint}
    assert len(alone | {signer.fingerprint}) == 6, "what is taken tells signers apart, too"


@pytest.mark.parametrize("name", ["attribution.key", "attribution.next.key", "attribution.old.key"])
def test_a_key_file_that_is_too_short_is_named(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"short")
    with pytest.raises(ValueError, match=rf"/{name}: a key .* needs 32 bytes, has 5; `head -c 32 .* > {name}` makes"):
        signer_of(tmp_path / "attribution.key")
