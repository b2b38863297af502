"""Run nnplug and nnU-Net's own commands as a user does: in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LAUNCHER = Path(__file__).with_name("stock_launcher.py")
DDP_LAUNCHER = Path(__file__).with_name("stock_ddp_launcher.py")


def run_nnplug(
    *args: object,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 600,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """``nnplug ARGS``.

    Args:
        args: command-line arguments; anything with a text form.
        env: variables set on top of the environment, from which nnU-Net's own are taken away first.
        check: a return code other than 0 fails the test, with the output.
        timeout: seconds.
        cwd: folder to run in.
    """
    return _run([sys.executable, "-m", "nnplug", *map(str, args)], env, check, timeout, cwd)


def run_stock(
    entry_point: str,
    *args: object,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 600,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """``nnUNetv2_train ARGS`` and the like, through a launcher that makes torchvision importable beside a CPU torch."""
    return _run([sys.executable, str(LAUNCHER), entry_point, *map(str, args)], env, check, timeout, cwd)


def run_stock_ddp(*args: object, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """``nnUNetv2_train ARGS`` in several processes on the CPU."""
    return _run([sys.executable, str(DDP_LAUNCHER), *map(str, args)], env, check=True, timeout=600, cwd=None)


def clean_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without nnU-Net's variables, then ``env``."""
    base = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    # width and colour of messages must not depend on the terminal the tests run in
    base.update({"COLUMNS": "200", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"})
    # threads that spin while they wait take the cores from the other processes of a test
    base["OMP_WAIT_POLICY"] = "PASSIVE"
    return {**base, **(env or {})}


def _run(
    command: list[str], env: Mapping[str, str] | None, check: bool, timeout: float, cwd: Path | None
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command,
        env=clean_environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )
    if check and result.returncode != 0:
        output = f"--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
        raise AssertionError(f"{' '.join(command)}\nreturned {result.returncode}\n{output}")
    return result
