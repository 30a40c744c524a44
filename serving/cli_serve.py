"""The verb that answers: `scenerank serve`, in one process or in several that share the address."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from serving.logs import LogFormat, LogLevel
from serving.options import (
    BundleOption,
    LogFormatOption,
    LogLevelOption,
    TraceOption,
    WorkspaceOption,
    explained,
    root_of,
    workspace_of,
)

CertificateOption = Annotated[Path | None, typer.Option(help="PEM; with --key, TLS. Needed beyond this machine.")]
ClientCaOption = Annotated[
    Path | None, typer.Option(help="PEM; clients must show a certificate that it signed (mutual TLS).")
]
TokenFileOption = Annotated[
    Path | None, typer.Option(help="Callers must send one of its tokens: a line each, with the token's scopes.")
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Requests answered at the same time.")]
WaitingOption = Annotated[int, typer.Option(min=0, help="Further requests that wait; more are refused.")]
FeedbackStreamsOption = Annotated[
    int, typer.Option(min=1, help="Streams of feedback open at the same time; more are refused.")
]
ProcessesOption = Annotated[
    int, typer.Option(min=1, help="Server processes behind the address, each with its workers: one a core.")
]
MetricsPortOption = Annotated[
    int | None, typer.Option(help="Of Prometheus metrics; of further processes on the next ports.")
]
MetricsHostOption = Annotated[str, typer.Option(help="Where they listen; 0.0.0.0 for a Prometheus elsewhere.")]
UnprovenOption = Annotated[
    bool, typer.Option("--unproven", help="Take a bundle without a valid certificate; every answer says so.")
]
ServedShareOption = Annotated[
    float, typer.Option(help="Of the answers whose values are kept in WORKSPACE/served, for prove.")
]
PoiAgeOption = Annotated[
    float, typer.Option(min=0.0, help="Seconds that a POI's values may be old; 0: read with each request.")
]
ExploreOption = Annotated[
    float, typer.Option(min=0.0, help="Draw orders from the scores, with this temperature in logits; 0: do not.")
]
DrainOption = Annotated[
    float,
    typer.Option(min=0.0, help="Seconds from SIGTERM on that calls are still taken, and health says NOT_SERVING."),
]
KeyOption = Annotated[Path | None, typer.Option(help="PEM of the certificate's private key.")]
ListenOption = Annotated[str, typer.Option(help="Host and port; port 0: any free one.")]
AgreedOption = Annotated[Path | None, typer.Option(hidden=True)]
ParentOption = Annotated[int, typer.Option(hidden=True)]


def serve(
    bundle: BundleOption = "larr",
    address: ListenOption = "127.0.0.1:50051",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    client_ca: ClientCaOption = None,
    token_file: TokenFileOption = None,
    workers: WorkersOption = 4,
    waiting: WaitingOption = 16,
    feedback_streams: FeedbackStreamsOption = 16,
    processes: ProcessesOption = 1,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    unproven: UnprovenOption = False,
    served_share: ServedShareOption = 0.0,
    poi_age: PoiAgeOption = 10.0,
    explore: ExploreOption = 0.0,
    drain: DrainOption = 0.0,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
    trace: TraceOption = False,
    workspace: WorkspaceOption = None,
    agreed: AgreedOption = None,
    parent: ParentOption = 0,
) -> None:
    """Answer Rank, Recommend and Explain, and take feedback, over gRPC until SIGTERM."""
    from serving import auth, logs

    logs.configure(log_format, log_level)
    with explained():
        auth.host_and_port(address)
    if processes > 1:
        _serve_together(processes, bundle, address, metrics_port, drain, root_of(workspace))
    from serving import lifetime, server, tracing

    with explained():
        if (certificate is None) != (key is None):
            raise ValueError("TLS needs both --certificate and --key")
        if client_ca is not None and certificate is None:
            raise ValueError("--client-ca needs --certificate and --key: clients are known by TLS")
        target = workspace_of(workspace)
        options = server.ServerOptions(
            address=address,
            workers=workers,
            waiting=waiting,
            feedback_streams=feedback_streams,
            tls=auth.Tls(certificate=certificate, key=key, client_ca=client_ca) if certificate and key else None,
            tokens=auth.tokens_from(token_file),
            drain_seconds=drain,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            observers=(tracing.exported(),) if trace else (),
            shared=server.Shared(agreed=agreed, parent=parent) if agreed else None,
        )
        found = target.index if target.index.exists() else None
        host = address.rsplit(":", 1)[0]
        lifetime.serve(
            target,
            target.bundles / bundle,
            found,
            options,
            unproven=unproven,
            served_share=served_share,
            poi_age_s=poi_age,
            explore=explore,
            started=lambda running: typer.echo(f"serving {bundle} on {host}:{running.port}"),
        )


def _serve_together(
    count: int, bundle: str, address: str, metrics_port: int | None, drain: float, root: Path
) -> NoReturn:
    """This very command in several processes, which share the address."""
    from serving import processes

    def command(n: int, shared: str, agreed: Path) -> list[str]:
        # Of an option that is given twice the last one counts.
        changed = ["--processes", "1", "--address", shared, "--agreed", str(agreed), "--parent", str(os.getpid())]
        changed += [] if metrics_port is None else ["--metrics-port", str(metrics_port + n)]
        return [sys.executable, "-m", "serving.cli", *sys.argv[1:], *changed]

    host = address.rsplit(":", 1)[0]
    place = root if root.is_dir() else None  # the processes say what they lack
    with explained():
        status = processes.serve(
            command, count, address, lambda port: typer.echo(f"serving {bundle} on {host}:{port}"), place, drain
        )
    raise typer.Exit(status)
