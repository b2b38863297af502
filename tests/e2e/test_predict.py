"""``nnplug predict`` beside ``nnUNetv2_predict`` on a model that stock nnU-Net trained."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import SimpleITK as sitk
from support import DatasetForTests, run_nnplug, run_stock
from support.commands import clean_environment
from support.models import (
    make_dataset_json,
    make_model_folder,
    make_plans,
    write_checkpoint,
    write_descriptions,
    write_image,
)
from support.plugin_packages import PluginSite
from support.processes import in_session, stopped_until_a_worker_is_idle, wait_until_gone


@pytest.fixture(scope="module")
def trained(tiny_prepared: DatasetForTests, tmp_path_factory: pytest.TempPathFactory) -> DatasetForTests:
    """Stock nnU-Net's own trainer, two steps: 3d_fullres folds 0 and 1, and 2d on every case."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    dataset = tiny_prepared.with_results(tmp_path_factory.mktemp("results"))
    with dataset.activated(), contextlib.redirect_stdout(None):
        for configuration, fold in (("3d_fullres", 0), ("3d_fullres", 1), ("2d", "all")):
            plans = json.loads((dataset.preprocessed_folder / "nnUNetPlans.json").read_text())
            description = json.loads((dataset.preprocessed_folder / "dataset.json").read_text())
            plans["continue_training"] = False
            trainer = nnUNetTrainer(plans, configuration, fold, description, torch.device("cpu"))
            trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
            trainer.run_training()
    return dataset


