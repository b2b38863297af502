"""Predictions with small random networks, compared with nnU-Net's own predictor in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnplug.devices import choose_device
from nnplug.errors import NnplugError
from nnplug.prediction.predicting import choose_processes, predict
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from support.models import make_dataset_json, make_model_folder, make_plans, write_descriptions, write_image


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are so small that threads only wait for each other."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, case in enumerate("abc"):
        write_image(folder / f"{case}_0000.nii.gz", seed=index, spacing_mm=1.2)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(
        tmp_path_factory.mktemp("results") / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=(0, 1)
    )


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: voxels(path) for path in sorted(folder.glob("*.nii.gz"))}


def assert_same(ours: Path, theirs: Path) -> None:
    mine, others = segmentations(ours), segmentations(theirs)
    assert mine.keys() == others.keys() != set()
    for name, array in mine.items():
        assert len(np.unique(array)) > 1, "a comparison of empty segmentations tells nothing"
        np.testing.assert_array_equal(array, others[name], err_msg=name)
        ours_image, theirs_image = (sitk.ReadImage(str(folder / name)) for folder in (ours, theirs))
        for geometry in ("GetOrigin", "GetSpacing", "GetDirection", "GetPixelIDTypeAsString"):
            assert getattr(ours_image, geometry)() == getattr(theirs_image, geometry)()


def stock(
    model: Path,
    images: Path,
    output: Path,
    folds: tuple[int, ...] = (0, 1),
    prev: Path | None = None,
    **options: object,
) -> Path:
    """nnU-Net's predictor with its own loading."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, **options)  # type: ignore[arg-type]
    predictor.initialize_from_trained_model_folder(str(model), folds)
    output.mkdir()
    predictor.predict_from_files_sequential(
        str(images), str(output), save_probabilities=True, folder_with_segs_from_prev_stage=prev and str(prev)
    )
    return output


