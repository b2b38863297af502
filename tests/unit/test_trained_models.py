"""Which model folder and which folds are meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from nnplug.errors import NnplugError
from nnplug.models.trained_models import (
    ModelFolder,
    choose_folds,
    find_model_folder,
    read_model_folder,
    unfinished_folds,
)
from support.models import make_dataset_json, make_plans, write_descriptions

FINAL = "checkpoint_final.pth"


def make_folds(folder: Path, **checkpoints: Sequence[str]) -> Path:
    for fold, names in checkpoints.items():
        (folder / fold).mkdir(parents=True)
        for name in names:
            (folder / fold / name).touch()
    return folder


def make_model(
    results: Path, dataset: str, trainer: str, plans: str = "nnUNetPlans", config: str = "3d_fullres"
) -> Path:
    return write_descriptions(results / dataset / f"{trainer}__{plans}__{config}", make_plans(), make_dataset_json())


# --- one folder


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"There is no model folder .*missing\."):
        read_model_folder(tmp_path / "missing")
    with pytest.raises(NnplugError, match=r"is no model folder: it has no plans\.json and no dataset\.json\."):
        read_model_folder(tmp_path)


def test_a_fold_is_no_model_folder(tmp_path: Path) -> None:
    write_descriptions(tmp_path, make_plans(), make_dataset_json())
    (tmp_path / "fold_3").mkdir()
    with pytest.raises(NnplugError, match=r"fold_3 is one fold of a model\. Give its parent folder, .* with -f 3\."):
        read_model_folder(tmp_path / "fold_3")


def test_damaged_descriptions(tmp_path: Path) -> None:
    write_descriptions(tmp_path, make_plans(), make_dataset_json())
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(NnplugError, match=r"The plans file .*plans\.json is no valid JSON"):
        read_model_folder(tmp_path)
    (tmp_path / "plans.json").write_text("[]")
    with pytest.raises(NnplugError, match=r"plans\.json is not complete: expected a JSON object\."):
        read_model_folder(tmp_path)
    (tmp_path / "plans.json").write_text('{"configurations": {}}')
    with pytest.raises(NnplugError, match=r"plans\.json is not complete: it has no image_reader_writer\."):
        read_model_folder(tmp_path)
    write_descriptions(tmp_path, make_plans(), {"labels": {}, "file_ending": ".nii.gz"})
    with pytest.raises(NnplugError, match=r"dataset\.json is not complete: it has no channel_names\."):
        read_model_folder(tmp_path)


def test_channels_in_their_order_and_in_the_old_spelling(tmp_path: Path) -> None:
    names = {str(index): f"c{index}" for index in reversed(range(12))}
    assert ModelFolder(tmp_path, {}, {"channel_names": names}).channel_names == [f"c{index}" for index in range(12)]
    assert ModelFolder(tmp_path, {}, {"modality": {"0": "CT"}}).channel_names == ["CT"]


def test_previous_stage_is_inherited(tmp_path: Path) -> None:
    configurations = {
        "3d_fullres": {},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "mine": {"inherits_from": "3d_cascade_fullres"},
    }
    model = ModelFolder(tmp_path, {"configurations": configurations}, {})
    assert model.previous_stage("mine") == model.previous_stage("3d_cascade_fullres") == "3d_lowres"
    assert model.previous_stage("3d_fullres") is None


# --- folds


@pytest.mark.parametrize("folds", [None, "all", ["all"]])
def test_the_kind_of_folds_that_alone_exists(tmp_path: Path, folds: object) -> None:
    make_folds(tmp_path, fold_0=[FINAL], fold_2=[FINAL], fold_10=[FINAL], fold_1=[], fold_x=[FINAL])
    assert choose_folds(tmp_path, folds) == [0, 2, 10]  # type: ignore[arg-type]
    assert unfinished_folds(tmp_path) == [1]
    (tmp_path / "fold_all").mkdir()  # begun, not finished
    assert choose_folds(tmp_path, folds) == [0, 2, 10]  # type: ignore[arg-type]
    assert choose_folds(make_folds(tmp_path / "b", fold_all=[FINAL]), folds) == ["all"]  # type: ignore[arg-type]


@pytest.mark.parametrize("folds", [None, "all", ["all"]])
def test_both_kinds_of_folds_are_a_question(tmp_path: Path, folds: object) -> None:
    make_folds(tmp_path, fold_0=[FINAL], fold_1=[FINAL], fold_all=[FINAL])
    with pytest.raises(NnplugError) as caught:
        choose_folds(tmp_path, folds)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"{tmp_path} holds a model trained on every case (fold_all) and folds of a cross-validation. "
        "Say which: -f fold_all, or -f 0 1"
    )
    assert choose_folds(tmp_path, "fold_all") == ["all"]
    assert choose_folds(tmp_path, ["0", "1"]) == [0, 1]


def test_folds_as_given(tmp_path: Path) -> None:
    make_folds(tmp_path, fold_0=[FINAL], fold_1=[FINAL], fold_all=[FINAL])
    assert choose_folds(tmp_path, 1) == [1]
    assert choose_folds(tmp_path, ["1", 0, "fold_1"]) == [1, 0]
    assert choose_folds(tmp_path, ["fold_all", "0"]) == ["all", 0]


@pytest.mark.parametrize("fold", ["first", "all 0", "-1"])
def test_what_is_no_fold(tmp_path: Path, fold: str) -> None:
    with pytest.raises(
        NnplugError, match=r"Fold '(first|all|-1)' is not one: expected numbers such as 0 1 2, fold_all"
    ):
        choose_folds(tmp_path, fold.split())


def test_no_folds_given(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match="No fold was given"):
        choose_folds(tmp_path, [])


def test_missing_folds_are_named_with_what_exists(tmp_path: Path) -> None:
    make_folds(tmp_path, fold_0=["checkpoint_best.pth", "checkpoint_latest.pth"], fold_1=[FINAL], fold_2=[])
    there = (
        "There: fold_0 has checkpoint_best.pth, checkpoint_latest.pth; fold_1 has checkpoint_final.pth; "
        "fold_2 has no checkpoint. Another checkpoint is chosen with -chk."
    )
    with pytest.raises(NnplugError) as caught:
        choose_folds(tmp_path, [0, 1, 4])
    assert str(caught.value) == f"{tmp_path} has no checkpoint_final.pth for fold_0, fold_4. {there}"
    with pytest.raises(NnplugError) as caught:
        choose_folds(tmp_path, None, "checkpoint_mine.pth")
    assert str(caught.value) == f"{tmp_path} has no fold with checkpoint_mine.pth. {there}"
    with pytest.raises(NnplugError, match=r"for fold_7\. .*fold_2 has no checkpoint\.$"):
        choose_folds(tmp_path, [1, 7])
    assert choose_folds(tmp_path, None, "checkpoint_best.pth") == [0]


def test_a_model_without_folds(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"It has no folds: was the model trained\?"):
        choose_folds(tmp_path)


# --- finding


def test_data_set_by_id_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path, "Dataset004_Hippocampus", "nnUNetTrainer")
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    for dataset in ("4", "004", "Dataset004_Hippocampus"):
        assert find_model_folder(dataset, "3d_fullres") == folder


def test_unknown_data_set(tmp_path: Path) -> None:
    for dataset in ("5", "Dataset005_X", "hippocampus"):
        with pytest.raises(NnplugError) as caught:
            find_model_folder(dataset, "3d_fullres", results=tmp_path)
        assert str(caught.value) == f"There is no trained model of dataset '{dataset}' in {tmp_path}. It has: none."
    make_model(tmp_path, "Dataset004_A", "nnUNetTrainer")
    with pytest.raises(NnplugError, match=r"It has: Dataset004_A\."):
        find_model_folder("5", "3d_fullres", results=tmp_path)
    with pytest.raises(NnplugError, match=r"in /.* \(did you mean Dataset004_A\?\)\. It has: "):
        find_model_folder("Dataset04_A", "3d_fullres", results=tmp_path)
    with pytest.raises(
        NnplugError, match=r"no model of configuration '3d' .* \(did you mean 3d_fullres\?\)\. It has: "
    ):
        find_model_folder("4", "3d", results=tmp_path)
    make_model(tmp_path, "Dataset004_B", "nnUNetTrainer")
    with pytest.raises(
        NnplugError, match=r"Dataset 4 is not unique in .*: Dataset004_A, Dataset004_B\. Give the name\."
    ):
        find_model_folder("4", "3d_fullres", results=tmp_path)


def test_results_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results", raising=False)
    message = (
        r"nnUNet_results is not set: .* name it with --results-dir FOLDER, or predict with the model's own folder: "
    )
    message += "nnplug predict_from_modelfolder -m FOLDER"
    with pytest.raises(NnplugError, match=message):
        find_model_folder("4", "3d_fullres")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "missing"))
    with pytest.raises(NnplugError, match=r"nnUNet_results is .*missing, which is not a folder\."):
        find_model_folder("4", "3d_fullres")


def test_a_results_folder_that_can_only_be_read_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path, "Dataset004_A", "nnUNetTrainer")
    monkeypatch.setattr(os, "access", lambda _path, mode, **_: not mode & os.W_OK)
    assert find_model_folder("4", "3d_fullres", results=tmp_path) == folder


def test_without_a_trainer_name(tmp_path: Path) -> None:
    only = make_model(tmp_path, "Dataset004_A", "kiunet")
    make_model(tmp_path, "Dataset004_A", "other", config="2d")
    make_model(tmp_path, "Dataset004_A", "other", plans="nnUNetResEncUNetLPlans")
    assert find_model_folder("4", "3d_fullres", results=tmp_path) == only
    make_model(tmp_path, "Dataset004_A", "uiunet+dice_loss")
    with pytest.raises(NnplugError) as caught:
        find_model_folder("4", "3d_fullres", results=tmp_path)
    assert str(caught.value) == (
        "Dataset004_A has models of 2 trainers for configuration '3d_fullres'. "
        "Say which with -tr: kiunet, uiunet+dice_loss."
    )


def test_no_model_of_the_configuration_or_plans(tmp_path: Path) -> None:
    make_model(tmp_path, "Dataset004_A", "kiunet", config="2d")
    for options in ({"configuration": "3d_fullres"}, {"configuration": "2d", "plans": "myPlans"}):
        plans = options.get("plans", "nnUNetPlans")
        with pytest.raises(NnplugError) as caught:
            find_model_folder("4", results=tmp_path, **options)
        assert str(caught.value) == (
            f"Dataset004_A has no model of configuration '{options['configuration']}' with plans '{plans}' in "
            f"{tmp_path}. It has: kiunet__nnUNetPlans__2d."
        )


def test_terms_in_any_order_and_spelling(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "Dataset004_A", "nnUNetTrainerDA5+batch_size=3+num_epochs=20")
    make_model(tmp_path, "Dataset004_A", "nnUNetTrainer")
    for typed in (
        "nnUNetTrainerDA5+batch_size=3+num_epochs=20",
        "num_epochs=20+nnUNetTrainerDA5+batch_size=3",
        "batch_size=03+nnUNetTrainerDA5+num_epochs=20",
    ):
        assert find_model_folder("4", "3d_fullres", trainer=typed, results=tmp_path) == folder


def test_a_trainer_that_is_no_longer_installed(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "Dataset004_A", "gone_net+num_epochs=20")
    recipe = make_model(tmp_path, "Dataset004_A", "mine-0a1b2c3d")
    for typed in ("gone_net+num_epochs=20", "num_epochs=20+gone_net"):
        assert find_model_folder("4", "3d_fullres", trainer=typed, results=tmp_path) == folder
    assert find_model_folder("4", "3d_fullres", trainer="mine-0a1b2c3d", results=tmp_path) == recipe


def test_a_trainer_that_was_not_trained(tmp_path: Path) -> None:
    make_model(tmp_path, "Dataset004_A", "gone_net")
    trained = "Trained for this dataset, configuration and plans: gone_net."
    with pytest.raises(NnplugError) as caught:
        find_model_folder("4", "3d_fullres", trainer="nnUNetTrainer", results=tmp_path)
    assert str(caught.value) == f"There is no model of trainer 'nnUNetTrainer'. {trained}"
    with pytest.raises(NnplugError, match=r"^Unknown trainer 'gone_nit'\. .* " + trained):
        find_model_folder("4", "3d_fullres", trainer="gone_nit", results=tmp_path)
    with pytest.raises(NnplugError, match=r"missing\.toml.* " + trained):
        find_model_folder("4", "3d_fullres", trainer="./missing.toml", results=tmp_path)
