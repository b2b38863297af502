"""``nnplug inspect``: what it tells is what nnU-Net's preprocessor made, and what is said where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnplug.cli import main
from PIL import Image
from support import DatasetForTests
from support.inventories import MadeInventory, save_image
from support.models import make_dataset_json, make_plans

NAME = "Dataset902_Made"


class Preprocessed:
    """A data set of one case by nnU-Net's preprocessor: 8 12 10 voxels (z y x) within a border of zeros, transposed."""

    def __init__(self, folder: Path) -> None:
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.root, self.folder = folder, folder / NAME
        self.folder.mkdir(parents=True)
        plans = make_plans(spacing=[1.0, 2.0, 0.5], use_mask_for_norm=[True])
        plans |= {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
        flat = {"inherits_from": "3d_fullres", "data_identifier": "flat", "patch_size": [8, 8], "spacing": [2.0, 0.5]}
        plans["configurations"]["2d"] = flat
        plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "data_identifier": "low"}
        self.dataset_json = make_dataset_json() | {"labels": {"background": 0, "ball": 1, "box": 2, "ignore": 3}}
        (self.folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        (self.folder / "dataset.json").write_text(json.dumps(self.dataset_json))
        self.image, self.label = self._write_raw(folder)
        for configuration in ("3d_fullres", "2d"):
            manager = PlansManager(plans)
            made = manager.get_configuration(configuration)
            (self.folder / made.data_identifier).mkdir()
            target = str(self.folder / made.data_identifier / "case_1")
            files = [str(folder / "image.nii.gz")], str(folder / "label.nii.gz")
            DefaultPreprocessor(verbose=False).run_case_save(target, *files, manager, made, self.dataset_json)

    @staticmethod
    def _write_raw(folder: Path) -> tuple[np.ndarray, np.ndarray]:
        image = np.zeros((10, 16, 13), np.float32)
        image[1:9, 2:14, 3:13] = np.random.default_rng(0).normal(50, 5, (8, 12, 10))
        image[4, 5, 6] = 0  # a hole, which is filled
        label = np.zeros(image.shape, np.uint8)
        label[3:5, 6:9, 6:10], label[6, 3:9, 5:7], label[7:9, 3:9, 4:9] = 1, 2, 3
        for name, array in (("image", image), ("label", label)):
            save_image(folder / f"{name}.nii.gz", array, spacing=(0.5, 1.0, 2.0))
        return image, label


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preprocessed:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return Preprocessed(tmp_path)


def report_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 2
    return capsys.readouterr().err.removeprefix("nnplug: error: ").rstrip("\n")


def test_geometry_labels_and_intensities(made: Preprocessed, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, "case_1", "-d", 902)
    assert report["configuration"] == "3d_fullres"
    # y z x, as the plans transpose
    assert (report["shape"], report["original_shape"]) == ([12, 8, 10], [16, 10, 13])
    assert report["crop_box"] == [[2, 14], [1, 9], [3, 13]]
    assert report["spacing_mm"] == report["original_spacing_mm"] == [1.0, 2.0, 0.5]
    assert (report["num_channels"], report["dtype"], report["label_dtype"]) == (1, "float32", "int16")
    assert {row["name"]: row["voxels"] for row in report["labels"]} == {
        "background": made.label[1:9, 2:14, 3:13].size - np.count_nonzero(made.label),
        **{name: np.count_nonzero(made.label == value) for name, value in (("ball", 1), ("box", 2), ("ignore", 3))},
    }
    assert sum(row["share"] for row in report["labels"]) == pytest.approx(1)
    inside = made.image[1:9, 2:14, 3:13]
    expected = (inside - inside.mean()) / inside.std()
    (channel,) = report["channels"]
    assert (channel["name"], channel["normalization"]) == ("MRI", "ZScoreNormalization")
    found = [channel[key] for key in ("mean", "std", "min", "max")]
    assert found == pytest.approx([0, 1, expected.min(), expected.max()], abs=1e-4)
    files = [made.folder / "nnUNetPlans_3d_fullres" / f"case_1{end}" for end in (".b2nd", "_seg.b2nd", ".pkl")]
    assert report["bytes_on_disk"] == sum(file.stat().st_size for file in files)


def test_slices_of_2d_keep_their_spacing_and_are_drawn_alone(
    made: Preprocessed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(capsys, "case_1", "-d", NAME, "-c", "2d", "--picture", tmp_path / "two.png")
    assert report["spacing_mm"] == [1.0, 2.0, 0.5]
    report_of(capsys, "case_1", "-d", NAME, "--picture", tmp_path / "three.png")
    sizes = [Image.open(tmp_path / name).size for name in ("two.png", "three.png")]
    assert sizes[0][0] == 320
    assert sizes[1][0] == 2 * sizes[0][0]


def test_the_ignore_label_has_no_outline(
    sparse_concrete: DatasetForTests, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sparse_concrete.activated():
        report = report_of(capsys, "concrete_0", "-d", 8, "--picture", tmp_path / "picture.png")
    ignored = next(row for row in report["labels"] if row["name"] == "ignore")
    assert ignored["share"] == pytest.approx(0.9)
    pixels = np.array(Image.open(tmp_path / "picture.png").convert("RGB")).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in pixels[np.ptp(pixels.astype(int), axis=1) > 0].tolist()}
    assert colours == {(230, 159, 0), (86, 180, 233)}


def test_voxels_outside_of_the_mask_and_undeclared_values_are_counted(
    made: Preprocessed, capsys: pytest.CaptureFixture[str]
) -> None:
    import blosc2

    path = made.folder / "nnUNetPlans_3d_fullres" / "case_1_seg.b2nd"
    seg = blosc2.open(str(path), mode="r")[:]
    seg[0, 0, 0, :7], seg[0, 0, 1, :2] = -1, 9
    path.unlink()
    blosc2.asarray(seg, urlpath=str(path))
    rows = {row["name"]: row["voxels"] for row in report_of(capsys, "case_1", "-d", 902)["labels"]}
    assert (rows["outside the mask"], rows["undeclared 9"]) == (7, 2)


def test_the_table(tiny_dataset: DatasetForTests, capsys: pytest.CaptureFixture[str]) -> None:
    with tiny_dataset.activated():
        name = tiny_dataset.splits[0]["val"][0]
        assert main(["inspect", name, "-d", "901"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name}\n  data set  Dataset901_Tiny, 3d_fullres of nnUNetPlans\n")
    for text in ("ZScoreNormalization", "float32; labels int16", "crop box  [0:", "background      0", "MB"):
        assert text in out


def test_an_inventory_is_found_in_its_cache(
    made: Preprocessed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = MadeInventory(tmp_path / "data")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "elsewhere")  # put back where the command changes it
    options = ["--inventory", inventory.path, "--dataset-id", 902, "--dataset-name", "Made", "--cache-dir", made.root]
    assert report_of(capsys, "case_1", *options)["dataset"] == NAME
    assert error_of(capsys, "case_1", "-d", 902, *options) == (
        "-d names a preprocessed data set, --inventory is one itself. Give one of them."
    )


def test_what_is_not_there(made: Preprocessed, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "case_1") == (
        "Which data set? Give -d ID, or --inventory FILE --dataset-id N --cache-dir DIR."
    )
    assert error_of(capsys, "cas_1", "-d", 902) == (
        f"{NAME} has no preprocessed case 'cas_1' in 3d_fullres. Did you mean 'case_1'? It has 1 case: case_1."
    )
    assert error_of(capsys, "case_1", "-d", 902, "-c", "3d") == (
        f"The plans 'nnUNetPlans' of {NAME} have no configuration '3d' (did you mean 3d_fullres?); they have "
        "3d_fullres, 2d, 3d_lowres."
    )
    assert error_of(capsys, "case_1", "-d", 902, "-c", "3d_lowres") == (
        f"{NAME} has no preprocessed cases of 3d_lowres. Run nnplug preprocess -d {NAME} -plans_name nnUNetPlans -c "
        "3d_lowres first."
    )


def test_a_damaged_case(made: Preprocessed, capsys: pytest.CaptureFixture[str]) -> None:
    path = made.folder / "nnUNetPlans_3d_fullres" / "case_1.b2nd"
    path.write_bytes(path.read_bytes()[:50])
    message = error_of(capsys, "case_1", "-d", 902)
    assert message.startswith(f"{path.with_suffix('')} can not be read: ")
    assert message.endswith(
        f". Make it anew: nnplug preprocess -d {NAME} -plans_name nnUNetPlans -c 3d_fullres --clean"
    )


def test_files_that_do_not_belong_there(made: Preprocessed, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.folder / "nnUNetPlans_3d_fullres"
    (folder / "notes.txt").write_text("")
    assert error_of(capsys, "case_1", "-d", 902) == (
        f"{folder} holds files that nnU-Net did not put there, and it would not train on it either. Remove them: it "
        "has .b2nd, .pkl, .txt files."
    )


def test_regions_are_counted_each(made: Preprocessed, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    (made.folder / "dataset.json").write_text(
        json.dumps(made.dataset_json | {"labels": labels, "regions_class_order": [1, 2]})
    )
    rows = {row["name"]: row for row in report_of(capsys, "case_1", "-d", 902)["labels"]}
    assert rows["whole"]["values"] == [1, 2]
    assert rows["whole"]["voxels"] == np.count_nonzero((made.label == 1) | (made.label == 2))
    assert rows["core"]["voxels"] == np.count_nonzero(made.label == 2)


def test_without_3d_the_first_preprocessed_configuration_is_taken(
    made: Preprocessed, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (made.folder / "nnUNetPlans_3d_fullres").iterdir():
        path.unlink()
    assert report_of(capsys, "case_1", "-d", 902)["configuration"] == "2d"
