"""What processes of one run tell each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from trainers.language.processes import Processes

# Each of two processes has two rows and a loss of its own over all four.
PROGRAM = """
import torch
from trainers.language.processes import Processes
processes = Processes.join()
rank = processes.rank
mine = torch.tensor([[1.0 + 10 * rank], [2.0 + 10 * rank]], requires_grad=True)
rows = processes.gather(mine)
weights = torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * (1 if rank == 0 else 100)
(rows * weights).sum().backward()
keys = processes.gather(torch.tensor([rank, rank + 5]))
for turn in range(2):
    if turn == rank:
        print(rank, rows.flatten().tolist(), mine.grad.flatten().tolist(), keys.tolist(), flush=True)
    processes.agree(0)
"""


def test_gathered_rows_carry_the_gradients_of_all_processes(tmp_path: Path) -> None:
    """Weights are 1 2 3 4 in the first loss and a hundred times that in the second."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "0 [1.0, 2.0, 11.0, 12.0] [101.0, 202.0] [0, 5, 1, 6]",
        "1 [1.0, 2.0, 11.0, 12.0] [303.0, 404.0] [0, 5, 1, 6]",
    ]


def test_one_process_has_all_rows() -> None:
    rows = torch.ones(3, 2)
    assert Processes.join().gather(rows) is rows
