"""The inventories of the data page: the example is a good one, and each way of making one makes it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from nnplug.cli import main
from nnplug.inventory.loading import load_inventory
from support.inventories import make_case, save_image

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
MAKE = re.findall(r"^\| (.+?) \| `(nnplug inventory make .+?)` \|$", PAGE, re.MULTILINE)
FILES = {
    "in `imagesTr` and `labelsTr`, or `images` and `labels`": ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
    "`CASE_0000.nii.gz` and so on": ("a_0000.nii.gz", "a_mask.nii.gz"),
    "a folder for each case": ("a/t1.nii.gz", "a/flair.nii.gz", "a/seg.nii.gz"),
    "BIDS": ("sub-a/anat/sub-a_T1w.nii.gz", "derivatives/masks/sub-a/anat/sub-a_desc-x_mask.nii.gz"),
    "listed in a table": ("here.nii.gz", "there.nii.gz"),
}


def write(path: Path, *, label: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, make_case(0)[1 if label else 0])


def test_the_example_is_a_good_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("SCANS", str(tmp_path / "scans"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for entry in json.loads(example)["dataset"].values():
        for file in [*entry["images"], entry["label"]]:
            there = file.replace("$SCANS", str(tmp_path / "scans")).replace("~", str(tmp_path / "home"))
            write(tmp_path / there, label=file == entry["label"])
    (tmp_path / "inventory.json").write_text(example)
    inventory, problems = load_inventory(tmp_path / "inventory.json")
    assert problems == []
    assert list(inventory.cases) == ["patient_1", "patient_2"]


@pytest.mark.parametrize(("layout", "command"), MAKE, ids=[layout for layout, _ in MAKE])
def test_every_way_of_making_one(layout: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *images, label = FILES[layout]
    for image in images:
        write(tmp_path / "FOLDER" / image, label=False)
    write(tmp_path / "FOLDER" / label, label=True)
    Path("table.csv").write_text(f"case,MRI,label\na,FOLDER/{images[0]},FOLDER/{label}\n")
    assert main([*shlex.split(command)[1:], "-np", "0"]) == 0
    content = json.loads(Path("inventory.json").read_text())
    expected = {"images": [f"FOLDER/{image}" for image in images], "label": f"FOLDER/{label}"}
    assert content["dataset"] == {"a": expected}


def test_every_way_is_found() -> None:
    assert [layout for layout, _ in MAKE] == list(FILES)
