"""Headers of images and the files that are not whole."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnplug.image_headers import (
    NNUNET_SPACING_TOLERANCE,
    ROUNDED_SPACING_TOLERANCE,
    ImageHeader,
    UnreadableImageError,
    decompressed_length,
    geometry_differences,
    read_header,
)
from PIL import Image
from support.models import write_image


def truncate(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_itk_header(tmp_path: Path, ending: str) -> None:
    path = write_image(tmp_path / f"a{ending}", shape=(14, 16, 18), spacing_mm=2.0)
    assert read_header(path, "SimpleITKIO") == ImageHeader((18, 16, 14), (2.0, 2.0, 2.0), 1)


def test_four_axes_hold_channels(tmp_path: Path) -> None:
    image = sitk.JoinSeries([sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32)) for _ in range(3)])
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    header = read_header(tmp_path / "a.nii.gz", "SimpleITKIO")
    assert (header.size, header.num_channels) == ((6, 5, 4), 3)


def test_vector_voxels_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True), str(tmp_path / "a.nrrd"))
    with pytest.raises(UnreadableImageError, match="its voxels hold 3 values; expected a file a channel"):
        read_header(tmp_path / "a.nrrd", "SimpleITKIO")


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_truncated_nifti_is_refused_though_itk_reads_it(tmp_path: Path, ending: str, reader: str) -> None:
    path = truncate(write_image(tmp_path / f"a{ending}", shape=(40, 40, 40)))
    zeros = np.mean(sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 0)
    assert zeros > 0.3, "ITK now refuses it itself"
    with pytest.raises(UnreadableImageError, match="the file is truncated"):
        read_header(path, reader)


def test_a_file_of_several_compressed_blocks_is_whole(tmp_path: Path) -> None:
    content = gzip.decompress(write_image(tmp_path / "a.nii.gz").read_bytes())
    blocks = [content[start : start + 5000] for start in range(0, len(content), 5000)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(map(gzip.compress, blocks)))
    assert read_header(tmp_path / "a.nii.gz", "SimpleITKIO").num_channels == 1
    (tmp_path / "a.nii.gz").write_bytes(b"".join(map(gzip.compress, blocks[:-1])))
    with pytest.raises(UnreadableImageError, match="the file is truncated"):
        read_header(tmp_path / "a.nii.gz", "SimpleITKIO")


def test_damage_inside_a_compressed_file(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz", shape=(40, 40, 40))
    content = bytearray(path.read_bytes())
    assert decompressed_length(path) == 352 + 4 * 40**3
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="the file is truncated or damaged"):
        decompressed_length(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the file is empty"), (b"no image" * 100, "Unable to determine ImageIO reader")]
)
def test_no_image(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=message):
        read_header(tmp_path / "a.nii.gz", "SimpleITKIO")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("I;16", 1), ("RGB", 3), ("RGBA", 4), ("P", None)])
def test_png_header(tmp_path: Path, mode: str, channels: int | None) -> None:
    Image.new(mode, (20, 10)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png", "NaturalImage2DIO") == ImageHeader((20, 10), None, channels)


def test_truncated_png(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError):
        read_header(truncate(tmp_path / "a.png"), "NaturalImage2DIO")


def test_tiff_header(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 6, 7), np.uint8), compression="zlib")
    assert read_header(tmp_path / "a.tif", "Tiff3DIO") == ImageHeader((5, 6, 7), None, 1)
    with pytest.raises(UnreadableImageError, match="its shape is 5x6x7; expected a grey or RGB image"):
        read_header(tmp_path / "a.tif", "NaturalImage2DIO")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((6, 7, 3), np.uint8), photometric="rgb")
    assert read_header(tmp_path / "b.tif", "NaturalImage2DIO") == ImageHeader((6, 7), None, 3)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_tiff(tmp_path: Path, compression: str | None, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (5, 60, 70), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, compression=compression)
    assert read_header(tmp_path / "a.tif", "Tiff3DIO") == ImageHeader((5, 60, 70), None, 1)
    with pytest.raises(UnreadableImageError, match=r"the file is truncated|2 axes instead of 3, or is truncated"):
        read_header(truncate(tmp_path / "a.tif", share), "Tiff3DIO")


def test_unknown_reader_is_left_to_nnunet(tmp_path: Path) -> None:
    assert read_header(tmp_path / "a.xyz", "SomeOtherIO") is None


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({}, set()),
        ({"spacing_mm": (0.5, 2.0001)}, set()),
        ({"spacing_mm": (0.5001, 2.0)}, {"spacing"}),
        ({"spacing_mm": None, "origin_mm": None, "direction": None}, set()),
        ({"origin_mm": (10.0, -3.004)}, set()),
        ({"origin_mm": (10.0, -3.006)}, {"origin"}),
        ({"direction": (1.0, 0.0009, 0.0, 1.0)}, set()),
        ({"direction": (1.0, 0.0011, 0.0, 1.0), "spacing_mm": (0.6, 2.0)}, {"direction", "spacing"}),
        ({"origin_mm": (10.0,)}, {"origin"}),
    ],
)
def test_geometry_that_differs(changes: dict[str, tuple[float, ...] | None], differing: set[str]) -> None:
    first = ImageHeader((4, 4), (0.5, 2.0), 1, (10.0, -3.0), (1.0, 0.0, 0.0, 1.0))
    found = geometry_differences(replace(first, **changes), first, ROUNDED_SPACING_TOLERANCE)  # type: ignore[arg-type]
    assert set(found) == differing
    strict = geometry_differences(replace(first, spacing_mm=(0.5, 2.0001)), first, NNUNET_SPACING_TOLERANCE)
    assert strict == {"spacing": ((0.5, 2.0001), (0.5, 2.0))}
