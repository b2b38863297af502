"""``nnplug run`` and ``nnunet_training`` on real images: from files to metrics, and nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nnplug
import pytest
from support import DatasetForTests, run_nnplug
from support.commands import clean_environment
from support.small_trainings import without_processes, write_recipe

SHORT = "no_mirroring+num_epochs=1+num_iterations_per_epoch=1+num_val_iterations_per_epoch=1"
SMALL = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "0"}


@pytest.fixture
def inventory(data_folder: Path, tmp_path: Path) -> Path:
    """The first cases of the Decathlon's hippocampus where they are."""
    source = data_folder / "Task04_Hippocampus"
    labels = sorted((source / "labelsTr").glob("*.nii.gz"))[:6]
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "dataset": {
            path.name.removesuffix(".nii.gz"): {
                "images": [str(source / "imagesTr" / path.name)],
                "label": str(path),
            }
            for path in labels
        },
    }
    (tmp_path / "inventory.json").write_text(json.dumps(content))
    return tmp_path / "inventory.json"


def arguments(inventory: Path) -> dict[str, Any]:
    folder = inventory.parent
    return {"inventory": inventory, "cache_dir": folder / "cache", "results_dir": folder / "results"}


def test_real_images_from_files_to_metrics(inventory: Path, tiny_prepared: DatasetForTests) -> None:
    """By the command, then by the function, which finds nothing left to do."""
    options = [word for name, path in arguments(inventory).items() for word in (f"--{name.replace('_', '-')}", path)]
    done = run_nnplug(
        "run", 4, "3d_fullres", 0, "-tr", SHORT, *options, "-np", 0, "-device", "cpu", "--json", env=SMALL
    )
    result = json.loads(done.stdout)
    assert result["status"] == "completed"
    assert set(result["per_class"]) == {"1", "2"}
    assert 0 <= result["metrics"]["dice"] <= 1
    for told in ("modality is taken for channel_names", "Planning with ExperimentPlanner", "fold 0 is done: Dice 0."):
        assert told in done.stderr

    stages = []
    with without_processes(tiny_prepared):
        again = nnplug.nnunet_training(
            4, fold=0, trainer=SHORT, progress=lambda event: stages.append(event.stage), **arguments(inventory)
        )
    assert json.loads(json.dumps(again)) == result
    assert set(stages) == {"fingerprint", "plan", "preprocess", "fold"}


@pytest.mark.full
def test_a_signal_while_it_preprocesses(inventory: Path) -> None:
    options = [word for name, path in arguments(inventory).items() for word in (f"--{name.replace('_', '-')}", path)]
    command = [sys.executable, "-m", "nnplug", "run", "4", *map(str, options), "-np", "1", "-device", "cpu", "--json"]
    process = subprocess.Popen(
        command, env=clean_environment(SMALL), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    cache = inventory.parent / "cache" / "Dataset004_inventory"
    deadline = time.monotonic() + 120
    while not (cache / "nnUNetPlans_3d_fullres.unfinished").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    message = "Interrupted by SIGTERM; what is done is kept. Go on with --c."
    assert json.loads(printed) == {"status": "interrupted", "message": message}
    assert told.endswith(f"nnplug: {message}\n")


@pytest.mark.full
def test_several_processes_tell_their_epochs(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    trainer = write_recipe(tmp_path)
    events: list[nnplug.TrainingEvent] = []
    with tiny_dataset.private_copy(tmp_path / "private").activated():
        result = nnplug.nnunet_training(
            901, fold=0, trainer=str(trainer), device="cpu", num_gpus=2, no_preprocessing=True, progress=events.append
        )
    assert result["status"] == "completed"
    assert [event.stage for event in events] == ["train", "epoch", "validate", "fold"]
    assert events[1].metrics is not None
