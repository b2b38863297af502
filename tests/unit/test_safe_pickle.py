"""Pickles of nnU-Net are read; one that wants more is refused before anything in it has run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnplug import NnplugError
from nnplug.files.plain_values import number
from nnplug.files.safe_pickle import read_pickle
from nnplug.prediction.postprocessing import read_postprocessing
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

NAME = "nnunetv2.postprocessing.remove_connected_components.remove_all_but_largest_component_from_segmentation"


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def write(path: Path, content: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [4, 5])  # the default up to Python 3.13, and from 3.14 on
def test_plain_values_and_numbers_come_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "spacing": [np.float64(1.5), 2.0],
        "shape": (np.int64(3), 4),
        "affine": np.arange(6.0).reshape(2, 3),
        "sitk_stuff": {"origin": (0.0, 1.0), "name": "x"},
    }
    read = read_pickle(write(tmp_path / "a.pkl", content, protocol))
    np.testing.assert_equal(read, content)


@pytest.mark.parametrize(
    ("harmful", "name"),
    [
        (Runs(os.mkdir, "was_run"), r"posix\.mkdir"),
        (Runs(eval, "__import__('os').mkdir('was_run')"), r"builtins\.eval"),
        (Runs(exec, "__import__('os').mkdir('was_run')"), r"builtins\.exec"),
    ],
)
def test_foreign_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harmful: Runs, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.pkl", {"spacing": [harmful]})
    with pytest.raises(NnplugError, match=rf"a\.pkl would run code when it is read: it names {name}, .* was not run\."):
        read_pickle(path)
    assert not (tmp_path / "was_run").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "was_run").exists()  # it is harmful


def test_a_known_name_is_known_only_where_it_is_expected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", [remove_all_but_largest_component_from_segmentation])
    assert read_pickle(path, {NAME}) == [NAME]
    with pytest.raises(NnplugError, match=rf"it names {NAME}"):
        read_pickle(path)
    # called, it is text
    with pytest.raises(NnplugError, match="is damaged"):
        read_pickle(write(path, Runs(remove_all_but_largest_component_from_segmentation, 1, 2)), {NAME})


def shared_lists(depth: int) -> list[Any]:
    """Few bytes that hold ``2 ** depth`` lists for one who walks them all."""
    content: list[Any] = []
    for _ in range(depth):
        content = [content, content]
    return content


def test_a_list_that_is_shared_is_walked_once(tmp_path: Path) -> None:
    array = np.arange(3.0)
    one, two = read_pickle(write(tmp_path / "a.pkl", [[array, (array,)]] * 2))
    assert one is two
    np.testing.assert_equal(one, [array, (array,)])
    assert read_pickle(write(tmp_path / "a.pkl", shared_lists(60)))
    with pytest.raises(NnplugError, match=r"a\.pkl is damaged, .* numpy values of type \[\[\["):
        read_pickle(write(tmp_path / "a.pkl", Runs(np.dtype, shared_lists(60))))
    endless: list[Any] = []
    endless.append((endless,))
    assert read_pickle(write(tmp_path / "a.pkl", endless))


def test_a_pickle_can_not_replace_what_decodes_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    # (numpy's scalar).__defaults__ = (1, 2), with the opcode for an object's state
    path.write_bytes(b"cnumpy._core.multiarray\nscalar\n(N}S'__defaults__'\n(I1\nI2\ntstb.")
    read_pickle(path)
    assert number.__defaults__ == (b"",)


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"nothing\.pkl could not be read: No such file"):
        read_pickle(tmp_path / "nothing.pkl")
    path = write(tmp_path / "a.pkl", list(range(1000)))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NnplugError, match=r"a\.pkl is damaged, or no file of nnU-Net's \(.+\)\."):
        read_pickle(path)


def test_postprocessing_is_read(tmp_path: Path) -> None:
    function = remove_all_but_largest_component_from_segmentation
    arguments = [{"labels_or_regions": [np.int64(1), (1, 2)]}, {"labels_or_regions": (1, 2), "background_label": 0}]
    path = write(tmp_path / "postprocessing.pkl", ([function, function], arguments))
    assert read_postprocessing(path) == arguments
    assert read_postprocessing(write(path, ([], []))) == []


@pytest.mark.parametrize(
    "content",
    [
        [],
        ([remove_all_but_largest_component_from_segmentation], []),
        (["something else"], [{"labels_or_regions": 1}]),
        ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": "1"}]),
        ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": 1, "out": 2}]),
        ([remove_all_but_largest_component_from_segmentation], [{}]),
        ([[1]], [{}]),
        ([np.arange(2)], [{}]),
        ([shared_lists(60)], [{}]),
        ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": shared_lists(60)}]),
    ],
)
def test_other_content_is_no_postprocessing(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / "postprocessing.pkl", content)
    with pytest.raises(NnplugError, match=r"postprocessing\.pkl is no post-processing file of nnU-Net: expected calls"):
        read_postprocessing(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"There is no post-processing file .*postprocessing\.pkl\."):
        read_postprocessing(tmp_path / "postprocessing.pkl")
