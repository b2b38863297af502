"""Options of the planning commands and of inventories: nnU-Net's own names, and what is said of wrong ones."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from nnplug.cli import build_parser, list_commands, main
from support.datasets import environment
from support.inventories import MadeInventory

STOCK = {
    "extract_fingerprint": "extract_fingerprint_entry",
    "plan_experiment": "plan_experiment_entry",
    "preprocess": "preprocess_entry",
    "plan_and_preprocess": "plan_and_preprocess_entry",
}
NUMBERS = {"-np": ["2"], "-npfp": ["2"], "-gpu_memory_target": ["11"], "-overwrite_target_spacing": ["1", "1", "2.5"]}


@pytest.fixture(autouse=True)
def variables_stay() -> Iterator[None]:
    """The commands set nnU-Net's variables for their process."""
    with environment(**dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "")):
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            del os.environ[name]
        yield


@pytest.fixture
def made(tmp_path: Path) -> MadeInventory:
    return MadeInventory(tmp_path / "data")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 2
    message = capsys.readouterr().err
    assert message.startswith("nnplug: error: ")
    return message.removeprefix("nnplug: error: ").rstrip("\n")


@pytest.mark.parametrize("command", STOCK)
def test_every_option_of_nnunet_is_there(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[str] = []

    def listed(parser: argparse.ArgumentParser, *_: object) -> None:
        options.extend(max(action.option_strings, key=len) for action in parser._actions if action.option_strings)
        raise SystemExit

    entry_points = importlib.import_module("nnunetv2.experiment_planning.plan_and_preprocess_entrypoints")
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", listed)
        patch.setattr(argparse.ArgumentParser, "parse_args", listed)
        with pytest.raises(SystemExit):
            getattr(entry_points, STOCK[command])()
    assert len(options) > 6
    for option in options:
        if option != "--help":
            takes_nothing = option.startswith("--")
            build_parser().parse_args([command, option, *([] if takes_nothing else NUMBERS.get(option, ["a"]))])


def test_nnunets_names_of_the_commands_are_the_same_commands() -> None:
    assert {"fingerprint", "plan", "preprocess", "plan_and_preprocess", "inventory make"} <= set(
        list_commands(build_parser())
    )
    for name, ours in (("extract_fingerprint", "fingerprint"), ("plan_experiment", "plan")):
        assert build_parser().parse_args([name]).func is build_parser().parse_args([ours]).func


@pytest.mark.parametrize("command", ["fingerprint", "plan", "preprocess", "plan_and_preprocess"])
def test_which_data_set(command: str, made: MadeInventory, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, command) == (
        "Which data set? Give -d ID, or --inventory FILE --dataset-id N --cache-dir DIR."
    )
    assert error_of(capsys, command, "-d", 4, "--inventory", made.path) == (
        "-d names data sets in nnUNet_raw, --inventory is a data set itself. Give one of them."
    )
    assert error_of(capsys, command, "--inventory", made.path) == (
        "--inventory needs --dataset-id N and --cache-dir DIR too."
    )
    assert error_of(capsys, command, "-d", 4, "--dataset-name", "a") == (
        "--dataset-id and --dataset-name belong to an inventory. Give --inventory FILE too."
    )
    assert error_of(capsys, command, "-d", 4).startswith("nnUNet_raw is not set: it names the folder of raw data sets.")


def test_all_problems_of_an_inventory_are_printed(made: MadeInventory, capsys: pytest.CaptureFixture[str]) -> None:
    made.content["numTraining"] = 5
    made.content["labels"] = {"box": 1}
    made.write()
    found = error_of(capsys, "plan", "--inventory", made.path, "--dataset-id", 4, "--cache-dir", made.folder / "cache")
    assert found.splitlines()[0] == f"{made.path}: 2 problems:"
    assert len(found.splitlines()) == 3


def train_error(capsys: pytest.CaptureFixture[str], made: MadeInventory, *arguments: object) -> str:
    inventory = ("--inventory", made.path, "--cache-dir", made.folder / "cache")
    return error_of(capsys, "train", *arguments, *inventory)


def test_training_on_an_inventory(made: MadeInventory, capsys: pytest.CaptureFixture[str]) -> None:
    results = ("--results-dir", made.folder / "results")
    assert train_error(capsys, made, "3d_fullres", 0, *results) == "--inventory needs --dataset-id N too."
    assert train_error(capsys, made, "3d_fullres", 0, "--dataset-id", 4) == (
        "--inventory needs --results-dir DIR too, the folder for trained models."
    )
    not_planned = (
        f"{made.folder / 'cache' / 'Dataset004_inventory'} is not planned yet. Run nnplug plan_and_preprocess with the "
        "same --inventory, --dataset-id, --dataset-name and --cache-dir first."
    )
    assert train_error(capsys, made, "3d_fullres", 0, "--dataset-id", 4, *results) == not_planned
    assert train_error(capsys, made, 4, "3d_fullres", 0, *results) == not_planned
    assert train_error(capsys, made, "Dataset004_inventory", "3d_fullres", 0, *results) == not_planned
    assert train_error(capsys, made, 5, "3d_fullres", 0, "--dataset-id", 4, *results) == (
        "DATASET is 5, and the inventory is Dataset004_inventory. Leave DATASET out."
    )


def test_images_to_predict(made: MadeInventory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("predict", "-o", tmp_path / "out", "-c", "3d_fullres")
    which = "Which images? Give -i FOLDER or --inventory FILE, one of them."
    assert error_of(capsys, *common, "-d", 4) == which
    assert error_of(capsys, *common, "-d", 4, "-i", tmp_path, "--inventory", made.path) == which
    assert error_of(capsys, *common, "-i", tmp_path) == (
        "Which data set is the model of? Give -d ID, or --dataset-id N."
    )
    (tmp_path / "results").mkdir()
    assert (
        error_of(
            capsys,
            *common,
            "-i",
            tmp_path,
            "--dataset-id",
            4,
            "--dataset-name",
            "A",
            "--results-dir",
            tmp_path / "results",
        )
        == f"There is no trained model of dataset 'Dataset004_A' in {tmp_path / 'results'}. It has: none."
    )


def test_checking_prints_a_table_and_every_problem(made: MadeInventory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inventory", "check", str(made.path), "-np", "0", "--overview", str(made.folder / "all.png")]) == 0
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines()] == [
        ["case", "voxels", "spacing", "mm", "box", "problems"],
        ["case_0", "10x8x6", "1x1x1", "12"],
        ["case_1", "10x8x6", "1x1x1", "12"],
        f"{made.folder / 'all.png'}: a slice of 2 cases.".split(),
        ["No", "problem", "in", "the", "files", "of", "2", "cases."],
    ]
    assert (made.folder / "all.png").stat().st_size > 1000
    made.content["numTraining"] = 3
    made.write()
    (made.folder / "labels" / "case_1.nii.gz").write_bytes(b"")
    found = error_of(capsys, "inventory", "check", made.path, "-np", "0")
    assert found.splitlines()[0] == f"{made.path}: 2 problems:"


def test_checking_a_raw_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MadeInventory(tmp_path / "made")
    (made.folder / "images").rename(made.folder / "imagesTr")
    (made.folder / "labels").rename(made.folder / "labelsTr")
    del made.content["dataset"]
    (made.folder / "dataset.json").write_text(json.dumps(made.content))
    assert main(["inventory", "check", str(made.folder), "--headers", "-np", "0"]) == 0
    assert "No problem in the headers of 2 cases." in capsys.readouterr().out
