"""The pages about evaluating, averaging and post-processing: their commands and their script run on small folders."""

from __future__ import annotations

import pickle
import re
import shlex
from pathlib import Path

import pytest
from nnplug.cli import main
from support.predictions import make_truth, write_predictions, write_segmentation

DOCS = Path(__file__).resolve().parents[2] / "docs"
CASES = ("a", "b")


def commands(page: str, name: str) -> list[str]:
    return re.findall(rf"^(nnplug {name} .+)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for index, case in enumerate(CASES):
        write_segmentation(tmp_path / "labelsTs" / f"{case}.nii.gz", make_truth(index))
    for name in ("predictions", "first", "second"):
        write_predictions(tmp_path / name, CASES, noise=2.0)
    for name in ("dataset.json", "plans.json"):
        (tmp_path / name).write_bytes((tmp_path / "predictions" / name).read_bytes())
    return tmp_path


def test_folders_are_evaluated(here: Path) -> None:
    of_folders = [command for command in commands("evaluate.md", "evaluate") if "labelsTs" in command]
    assert len(of_folders) == 2
    for command in of_folders:
        assert main(shlex.split(command)[1:]) == 0
    assert {"predictions/summary.json", "summary.json", "table.csv"} <= {
        str(path.relative_to(here)) for path in here.rglob("*")
    }


def test_the_script(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "evaluate.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(script, "evaluate.md", "exec"), {"__name__": "__main__"})
    dice, distance = map(float, capsys.readouterr().out.split())
    assert 0 < dice < 1 < distance


def test_the_problems_are_told_in_these_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "predictions" / "a.nii.gz").unlink()
    write_segmentation(here / "predictions" / "x.nii.gz", make_truth(0))
    assert main(["evaluate", "labelsTs", "predictions"]) == 2
    told = re.sub(r"\bx\b", "b", capsys.readouterr().err).splitlines()[1:]
    page = (DOCS / "evaluate.md").read_text()
    assert len(told) == 2
    assert all(line in page for line in told)


def test_an_ensemble_is_post_processed(here: Path) -> None:
    (here / "FOLDER").mkdir()
    (here / "FOLDER" / "postprocessing.pkl").write_bytes(pickle.dumps(([], [])))
    for command in (*commands("ensemble.md", "ensemble"), *commands("ensemble.md", "postprocess")):
        assert main(shlex.split(command)[1:]) == 0
    assert len(list((here / "final").glob("*.nii.gz"))) == 2
