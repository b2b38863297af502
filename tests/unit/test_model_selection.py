"""``nnplug find_best``: nnU-Net's choice, the trainers' names, the commands it ends with, and what is missing."""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nnplug import NnplugError
from nnplug.cli import build_parser, main
from nnplug.evaluation.model_selection import find_best
from support.datasets import _threads_for_processes, environment
from support.predictions import write_preprocessed, write_validated_model

DATASET = "Dataset902_Made"
FOLDS = (("a", "b"), ("c",))
GOOD, BAD = "dice_loss+num_epochs=1", "no_mirroring+num_epochs=1"


def folder(results: Path, trainer: str, configuration: str = "3d_fullres") -> Path:
    return results / DATASET / f"{trainer}__nnUNetPlans__{configuration}"


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """Two trainers of 3d_fullres; nothing of the plans' 2d is trained."""

    write_preprocessed(tmp_path / "preprocessed" / DATASET, FOLDS)
    for trainer, noise in ((BAD, 2.5), (GOOD, 2.0)):
        write_validated_model(folder(tmp_path / "results", trainer), FOLDS, noise)
    names = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    variables = {variable: str(tmp_path / name) for variable, name in names.items()}
    with environment(**variables), _threads_for_processes():
        yield tmp_path / "results"


def test_the_best_of_two_and_their_ensemble(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["num_epochs=1+dice_loss", BAD]
    command = ["find_best", "902", "-tr", *typed, "-f", "0", "1", "-np", "1"]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Comparing 2 models and 1 ensemble of Dataset902_Made.\n{")
    result = json.loads(printed.partition("\n")[2])
    assert list(result["all_results"]) == [
        folder(results, GOOD).name,
        folder(results, BAD).name,
        f"ensemble___{folder(results, GOOD).name}___{folder(results, BAD).name}___0_1",
    ]
    good, bad, both = result["all_results"].values()
    assert bad < good < both
    assert len(result["skipped"]) == 2  # 2d of both
    written = json.loads((results / DATASET / "inference_information.json").read_text())
    assert written["all_results"] == result["all_results"]
    assert len(result["postprocessing"]) == 3
    commands = result["commands"]["nnplug"]
    assert commands[:3] == [
        f"nnplug predict -i INPUT_FOLDER -o OUTPUT_FOLDER_MODEL_{number} -d {DATASET} -f 0 1 -tr {trainer} "
        "-c 3d_fullres -p nnUNetPlans --save_probabilities"
        for number, trainer in ((1, GOOD), (2, BAD))
    ] + ["nnplug ensemble -i OUTPUT_FOLDER_MODEL_1 OUTPUT_FOLDER_MODEL_2 -o OUTPUT_FOLDER"]
    for line in commands:
        build_parser().parse_args(shlex.split(line)[1:])
    chosen = result["best_model_or_ensemble"]
    file, plans = chosen["postprocessing_file"], chosen["some_plans_file"]
    assert Path(file).is_file()
    assert (
        commands[3]
        == f"nnplug postprocess -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP -pp_pkl_file {file} -plans_json {plans}"
    )
    stock = {"nnplug predict": "nnUNetv2_predict", "nnplug ensemble": "nnUNetv2_ensemble"}
    stock["nnplug postprocess"] = "nnUNetv2_apply_postprocessing"
    replaced = [stock[" ".join(line.split()[:2])] + line.removeprefix(" ".join(line.split()[:2])) for line in commands]
    assert result["commands"]["stock"] == replaced
    instructions = (results / DATASET / "inference_instructions.txt").read_text().splitlines()
    assert instructions == ["# nnplug", *commands, "", "# nnU-Net's own commands", *replaced]

    assert main([*command, "--disable_ensembling", "--no_overwrite"]) == 0
    printed = capsys.readouterr().out
    assert f"{good:.4f}  {folder(results, GOOD).name}  <- best" in printed
    assert "Left out: Dataset902_Made has no model of configuration '2d' with plans 'nnUNetPlans'" in printed
    predict = (
        f"nnplug predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d {DATASET} -f 0 1 -tr {GOOD} -c 3d_fullres -p nnUNetPlans"
    )
    assert f"  {predict}\n" in printed
    assert main([*command, "--disable_ensembling", "--no_overwrite", "--results-dir", str(results)]) == 0
    assert f"  {predict} --results-dir {results}\n" in capsys.readouterr().out


def test_the_first_stage_of_a_cascade_is_predicted_with_its_own_trainer(results: Path, tmp_path: Path) -> None:
    model = folder(results, GOOD)
    for path in (model / "plans.json", tmp_path / "preprocessed" / DATASET / "nnUNetPlans.json"):
        plans = json.loads(path.read_text())
        plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
        path.write_text(json.dumps(plans))
    record = {"previous_stage": f"{BAD}__nnUNetPlans__3d_lowres/predicted_next_stage/3d_fullres"}
    (model / "fold_0" / "nnplug_fold.json").write_text(json.dumps(record))
    result = find_best("902", trainers=[GOOD], configurations=["3d_fullres"], folds=[0, 1], num_processes=1)
    assert result["commands"]["stock"][:2] == [
        f"nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER_PREV_STAGE -d {DATASET} -f 0 1 -tr {BAD} -c 3d_lowres "
        "-p nnUNetPlans",
        f"nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d {DATASET} -f 0 1 -tr {GOOD} -c 3d_fullres "
        "-p nnUNetPlans -prev_stage_predictions OUTPUT_FOLDER_PREV_STAGE",
    ]


def test_everything_that_is_missing_is_listed(results: Path, tmp_path: Path) -> None:
    (folder(results, GOOD) / "fold_0" / "validation" / "a.npz").unlink()
    (folder(results, GOOD) / "fold_1" / "checkpoint_final.pth").unlink()
    (folder(results, BAD) / "fold_0" / "validation" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "preprocessed" / DATASET / "gt_segmentations")
    with pytest.raises(NnplugError) as error:
        find_best("902", trainers=[GOOD, BAD], folds=[0, 1])
    lines = str(error.value).splitlines()
    train = f"nnplug train {DATASET} 3d_fullres"
    assert lines[0] == f"find_best for {DATASET}: 4 problems:"
    assert lines[1].endswith(
        "gt_segmentations: the truth is missing. Preprocess the data set again: nnplug plan_and_preprocess"
    )
    assert lines[2].endswith(
        f"fold_0/validation: its probabilities (.npz) are missing. Run: {train} 0 -tr {GOOD} -p nnUNetPlans --val "
        "--npz, or leave ensembles out with --disable_ensembling"
    )
    assert lines[3].endswith(f"fold_1: this fold is not trained. Run: {train} 1 -tr {GOOD} -p nnUNetPlans --npz")
    assert lines[4].endswith(f"fold_0: this fold is not validated. Run: {train} 0 -tr {BAD} -p nnUNetPlans --val --npz")


def test_folds_of_two_splits(results: Path) -> None:
    validation = folder(results, GOOD) / "fold_1" / "validation"
    shutil.copy(validation / "c.nii.gz", validation / "a.nii.gz")
    with pytest.raises(
        NnplugError, match=r"case a, .*: fold 0 has validated this case too\. Choose folds of one split"
    ):
        find_best("902", trainers=[GOOD], folds=[0, 1])


@pytest.mark.parametrize("ensembles", [False, True])
def test_models_that_have_validated_different_cases(results: Path, ensembles: bool) -> None:
    for path in (folder(results, BAD) / "fold_0" / "validation").glob("b.*"):
        path.unlink()
    with pytest.raises(NnplugError) as error:
        find_best("902", trainers=[GOOD, BAD], folds=[0, 1], ensembles=ensembles)
    assert str(error.value) == (
        f"find_best for {DATASET}: {folder(results, BAD).name} has not validated 1 case that "
        f"{folder(results, GOOD).name} has: b. Only models validated on the same cases can be compared: "
        "train on one split, or choose with -f."
    )


def test_what_nnunet_printed_is_told_when_it_fails(results: Path) -> None:
    (results / DATASET / "inference_instructions.txt").mkdir()  # it writes this last
    told: list[str] = []
    with pytest.raises(IsADirectoryError):
        find_best("902", trainers=[GOOD], folds=[0, 1], num_processes=1, on_message=told.append)
    assert "***All results:***" in told[-1]


def test_a_class_that_no_case_has(results: Path) -> None:
    summary = {"mean": {"1": {"Dice": 0.5}, "2": {"Dice": float("nan")}}}
    for fold in (0, 1):
        (folder(results, GOOD) / f"fold_{fold}" / "validation" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        NnplugError, match=r"summary\.json: no case has class 2, in truth or prediction\. Models can not"
    ):
        find_best("902", trainers=[GOOD], folds=[0, 1])


def test_models_that_are_not_there(results: Path) -> None:
    with pytest.raises(
        NnplugError, match=r"no model of configuration '2d' with plans 'nnUNetPlans'.* It has: dice_loss"
    ):
        find_best("902", trainers=[GOOD], folds=[0, 1], strict=True)
    with pytest.raises(NnplugError, match=r"There is no model of trainer 'blob_dice_loss'\. Trained for this dataset"):
        find_best("902", trainers=[GOOD, "blob_dice_loss"], configurations=["3d_fullres"], folds=[0, 1])
    with pytest.raises(NnplugError, match=r"have none of the configurations 3d_lowres\. Choose with -c\."):
        find_best("902", trainers=[GOOD], configurations=["3d_lowres"], folds=[0, 1])


def test_properties_that_run_code_are_not_read(results: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.mkdir, (tmp_path / "was_run",)

    (folder(results, BAD) / "fold_0" / "validation" / "a.pkl").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(
        NnplugError, match=r"a\.pkl would run code when it is read: it names pathlib(\._local)?\.Path\.mkdir,"
    ):
        find_best("902", trainers=[GOOD, BAD], folds=[0, 1])
    assert not (tmp_path / "was_run").exists()
