"""The commands of the plans page run, one after the other, on the plans of real images."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from nnplug.cli import main
from nnplug.planning.settings import SETTINGS
from support.datasets import DatasetForTests, environment

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "plans.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(nnplug (?:plans|move_plans) .*)$", PAGE, re.MULTILINE)


def test_every_command_of_the_page(
    hippocampus_prepared: DatasetForTests,
    tiny_prepared: DatasetForTests,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for dataset in (hippocampus_prepared, tiny_prepared):
        (tmp_path / dataset.name).mkdir()
        for path in dataset.preprocessed_folder.glob("*.json"):
            shutil.copy(path, tmp_path / dataset.name)
    assert len(COMMANDS) >= 8
    with environment(**{**tiny_prepared.env, "nnUNet_preprocessed": str(tmp_path)}):
        for command in COMMANDS:
            assert main(shlex.split(command)[1:]) == 0, command + capsys.readouterr().err


def test_every_key_is_on_the_page() -> None:
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[a-z_]+`.*?) \|", PAGE, re.MULTILINE)))
    of_functions = {"resampling_fn_seg_kwargs", "resampling_fn_probabilities_kwargs"}  # "and so on"
    assert set(SETTINGS) - of_functions == {key for key in listed if key in SETTINGS}
