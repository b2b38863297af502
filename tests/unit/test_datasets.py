"""nnU-Net's folders and descriptions, as far as they are read without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from nnplug.datasets import channel_names, dataset_id, foreground_names, read_plans
from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"background": 0, "a": 2, "b": 1, "ignore": 3}, ["b", "a"]),
        ({"background": 0, "tumor": [2], "liver": [1]}, ["liver", "tumor"]),  # lists of one are no regions
        ({"background": 0, "whole": [1, 2], "core": 2}, ["whole", "core"]),
        ({"background": 0, "core": [2], "whole": [1, 2]}, ["core", "whole"]),
    ],
)
def test_names_are_in_the_order_of_nnunets_channels(labels: dict[str, int | list[int]], names: list[str]) -> None:
    assert foreground_names(labels) == names
    manager = LabelManager(labels, regions_class_order=[1, 2])
    theirs = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    values = [labels[name] for name in names]
    if not manager.has_regions:
        values = [value[0] if isinstance(value, list) else value for value in values]
    assert [tuple(value) if isinstance(value, list) else value for value in values] == list(theirs)


@pytest.mark.parametrize(
    ("name", "number"),
    [("Dataset004_Hippocampus", 4), ("Dataset1234_X", 1234), ("7", 7), ("Datasets", None), ("", None)],
)
def test_id(name: str, number: int | None) -> None:
    assert dataset_id(name) == number


def test_channels_go_by_number() -> None:
    assert channel_names({"modality": {str(number): f"c{number}" for number in (10, 2, 0)}}) == ["c0", "c2", "c10"]


def test_plans_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "ThesePlans.json").write_text('{"configurations": {}}')
    for name, content in (("number", "3"), ("text", '"configurations"'), ("broken", "{")):
        (tmp_path / f"{name}.json").write_text(content)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(NnplugError, match=rf"No plans 'Others' in {tmp_path}; it has ThesePlans\. Choose with -p\."):
        read_plans(tmp_path, "Others")


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=f"The plans file {tmp_path} can not be read: Is a directory"):
        read_required_json(tmp_path, "The plans file")
