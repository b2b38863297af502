"""The page on calling from programs: its script runs, its tables name what there is."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

import nnplug
import pytest
from nnplug.training_events import Stage
from support.datasets import DatasetForTests
from support.inventories import MadeInventory, make_case
from support.small_trainings import without_processes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
SHORT = "num_epochs=1+num_iterations_per_epoch=1+num_val_iterations_per_epoch=1"


def table(title: str) -> list[list[str]]:
    """The cells of the rows below a heading, without its head."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_the_script(
    tiny_prepared: DatasetForTests,
    few_samples: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert "num_epochs=250" in script
    made = MadeInventory(tmp_path, num_cases=5)
    for index in range(5):
        image, label = make_case(index, (16, 16, 16))
        made.save(f"images/case_{index}_0000.nii.gz", image)
        made.save(f"labels/case_{index}.nii.gz", label)
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__main__"}
    with without_processes(tiny_prepared):
        exec(compile(script.replace("num_epochs=250", SHORT), "python.md", "exec"), space)
    printed = capsys.readouterr().out.splitlines()
    assert "plan: Planning with ExperimentPlanner" in printed
    assert [line for line in printed if line.startswith("fold 0, epoch 1 of 1: Dice 0.")]
    (path,) = (tmp_path / "results" / "Dataset004_inventory").iterdir()
    assert printed[-1].endswith(f" {path}")

    result = space["result"]
    assert isinstance(result, dict)
    assert set(result) == {key for row in table("The result") for key in names(row[0])}
    json.dumps(result)


def test_the_stages() -> None:
    rows = table("Progress")
    assert [name for row in rows for name in names(row[0])] == list(get_args(Stage))
    described = dataclasses.fields(nnplug.TrainingEvent)
    progress = PAGE.partition("## Progress\n")[2].partition("\n## ")[0]
    assert {field.name for field in described} <= set(re.findall(r"`(\w+)`", progress))
