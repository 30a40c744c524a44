"""Rank under load: one user and 200 places through gRPC, against its bare parts, an echo, and Feast's read alone.

The bundle is LARR + LLM4MSR of the reference size (ids of 16, scene slots of 128, one transformer layer, 2 + 2 + 2
experts of 256 and 128) on all that the city's schema has, with random weights: what is timed does not depend on them.
Its features come from the embedded online store. Server and client have one core each.

    echo      the same request and answer messages through a server of the same workers that does nothing
    parts     echo + one bare read (a SELECT a view, `frombuffer` of the records) + the bare forward pass of the ranker

Load is open: requests are sent at their times, whatever became of the ones before, and each latency counts from when
its request was due. Half load is half of the highest rate that a closed loop reaches. Requests come at random times, as
those of many users do, and some wait for others; `-even` rows are of the same rate at equal distances.
At three times the highest rate those that the server takes are counted, and the others it refuses at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from report import Row, write

del sys.path[0]  # where this file is called as a package that it reads

SIZES = (1, 50, 200, 1000)
MAIN = 200
SECONDS, LANES = 8.0, 2  # of one measurement; calls at a time in the closed loop: one is worked on, one waits
OVERLOAD = 3.0  # times the highest rate
SERVER_CORE, CLIENT_CORE = 0, 1
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("role", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    roles: dict[str, Callable[..., None]] = {"serve": serve, "load": load, "bare": bare}
    if asked.role:
        roles[asked.role](*asked.rest)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "city"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.experiments.reference_bundle", str(root)]
        subprocess.run([*command, *map(str, SIZES)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        write("serving", measured(root, asked.seconds))


def own(role: str, *rest: str) -> dict[str, Any]:
    """One of the roles below in a process of its own; what it printed last, as JSON."""
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, role, *rest], stdout=subprocess.PIPE, check=True)
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1])) if lines else {}


def measured(root: Path, seconds: float) -> list[Row]:
    rows = []
    parts = own("bare", str(root))
    for size in SIZES:
        ranked, echoed = (at_half_load(root, kind, size, seconds) for kind in ("rank", "echo"))
        part, suffix = parts[str(size)], "" if size == MAIN else f"-{size}"
        for name, ours, theirs in (
            ("p50-vs-parts", ranked.p50, echoed.p50 + part["read"] + part["forward"]),
            ("p50-vs-echo", ranked.p50, echoed.p50),
            ("p99-vs-own-p50", ranked.p99, ranked.p50),
            ("rank-vs-feast-read", ranked.p50, part["feast"]),
        ):
            rows.append(Row(name=name + suffix, ours=ours, reference=theirs, better="lower", unit="ms", n=ranked.n))
        even = {"ours": ranked.p50_even, "reference": echoed.p50_even + part["read"] + part["forward"]}
        rows.append(Row(name=f"p50-vs-parts-even{suffix}", **even, better="lower", unit="ms", n=ranked.n_even))
        if size == MAIN:
            rows.append(
                Row(
                    name="answered-at-half-load",
                    ours=ranked.n,
                    reference=ranked.n + ranked.refused,
                    better="higher",
                    unit="requests",
                    n=ranked.n + ranked.refused,
                )
            )
            p99s = {"ours": ranked.p99_overloaded, "reference": ranked.p99, "better": "lower", "unit": "ms"}
            rows.append(Row(name="p99-of-accepted-at-3x-vs-half-load", n=ranked.n_overloaded, **p99s))
        rates = {"ours": ranked.rate, "reference": echoed.rate, "better": "higher", "unit": "requests/s"}
        rows.append(Row(name=f"rate-vs-echo{suffix}", n=ranked.n, **rates))
    return rows


@dataclass(frozen=True)
class Seen:
    """Highest rate (a second), latencies (ms) at half of it with how many were refused there, and of those that are
    taken at three times it; `p50_even`: at half of it, where requests come at equal distances."""

    rate: float
    p50: float
    p50_even: float
    n_even: int
    p99: float
    n: int
    refused: int
    p99_overloaded: float
    n_overloaded: int


def at_half_load(root: Path, kind: str, size: int, seconds: float) -> Seen:
    with server(root, kind) as port:
        overload = OVERLOAD if kind == "rank" and size == MAIN else 0.0
        found = own("load", str(port), str(root), str(size), str(seconds), str(overload))
    return Seen(**found)


@contextmanager
def server(root: Path, kind: str) -> Iterator[int]:
    command = [sys.executable, "-W", "ignore", __file__, "serve", str(root), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def serve(root: str, kind: str) -> None:
    """Our server, or one of the same shape that gives every request the same answer."""
    os.sched_setaffinity(0, {SERVER_CORE})
    import torch

    from feature_repo.workspace import Workspace
    from serving.opening import open_pipeline
    from serving.server import ServerOptions, create_server

    torch.set_num_threads(1)
    workspace = Workspace(Path(root))
    pipeline = open_pipeline(workspace, workspace.bundles / "reference", None, unproven=True, poi_age_s=10.0)
    options = ServerOptions(workers=1, waiting=4)  # one core
    if kind == "rank":
        pipeline.start()
        running = create_server(pipeline, options)
        print(running.port, flush=True)
    else:
        server, port = echo(pipeline, options.workers)
        server.start()
        print(port, flush=True)
    sys.stdin.read()


def echo(pipeline: Any, workers: int) -> tuple[Any, int]:
    """A server whose answers have the right length and cost nothing to make, and its port."""
    from concurrent import futures

    import grpc

    from serving import wire
    from serving.v1 import recommender_pb2 as pb
    from serving.v1 import recommender_pb2_grpc as pb_grpc

    answers: dict[int, pb.RankResponse] = {}

    class Echo(pb_grpc.RecommenderServiceServicer):
        def Rank(self, request: pb.RankRequest, context: grpc.ServicerContext) -> pb.RankResponse:
            size = len(request.poi_ids)
            if size not in answers:
                ranking = pipeline.rank(wire.rank_request(request))
                answers[size] = pb.RankResponse(ranking=wire.ranking(ranking, wire.model_info(pipeline), False))
            return answers[size]

    served = grpc.server(futures.ThreadPoolExecutor(workers), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_RecommenderServiceServicer_to_server(Echo(), served)  # type: ignore[no-untyped-call]
    return served, served.add_insecure_port("127.0.0.1:0")


def load(port: str, root: str, size: str, seconds: str, overload: str) -> None:
    """The client: a closed loop for the highest rate, then open ones at half of it and at so many times it."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    print(json.dumps(asyncio.run(loaded(int(port), Path(root), int(size), float(seconds), float(overload)))))


