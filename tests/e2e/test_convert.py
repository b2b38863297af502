"""Real data through ``nnplug convert``; what comes out passes nnU-Net's own integrity check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from support import run_nnplug

CHECK = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
if __name__ == "__main__":
    verify_dataset_integrity(sys.argv[1], 1)
"""


@pytest.fixture
def verify(tmp_path: Path) -> Callable[[Path], None]:
    """nnU-Net's ``verify_dataset_integrity`` in a process of its own."""
    import subprocess
    import sys

    script = tmp_path / "verify.py"
    script.write_text(CHECK)

    def check(folder: Path) -> None:
        done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "verify_dataset_integrity Done" in done.stdout

    return check


def linked(folder: Path, names: list[str], target: Path) -> None:
    target.mkdir(parents=True)
    for name in names:
        (target / name).symlink_to(folder / name)


def test_a_decathlon_task(data_folder: Path, tmp_path: Path, verify: Callable[[Path], None]) -> None:
    source, task = data_folder / "Task04_Hippocampus", tmp_path / "Task04_Hippocampus"
    description = json.loads((source / "dataset.json").read_text())
    description["training"] = description["training"][:6]
    names = [Path(entry["image"]).name for entry in description["training"]]
    tests = sorted(path.name for path in (source / "imagesTs").iterdir())[:2]
    for folder, chosen in (("imagesTr", names), ("labelsTr", names), ("imagesTs", tests), ("labelsTs", tests)):
        linked(source / folder, chosen, task / folder)
    (task / "dataset.json").write_text(json.dumps(description))
    env = {"nnUNet_raw": str(tmp_path)}
    command = ("convert", "msd", "-i", task, "-output_task_id", 104, "-p", 2)
    assert "8 cases would be converted; no problem found" in run_nnplug(*command, "--dry-run", env=env).stdout
    assert not (tmp_path / "Dataset104_Hippocampus").exists()
    run_nnplug(*command, env=env)
    target = tmp_path / "Dataset104_Hippocampus"
    verify(target)
    for name in names:
        stem = name.removesuffix(".nii.gz")
        assert (target / f"imagesTr/{stem}_0000.nii.gz").read_bytes() == (source / "imagesTr" / name).read_bytes()
    assert "all of them converted before" in run_nnplug(*command, env=env).stdout


def test_four_channels_of_one_file(data_folder: Path, tmp_path: Path, verify: Callable[[Path], None]) -> None:
    source, task = data_folder / "ms_lesions_4ch", tmp_path / "Task01_Lesions"
    linked(source / "labels", ["ms07L.nii.gz", "ms26R.nii.gz"], task / "labelsTr")
    (task / "imagesTr").mkdir()
    for case in ("ms07L", "ms26R"):
        channels = [sitk.ReadImage(str(source / f"images/{case}_{index:04d}.nii.gz")) for index in range(4)]
        sitk.WriteImage(sitk.JoinSeries(channels), str(task / f"imagesTr/{case}.nii.gz"))
    modality = dict(enumerate(("FLAIR", "T1", "T2", "T1c")))
    labels = {"0": "background", "1": "lesion"}
    (task / "dataset.json").write_text(json.dumps({"modality": modality, "labels": labels, "numTraining": 2}))
    run_nnplug("convert", "msd", "-i", task, "--raw-dir", tmp_path, "-p", 1)
    verify(tmp_path / "Dataset001_Lesions")
    for index in range(4):
        whole, part = (
            sitk.ReadImage(str(folder / f"ms26R_{index:04d}.nii.gz"))
            for folder in (source / "images", tmp_path / "Dataset001_Lesions/imagesTr")
        )
        assert np.array_equal(sitk.GetArrayFromImage(whole), sitk.GetArrayFromImage(part))
        assert (whole.GetSize(), whole.GetSpacing()) == (part.GetSize(), part.GetSpacing())
        assert np.allclose(whole.GetOrigin(), part.GetOrigin())
        assert np.allclose(whole.GetDirection(), part.GetDirection())


def test_fundus_photographs(data_folder: Path, tmp_path: Path, verify: Callable[[Path], None]) -> None:
    source, folder = data_folder / "chase_db1", tmp_path / "fundus"
    linked(source / "images", ["Image_01L.jpg", "Image_02R.jpg"], folder / "images")
    linked(source / "labels", ["Image_01L_1stHO.png", "Image_02R_1stHO.png"], folder / "labels")
    patterns = ("--images", "images/{case}.jpg", "--label", "labels/{case}_1stHO.png")
    target = ("--dataset-id", 21, "--dataset-name", "Chase", "--raw-dir", tmp_path)
    run_nnplug("convert", "images", folder, *patterns, "--labels", "background", "vessel", *target, "-np", 1)
    verify(tmp_path / "Dataset021_Chase")
    shown, written = (
        np.asarray(Image.open(path))
        for path in (source / "images/Image_02R.jpg", tmp_path / "Dataset021_Chase/imagesTr/Image_02R_0000.png")
    )
    assert np.array_equal(shown, written)


@pytest.mark.parametrize("ending", [".nii.gz", ".tif"])
def test_sparsely_annotated_concrete(
    data_folder: Path, tmp_path: Path, verify: Callable[[Path], None], ending: str
) -> None:
    source = data_folder / "xray_ct"
    voxels = tifffile.imread(source / "concrete_image.tif")
    drawn = tifffile.imread(source / "concrete_label_multiotsu.tif") + 1
    sparse = np.zeros_like(drawn)
    sparse[40:60:5, 30:70, 30:70] = drawn[40:60:5, 30:70, 30:70]
    (tmp_path / "drawn").mkdir()
    tifffile.imwrite(tmp_path / "drawn" / "concrete.tif", sparse, photometric="minisblack")
    settings = tmp_path / "soil.toml"
    settings.write_text(
        f'images = "{source}"\nimage_postfix = "_image.tif"\nannotations = "drawn"\ndataset_id = 13\n'
        'dataset_name = "Concrete"\nclasses = ["pore", "paste", "aggregate"]\nmargin = 8\nnormalization = "zscore"\n'
        f'spacing = "x=10 y=10 z=10 um"\nfile_ending = "{ending}"\n'
    )
    run_nnplug("convert", "soil", "--settings", settings, "--raw-dir", tmp_path, "-np", 1)
    target = tmp_path / "Dataset013_Concrete"
    verify(target)
    box = (slice(32, 64), slice(22, 78), slice(22, 78))
    read = tifffile.imread if ending == ".tif" else lambda path: sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.array_equal(read(target / f"imagesTr/concrete_0000{ending}"), voxels[box])
    expected = np.where(sparse == 0, 3, sparse - 1)[box]
    assert np.array_equal(read(target / f"labelsTr/concrete{ending}"), expected)
