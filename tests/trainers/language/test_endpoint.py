"""A real server on this machine that embeds with the tiny model, as vLLM would, and one that misbehaves."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

from feature_repo.workspace import Workspace
from trainers.knowledge import load_matrix
from trainers.language.embed import embed
from trainers.language.encoder import TEMPLATES, EncoderConfig, TextEncoder
from trainers.language.endpoint import TOKEN_VARIABLE, Endpoint, EndpointError
from trainers.language.heads import Groups, HeadConfig, Heads
from trainers.language.model import LOADING, Embedder

TEXTS = ["Soup.", "Warm soup and bread near the station, open late.", "Fish", "Noodles for lunch", "bread " * 200]
SECRET = "s3cret-t0ken"

Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def by_hand(model: str, prompts: list[str]) -> list[list[float]]:
    """The last state of each prompt, one at a time, straight from the library."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with LOADING:  # requests are answered at the same time
        loaded: Any = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [loaded(**tokenizer(p, return_tensors="pt")).last_hidden_state[0, -1].tolist() for p in prompts]


@dataclass
class Server:
    """What a server does, and what it was asked."""

    model: str
    token: str | None = None
    fail: list[int] = field(default_factory=list)  # statuses of its next answers; 0: it hangs up
    change: Change = lambda data: data
    said: str = "busy"
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, authorization: str | None, body: bytes) -> tuple[int, bytes]:
        request = json.loads(body)
        self.requests.append(request | {"path": path, "authorization": authorization})
        if self.fail:
            return self.fail.pop(0), self.said.encode()
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 401, f"who is {authorization}?".encode()
        vectors = by_hand(self.model, request["input"])
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        return 200, json.dumps({"object": "list", "data": self.change(data), "model": request["model"]}).encode()


@pytest.fixture
def server(tiny: EncoderConfig) -> Iterator[Server]:
    served = Server(tiny.model)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = served.answer(self.path, self.headers["Authorization"], body)
            if status == 0:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        served.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        yield served
        http.shutdown()


def endpoint(server: Server, **change: Any) -> Endpoint:
    return dataclasses.replace(
        Endpoint(url=server.url, texts=2, parallel=3, timeout=20, retries=2, backoff=0), **change
    )


def refused(server: Server, config: EncoderConfig, **change: Any) -> str:
    with pytest.raises(EndpointError) as error:
        TextEncoder(config, endpoint(server, **change)).encode(TEXTS[:2], "poi_text")
    return str(error.value)


def test_vectors_are_those_of_the_model_in_this_process(tiny: EncoderConfig, server: Server) -> None:
    seen: list[tuple[str, int, int]] = []
    remote = TextEncoder(tiny, endpoint(server, model="served-name"))
    vectors = remote.encode(TEXTS, "poi_text", lambda *a: seen.append(a))
    np.testing.assert_allclose(vectors, TextEncoder(tiny).encode(TEXTS, "poi_text"), atol=1e-5)
    assert remote.name == f"{tiny.model} at {server.url.split('/')[2]}"
    assert seen[-1] == ("poi_text", 5, 5)
    assert sorted(len(r["input"]) for r in server.requests) == [1, 2, 2]
    before, after = TEMPLATES["poi_text"].split("{text}")
    for request in server.requests:
        assert request["path"] == "/v1/embeddings"
        assert request["model"] == "served-name"
        assert all(p.startswith(before) and p.endswith(after) for p in request["input"])
    assert len(remote.encode([], "poi_text")) == 0


def test_heads_and_clock_of_a_tuned_model_do_not_depend_on_where_it_runs(
    tuned: Callable[[Embedder | None], EncoderConfig], server: Server, town: Workspace
) -> None:
    config = tuned(Embedder(templates=TEMPLATES, pooling="last", heads={"poi_text": "poi"}))
    torch.manual_seed(0)
    heads = Heads(["poi"], 32, HeadConfig(width=5), Groups(spaces=("poi_text",), sentences={}))
    heads.save(server_folder := config.folder())
    server.model = str(server_folder)
    embed(town, config, spaces=["poi_text"], backend=endpoint(server))
    remote = load_matrix(town.knowledge / "poi_text.parquet")
    embed(town, config, spaces=["poi_text"])
    assert len(server.requests) == 1, "what was embedded is not embedded again, wherever it was"
    local = TextEncoder(config).encode(["A ramen bar.", "A bakery by the park."], "poi_text")
    assert local.shape == (2, 5)
    np.testing.assert_allclose(remote.matrix[1:], local, atol=1e-4)
    assert remote.version == config.version("poi_text")