async def loaded(port: int, root: Path, size: int, seconds: float, overload: float) -> dict[str, float]:
    import grpc

    from serving.client import NO_PROXY
    from serving.v1 import recommender_pb2 as pb
    from serving.v1 import recommender_pb2_grpc as pb_grpc

    requests = [pb.RankRequest.FromString(bytes.fromhex(line)) for line in (root / f"requests-{size}").open()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [NO_PROXY]) as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)  # type: ignore[no-untyped-call]
        for request in requests[:50]:
            answer = await stub.Rank(request, timeout=60.0)
            assert not answer.ranking.HasField("degraded") and len(answer.ranking.poi_ids) == size
        await closed(stub, requests, seconds / 4)  # what is learned of paces, caches and branches
        rate = await closed(stub, requests, seconds)
        ms, refused = await opened(stub, requests, rate / 2, seconds)
        even_ms, none = await opened(stub, requests, rate / 2, seconds, even=True)
        taken_ms, _ = await opened(stub, requests, overload * rate, seconds) if overload else (ms, refused)
    p50, p99 = np.quantile(ms, [0.5, 0.99])
    found = {"rate": rate, "p50": float(p50), "p99": float(p99), "n": len(ms), "refused": refused}
    assert not none, f"{none} requests were refused at half load and equal distances"
    found |= {"p50_even": float(np.median(even_ms)), "n_even": len(even_ms)}
    return found | {"p99_overloaded": float(np.quantile(taken_ms, 0.99)), "n_overloaded": len(taken_ms)}


