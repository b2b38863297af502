"""The instance losses in whole runs, with worker processes that make the components."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import run_nnplug, run_stock
from support.datasets import DatasetForTests

SHORT = "num_epochs = 1\nnum_iterations_per_epoch = 3\nnum_val_iterations_per_epoch = 2\nbatch_size = 2\n"


def train_and_predict(dataset: DatasetForTests, trainer: str, configuration: str, folder: Path) -> None:
    """Train with two data workers; stock nnU-Net predicts one image with what is left."""
    recipe = folder / "short.toml"
    recipe.write_text(f'extends = "{trainer}"\n{SHORT}')
    env = {**dataset.env, "nnUNet_n_proc_DA": "2"}
    arguments = [dataset.id, configuration, 0, "-device", "cpu", "-tr", recipe, "--json"]
    result = json.loads(run_nnplug("train", *arguments, env=env, timeout=1800).stdout)
    assert result["status"] == "completed"
    assert np.isfinite(result["metrics"]["validation_loss"])
    log = next(Path(result["model_path"]).glob("fold_0/training_log*.txt")).read_text()
    assert "computed in the training step" not in log

    images = folder / "images"
    images.mkdir()
    case = min(path.name[: -len("_0000.nii.gz")] for path in (dataset.raw_folder / "imagesTr").iterdir())
    for image in (dataset.raw_folder / "imagesTr").glob(f"{case}_*"):
        (images / image.name).symlink_to(image)
    model = ["-d", dataset.id, "-c", configuration, "-f", 0, "-tr", result["trainer"], "-device", "cpu"]
    run_stock(
        "nnUNetv2_predict", "-i", images, "-o", folder / "predicted", *model, "--disable_tta", env=env, timeout=1800
    )
    assert [path.name for path in (folder / "predicted").glob("*.nii.gz")] == [f"{case}.nii.gz"]


def test_with_a_recipe_of_another_kind(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    train_and_predict(tiny_dataset, "blob_dice_loss+da5", "2d", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("trainer", ["blob_dice_loss+da5", "region_dice_ce_loss+no_deep_supervision"])
def test_on_lesions(ms_lesions: DatasetForTests, tmp_path: Path, trainer: str) -> None:
    train_and_predict(ms_lesions, f"{trainer}+patch_size=32x64x32", "3d_fullres", tmp_path)


@pytest.mark.full
def test_on_two_labels(hippocampus: DatasetForTests, tmp_path: Path) -> None:
    train_and_predict(hippocampus, "region_dice_loss+cosine_lr+mirror_01", "3d_fullres", tmp_path)
