"""The attribution token of an answer: who asked, where and when, signed, so that nothing has to be kept between an
answer and what becomes of it.

Any server with the same key takes the token, after a restart too. A caller can read what it sent itself, and change
none of it: what it changes does not bear the signature. Which places the answer held is not in the token.

So that a key can be replaced while tokens of the old one are about, and while not every server has the new one yet, two
more are taken where they lie beside the one that signs: the next and the old one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_repo.files import write_first
from serving.request import Place, RequestContext

KEY_BYTES = 32
SIGNATURE_BYTES = 16
ANSWER_BYTES = 12
# The largest context that the rules let through: ids of 256 characters, and as many words of 256 as a data set has.
MAX_TOKEN = 64 * 1024


class InvalidToken(ValueError):
    """A token that no server with this key gave out."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What a token says.

    Attributes:
        answer_id: unique.
        bundle: version of the bundle that answered.
        dataset: whose users and POIs the ids name (`Schema.identity`); empty in tokens of older servers.
        context: of the request; its time is that of the answer.
    """

    answer_id: str
    bundle: str
    dataset: str
    context: RequestContext

    @property
    def time_us(self) -> int:
        assert self.context.time_us is not None  # an answer has a time
        return self.context.time_us


class Signer:
    """Makes and reads tokens; safe to call from threads.

    Args:
        key: signs; at least `KEY_BYTES` bytes; None: one of this object's own.
        accepted: other keys whose tokens are taken.
    """

    def __init__(self, key: bytes | None = None, accepted: Sequence[bytes] = ()) -> None:
        self._key = secrets.token_bytes(KEY_BYTES) if key is None else key
        self._accepted = sorted({*accepted} - {self._key})
        for one in (self._key, *self._accepted):
            if len(one) < KEY_BYTES:
                raise ValueError(f"a key for attribution tokens needs {KEY_BYTES} bytes, has {len(one)}")

    def token(self, bundle: str, dataset: str, context: RequestContext, answer_id: str | None = None) -> str:
        """A token of an answer, URL-safe characters; without an id, of a new one."""
        place = context.place and [context.place.latitude, context.place.longitude]
        said = [
            answer_id or new_answer_id(),
            bundle,
            context.user_id,
            context.scenario_id,
            context.time_us,
            place,
            dict(context.scene_inputs),
            dataset,
        ]
        body = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(_signature(self._key, body) + body).decode().rstrip("=")

    def read(self, token: str) -> Attribution:
        """Raises InvalidToken."""
        if len(token) > MAX_TOKEN:
            raise InvalidToken(f"has {len(token)} characters, at most {MAX_TOKEN} are read")
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except ValueError as error:
            raise InvalidToken("is no attribution token") from error
        signature, body = raw[:SIGNATURE_BYTES], raw[SIGNATURE_BYTES:]
        keys = (self._key, *self._accepted)
        if not any([hmac.compare_digest(signature, _signature(key, body)) for key in keys]):
            raise InvalidToken("is no attribution token of this service: its answers carry them")
        return _attribution(json.loads(body))

    @property
    def fingerprint(self) -> str:
        """Tells keys apart, those that are accepted beside too, and nothing of them."""
        said = b"".join([b"fingerprint", *(_signature(key, b"fingerprint") for key in self._accepted)])
        return _signature(self._key, said).hex()


def new_answer_id() -> str:
    """Of an answer; nobody guesses it before."""
    return secrets.token_hex(ANSWER_BYTES)


def _signature(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:SIGNATURE_BYTES]


def _attribution(said: Sequence[Any]) -> Attribution:
    answer_id, bundle, user_id, scenario_id, time_us, place, scene_inputs, *dataset = said
    context = RequestContext(
        user_id=user_id,
        scenario_id=scenario_id,
        time_us=time_us,
        place=None if place is None else Place(*place),
        scene_inputs=scene_inputs,
    )
    return Attribution(answer_id=answer_id, bundle=bundle, dataset=dataset[0] if dataset else "", context=context)


def signer_of(path: Path) -> Signer:
    """Signs with the key in a file, and takes tokens of those that lie beside it: of `attribution.key`,
    `attribution.next.key` and `attribution.old.key`.

    Raises ValueError for a key that is too short, with the name of its file.
    """
    beside = [path.with_name(f"{path.stem}.{when}{path.suffix}") for when in ("next", "old")]
    return Signer(_checked(path, key_of(path)), [_checked(one, one.read_bytes()) for one in beside if one.exists()])


def key_of(path: Path) -> bytes:
    """The key in a file, which is made, for its owner's eyes, where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_first(path, secrets.token_bytes(KEY_BYTES))  # where another server was first its key counts
    return path.read_bytes()


def _checked(path: Path, key: bytes) -> bytes:
    if len(key) < KEY_BYTES:
        remedy = f"`head -c {KEY_BYTES} /dev/urandom > {path.name}` makes one"
        raise ValueError(f"{path}: a key for attribution tokens needs {KEY_BYTES} bytes, has {len(key)}; {remedy}")
    return key