# --- the same as stock


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"mirror": True}, {}),
        ({"mirror": False}, {"use_mirroring": False}),
        ({"folds": 1, "step_size": 0.2}, {"folds": (1,), "tile_step_size": 0.2}),
        ({"folds": ["1", "0"]}, {"folds": (1, 0)}),
    ],
)
def test_equal_to_nnunet(model: Path, images: Path, tmp_path: Path, ours: dict, theirs: dict) -> None:
    paths = predict(
        model, images, tmp_path / "ours", num_processes_preprocessing=0, save_probabilities=True, device="cpu", **ours
    )
    assert paths == [tmp_path / "ours" / f"{case}.nii.gz" for case in "abc"]
    stock(model, images, tmp_path / "stock", **theirs)
    assert_same(tmp_path / "ours", tmp_path / "stock")
    for case in "abc":
        mine, others = (np.load(tmp_path / folder / f"{case}.npz")["probabilities"] for folder in ("ours", "stock"))
        np.testing.assert_array_equal(mine, others)
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        path.name for path in (tmp_path / "stock").iterdir()
    }
    for name in ("plans.json", "dataset.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "stock" / name).read_text()


def test_mirroring_changes_the_result(model: Path, images: Path, tmp_path: Path) -> None:
    """Else the comparisons above would not see a lost mirroring."""
    for name, mirror in (("with", True), ("without", False)):
        predict(model, images, tmp_path / name, num_processes_preprocessing=0, mirror=mirror, device="cpu")
    with_mirroring, without = segmentations(tmp_path / "with"), segmentations(tmp_path / "without")
    assert any((with_mirroring[name] != without[name]).any() for name in without)


@pytest.mark.parametrize("axes", [None, ()])
def test_mirror_never_exceeds_the_models_axes(
    images: Path, tmp_path: Path, axes: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model_folder(tmp_path / "model", inference_allowed_mirroring_axes=axes)
    for name, mirror in (("default", None), ("mirror", True), ("none", False)):
        predict(folder, images, tmp_path / name, num_processes_preprocessing=0, mirror=mirror, device="cpu")
        said = "The model was trained without mirroring, so it is predicted without." in capsys.readouterr().out
        assert said == (mirror is True)
    assert_same(tmp_path / "default", tmp_path / "none")
    assert_same(tmp_path / "mirror", tmp_path / "none")


def test_cascade(images: Path, tmp_path: Path) -> None:
    plans = make_plans(previous_stage="3d_lowres")
    plans["configurations"]["3d_lowres"] = make_plans()["configurations"]["3d_fullres"]
    folder = make_model_folder(tmp_path / "model", plans=plans)
    for index, case in enumerate("abc"):
        labels = sitk.ReadImage(str(write_image(tmp_path / "noise" / f"{case}.nii.gz", seed=9 + index, spacing_mm=1.2)))
        labels = sitk.Cast(labels > 100, sitk.sitkUInt8) + sitk.Cast(labels > 120, sitk.sitkUInt8)
        (tmp_path / "prev").mkdir(exist_ok=True)
        sitk.WriteImage(labels, str(tmp_path / "prev" / f"{case}.nii.gz"))
    options = {"num_processes_preprocessing": 0, "device": "cpu"}
    predict(folder, images, tmp_path / "ours", prev_stage_predictions=tmp_path / "prev", **options)  # type: ignore[arg-type]
    stock(folder, images, tmp_path / "stock", folds=(0,), prev=tmp_path / "prev")
    assert_same(tmp_path / "ours", tmp_path / "stock")
    with pytest.raises(NnplugError) as caught:
        predict(folder, images, tmp_path / "none")
    assert str(caught.value) == (
        "Configuration '3d_fullres' goes on from predictions of '3d_lowres'. Predict the same images with "
        "-c 3d_lowres first, then give that output folder with -prev_stage_predictions."
    )


def test_previous_stage_without_a_cascade(model: Path, images: Path, tmp_path: Path) -> None:
    message = r"Configuration '3d_fullres' is no cascade: leave out -prev_stage_predictions\."
    with pytest.raises(NnplugError, match=message):
        predict(model, images, tmp_path / "out", prev_stage_predictions=tmp_path)
    # where the folder's name does not tell the configuration, the checkpoint does
    renamed = make_model_folder(tmp_path / "renamed")
    for case in "abc":
        write_image(tmp_path / "prev" / f"{case}.nii.gz")
    with pytest.raises(NnplugError, match=message):
        predict(renamed, images, tmp_path / "out", prev_stage_predictions=tmp_path / "prev")


# --- which cases


def test_parts(model: Path, images: Path, tmp_path: Path) -> None:
    options = {"num_processes_preprocessing": 0, "device": "cpu", "num_parts": 2}
    first = predict(model, images, tmp_path / "out", part_id=0, **options)  # type: ignore[arg-type]
    assert [path.name for path in first] == ["a.nii.gz", "c.nii.gz"]
    assert not (tmp_path / "out" / "b.nii.gz").exists()
    second = predict(model, images, tmp_path / "out", part_id=1, **options)  # type: ignore[arg-type]
    assert [path.name for path in second] == ["b.nii.gz"]
    assert all(path.exists() for path in [*first, *second])


def test_continue_predicts_what_is_missing_or_broken(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_processes_preprocessing": 0, "device": "cpu"}
    out = tmp_path / "out"
    predict(model, images, out, **options)  # type: ignore[arg-type]
    expected = segmentations(out)
    (out / "a.nii.gz").unlink()
    (out / "b.nii.gz").write_bytes((out / "b.nii.gz").read_bytes()[:200])
    before = (out / "c.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    paths = predict(model, images, out, continue_prediction=True, **options)  # type: ignore[arg-type]
    assert len(paths) == 3
    assert "1 of 3 cases are there already." in capsys.readouterr().out
    assert (out / "c.nii.gz").stat().st_mtime_ns == before
    for name, array in segmentations(out).items():
        np.testing.assert_array_equal(array, expected[name])
    assert predict(model, images, out, continue_prediction=True, **options) == paths  # type: ignore[arg-type]
    assert "3 of 3 cases are there already." in capsys.readouterr().out


def test_predictions_of_another_model_are_not_continued(model: Path, images: Path, tmp_path: Path) -> None:
    """A new prediction that is stopped must not leave the old ones for --continue_prediction to take."""
    out = tmp_path / "out"
    predict(model, images, out, num_processes_preprocessing=0, save_probabilities=True, device="cpu")

    class Stopped(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", stop)
        with pytest.raises(Stopped):
            predict(model, images, out, num_processes_preprocessing=0, device="cpu")
    left = {path.name for path in out.iterdir()}
    assert left == {"dataset.json", "plans.json", "predict_from_raw_data_args.json"}


def test_unfinished_folds_are_mentioned(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model_folder(tmp_path / "model", folds=(0,))
    (folder / "fold_1").mkdir()
    predict(folder, images, tmp_path / "out", num_processes_preprocessing=0, device="cpu")
    said = "Left out, because checkpoint_final.pth is not there: fold_1. Used: folds 0."
    assert said in capsys.readouterr().out


# --- what goes wrong on the way


def test_an_image_that_is_damaged_inside(model: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "in" / "bad_0000.nii.gz", shape=(90, 90, 90))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(NnplugError) as caught:
        predict(model, tmp_path / "in", tmp_path / "out", device="cpu")
    assert str(caught.value) == (
        f"{path} can not be read: the file is truncated or damaged. "
        "Mend or remove the case and use --continue_prediction."
    )


def test_invalid_voxels_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voxels = np.ones((14, 16, 18), np.float32)
    voxels[3, 4, 5] = np.nan
    (tmp_path / "in").mkdir()
    # of NIfTI files ITK's reader itself makes zeros of them
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "in" / "nan_0000.nrrd"))
    model = make_model_folder(tmp_path / "model")
    write_descriptions(model, make_plans(), make_dataset_json(ending=".nrrd"))
    predict(model, tmp_path / "in", tmp_path / "out", device="cpu")
    warning = "nnplug: warning: nan_0000.nrrd holds NaN or infinite voxels; the prediction is not valid\n"
    assert warning in capsys.readouterr().err


def _fail_writing_image(patched: pytest.MonkeyPatch) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    def write_seg(self: SimpleITKIO, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        Path(output_fname).write_bytes(b"half")
        raise RuntimeError("Exception thrown in SimpleITK WriteImage:\nsitk::ERROR: No space left on device.\n")

    patched.setattr(SimpleITKIO, "write_seg", write_seg)


def _fail_writing_probabilities(patched: pytest.MonkeyPatch) -> None:
    def savez_compressed(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    patched.setattr(np, "savez_compressed", savez_compressed)


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (_fail_writing_image, "{out}/a.nii.gz could not be written: No space left on device. "),
        (_fail_writing_probabilities, "The predictions could not be written to {out}: No space left on device. "),
    ],
)
def test_disk_full(
    model: Path, images: Path, tmp_path: Path, fail: Callable[[pytest.MonkeyPatch], None], message: str
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patched:
        fail(patched)
        with pytest.raises(NnplugError) as caught:
            predict(model, images, out, num_processes_preprocessing=0, save_probabilities=True, device="cpu")
    advice = "See to the folder (space, permissions) and use --continue_prediction."
    assert str(caught.value) == message.format(out=out) + advice
    assert not list(out.glob("*.nii.gz"))
    predict(model, images, out, num_processes_preprocessing=0, continue_prediction=True, device="cpu")
    assert sorted(path.name for path in out.iterdir() if path.name.startswith((".", "a", "b", "c"))) == [
        "a.nii.gz",
        *(["a.pkl"] if (out / "a.pkl").exists() else []),
        "b.nii.gz",
        "c.nii.gz",
    ]


# --- settings


def test_inputs_are_checked_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    folder = write_descriptions(tmp_path / "model", make_plans(), make_dataset_json())
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(NnplugError, match=r"There is no input folder .*missing\."):
        predict(folder, tmp_path / "missing", tmp_path / "out")
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    with pytest.raises(NnplugError, match=r"checkpoint_final\.pth"):
        predict(folder, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("step_size", [0, -0.5, 1.1])
def test_step_size(model: Path, tmp_path: Path, step_size: float) -> None:
    with pytest.raises(NnplugError, match=rf"step_size is {step_size}: expected a number above 0 and at most 1\."):
        predict(model, tmp_path, tmp_path / "out", step_size=step_size)


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(NnplugError, match=r"Device 'cuda' is not available here \(torch .*\)\. Choose -device cpu\."):
        choose_device("cuda")
    with pytest.raises(NnplugError, match=r"Device 'mps' is not available here"):
        choose_device(torch.device("mps"))
    for device in ("gpu", "xpu", "cuda:x"):
        with pytest.raises(NnplugError, match=f"Unknown device '{device}'. Choose cuda, cpu or mps"):
            choose_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None) == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(NnplugError, match=r"This machine has no device 'cuda:2': it has 2 CUDA devices\."):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("preprocessing", "export", "num_cases", "expected"),
    [
        (None, None, 1, (0, 0)),
        (None, None, 2, (0, 0)),
        (None, None, 9, (3, 3)),
        (None, 1, 1, (1, 1)),
        (8, 8, 5, (5, 5)),
        (8, None, 9, (8, 3)),
        (0, 0, 9, (0, 0)),
        (0, None, 9, (0, 0)),
        (None, 0, 9, (0, 0)),
    ],
)
def test_processes(
    monkeypatch: pytest.MonkeyPatch,
    preprocessing: int | None,
    export: int | None,
    num_cases: int,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 16)
    assert choose_processes(preprocessing, export, num_cases) == expected


def test_processes_from_the_environment_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    assert choose_processes(None, None, 9) == (2, 2)
    monkeypatch.setenv("nnUNet_npp", "6")
    monkeypatch.setenv("nnUNet_nps", "many")
    assert choose_processes(None, None, 9) == (6, 2)


def test_impossible_numbers_of_processes() -> None:
    with pytest.raises(NnplugError, match=r"Only one of -npp and -nps is 0\. Give 0 for both"):
        choose_processes(0, 2, 5)
    with pytest.raises(NnplugError, match=r"The number of processes \(-npp, -nps\) can not be negative\."):
        choose_processes(None, -1, 5)


def test_threads_are_as_before(model: Path, images: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    predict(model, images, tmp_path / "out", num_processes_preprocessing=0, device="cpu")
    assert torch.get_num_threads() == 2


def test_arguments_are_kept_beside_the_predictions(model: Path, images: Path, tmp_path: Path) -> None:
    predict(model, images, tmp_path / "out", num_processes_preprocessing=0, device="cpu")
    arguments = json.loads((tmp_path / "out" / "predict_from_raw_data_args.json").read_text())
    assert arguments["list_of_lists_or_source_folder"][0] == [str(images / "a_0000.nii.gz")]