@pytest.fixture(scope="module")
def images(tiny_prepared: DatasetForTests, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for path in sorted((tiny_prepared.raw_folder / "imagesTr").iterdir())[:2]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a few thousand weights, for what needs no training."""
    return make_model_folder(tmp_path_factory.mktemp("small") / "nnUNetTrainer__nnUNetPlans__3d_fullres")


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def assert_same(ours: Path, theirs: Path, num_cases: int = 2) -> None:
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    images = [name for name in names if name.endswith(".nii.gz")]
    assert len(images) == num_cases
    assert any(len(np.unique(voxels(theirs / name))) > 1 for name in images)
    for name in images:
        mine, other = sitk.ReadImage(str(ours / name)), sitk.ReadImage(str(theirs / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mine), sitk.GetArrayFromImage(other), err_msg=name)
        for geometry in ("GetOrigin", "GetSpacing", "GetDirection", "GetPixelIDTypeAsString"):
            assert getattr(mine, geometry)() == getattr(other, geometry)()
    for name in [name for name in names if name.endswith(".npz")]:
        mine, other = (np.load(folder / name)["probabilities"] for folder in (ours, theirs))
        np.testing.assert_array_equal(mine, other, err_msg=name)


# --- the same as nnUNetv2_predict


def test_folds_probabilities_and_workers(trained: DatasetForTests, images: Path, tmp_path: Path) -> None:
    common = ["-i", images, "-d", trained.id, "-c", "3d_fullres", "-device", "cpu", "--save_probabilities"]
    common += ["-npp", 1, "-nps", 1]
    run_stock("nnUNetv2_predict", *common, "-o", tmp_path / "stock", "-f", 0, 1, env=trained.env)
    run_nnplug("predict", *common, "-o", tmp_path / "ours", env=trained.env)
    assert_same(tmp_path / "ours", tmp_path / "stock")
    assert len(list((tmp_path / "ours").glob("*.npz"))) == 2


def test_settings(trained: DatasetForTests, images: Path, tmp_path: Path) -> None:
    common = ["-i", images, "-d", trained.name, "-c", "3d_fullres", "-f", 1, "-chk", "checkpoint_best.pth"]
    common += ["-tr", "nnUNetTrainer", "-device", "cpu", "-npp", 0, "-nps", 0]
    run_stock(
        "nnUNetv2_predict", *common, "-o", tmp_path / "stock", "--disable_tta", "-step_size", 0.8, env=trained.env
    )
    run_nnplug("predict", *common, "-o", tmp_path / "ours", "--no-mirror", "--step_size", 0.8, env=trained.env)
    assert_same(tmp_path / "ours", tmp_path / "stock")
    run_nnplug("predict", *common, "-o", tmp_path / "same", "--disable_tta", "-step_size", 0.8, env=trained.env)
    assert_same(tmp_path / "same", tmp_path / "stock")


def test_model_folder_without_variables_and_json(trained: DatasetForTests, images: Path, tmp_path: Path) -> None:
    model = trained.model_folder("nnUNetTrainer", "2d")
    common = ["-i", images, "-m", model, "-device", "cpu", "--disable_tta"]
    run_stock("nnUNetv2_predict_from_modelfolder", *common, "-o", tmp_path / "stock", "-f", "all")
    done = run_nnplug("predict_from_modelfolder", *common, "-o", "ours", "--json", cwd=tmp_path)
    assert_same(tmp_path / "ours", tmp_path / "stock")
    assert json.loads(done.stdout) == {
        "status": "completed",
        "model_folder": str(model),
        "folds": ["all"],
        "outputs": [str(tmp_path / "ours" / f"tiny_{index:02d}.nii.gz") for index in range(2)],
    }


# --- stopped on the way


@contextlib.contextmanager
def running(*args: object, output: int | IO[bytes] = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """``nnplug ARGS`` as the head of a session of its own, of which nothing is left at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nnplug", *map(str, args)],
        env=clean_environment({"OMP_NUM_THREADS": "1"}),
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def many_images(tmp_path: Path) -> Path:
    for index in range(6):
        write_image(tmp_path / "in" / f"case{index}_0000.nii.gz", seed=index)
    return tmp_path / "in"


def test_a_killed_prediction_is_continued(small_model: Path, many_images: Path, tmp_path: Path) -> None:
    common = ["-i", many_images, "-m", small_model, "-device", "cpu"]
    run_nnplug("predict_from_modelfolder", *common, "-o", tmp_path / "whole", "-npp", 0, "-nps", 0)
    out = tmp_path / "out"
    with running("predict_from_modelfolder", *common, "-o", out, "-npp", 1, "-nps", 1):
        wait_for(lambda: len(list(out.glob("*.nii.gz"))) >= 2)
    left = sorted(out.glob("*.nii.gz"))
    assert 2 <= len(left) < 6
    for path in left:
        np.testing.assert_array_equal(voxels(path), voxels(tmp_path / "whole" / path.name))
    # stock nnU-Net writes in place: this is what it leaves when it is killed while it does
    left[0].write_bytes(left[0].read_bytes()[:150])
    before = left[1].stat().st_mtime_ns
    done = run_nnplug("predict_from_modelfolder", *common, "-o", out, "-npp", 0, "-nps", 0, "--continue_prediction")
    assert f"{len(left) - 1} of 6 cases are there already." in done.stdout
    assert left[1].stat().st_mtime_ns == before
    assert_same(out, tmp_path / "whole", num_cases=6)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_terminated_prediction_leaves_no_processes(small_model: Path, many_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(
        "predict_from_modelfolder", "-i", many_images, "-m", small_model, "-o", out, "-npp", 2, "-nps", 1
    ) as process:
        wait_for(lambda: any(out.glob("*.nii.gz")))
        assert len(in_session(process.pid)) > 3
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        wait_until_gone(process.pid)


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_signal_to_every_process_ends_a_prediction(
    small_model: Path, many_images: Path, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    out, log = tmp_path / "out", tmp_path / "log.txt"
    args = ["-i", many_images, "-m", small_model, "-o", out, "-npp", 2, "-nps", 2]
    with log.open("wb") as file, running("predict_from_modelfolder", *args, output=file) as process:
        wait_for(lambda: b"Predicting case" in log.read_bytes())
        with stopped_until_a_worker_is_idle(process.pid):
            os.killpg(process.pid, number)
        assert process.wait(timeout=60) == expected
        wait_until_gone(process.pid)
    assert len(list(out.glob("*.nii.gz"))) < 6
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_workers_end_with_a_killed_prediction(small_model: Path, many_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(
        "predict_from_modelfolder", "-i", many_images, "-m", small_model, "-o", out, "-npp", 2, "-nps", 2
    ) as process:
        wait_for(lambda: any(out.glob("*.nii.gz")))
        process.kill()
        wait_until_gone(process.pid)


def test_a_damaged_image_is_named_by_its_worker(small_model: Path, many_images: Path, tmp_path: Path) -> None:
    bad = write_image(many_images / "bad_0000.nii.gz", shape=(90, 90, 90))
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 0xFF
    bad.write_bytes(content)
    failed = run_nnplug(
        "predict_from_modelfolder", "-i", many_images, "-m", small_model, "-o", tmp_path / "out", "-npp", 1, "-nps", 1,
        check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1] == (
        f"nnplug: error: {bad} can not be read: the file is truncated or damaged. "
        "Mend or remove the case and use --continue_prediction."
    )


# --- a plugin's network


NET = """
from dynamic_network_architectures.architectures.unet import PlainConvUNet

def build_net(input_channels, num_classes, **kwargs):
    return PlainConvUNet(input_channels, num_classes=num_classes, **kwargs)
"""


def install_plugin(site: Path, version: str) -> dict[str, str]:
    """Put this version of the package in place of another; returns the variable that makes Python see it."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir()
    PluginSite(site).add("acme-nets", version, files={"net.py": NET})
    return {"PYTHONPATH": str(site)}


def test_a_plugin_that_is_there_older_or_missing(tmp_path: Path) -> None:
    plans, description = make_plans(), make_dataset_json()
    model = tmp_path / "model"
    nnplug = {"name": "acme_net", "distributions": {"acme-nets": "1.2"}}
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "acme_nets.net.build_net"
    init_args = {"plans": plans, "configuration": "3d_fullres", "dataset_json": description}
    write_descriptions(model, plans, description)
    # the builder's network has nnU-Net's own weights
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    write_checkpoint(checkpoint, make_plans(), description, nnplug=nnplug, init_args=init_args)
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    command = ["predict_from_modelfolder", "-i", tmp_path / "in", "-m", model, "-o", tmp_path / "out", "--no-mirror"]

    missing = run_nnplug(*command, check=False)
    assert missing.returncode == 2
    assert missing.stderr == (
        "nnplug: error: The model 'acme_net' was trained with acme-nets 1.2, which is not installed. "
        "Install it: pip install acme-nets==1.2\n"
    )
    assert not (tmp_path / "out" / "a.nii.gz").exists()

    site = tmp_path / "site"
    done = run_nnplug(*command, env=install_plugin(site, "1.2"))
    assert "warning" not in done.stderr
    expected = voxels(tmp_path / "out" / "a.nii.gz")
    assert len(np.unique(expected)) > 1

    done = run_nnplug(*command, env=install_plugin(site, "1.1"))
    assert (
        "nnplug: warning: the model 'acme_net' was trained with acme-nets 1.2, 1.1 is installed. "
        "For the same code: pip install acme-nets==1.2\n"
    ) in done.stderr
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "a.nii.gz"), expected)

    # installed, but no plugin: its code is not what a model folder may name
    env = install_plugin(site, "1.2")
    (site / "acme_nets-1.2.dist-info" / "entry_points.txt").unlink()
    refused = run_nnplug(*command, env=env, check=False)
    assert refused.returncode == 2
    assert "'acme_nets.net:build_net' is outside of what a file may name" in refused.stderr
    run_nnplug(*command, "--trust-code", env=env)
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "a.nii.gz"), expected)


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", 901, "-c", "3d_lowres"], "Dataset901_Tiny has no model of configuration '3d_lowres' with plans"),
        (["-d", 902, "-c", "2d"], "There is no trained model of dataset '902' in "),
        (["-d", 901, "-c", "2d", "-tr", "kiunet_x"], "Unknown trainer 'kiunet_x'."),
        (["-d", 901, "-c", "3d_fullres", "-f", 4], "has no checkpoint_final.pth for fold_4. There: fold_0 has "),
        (["-d", 901, "-c", "2d", "-i", "missing"], "There is no input folder missing."),
        (["-d", 901, "-c", "2d", "-step_size", 2], "step_size is 2.0: expected a number above 0 and at most 1."),
        (["-d", 901, "-c", "2d", "-device", "gpu"], "Unknown device 'gpu'. Choose cuda, cpu or mps."),
    ],
)
def test_mistakes(
    trained: DatasetForTests, images: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    failed = run_nnplug(
        "predict", "-i", images, "-o", tmp_path / "out", *arguments, env=trained.env, cwd=tmp_path, check=False
    )
    assert failed.returncode == 2
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert line.startswith("nnplug: error: ")
    assert message in line


def test_no_variable_and_two_kinds_of_mirroring(images: Path, tmp_path: Path) -> None:
    common = ["predict", "-i", images, "-o", tmp_path, "-d", 901, "-c", "2d"]
    failed = run_nnplug(*common, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("nnplug: error: nnUNet_results is not set: it names the folder with the trained")
    failed = run_nnplug(*common, "--mirror", "--disable_tta", check=False)
    assert failed.returncode == 2
    assert "not allowed with argument --mirror" in failed.stderr
