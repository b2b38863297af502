"""From images to metrics in one call: what is missing is made, what is there is kept, what is wrong is said."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import nnplug
import numpy as np
import pytest
from filelock import FileLock
from nnplug import NnplugError, TrainingEvent
from nnplug.files.folder_use import FolderUse
from nnplug.planning.data import find_raw_data
from nnplug.planning.data_record import write_record
from nnplug.planning.experiment import find_planner
from nnplug.processes.interrupts import TrainingInterrupted
from support.datasets import DatasetForTests
from support.full_disk import largest_file
from support.inventories import MadeInventory, make_case, save_image
from support.small_trainings import small_config, without_processes

STAGES_OF_A_FOLD = ["train", "epoch", "validate", "fold"]


@pytest.fixture
def tool(tiny_prepared: DatasetForTests, few_samples: None, tmp_path: Path) -> Iterator[Any]:
    """`nnunet_training` in this process, with small trainings; ``tool.events`` of the last call."""
    tool = Tool(tmp_path)
    with without_processes(tiny_prepared):
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            del os.environ[name]
        yield tool


class Tool:
    """Calls the function on an inventory of five cases, unless a call says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.events: list[TrainingEvent] = []
        self.made = MadeInventory(folder / "data", num_cases=5)
        for index in range(5):
            image, label = make_case(index, (16, 16, 16))
            self.made.save(f"images/case_{index}_0000.nii.gz", image)
            self.made.save(f"labels/case_{index}.nii.gz", label)
        self.cache = folder / "cache" / "Dataset007_inventory"
        self.inventory = {"inventory": self.made.path, "cache_dir": folder / "cache", "results_dir": folder / "results"}

    def __call__(self, dataset: Any = 7, *, fold: Any = 0, **arguments: Any) -> dict[str, Any]:
        common = {"trainer": small_config(), "num_processes": 0, "device": "cpu", "progress": self.events.append}
        self.events.clear()
        return nnplug.nnunet_training(dataset, fold=fold, **{**self.inventory, **common, **arguments})

    def stages(self) -> list[str]:
        return list(dict.fromkeys(event.stage for event in self.events))


def error_of(tool: Tool, *args: Any, **arguments: Any) -> str:
    """What is refused, before anything is worked on."""
    with pytest.raises(NnplugError) as caught:
        tool(*args, **arguments)
    assert not tool.cache.exists()
    return str(caught.value)


# --- what is missing -------------------------------------------------------------------------------------------------


def test_from_images_to_metrics_and_nothing_twice(tool: Tool) -> None:
    result = tool(fold=[0, 1])
    assert tool.stages() == ["fingerprint", "plan", "preprocess", *STAGES_OF_A_FOLD]
    assert list(result)[:6] == ["status", "model_path", "dataset_id", "configuration", "fold", "metrics"]
    assert {key: result[key] for key in ("status", "dataset_id", "configuration", "fold", "progress_error")} == {
        "status": "completed",
        "dataset_id": 7,
        "configuration": "3d_fullres",
        "fold": [0, 1],
        "progress_error": None,
    }
    dice = [one["metrics"]["dice"] for one in result["folds"]]
    assert result["metrics"]["dice"] == sum(dice) / 2
    assert result["per_class"]["1"]["dice"] == pytest.approx(sum(dice) / 2)
    assert set(result["metrics"]) == {"dice", "iou", "validation_loss"}
    epochs = [event for event in tool.events if event.stage == "epoch"]
    assert [(event.fold, event.epoch, event.num_epochs) for event in epochs] == [(0, 0, 1), (1, 0, 1)]
    assert set(epochs[0].metrics or {}) == {
        *("train_loss", "val_loss", "mean_dice", "ema_dice", "learning_rate", "seconds"),
    }
    assert {event.dataset for event in tool.events} == {"Dataset007_inventory"}
    assert "nnUNet_results" not in os.environ

    before = times(tool.cache)
    assert tool(fold=[0, 1]) == result
    assert tool.stages() == ["fingerprint", "plan", "preprocess", "fold"]
    assert times(tool.cache) == before
    assert tool(fold=1, inventory=None)["folds"] == result["folds"][1:], "the cache is a raw data set, too"


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_of_several_processes_one_works_on_the_data(tool: Tool) -> None:
    lock = FileLock(tool.cache.parent / ".nnplug_Dataset007_inventory.lock")
    tool.cache.parent.mkdir()
    lock.acquire()
    messages: list[str] = []

    def progress(event: TrainingEvent) -> None:
        messages.append(event.message)
        if "waiting" in event.message:
            assert not tool.cache.exists()
            lock.release()

    assert tool(progress=progress, fold=0)["progress_error"] is None
    assert messages[:2] == [
        f"Another process works on {tool.cache}; waiting for it",
        "Dataset007_inventory: 5 cases",
    ]


