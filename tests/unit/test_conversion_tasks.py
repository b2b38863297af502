"""Task folders of the Decathlon: voxels and headers stay, mistakes are named, a run goes on where it stopped."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnplug.cli import main
from nnplug.conversion.decathlon import TaskFolder, convert_task
from nnplug.errors import NnplugError
from nnplug.processes.case_pool import Pool
from support.inventories import make_case

IN_THIS_PROCESS = Pool(0)
AFFINE = np.array([[-0.5, 0, 0, 11.25], [0, 0.75, 0, -3.5], [0, 0, 2, 7], [0, 0, 0, 1]])


class MadeTask:
    """``Task07_Made``: cases ``a`` and ``b`` to train with, ``t`` to test; ``channels`` in a fourth axis."""

    def __init__(self, folder: Path, channels: int = 1) -> None:
        self.folder = folder / "Task07_Made"
        self.raw = folder / "raw"
        self.raw.mkdir()
        for index, (case, part) in enumerate((("a", "Tr"), ("b", "Tr"), ("t", "Ts"))):
            image, label = make_case(index)
            stack = np.stack([(image + 50 * channel).astype(np.int16) for channel in range(channels)], -1)
            self.save(f"images{part}/{case}.nii.gz", stack if channels > 1 else stack[..., 0])
            if part == "Tr":
                self.save(f"labels{part}/{case}.nii.gz", label)
        self.content: dict[str, Any] = {
            "name": "Made",
            "modality": {str(index): f"MR{index}" for index in range(channels)},
            "labels": {"0": "background", "1": "box"},
            "numTraining": 2,
            "numTest": 1,
            "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in "ab"],
            "test": ["./imagesTs/t.nii.gz"],
        }
        self.write()

    def write(self) -> None:
        (self.folder / "dataset.json").write_text(json.dumps(self.content))

    def save(self, file: str, voxels: np.ndarray, scaling: tuple[float, float] | None = None) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(voxels, AFFINE)
        if scaling:
            image.header.set_slope_inter(*scaling)
        image.to_filename(path)

    def convert(self, **options: Any) -> tuple[Path, list[str]]:
        return convert_task(TaskFolder(self.folder, self.raw), IN_THIS_PROCESS, **options)[:2]

    def refusal(self, **options: Any) -> str:
        with pytest.raises(NnplugError) as caught:
            self.convert(**options)
        return str(caught.value).replace(f"{self.folder}{os.sep}", "").replace(f"{self.raw}{os.sep}", "")


@pytest.fixture
def task(tmp_path: Path) -> MadeTask:
    return MadeTask(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_volumes_are_copied(task: MadeTask) -> None:
    target, converted = task.convert()
    assert (target, converted) == (task.raw / "Dataset007_Made", ["a", "b", "t"])
    files = contents(target)
    description = json.loads(files.pop("dataset.json"))
    assert files == {
        f"{part}/{case}{number}.nii.gz": (task.folder / part / f"{case}.nii.gz").read_bytes()
        for part, case, number in (
            *(("imagesTr", "a", "_0000"), ("imagesTr", "b", "_0000"), ("imagesTs", "t", "_0000")),
            *(("labelsTr", "a", ""), ("labelsTr", "b", "")),
        )
    }
    assert description == {
        "name": "Made",
        "labels": {"background": 0, "box": 1},
        "numTraining": 2,
        "channel_names": {"0": "MR0"},
        "file_ending": ".nii.gz",
    }


def test_channels_of_4d_images_are_split(tmp_path: Path) -> None:
    task = MadeTask(tmp_path, channels=3)
    stack = np.arange(6 * 8 * 10 * 3, dtype=np.int16).reshape(6, 8, 10, 3)
    task.save("imagesTr/a.nii.gz", stack, scaling=(0.25, -3.0))
    target, _ = task.convert()
    assert len(list((target / "imagesTr").iterdir())) == 6
    whole = sitk.ReadImage(str(task.folder / "imagesTr/a.nii.gz"))
    for channel in range(3):
        path = target / f"imagesTr/a_{channel:04d}.nii.gz"
        loaded = nibabel.load(path)
        assert loaded.get_data_dtype() == np.int16
        assert np.array_equal(loaded.dataobj.get_unscaled(), stack[..., channel])
        assert np.array_equal(loaded.get_fdata(), stack[..., channel] * 0.25 - 3)
        assert np.array_equal(loaded.affine, AFFINE)
        image = sitk.ReadImage(str(path))
        assert image.GetSpacing() == whole.GetSpacing()[:3]
        assert image.GetOrigin() == whole.GetOrigin()[:3]


def test_a_dry_run_writes_nothing(task: MadeTask) -> None:
    assert task.convert(dry_run=True)[1] == ["a", "b", "t"]
    assert list(task.raw.iterdir()) == []


def test_a_second_run_goes_on(task: MadeTask) -> None:
    target, _ = task.convert()
    before = contents(target)
    assert task.convert() == (target, [])
    (target / "labelsTr/b.nii.gz").unlink()
    assert task.convert() == (target, ["b"])
    assert contents(target) == before


def test_a_run_that_was_killed_leaves_no_data_set(task: MadeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnplug.conversion import running

    replace = os.replace

    def killed_at_b(source: Path, path: Path) -> None:
        if path.name == "b.nii.gz":
            raise KeyboardInterrupt
        replace(source, path)

    monkeypatch.setattr(running.os, "replace", killed_at_b)
    with pytest.raises(KeyboardInterrupt):
        task.convert()
    target = task.raw / "Dataset007_Made"
    assert not (target / "dataset.json").exists()
    assert [path for path in target.rglob("*") if path.is_file() and path.name.startswith("b.")] == []
    monkeypatch.undo()
    assert task.convert() == (target, ["b", "t"])
    assert len(contents(target)) == 6


def test_a_case_that_was_begun_is_converted_again(task: MadeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnplug.conversion import running

    replace = os.replace

    def killed_after_the_label_of_b(source: Path, path: Path) -> None:
        replace(source, path)
        if path.name == "b.nii.gz":
            raise KeyboardInterrupt

    monkeypatch.setattr(running.os, "replace", killed_after_the_label_of_b)
    with pytest.raises(KeyboardInterrupt):
        task.convert()
    monkeypatch.undo()
    target = task.raw / "Dataset007_Made"
    log = target / ".nnplug_conversion.jsonl"
    assert (target / "labelsTr/b.nii.gz").is_file()
    of_b = [line for line in log.read_text().splitlines() if '"b"' in line]
    log.write_text("".join(f"{line}\n" for line in log.read_text().splitlines() if line not in of_b))
    assert "case b: imagesTr/b_0000.nii.gz and labelsTr/b.nii.gz are there already and not from" in task.refusal()
    log.write_text(log.read_text() + "".join(f"{line}\n" for line in of_b))
    assert task.convert() == (target, ["b"])


def test_a_run_that_was_killed_before_its_last_line_goes_on(task: MadeTask) -> None:
    """``dataset.json`` is there, and the log does not tell of it."""
    target, _ = task.convert()
    log = target / ".nnplug_conversion.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert "whole" in json.loads(lines[-1])
    log.write_text("".join(lines[:-1]))
    assert task.convert() == (target, [])


def test_the_number_of_cases_is_no_setting(task: MadeTask) -> None:
    target, _ = task.convert()
    task.save("imagesTr/c.nii.gz", make_case(3)[0].astype(np.int16))
    task.save("labelsTr/c.nii.gz", make_case(3)[1])
    assert task.convert() == (target, ["c"])
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 3


def test_changed_sources_and_settings(task: MadeTask) -> None:
    target, _ = task.convert()
    task.save("labelsTr/a.nii.gz", np.zeros((6, 8, 10), np.uint8))
    assert task.refusal() == (
        "Dataset007_Made: the sources of 1 case have changed since (a). Give --overwrite to convert them again."
    )
    assert task.convert(overwrite=True)[1] == ["a"]
    assert (target / "labelsTr/a.nii.gz").read_bytes() == (task.folder / "labelsTr/a.nii.gz").read_bytes()
    task.content["labels"]["1"] = "cube"
    task.write()
    assert task.refusal() == (
        "Dataset007_Made was made with other settings (dataset). Give --overwrite to replace its files, or another "
        "target."
    )
    task.convert(overwrite=True)
    assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0, "cube": 1}


def test_a_conversion_that_fails_again_is_no_data_set_any_more(task: MadeTask) -> None:
    target, _ = task.convert()
    task.save("labelsTr/a.nii.gz", np.full((6, 8, 10), 3, np.uint8))
    assert "case a: a.nii.gz: the label holds 3; labels has 0, 1." in task.refusal(overwrite=True)
    assert not (target / "dataset.json").exists()


def test_what_is_there_is_not_overwritten(task: MadeTask) -> None:
    target = task.raw / "Dataset007_Made"
    (target / "imagesTr").mkdir(parents=True)
    (target / "imagesTr/a_0000.nii.gz").write_text("mine")
    assert task.refusal() == (
        "Dataset007_Made is there already (imagesTr) and not from this command. Give --overwrite to replace its files, "
        "or another target."
    )
    (target / "imagesTr/other_0000.nii.gz").write_text("mine")
    assert task.refusal(overwrite=True) == (
        "Dataset007_Made holds files of other cases (other). Remove them, or choose another target."
    )
    (target / "imagesTr/other_0000.nii.gz").unlink()
    (target / "imagesTr/a_0001.nii.gz").write_text("a channel of an earlier data set")
    task.convert(overwrite=True)
    assert "imagesTr/a_0001.nii.gz" not in contents(target)
    assert (target / "imagesTr/a_0000.nii.gz").read_bytes() == (task.folder / "imagesTr/a.nii.gz").read_bytes()


def test_all_bad_cases_are_named_and_the_others_converted(task: MadeTask) -> None:
    task.save("labelsTr/a.nii.gz", np.full((6, 8, 10), 3, np.uint8))
    whole = (task.folder / "imagesTs/t.nii.gz").read_bytes()
    (task.folder / "imagesTs/t.nii.gz").write_bytes(gzip.compress(gzip.decompress(whole)[:-100]))
    assert task.refusal() == (
        "Dataset007_Made: 2 problems:\n"
        "  case a: a.nii.gz: the label holds 3; labels has 0, 1. Mend the case, or leave it out.\n"
        "  case t: t.nii.gz: it can not be read by SimpleITKIO: the file is truncated. Mend the case, or leave it out. "
        "1 other case converted; run it again when these are mended."
    )
    target = task.raw / "Dataset007_Made"
    assert sorted(contents(target)) == ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"]
    assert "run it again" not in task.refusal(dry_run=True)
    task.save("labelsTr/a.nii.gz", np.zeros((6, 8, 10), np.uint8))
    (task.folder / "imagesTs/t.nii.gz").write_bytes(whole)
    assert task.convert() == (target, ["a", "t"])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda task: (task.folder / "labelsTr/b.nii.gz").unlink(),
            "2 problems:\n  case b, labelsTr/b.nii.gz: there is no label. Add it, or remove the images.\n"
            "  labelsTr/b.nii.gz: dataset.json lists it, and it is not there. Mend dataset.json, or add the file.",
        ),
        (
            lambda task: task.content.update(labels={"0": "background", "2": "box"}),
            "dataset.json: the labels are 0, 2: 1 is missing. nnU-Net needs consecutive integers: renumber them, also "
            "in the images, to 0 to 1.",
        ),
        (
            lambda task: task.content.update(modality={"0": "T1", "1": "T2"}),
            "case a: a: it has 1 channels (a.nii.gz holds 1), and channel_names has 2 (T1, T2). Mend the case",
        ),
        (
            lambda task: task.save("labelsTr/a.nii.gz", np.zeros((6, 8, 9), np.uint8)),
            "case a: a.nii.gz: it has 6x8x9 voxels, the first channel has 6x8x10. Mend the case",
        ),
        (
            lambda task: task.save("imagesTr/a.nii.gz", np.full((6, 8, 10), np.nan, np.float32)),
            "case a: a.nii.gz: NaN or infinity in 480 voxels. Mend the case",
        ),
        (
            lambda task: task.content.pop("modality"),
            "dataset.json has no modality or no labels: this is no task folder.",
        ),
        (
            lambda task: (task.raw / "Dataset007_Other").mkdir(),
            "The id 7 is taken by Dataset007_Other. Choose another id for Dataset007_Made.",
        ),
    ],
)
def test_mistakes(task: MadeTask, mistake: Any, message: str) -> None:
    mistake(task)
    task.write()
    assert message in task.refusal()
    assert not (task.raw / "Dataset007_Made/dataset.json").exists()


def test_names_and_ids(task: MadeTask, capsys: pytest.CaptureFixture[str]) -> None:
    other = task.folder.rename(task.folder.parent / "made")
    arguments = ["convert", "msd", "-i", str(other), "--raw-dir", str(task.raw), "-p", "0"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"nnplug: error: The folder {other} is not named TaskXX_NAME. Give --dataset-id N and --dataset-name NAME.\n"
    )
    assert main([*arguments, "-output_task_id", "12", "--dataset-name", "made_up"]) == 0
    assert capsys.readouterr().out == f"{task.raw}/Dataset012_made_up: 3 cases converted.\n"
    assert main([*arguments, "-output_task_id", "12", "--dataset-name", "made_up"]) == 0
    assert capsys.readouterr().out == f"{task.raw}/Dataset012_made_up: 3 cases, all of them converted before.\n"


def test_a_target_around_its_source(task: MadeTask) -> None:
    inside = task.raw / "Dataset007_Made" / "Task07_Made"
    inside.parent.mkdir()
    task.folder.rename(inside)
    task.folder = inside
    assert "lies in" in task.refusal()


def test_tasks_of_nnunet_v1(tmp_path: Path) -> None:
    task = MadeTask(tmp_path)
    task.content["modality"] = {"0": "T1", "1": "T2"}
    task.write()
    for path in [*(task.folder / "imagesTr").iterdir(), *(task.folder / "imagesTs").iterdir()]:
        whole = path.read_bytes()
        path.unlink()
        for channel in range(2):
            path.with_name(path.name.replace(".nii.gz", f"_{channel:04d}.nii.gz")).write_bytes(whole)
    convert = ["convert", "v1", "-i", str(task.folder), "--raw-dir", str(task.raw), "-np", "0"]
    assert main(convert) == 0
    target = task.raw / "Dataset007_Made"
    assert json.loads((target / "dataset.json").read_text())["channel_names"] == {"0": "T1", "1": "T2"}
    for part in ("imagesTr", "imagesTs", "labelsTr"):
        assert sorted(path.name for path in (target / part).iterdir()) == sorted(
            path.name for path in (task.folder / part).iterdir()
        )


class FlatTask(MadeTask):
    """A task of nnU-Net v1 of 2D images: volumes of one slice, whose spacing across is finer than within."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for path in (self.folder / "imagesTr").iterdir():
            path.unlink()
        (self.folder / "imagesTs" / "t.nii.gz").unlink()
        for index, (case, part) in enumerate((("a", "Tr"), ("b", "Tr"), ("t", "Ts"))):
            image, label = make_case(index, (1, 40, 48))
            label[0, 10:20, 10:30] = 1
            self.keep(f"images{part}/{case}_0000.nii.gz", image.astype(np.int16))
            if part == "Tr":
                self.keep(f"labelsTr/{case}.nii.gz", label)

    def keep(self, file: str, voxels: np.ndarray) -> None:
        """D H W, turned in its plane."""
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((0.5, 0.75, 0.01))
        image.SetOrigin((3.0, -4.5, 8.0))
        image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(self.folder / file))

    def convert_v1(self, **options: Any) -> Path:
        return convert_task(TaskFolder(self.folder, self.raw, numbered=True), IN_THIS_PROCESS, **options)[0]