def test_a_token_goes_to_the_server_and_nowhere_else(
    tiny: EncoderConfig, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.token = SECRET
    assert f"answers 401 for model {tiny.model!r}; its token belongs into {TOKEN_VARIABLE}" in refused(server, tiny)
    monkeypatch.setenv("OTHER_VARIABLE", SECRET + "-wrong")
    wrong = refused(server, tiny, token_variable="OTHER_VARIABLE")
    assert "who is Bearer ***?" in wrong
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    assert len(TextEncoder(tiny, endpoint(server)).encode(TEXTS[:2], "poi_text")) == 2
    assert SECRET not in caplog.text + wrong + repr(endpoint(server))


@pytest.mark.parametrize("failures", [[503, 429], [0, 500]])
def test_a_busy_server_is_asked_again(tiny: EncoderConfig, server: Server, failures: list[int]) -> None:
    server.fail = list(failures)
    vectors = TextEncoder(tiny, endpoint(server)).encode(TEXTS[:2], "poi_text")
    np.testing.assert_allclose(vectors, TextEncoder(tiny).encode(TEXTS[:2], "poi_text"), atol=1e-5)
    assert len(server.requests) == 3


def test_a_server_that_stays_busy_or_away_is_named(tiny: EncoderConfig, server: Server) -> None:
    server.fail = [503] * 9
    assert "/v1/embeddings answers 503" in refused(server, tiny)
    assert len(server.requests) == 3
    server.fail = [0] * 9
    assert "no answer in 3 tries" in refused(server, tiny)
    assert "no answer in 1 tries" in refused(server, tiny, url="http://127.0.0.1:9/v1", retries=0)


def test_a_mistake_is_not_repeated(tiny: EncoderConfig, server: Server) -> None:
    server.fail, server.said = [404], "no such model"
    assert "answers 404 for model 'x': no such model" in refused(server, tiny, model="x")
    assert len(server.requests) == 1


def test_answers_in_any_order_are_put_in_order(tiny: EncoderConfig, server: Server) -> None:
    server.change = lambda data: data[::-1]
    vectors = TextEncoder(tiny, endpoint(server)).encode(TEXTS[:2], "poi_text")
    np.testing.assert_allclose(vectors, TextEncoder(tiny).encode(TEXTS[:2], "poi_text"), atol=1e-5)


def unit(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [d | {"embedding": (np.array(d["embedding"]) / np.linalg.norm(d["embedding"])).tolist()} for d in data]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:1], r"2 vectors asked for, got 1 at \[0\]"),
        (lambda data: [d | {"index": 0} for d in data], r"2 vectors asked for, got 1 at \[0\]"),
        (lambda data: [d | {"embedding": d["embedding"][:8]} for d in data], r"width \[8\], but the states .* have 32"),
        (lambda data: [data[0], data[1] | {"embedding": [float("nan")] * 32}], "not finite"),
        (lambda data: [{"vector": 1}], "no server of embeddings"),
        (unit, "scales vectors to length 1"),
    ],
)
def test_vectors_that_cannot_be_right_are_refused(
    tiny: EncoderConfig, server: Server, change: Change, message: str
) -> None:
    server.change = change
    with pytest.raises(EndpointError, match=message):
        TextEncoder(tiny, endpoint(server)).encode(TEXTS[:2], "poi_text")


def test_a_server_that_scales_will_do_where_unit_length_is_meant(tiny: EncoderConfig, server: Server) -> None:
    config = dataclasses.replace(tiny, unit_length=True)
    expected = TextEncoder(config).encode(TEXTS[:2], "poi_text")
    for change in (unit, lambda data: data):
        server.change = change
        np.testing.assert_allclose(
            TextEncoder(config, endpoint(server)).encode(TEXTS[:2], "poi_text"), expected, atol=1e-5
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://host/v1"}, "http:// or https://"),
        ({"url": "gpu-1:8000"}, "http:// or https://"),
        ({"url": "https://me:secret@host/v1"}, "no secrets in the url"),
        ({"url": "https://host/v1?key=secret"}, "no secrets in the url"),
        ({"texts": 0}, "must be positive"),
    ],
)
def test_impossible_endpoints_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EndpointError, match=message) as error:
        dataclasses.replace(Endpoint(url="http://host/v1"), **change)
    assert "secret@" not in str(error.value)
    assert "key=" not in str(error.value)
