"""The log of a conversion: what each line means, those of a run that was killed included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnplug.conversion.log import Log, add_line, read_log, write_log
from nnplug.errors import NnplugError

SETTINGS = {"settings": {"command": "msd"}}
FINISHED = {"case": "a", "stamp": [], "files": ["a.mha"]}


def test_no_log(tmp_path: Path) -> None:
    assert read_log(tmp_path) == Log(None, {}, {}, [], None)


def test_begun_and_finished_cases(tmp_path: Path) -> None:
    write_log(tmp_path, [SETTINGS, FINISHED])
    add_line(tmp_path, {"begin": "b", "files": ["b.mha"]})
    add_line(tmp_path, {"whole": ["a"], "hash": "0f"})
    files = {"a": ["a.mha"], "b": ["b.mha"]}
    assert read_log(tmp_path) == Log({"command": "msd"}, {"a": FINISHED}, files, ["a"], "0f")


def test_a_line_that_is_not_whole(tmp_path: Path) -> None:
    write_log(tmp_path, [SETTINGS, FINISHED])
    with next(tmp_path.iterdir()).open("a") as file:
        file.write(json.dumps({"case": "b", "files": ["b.mha"]})[:-3])
    assert read_log(tmp_path) == Log({"command": "msd"}, {"a": FINISHED}, {"a": ["a.mha"]}, ["a"], None)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match="gone"):
        add_line(tmp_path / "gone", SETTINGS)
