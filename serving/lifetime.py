"""The life of one server process: a bundle is opened, the server answers until it is told to stop, and drains."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from feature_repo.workspace import Workspace
from serving import agreement
from serving.feedback import FeedbackLog
from serving.feedback_tables import url_of
from serving.opening import open_pipeline
from serving.pipeline import Pipeline
from serving.server import RunningServer, ServerOptions, create_server
from serving.told import Told

log = logging.getLogger(__name__)


def serve(
    workspace: Workspace,
    bundle: Path,
    index: Path | None,
    options: ServerOptions,
    *,
    unproven: bool = False,
    served_share: float = 0.0,
    poi_age_s: float = 0.0,
    explore: float = 0.0,
    started: Callable[[RunningServer], None] = lambda server: None,
) -> None:
    """Answer until SIGTERM or SIGINT, then drain and return.

    Args:
        unproven, served_share, poi_age_s, explore: see `open_pipeline`.
        started: called once the server answers; a command line prints the port here.
    """
    torch.set_num_threads(1)  # one core a request: requests run side by side

    def load(folder: Path) -> Pipeline:
        return open_pipeline(
            workspace, folder, index, unproven=unproven, served_share=served_share, poi_age_s=poi_age_s, explore=explore
        )

    # One that takes another's place answers as those beside it do by now.
    said = None if options.shared is None else agreement.said(options.shared.agreed)
    bundle = bundle if said is None else workspace.bundles / said.bundle
    pipeline = load(bundle)
    pipeline.start()
    feedback = FeedbackLog(url_of(workspace))
    running = create_server(pipeline, options, feedback, lambda name: load(workspace.bundles / name), bundle.name)
    told = Told()
    started(running)
    told.wait()
    ended = [running.stop(), feedback.close()]
    left_behind = not running.live.close()
    if not all(ended):
        log.error("a call hangs, as where a database does not answer; leaving without it")
    if left_behind or not all(ended):
        os._exit(0 if all(ended) else 1)  # the interpreter would wait for its thread for ever