def test_data_is_not_made_anew_under_a_training(tool: Tool) -> None:
    refused: list[str] = []

    def progress(event: TrainingEvent) -> None:
        if event.stage == "epoch":
            with FolderUse(tool.cache) as use, pytest.raises(NnplugError) as caught:
                use.make_anew()
            refused.append(str(caught.value))

    tool(progress=progress)
    assert refused == [f"A training reads {tool.cache}, and this would take its data away. Wait until it ends."]
    before = times(tool.cache)
    with FolderUse(tool.cache) as use:
        use.read()
        with pytest.raises(NnplugError, match="A training reads"):
            tool(clean=True)
        tool()
    assert times(tool.cache) == before


def test_of_several_processes_one_makes_the_data_anew(tool: Tool) -> None:
    tool()
    before = times(tool.cache)
    lock = FileLock(tool.cache.parent / ".nnplug_Dataset007_inventory.lock")
    for done, is_kept in (("nnUNetPlans 3d_fullres", True), ("nnUNetPlans 2d", False)):
        lock.acquire()

        def progress(event: TrainingEvent, done: str = done) -> None:
            if "waiting" in event.message:
                FolderUse(tool.cache).note_made_anew(done)
                lock.release()

        assert tool(progress=progress, clean=True)["progress_error"] is None
        assert (times(tool.cache) == before) == is_kept
    before = times(tool.cache)
    tool(clean=True)
    assert times(tool.cache) != before


def test_finished_folds_are_trained_anew_with_restart_and_validated_for_what_is_missing(tool: Tool) -> None:
    model = Path(tool()["model_path"])
    with pytest.raises(NnplugError, match=r"holds a training already .* Continue it with --c, or start anew with"):
        tool(npz=True)
    tool(npz=True, continue_training=True)
    assert tool.stages() == ["fingerprint", "plan", "preprocess", "train", "validate", "fold"]
    assert list((model / "fold_0" / "validation").glob("*.npz"))
    tool(npz=True)
    assert "train" not in tool.stages()
    tool(validation_only=True)
    assert tool.stages()[-2:] == ["validate", "fold"]
    tool(restart=True)
    assert tool.stages()[-4:] == STAGES_OF_A_FOLD
    assert list(model.glob("replaced_fold_0_*"))


def test_an_interrupted_fold_is_continued_when_asked(tool: Tool) -> None:
    final = Path(tool()["model_path"], "fold_0", "checkpoint_final.pth")
    final.rename(final.with_name("checkpoint_latest.pth"))
    with pytest.raises(NnplugError, match="holds a training already"):
        tool()
    assert tool(continue_training=True)["status"] == "completed"
    assert final.exists()


def test_changed_data_is_refused_until_it_is_made_anew(tool: Tool) -> None:
    tool()
    fingerprint = tool.cache / "dataset_fingerprint.json"
    before = fingerprint.read_bytes()
    tool.made.save("images/case_0_0000.nii.gz", make_case(9, (16, 16, 16))[0] * 2)
    with pytest.raises(NnplugError, match=r"1 case with changed files .* Give --clean to make it anew"):
        tool()
    with pytest.raises(NnplugError, match=r"belongs to a model with other settings: plans\.json -> foreground"):
        tool(clean=True)
    assert fingerprint.read_bytes() != before
    assert tool(results_dir=tool.cache.parent / "other")["status"] == "completed"


