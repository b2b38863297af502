"""``nnplug train`` on real and made-up data, and stock nnU-Net as the client of what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support import run_nnplug, run_stock
from support.commands import run_stock_ddp
from support.datasets import DatasetForTests

SHORT = "num_epochs=1+num_iterations_per_epoch=2+num_val_iterations_per_epoch=1"


def images_to_predict(dataset: DatasetForTests, folder: Path, number: int = 2) -> Path:
    """A folder with links to some of the training images."""
    folder.mkdir()
    for image in sorted((dataset.raw_folder / "imagesTr").iterdir())[:number]:
        (folder / image.name).symlink_to(image)
    return folder


def assert_same_images(one: Path, other: Path) -> None:
    names = sorted(p.name for p in one.glob("*.nii.gz"))
    assert names, f"no predictions in {one}"
    assert names == sorted(p.name for p in other.glob("*.nii.gz"))
    for name in names:
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(folder / name)) for folder in (one, other))
        np.testing.assert_array_equal(a, b)


def train(dataset: DatasetForTests, *args: object, configuration: str = "3d_fullres", fold: object = 0, **kwargs):
    return run_nnplug("train", dataset.id, configuration, fold, "-device", "cpu", *args, env=dataset.env, **kwargs)


def test_result_is_printed_as_json_and_kept_beside_the_model(tiny_dataset: DatasetForTests) -> None:
    done = train(tiny_dataset, "-tr", f"no_mirroring+{SHORT}", "--json")

    result = json.loads(done.stdout)
    assert result["status"] == "completed"
    assert result["dataset_id"] == 901
    assert result["configuration"] == "3d_fullres"
    assert result["fold"] == 0
    assert set(result["metrics"]) == {"dice", "iou", "validation_loss"}
    assert 0 <= result["metrics"]["dice"] <= 1
    model = Path(result["model_path"])
    assert model.parent == tiny_dataset.results_folder
    assert json.loads((model / "fold_0" / "nnplug_result.json").read_text()) == result
    assert (model / "fold_0" / "checkpoint_final.pth").exists()
    assert (model / "fold_0" / "progress.png").exists()
    assert (model / "fold_0" / "validation" / "summary.json").exists()
    assert not (model / "fold_0" / "checkpoint_latest.pth").exists()


@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param("monai_dynunet", id="a plugin's network"),
        pytest.param("no_mirroring", id="a recipe without mirroring"),
        pytest.param("nnUNetTrainerDA5", id="a stock class", marks=pytest.mark.full),
    ],
)
def test_stock_predicts_the_same_voxels_with_no_variable_set(
    tiny_dataset: DatasetForTests, tmp_path: Path, trainer: str
) -> None:
    done = json.loads(train(tiny_dataset, "-tr", f"{trainer}+{SHORT}", "--json").stdout)
    images = images_to_predict(tiny_dataset, tmp_path / "images")
    model = ["-d", 901, "-c", "3d_fullres", "-f", 0, "-tr", done["trainer"]]

    run_nnplug("predict", "-i", images, "-o", tmp_path / "ours", *model, "-device", "cpu", env=tiny_dataset.env)
    assert "nnUNet_extTrainer" not in tiny_dataset.env
    run_stock(
        "nnUNetv2_predict", "-i", images, "-o", tmp_path / "stock", *model, "-device", "cpu", env=tiny_dataset.env
    )

    assert_same_images(tmp_path / "ours", tmp_path / "stock")


def test_real_images_are_trained_and_predicted(hippocampus: DatasetForTests, tmp_path: Path) -> None:
    done = json.loads(train(hippocampus, "-tr", f"cosine_lr+{SHORT}", "--json").stdout)
    images = images_to_predict(hippocampus, tmp_path / "images")
    model = ["-d", 4, "-c", "3d_fullres", "-f", 0, "-tr", done["trainer"], "-device", "cpu"]

    run_nnplug("predict", "-i", images, "-o", tmp_path / "ours", *model, env=hippocampus.env)
    run_stock("nnUNetv2_predict", "-i", images, "-o", tmp_path / "stock", *model, env=hippocampus.env)

    assert_same_images(tmp_path / "ours", tmp_path / "stock")
    assert done["per_class"].keys() == {"1", "2"}


def test_checkpoint_loads_without_running_code_and_says_what_made_it(tiny_dataset: DatasetForTests) -> None:
    result = json.loads(train(tiny_dataset, "-tr", f"seed=3+dice_loss+{SHORT}", "--json").stdout)

    checkpoint = torch.load(Path(result["model_path"], "fold_0", "checkpoint_final.pth"), weights_only=True)
    record = checkpoint["nnplug"]
    assert record["name"] == result["trainer"]
    assert record["seed"] == 3
    assert record["versions"].keys() == {"nnplug", "nnunetv2", "torch", "python"}
    assert record["distributions"].keys() == {"nnplug"}
    assert record["labels"] == json.loads((tiny_dataset.preprocessed_folder / "dataset.json").read_text())["labels"]
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def test_training_over_an_existing_one_needs_a_word(tiny_dataset: DatasetForTests) -> None:
    train(tiny_dataset, "-tr", SHORT)

    again = train(tiny_dataset, "-tr", SHORT, check=False)
    assert again.returncode == 2
    assert (
        "holds a training already (checkpoint_final.pth). Continue it with --c, or start anew with --restart"
        in again.stderr
    )

    anew = train(tiny_dataset, "-tr", SHORT, "--restart", "--use_compressed")
    assert "the earlier training was set aside in" in anew.stdout
    assert "--use_compressed has had no effect since nnU-Net stores its data with blosc2." in anew.stdout
    kept = list(tiny_dataset.results_folder.glob("*/replaced_fold_0_*"))
    assert len(kept) == 1
    assert (kept[0] / "checkpoint_final.pth").exists()


def test_a_restart_that_is_refused_leaves_the_training_where_it_is(
    tiny_dataset: DatasetForTests, tmp_path: Path
) -> None:
    dataset = tiny_dataset.private_copy(tmp_path / "private")
    result = json.loads(train(dataset, "-tr", SHORT, "--json").stdout)
    plans_file = dataset.preprocessed_folder / "nnUNetPlans.json"
    plans_file.write_text(plans_file.read_text().replace('"batch_dice": false', '"batch_dice": true'))

    refused = train(dataset, "-tr", SHORT, "--restart", check=False)

    assert refused.returncode == 2
    assert "belongs to a model with other settings" in refused.stderr
    assert Path(result["model_path"], "fold_0", "checkpoint_final.pth").exists()


def test_a_finished_training_is_only_validated_again_with_c(tiny_dataset: DatasetForTests) -> None:
    result = json.loads(train(tiny_dataset, "-tr", SHORT, "--json").stdout)
    final = Path(result["model_path"], "fold_0", "checkpoint_final.pth")
    before = final.stat().st_mtime_ns

    again = json.loads(train(tiny_dataset, "-tr", SHORT, "--c", "--json").stdout)

    assert final.stat().st_mtime_ns == before
    assert again["metrics"]["dice"] == result["metrics"]["dice"]


def test_all_folds_and_all_data(tiny_dataset: DatasetForTests) -> None:
    done = train(tiny_dataset, "-tr", SHORT, fold="all", configuration="2d")
    assert "training the 5 folds of the cross-validation in turn" in done.stdout
    assert "--all-data" in done.stdout
    model = tiny_dataset.model_folder("+".join(sorted(SHORT.split("+"))), "2d")
    assert sorted(p.name for p in model.glob("fold_*")) == [f"fold_{i}" for i in range(5)]

    run_nnplug("train", 901, "2d", "--all-data", "-tr", SHORT, "-device", "cpu", env=tiny_dataset.env)
    assert (model / "fold_all" / "checkpoint_final.pth").exists()


def test_batch_norm_is_refused_with_two_processes_on_the_cpu(tiny_dataset: DatasetForTests) -> None:
    done = train(tiny_dataset, "-tr", f"batch_norm+{SHORT}", "-num_gpus", 2, check=False)

    assert done.returncode == 2
    assert "has batch norm, which several processes on the CPU can not share" in done.stderr


def test_stock_commands_train_composed_names(tiny_dataset: DatasetForTests) -> None:
    shell = run_nnplug("env").stdout
    assert shell.startswith("export nnUNet_extTrainer=")
    folder = shell.strip().split("=", 1)[1].strip("'\"")
    name = f"monai_dynunet+{'+'.join(sorted(SHORT.split('+')))}"

    env = {**tiny_dataset.env, "nnUNet_extTrainer": folder}
    run_stock("nnUNetv2_train", 901, "3d_fullres", 0, "-tr", name, "-device", "cpu", env=env)

    assert (tiny_dataset.model_folder(name) / "fold_0" / "checkpoint_final.pth").exists()


def test_stock_command_trains_composed_names_in_two_processes(tiny_dataset: DatasetForTests) -> None:
    name = "+".join(["no_mirroring", *sorted(SHORT.split("+"))])
    env = {**tiny_dataset.env, "nnUNet_extTrainer": run_nnplug("env").stdout.strip().split("=", 1)[1].strip("'\"")}

    done = run_stock_ddp(901, "3d_fullres", 0, "-tr", name, "-num_gpus", 2, env=env)

    assert "I am local rank 1" in done.stdout
    fold = tiny_dataset.model_folder(name) / "fold_0"
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    assert json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
