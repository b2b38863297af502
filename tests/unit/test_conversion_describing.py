"""``nnplug convert generate-dataset-json``: counts cases, and checks what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnplug.cli import main

REGIONS = ["--labels", "background=0", "whole=1,2", "core=2", "--regions-class-order", "1", "2"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset011_Made"
    for file in ("imagesTr/a_0000.png", "imagesTr/b_0000.png", "labelsTr/a.png", "labelsTr/b.png"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def run(raw: Path, *arguments: str, channels: tuple[str, ...] = ("MR",)) -> int:
    command = ["convert", "generate-dataset-json", str(raw), "--channels", *channels, "--file-ending", ".png"]
    return main([*command, *arguments])


def test_what_is_written(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raw, "--labels", "background", "cell", "--dry-run") == 0
    assert not (raw / "dataset.json").exists()
    assert run(raw, "--labels", "background", "cell") == 0
    assert capsys.readouterr().out == f"{raw / 'dataset.json'}: 2 cases.\n" * 2
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "cell": 1}}
    counted = {"numTraining": 2, "file_ending": ".png"}
    assert json.loads((raw / "dataset.json").read_text()) == description | counted
    assert run(raw, *REGIONS) == 2
    assert capsys.readouterr().err.endswith("dataset.json is there already. Give --overwrite to replace it.\n")
    assert run(raw, *REGIONS, "--overwrite") == 0
    written = json.loads((raw / "dataset.json").read_text())
    assert written["labels"] == {"background": 0, "whole": [1, 2], "core": 2}
    assert written["regions_class_order"] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "channels", "message"),
    [
        (REGIONS[:4], ("MR",), "labels has regions, and there is no regions_class_order. Give the label value"),
        (
            ["--labels", "background", "cell=x"],
            ("MR",),
            "--labels: 'cell=x' is no new name with an integer, or several",
        ),
        (["--labels", "background", "cell"], ("T1", "T2"), "case a: nothing fits imagesTr/{case}_0001.png."),
        (["--labels", "background", "cell=2"], ("MR",), "the labels are 0, 2: 1 is missing."),
    ],
)
def test_mistakes(
    raw: Path, arguments: list[str], channels: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raw, *arguments, channels=channels) == 2
    assert message in capsys.readouterr().err
    assert not (raw / "dataset.json").exists()


def test_more_channels_than_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "imagesTr/a_0001.png").touch()
    assert run(raw, "--labels", "background", "cell") == 2
    assert "a_0001.png: there are more channels than the 1 named. Name them all." in capsys.readouterr().err
