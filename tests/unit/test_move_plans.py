"""``nnplug move_plans`` between data sets of real and made-up images."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nnplug.cli import main
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from support.datasets import DatasetForTests, environment
from support.inventories import MadeInventory
from support.preprocessed import read_json


class Folders:
    """The hippocampus, the tiny data set and the MS lesions in one place: raw data linked, plans copied."""

    def __init__(self, folder: Path, *datasets: DatasetForTests) -> None:
        self.raw, self.preprocessed, self.results = (folder / name for name in ("raw", "preprocessed", "results"))
        for dataset in datasets:
            (self.raw / dataset.name).mkdir(parents=True)
            for path in dataset.raw_folder.iterdir():
                if path.is_dir():
                    (self.raw / dataset.name / path.name).symlink_to(path)
                else:
                    shutil.copy(path, self.raw / dataset.name)
            (self.preprocessed / dataset.name).mkdir(parents=True)
            for path in dataset.preprocessed_folder.glob("*.json"):
                shutil.copy(path, self.preprocessed / dataset.name)
        self.env = {f"nnUNet_{name}": str(getattr(self, name)) for name in ("raw", "preprocessed", "results")}
        self.source = self.preprocessed / "Dataset004_Hippocampus"
        self.target = self.preprocessed / "Dataset901_Tiny"


@pytest.fixture
def folders(
    hippocampus_prepared: DatasetForTests,
    tiny_prepared: DatasetForTests,
    ms_lesions_prepared: DatasetForTests,
    tmp_path: Path,
) -> Iterator[Folders]:
    made = Folders(tmp_path, hippocampus_prepared, tiny_prepared, ms_lesions_prepared)
    with environment(**made.env):
        yield made


def move(*arguments: object, source: object = 4, target: object = 901) -> int:
    return main(["move_plans", *map(str, ["-s", source, "-t", target, "-sp", "nnUNetPlans", *arguments])])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object, **data_sets: object) -> str:
    capsys.readouterr()
    assert move(*arguments, **data_sets) == 2
    return capsys.readouterr().err.removeprefix("nnplug: error: ").rstrip("\n")


def test_the_same_as_nnunets(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert move("-tp", "FromHippocampus") == 0
    moved = folders.target / "FromHippocampus.json"
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        f"{moved}: the plans 'nnUNetPlans' of Dataset004_Hippocampus",
        "The median spacing of Dataset901_Tiny is 1.2 x 1 x 1 mm; its cases are resampled to that of the plans.",
        "Run:",
        "  nnplug preprocess -d Dataset901_Tiny -plans_name FromHippocampus -c 3d_fullres",
        "  nnplug train Dataset901_Tiny 3d_fullres 0 -p FromHippocampus -pretrained_weights CHECKPOINT",
    ]
    ours = read_json(moved)
    assert ours["configurations"]["3d_fullres"]["data_identifier"] == "FromHippocampus_3d_fullres"
    moved.unlink()
    move_plans_between_datasets(4, 901, "nnUNetPlans", "FromHippocampus")
    assert read_json(moved) == ours


def test_a_trained_model_is_proposed(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    model = folders.results / folders.source.name / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold in ("fold_0", "fold_all"):
        (model / fold).mkdir(parents=True)
        (model / fold / "checkpoint_final.pth").touch()
    assert move("-tp", "Moved") == 0
    assert capsys.readouterr().out.endswith(f"-pretrained_weights {model / 'fold_all' / 'checkpoint_final.pth'}\n")


def test_to_an_inventory(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MadeInventory(tmp_path / "data")
    made.content["channel_names"] = {"0": "T2"}
    made.write()
    options = [
        "--inventory",
        made.path,
        "--dataset-id",
        5,
        "--dataset-name",
        "Lab",
        "--cache-dir",
        folders.preprocessed,
    ]
    text = list(map(str, options))
    assert main(["fingerprint", *text, "-np", "0"]) == 0
    assert main(["move_plans", "-s", "4", "-sp", "nnUNetPlans", "-tp", "Moved", *text]) == 0
    assert read_json(folders.preprocessed / "Dataset005_Lab" / "Moved.json")["dataset_name"] == "Dataset005_Lab"
    [preprocess] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  nnplug preprocess ")]
    assert main([*shlex.split(preprocess)[1:], "-np", "0"]) == 0
    assert (folders.preprocessed / "Dataset005_Lab" / "Moved_3d_fullres").is_dir()


def test_channels_must_agree(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, target=7) == (
        "Dataset004_Hippocampus has 1 channel (MRI), Dataset007_MSLesions has 4 (FLAIR, T1, T2, T1_contrast). Plans "
        "can be moved between data sets with the same channels."
    )
    path = folders.raw / "Dataset901_Tiny" / "dataset.json"
    content = read_json(path)
    path.write_text(json.dumps({**content, "channel_names": {"0": "CT"}}))
    assert error_of(capsys) == (
        "Channel 0 is 'MRI' in Dataset004_Hippocampus, which nnU-Net normalises by ZScoreNormalization, and 'CT' in "
        "Dataset901_Tiny, by CTNormalization. If the images are of one kind, give the channel the same name in both "
        "dataset.json."
    )
    path.write_text(json.dumps({**content, "channel_names": {"0": "T1"}}))
    assert move("-tp", "Moved") == 0
    assert "The channels T1 of Dataset901_Tiny are taken for MRI of Dataset004_Hippocampus." in capsys.readouterr().out


def test_what_is_there_is_kept(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys) == (
        f"Dataset901_Tiny has plans 'nnUNetPlans' already ({folders.target / 'nnUNetPlans.json'}). Choose another "
        "name, or give --overwrite to replace it."
    )
    cases = folders.target / "nnUNetPlans_2d"
    cases.mkdir()
    assert error_of(capsys, "--overwrite") == (
        f"'2d' would take the cases of '2d' of nnUNetPlans.json in {cases}, which are preprocessed in another way. "
        "Give another name with -tp."
    )
    cases.rmdir()
    assert move("--overwrite") == 0
    model = folders.results / "Dataset901_Tiny" / "nnUNetTrainer__nnUNetPlans__2d"
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_final.pth").touch()
    assert error_of(capsys, "--overwrite").startswith(
        f"The plans 'nnUNetPlans' can not be replaced: {model.name} in {model.parent} was trained with them"
    )
    elsewhere = folders.results.rename(folders.results.with_name("models"))
    assert f" in {elsewhere / 'Dataset901_Tiny'} was trained with them" in error_of(
        capsys, "--overwrite", "--results-dir", elsewhere
    )


def test_wrong_data_sets(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["move_plans", "-s", "4", "-sp", "nnUNetPlans"]) == 2
    assert capsys.readouterr().err == (
        "nnplug: error: Which data set gets the plans? Give -t ID, or --inventory FILE --dataset-id N --cache-dir "
        "DIR.\n"
    )
    assert error_of(capsys, source=901) == (
        "Dataset901_Tiny is source and target. To copy plans in one data set: nnplug plans derive"
    )
    assert error_of(capsys, "-tp", "a__b").startswith("The name 'a__b' can not be used")
    (folders.target / "dataset_fingerprint.json").unlink()
    assert error_of(capsys, "-tp", "Moved") == (
        "Dataset901_Tiny has no fingerprint yet, which a training needs. Run nnplug fingerprint with it first."
    )
    assert error_of(capsys, source=77).startswith("No data set '77' in nnUNet_preprocessed=")
