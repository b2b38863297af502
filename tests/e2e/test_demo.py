"""The demo as a user runs it: on a data set of one's own in every test run, as it stands in the full one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import DatasetForTests, run_nnplug
from support.commands import clean_environment

TRAINERS = ("nnUNetTrainer", "monai_segresnet+patch_size=24x32x24")  # it takes multiples of 8; 28 is planned
LENGTH = ("--epochs", "2", "--iterations", "20")


def files_with_times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def demo(tiny_prepared: DatasetForTests, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """Result, explanations and folder of one run on the tiny data set."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_nnplug(
        "demo", "--dataset", tiny_prepared.raw_folder, "-o", "out", "-tr", *TRAINERS, *LENGTH, "--json",
        cwd=folder, env={"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"},
    )  # fmt: skip
    return json.loads(done.stdout), done.stderr, folder


def test_two_trainers_are_compared_on_cases_that_neither_saw(
    demo: tuple[dict, str, Path], tiny_prepared: DatasetForTests
) -> None:
    result, _, folder = demo
    assert [row["label"] for row in result["trainers"]] == list(TRAINERS)
    sizes = [row["num_parameters"] for row in result["trainers"]]
    assert sizes[0] != sizes[1]
    held_out = {path.name.split("_0000")[0] for path in (folder / "out" / "held_out").iterdir()}
    assert held_out == set(tiny_prepared.splits[0]["val"])
    for row in result["trainers"]:
        # one held-out case, which is the validation case: the two ways to it must agree
        assert sum(row["dice"].values()) / 2 == pytest.approx(row["validation_dice"], abs=1e-6)
        assert row["training_seconds"] > 0
    # more than chance: a network that says background everywhere has 0, and one of two may not have come further
    assert max(dice for row in result["trainers"] for dice in row["dice"].values()) > 0.3, result["trainers"]
    assert (folder / "out" / "demo.png").stat().st_size > 10_000


def test_each_step_shows_its_command(demo: tuple[dict, str, Path]) -> None:
    _, said, _ = demo
    for command in (
        "$ export nnUNet_raw=out/nnUNet_raw",
        "$ nnUNetv2_extract_fingerprint -d 901",
        "$ nnUNetv2_plan_experiment -d 901",
        "$ nnUNetv2_preprocess -d 901 -c 3d_fullres",
        f"$ nnplug train 901 3d_fullres 0 -tr {TRAINERS[1]}+out/short.toml",
        "$ nnplug predict -i out/held_out -o out/predictions/monai_segresnet+",
    ):
        assert command in said


def test_the_shown_commands_work(demo: tuple[dict, str, Path]) -> None:
    _, said, folder = demo
    exports = [
        line.removeprefix("$ export ").split("=", 1) for line in said.splitlines() if line.startswith("$ export ")
    ]
    command = next(line for line in said.splitlines() if line.startswith("$ nnplug predict") and "monai" in line)
    words = command.split()[2:]
    words[words.index("-o") + 1] = "again"
    run_nnplug(*words, cwd=folder, env=dict(exports))
    (again,), (first,) = (folder / "again").glob("*.nii.gz"), (folder / "out" / "predictions").glob("monai*/*.nii.gz")
    assert again.read_bytes() == first.read_bytes()


def test_the_dataset_is_only_read(demo: tuple[dict, str, Path], tiny_prepared: DatasetForTests) -> None:
    _, _, folder = demo
    link = folder / "out" / "nnUNet_raw" / tiny_prepared.name
    assert link.resolve() == tiny_prepared.raw_folder.resolve()
    assert sorted(p.name for p in tiny_prepared.raw_folder.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]


def test_run_again_it_repeats_nothing(demo: tuple[dict, str, Path], tiny_prepared: DatasetForTests) -> None:
    result, _, folder = demo
    before = files_with_times(folder / "out")
    done = run_nnplug(
        "demo", "--dataset", tiny_prepared.raw_folder, "-o", "out", "-tr", *TRAINERS, *LENGTH, "--json", cwd=folder
    )
    again = json.loads(done.stdout)
    assert again["trainers"] == result["trainers"]
    assert done.stderr.count("finished before") == 8
    after = files_with_times(folder / "out")
    assert {path for path in before if after[path] != before[path]} == {"demo.png"}


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    done = run_nnplug("demo", "--dataset", "brains", "-o", tmp_path / "out", check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == ("nnplug: error: There is no folder brains. --dataset takes a raw data set of nnU-Net.\n")
    done = run_nnplug("demo", "-tr", "nnUNetTrainr", "-o", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("nnplug: error: Unknown trainer 'nnUNetTrainr'.")
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_interrupted_it_goes_on_where_it_stopped(tiny_prepared: DatasetForTests, tmp_path: Path) -> None:
    arguments = ["demo", "--dataset", str(tiny_prepared.raw_folder), "-o", "out", "-tr", "nnUNetTrainer"]
    arguments += ["--epochs", "3", "--iterations", "5", "-device", "cpu"]
    env = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    command = [sys.executable, "-m", "nnplug", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("epoch 1/3"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 75, "".join(said)
    finished = json.loads((tmp_path / "out" / "demo.json").read_text())["finished"]
    assert list(finished) == ["raw", "fingerprint", "plan", "preprocess"]
    again = run_nnplug(*arguments, cwd=tmp_path, env=env).stdout
    assert again.count("finished before") == 4
    epochs = re.findall(r"^epoch (\d)/3", again, re.MULTILINE)
    assert epochs[-1] == "3"
    assert "1" not in epochs
    assert (tmp_path / "out" / "demo.png").is_file()


@pytest.mark.full
def test_the_demo_as_it_stands(tmp_path: Path) -> None:
    done = run_nnplug("demo", "--json", cwd=tmp_path, timeout=1200)
    result = json.loads(done.stdout)
    assert "not what a model is worth" in done.stderr
    assert len(result["trainers"]) == 2
    for row in result["trainers"]:
        assert min(row["dice"].values()) > 0.5, row
    if len(os.sched_getaffinity(0)) >= 2 and os.getloadavg()[0] < 3:
        assert result["seconds"] < 360
