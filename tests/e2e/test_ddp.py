"""One training in two processes, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from support import run_nnplug
from support.commands import clean_environment
from support.datasets import DatasetForTests
from support.small_trainings import write_recipe


def test_two_processes_stop_at_the_same_step_go_on_from_there_and_restart(
    tiny_dataset: DatasetForTests, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, num_epochs=2, num_iterations_per_epoch=20)
    arguments = ["train", "901", "3d_fullres", "0", "-tr", str(recipe), "-device", "cpu", "-num_gpus", "2", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nnplug", *arguments],
        env=clean_environment(tiny_dataset.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert any("epoch 1/2" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 75
    stopped = json.loads(printed)
    assert stopped["status"] == "interrupted"
    assert "Interrupted by SIGTERM at epoch 1, step " in stopped["message"]
    (fold,) = tiny_dataset.results_folder.glob("*/fold_0")
    latest = torch.load(fold / "checkpoint_latest.pth", weights_only=True)
    assert latest["current_epoch"] == 1
    assert 0 < latest["nnplug"]["step"] == len(latest["nnplug"]["partial_epoch"]["losses"]) <= 20

    result = json.loads(run_nnplug(*arguments, "--c", env=tiny_dataset.env).stdout)
    assert result["status"] == "completed"
    final = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == 2
    assert {len(series) for series in final["logging"].values()} == {2}
    assert "Continuing from checkpoint_latest.pth at epoch 1" in (fold / "training_log.txt").read_text()

    no_csv = {**tiny_dataset.env, "nnplug_csv_enabled": "perhaps"}
    refused = run_nnplug(*arguments, "--restart", env=no_csv, check=False)  # by the first process alone
    assert refused.returncode == 2
    assert "nnplug: error: The environment variable nnplug_csv_enabled is 'perhaps'." in refused.stderr
    assert (fold / "checkpoint_final.pth").exists()
    assert not list(fold.parent.glob("replaced_*"))
    assert json.loads(run_nnplug(*arguments, "--restart", env=tiny_dataset.env).stdout)["status"] == "completed"
    (kept,) = fold.parent.glob("replaced_*")
    assert (kept / "checkpoint_final.pth").exists()
