"""How often a call is tried: again after a failure, and a second time beside a first try that is slow.

The first is gRPC's own: a channel with a retry policy (gRFC A6) does it below Python, within the deadline of the call,
with a server's pushback and a budget. The second is here, because the C core that Python's gRPC stands on takes a
`hedgingPolicy` and does nothing with it. Its idea is that of Dean and Barroso, "The Tail at Scale" (CACM 2013): the
slow few are put to another server too, the first answer counts, and the other call is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from serving.v1 import recommender_pb2 as pb

MOST_TRIES = 5  # gRPC makes no more, whatever a policy says
MOST_BUDGET = 1000
EARNED = 0.1  # failures that one answer makes up for
BURST = 10  # second tries that a client may have saved up
AGAIN = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")  # nothing was done, or nothing that counts twice
RECONNECT_MS = (100, 5000)  # the first pause and the longest; gRPC's own are 1 s and 2 min
KEPT_BYTES = 4 * 1024 * 1024  # of a request, to send it again; gRPC's own 256 KiB are less than a large one has


@dataclass(frozen=True, kw_only=True)
class Retries:
    """When UNAVAILABLE and RESOURCE_EXHAUSTED are asked again, by gRPC itself, within the call's deadline.

    Args:
        tries: of one call, the first included, 1 (never again) to 5.
        wait_seconds: before the second try; twice as long before each further one, a fifth more or less by chance. A
            server that says when to come again is obeyed instead.
        longest_wait_seconds: of these.
        budget: 1 to 1,000. Each failed try costs one of it and each answer earns a tenth; at half of it or less nothing
            is tried again, so that a server in trouble is not asked five times as much. Shared by all clients of one
            address in a process.

    Raises ValueError for values that gRPC would not take.
    """

    tries: int = MOST_TRIES
    wait_seconds: float = 0.1
    longest_wait_seconds: float = 1.0
    budget: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= MOST_TRIES:
            raise ValueError(f"tries must be from 1 to {MOST_TRIES}, are {self.tries}")
        if not 0.0 < self.wait_seconds <= self.longest_wait_seconds:
            waits = f"{self.wait_seconds} and {self.longest_wait_seconds}"
            raise ValueError(f"0 < wait_seconds <= longest_wait_seconds expected, are {waits}")
        if not 1 <= self.budget <= MOST_BUDGET:
            raise ValueError(f"budget must be from 1 to {MOST_BUDGET}, is {self.budget}")


@dataclass(frozen=True, kw_only=True)
class Hedging:
    """A second try of a question whose first one is not answered yet. It costs up to `share` more requests.

    Args:
        after_seconds: from the first try to the second; such as the 95th percentile of a caller's own latencies.
        to: the address of the second tries. None: that of the first, where it depends on the load balancing whether
            another server gets them: among n servers and many calls at a time, 1 in n goes to the same.
        share: of the calls that have a second try, at most and in the long run; where all calls are slow, twice the
            calls would help nobody.

    Raises ValueError for a delay or share that is no such thing.
    """

    after_seconds: float
    to: str | None = None
    share: float = 0.1

    def __post_init__(self) -> None:
        if not self.after_seconds > 0.0:
            raise ValueError(f"after_seconds must be above 0, is {self.after_seconds}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share must be above 0 and at most 1, is {self.share}")


@dataclass(frozen=True, kw_only=True)
class Hedged:
    """What became of a client's questions: `sent` of `calls` had a second try, which answered `won` of them;
    `withheld` would have had one, were it not for `Hedging.share`."""

    calls: int = 0
    sent: int = 0
    won: int = 0
    withheld: int = 0


def channel_options(retries: Retries) -> list[tuple[str, str | int]]:
    """What a channel has to know to try again, and to find a server that is back; servers are taken in turn."""
    service = pb.DESCRIPTOR.services_by_name["RecommenderService"]
    unary = [method.name for method in service.methods if not method.client_streaming]
    policy = {
        "maxAttempts": retries.tries,
        "initialBackoff": f"{retries.wait_seconds:.3f}s",
        "maxBackoff": f"{retries.longest_wait_seconds:.3f}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": AGAIN,
    }
    names = [{"service": service.full_name, "method": name} for name in unary]
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries.tries > 1:
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": retries.budget, "tokenRatio": EARNED}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.per_rpc_retry_buffer_size", KEPT_BYTES),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
    ]


class SecondTries:
    """Which calls of one client may have a second try, and what became of them; safe between threads."""

    def __init__(self, hedging: Hedging) -> None:
        self.after_seconds = hedging.after_seconds
        self._share = hedging.share
        self._saved = float(BURST)
        self._lock = threading.Lock()
        self._seen = Hedged()

    @property
    def seen(self) -> Hedged:
        return self._seen

    def called(self) -> None:
        with self._lock:
            self._saved = min(self._saved + self._share, BURST)
            self._seen = replace(self._seen, calls=self._seen.calls + 1)

    def granted(self) -> bool:
        """Whether there may be one now; it is spent then."""
        with self._lock:
            if self._saved < 1.0 - 1e-9:  # ten tenths are one
                self._seen = replace(self._seen, withheld=self._seen.withheld + 1)
                return False
            self._saved -= 1.0
            self._seen = replace(self._seen, sent=self._seen.sent + 1)
            return True

    def won(self) -> None:
        with self._lock:
            self._seen = replace(self._seen, won=self._seen.won + 1)


Try = Callable[..., Any]  # starts a call that ends within `timeout` seconds


def first_answer(tries: Sequence[Try], second_tries: SecondTries, seconds: float) -> Any:
    """The answer of the first try, or of the second if that is sooner; the other call is cancelled.

    Args:
        tries: the two, each of which starts a `grpc.Future` that is a call.
        seconds: until the deadline of both.
    Raises:
        grpc.RpcError: of the first try, where neither has an answer.
    """
    end = time.monotonic() + seconds
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    second_tries.called()
    calls = [tries[0](timeout=seconds)]
    calls[0].add_done_callback(ended.put)
    try:
        try:
            best = ended.get(timeout=second_tries.after_seconds)
        except queue.Empty:
            if second_tries.granted():
                calls.append(tries[1](timeout=end - time.monotonic()))
                calls[1].add_done_callback(ended.put)
            for _ in calls:
                best = ended.get()
                if best.code() is grpc.StatusCode.OK:
                    break
            else:
                best = calls[0]
            if best is not calls[0]:
                second_tries.won()
        return best.result()
    finally:
        for call in calls:
            call.cancel()


async def first_answer_async(tries: Sequence[Try], second_tries: SecondTries, seconds: float) -> Any:
    """The same for calls of `grpc.aio`."""
    end = time.monotonic() + seconds
    ended: asyncio.Queue[Any] = asyncio.Queue()
    second_tries.called()
    calls = [tries[0](timeout=seconds)]
    calls[0].add_done_callback(ended.put_nowait)
    try:
        try:
            best = await asyncio.wait_for(ended.get(), second_tries.after_seconds)
        except TimeoutError:
            if second_tries.granted():
                calls.append(tries[1](timeout=end - time.monotonic()))
                calls[1].add_done_callback(ended.put_nowait)
            for _ in calls:
                best = await ended.get()
                if await best.code() is grpc.StatusCode.OK:
                    break
            else:
                best = calls[0]
            if best is not calls[0]:
                second_tries.won()
        return await best
    finally:
        for call in calls:
            call.cancel()
