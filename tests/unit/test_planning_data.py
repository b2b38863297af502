"""Which data set is meant, what its folder is called, and what has changed since its fingerprint was taken."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnplug.errors import NnplugError
from nnplug.planning.data import dataset_name, find_raw_data, open_inventory, write_dataset_json
from nnplug.planning.data_record import (
    FINGERPRINT,
    check_unchanged,
    set_aside_splits,
    write_record,
)
from nnplug.planning.shards import Shard
from support.datasets import environment
from support.inventories import MadeInventory, make_case

# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Hippocampus", "Dataset004_Hippocampus"),
        ("Dataset004_Hippocampus", "Dataset004_Hippocampus"),
        ("my data (2nd)", "Dataset004_my_data_2nd"),
        ("a__b", "Dataset004_a_b"),
        ("Größe/1", "Dataset004_Gr_e_1"),
    ],
)
def test_names(name: str, folder: str) -> None:
    assert dataset_name(4, name) == folder


@given(st.integers(0, 999), st.text(min_size=1))
def test_every_name_is_one_that_nnunet_can_split(dataset_id: int, name: str) -> None:
    from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

    try:
        folder = dataset_name(dataset_id, name)
    except NnplugError:
        assert not re.search("[A-Za-z0-9]", name) or name.startswith("Dataset")
        return
    assert convert_dataset_name_to_id(folder) == dataset_id
    assert re.fullmatch(r"Dataset\d{3}_[A-Za-z0-9][A-Za-z0-9_.-]*", folder)
    assert "__" not in folder
    assert not folder.endswith("_")
    assert dataset_name(dataset_id, folder) == folder


@pytest.mark.parametrize(
    ("dataset_id", "name", "message"),
    [
        (1000, "a", "--dataset-id 1000: expected a number from 0 to 999."),
        (4, "Dataset005_a", "--dataset-name Dataset005_a has another id than --dataset-id 4."),
        (4, "__", "--dataset-name '__' has no letter or digit."),
    ],
)
def test_wrong_names(dataset_id: int, name: str, message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        dataset_name(dataset_id, name)
    assert str(caught.value) == message


# --- inventories -----------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> MadeInventory:
    return MadeInventory(tmp_path / "data")


def test_the_cache_is_raw_and_preprocessed_and_holds_the_description(made: MadeInventory, tmp_path: Path) -> None:
    made.content["name"] = "From the file"
    data, problems = open_inventory(made.write(), 7, None, tmp_path / "cache")
    assert problems == []
    assert (data.name, data.raw, data.folder) == (
        "Dataset007_From_the_file",
        tmp_path / "cache",
        tmp_path / "cache" / "Dataset007_From_the_file",
    )
    assert not data.folder.exists(), "nothing is written before it is needed"
    write_dataset_json(data)
    written = json.loads((data.folder / "dataset.json").read_text())
    assert written["dataset"]["case_0"] == {
        "images": [str(made.folder / "images" / "case_0_0000.nii.gz")],
        "label": str(made.folder / "labels" / "case_0.nii.gz"),
    }
    before = (data.folder / "dataset.json").stat().st_mtime_ns
    write_dataset_json(data)
    assert (data.folder / "dataset.json").stat().st_mtime_ns == before


def test_the_name_is_that_of_the_file_where_nothing_else_says_it(made: MadeInventory, tmp_path: Path) -> None:
    assert open_inventory(made.path, 7, None, tmp_path)[0].name == "Dataset007_inventory"
    assert open_inventory(made.path, 7, "Given", tmp_path)[0].name == "Dataset007_Given"


def test_an_id_belongs_to_one_data_set(made: MadeInventory, tmp_path: Path) -> None:
    (tmp_path / "cache" / "Dataset007_Other").mkdir(parents=True)
    with pytest.raises(NnplugError) as caught:
        open_inventory(made.path, 7, "Mine", tmp_path / "cache")
    assert str(caught.value) == (
        f"Dataset007_Mine and {tmp_path / 'cache' / 'Dataset007_Other'} have the same id, which nnU-Net can not tell "
        "apart. Choose another id for one, or for the same data set its whole name (--dataset-name)."
    )


def test_a_cache_that_can_not_be_made(made: MadeInventory, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    data, _ = open_inventory(made.path, 7, "Mine", tmp_path / "cache")
    with pytest.raises(NnplugError, match=r"The cache .*Dataset007_Mine can not be created \(Not a directory\)\."):
        write_dataset_json(data)


# --- raw data sets ---------------------------------------------------------------------------------------------------


def raw_error(tmp_path: Path, dataset: str) -> str:
    with (
        environment(nnUNet_raw=str(tmp_path), nnUNet_preprocessed=str(tmp_path / "preprocessed")),
        pytest.raises(NnplugError) as caught,
    ):
        find_raw_data(dataset)
    return str(caught.value).replace(f"{tmp_path}{os.sep}", "")


@pytest.mark.parametrize("name", ["dataset004_Heart", "Dataset4_Heart", "Task004_Heart", "Dataset 004 Heart"])
def test_a_raw_folder_with_a_wrong_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    expected = f"{name} does not have a name as nnU-Net needs it. Rename it to Dataset004_Heart."
    assert raw_error(tmp_path, "4") == expected


def test_two_data_sets_with_one_id(tmp_path: Path) -> None:
    for name in ("Dataset004_A", "preprocessed/Dataset004_B"):
        (tmp_path / name).mkdir(parents=True)
    assert raw_error(tmp_path, "4") == (
        "Dataset004_A and preprocessed/Dataset004_B have the same id, which nnU-Net can not tell apart. Choose another "
        "id for one, or for the same data set its whole name (--dataset-name)."
    )
    (tmp_path / "Dataset004_C").mkdir()
    assert "Data set id 4 is taken twice in" in raw_error(tmp_path, "4")


def test_problems_of_a_raw_data_set_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset004_A"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 2},
        "numTraining": 1,
        "file_ending": ".nii",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    assert raw_error(tmp_path, "Dataset004_A").splitlines() == [
        "Dataset004_A: 3 problems:",
        "  the labels are 0, 2: 1 is missing. nnU-Net needs consecutive integers: renumber them, also in the images, "
        "to 0 to 1.",
        "  dataset has no cases. It maps each case to its images and its label.",
        "  numTraining is 1, and dataset has 0 cases. Make it 0, or see which cases are missing.",
    ]


# --- what has changed ------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(made: MadeInventory, tmp_path: Path) -> MadeInventory:
    """An inventory whose fingerprint is taken."""
    data, _ = open_inventory(made.path, 7, "Mine", tmp_path / "cache")
    write_dataset_json(data)
    write_record(data)
    (data.folder / FINGERPRINT).write_text("{}")
    return made


def changes(made: MadeInventory) -> str | None:
    cache = made.folder.parent / "cache"
    data, _ = open_inventory(made.write(), 7, "Mine", cache)
    try:
        check_unchanged(data)
    except NnplugError as error:
        return str(error).replace(f"{cache}{os.sep}", "")
    return None


START = "The cache Dataset007_Mine was made from other data: "
AGAIN = "Give --clean to make it anew, or another --cache-dir."


def test_nothing_has_changed(cached: MadeInventory) -> None:
    cached.content["description"] = "does not matter"
    assert changes(cached) is None


def test_changed_files_cases_labels_and_channels(cached: MadeInventory) -> None:
    label = cached.folder / "labels" / "case_0.nii.gz"
    os.utime(label, (1, 1))
    assert changes(cached) == f"{START}1 case with changed files (case_0). {AGAIN}"
    cached.save("other.nii.gz", make_case(1)[0])
    cached.entry("case_1")["images"] = ["other.nii.gz"]
    cached.content["labels"] = {"background": 0, "cube": 1}
    cached.content["channel_names"] = {"0": "CT"}
    assert changes(cached) == (
        f"{START}channel_names was {{'0': 'MRI'}}, is {{'0': 'CT'}}; "
        "labels was {'background': 0, 'box': 1}, is {'background': 0, 'cube': 1}; "
        f"1 case with other files (case_1); 1 case with changed files (case_0). {AGAIN}"
    )


def test_cases_that_come_and_go(cached: MadeInventory) -> None:
    cached.content["dataset"]["renamed"] = cached.content["dataset"].pop("case_0")
    assert changes(cached) == f"{START}1 case added (renamed); 1 case gone (case_0). {AGAIN}"


@pytest.mark.parametrize("key", ["format", "nnunetv2"])
def test_a_cache_of_another_version(cached: MadeInventory, key: str) -> None:
    path = cached.folder.parent / "cache" / "Dataset007_Mine" / "nnplug_data.json"
    content = json.loads(path.read_text())
    content[key] = "1.0"
    path.write_text(json.dumps(content))
    found = changes(cached)
    assert found is not None
    assert re.fullmatch(
        r"The cache Dataset007_Mine was made by nnplug \S+ with nnU-Net \S+; this is nnplug \S+ with nnU-Net 2\.8\. "
        + re.escape(AGAIN),
        found,
    )


def test_without_a_fingerprint_nothing_is_stale(cached: MadeInventory) -> None:
    (cached.folder.parent / "cache" / "Dataset007_Mine" / FINGERPRINT).unlink()
    cached.content["channel_names"] = {"0": "CT"}
    assert changes(cached) is None


def test_a_file_that_goes_while_it_is_looked_at(made: MadeInventory, tmp_path: Path) -> None:
    data, _ = open_inventory(made.path, 7, "Mine", tmp_path)
    gone = made.folder / "labels" / "case_1.nii.gz"
    gone.unlink()
    with pytest.raises(NnplugError) as caught:
        write_record(data)
    assert str(caught.value) == f"Dataset007_Mine: {gone} is no longer there (No such file or directory)."


def test_splits_of_cases_that_are_gone_are_set_aside(made: MadeInventory, tmp_path: Path) -> None:
    data, _ = open_inventory(made.path, 7, "Mine", tmp_path)
    write_dataset_json(data)
    path = data.folder / "splits_final.json"
    assert set_aside_splits(data) is None
    path.write_text(json.dumps([{"train": ["case_0"], "val": ["case_1"]}]))
    assert set_aside_splits(data) is None
    path.write_text(json.dumps([{"train": ["case_0", "old"], "val": ["case_1"]}]))
    message = set_aside_splits(data)
    (kept,) = data.folder.glob("replaced_splits_final_*.json")
    assert message == (
        f"splits_final.json names cases that are gone (old); it is now {kept.name}. The next training draws random "
        "folds; for groups or held-out cases make them first: nnplug splits make"
    )
    assert not path.exists()


# --- shards ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 40))
def test_every_case_is_in_one_shard(number: int, num_cases: int) -> None:
    cases = {f"case_{index}": index for index in range(num_cases)}
    parts = [Shard.parse(f"{index}/{number}").of(cases) for index in range(1, number + 1)]
    assert sorted(name for part in parts for name in part) == sorted(cases)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/4/2", "-1/4"])
def test_wrong_shards(text: str) -> None:
    with pytest.raises(NnplugError) as caught:
        Shard.parse(text)
    assert str(caught.value) == (f"--shard {text}: expected I/N with I from 1 to N, for example 1/4, 2/4, 3/4, 4/4.")