def test_what_nnunet_has_preprocessed_is_taken_as_it_is(
    tool: Tool, tiny_prepared: DatasetForTests, tmp_path: Path
) -> None:
    """Its data is checked once, and again when it is told to have changed."""
    dataset = tiny_prepared.private_copy(tmp_path / "private")
    folders = {"inventory": None, "cache_dir": None, "results_dir": dataset.results}
    before = times(dataset.preprocessed_folder)
    with dataset.activated():
        tool(901, **folders)
        assert tool.stages() == ["check", "plan", "preprocess", *STAGES_OF_A_FOLD]
        assert "3d_fullres was preprocessed by nnU-Net itself and is taken as it is" in [
            event.message for event in tool.events
        ]
        after = times(dataset.preprocessed_folder)
        assert set(after) - set(before) == {str(dataset.preprocessed_folder / "nnplug_data.json")}
        assert {path: after[path] for path in before} == before
        tool(901, **folders)
        assert tool.stages() == ["fingerprint", "plan", "preprocess", "fold"]
        label = next((dataset.raw_folder / "labelsTr").iterdir())
        os.utime(label, (1, 1))
        with pytest.raises(NnplugError, match=f"1 case with changed files \\({label.name.split('.')[0]}\\)"):
            tool(901, **folders)


def rename_a_class(data: DatasetForTests) -> None:
    path = data.raw_folder / "dataset.json"
    content = json.loads(path.read_text())
    labels = {f"{name}_2" if value else name: value for name, value in content["labels"].items()}
    path.write_text(json.dumps({**content, "labels": labels}))


def touch_a_label(data: DatasetForTests) -> None:
    os.utime(next((data.raw_folder / "labelsTr").iterdir()))


def leave_a_case(data: DatasetForTests) -> None:
    (data.preprocessed_folder / "nnUNetPlans_3d_fullres" / "gone.pkl").write_bytes(b"")


