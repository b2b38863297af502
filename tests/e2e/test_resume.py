"""A training that is stopped or killed goes on as if nothing had happened, and never goes on as something else."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from support.commands import clean_environment, run_nnplug
from support.datasets import DatasetForTests
from support.plugin_packages import PluginSite
from support.processes import stopped_until_a_worker_is_idle, wait_until_gone

NUM_EPOCHS, STEPS = 4, 3
# a small network: what is tested is the loop around it
RECIPE = f"""
name = "loop"
num_epochs = {NUM_EPOCHS}
num_iterations_per_epoch = {STEPS}
num_val_iterations_per_epoch = 1
save_every = 1
patch_size = [16, 16, 16]
[plans.architecture.arch_kwargs]
features_per_stage = [4, 8, 16]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "loop.toml"
    path.write_text(RECIPE)
    return path


def command(recipe: Path | str, *args: object) -> list[str]:
    base = [sys.executable, "-m", "nnplug", "train", "901", "3d_fullres", "0", "-tr", str(recipe), "-device", "cpu"]
    return base + [str(a) for a in args]


@contextmanager
def running(
    dataset: DatasetForTests, recipe: Path, *args: object, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(recipe, *args),
        env=clean_environment(env or dataset.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in iter(process.stdout.readline, ""):
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"ended without '{text}':\n{''.join(seen)}")


def rest_of(process: subprocess.Popen[str]) -> str:
    """What it still prints until it ends."""
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait(timeout=60)
    return output


def fold_folder(dataset: DatasetForTests) -> Path:
    (model,) = [p for p in dataset.results_folder.iterdir() if p.name.startswith("loop-")]
    return model / "fold_0"


def logging_of(checkpoint: Path) -> dict[str, list[float]]:
    return torch.load(checkpoint, weights_only=True)["logging"]


def assert_unbroken(final: Path) -> None:
    """One value an epoch in every series, and the learning rates of an uninterrupted training."""
    log = logging_of(final)
    assert {key: len(series) for key, series in log.items()} == dict.fromkeys(log, NUM_EPOCHS)
    schedule = PolyLRScheduler(torch.optim.SGD([torch.zeros(1)], 1e-2), 1e-2, NUM_EPOCHS)
    expected = []
    for epoch in range(NUM_EPOCHS):
        schedule.step(epoch)
        expected.append(schedule.get_last_lr()[0])
    assert log["lrs"] == pytest.approx(expected)
    times = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    assert all(end > start for start, end in times)
    checkpoint = torch.load(final, weights_only=True)
    assert checkpoint["_best_ema"] == pytest.approx(max(log["ema_fg_dice"]))
    assert checkpoint["current_epoch"] == NUM_EPOCHS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_signal_saves_at_the_next_step_and_the_epoch_goes_on_from_there(
    tiny_dataset: DatasetForTests, recipe: Path, number: signal.Signals
) -> None:
    # many steps, so that the signal arrives in the middle of an epoch
    recipe.write_text(RECIPE.replace(f"num_iterations_per_epoch = {STEPS}", "num_iterations_per_epoch = 40"))
    with running(tiny_dataset, recipe) as process:
        wait_for_line(process, "epoch 1/4")
        time.sleep(0.3)
        process.send_signal(number)
        output = rest_of(process)

    assert process.returncode == 75
    assert f"Interrupted by {number.name} at epoch 1, step" in output
    assert "Continue with --c." in output
    latest = torch.load(fold_folder(tiny_dataset) / "checkpoint_latest.pth", weights_only=True)
    assert latest["current_epoch"] == 1
    done = latest["nnplug"]["step"]
    assert 0 < done <= 40
    assert len(latest["nnplug"]["partial_epoch"]["losses"]) == done
    assert all(len(series) == 1 for series in latest["logging"].values())

    run_nnplug(*command(recipe, "--c")[3:], env=tiny_dataset.env)
    log = (fold_folder(tiny_dataset) / "training_log.txt").read_text()
    assert f"Continuing from checkpoint_latest.pth at epoch 1, step {done} of 40." in log
    assert_unbroken(fold_folder(tiny_dataset) / "checkpoint_final.pth")


LISTENER = """
import os

@nnplug.hookimpl
def train_start(run):
    write("start")

@nnplug.hookimpl
def train_end(run, result):
    write(result["status"])

def write(word):
    with open(os.environ["HEARD"], "a") as file:
        file.write(word + " ")
"""


def test_hooks_hear_the_start_and_the_end_of_every_training(
    tiny_dataset: DatasetForTests, recipe: Path, tmp_path: Path
) -> None:
    site, heard = tmp_path / "site", tmp_path / "heard"
    site.mkdir()
    PluginSite(site).add("listener", code=LISTENER)
    env = {**tiny_dataset.env, "PYTHONPATH": str(site), "HEARD": str(heard)}
    recipe.write_text(RECIPE.replace(f"num_epochs = {NUM_EPOCHS}", "num_epochs = 1"))

    run_nnplug(*command(recipe)[3:], env=env)
    assert heard.read_text().split() == ["start", "completed"]
    run_nnplug(*command(recipe, "--val")[3:], env=env)
    assert heard.read_text().split() == ["start", "completed"]  # nothing was trained
    with running(tiny_dataset, recipe, "--c", env=env) as process:
        wait_for_line(process, "predicting")
        process.send_signal(signal.SIGTERM)
        assert "while validating" in rest_of(process)
    assert process.returncode == 75
    assert heard.read_text().split() == ["start", "completed", "start", "interrupted"]


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_signal_to_every_process_ends_the_final_validation(
    tiny_dataset: DatasetForTests, recipe: Path, number: signal.Signals
) -> None:
    recipe.write_text(RECIPE.replace(f"num_epochs = {NUM_EPOCHS}", "num_epochs = 1"))
    with running(tiny_dataset, recipe) as process:
        wait_for_line(process, "predicting")
        with stopped_until_a_worker_is_idle(process.pid):
            os.killpg(process.pid, number)
        process.wait(timeout=60)
        wait_until_gone(process.pid)
        output = rest_of(process)
    assert process.returncode == 75
    assert output.splitlines()[-1].startswith(f"nnplug: Interrupted by {number.name} while validating")
    assert "Traceback" not in output
    assert "resource_tracker" not in output


def test_a_second_interrupt_stops_at_once(tiny_dataset: DatasetForTests, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("features_per_stage = [4, 8, 16]", "features_per_stage = [96, 192, 384]"))
    with running(tiny_dataset, recipe) as process:
        wait_for_line(process, "do_dummy_2d_data_aug")
        time.sleep(1)
        while process.poll() is None:  # signals that arrive within one operation of torch count as one
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
    # the interpreter's own way out, should the last one arrive after ours
    assert process.returncode in (130, -signal.SIGINT)


def test_a_killed_training_goes_on_from_the_last_whole_checkpoint(tiny_dataset: DatasetForTests, recipe: Path) -> None:
    with running(tiny_dataset, recipe) as process:
        wait_for_line(process, "epoch 2/4")
        os.killpg(process.pid, signal.SIGKILL)
    run_nnplug(*command(recipe, "--c")[3:], env=tiny_dataset.env)
    assert_unbroken(fold_folder(tiny_dataset) / "checkpoint_final.pth")


def test_an_unreadable_latest_checkpoint_falls_back_to_the_one_before(
    tiny_dataset: DatasetForTests, recipe: Path
) -> None:
    with running(tiny_dataset, recipe) as process:
        wait_for_line(process, "epoch 3/4")
        os.killpg(process.pid, signal.SIGKILL)
    latest = fold_folder(tiny_dataset) / "checkpoint_latest.pth"
    assert latest.with_name("checkpoint_previous.pth").exists()
    latest.write_bytes(latest.read_bytes()[:1000])

    done = run_nnplug(*command(recipe, "--c")[3:], env=tiny_dataset.env)

    assert "checkpoint_latest.pth" in done.stdout
    assert "checkpoint_previous.pth" in (fold_folder(tiny_dataset) / "training_log.txt").read_text()
    assert_unbroken(fold_folder(tiny_dataset) / "checkpoint_final.pth")


def test_other_plans_or_another_split_are_refused_with_the_differences(
    tiny_dataset: DatasetForTests, recipe: Path, tmp_path: Path
) -> None:
    dataset = tiny_dataset.private_copy(tmp_path / "private")
    with running(dataset, recipe) as process:
        wait_for_line(process, "epoch 2/4")
        process.send_signal(signal.SIGTERM)
        rest_of(process)

    splits_file = dataset.preprocessed_folder / "splits_final.json"
    before = splits_file.read_text()
    splits = json.loads(before)
    splits[0], splits[1] = splits[1], splits[0]
    splits_file.write_text(json.dumps(splits))
    refused = run_nnplug(*command(recipe, "--c")[3:], env=dataset.env, check=False)
    assert refused.returncode == 2
    assert "was trained on other data:" in refused.stderr
    assert "left training" in refused.stderr

    splits_file.write_text(before)
    plans_file = dataset.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_fullres"]["batch_dice"] = True
    plans_file.write_text(json.dumps(plans))
    refused = run_nnplug(*command(recipe, "--c")[3:], env=dataset.env, check=False)
    assert refused.returncode == 2
    assert "batch_dice: false in the folder, true now" in refused.stderr


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_fifty_kills_at_random_moments_and_every_resume_is_clean(tiny_dataset: DatasetForTests, recipe: Path) -> None:
    """Each kill hits a run at a random moment of its life; a finished run is set aside and a new one begun."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    mode: tuple[str, ...] = ()
    for _ in range(50):
        with running(tiny_dataset, recipe, *mode) as process:
            try:
                process.wait(timeout=rng.uniform(4, 25))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode in (0, -signal.SIGKILL), process.stdout.read() if process.stdout else ""
        mode = ("--restart",) if process.returncode == 0 else ("--c",)
    run_nnplug(*command(recipe, *mode)[3:], env=tiny_dataset.env)
    assert_unbroken(fold_folder(tiny_dataset) / "checkpoint_final.pth")
    for kept in tiny_dataset.results_folder.glob("loop-*/replaced_fold_0_*"):
        assert_unbroken(kept / "checkpoint_final.pth")
