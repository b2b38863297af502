"""Predictions come back in another format, bit for bit and in their place."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnplug.cli import main
from nnplug.conversion.predictions import convert_predictions
from nnplug.conversion.reading import read_image
from nnplug.processes.case_pool import Pool

numbers = st.floats(-1e4, 1e4)


@given(
    voxels=hnp.arrays(st.sampled_from(["uint8", "uint16"]), (3, 4, 5)),
    spacing=st.tuples(*[st.floats(1e-3, 1e2)] * 3),
    origin=st.tuples(numbers, numbers, numbers),
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1),
    angle=st.floats(0, 3),
    ending=st.sampled_from([".mha", ".tif"]),
)
@settings(max_examples=40, deadline=None)
def test_voxels_and_geometry_are_exact(
    voxels: np.ndarray,
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    axis: tuple[float, ...],
    angle: float,
    ending: str,
) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(sitk.VersorTransform(axis, angle).GetMatrix())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        sitk.WriteImage(image, str(folder / "in" / "a.nii.gz"))
        convert_predictions(folder / "in", folder / "out", ending, Pool(0))
        predicted = sitk.ReadImage(str(folder / "in" / "a.nii.gz"))
        back = read_image(folder / "out" / f"a{ending}")
        assert back.voxels.dtype == voxels.dtype
        assert np.array_equal(back.voxels[0], voxels)
        if ending == ".mha":
            written = sitk.ReadImage(str(folder / "out" / "a.mha"))
            found = (written.GetSpacing(), written.GetOrigin(), written.GetDirection())
        else:
            beside = json.loads((folder / "out" / "a.json").read_text())
            found = tuple(map(tuple, (beside["spacing"][::-1], beside["origin_xyz"], beside["direction_xyz"])))
        assert found == (predicted.GetSpacing(), predicted.GetOrigin(), predicted.GetDirection())


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "predicted", tmp_path / "out"

    def refusal(ending: str) -> str:
        assert main(["convert", "predictions", "-i", str(folder), "-o", str(output), "--file-ending", ending]) == 2
        return capsys.readouterr().err.removeprefix("nnplug: error: ").replace(str(folder), "FOLDER")

    known = "predictions can be converted to .mha or .tif, or with --reference DIR to the format of the images.\n"
    assert refusal(".png") == f"--file-ending .png: {known}"
    assert main(["convert", "predictions", "-i", str(folder), "-o", str(output)]) == 2
    assert capsys.readouterr().err == f"nnplug: error: Which format?: {known}"
    assert refusal(".mha") == "There is no folder FOLDER.\n"
    folder.mkdir()
    assert refusal(".mha") == "FOLDER holds no NIfTI file (.nii.gz or .nii).\n"
    for name in ("a.nii", "a.nii.gz"):
        sitk.WriteImage(sitk.Image(2, 3, 4, sitk.sitkUInt8), str(folder / name))
    assert refusal(".mha") == "FOLDER holds a .nii and a .nii.gz of the same name. Remove one of them.\n"
    (folder / "a.nii").unlink()
    sitk.WriteImage(sitk.Image([2, 3, 4, 2], sitk.sitkUInt8), str(folder / "a.nii.gz"))
    assert "it has 2 channels; a prediction has one" in refusal(".mha")


# --- with the images that were predicted -----------------------------------------------------------------------------


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Predictions of ``a`` and ``b`` whose geometry NIfTI has rounded to single precision."""
    for folder in ("predicted", "scans"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        image = sitk.GetImageFromArray(np.arange(60, dtype=np.uint16).reshape(3, 4, 5))
        image.SetSpacing((0.1, 1 / 3, 2.0))
        image.SetOrigin((1e3 / 7, -1 / 9, 0.3))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(tmp_path / "predicted" / f"{name}.nii.gz"))
        sitk.WriteImage(image, str(tmp_path / "scans" / f"{name}_0000.mha"))
        sitk.WriteImage(image, str(tmp_path / "scans" / f"{name}_0001.mha"))
    return tmp_path / "predicted"


def convert(predicted: Path, *more: str) -> int:
    options = ["-i", predicted, "-o", predicted.parent / "out", "--reference", predicted.parent / "scans", "-np", 0]
    return main(["convert", "predictions", *map(str, options), *more])


def test_geometry_and_format_are_those_of_the_images(predicted: Path) -> None:
    assert convert(predicted) == 0
    out = predicted.parent / "out"
    assert sorted(path.name for path in out.glob("[!.]*")) == ["a.mha", "b.mha"]
    written, scan = sitk.ReadImage(str(out / "a.mha")), sitk.ReadImage(str(predicted.parent / "scans" / "a_0000.mha"))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, what)() == getattr(scan, what)()
    assert written.GetSpacing() != sitk.ReadImage(str(predicted / "a.nii.gz")).GetSpacing()
    assert np.array_equal(sitk.GetArrayFromImage(written).ravel(), np.arange(60))


