"""Folders of predictions: agreement with nnU-Net, the files that are written, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnplug
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnplug import NnplugError
from nnplug.cli import main
from support.datasets import _threads_for_processes
from support.models import make_dataset_json, make_plans, write_descriptions

SHAPE = (6, 12, 14)
PLAIN = {"background": 0, "ball": 1, "box": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


def save(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.5), origin: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin([origin] * 3)
    sitk.WriteImage(image, str(path))


def blocks(rng: np.random.Generator, top: int) -> np.ndarray:
    """Labels 1 and 2 in blocks somewhere, then values up to ``top`` in some voxels."""
    voxels = np.zeros(SHAPE, np.uint8)
    start = rng.integers(1, 4, 3)
    voxels[tuple(slice(first, first + 5) for first in start)] = 1
    voxels[1:4, 7:10, 8:12] = 2
    noise = rng.random(SHAPE) < 0.05
    voxels[noise] = rng.integers(0, top + 1, noise.sum())
    return voxels


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Folders of truth and predictions; the last case has no class in either."""

    def make(labels: dict[str, Any] = PLAIN, num_cases: int = 3) -> tuple[Path, Path]:
        rng = np.random.default_rng(3)
        truth, predictions = tmp_path / "truth", tmp_path / "predictions"
        for index in range(num_cases):
            empty = index == num_cases - 1
            for folder, top in ((truth, 3 if "ignore" in labels else 2), (predictions, 2)):
                save(folder / f"c{index}.nii.gz", np.zeros(SHAPE, np.uint8) if empty else blocks(rng, top))
        dataset_json = {**make_dataset_json(), "labels": labels}
        if labels is REGIONS:
            dataset_json["regions_class_order"] = [1, 2]
        write_descriptions(predictions, make_plans(), dataset_json)
        return truth, predictions

    return make


def without_nan(content: Any) -> Any:
    return json.loads(json.dumps(content).replace("NaN", "null"))


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["labels", "regions and ignore label"])
def test_agrees_with_nnunet(folders: Callable[..., tuple[Path, Path]], labels: dict[str, Any]) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2, load_summary_json

    truth, predictions = folders(labels)
    ours = nnplug.evaluate(truth, predictions, output=predictions / "ours.json")

    stock = predictions / "summary.json"
    files = [str(predictions / name) for name in ("dataset.json", "plans.json")]
    with _threads_for_processes():
        compute_metrics_on_folder2(str(truth), str(predictions), *files, str(stock), 1)

    expected = json.loads(stock.read_text())
    names = set(expected["foreground_mean"])
    assert {"Dice", "IoU"} < names

    def stocks(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in names}

    assert without_nan(stocks(ours["foreground_mean"])) == without_nan(expected["foreground_mean"])
    assert without_nan({k: stocks(v) for k, v in ours["mean"].items()}) == without_nan(expected["mean"])
    for one, other in zip(ours["metric_per_case"], expected["metric_per_case"], strict=True):
        assert one["prediction_file"] == other["prediction_file"]
        assert without_nan({k: stocks(v) for k, v in one["metrics"].items()}) == without_nan(other["metrics"])
    # nnU-Net reads ours as its own
    read = load_summary_json(str(predictions / "ours.json"))
    assert read["mean"].keys() == load_summary_json(str(stock))["mean"].keys()
    assert 0 < read["foreground_mean"]["surface_dice"] < 1


def test_the_spacing_is_that_of_the_case(folders: Callable[..., tuple[Path, Path]]) -> None:
    truth, predictions = folders(num_cases=1)
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:4, 2:6, 2:6] = 1
    save(truth / "c0.nii.gz", voxels)
    save(predictions / "c0.nii.gz", np.roll(voxels, 1, 0))
    result = nnplug.evaluate(truth, predictions)
    assert result["mean"]["1"]["HD95_mm"] == 2.5  # one voxel along the axis of slices
    wide = nnplug.evaluate(truth, predictions, tolerance_mm=2.5)
    assert result["mean"]["1"]["surface_dice"] < 1 == wide["mean"]["1"]["surface_dice"]
    assert (result["settings"]["tolerance_mm"], wide["settings"]["tolerance_mm"]) == (1.0, 2.5)
    assert (result["settings"]["tolerance_voxels"], wide["settings"]["tolerance_voxels"]) == (0.4, 1.0)