def plan_anew(data: DatasetForTests) -> None:
    """As ``--clean`` with another configuration."""
    write_record(find_raw_data(901))
    os.utime(data.preprocessed_folder / "dataset_fingerprint.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_a_class, r"labels was \{'background': 0, .*\}, is \{'background': 0, .*_2': \d\}"),
        (touch_a_label, r"1 case with files that are newer \(\w+\)"),
        (leave_a_case, r"1 case gone from the data \(gone\)"),
        (plan_anew, "the fingerprint was taken anew since"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.__name__,
)
def test_what_nnunet_has_preprocessed_of_other_data_is_refused(
    tool: Tool, tiny_prepared: DatasetForTests, tmp_path: Path, change: Any, message: str
) -> None:
    dataset = tiny_prepared.private_copy(tmp_path / "private")
    folders = {"inventory": None, "cache_dir": None, "results_dir": dataset.results}
    with dataset.activated():
        change(dataset)
        before = times(dataset.preprocessed_folder)
        for _ in range(2):  # nothing certifies it on the way
            with pytest.raises(NnplugError, match=f"from other data: {message}. Give --clean to make it anew, or --no"):
                tool(901, **folders)
    assert times(dataset.preprocessed_folder) == before
    assert tool.stages() == []


def test_plans_are_made_by_the_planner_of_that_name(tool: Tool) -> None:
    assert [find_planner(name) for name in ("nnUNetPlans", "nnUNetResEncUNetMPlans", "Mine")] == [
        "ExperimentPlanner",
        "nnUNetPlannerResEncM",
        None,
    ]
    with pytest.raises(NnplugError) as caught:
        tool(plans_identifier="Mine")
    assert str(caught.value) == (
        f"{tool.cache} has no plans 'Mine', and no planner of nnU-Net gives its plans this name. Make them with nnplug "
        "plan, or choose others with -p."
    )
    with pytest.raises(NnplugError) as caught:
        tool(configuration="3d_lowres", plans_identifier="nnUNetResEncUNetMPlans")
    assert str(caught.value) == (
        "The plans 'nnUNetResEncUNetMPlans' of Dataset007_inventory have no configuration '3d_lowres'; they have 2d, "
        "3d_fullres; a cascade is planned only for images that are much larger than a patch."
    )


def test_plans_that_can_not_be_made_anew_are_said_to_be_of_the_old_data(tool: Tool) -> None:
    tool()
    plans = json.loads((tool.cache / "nnUNetPlans.json").read_text())
    (tool.cache / "Mine.json").write_text(json.dumps({**plans, "plans_name": "Mine"}))
    tool(plans_identifier="Mine", clean=True)
    assert [event.message for event in tool.events if event.stage == "plan"] == [
        "Mine are kept, made for the data as it was: no planner of nnU-Net gives its plans this name. Where the data "
        "has changed, make them anew with nnplug plan, plans derive or move_plans."
    ]


def test_a_cascade_trains_its_first_stage_before(tool: Tool, tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match="have no configuration '3d_cascade_fullres'"):
        tool(configuration="3d_cascade_fullres")
    add_cascade(tool.cache)
    result = tool(configuration="3d_cascade_fullres")
    folds = [(event.configuration, event.fold) for event in tool.events if event.stage == "train"]
    assert folds == [("3d_lowres", 0), ("3d_lowres", 1), ("3d_cascade_fullres", 0)]
    assert result["previous_stage"]["configuration"] == "3d_lowres"
    predicted = Path(result["previous_stage"]["model_path"], "predicted_next_stage", "3d_cascade_fullres")
    assert len(list(predicted.iterdir())) == 5

    next(predicted.iterdir()).unlink()
    tool(configuration="3d_cascade_fullres")
    assert "epoch" not in tool.stages(), "the first stage is only validated again"
    assert len(list(predicted.iterdir())) == 5
    with pytest.raises(NnplugError, match="'3d_fullres' is no cascade: it takes no previous stage"):
        tool(prev_stage_trainer="dice_loss")


def add_cascade(folder: Path) -> None:
    """Two more configurations, and two folds so that both stages are quick."""
    path = folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    lowres = {"data_identifier": "nnUNetPlans_3d_lowres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_lowres"] = {**plans["configurations"]["3d_fullres"], **lowres}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    path.write_text(json.dumps(plans))
    halves = (["case_0", "case_1"], ["case_2", "case_3", "case_4"])
    splits = [{"train": a, "val": b} for a, b in (halves, halves[::-1])]
    (folder / "splits_final.json").write_text(json.dumps(splits))


def test_a_description_in_the_style_of_the_decathlon(tool: Tool) -> None:
    """The raw folder stays as it is."""
    raw = make_raw(tool)
    path = raw / "dataset.json"
    old = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "box"}, "numTraining": 5}
    path.write_text(json.dumps(old))
    assert tool("Dataset008_Raw", **classic(tool))["status"] == "completed"
    preprocessed = raw.parents[1] / "preprocessed" / raw.name
    converted = json.loads((preprocessed / "dataset.json").read_text())
    assert converted == {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "box": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    assert json.loads(path.read_text()) == old
    assert (
        "Its dataset.json is in the Decathlon's style: modality is taken for channel_names; labels are turned from "
        "value: name into name: value; file_ending is .nii.gz. The file stays as it is; "
        f"{preprocessed} gets a converted one."
    ) in [event.message for event in tool.events]


def make_raw(tool: Tool) -> Path:
    """The images as a raw data set; nnU-Net's variables name folders beside it."""
    root = tool.made.folder.parent
    folder = root / "raw" / "Dataset008_Raw"
    folder.mkdir(parents=True)
    for kind in ("images", "labels"):
        (tool.made.folder / kind).rename(folder / f"{kind}Tr")
    content = {key: value for key, value in tool.made.content.items() if key != "dataset"}
    (folder / "dataset.json").write_text(json.dumps(content))
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(root / name)
    return folder


def classic(tool: Tool) -> dict[str, Any]:
    return dict.fromkeys(tool.inventory)


# --- without preprocessing -------------------------------------------------------------------------------------------


def test_without_preprocessing(tool: Tool, tiny_prepared: DatasetForTests, tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"No plans 'nnUNetPlans' in .*Dataset007_inventory; it has none"):
        tool(no_preprocessing=True)
    dataset = tiny_prepared.private_copy(tmp_path / "private")
    shutil.rmtree(dataset.raw)
    folders = {"inventory": None, "cache_dir": None, "results_dir": dataset.results, "no_preprocessing": True}
    with dataset.activated():
        assert tool(901, **folders)["status"] == "completed"
        assert tool.stages() == STAGES_OF_A_FOLD
        cases = dataset.preprocessed_folder / "nnUNetPlans_3d_fullres"
        shutil.rmtree(cases)
        with pytest.raises(NnplugError) as caught:
            tool(901, **folders)
    assert str(caught.value) == (
        f"Configuration '3d_fullres' is not preprocessed: {cases} is missing or empty, and --no_preprocessing makes "
        "nothing. Leave it out, or bring that folder."
    )


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_dir": None}, "--inventory needs --cache-dir DIR too."),
        ({"dataset": "Hippocampus"}, "The data set of an inventory needs an id from 0 to 999, got 'Hippocampus'."),
        ({"results_dir": None}, "nnUNet_results is not set: it names the folder of trained models."),
        ({"trainer": "dice_los"}, "Unknown trainer 'dice_los'. Did you mean 'dice_loss'?"),
        ({"device": "gpu"}, "Unknown device 'gpu'. Choose cuda, cpu or mps."),
        ({"fold": 7}, "Fold 7 does not exist"),
        ({"pretrained_weights": "none.pth"}, "There is no file "),
        ({"continue_training": True, "restart": True}, "--c, --restart and --val exclude each other."),
        ({"val_best": True, "disable_checkpointing": True}, "--val_best needs checkpoints"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_before_anything_is_worked_on(tool: Tool, arguments: dict[str, Any], message: str) -> None:
    assert error_of(tool, **arguments).startswith(message)


def test_too_few_cases_for_folds_are_told_before_anything_is_worked_on(tool: Tool) -> None:
    del tool.made.content["dataset"]["case_4"]
    tool.made.content["numTraining"] = 4
    tool.made.write()
    assert error_of(tool) == (
        "Dataset007_inventory has 4 cases, too few for 5 folds. Make fewer with nnplug splits make -k, or train on "
        "every case with nnplug train --all-data."
    )


def test_a_network_that_does_not_take_the_patch_is_told_before_the_preprocessing(tool: Tool) -> None:
    with pytest.raises(
        NnplugError, match=r"The network of 'loop' can not take a patch of 15x15x15 .* A size that fits"
    ):
        tool(trainer=small_config(patch_size=(15, 15, 15)))
    assert tool.stages() == ["fingerprint", "plan"]


def test_a_cache_that_can_not_be_made(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = f"The cache {tmp_path / 'file'} can not be created (File exists)."
    assert error_of(tool, cache_dir=tmp_path / "file") == message


def test_a_worker_that_imports_a_script_without_a_guard(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    assert error_of(tool, raise_errors=False) == (
        "A worker process imports the script, and with it nnunet_training is called again. Put the call under if "
        "__name__ == '__main__':, so that only the script itself makes it."
    )


def test_errors_as_a_result(tool: Tool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    about = {"dataset_id": 7, "configuration": "3d_fullres", "fold": "all"}
    assert tool(device="gpu", fold="all", raise_errors=False) == {
        "status": "error",
        "message": "Unknown device 'gpu'. Choose cuda, cpu or mps.",
        **about,
    }
    for error, status, message in (
        (ValueError("a bug"), "error", "ValueError: a bug"),
        (TrainingInterrupted("Interrupted by SIGTERM."), "interrupted", "Interrupted by SIGTERM."),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("nnplug.training_tool.choose_training_device", raising(error))
            found = tool(fold="all", raise_errors=False)
            assert found == {"status": status, "message": message, **about}
            with pytest.raises(type(error)):
                tool()
    assert [record.exc_info is not None for record in caplog.records] == [True], "the traceback of the bug"


def raising(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


# --- bad data --------------------------------------------------------------------------------------------------------


def image(raw: Path) -> Path:
    return raw / "imagesTr" / "case_0_0000.nii.gz"


def truncate(raw: Path) -> None:
    image(raw).write_bytes(image(raw).read_bytes()[:-4])


def put(value: float) -> Any:
    def spoil(raw: Path) -> None:
        array = make_case(0, (16, 16, 16))[0]
        array[3, 3, 3] = value
        save_image(image(raw), array)

    return spoil


def without_voxels(raw: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 0, 4), np.float32), np.eye(4)), image(raw))


def with_fractions(raw: Path) -> None:
    save_image(raw / "labelsTr" / "case_0.nii.gz", make_case(0, (16, 16, 16))[1] * np.float32(0.5))


def shear(raw: Path) -> None:
    matrix = np.eye(4)
    matrix[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(make_case(0, (16, 16, 16))[0], matrix), image(raw))


def misname(raw: Path) -> None:
    raw.rename(raw.with_name("Dataset8_Raw"))


def double(raw: Path) -> None:
    (raw.parent / "Dataset008_Other").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (misname, "Dataset8_Raw does not have a name as nnU-Net needs it. Rename it to Dataset008_Raw."),
        (double, "Data set id 8 is taken twice in raw: Dataset008_Other, Dataset008_Raw. Give the full name."),
        (truncate, "case_0_0000.nii.gz: it can not be read by SimpleITKIO: the file is truncated or damaged. Mend or"),
        (put(np.nan), "case_0_0000.nii.gz: NaN or infinity in 1 voxel. Replace them by a value that means nothing"),
        (put(-np.inf), "case_0_0000.nii.gz: NaN or infinity in 1 voxel. Replace them by a value that means nothing"),
        (without_voxels, "case_0_0000.nii.gz: it can not be read by SimpleITKIO: it has no voxels. Mend or replace"),
        (with_fractions, "case_0.nii.gz: the label holds values that are no integers (0.5). Interpolate labels with"),
        (shear, "case_0_0000.nii.gz: its axes are not at right angles (direction "),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.__name__,
)
def test_bad_data_of_a_raw_folder(tool: Tool, spoil: Any, message: str) -> None:
    raw = make_raw(tool)
    spoil(raw)
    found = tool(8, **classic(tool), raise_errors=False)
    assert found["status"] == "error"
    assert message in found["message"].replace(f"{raw.parents[1]}{os.sep}", "")
    made = [path for path in (raw.parents[1] / "preprocessed").rglob("*") if path.is_file()]
    assert [path for path in made if path.name in ("dataset_fingerprint.json", "nnUNetPlans.json")] == []


def test_a_disk_that_fills_while_it_preprocesses(tool: Tool) -> None:
    raw = make_raw(tool)
    large, label = make_case(4, (24, 24, 24))
    save_image(raw / "imagesTr" / "case_4_0000.nii.gz", large)
    save_image(raw / "labelsTr" / "case_4.nii.gz", label)
    with largest_file(30_000):
        found = tool(8, **classic(tool), raise_errors=False)
    folder = raw.parents[1] / "preprocessed" / raw.name
    unfinished = folder / "nnUNetPlans_3d_fullres.unfinished"
    assert found["message"].startswith(f"Could not write {unfinished}")
    assert found["message"].endswith("What was there before is unchanged. Free some space and run it again.")
    assert not [path.name for path in unfinished.glob("*case_4*")]
    assert tool(8, **classic(tool))["status"] == "completed"
    assert not unfinished.exists()


def test_a_cache_of_another_version(tool: Tool) -> None:
    raw = make_raw(tool)
    tool(8, **classic(tool))
    record = raw.parents[1] / "preprocessed" / raw.name / "nnplug_data.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "nnunetv2": "2.1"}))
    message = tool(8, **classic(tool), raise_errors=False)["message"]
    assert re.search(
        r"was made by nnplug \S+ with nnU-Net 2\.1; this is nnplug .* Give --clean to make it anew", message
    )
    assert tool(8, **classic(tool), clean=True)["status"] == "completed"


# --- callbacks and threads -------------------------------------------------------------------------------------------


def test_a_callback_that_raises_is_called_no_more(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    stages: list[str] = []

    def progress(event: TrainingEvent) -> None:
        stages.append(event.stage)
        if event.stage == "plan":
            raise OSError("the display is gone")

    with caplog.at_level(logging.WARNING, "nnplug"):
        result = tool(progress=progress)
    assert (result["status"], result["progress_error"]) == ("completed", "OSError: the display is gone")
    assert stages == ["fingerprint", "plan"]
    (record,) = [record for record in caplog.records if "callback" in record.message]
    assert record.message == (
        "The progress callback failed (OSError: the display is gone). The work goes on without it."
    )


def test_without_a_callback_the_messages_are_printed(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    tool(progress=None, use_compressed=True)
    printed = capsys.readouterr().out.splitlines()
    assert "use_compressed has had no effect since nnU-Net stores its data with blosc2." in printed
    assert "Preprocessing 3d_fullres" in printed
    assert not [line for line in printed if line.startswith("Epoch 1 of 1")]


def test_in_a_thread_of_a_service_one_at_a_time(tool: Tool) -> None:
    results: list[dict[str, Any]] = []
    second: list[dict[str, Any]] = []

    def progress(event: TrainingEvent) -> None:
        if event.stage == "epoch":
            second.append(nnplug.nnunet_training(8, raise_errors=False))

    thread = threading.Thread(target=lambda: results.append(tool(progress=progress)))
    thread.start()
    thread.join()
    assert results[0]["status"] == "completed"
    assert second[0]["message"] == (
        "Another nnunet_training is at work in this process, and nnU-Net's folders are variables of the process. Wait "
        "until it ends, or start a process for each."
    )
    assert tool(no_preprocessing=True)["folds"] == results[0]["folds"], "a call that failed leaves the way free"
