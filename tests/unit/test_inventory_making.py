"""Inventories from folders and tables: each way a lab keeps its files, and what is said where something is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnplug.cli import main
from nnplug.errors import NnplugError
from nnplug.inventory.loading import load_inventory
from nnplug.inventory.making import Source, make_inventory, write_inventory
from nnplug.inventory.old_style import to_new_style
from nnplug.inventory.patterns import _expression, find_files, read_table
from nnplug.processes.case_pool import Pool
from support.inventories import make_case, save_image

POOL = Pool(0)


def write_case(folder: Path, image: str, label: str | None, seed: int = 0) -> None:
    for file, array in zip((image, label), make_case(seed), strict=True):
        if file is not None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            save_image(folder / file, array)


def made(folder: Path, **source: object) -> tuple[dict, list[str]]:
    """The file that is written beside the folder, and the messages; it is a good inventory."""
    messages: list[str] = []
    inventory = make_inventory(Source(folder, **source), POOL, messages.append)  # type: ignore[arg-type]
    path = folder / "inventory.json"
    path.unlink(missing_ok=True)
    write_inventory(inventory, path)
    assert load_inventory(path)[1] == []
    return json.loads(path.read_text()), messages


def error_of(folder: Path, **source: object) -> str:
    with pytest.raises(NnplugError) as caught:
        make_inventory(Source(folder, **source), POOL, lambda _: None)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{folder}{os.sep}", "")


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_the_layout_of_nnunet_needs_no_pattern(tmp_path: Path) -> None:
    for case in ("a_1", "b"):
        write_case(tmp_path, f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz")
        write_case(tmp_path, f"imagesTr/{case}_0001.nii.gz", None)
    content, messages = made(tmp_path)
    assert content == {
        "channel_names": {"0": "channel_0", "1": "channel_1"},
        "labels": {"background": 0, "label_1": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "dataset": {
            case: {
                "images": [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in range(2)],
                "label": f"labelsTr/{case}.nii.gz",
            }
            for case in ("a_1", "b")
        },
    }
    assert messages == ["Labels found: 0, 1. Rename them in the file as you like."]


def test_the_layout_of_the_decathlon_with_its_description(tmp_path: Path) -> None:
    write_case(tmp_path, "imagesTr/heart_01.nii.gz", "labelsTr/heart_01.nii.gz")
    old = {"name": "Heart", "modality": {"0": "MRI"}, "labels": {"0": "Background", "1": "atrium"}, "numTraining": 20}
    (tmp_path / "dataset.json").write_text(json.dumps(old))
    content, messages = made(tmp_path)
    assert content["channel_names"] == {"0": "MRI"}
    assert content["labels"] == {"background": 0, "atrium": 1}
    assert content["name"] == "Heart"
    assert messages == [
        f"Channels and labels are those of {tmp_path / 'dataset.json'}; modality is taken for channel_names; "
        "labels are turned from value: name into name: value.",
        f"{tmp_path / 'dataset.json'} tells of 20 cases, 1 are there.",
    ]


def test_a_folder_for_each_case(tmp_path: Path) -> None:
    for case in ("p1", "p2"):
        write_case(tmp_path, f"{case}/T1.nii.gz", f"{case}/seg.nii.gz")
        write_case(tmp_path, f"{case}/FLAIR.nii.gz", None)
    content, _ = made(
        tmp_path,
        image_patterns=["{case}/T1.nii.gz", "{case}/FLAIR.nii.gz"],
        label_pattern="{case}/seg.nii.gz",
        labels={"background": 0, "lesion": 1},
    )
    assert content["channel_names"] == {"0": "t1", "1": "flair"}
    assert content["labels"] == {"background": 0, "lesion": 1}
    assert content["dataset"]["p2"] == {"images": ["p2/T1.nii.gz", "p2/FLAIR.nii.gz"], "label": "p2/seg.nii.gz"}


def test_bids_with_sessions(tmp_path: Path) -> None:
    for session in ("a", "b"):
        stem = f"sub-01/ses-{session}/anat/sub-01_ses-{session}"
        write_case(tmp_path, f"{stem}_T1w.nii.gz", f"derivatives/masks/{stem}_desc-manual_mask.nii.gz")
    content, _ = made(
        tmp_path,
        image_patterns=["sub-{sub}/ses-{ses}/anat/sub-{sub}_ses-{ses}_T1w.nii.gz"],
        label_pattern="derivatives/masks/sub-{sub}/ses-{ses}/anat/sub-{sub}_ses-{ses}_*mask.nii.gz",
    )
    assert list(content["dataset"]) == ["01_a", "01_b"]


def test_labels_beside_images_are_not_taken_for_images(tmp_path: Path) -> None:
    write_case(tmp_path, "x.nii.gz", "x_seg.nii.gz")
    content, _ = made(tmp_path, image_patterns=["{case}.nii.gz"], label_pattern="{case}_seg.nii.gz")
    assert list(content["dataset"]) == ["x"]


def test_a_table(tmp_path: Path) -> None:
    write_case(tmp_path, "scans/1.nii.gz", "scans/1_truth.nii.gz")
    write_case(tmp_path, "scans/1_ct.nii.gz", None)
    for delimiter in (",", ";", "\t"):
        lines = ["case,CT,PET,label", "one,scans/1_ct.nii.gz,scans/1.nii.gz,scans/1_truth.nii.gz", ""]
        (tmp_path / "table.csv").write_text("\n".join(lines).replace(",", delimiter), encoding="utf-8-sig")
        content, _ = made(tmp_path, table=tmp_path / "table.csv")
        assert content["channel_names"] == {"0": "CT", "1": "PET"}
        assert content["dataset"]["one"]["images"] == ["scans/1_ct.nii.gz", "scans/1.nii.gz"]


def test_colour_images_have_three_channels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    grey = make_case(0, (16, 20))[0].clip(0, 255).astype(np.uint8)
    save_image(tmp_path / "images" / "a.png", np.dstack([grey] * 3))
    save_image(tmp_path / "labels" / "a.png", make_case(0, (16, 20))[1])
    content, _ = made(tmp_path)
    assert content["channel_names"] == {"0": "red", "1": "green", "2": "blue"}
    assert content["file_ending"] == ".png"


def test_files_elsewhere_are_named_by_their_whole_path(tmp_path: Path) -> None:
    write_case(tmp_path / "data", "images/a.nii.gz", "labels/a.nii.gz")
    inventory = make_inventory(Source(tmp_path / "data"), POOL, lambda _: None)
    write_inventory(inventory, tmp_path / "other" / "inventory.json")
    content = json.loads((tmp_path / "other" / "inventory.json").read_text())
    assert content["dataset"]["a"]["label"] == str(tmp_path / "data" / "labels" / "a.nii.gz")


# --- what is missing -------------------------------------------------------------------------------------------------


def test_incomplete_cases_are_all_named_or_left_out(tmp_path: Path) -> None:
    for case in ("a", "b", "c"):
        write_case(tmp_path, f"images/{case}_0000.nii.gz", f"labels/{case}.nii.gz")
        write_case(tmp_path, f"images/{case}_0001.nii.gz", None)
    (tmp_path / "labels" / "a.nii.gz").unlink()
    (tmp_path / "images" / "b_0001.nii.gz").unlink()
    advice = "Mend the names or the patterns."
    assert error_of(tmp_path).splitlines()[1:] == [
        f"  case a: nothing fits labels/{{case}}.nii.gz. {advice}",
        f"  case b: nothing fits 0001. {advice}",
    ]
    content, messages = made(tmp_path, skip_incomplete=True)
    assert list(content["dataset"]) == ["c"]
    assert "Left out: 2 cases (a, b)." in messages


def test_a_pattern_that_fits_twice(tmp_path: Path) -> None:
    for number in (1, 2):
        write_case(tmp_path, f"a_v{number}.nii.gz", "a_seg.nii.gz")
    found = error_of(tmp_path, image_patterns=["{case}_v*.nii.gz"], label_pattern="{case}_seg.nii.gz")
    assert found == (
        f"{tmp_path}: case a, a_v2.nii.gz: {{case}}_v*.nii.gz fits a_v1.nii.gz, a_v2.nii.gz. Make the pattern narrower."
    )


@pytest.mark.parametrize(
    ("images", "label", "message"),
    [
        (["{case}.nii"], None, "--images and --label belong together: give both, or none of them."),
        (
            ["{case}.nii"],
            "/abs/{case}.nii",
            "The pattern /abs/{case}.nii leaves the folder. Give it from the folder on",
        ),
        (["../{case}.nii"], "{case}.nii", "The pattern ../{case}.nii leaves the folder. Give it from the folder on"),
        (["image.nii"], "{case}.nii", "The pattern image.nii has no {case}, which stands for the case's name"),
        (["{sub}.nii"], "{case}.nii", "The patterns {case}.nii and {sub}.nii do not name a case by the same parts."),
        (
            ["{case}_{channel}.nii", "{case}.nii"],
            "{case}.nii",
            "{channel} belongs into one pattern for the images, or there is a pattern for each channel.",
        ),
        (["{case}.nii"], "{case}_seg.nii", "No image in "),
    ],
)
def test_wrong_patterns(tmp_path: Path, images: list[str], label: str | None, message: str) -> None:
    assert error_of(tmp_path, image_patterns=images, label_pattern=label).startswith(message)


def test_no_known_layout(tmp_path: Path) -> None:
    assert error_of(tmp_path).startswith(
        f"{tmp_path} has neither imagesTr and labelsTr nor images and labels. Say where the files are: --images "
    )
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    (tmp_path / "images" / "b.jpg").touch()
    assert error_of(tmp_path) == "images holds .jpg, .png: say which with --images and --label."
    with pytest.raises(NnplugError, match=r"There is no folder .*nowhere\."):
        find_files(tmp_path / "nowhere", ["{case}"], "{case}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'case' and column 'label'; its first line is ''."),
        ("case,label\na,b", "has no column of images; its first line is 'case,label'."),
        ("case,ct,label\na,x,y\na,x,y", "case a, table.csv: it is there twice. Give each case one line."),
        ("case,ct,label\na,,y", "case a, table.csv: nothing stands under ct. Fill the line."),
        ("case,ct,ct,label\na,x,y,z", "The table table.csv has two columns 'ct'. Give each column a name of its own."),
        (
            "case,ct,label,,\na,x,y,,\nb,x,y,z,",
            "The table table.csv has 3 columns (case, ct, label), and more in the line of case b. Mend the line, or "
            "name its columns.",
        ),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    assert error_of(tmp_path, table=tmp_path / "table.csv").endswith(message)


def test_a_table_of_images_alone(tmp_path: Path) -> None:
    for text in ("case,ct,label\na,x,\nb,y,z", "case,ct\na,x\nb,y"):
        (tmp_path / "table.csv").write_text(text)
        found = read_table(tmp_path / "table.csv", labelled=False)
        assert found.images == {"a": [tmp_path / "x"], "b": [tmp_path / "y"]}
        assert (found.labels, found.channels, found.problems) == ({}, ("ct",), ())


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"The table .*table\.csv can not be read"):
        read_table(tmp_path / "table.csv")


def test_names_for_channels_have_to_be_as_many(tmp_path: Path) -> None:
    write_case(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    assert error_of(tmp_path, channels=["T1", "T2"]) == "There are 2 names for channels (T1, T2), and 1 are found."
    assert "no label but the background" in error_of(tmp_path, labels={"background": 0})


def test_images_given_as_labels(tmp_path: Path) -> None:
    write_case(tmp_path, "labels/a.nii.gz", "images/a.nii.gz")
    assert error_of(tmp_path).startswith("The label images hold ")
    assert error_of(tmp_path).endswith(", which are no labels. Are these the images themselves?")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_not_finite(tmp_path: Path, value: float) -> None:
    for case in ("a", "b"):
        write_case(tmp_path, f"images/{case}.mha", f"labels/{case}.mha")
        _, label = make_case(0)
        save_image(tmp_path / "labels" / f"{case}.mha", np.where(label, label, value).astype(np.float32))
    expected = f"The label images hold {value}, which are no labels. Are these the images themselves?"
    assert error_of(tmp_path) == expected


@pytest.mark.parametrize("channels", [{"T1": "0"}, ["T1"]])
def test_a_description_with_other_channels(tmp_path: Path, channels: object) -> None:
    write_case(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": channels}))
    assert error_of(tmp_path).startswith("dataset.json: channel_names ")
    assert made(tmp_path, channels=["T1"])[0]["channel_names"] == {"0": "T1"}


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    write_case(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    inventory = make_inventory(Source(tmp_path), POOL, lambda _: None)
    file = tmp_path / "afile"
    file.touch()
    for path, why in ((file / "x.json", "File exists"), (file / "b" / "x.json", "Not a directory")):
        with pytest.raises(NnplugError) as error:
            write_inventory(inventory, path)
        assert str(error.value) == (
            f"{path} can not be written: no folder {path.parent} can be made ({why}). Give another name."
        )


def test_labels_that_can_not_be_read(tmp_path: Path) -> None:
    write_case(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    (tmp_path / "labels" / "a.nii.gz").write_bytes(b"no image")
    assert error_of(tmp_path).startswith("The labels of 1 case can not be read, first a: ")


def test_an_inventory_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    command = ["inventory", "make", str(tmp_path), "-o", str(tmp_path / "i.json"), "-np", "0"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{tmp_path / 'i.json'}: 1 case, channels channel_0.",
        "Labels: background 0, label_1 1.",
        f"Check it with: nnplug inventory check {tmp_path / 'i.json'}",
    ]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"nnplug: error: {tmp_path / 'i.json'} is there already. Give --overwrite to replace it, or another name.\n"
    )
    assert main([*command, "--overwrite", "--labels", "background=0", "lesion=1"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "Labels: background 0, lesion 1."
    assert main([*command, "--csv", "a.csv"]) == 2
    assert capsys.readouterr().err == (
        "nnplug: error: Where are the files? Give a FOLDER or --csv FILE, one of them.\n"
    )


# --- properties ------------------------------------------------------------------------------------------------------

NAMES = st.text("abcXYZ019-_.", min_size=1, max_size=8)


@given(case=NAMES, channel=st.text("abc019", min_size=1, max_size=4))
def test_case_and_channel_are_found_again(case: str, channel: str) -> None:
    match = _expression("{case}/x_{case}_{channel}.nii.gz").fullmatch(f"{case}/x_{case}_{channel}.nii.gz")
    assert match is not None
    assert match.groupdict() == {"case": case, "channel": channel}


@given(one=NAMES, other=NAMES)
def test_the_same_name_has_to_be_the_same_text(one: str, other: str) -> None:
    match = _expression("{case}/{case}.nii").fullmatch(f"{one}/{other}.nii")
    assert (match is not None) == (one == other)


@given(st.dictionaries(st.sampled_from(["0", "1", "2"]), st.sampled_from(["a", "b", "c"]), min_size=1))
def test_old_labels_are_turned_round(labels: dict[str, str]) -> None:
    new, _ = to_new_style({"labels": labels})
    assert set(new["labels"].values()) <= {int(value) for value in labels}
    assert to_new_style(new)[0] == new
    if "0" in labels and len(set(labels.values())) == len(labels):
        assert new["labels"]["background"] == 0
        assert len(new["labels"]) == len(labels)
