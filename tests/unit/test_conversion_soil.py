"""Sparse annotations: what is not annotated is ignored, the crop stays in its place, nothing is normalised twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnplug.cli import main
from nnplug.conversion.reading import Image, read_image
from nnplug.conversion.soil import SoilSettings, box_around, convert_soil, crop, load_settings, normalize
from nnplug.errors import NnplugError
from nnplug.processes.case_pool import CaseFailure, Pool
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

IN_THIS_PROCESS = Pool(0)
SHAPE = (12, 14, 16)


class Soil:
    """One volume ``a`` of 16 bits with a box of three classes drawn in it, numbered from ``first``."""

    def __init__(self, folder: Path, first: int = 1, unlabelled: int = 0, dtype: str = "int16") -> None:
        self.folder, self.raw = folder, folder / "raw"
        self.voxels = np.random.default_rng(0).integers(0, 2**16, SHAPE).astype(np.uint16)
        self.drawn = np.full(SHAPE, unlabelled, dtype)
        self.drawn[5:7, 6, 4:10] = np.arange(6) % 3 + first
        self.save()

    def save(self) -> None:
        for name, voxels in (("scans", self.voxels), ("drawn", self.drawn)):
            (self.folder / name).mkdir(exist_ok=True)
            tifffile.imwrite(self.folder / name / "a.tif", voxels, photometric="minisblack")

    def settings(self, **options: Any) -> SoilSettings:
        folders = {"images": self.folder / "scans", "annotations": self.folder / "drawn", "raw_dir": self.raw}
        named = {"dataset_id": 5, "dataset_name": "Soil", "classes": ("solid", "pore", "water"), "margin": 2}
        return load_settings(None, {**folders, **named, "spacing": "x=5 y=6 z=7 um", **options})

    def convert(self, **options: Any) -> Path:
        return convert_soil(self.settings(**options), IN_THIS_PROCESS).target

    def refusal(self, **options: Any) -> str:
        with pytest.raises(NnplugError) as caught:
            self.convert(**options)
        return str(caught.value).replace(f"{self.folder}{os.sep}", "")


@pytest.fixture
def soil(tmp_path: Path) -> Soil:
    return Soil(tmp_path)


def numbers_of(target: Path, ending: str = ".nii.gz") -> np.ndarray:
    return read_image(target / f"labelsTr/a{ending}").voxels[0]


BOX = (slice(3, 9), slice(4, 9), slice(2, 12))


@pytest.mark.parametrize(("unlabelled", "first", "dtype"), [(0, 1, "uint8"), (-1, 0, "int16"), (255, 0, "uint8")])
def test_crop_ignore_label_and_description(tmp_path: Path, unlabelled: int, first: int, dtype: str) -> None:
    soil = Soil(tmp_path, first, unlabelled, dtype)
    target = soil.convert(unlabelled=unlabelled, normalization="rescale_to_0_1")
    expected = np.where(soil.drawn == unlabelled, 3, soil.drawn.astype(int) - first)[BOX]
    assert np.array_equal(numbers_of(target), expected)
    written = read_image(target / "imagesTr/a_0000.nii.gz")
    assert written.voxels.dtype == np.uint16
    assert np.array_equal(written.voxels[0], soil.voxels[BOX])
    assert written.spacing_mm == pytest.approx((0.007, 0.006, 0.005))
    assert written.origin_mm == pytest.approx((2 * 0.005, 4 * 0.006, 3 * 0.007))
    assert json.loads((target / "dataset.json").read_text()) == {
        "channel_names": {"0": "rescale_to_0_1"},
        "labels": {"background": 0, "pore": 1, "water": 2, "ignore": 3},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "classes": ["solid", "pore", "water"],
    }


@pytest.mark.parametrize("normalization", ["noNorm", "zscore", "rescale_to_0_1", "rgb_to_0_1"])
def test_the_channel_name_chooses_what_baking_in_does(soil: Soil, normalization: str) -> None:
    if normalization == "rgb_to_0_1":
        soil.voxels = (soil.voxels % 256).astype(np.uint8)
        soil.save()
    target = soil.convert(normalization=normalization, bake_in=True, no_crop=True)
    scheme = get_normalization_scheme(normalization)(use_mask_for_norm=False, intensityproperties={})
    expected = scheme.run(soil.voxels.astype(np.float32), None)
    written = read_image(target / "imagesTr/a_0000.nii.gz").voxels
    assert written.dtype == np.float32
    assert np.allclose(written[0], expected, rtol=1e-4, atol=1e-5)
    description = json.loads((target / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "noNorm"}
    assert description["baked_in"] == normalization


def test_baking_in_looks_at_the_whole_volume(soil: Soil) -> None:
    target = soil.convert(normalization="zscore", bake_in=True)
    whole = normalize(soil.voxels, "zscore")
    assert np.array_equal(read_image(target / "imagesTr/a_0000.nii.gz").voxels[0], whole[BOX])


def test_the_whole_volume(soil: Soil) -> None:
    target = soil.convert(no_crop=True, file_ending=".tif")
    assert np.array_equal(read_image(target / "imagesTr/a_0000.tif").voxels[0], soil.voxels)
    assert json.loads((target / "dataset.json").read_text())["overwrite_image_reader_writer"] == "Tiff3DIO"


@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.booleans()).filter(np.any),
    st.integers(0, 7),
)
def test_the_box_holds_every_annotated_voxel_and_no_more_than_the_margin(annotated: np.ndarray, margin: int) -> None:
    box = box_around(annotated, margin)
    assert annotated[box].sum() == annotated.sum()
    for axis, part in enumerate(box):
        found = np.nonzero(annotated)[axis]
        assert part.start == max(0, found.min() - margin)
        assert part.stop == min(annotated.shape[axis], found.max() + 1 + margin)


def test_a_crop_stays_where_it_is() -> None:
    whole = sitk.Image(6, 7, 8, sitk.sitkUInt8)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    whole.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, 1))
    whole.SetSpacing((0.5, 2, 3))
    whole.SetOrigin((1, -4, 9))
    image = Image(sitk.GetArrayFromImage(whole)[None], (3, 2, 0.5), whole.GetOrigin(), whole.GetDirection())
    cut = crop(image, (slice(4, 8), slice(3, 6), slice(2, 5)))
    assert cut.size == (4, 3, 3)
    assert cut.origin_mm == pytest.approx(whole.TransformIndexToPhysicalPoint((2, 3, 4)), abs=1e-12)


def test_settings_in_a_file(soil: Soil, capsys: pytest.CaptureFixture[str]) -> None:
    path = soil.folder / "soil.toml"
    path.write_text(
        'images = "scans"\nannotations = "drawn"\nclasses = ["solid", "pore", "water"]\nmargin = 2\n'
        'dataset_id = 5\ndataset_name = "Soil"\nspacing = "x=5 y=6 z=7 um"\nraw_dir = "raw"\n'
    )
    assert main(["convert", "soil", "--settings", str(path), "-np", "0", "--dataset-id", "6"]) == 0
    target = soil.raw / "Dataset006_Soil"
    assert capsys.readouterr().out == f"{target}: 1 case converted.\n"
    assert np.array_equal(read_image(target / "imagesTr/a_0000.nii.gz").voxels[0], soil.voxels[BOX])
    assert main(["convert", "soil", "--settings", str(path), "-np", "0", "--dataset-id", "6", "--no-crop"]) == 2
    assert "was made with other settings (no_crop)" in capsys.readouterr().err
    path.write_text(path.read_text() + "no_crop = true\n")
    assert main(["convert", "soil", "--settings", str(path), "-np", "0", "--dataset-id", "7"]) == 0
    assert np.array_equal(read_image(soil.raw / "Dataset007_Soil/imagesTr/a_0000.nii.gz").voxels[0], soil.voxels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margn = 2", ": unknown key 'margn'. The keys are images, annotations, dataset_id, dataset_name, classes,"),
        ('margin = "2"', ": margin: expected an integer, got '2'."),
        ("bake_in = 1", ": bake_in: expected true or false, got 1."),
        ("classes = [1]", ": classes: expected a list of texts, got [1]."),
        ("margin = ", " is no valid TOML ("),
        ("margin = 2", ": images, annotations, dataset_id, dataset_name, classes missing. Give it as an option or in"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "soil.toml"
    path.write_text(text)
    with pytest.raises(NnplugError) as caught:
        load_settings(path, {})
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"normalization": "minmax"},
            "normalization is 'minmax'. Choose one of noNorm, zscore, rescale_to_0_1, rgb_to",
        ),
        ({"file_ending": ".png"}, "file_ending is '.png'. Choose one of .nii.gz, .nii, .mha, .nrrd, .tif."),
        ({"margin": -1}, "margin is -1. Give 0 or more voxels, or --no-crop."),
        ({"classes": ("solid",)}, "classes are solid. Give two or more different names."),
        ({"unlabelled": 2}, "unlabelled is 2, and the classes are 0 to 2. Give 0, -1, or a number above 2."),
        ({"classes": ("solid", "ignore")}, "the class name 'ignore' is nnU-Net's own for what is not annotated."),
        ({"classes": ("solid", "pore")}, "case a: drawn/a.tif: the label holds 3; expected 1, 2, 0. Mend the case"),
        ({"unlabelled": -1}, "case a: drawn/a.tif: the label holds 3; expected 0, 1, 2, -1. Mend the case"),
        ({"spacing": None}, "case a: scans/a.tif: nothing tells its voxel spacing."),
        ({"spacing": "x=1 y=1 z=1"}, "--spacing x=1 y=1 z=1: the unit is missing."),
        ({"normalization": "rgb_to_0_1", "bake_in": True}, "rgb_to_0_1 is for 0 to 255, see rescale_to_0_1"),
        ({"image_postfix": "_x.tif"}, "No image in scans fits {case}_x.tif."),
    ],
)
def test_mistakes(soil: Soil, options: dict[str, Any], message: str) -> None:
    assert message in soil.refusal(**options)
    assert not list(soil.raw.glob("*")), "an empty data set would take the id away"


def test_what_does_not_belong_together(soil: Soil) -> None:
    tifffile.imwrite(soil.folder / "drawn" / "b.tif", soil.drawn, photometric="minisblack")
    assert soil.refusal() == (
        "drawn/b.tif: there is no scans/b.tif. Add it, or say how the names end with --image-postfix and "
        "--annotation-postfix."
    )
    tifffile.imwrite(soil.folder / "scans" / "b.tif", soil.voxels[:5], photometric="minisblack")
    assert "case b: drawn/b.tif: it has 12x14x16 voxels, the first channel has 5x14x16" in soil.refusal()
    soil.drawn[:] = 0
    tifffile.imwrite(soil.folder / "scans" / "b.tif", soil.voxels, photometric="minisblack")
    tifffile.imwrite(soil.folder / "drawn" / "b.tif", soil.drawn, photometric="minisblack")
    assert "case b: drawn/b.tif: every voxel is 0, nothing is annotated" in soil.refusal()


def test_values_outside_what_colours_have() -> None:
    with pytest.raises(CaseFailure, match=r"the values go from -1 to 3; rgb_to_0_1 is for 0 to 255"):
        normalize(np.array([-1, 3]), "rgb_to_0_1")
