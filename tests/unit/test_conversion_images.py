"""Images keep every voxel, whatever the format and type; spacing is never guessed; what can not be held is refused."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnplug.cli import main
from nnplug.conversion.images import ImageFiles, convert_images, parse_labels
from nnplug.conversion.reading import Image as ReadImage
from nnplug.conversion.reading import read_image
from nnplug.conversion.spacing import parse_spacing
from nnplug.conversion.writing import Output, fit_type, image_outputs, relabel
from nnplug.errors import NnplugError
from nnplug.image_headers import UnreadableImageError
from nnplug.processes.case_pool import CaseFailure, Pool
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from PIL import Image

IN_THIS_PROCESS = Pool(0)
SPACING = (2.0, 0.5, 0.25)  # z y x
STATED = {"z": 2.0, "y": 0.5, "x": 0.25}
GEOMETRY = {"origin": (3.0, -7.5, 11.0), "direction": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)}
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def volume(dtype: str = "uint16", shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    """Values from the lowest to the highest of the type."""
    if dtype.startswith("float"):
        return np.linspace(-1e4, 1e5, math.prod(shape)).astype(dtype).reshape(shape)
    limits = np.iinfo(dtype)
    return np.linspace(limits.min, limits.max, math.prod(shape)).astype(dtype).reshape(shape)


def save_itk(path: Path, voxels: np.ndarray, spacing: Sequence[float] = SPACING, **geometry: Any) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(tuple(spacing)[::-1][: voxels.ndim])
    if geometry:
        image.SetOrigin(geometry["origin"])
        image.SetDirection(geometry["direction"])
    sitk.WriteImage(image, str(path))


def write(outputs: Sequence[Output], folder: Path) -> list[Path]:
    for output in outputs:
        (folder / output.file).parent.mkdir(parents=True, exist_ok=True)
        output.write(folder / output.file)
    return [folder / output.file for output in outputs]


class Scans:
    """``images/CASE.ENDING`` and ``labels/CASE.LABEL_ENDING`` for two cases."""

    def __init__(self, folder: Path, ending: str, image: np.ndarray, label: np.ndarray, label_ending: str = "") -> None:
        self.folder, self.target = folder / "scans", folder / "result"
        for case in ("a", "b"):
            self.save(f"images/{case}{ending}", image)
            self.save(f"labels/{case}{label_ending or ending}", label)

    def save(self, file: str, voxels: np.ndarray, **geometry: Any) -> Path:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".tif", ".tiff"):
            tifffile.imwrite(path, voxels, photometric="minisblack" if voxels.shape[-1] != 3 else "rgb")
        elif path.suffix in (".jpg", ".bmp") or (path.suffix == ".png" and voxels.dtype == np.uint8):
            Image.fromarray(voxels).save(path)
        else:
            save_itk(path, voxels, **geometry)
        return path

    def convert(self, **options: Any) -> Path:
        running = {key: options.pop(key) for key in ("overwrite", "dry_run") if key in options}
        files = ImageFiles(self.folder, self.target, **{"labels": {"background": 0, "box": 1}, **options})
        return convert_images(files, IN_THIS_PROCESS, **running).target

    def refusal(self, **options: Any) -> str:
        with pytest.raises(NnplugError) as caught:
            self.convert(**options)
        assert not (self.target / "dataset.json").exists()
        return str(caught.value).replace(f"{self.folder}{os.sep}", "").replace(f"{self.folder.parent}{os.sep}", "")


LABEL = (np.indices((3, 4, 5)).sum(0) > 5).astype(np.uint8)


def as_nnunet_reads(target: Path, case: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """Images (C D H W), label and spacing."""
    description = json.loads((target / "dataset.json").read_text())
    ending = description["file_ending"]
    images = sorted(str(path) for path in (target / "imagesTr").glob(f"{case}_????{ending}"))
    reader = determine_reader_writer_from_dataset_json(description, images[0], verbose=False)()
    voxels, properties = reader.read_images(images)
    label, of_label = reader.read_seg(str(target / f"labelsTr/{case}{ending}"))
    assert np.allclose(of_label["spacing"], properties["spacing"], rtol=1e-6)
    return voxels, label, properties["spacing"]


# --- voxels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("source", [".nii.gz", ".mha", ".nrrd", ".tif"])
@pytest.mark.parametrize("target", [".nii.gz", ".mha", ".nrrd", ".tif"])
def test_volumes_keep_voxels_type_and_spacing(tmp_path: Path, dtype: str, source: str, target: str) -> None:
    voxels = volume(dtype)
    scans = Scans(tmp_path, source, voxels, LABEL)
    scans.convert(ending=target, spacing_mm=STATED if source == ".tif" else None)
    written = read_image(scans.target / f"imagesTr/a_0000{target}")
    assert written.voxels.dtype == np.dtype(dtype)
    assert np.array_equal(written.voxels[0], voxels)
    images, label, spacing = as_nnunet_reads(scans.target, "b")
    assert np.array_equal(images[0], voxels.astype(np.float32))
    assert np.array_equal(label[0], LABEL)
    assert tuple(spacing) == pytest.approx(SPACING, rel=1e-7)


@pytest.mark.parametrize("target", [".nii.gz", ".mha", ".nrrd"])
def test_position_and_direction_are_kept(tmp_path: Path, target: str) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    for case in ("a", "b"):
        scans.save(f"images/{case}.mha", volume(), **GEOMETRY)
        scans.save(f"labels/{case}.mha", LABEL, **GEOMETRY)
    scans.convert(ending=target)
    for file in ("imagesTr/a_0000", "labelsTr/a"):
        image = sitk.ReadImage(str(scans.target / f"{file}{target}"))
        assert image.GetOrigin() == pytest.approx(GEOMETRY["origin"], abs=1e-5)
        assert image.GetDirection() == pytest.approx(GEOMETRY["direction"], abs=1e-6)


def test_position_and_direction_stand_beside_a_tiff(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    for case in ("a", "b"):
        scans.save(f"images/{case}.mha", volume(), **GEOMETRY)
        scans.save(f"labels/{case}.mha", LABEL, **GEOMETRY)
    scans.convert(ending=".tif")
    beside = json.loads((scans.target / "imagesTr/a.json").read_text())
    origin, direction = list(GEOMETRY["origin"]), list(GEOMETRY["direction"])
    assert beside == {"spacing": list(SPACING), "origin_xyz": origin, "direction_xyz": direction}


@given(
    voxels=st.sampled_from(TYPES).flatmap(
        lambda dtype: (
            hnp.arrays(dtype, st.just((2, 3, 2)), elements={"allow_nan": False, "allow_infinity": False})
            if dtype.startswith("float")
            else hnp.arrays(dtype, st.just((2, 3, 2)))
        )
    ),
    spacing=st.tuples(*[st.floats(2**-12, 1024, width=32)] * 3),
    ending=st.sampled_from([".nii.gz", ".mha", ".nrrd", ".tif"]),
)
@settings(max_examples=60, deadline=None)
def test_any_volume_comes_back(voxels: np.ndarray, spacing: tuple[float, ...], ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = ReadImage(voxels[None], spacing)
        path, *beside = write(image_outputs("x", [image], ending), Path(folder))
        back = read_image(path)
        assert back.voxels.dtype == voxels.dtype
        assert np.array_equal(back.voxels[0], voxels)
        found = json.loads(beside[0].read_text())["spacing"] if beside else back.spacing
        assert tuple(found) == pytest.approx(spacing, rel=1e-6)


@given(
    voxels=hnp.arrays(
        st.sampled_from(["int64", "uint64", "int32", "uint32", "int16", "uint16", "uint8", "bool"]), (2, 3)
    ),
    ending=st.sampled_from([".nii.gz", ".png"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_integers_are_kept_or_refused(voxels: np.ndarray, ending: str) -> None:
    limits = (0, 2**16 - 1) if ending == ".png" else (-(2**31), 2**32 - 1)
    try:
        fitted = fit_type(voxels, ending)
    except CaseFailure:
        low, high = int(voxels.min()), int(voxels.max())
        one_type_holds_all = low >= limits[0] and high <= limits[1] and not (low < 0 and high > 2**31 - 1)
        assert not one_type_holds_all
    else:
        assert np.array_equal(fitted.astype(object), voxels.astype(object))
        assert fitted.dtype.itemsize <= 4


@pytest.mark.parametrize(
    ("voxels", "ending", "message"),
    [
        (np.array([[0, 2**16]], np.int32), ".png", "the values go from 0 to 65536, and PNG holds 0 to 65535"),
        (np.array([[-1, 5]], np.int16), ".png", "the values go from -1 to 5, and PNG holds 0 to 65535"),
        (np.array([[0, 2**40]]), ".nii.gz", "the values go from 0 to 1099511627776, and NII.GZ holds -2147483648 to"),
        (np.array([[0.5]]), ".png", "PNG holds no fractions, and the voxels are floating point; choose --file-ending"),
        (np.array([[1j]]), ".nii.gz", "voxels of type complex128 can not be kept; convert them to real numbers first"),
    ],
)
def test_what_a_format_can_not_hold(voxels: np.ndarray, ending: str, message: str) -> None:
    with pytest.raises(CaseFailure) as caught:
        fit_type(voxels, ending)
    assert str(caught.value).startswith(message)


# --- 2D --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("source", [".png", ".tif"])
@pytest.mark.parametrize("target", [".png", ".tif", ".nii.gz"])
def test_slices(tmp_path: Path, dtype: str, source: str, target: str) -> None:
    voxels = volume(dtype, (6, 7))
    label = np.eye(6, 7, dtype=np.uint8)
    scans = Scans(tmp_path, source, voxels, label)
    scans.convert(ending=target)
    images, found, _ = as_nnunet_reads(scans.target, "a")
    assert np.array_equal(images[0, 0], voxels)
    assert np.array_equal(found[0, 0], label)


def test_colours(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    scans = Scans(tmp_path, ".bmp", colours, np.eye(6, 7, dtype=np.uint8), ".png")
    scans.convert()
    assert json.loads((scans.target / "dataset.json").read_text())["channel_names"] == {
        "0": "red",
        "1": "green",
        "2": "blue",
    }
    assert np.array_equal(np.asarray(Image.open(scans.target / "imagesTr/a_0000.png")), colours)
    assert np.array_equal(as_nnunet_reads(scans.target, "a")[0][:, 0], np.moveaxis(colours, -1, 0))


def test_jpeg_is_read_as_it_is_shown(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    scans = Scans(tmp_path, ".jpg", colours, np.eye(16, dtype=np.uint8), ".png")
    scans.convert()
    shown = np.asarray(Image.open(scans.folder / "images/a.jpg"))
    assert np.array_equal(np.asarray(Image.open(scans.target / "imagesTr/a_0000.png")), shown)


def test_colours_of_16_bits_are_not_made_8(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 2**16, (6, 7, 3)).astype(np.uint16)
    scans = Scans(tmp_path, ".png", np.zeros((6, 7), np.uint8), np.eye(6, 7, dtype=np.uint8))
    for case in ("a", "b"):
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(scans.folder / f"images/{case}.png"))
    assert "case a: the values go from 179 to 65353, " in scans.refusal()
    assert "and a colour PNG holds 0 to 255; choose --file-ending .nii.gz" in scans.refusal()
    scans.convert(ending=".nii.gz")
    assert np.array_equal(as_nnunet_reads(scans.target, "a")[0][:, 0], np.moveaxis(colours, -1, 0))


def test_labels_with_a_palette_or_one_bit(tmp_path: Path) -> None:
    label = np.eye(6, 7, dtype=np.uint8)
    scans = Scans(tmp_path, ".png", volume("uint8", (6, 7)), label)
    palette = Image.fromarray(label)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(scans.folder / "labels/a.png")
    Image.fromarray(label > 0).save(scans.folder / "labels/b.png")
    scans.convert()
    for case in ("a", "b"):
        assert np.array_equal(as_nnunet_reads(scans.target, case)[1][0, 0], label)


def test_transparency(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 7, 4)).astype(np.uint8)
    colours[..., 3] = 255
    scans = Scans(tmp_path, ".png", colours, np.eye(6, 7, dtype=np.uint8))
    scans.convert()
    assert np.array_equal(np.asarray(Image.open(scans.target / "imagesTr/a_0000.png")), colours[..., :3])
    colours[0, 0, 3] = 254
    scans.save("images/b.png", colours)
    with pytest.raises(UnreadableImageError, match="it is partly transparent; save it without the alpha channel"):
        read_image(scans.folder / "images/b.png")


def test_transparency_of_tiff(tmp_path: Path) -> None:
    colours = np.full((6, 7, 4), 255, np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", colours, photometric="rgb", extrasamples=["unassalpha"])
    assert read_image(tmp_path / "x.tif").voxels.shape == (3, 6, 7)
    colours[0, 0, 3] = 254
    tifffile.imwrite(tmp_path / "x.tif", colours, photometric="rgb", extrasamples=["assocalpha"])
    with pytest.raises(UnreadableImageError, match="it is partly transparent; save it without the alpha channel"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("file", "shape", "options"),
    [
        ("x.tif", (5, 2, 6, 7), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
        ("x.ome.tif", (4, 6, 7), {"metadata": {"axes": "CYX"}}),
        ("x.ome.tif", (2, 6, 7), {"metadata": {"axes": "CYX"}}),
        ("x.tif", (6, 7, 2), {"photometric": "minisblack", "planarconfig": "contig"}),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("is_constant", [False, True])
def test_channels_of_tiff_are_no_transparency(
    tmp_path: Path, file: str, shape: tuple[int, ...], options: dict[str, Any], dtype: str, is_constant: bool
) -> None:
    voxels = volume(dtype, shape)
    axis = {4: 1, 3: 2 if shape[-1] == 2 else 0}[len(shape)]
    if is_constant:
        voxels.swapaxes(0, axis)[-1] = np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / file, voxels, **options)
    assert np.array_equal(read_image(tmp_path / file).voxels, np.moveaxis(voxels, axis, 0))


# --- TIFF ------------------------------------------------------------------------------------------------------------


def test_axes_of_tiff(tmp_path: Path) -> None:
    voxels = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    tifffile.imwrite(tmp_path / "zcyx.tif", voxels, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(read_image(tmp_path / "zcyx.tif").voxels, voxels.swapaxes(0, 1))
    tifffile.imwrite(tmp_path / "pages.tif", voxels[0], photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "pages.tif").voxels, voxels[0][None])
    tifffile.imwrite(tmp_path / "time.tif", voxels[0], imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(UnreadableImageError, match=r"its axes are TYX \(3x4x5\).*Save the slices as Z"):
        read_image(tmp_path / "time.tif")
    tifffile.imwrite(tmp_path / "two.tif", voxels[0], photometric="minisblack")
    tifffile.imwrite(tmp_path / "two.tif", volume("uint8", (9, 9)), append=True)
    with pytest.raises(UnreadableImageError, match="it holds 2 images of different kinds; save one a file"):
        read_image(tmp_path / "two.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_truncated_tiff(tmp_path: Path, compression: str | None, part: float) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, volume(shape=(8, 30, 40)), compression=compression)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(UnreadableImageError):
        read_image(path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii.gz", ".nii", ".png"])
def test_truncated_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    shape = (40, 50) if ending == ".png" else (8, 30, 40)
    voxels = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    save_itk(path, voxels, spacing=SPACING[-len(shape) :])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    with pytest.raises(UnreadableImageError, match=r"x\."):
        read_image(path)


# --- spacing ---------------------------------------------------------------------------------------------------------


def test_spacing_of_imagej_and_ome(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 3.0, "unit": "um"}
    tifffile.imwrite(tmp_path / "ij.tif", volume(), imagej=True, resolution=(4.0, 2.0), metadata=metadata)
    assert read_image(tmp_path / "ij.tif").spacing_mm == pytest.approx((0.003, 0.0005, 0.00025))
    ome = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2, "PhysicalSizeZUnit": "mm"}
    tifffile.imwrite(tmp_path / "x.ome.tif", volume(), metadata=ome)
    assert read_image(tmp_path / "x.ome.tif").spacing_mm == pytest.approx((2, 0.00025, 0.0005))
    tifffile.imwrite(tmp_path / "dpi.tif", volume(), resolution=(300, 300), resolutionunit="INCH")
    assert read_image(tmp_path / "dpi.tif").spacing_mm is None


@given(
    values=st.tuples(*[st.floats(1e-6, 1e6)] * 3),
    unit=st.sampled_from([("nm", 1e-6), ("um", 1e-3), ("mm", 1.0), ("cm", 10.0), ("m", 1000.0)]),
    order=st.permutations("xyz"),
)
def test_stated_spacing_in_any_order(values: tuple[float, ...], unit: tuple[str, float], order: list[str]) -> None:
    by_axis = dict(zip("xyz", values, strict=True))
    parsed = parse_spacing([*(f"{axis}={by_axis[axis]!r}" for axis in order), unit[0]])
    assert parsed == {axis: value * unit[1] for axis, value in by_axis.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "x=1 y=1 z=1",
            "--spacing x=1 y=1 z=1: the unit is missing. End with one of nm, um, mm, cm, m, as in --spacing",
        ),
        ("1 1 1 mm", "--spacing 1 1 1 mm: '1' is no axis with a positive number, as in --spacing x=0.5 y=0.5 z=2 mm."),
        ("x=0 y=1 mm", "--spacing x=0 y=1 mm: 'x=0' is no axis with a positive number"),
        ("x=1 x=1 mm", "--spacing x=1 x=1 mm: 'x=1' is no axis with a positive number"),
        ("x=1e y=1 mm", "--spacing x=1e y=1 mm: 'x=1e' is no axis with a positive number"),
        ("z=1 mm", "--spacing z=1 mm: give x and y, and z for volumes, as in --spacing x=0.5 y=0.5 z=2 mm."),
    ],
)
def test_spacing_that_is_not_stated_well(words: str, message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        parse_spacing(words.split())
    assert str(caught.value).startswith(message)


def test_spacing_beside_the_image(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".tif", volume(), LABEL)
    assert scans.refusal().startswith(
        "result: 2 problems:\n  case a: images/a.tif: nothing tells its voxel spacing. Give it, as in --spacing x=0.5 "
        'y=0.5 z=2 mm, or write {"spacing": [z, y, x]} in mm into a.json beside it.'
    )
    for case in ("a", "b"):
        (scans.folder / f"images/{case}.json").write_text(json.dumps({"spacing": SPACING}))
    scans.convert()
    assert tuple(as_nnunet_reads(scans.target, "a")[2]) == SPACING


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ('{"spacing": [2, 0.5, 0.3]}', "its header says 2x0.5x0.25 mm, the file beside it 2x0.5x0.3; give --spacing"),
        ('{"spacing": [2, 0.5]}', "it has 2 values, and the image has 3 axes"),
        ('{"voxels": 3}', "it has no list 'spacing'"),
    ],
)
def test_spacing_files_that_do_not_fit(tmp_path: Path, beside: str, message: str) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    (scans.folder / "images/b.json").write_text(beside)
    assert message in scans.refusal()


# --- labels, cases, targets ------------------------------------------------------------------------------------------


def test_values_of_labels_are_renumbered(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".png", volume("uint8", (6, 7)), np.eye(6, 7, dtype=np.uint8) * 255)
    assert "case a: labels/a.png: the label holds 255; expected 0, 1. Mend the case" in scans.refusal()
    scans.convert(labels={"background": 0, "vessel": 255})
    assert json.loads((scans.target / "dataset.json").read_text())["labels"] == {"background": 0, "vessel": 1}
    assert np.array_equal(as_nnunet_reads(scans.target, "a")[1][0, 0], np.eye(6, 7))


@given(hnp.arrays(np.int16, (4, 5), elements=st.sampled_from([-1, 0, 7, 300])))
def test_renumbering(label: np.ndarray) -> None:
    values = (0, 7, 300, -1)
    numbers = relabel(label, values)
    assert numbers.dtype == np.uint8
    assert np.array_equal(np.array(values)[numbers], label)


def test_names_and_values_of_labels() -> None:
    assert parse_labels(["background", "vessel"]) == {"background": 0, "vessel": 1}
    assert parse_labels(["background=0", "ignore=-1"]) == {"background": 0, "ignore": -1}
    for words in (["background=0", "vessel"], ["a", "a"], ["a=1", "b=1"], ["a=x"], ["=1"]):
        with pytest.raises(
            NnplugError, match=r"give different names, each with its value in the files or none of them"
        ):
            parse_labels(words)


@pytest.mark.parametrize(
    ("file", "voxels", "geometry", "message"),
    [
        ("labels/b.mha", LABEL[:2], {}, "labels/b.mha: it has 2x4x5 voxels, the first channel has 3x4x5"),
        (
            "labels/b.mha",
            LABEL,
            {"spacing": (2, 0.5, 0.5)},
            "its spacing is 2x0.5x0.5, that of the first channel 2x0.5x",
        ),
        ("labels/b.mha", LABEL, GEOMETRY, "labels/b.mha: its origin is 3x-7.5x11, that of the first channel 0x0x0"),
        ("labels/b.mha", LABEL + 0.5, {}, "labels/b.mha: the label holds 0.5, 1.5; expected 0, 1"),
        (
            "images/b.mha",
            volume("float32") * np.nan,
            {},
            "images/b.mha: NaN or infinity in 60 voxels; replace them by",
        ),
    ],
)
def test_bad_cases(tmp_path: Path, file: str, voxels: np.ndarray, geometry: dict[str, Any], message: str) -> None:
    scans = Scans(tmp_path, ".mha", volume("uint8"), LABEL)
    scans.save(file, voxels, **geometry)
    assert message in scans.refusal()
    assert message in scans.refusal(dry_run=True)


def test_channels_of_several_files(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    for case in ("a", "b"):
        (scans.folder / f"images/{case}.mha").unlink()
        for index, name in enumerate(("t1", "t2")):
            scans.save(f"{case}_{name}.mha", volume() // (index + 1))
    scans.convert(image_patterns=["{case}_{channel}.mha"], label_pattern="labels/{case}.mha")
    assert json.loads((scans.target / "dataset.json").read_text())["channel_names"] == {"0": "t1", "1": "t2"}
    images, _, _ = as_nnunet_reads(scans.target, "b")
    assert np.array_equal(images, np.stack([volume(), volume() // 2]))


def test_an_inventory_of_what_was_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans = Scans(tmp_path, ".mha", volume("uint8"), LABEL)
    inventory = tmp_path / "made.json"
    arguments = ["convert", "images", str(scans.folder), "--labels", "background", "box", "--inventory", str(inventory)]
    assert main([*arguments, "-np", "0", "--file-ending", ".tif"]) == 0
    assert json.loads(inventory.read_text())["dataset"]["a"] == {
        "images": ["made/imagesTr/a_0000.tif"],
        "label": "made/labelsTr/a.tif",
    }
    assert main(["inventory", "check", str(inventory), "-np", "0"]) == 0
    capsys.readouterr()
    assert main([*arguments, "-np", "0", "--file-ending", ".mha"]) == 2
    assert "was made with other settings (file_ending, overwrite_image_reader_writer)" in capsys.readouterr().err
    assert main([*arguments, "-np", "0", "--file-ending", ".mha", "--overwrite"]) == 0
    assert sorted(path.name for path in (tmp_path / "made/imagesTr").iterdir()) == ["a_0000.mha", "b_0000.mha"]


def test_an_inventory_that_is_there_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans = Scans(tmp_path, ".mha", volume("uint8"), LABEL)
    inventory = tmp_path / "made.json"
    inventory.write_text("mine")
    arguments = ["convert", "images", str(scans.folder), "--labels", "background", "box", "--inventory", str(inventory)]
    assert main([*arguments, "-np", "0"]) == 2
    assert "is there already (made.json) and not from this command" in capsys.readouterr().err
    assert inventory.read_text() == "mine"


def test_images_to_predict(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".tif", volume(), LABEL)
    output = tmp_path / "to_predict"
    command = ["convert", "images", str(scans.folder), "--images", "images/{case}.tif", "-o", str(output)]
    assert main([*command, "--spacing", "x=0.25", "z=2", "y=0.5", "mm", "-np", "0"]) == 0
    assert sorted(path.name for path in output.iterdir() if path.name[0] != ".") == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert read_image(output / "b_0000.nii.gz").spacing_mm == SPACING


@pytest.mark.parametrize("table", ["case,ct\na,images/a.mha\n", "case,ct,label\na,images/a.mha,labels/a.mha\n"])
def test_images_of_a_table_to_predict(tmp_path: Path, table: str) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    (scans.folder / "table.csv").write_text(table)
    output = tmp_path / "to_predict"
    assert main(["convert", "images", "--csv", str(scans.folder / "table.csv"), "-o", str(output), "-np", "0"]) == 0
    assert sorted(path.name for path in output.iterdir() if path.name[0] != ".") == ["a_0000.nii.gz"]


def test_a_file_is_used_once(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    lines = ["case,ct,label", "a,images/a.mha,labels/a.mha", "b,images/a.mha,labels/b.mha"]
    (scans.folder / "table.csv").write_text("\n".join(lines))
    assert scans.refusal(table=scans.folder / "table.csv") == (
        "table.csv: case b, images/a.mha: used as channel 0, and by case a as channel 0. Each file belongs to one case "
        "and one channel."
    )


# --- what was converted before ---------------------------------------------------------------------------------------


def test_a_case_left_out_or_added_keeps_the_others(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    scans.save("labels/b.mha", LABEL + 5)
    assert "case b: labels/b.mha: the label holds 5, 6; expected 0, 1. Mend the case, or leave it out." in (
        scans.refusal()
    )
    written = (scans.target / "imagesTr/a_0000.nii.gz").stat().st_mtime_ns
    for file in ("images/b.mha", "labels/b.mha"):
        (scans.folder / file).unlink()
    scans.convert()
    assert json.loads((scans.target / "dataset.json").read_text())["numTraining"] == 1
    for case in ("c", "d"):
        scans.save(f"images/{case}.mha", volume())
        scans.save(f"labels/{case}.mha", LABEL)
    scans.convert()
    assert json.loads((scans.target / "dataset.json").read_text())["numTraining"] == 3
    for path in [*scans.folder.glob("*/d.*"), *scans.target.glob("*/d[._]*")]:
        path.unlink()
    scans.convert()
    assert json.loads((scans.target / "dataset.json").read_text())["numTraining"] == 2
    assert (scans.target / "imagesTr/a_0000.nii.gz").stat().st_mtime_ns == written


@pytest.mark.parametrize("as_inventory", [True, False])
def test_an_edited_description_is_not_replaced(tmp_path: Path, as_inventory: bool) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    inventory = tmp_path / "result.json" if as_inventory else None
    scans.convert(inventory=inventory)
    file = inventory or scans.target / "dataset.json"
    written = file.read_bytes()
    edited = written.replace(b"box", b"cube")
    file.write_bytes(edited)
    assert scans.convert(inventory=inventory) == scans.target
    (scans.target / "imagesTr/b_0000.nii.gz").unlink()
    for dry_run in (True, False):
        with pytest.raises(NnplugError) as caught:
            scans.convert(inventory=inventory, dry_run=dry_run)
        assert str(caught.value) == (
            f"{file} has been edited since, or is not from this command. Move it away to keep it, or give --overwrite "
            "to write it anew."
        )
    assert file.read_bytes() == edited
    assert not (scans.target / "imagesTr/b_0000.nii.gz").exists()
    scans.convert(inventory=inventory, overwrite=True)
    assert file.read_bytes() == written


def test_hidden_files_are_no_cases(tmp_path: Path) -> None:
    scans = Scans(tmp_path, ".mha", volume(), LABEL)
    scans.convert()
    (scans.target / "imagesTr/.DS_Store").touch()
    assert scans.convert(overwrite=True) == scans.target


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--labels", "background", "box"],
            "Where to? Give --dataset-id N --dataset-name NAME, --inventory FILE, or -o DIR",
        ),
        (
            ["--dataset-id", "3", "--dataset-name", "x"],
            "-o DIR is for images to predict. A data set has labels: name them",
        ),
        (["-o", "out"], "Say which files: --images 'PATTERN', and --label 'PATTERN' with --labels."),
        (
            ["-o", "out", "--images", "images/{case}.mha", "--file-ending", ".gif"],
            "--file-ending .gif: nnU-Net has .nii.gz",
        ),
        (
            ["-o", "out", "--images", "images/{case}.mha", "--channels", "a", "b"],
            "--channels has 2 names (a, b), and ",
        ),
        (["-o", "out", "--images", "images/{case}.gif"], "fits images/{case}.gif. Patterns look like"),
        (["--csv", "x.csv", "-o", "out"], "Where are the files? Give a FOLDER or --csv FILE, one of them."),
        (["-o", "out", "--images", "images/{case}.mha", "--label", "x"], "What do the labels mean? Name their values"),
        (
            ["--inventory", "x.json", "--labels", "a", "b"],
            "no label 'background'. nnU-Net needs \"background\": 0.",
        ),
    ],
)
def test_mistakes(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans = Scans(tmp_path, ".mha", volume("uint8"), LABEL)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "images", str(scans.folder), *arguments, "-np", "0"]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]