async def closed(stub: Any, requests: list[Any], seconds: float) -> float:
    """Answers a second where each of `LANES` callers asks as soon as it is answered."""
    end, done = time.perf_counter() + seconds, 0

    async def lane(at: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await stub.Rank(requests[at % len(requests)], timeout=60.0)
            at, done = at + LANES, done + 1

    started = time.perf_counter()
    await asyncio.gather(*(lane(at) for at in range(LANES)))
    return done / (time.perf_counter() - started)


async def opened(
    stub: Any, requests: list[Any], rate: float, seconds: float, *, even: bool = False
) -> tuple[list[float], int]:
    """Milliseconds from the time at which each request was due, at exponential distances or, `even`, at equal ones, and
    how many were refused."""
    import grpc

    rng, due, calls, ms = np.random.default_rng(0), time.perf_counter(), [], list[float]()

    async def ask(request: Any, due: float) -> None:
        try:
            await stub.Rank(request, timeout=60.0)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return
        ms.append(1000 * (time.perf_counter() - due))

    end, at = due + seconds, 0
    while (due := due + (1 / rate if even else rng.exponential(1 / rate))) < end:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        calls.append(asyncio.create_task(ask(requests[at % len(requests)], due)))
        at += 1
    await asyncio.gather(*calls)
    return ms, len(calls) - len(ms)


def bare(root: str) -> None:
    """Median ms of the parts that nobody can do without, on the server's core: reading records, the forward pass; and
    of Feast's own read of the same values."""
    os.sched_setaffinity(0, {SERVER_CORE})
    import torch

    from feature_repo.store import open_store
    from feature_repo.workspace import Workspace
    from serving import wire
    from serving.features import FeatureReader
    from serving.v1 import recommender_pb2 as pb
    from trainers import bundle as bundles
    from trainers.batch import Batch

    torch.set_num_threads(1)
    workspace = Workspace(Path(root))
    loaded = bundles.load(workspace.bundles / "reference")
    store = open_store(workspace)
    reader = FeatureReader(store, loaded)
    found = {}
    for size in SIZES:
        lines = (workspace.root / f"requests-{size}").read_text().splitlines()
        asked = wire.rank_request(pb.RankRequest.FromString(bytes.fromhex(lines[0])))
        context = reader.read_context(asked.context, asked.context.time_us or 0)
        batch = Batch.from_arrow(reader.read_pois(context, asked.poi_ids).rows, loaded.encoding)
        references = [name for name in loaded.manifest.features if not name.startswith("scene:")]
        n = len(asked.poi_ids)
        entities = {key: list(values) * (n // len(values)) for key, values in ids_of(asked).items()}
        with torch.inference_mode():
            forward = median_ms(partial(loaded.ranker, batch))
        found[str(size)] = {
            "read": median_ms(bare_read(store, loaded, asked)),
            "forward": forward,
            "feast": median_ms(lambda e=entities, r=references: store.get_online_features(r, e).to_dict(), 7),
        }
    print(json.dumps(found))


def ids_of(asked: Any) -> dict[str, Sequence[str]]:
    """The value of every join key that a bundle's views have, or one for each place."""
    from feature_repo import columns

    context = asked.context
    ids = {columns.USER_ID: [context.user_id], columns.SCENARIO_ID: [context.scenario_id]}
    return ids | {columns.POI_ID: asked.poi_ids, columns.CATEGORY_KEY: ["restaurant"], columns.DAYPART_KEY: ["lunch"]}


def bare_read(store: Any, loaded: Any, asked: Any) -> Callable[[], Any]:
    """A SELECT for every view that the bundle reads, keys made before, and the numbers of its records as an array."""
    from feature_repo.stores.packed_sqlite import _table

    packed, config, ids = store._get_provider().online_store, store.config, ids_of(asked)
    views = dict.fromkeys(name.split(":")[0] for name in loaded.manifest.features)
    plans = [packed.prepare(config, store.get_feature_view(name)) for name in views if name != "scene"]
    wanted = [(_table(config, plan.table), plan.keys.of({key: ids[key] for key in plan.keys.types})) for plan in plans]
    db = packed._connection(config)

    def read() -> list[np.ndarray]:
        arrays = []
        for table, keys in wanted:
            marks = ",".join("?" * len(keys))
            records = [r for (r,) in db.execute(f"SELECT record FROM {table} WHERE key IN ({marks})", keys)]
            arrays.append(np.frombuffer(b"".join(record[:24] for record in records), dtype="<i8"))
        return arrays

    return read


def median_ms(call: Callable[[], Any], times: int = 60) -> float:
    call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    main()
