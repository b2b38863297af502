"""What ``train`` refuses before it spends anything, each with a line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nnplug
import pytest
import torch
from nnplug import NnplugError
from nnplug.cli import main
from nnplug.devices import choose_training_device
from nnplug.files.folder_use import FolderUse
from nnplug.planning.data import find_raw_data
from nnplug.planning.data_record import write_record
from nnplug.training.data_remarks import describe_data
from nnplug.training.fold_training import load_pretrained
from nnplug.training.training import choose_folds, count_gpus, train
from support.datasets import DatasetForTests


def refused(message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(NnplugError, match=message):
        train(*args, **{"device": "cpu", **kwargs})


@pytest.fixture
def own(tiny_dataset: DatasetForTests, tmp_path: Path) -> Any:
    """A data set that no other test run reads."""
    dataset = tiny_dataset.private_copy(tmp_path / "own")
    with dataset.activated():
        yield dataset


@pytest.fixture
def active(tiny_dataset: DatasetForTests) -> Any:
    with tiny_dataset.activated():
        yield tiny_dataset


def test_data_set(active: DatasetForTests) -> None:
    refused("No data set '77' in nnUNet_preprocessed=.*; it has Dataset901_Tiny", 77, "2d", 0)
    for near in ("Dataset901_Tyni", "tiny"):
        refused(rf"No data set '{near}' in .* \(did you mean Dataset901_Tiny\?\); it has", near, "2d", 0)


def test_configuration(active: DatasetForTests) -> None:
    refused("no configuration '3d_lowres'; they have .*3d_fullres", 901, "3d_lowres", 0)
    refused(r"no configuration '3dfulres' \(did you mean 3d_fullres\?\); they have ", 901, "3dfulres", 0)


def test_plans(active: DatasetForTests) -> None:
    refused(
        "No plans 'nnUNetResEncPlans' in .*; it has nnUNetPlans. Choose with -p.",
        901,
        "2d",
        0,
        plans="nnUNetResEncPlans",
    )


def test_fold(active: DatasetForTests) -> None:
    refused("Fold 5 does not exist: .*splits_final.json has 5 folds, 0 to 4.", 901, "2d", 5)
    refused("Fold 'x' is neither a number nor 'all'.", 901, "2d", "x")


def test_configuration_that_is_not_preprocessed(active: DatasetForTests, tmp_path: Path) -> None:
    dataset = active.private_copy(tmp_path / "private")
    folder = dataset.preprocessed_folder / "nnUNetPlans_2d"
    folder.rename(folder.with_name("elsewhere"))
    with dataset.activated():
        refused(
            "'2d' is not preprocessed: .* is missing or empty. Run: nnplug preprocess -d Dataset901_Tiny",
            901,
            "2d",
            0,
        )


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_results"])
def test_missing_variable(active: DatasetForTests, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    refused(f"{variable} is not set: it names the folder of", 901, "2d", 0)


def test_results_folder_that_can_not_be_made(
    active: DatasetForTests, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file" / "results"))
    refused("nnUNet_results=.* can not be created", 901, "2d", 0)


def test_results_folder_without_permission(
    active: DatasetForTests, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0 and sys.platform == "linux":
        folder = Path("/sys/kernel")  # where even root can write no file
    monkeypatch.setenv("nnUNet_results", str(folder))
    refused(r"is not writable \(.+ (denied|permitted)\)\. Mend its permissions", 901, "2d", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continue_training": True, "restart": True}, "--c, --restart and --val exclude each other"),
        ({"val_best": True, "disable_checkpointing": True}, "--val_best needs checkpoints"),
        ({"pretrained_weights": "x.pth", "validation_only": True}, "-pretrained_weights starts a training, and --val"),
        ({"pretrained_weights": "x.pth"}, "There is no file .*x.pth for -pretrained_weights"),
        ({"prev_stage_trainer": "dice_loss"}, "'2d' is no cascade: it takes no previous stage"),
        ({"validation_only": True}, "has no checkpoint_final.pth: --val needs a finished training"),
        ({"num_gpus": 0}, "-num_gpus must be at least 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_that_do_not_go_together(active: DatasetForTests, options: dict[str, Any], message: str) -> None:
    refused(message, 901, "2d", 0, **options)


def test_batch_dice_needs_even_shares(active: DatasetForTests) -> None:
    message = r"-num_gpus 2: with batch Dice .* the batch of 3 can not be shared so\. Use another number, or"
    refused(message, 901, "2d", 0, trainer="batch_size=3", num_gpus=2)


def test_device() -> None:
    with pytest.raises(NnplugError, match=r"Unknown device 'gpu'\. Choose cuda, cpu or mps"):
        choose_training_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(NnplugError, match=r"Device 'cuda' is not available here .* Choose -device cpu"):
            choose_training_device("cuda")
        assert choose_training_device(None) in ("cpu", "mps")


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    trainer = nnplug.resolve("dice_loss")
    counted = [count_gpus(device, size, trainer) for device, size in ((None, 8), ("cuda", 2), ("cpu", 8), ("cuda", 9))]
    assert counted == [4, 2, 1, 3]
    here = nnplug.TrainerConfig(name="here", loss_fn=lambda: torch.nn.MSELoss())
    assert count_gpus(None, 8, nnplug.resolve(here)) == 1


def test_folds_of_a_splits_file(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": [], "val": []}] * 3))
    lines: list[str] = []
    assert choose_folds("all", tmp_path, lines.append) == [0, 1, 2]
    assert "training the 3 folds" in lines[0]
    assert choose_folds([2, "0", 2], tmp_path) == [2, 0]
    assert choose_folds(["all"], tmp_path / "nowhere", lines.append) == [0, 1, 2, 3, 4]


def checkpoint(path: Path, network: torch.nn.Module) -> Path:
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 1,
        "init_args": {"configuration": "2d"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(content, path)
    return path


class Net(torch.nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = torch.nn.Linear(3, width)
        self.head = torch.nn.ModuleDict({"seg_layers": torch.nn.Linear(width, num_classes)})


def test_pretrained_weights_leave_the_segmentation_layers_alone(tmp_path: Path) -> None:
    old, new = Net(4, 2), Net(4, 5)
    head = new.head["seg_layers"].weight.clone()
    load_pretrained(new, checkpoint(tmp_path / "old.pth", old))
    assert torch.equal(new.body.weight, old.body.weight)
    assert torch.equal(new.head["seg_layers"].weight, head)


def test_pretrained_weights_of_another_network(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "old.pth", Net(4, 2))
    with pytest.raises(NnplugError, match=r"body.weight has shape \(4, 3\), the network needs \(6, 3\)"):
        load_pretrained(Net(6, 2), path)
    with pytest.raises(NnplugError, match=r"lack 0.weight \(2 of 2 layers missing\)"):
        load_pretrained(torch.nn.Sequential(torch.nn.Linear(3, 4)), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ddp", "-device", "cpu"], "--ddp trains on all visible GPUs, and -device cpu uses none. Several CPU"),
        (["--ddp"], "--ddp trains on all visible GPUs, and there is none here. Several CPU processes: -num_gpus N."),
        (["--ddp", "-num_gpus", "2"], "--ddp takes all visible GPUs and -num_gpus a number of them. Give one of them."),
    ],
)
def test_ddp_without_gpus(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["train", "901", "2d", "0", *options]) == 2
    assert message in capsys.readouterr().err


class WaitingError(Exception):
    """The training would wait now."""


def test_data_that_are_made_anew_are_waited_for(own: DatasetForTests) -> None:
    def tell(message: str) -> None:
        if "--clean" in message:
            raise WaitingError(message)

    folder = own.preprocessed_folder
    with FolderUse(folder) as other:
        other.make_anew()
        with pytest.raises(WaitingError) as waiting:
            train(901, "2d", 0, device="cpu", on_message=tell)
    assert str(waiting.value) == f"{folder} is being made anew (--clean). The training begins when it is done."


@pytest.mark.parametrize("command", ["fingerprint", "preprocess", "preprocess --shard 1/2", "plan_and_preprocess"])
def test_a_training_keeps_its_data(own: DatasetForTests, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = own.preprocessed_folder
    with FolderUse(folder) as training:
        training.read()
        assert main([*command.split(), "-d", "901", "--clean", "--no_pbar"]) == 2
    assert capsys.readouterr().err == (
        f"nnplug: error: A training reads {folder}, and this would take its data away. Wait until it ends.\n"
    )


def test_the_data_are_kept_while_a_fold_is_trained(own: DatasetForTests, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_fold(job: Any) -> dict[str, Any]:
        with FolderUse(own.preprocessed_folder) as other, pytest.raises(NnplugError, match="A training reads"):
            other.make_anew()
        return {"fold": job.fold}

    monkeypatch.setattr("nnplug.training.training.train_fold", train_fold)
    assert train(901, "2d", [0, 1], device="cpu", on_message=lambda _: None) == [{"fold": 0}, {"fold": 1}]


def remarks_on(dataset: DatasetForTests, **options: bool) -> list[str]:
    folder = dataset.preprocessed_folder
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    with dataset.activated():
        return describe_data(folder, plans, "3d_fullres", options.get("all_data", False))


def test_raw_data_that_have_changed(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    dataset = tiny_dataset.private_copy(tmp_path / "private")
    with dataset.activated():
        write_record(find_raw_data(901))
    assert remarks_on(dataset) == []
    os.utime(next((dataset.raw_folder / "imagesTr").iterdir()), (1, 1))
    [remark] = remarks_on(dataset)
    assert remark.startswith(f"{dataset.preprocessed_folder} was made from other data: 1 case with changed files (")
    assert remark.endswith("to make them anew: nnplug plan_and_preprocess -d Dataset901_Tiny --clean")
    shutil.rmtree(dataset.raw_folder / "imagesTr")
    assert remarks_on(dataset) == [], "raw data that were archived are not needed"


def test_cases_in_no_fold(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    dataset = tiny_dataset.private_copy(tmp_path / "private")
    path = dataset.preprocessed_folder / "splits_final.json"
    splits = json.loads(path.read_text())
    [gone] = splits[0]["val"]
    left = [{part: [name for name in fold[part] if name != gone] for part in fold} for fold in splits]
    path.write_text(json.dumps(left))
    assert remarks_on(dataset) == [
        f"1 preprocessed case in no fold of {path} and not held out ({gone}): not trained with. To make folds of all "
        "cases: nnplug splits make --overwrite"
    ]
    assert remarks_on(dataset, all_data=True) == []
    (dataset.preprocessed_folder / "splits_held_out.json").write_text(json.dumps([gone]))
    assert remarks_on(dataset) == []
