"""Load the demo's network in a process of its own: `python -m tenflex.demo.again FOLDER` prints what it computes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from tenflex.demo.digits import load_digits
from tenflex.demo.networks import LeNet300
from tenflex.evaluate.fidelity import predict
from tenflex.storage.network import load


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of all bits of the outputs for the test images."""
    return hashlib.sha256(predict(model, load_digits().test_images).numpy().tobytes()).hexdigest()


def require_same_bits(model: nn.Module, folder: Path) -> None:
    """Load a saved network in a new process, and compare its outputs with those of the network that was saved.

    Raises:
        RuntimeError: if the process fails, or a bit differs.
    """
    # As many threads as here: another number sums in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", __name__, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{folder} could not be loaded in a new process: {reason}")
    if run.stdout.strip() != fingerprint(model):
        raise RuntimeError(f"{folder} loaded in a new process gives other outputs than before: please report this")


if __name__ == "__main__":
    # The architecture alone: all weights come from the file.
    print(fingerprint(load(sys.argv[1], LeNet300())))
