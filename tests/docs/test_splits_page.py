"""The commands of the splits page run on real images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from nnplug.cli import main
from support.datasets import DatasetForTests, environment

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "splits.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(nnplug splits .*)$", PAGE, re.MULTILINE)


def test_every_command_of_the_page(
    hippocampus_prepared: DatasetForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = sorted(name for fold in hippocampus_prepared.splits for name in fold["val"])
    monkeypatch.chdir(tmp_path)
    Path("patients.csv").write_text("case,patient\n" + "".join(f"{name},{i // 2}\n" for i, name in enumerate(cases)))
    assert len(COMMANDS) == 2
    with environment(**{**hippocampus_prepared.env, "nnUNet_preprocessed": str(tmp_path)}):
        for command in COMMANDS:
            assert main(shlex.split(command)[1:]) == 0
    folder = tmp_path / hippocampus_prepared.name
    assert len(json.loads((folder / "splits_held_out.json").read_text())) == 2