def test_images_in_tiff_with_a_file_beside_them(predicted: Path) -> None:
    scans = predicted.parent / "scans"
    for path in scans.iterdir():
        path.unlink()
    for name in "ab":
        tifffile.imwrite(scans / f"{name}.tiff", np.zeros((3, 4, 5), np.uint16), photometric="minisblack")
        (scans / f"{name}.json").write_text('{"spacing": [7.0, 6.0, 5.0]}')
    assert convert(predicted) == 0
    out = predicted.parent / "out"
    assert json.loads((out / "a.json").read_text())["spacing"] == [7.0, 6.0, 5.0]
    assert np.array_equal(tifffile.imread(out / "a.tif").ravel(), np.arange(60))


def test_the_format_can_be_another(predicted: Path) -> None:
    assert convert(predicted, "--file-ending", ".tif") == 0
    beside = json.loads((predicted.parent / "out" / "b.json").read_text())
    assert beside["spacing"] == [2.0, 1 / 3, 0.1]
    assert beside["origin_xyz"] == [1e3 / 7, -1 / 9, 0.3]


def test_2d_predictions_keep_their_geometry(predicted: Path, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(20, dtype=np.uint8).reshape(4, 5))
    image.SetSpacing((0.5, 0.25))
    image.SetOrigin((3.0, -4.0))
    for name in "ab":
        sitk.WriteImage(image, str(predicted / f"{name}.nii.gz"))
    options = ["convert", "predictions", "-i", predicted, "-o", tmp_path / "out", "--file-ending", ".tif", "-np", 0]
    assert main(list(map(str, options))) == 0
    beside = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (beside["spacing"], beside["origin_xyz"]) == ([0.25, 0.5], [3.0, -4.0])


def test_images_that_do_not_belong(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans = predicted.parent / "scans"
    (scans / "a_0000.mha").unlink()
    (scans / "b.mha").write_bytes((scans / "b_0000.mha").read_bytes())
    assert convert(predicted) == 2
    assert capsys.readouterr().err == (
        f"nnplug: error: {scans}: 2 problems:\n"
        "  case a: a has no image there. One file CASE or CASE_0000 belongs to each prediction.\n"
        "  case b: b.mha and b_0000.mha may be its image. One file CASE or CASE_0000 belongs to each prediction.\n"
    )
    (scans / "b.mha").unlink()
    sitk.WriteImage(sitk.Image(5, 4, 2, sitk.sitkUInt8), str(scans / "a.mha"))
    assert convert(predicted) == 2
    assert f"the prediction has 3x4x5 voxels, and its image {scans / 'a.mha'} has 2x4x5" in capsys.readouterr().err
    assert (predicted.parent / "out" / "b.mha").is_file()


# --- files that are there --------------------------------------------------------------------------------------------


def test_files_of_others_are_not_replaced(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = (predicted / "b.nii.gz").rename(predicted.parent / "b.nii.gz")
    assert convert(predicted) == 0
    out = predicted.parent / "out"
    (out / "b.mha").write_text("mine")
    other.rename(predicted / "b.nii.gz")
    capsys.readouterr()
    for more in (["--dry-run"], []):
        assert convert(predicted, *more) == 2
        assert capsys.readouterr().err.startswith(
            f"nnplug: error: {out}: case b: b.mha is there already and not from this command; move it away, or give "
            "--overwrite. "
        )
        assert (out / "b.mha").read_text() == "mine"
    assert convert(predicted, "--overwrite") == 0
    assert read_image(out / "b.mha").size == (3, 4, 5)


def test_a_case_that_comes_back_is_not_replaced(predicted: Path) -> None:
    assert convert(predicted) == 0
    corrected = predicted.parent / "out" / "b.mha"
    corrected.write_text("corrected")
    other = (predicted / "b.nii.gz").rename(predicted.parent / "b.nii.gz")
    sitk.WriteImage(sitk.Image(5, 4, 3, sitk.sitkUInt8), str(predicted / "c.nii.gz"))
    sitk.WriteImage(sitk.Image(5, 4, 3, sitk.sitkUInt8), str(predicted.parent / "scans" / "c.mha"))
    assert convert(predicted) == 0
    other.rename(predicted / "b.nii.gz")
    assert convert(predicted) == 0
    assert corrected.read_text() == "corrected"
