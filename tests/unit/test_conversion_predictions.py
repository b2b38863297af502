"""Predictions come back in another format, bit for bit and in their place."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnplug.case_pool import Pool
from nnplug.cli import main
from nnplug.conversion.predictions import convert_predictions
from nnplug.conversion.reading import read_image

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

    assert refusal(".png") == "--file-ending .png: predictions can be converted to .mha or .tif.\n"
    assert refusal(".mha") == "There is no folder FOLDER.\n"
    folder.mkdir()
    assert refusal(".mha") == "FOLDER holds no NIfTI file (.nii.gz or .nii).\n"
    for name in ("a.nii", "a.nii.gz"):
        sitk.WriteImage(sitk.Image(2, 3, 4, sitk.sitkUInt8), str(folder / name))
    assert refusal(".mha") == "FOLDER holds a .nii and a .nii.gz of the same name. Remove one of them.\n"
    (folder / "a.nii").unlink()
    sitk.WriteImage(sitk.Image([2, 3, 4, 2], sitk.sitkUInt8), str(folder / "a.nii.gz"))
    assert "it has 2 channels; a prediction has one" in refusal(".mha")
