"""Rules for labels, channels and names; those of nnU-Net itself are the judge where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnplug.inventory import rules
from nnplug.inventory.rules import (
    channel_tokens,
    check_case_name,
    check_channel_order,
    check_channels,
    check_labels,
    label_values,
)

ADVICE_REGIONS = "Give the label value to write for each of {}; later ones are written over earlier ones."


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ([], None, 'labels is []. It has to map names to integers, for example {"background": 0, "tumor": 1}.'),
        ({"a": 1}, None, "no label 'background'. nnU-Net needs \"background\": 0."),
        ({"background": 1, "a": 0}, None, "label 'background' is 1. nnU-Net needs \"background\": 0."),
        ({"background": [0], "a": 1}, None, "label 'background' is [0]. nnU-Net needs \"background\": 0."),
        (
            {"background": 0, "a": "1"},
            None,
            "label 'a' is '1'. Give an integer from 0 on, or a list of them for a region.",
        ),
        (
            {"background": 0, "a": 1, "b": 4},
            None,
            "the labels are 0, 1, 4: 2, 3 are missing. nnU-Net needs consecutive integers: renumber them, also in the "
            "images, to 0 to 2.",
        ),
        ({"background": 0, "a": 1, "b": 1}, None, "labels a and b are both 1. Each label needs a value of its own."),
        ({"background": 0, "ignore": 1}, None, "there is no label but the background. Add what is to be segmented."),
        ({"background": 0, "a": 2, "ignore": 1}, None, "label 'ignore' is 1, others go up to 2. Make it 3."),
        ({"background": 0, "a": 1, "ignore": [2]}, None, "label 'ignore' is the list [2]. It has to be one integer."),
        (
            {"background": 0, "whole": [1, 2], "core": 2},
            None,
            "labels has regions, and there is no regions_class_order. " + ADVICE_REGIONS.format("whole, core"),
        ),
        (
            {"background": 0, "whole": [1, 2], "core": 2},
            [1],
            "regions_class_order is [1], and there are 2 regions. " + ADVICE_REGIONS.format("whole, core"),
        ),
        (
            {"background": 0, "whole": [1, 2], "core": 2},
            [1, 3],
            "regions_class_order is [1, 3], and the labels are 1, 2. " + ADVICE_REGIONS.format("whole, core"),
        ),
    ],
)
def test_wrong_labels(labels: Any, order: Any, message: str) -> None:
    assert message in [str(problem) for problem in check_labels(labels, order)]


VALUES = st.integers(0, 4) | st.lists(st.integers(0, 4), min_size=1, max_size=3)
LABELS = st.dictionaries(st.sampled_from(["a", "b", "c", "ignore"]), VALUES, max_size=4).flatmap(
    lambda labels: st.sampled_from([labels, {"background": 0, **labels}])
)


@given(labels=LABELS, order=st.none() | st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_labels_that_pass_are_good_for_nnunet(labels: dict[str, Any], order: list[int] | None) -> None:
    """And those that nnU-Net refuses do not pass."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    try:
        manager = LabelManager(labels, order)
        values = [*manager.all_labels, *([manager.ignore_label] if manager.has_ignore_label else [])]
        accepted = bool(np.all(np.ediff1d(values) == 1))
    except (AssertionError, RuntimeError):
        accepted = False
    problems = check_labels(labels, order)
    assert accepted or problems
    if not problems:
        assert label_values(labels) == values
        assert manager.has_regions == rules.has_regions(labels)


def test_regions_with_an_ignore_label() -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    assert check_labels(labels, [1, 2, 3]) == []
    assert label_values(labels) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("channels", "found"),
    [
        (["T1"], "channel_names is ['T1']"),
        ({}, "channel_names is {}"),
        ({"1": "T1"}, "channel_names has the keys '1'"),
        ({"0": ""}, "channel '0' is named ''"),
        ({"0": 1}, "channel '0' is named 1"),
    ],
)
def test_wrong_channels(channels: Any, found: str) -> None:
    (problem,) = check_channels(channels)
    assert problem.found == found


def paths(*names: str) -> list[Path]:
    return [Path("/data") / name for name in names]


@pytest.mark.parametrize(
    ("names", "tokens"),
    [
        (["a_0000.nii.gz", "a_0001.nii.gz"], ("0000", "0001")),
        (["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz"], ("t1w", "flair")),
        (["t1/a.nii.gz", "flair/a.mha"], ("t1", "flair")),
        (["a/t1.nii", "a/t1_contrast.nii"], ("", "_contrast")),
        (["a_0000.nii.gz"], ("",)),
    ],
)
def test_what_tells_channels_apart(names: list[str], tokens: tuple[str, ...]) -> None:
    assert channel_tokens(paths(*names)) == tokens


@given(
    tokens=st.lists(st.text("abc123", min_size=1, max_size=4), min_size=2, max_size=4, unique=True),
    case=st.text("xyz0_-", min_size=1, max_size=6),
)
def test_tokens_tell_every_channel_from_every_other(tokens: list[str], case: str) -> None:
    found = channel_tokens([Path(f"/data/{case}/{case}_{token}.nii.gz") for token in tokens])
    assert found == tuple(tokens)


def test_channel_order() -> None:
    good = {"a": paths("a_t1.nii", "a_flair.nii"), "b": paths("b_t1.nii", "b_flair.nii")}
    assert check_channel_order(good, ["one", "two"]) == []
    assert check_channel_order(good, ["T1", "FLAIR"]) == []
    swapped = {**good, "c": paths("c_flair.nii", "c_t1.nii")}
    advice = "Put the images of every case in the order of channel_names."
    assert [str(problem) for problem in check_channel_order(swapped, ["one", "two"])] == [
        f"case c: the channels are in the order flair, t1, and case a has t1, flair. {advice}"
    ]
    assert [problem.case for problem in check_channel_order(swapped, ["FLAIR", "T1"])] == ["a", "b"]
    numbered = {"a": paths("a_0001.nii", "a_0000.nii")}
    assert [str(problem) for problem in check_channel_order(numbered, ["T1", "FLAIR"])] == [
        f"case a: the channels are in the order 0001, 0000, and the numbers have to rise. {advice}"
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", "the name is empty, or begins with a dot, or begins or ends with a space"),
        (".a", "the name is empty, or begins with a dot, or begins or ends with a space"),
        ("a/b", "the name has a character that a file name can not have on every system"),
        ("a_seg", "the name ends with _seg, which nnU-Net takes for the segmentation of another case"),
        ("ä" * 101, "the name has more than 200 bytes"),
    ],
)
def test_wrong_case_names(name: str, found: str) -> None:
    (problem,) = check_case_name(name)
    assert problem.found == found


def test_a_case_named_seg_would_be_lost_in_nnunet(tmp_path: Path) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    for name in ("a.b2nd", "a_seg.b2nd", "b_seg.b2nd", "b_seg_seg.b2nd"):
        (tmp_path / name).touch()
    assert nnUNetDatasetBlosc2.get_identifiers(str(tmp_path)) == ["a"]