def test_2d_data_of_nnunet_v1_becomes_2d(tmp_path: Path) -> None:
    task = FlatTask(tmp_path)
    target = task.convert_v1()
    files = {"imagesTr/a_0000", "imagesTr/b_0000", "imagesTs/t_0000", "labelsTr/a", "labelsTr/b"}
    assert {name for name in contents(target) if name.endswith(".nii.gz")} == {f"{name}.nii.gz" for name in files}
    for name in files:
        flat, volume = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for folder in (target, task.folder))
        assert (flat.GetDimension(), flat.GetPixelID()) == (2, volume.GetPixelID())
        assert np.array_equal(sitk.GetArrayFromImage(flat), sitk.GetArrayFromImage(volume)[0])
        np.testing.assert_allclose(flat.GetSpacing(), (0.5, 0.75))
        np.testing.assert_allclose(flat.GetOrigin(), (3.0, -4.5))
        np.testing.assert_allclose(flat.GetDirection(), (0, -1, 1, 0), atol=1e-6)
    assert task.convert_v1() == target


def test_nnunet_plans_such_data_in_2d_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnplug.planning.data import find_raw_data
    from nnplug.planning.experiment import PlannerSettings, plan_experiment
    from nnplug.planning.fingerprint import extract_fingerprint
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    few = DatasetFingerprintExtractor.__init__

    def with_few(self: DatasetFingerprintExtractor, *args: object, **kwargs: object) -> None:
        few(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e4

    monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", with_few)
    task = FlatTask(tmp_path)
    task.convert_v1()
    monkeypatch.setenv("nnUNet_raw", str(task.raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    data = find_raw_data(7)
    assert extract_fingerprint(data, IN_THIS_PROCESS, verify=True)
    plans = json.loads((data.folder / f"{plan_experiment(data, PlannerSettings())}.json").read_text())
    assert list(plans["configurations"]) == ["2d"]
    assert plans["transpose_forward"] == [0, 1, 2]
    assert plans["configurations"]["2d"]["spacing"] == [0.75, 0.5]


def test_volumes_among_slices_stay_volumes(tmp_path: Path) -> None:
    task = FlatTask(tmp_path)
    image, label = make_case(1)
    task.keep("imagesTr/b_0000.nii.gz", image)
    task.keep("labelsTr/b.nii.gz", label)
    target = task.convert_v1()
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/b.nii.gz"):
        assert (target / name).read_bytes() == (task.folder / name).read_bytes()


def test_channels_of_nnunet_v1_that_are_missing(tmp_path: Path) -> None:
    task = MadeTask(tmp_path)
    for path in (task.folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0001.nii.gz")))
    (task.folder / "imagesTs/t.nii.gz").unlink()
    with pytest.raises(NnplugError) as caught:
        convert_task(TaskFolder(task.folder, task.raw, numbered=True), IN_THIS_PROCESS)
    assert "a_0001.nii.gz: channel 0000 was expected. Name images CASE_0000.nii.gz, CASE_0001" in str(caught.value)