def test_worker_processes_give_the_same(folders: Callable[..., tuple[Path, Path]]) -> None:
    truth, predictions = folders()
    results = [nnplug.evaluate(truth, predictions, num_processes=number) for number in (0, 2)]
    assert without_nan(results[0]) == without_nan(results[1])


def test_command_writes_what_nnunet_does_and_a_table(
    folders: Callable[..., tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = folders()
    shutil.copy(truth / "c1.nii.gz", truth / "c3.nii.gz")
    files = ["-djfile", str(predictions / "dataset.json"), "-pfile", str(predictions / "plans.json"), "-np", "0"]
    command = ["evaluate", str(truth), str(predictions), *files]
    assert main([*command, "--chill", "--instances", "--csv", str(tmp_path / "table.csv")]) == 0

    summary = json.loads((predictions / "summary.json").read_text())
    assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == [
        f"c{index}.nii.gz" for index in range(3)
    ]
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["case"], row["class"]) for row in rows] == [
        *((f"c{index}", name) for index in range(3) for name in ("ball", "box")),
        *(("mean", name) for name in ("ball", "box", "foreground")),
    ]
    assert float(rows[0]["Dice"]) == summary["metric_per_case"][0]["metrics"]["1"]["Dice"]
    assert rows[4]["Dice"] == ""  # neither image of the last case has it
    assert float(rows[-1]["PQ"]) == summary["foreground_mean"]["PQ"]
    printed = capsys.readouterr().out
    header = ["class", "Dice", "IoU", "surface", "dice", "HD95", "mm", "PQ", "instance", "F1"]
    assert printed.split()[:14] == [*header, "instances", "ref", "instances", "pred"]
    assert f"{summary['mean']['1']['surface_dice']:.4f}" in printed
    assert "Means over 3 cases" in printed
    assert f"Written: {predictions / 'summary.json'}" in printed

    assert main([*command, "--chill", "--no-surface", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metric_per_case"][2]["metrics"]["1"]["Dice"] is None
    assert "HD95_mm" not in result["mean"]["1"]
    assert "PQ" not in result["mean"]["1"]


def test_cases_without_distance_are_counted(
    folders: Callable[..., tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = folders()
    save(predictions / "c0.nii.gz", np.zeros(SHAPE, np.uint8))
    assert main(["evaluate", str(truth), str(predictions), "-np", "0"]) == 0
    assert "HD95 of box leaves out 1 case in which only truth or prediction has it." in capsys.readouterr().out
    summary = json.loads((predictions / "summary.json").read_text())
    values = [case["metrics"]["2"]["HD95_mm"] for case in summary["metric_per_case"]]
    assert [math.isnan(value) for value in values] == [True, False, True]
    assert summary["mean"]["2"]["HD95_mm"] == values[1]


def test_every_problem_is_listed(folders: Callable[..., tuple[Path, Path]]) -> None:
    truth, predictions = folders()
    shutil.copy(predictions / "c0.nii.gz", predictions / "extra.nii.gz")
    (predictions / "c1.nii.gz").unlink()
    with pytest.raises(NnplugError) as error:
        nnplug.evaluate(truth, predictions)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{predictions}: 2 problems:"
    assert lines[1:] == [
        f"  case extra, {predictions / 'extra.nii.gz'}: there is no truth for this prediction in {truth}. "
        "Remove it, or add its truth.",
        "  case c1: it has no prediction. Predict it, or leave out what is missing with --chill.",
    ]
    assert not (predictions / "summary.json").exists()


def test_geometry_is_compared_and_all_problems_are_listed(folders: Callable[..., tuple[Path, Path]]) -> None:
    truth, predictions = folders(num_cases=5)
    voxels = np.zeros(SHAPE, np.uint8)
    save(predictions / "c0.nii.gz", voxels[:-1])
    save(predictions / "c1.nii.gz", voxels, spacing=(1.0, 1.0, 2.0))
    save(predictions / "c2.nii.gz", voxels, origin=3.0)
    turned = sitk.ReadImage(str(predictions / "c4.nii.gz"))
    turned.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(turned, str(predictions / "c4.nii.gz"))
    damaged = (truth / "c3.nii.gz").read_bytes()
    (truth / "c3.nii.gz").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(NnplugError) as error:
        nnplug.evaluate(truth, predictions)
    advice = "Compare images of one grid: resample the prediction to the truth, or predict again."
    lines = str(error.value).splitlines()
    assert lines[:4] == [
        f"{predictions}: 5 problems:",
        f"  case c0, {predictions / 'c0.nii.gz'}: it has 14 x 12 x 5 voxels, the truth has 14 x 12 x 6. {advice}",
        f"  case c1, {predictions / 'c1.nii.gz'}: its spacing is 1 x 1 x 2, the truth's 1 x 1 x 2.5. {advice}",
        f"  case c2, {predictions / 'c2.nii.gz'}: its origin is 3 x 3 x 3, the truth's 0 x 0 x 0. {advice}",
    ]
    assert lines[4].startswith(f"  case c3, {truth / 'c3.nii.gz'}: it can not be read: ")
    assert lines[5].startswith(f"  case c4, {predictions / 'c4.nii.gz'}: its direction is -1 x ")


def test_values_that_are_no_labels(folders: Callable[..., tuple[Path, Path]]) -> None:
    truth, predictions = folders(REGIONS, num_cases=4)
    other = blocks(np.random.default_rng(1), 2)
    save(predictions / "c0.nii.gz", other * 127)
    save(truth / "c1.nii.gz", other * 2)
    save(predictions / "c1.nii.gz", np.where(other == 2, 0.5, other).astype(np.float32))
    # a prediction may hold the ignore label
    save(predictions / "c2.nii.gz", other + (other == 2))
    with pytest.raises(NnplugError) as error:
        nnplug.evaluate(truth, predictions)
    advice = "Mend the files, or leave out the case."
    assert str(error.value).splitlines() == [
        f"{predictions}: 2 problems:",
        f"  case c0: the prediction holds 127, 254; labels has 0, 1, 2, 3. {advice}",
        "  case c1: the truth holds 4; labels has 0, 1, 2, 3, and the prediction holds values that are no integers "
        f"(0.5). {advice}",
    ]


def test_png_of_another_program_with_255(tmp_path: Path) -> None:
    mask = np.zeros((1, 8, 9), np.uint8)
    mask[:, 2:5, 3:6] = 1
    for folder, value in (("truth", 1), ("predictions", 255)):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(mask[0] * value), str(tmp_path / folder / "a.png"))
    description = {"labels": {"background": 0, "fg": 1}, "file_ending": ".png"}
    (tmp_path / "predictions" / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(NnplugError, match=r": case a: the prediction holds 255; labels has 0, 1\. Mend the files, or"):
        nnplug.evaluate(tmp_path / "truth", tmp_path / "predictions")


def test_results_have_a_folder_before_anything_is_measured(
    folders: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, predictions = folders()
    monkeypatch.setattr("nnplug.evaluation.evaluating.find_pairs", None)
    nowhere = predictions / "nowhere"
    for wish in ({"output": nowhere / "r.json"}, {"csv": nowhere / "t.csv"}):
        with pytest.raises(
            NnplugError, match=r"\.(json|csv) can not be written: there is no folder .*nowhere\. Make it"
        ):
            nnplug.evaluate(truth, predictions, **wish)
    with pytest.raises(NnplugError, match=r"predictions is a folder\. Name the file to write, for example .*result\.$"):
        nnplug.evaluate(truth, predictions, output=predictions)


def test_a_hidden_file_is_no_case(folders: Callable[..., tuple[Path, Path]]) -> None:
    truth, predictions = folders(num_cases=1)
    for folder in (truth, predictions):
        (folder / ".c9.nii.gz").write_bytes(b"being written")
    assert len(nnplug.evaluate(truth, predictions)["metric_per_case"]) == 1


def test_the_spacing_beside_a_tiff(tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:4, 2:6, 2:6] = 1
    for folder, spacing in (("truth", 2.5), ("predictions", 2.0)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "c.tif", voxels)
        (tmp_path / folder / "c.json").write_text(json.dumps({"spacing": [spacing, 1, 1]}))
    plans = {**make_plans(), "image_reader_writer": "Tiff3DIO"}
    write_descriptions(tmp_path / "predictions", plans, make_dataset_json(ending=".tif"))
    with pytest.raises(
        NnplugError, match=r"case c: its spacing is 2 x 1 x 1, the truth's 2\.5 x 1 x 1 \(in the order of"
    ):
        nnplug.evaluate(tmp_path / "truth", tmp_path / "predictions")


def test_wrong_folders_and_files(folders: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    truth, predictions = folders()
    nowhere = tmp_path / "nowhere"
    with pytest.raises(NnplugError, match=r"There is no folder .*nowhere, which should hold predictions\."):
        nnplug.evaluate(truth, nowhere)
    with pytest.raises(NnplugError, match=r"The plans file .*nowhere is missing"):
        nnplug.evaluate(truth, predictions, plans=nowhere)
    (predictions / "dataset.json").rename(nowhere)
    with pytest.raises(NnplugError, match=r"^There is no dataset.json in .*predictions\. Name it with -djfile FILE\.$"):
        nnplug.evaluate(truth, predictions)
    nowhere.rename(predictions / "dataset.json")
    incomplete, other = tmp_path / "dataset.json", tmp_path / "other.json"
    incomplete.write_text("{}")
    other.write_text(json.dumps({**make_dataset_json(), "file_ending": ".nrrd"}))
    with pytest.raises(NnplugError, match=r"dataset\.json is not complete: it has no labels and no file_ending"):
        nnplug.evaluate(truth, predictions, dataset_json=incomplete)
    with pytest.raises(NnplugError, match=r"predictions has no '\.nrrd' file, the file_ending of dataset\.json\."):
        nnplug.evaluate(truth, predictions, dataset_json=other)
    with pytest.raises(NnplugError, match=r"The tolerance is -1: expected a distance in mm, 0 or more\."):
        nnplug.evaluate(truth, predictions, tolerance_mm=-1)
    with pytest.raises(NnplugError, match=r"truth is no fold with a validation folder\. Give the folder of a trained"):
        nnplug.evaluate(truth)


def test_segmentations_of_another_program_have_no_plans(
    folders: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    truth, predictions = folders()
    with_plans = nnplug.evaluate(truth, predictions)
    (predictions / "plans.json").unlink()
    assert without_nan(nnplug.evaluate(truth, predictions)) == without_nan(with_plans)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**make_dataset_json(), "file_ending": ".xyz"}))
    with pytest.raises(NnplugError, match=r"other\.json: nnU-Net reads no '\.xyz' files\.$"):
        nnplug.evaluate(truth, predictions, dataset_json=other)


def test_a_fold_of_a_model(
    folders: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, predictions = folders()
    model = write_descriptions(tmp_path / "Dataset902_Made" / "a__nnUNetPlans__2d", make_plans(), make_dataset_json())
    shutil.copytree(predictions, model / "fold_0" / "validation")
    (model / "fold_0" / "validation" / "c1.nii.gz").unlink()
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(NnplugError, match=r"looked in nowhere, as neither variable is set\. Set one of them, name an"):
        nnplug.evaluate(model / "fold_0")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    shutil.copytree(truth, tmp_path / "Dataset902_Made" / "labelsTr")
    result = nnplug.evaluate(model / "fold_0")
    assert [Path(case["reference_file"]).name for case in result["metric_per_case"]] == ["c0.nii.gz", "c2.nii.gz"]
    # an inventory's cache is both folders
    (tmp_path / "cache").mkdir()
    shutil.move(tmp_path / "Dataset902_Made" / "labelsTr", tmp_path / "cache" / "Dataset902_Made" / "gt_segmentations")
    assert main(["evaluate", str(model / "fold_0"), "--cache-dir", str(tmp_path / "cache"), "-np", "0"]) == 0
    assert not (model / "fold_0" / "validation" / "summary.json").exists()

    (model / "fold_0" / "nnplug_fold.json").write_text(json.dumps({"val": ["c0", "c1", "c2"]}))
    with pytest.raises(NnplugError, match=r"case c1: it has no prediction"):
        nnplug.evaluate(model / "fold_0")
