"""What only the files tell: headers, voxels, and what differs between cases."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnplug.errors import NnplugError
from nnplug.inventory.case_check import image_problems, label_problems
from nnplug.inventory.checking import check_cases
from nnplug.inventory.loading import load_inventory
from nnplug.inventory.overview import SIDE, draw_case, write_overview
from nnplug.inventory.readers import choose_reader
from nnplug.processes.case_pool import Pool
from PIL import Image
from support.inventories import SHAPE, MadeInventory, make_case

IN_THIS_PROCESS = Pool(0)
RESAMPLE = "Resample it to the grid of the first channel, or leave the case out."
COPY = "Copy the geometry of the first channel if the voxels do match, resample if not, or leave the case out."
IMAGE, LABEL = "images/case_0_0000.nii.gz", "labels/case_0.nii.gz"


@pytest.fixture
def made(tmp_path: Path) -> MadeInventory:
    return MadeInventory(tmp_path / "data")


def problems_of(made: MadeInventory, *, voxels: bool = True) -> list[str]:
    inventory, problems = load_inventory(made.write())
    assert problems == []
    _, problems = check_cases(inventory, IN_THIS_PROCESS, voxels=voxels)
    return [str(problem).replace(f"{made.folder}{os.sep}", "") for problem in problems]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_good_cases(tmp_path: Path, ending: str) -> None:
    made = MadeInventory(tmp_path, channels=("T1", "T2"), ending=ending)
    assert problems_of(made) == []


def test_what_is_reported_of_a_case(made: MadeInventory) -> None:
    inventory, _ = load_inventory(made.path)
    reports, _ = check_cases(inventory, IN_THIS_PROCESS, voxels=True, pictures=True)
    report = reports["case_1"]
    assert (report.headers.size, report.headers.spacing_mm) == (SHAPE[::-1], (1.0, 1.0, 1.0))
    assert report.label_voxels == {1: int(make_case(1)[1].sum())}
    assert report.picture is not None
    assert report.picture.shape == (round(SIDE * 8 / 10), SIDE, 3)


def test_only_headers_are_read_when_that_is_wanted(made: MadeInventory) -> None:
    made.save(LABEL, make_case(0)[1] * 3)
    assert problems_of(made, voxels=False) == []
    assert len(problems_of(made)) == 1


def test_only_some_cases(made: MadeInventory) -> None:
    made.save(LABEL, make_case(0)[1] * 3)
    inventory, _ = load_inventory(made.path)
    reports, problems = check_cases(inventory, IN_THIS_PROCESS, voxels=True, cases=["case_1"])
    assert (list(reports), problems) == (["case_1"], [])


# --- files that can not be read --------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no image")


def without_voxels(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 0, 4), np.float32), np.eye(4)), path)


@pytest.mark.parametrize(
    ("file", "spoil", "why"),
    [
        (IMAGE, cut, "the file is truncated or damaged"),
        (IMAGE, empty, "the file is empty"),
        (LABEL, empty, "the file is empty"),
        (IMAGE, without_voxels, "it has no voxels"),
        (LABEL, without_voxels, "it has no voxels"),
    ],
)
def test_unreadable_files(made: MadeInventory, file: str, spoil: Callable[[Path], None], why: str) -> None:
    spoil(made.folder / file)
    advice = "Mend or replace the file, or leave the case out."
    expected = [f"case case_0, {file}: it can not be read by SimpleITKIO: {why}. {advice}"]
    assert problems_of(made, voxels=False) == expected
    assert problems_of(made) == expected


def test_no_image_at_all(made: MadeInventory) -> None:
    text(made.folder / LABEL)
    (problem,) = problems_of(made)
    assert problem.startswith(f"case case_0, {LABEL}: it can not be read by SimpleITKIO: ")


def test_damage_that_the_length_does_not_show(made: MadeInventory) -> None:
    path = made.folder / IMAGE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert problems_of(made, voxels=False) == []
    assert problems_of(made) == [
        f"case case_0: {IMAGE} can not be read: the file is truncated or damaged. "
        "Mend or replace the file, or leave the case out."
    ]


# --- channels --------------------------------------------------------------------------------------------------------


def test_channel_count(made: MadeInventory) -> None:
    made.content["channel_names"] = {"0": "T1", "1": "T2"}
    advice = "List the images of every channel, in that order."
    assert problems_of(made) == [
        f"case case_{index}: it has 1 channels (case_{index}_0000.nii.gz holds 1), and channel_names has 2 (T1, T2). "
        f"{advice}"
        for index in range(2)
    ]


def png_inventory(folder: Path) -> MadeInventory:
    made = MadeInventory(folder, num_cases=3)
    made.content["file_ending"] = ".png"
    for index, entry in enumerate(made.content["dataset"].values()):
        image, label = make_case(index, (16, 20))
        entry.update(images=[f"{index}.png"], label=f"{index}_label.png")
        made.save(f"{index}.png", image.clip(0, 255).astype(np.uint8))
        made.save(f"{index}_label.png", label)
    return made


def test_grey_and_rgb_are_not_mixed(tmp_path: Path) -> None:
    made = png_inventory(tmp_path)
    assert problems_of(made) == []
    made.content["channel_names"] = {"0": "R", "1": "G", "2": "B"}
    for index in (1, 2):
        made.save(f"{index}.png", np.dstack([make_case(index, (16, 20))[0].clip(0, 255).astype(np.uint8)] * 3))
    grey = make_case(0, (16, 20))[0].clip(0, 255).astype(np.uint8)
    made.entry()["images"] = [made.save(f"0_{channel}.png", grey).name for channel in range(3)]
    assert problems_of(made) == [
        "case case_0: its images are grey, those of other cases RGB. Convert them all to the same kind."
    ]


def test_labels_in_colour_are_refused(tmp_path: Path) -> None:
    made = png_inventory(tmp_path)
    label = make_case(0, (16, 20))[1]
    made.save("0_label.png", np.dstack([label] * 3))
    palette = Image.fromarray(label).convert("P")
    palette.save(made.folder / "1_label.png")
    made.entry("case_2")["label"] = made.save("2_label.jpg", label).name
    advice = "Save it as one channel of integers without loss, for example as PNG or NIfTI."
    found = problems_of(made, voxels=False)
    assert f"case case_0, 0_label.png: the label holds 3 channels. {advice}" in found
    assert f"case case_1, 1_label.png: the label holds colours of a palette. {advice}" in found
    assert f"case case_2, 2_label.jpg: JPEG changes the values of a label. {advice}" in found


def test_stacks_of_slices_are_no_2d_images(tmp_path: Path) -> None:
    made = png_inventory(tmp_path)
    made.content["file_ending"] = ".tif"
    for index, entry in enumerate(made.content["dataset"].values()):
        image, label = make_case(index, (16, 20))
        entry.update(images=[f"{index}_0000.tif"], label=f"{index}.tif")
        made.save(f"{index}_0000.tif", image)
        made.save(f"{index}.tif", label)
    assert problems_of(made) == []
    made.save("1_0000.tif", make_case(1)[0])
    (problem,) = problems_of(made)
    assert problem == (
        "case case_1, 1_0000.tif: it can not be read by NaturalImage2DIO: its shape is 6x8x10; expected a grey or RGB "
        "image. Mend or replace the file, or leave the case out."
    )


# --- geometry --------------------------------------------------------------------------------------------------------


def test_size(made: MadeInventory) -> None:
    made.save(LABEL, make_case(0)[1][:5])
    assert problems_of(made) == [
        f"case case_0, {LABEL}: it has 10x8x5 voxels, the first channel has 10x8x6. {RESAMPLE}"
    ]


TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"spacing": (1.0, 1.0, 1.001)}, f"its spacing is 1x1x1.001 mm, that of the first channel 1x1x1. {RESAMPLE}"),
        ({"spacing": (1.0, 1.0, 1.000001)}, None),
        ({"origin": (0.0, 5.0, 0.0)}, f"its origin is 0, 5, 0 mm, that of the first channel 0, 0, 0. {COPY}"),
        ({"origin": (0.0, 0.005, 0.0)}, None),
        (
            {"direction": TURNED},
            "its direction is 0, 1, 0, -1, 0, 0, 0, 0, 1, that of the first channel 1, 0, 0, 0, 1, 0, 0, 0, 1. " + COPY,
        ),
    ],
)
@pytest.mark.parametrize("file", ["images/case_0_0001.nii.gz", LABEL])
def test_geometry(tmp_path: Path, file: str, geometry: dict, message: str | None) -> None:
    made = MadeInventory(tmp_path, channels=("T1", "T2"))
    array = make_case(0)[1]
    made.save(file, array if file == LABEL else array.astype(np.float32), **geometry)
    # a direction that is not the identity does not move the origin in NIfTI files
    expected = [] if message is None else [f"case case_0, {file}: {message}"]
    assert problems_of(made, voxels=False) == expected


def test_geometry_is_compared_by_nibabel_too(tmp_path: Path) -> None:
    made = MadeInventory(tmp_path, ending=".nii")
    made.save("labels/case_0.nii", make_case(0)[1], origin=(0.0, 0.0, 2.0))
    assert problems_of(made) == [
        f"case case_0, labels/case_0.nii: its origin is 0, 0, 2 mm, that of the first channel 0, 0, 0. {COPY}"
    ]


SHEARED = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 1 0.3 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 10 8 6\n"
    "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
)


def test_axes_that_are_not_at_right_angles(tmp_path: Path) -> None:
    made = MadeInventory(tmp_path, ending=".mha")
    for file in ("images/case_0_0000.mha", "labels/case_0.mha"):
        (made.folder / file).write_bytes(SHEARED.encode() + make_case(0)[1].tobytes())
    direction = "1, 0, 0, 0.3, 1, 0, 0, 0, 1"
    assert problems_of(made) == [
        f"case case_0, {file}: its axes are not at right angles (direction {direction}). "
        "Resample it to a grid with right angles."
        for file in ("images/case_0_0000.mha", "labels/case_0.mha")
    ]


def test_a_nifti_with_such_axes_can_not_be_read_by_itk(made: MadeInventory) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    image = nibabel.Nifti1Image(make_case(0)[0].transpose(2, 1, 0), affine)
    image.set_qform(None, 0)
    nibabel.save(image, made.folder / "images" / "case_1_0000.nii.gz")
    (problem,) = problems_of(made)
    assert "it can not be read by SimpleITKIO: ITK ERROR: ITK only supports orthonormal direction cosines" in problem


def tiff_inventory(folder: Path) -> MadeInventory:
    return MadeInventory(folder, ending=".tiff")


def test_the_spacing_of_a_tiff_is_in_a_file_beside_it(tmp_path: Path) -> None:
    made = tiff_inventory(tmp_path)
    inventory, _ = load_inventory(made.path)
    assert choose_reader(inventory).__name__ == "Tiff3DIO"
    (made.folder / "images" / "case_0.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    assert problems_of(made) == [
        f"case case_0, labels/case_0.tiff: its spacing is 1x1x1 mm, that of the first channel 3x0.5x0.5. {RESAMPLE}"
    ]
    (made.folder / "labels" / "case_0.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    assert problems_of(made) == []
    for folder in ("images", "labels"):
        (made.folder / folder / "case_0.json").write_text('{"spacing": [0, 1, 1]}')
    assert problems_of(made, voxels=False) == [
        f"case case_0, {file}: its voxel spacing is 0x1x1 mm. Mend the header."
        for file in ("images/case_0_0000.tiff", "labels/case_0.tiff")
    ]
    (made.folder / "labels" / "case_0.json").write_text('{"spaces": 3}')
    (problem,) = problems_of(made)
    assert "it can not be read by Tiff3DIO: its spacing file case_0.json holds no list 'spacing'" in problem


def test_a_spacing_file_that_nnunet_does_not_find(tmp_path: Path) -> None:
    made = tiff_inventory(tmp_path)
    (made.folder / "images" / "case_0_0000.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    assert problems_of(made) == [
        "case case_0, images/case_0_0000.json: nnU-Net does not read this spacing file, but case_0.json. Rename it."
    ]


# --- voxels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha"])
def test_nan_and_infinite_voxels(tmp_path: Path, ending: str) -> None:
    made = MadeInventory(tmp_path, channels=("T1", "T2"), ending=ending)
    image = make_case(0)[0]
    image[0, 0, :3] = (np.nan, np.inf, -np.inf)
    made.save(f"images/case_0_0001{ending}", image)
    assert problems_of(made) == [
        f"case case_0, images/case_0_0001{ending}: NaN or infinity in 3 voxels. "
        "Replace them by a value that means nothing there, for example 0."
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((2.0, 3.0), "the label holds 2, 3; labels has 0, 1. Add the label, or change these voxels."),
        (
            (0.5, 3.0),
            "the label holds values that are no integers (0.5). "
            "Interpolate labels with nearest neighbour; save integers.",
        ),
        (
            (math.nan, 1.0),
            "NaN or infinity in 1 voxel. Replace them by a value that means nothing there, for example 0.",
        ),
        ((-1.0, 1.0), "the label holds -1; labels has 0, 1. Add the label, or change these voxels."),
        ((1.0, 0.0), None),
    ],
)
def test_label_values(made: MadeInventory, values: tuple[float, float], message: str | None) -> None:
    label = make_case(0)[1].astype(np.float32)
    label[0, 0, :2] = values
    made.save(LABEL, label)
    assert problems_of(made) == ([] if message is None else [f"case case_0, {LABEL}: {message}"])


def test_a_label_of_nan_in_another_format(tmp_path: Path) -> None:
    made = MadeInventory(tmp_path, ending=".mha")
    label = make_case(0)[1].astype(np.float32)
    label[0, 0, 0] = np.nan
    made.save("labels/case_0.mha", label)
    assert problems_of(made) == [
        "case case_0, labels/case_0.mha: the label holds values that are no integers (nan). "
        "Interpolate labels with nearest neighbour; save integers."
    ]


LABEL_IMAGES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.sampled_from([0, 1, 2, 3, -1, 0.5])
)


@given(label=LABEL_IMAGES, highest=st.integers(0, 3))
def test_every_value_outside_the_set_is_found(label: np.ndarray, highest: int) -> None:
    allowed = range(highest + 1)
    assert bool(label_problems("a", Path("a"), label[None], allowed)) == (not set(label.ravel()) <= set(allowed))


@given(bad=st.sets(st.integers(0, 5)))
def test_the_file_of_a_bad_channel_is_named(bad: set[int]) -> None:
    images = np.zeros((6, 2, 2, 2), np.float32)
    images[sorted(bad), 0, 0, 0] = np.nan
    files = [Path("one"), Path("three"), Path("two")]
    found = image_problems("a", files, [1, 3, 2], images)
    assert [problem.file.name for problem in found] == [
        ["one", "three", "three", "three", "two", "two"][index] for index in sorted(bad)
    ]


# --- which reader ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".tiff"])
def test_the_reader_is_the_one_nnunet_chooses(tmp_path: Path, ending: str) -> None:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    inventory, _ = load_inventory(MadeInventory(tmp_path, ending=ending).path)
    image = str(inventory.cases["case_0"].images[0])
    assert choose_reader(inventory) is determine_reader_writer_from_dataset_json(inventory.dataset_json(), image)


def test_3d_and_2d_tif_have_different_readers(tmp_path: Path) -> None:
    for shape, reader in (((16, 20), "NaturalImage2DIO"), (SHAPE, "Tiff3DIO")):
        made = MadeInventory(tmp_path / reader, num_cases=1, ending=".tif")
        made.save("images/case_0_0000.tif", make_case(0, shape)[0])
        assert choose_reader(load_inventory(made.path)[0]).__name__ == reader


def test_endings_that_nnunet_can_not_write(made: MadeInventory) -> None:
    made.content["file_ending"] = ".jpg"
    inventory, _ = load_inventory(made.write())
    with pytest.raises(
        NnplugError, match=r"nnU-Net can not write file_ending \.jpg\. It can write \.png, \.bmp, \.tif"
    ):
        choose_reader(inventory)
    made.content["overwrite_image_reader_writer"] = "NoSuchReader"
    inventory, _ = load_inventory(made.write())
    with pytest.raises(
        NnplugError, match="overwrite_image_reader_writer is 'NoSuchReader', which nnU-Net does not have"
    ):
        choose_reader(inventory)
    made.content["overwrite_image_reader_writer"] = "NibabelIO"
    assert choose_reader(load_inventory(made.write())[0]).__name__ == "NibabelIO"


def test_a_reader_whose_headers_are_not_known(made: MadeInventory) -> None:
    made.content["overwrite_image_reader_writer"] = "SimpleITKIOWithReorient"
    assert problems_of(made) == []
    made.save(LABEL, make_case(0)[1] * 3)
    assert problems_of(made) == [
        f"case case_0, {LABEL}: the label holds 3; labels has 0, 1. Add the label, or change these voxels."
    ]


def test_different_endings_and_folders_in_one_data_set(made: MadeInventory) -> None:
    image, label = make_case(0)
    made.entry()["images"] = [str(made.save("elsewhere/scan.mha", image).relative_to(made.folder))]
    made.entry()["label"] = str(made.save("truth/mask.nrrd", label).relative_to(made.folder))
    assert problems_of(made) == []


# --- the picture -----------------------------------------------------------------------------------------------------


def test_the_slice_with_the_most_label_is_drawn_with_its_outline() -> None:
    image = np.linspace(0, 1, 3 * 20 * 40, dtype=np.float32).reshape(3, 20, 40)
    label = np.zeros((3, 20, 40), np.uint8)
    label[2, 5:15, 10:30] = 1
    picture = draw_case(image, label)
    assert picture.shape == (SIDE // 2, SIDE, 3)
    coloured = (picture[..., 0] != picture[..., 1]) | (picture[..., 1] != picture[..., 2])
    rows, columns = np.nonzero(coloured)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 59, 40, 119)
    assert not coloured[30:50, 50:110].any(), "only the outline"
    assert not (draw_case(image, None) != draw_case(image, np.zeros_like(label))).any()


def test_pictures_keep_the_aspect_of_the_spacing() -> None:
    image = np.zeros((1, 20, 20), np.float32)
    assert draw_case(image, None, (1.0, 1.0, 4.0)).shape == (SIDE // 4, SIDE, 3)


def test_the_overview_holds_every_case(tmp_path: Path) -> None:
    pictures = {f"case_{index}": np.full((SIDE, SIDE, 3), 10 * index + 5, np.uint8) for index in range(7)}
    write_overview(tmp_path / "new" / "overview.png", pictures)
    with Image.open(tmp_path / "new" / "overview.png") as sheet:
        shown = {value for _, value in sheet.convert("L").getcolors(1 << 20)}
    assert shown >= {10 * index + 5 for index in range(7)}


def test_gz_of_another_length_is_still_read(made: MadeInventory) -> None:
    """Bytes behind the voxels, as some tools leave them, are no damage."""
    path = made.folder / IMAGE
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0" * 16))
    assert problems_of(made) == []
