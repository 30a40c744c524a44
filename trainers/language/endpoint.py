"""Pooled states from a server that speaks OpenAI's embeddings protocol, such as vLLM or text-embeddings-inference.

The server has to run the model that is configured, pool as it is pooled here and leave states as they are; what can be
checked of that is checked. The tokenizer is read here too: texts are cut, never templates, before they are sent. Heads
are applied here, so that what a tuned model writes does not depend on where it ran.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import urllib3

from trainers.language.encoder import EncoderConfig, Pooled
from trainers.language.model import ModelError

TOKEN_VARIABLE = "SCENERANK_ENDPOINT_TOKEN"
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that a later try may not get
SHOWN = 300  # characters of a server's own words in an error
UNIT = 1e-3  # of a length, with the rounding of bfloat16


class EndpointError(ModelError):
    """A server does not give the vectors that were asked for. The message says what it said and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server of embeddings is, and how it is asked. Call it with a configuration to connect.

    Args:
        url: up to and without `/embeddings`, such as `https://gpu-1:8000/v1`; https wherever a token travels beyond
            this machine or its private network.
        model: the name under which the server has the model; None: the name or path in the configuration.
        texts: of one request.
        parallel: requests at a time.
        timeout: seconds for the connection, and for each wait for an answer.
        retries: of one request, with waits of `backoff`, twice, four times ... as many seconds, up to a minute; a
            server that says when to come back is believed.
        token_variable: environment variable with the bearer token; unset or empty, none is sent.
    """

    url: str
    model: str | None = None
    texts: int = 64
    parallel: int = 4
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 0.5
    token_variable: str = TOKEN_VARIABLE

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"{parts.scheme}://{parts.hostname}: http:// or https:// and a host expected")
        if parts.username is not None or parts.password is not None or parts.query:
            raise EndpointError(f"{parts.hostname}: no secrets in the url; put the token into {self.token_variable}")
        if min(self.texts, self.parallel, self.timeout) <= 0 or self.retries < 0 or self.backoff < 0:
            raise EndpointError("texts, parallel and timeout must be positive, retries and backoff not negative")

    def __call__(self, config: EncoderConfig) -> RemoteModel:
        return RemoteModel(self, config)


class RemoteModel:
    """A server that is asked for the states of one model."""

    def __init__(self, endpoint: Endpoint, config: EncoderConfig) -> None:
        from trainers.language.local import Prompts, state_width

        self._endpoint, self._config = endpoint, config
        self._prompts = Prompts(config.folder(), config.max_length)
        self._width = state_width(config.folder())
        self._url = f"{endpoint.url.rstrip('/')}/embeddings"
        waits = urllib3.Retry(
            total=endpoint.retries,
            redirect=0,
            status_forcelist=BUSY,
            allowed_methods=None,  # asking twice for a vector does no harm
            backoff_factor=endpoint.backoff,
            backoff_max=60,
            retry_after_max=300,
            raise_on_status=False,
        )
        self._pool = urllib3.PoolManager(maxsize=endpoint.parallel, retries=waits, timeout=endpoint.timeout)

    @property
    def name(self) -> str:
        return f"{self._config.model} at {urlsplit(self._endpoint.url).netloc}"

    def pooled(self, texts: Sequence[str], template: str) -> Iterator[Pooled]:
        """In the order of the texts. Only as many requests as are under way, twice over, wait in memory."""
        asked: deque[tuple[int, Future[np.ndarray]]] = deque()
        threads = ThreadPoolExecutor(self._endpoint.parallel)
        try:
            for start in range(0, len(texts), self._endpoint.texts):
                prompts = self._prompts.fit(texts[start : start + self._endpoint.texts], template)
                asked.append((start, threads.submit(self._ask, [prompt.text for prompt in prompts])))
                if len(asked) >= 2 * self._endpoint.parallel:
                    yield _answered(*asked.popleft())
            while asked:
                yield _answered(*asked.popleft())
        finally:
            threads.shutdown(cancel_futures=True)

    def _ask(self, prompts: Sequence[str]) -> np.ndarray:
        """The states of one request's prompts: float32 (b, width). Raises EndpointError."""
        body = {"model": self._endpoint.model or self._config.model, "input": prompts, "encoding_format": "float"}
        token = os.environ.get(self._endpoint.token_variable, "")
        secret = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = self._pool.request("POST", self._url, json=body, headers=secret)
        except urllib3.exceptions.HTTPError as error:
            tries = self._endpoint.retries + 1
            raise EndpointError(f"{self._url}: no answer in {tries} tries: {error}; is the server up?") from error
        said = answer.data.decode(errors="replace")
        if token:
            said = said.replace(token, "***")
        if answer.status != 200:
            remedy = f"; its token belongs into {self._endpoint.token_variable}" if answer.status in (401, 403) else ""
            raise EndpointError(
                f"{self._url} answers {answer.status} for model {body['model']!r}{remedy}: {said[:SHOWN]}"
            )
        return self._states(self._vectors(said, len(prompts)))

    def _vectors(self, answer: str, count: int) -> list[Any]:
        """The embeddings of an answer in the order of the question."""
        try:
            found = {int(item["index"]): item["embedding"] for item in json.loads(answer)["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(f"{self._url} is no server of embeddings: {answer[:SHOWN]!r}") from error
        if sorted(found) != list(range(count)):
            raise EndpointError(f"{self._url}: {count} vectors asked for, got {len(found)} at {sorted(found)[:SHOWN]}")
        return [found[i] for i in range(count)]

    def _states(self, vectors: list[Any]) -> np.ndarray:
        """float32 (b, width), if that is what they are."""
        widths = {len(vector) if isinstance(vector, list) else 0 for vector in vectors}
        if widths != {self._width}:
            raise EndpointError(
                f"{self._url}: vectors of width {sorted(widths)}, but the states of {self._config.model} have "
                f"{self._width}; serve that model, as it is"
            )
        states = np.asarray(vectors, dtype=np.float32)
        if not np.isfinite(states).all():
            raise EndpointError(f"{self._url}: a vector holds numbers that are not finite")
        if not self._config.unit_length and np.allclose(np.linalg.norm(states, axis=1), 1.0, atol=UNIT):
            raise EndpointError(
                f"{self._url} scales vectors to length 1. Start it without that (vLLM: --pooler-config "
                """'{"use_activation": false}') or, for a model without heads, encode with unit_length"""
            )
        return states


def _answered(start: int, answer: Future[np.ndarray]) -> Pooled:
    states = answer.result()
    return np.arange(start, start + len(states)), states
