"""``nnplug run``: which words are the data set, the configuration and the folds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnplug.cli import build_parser, main
from nnplug.cli.run import _choose_positions


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ("4", ("4", "3d_fullres", ["all"])),
        ("4 2d", ("4", "2d", ["all"])),
        ("Dataset004_Hippocampus 2d 0 3", ("Dataset004_Hippocampus", "2d", ["0", "3"])),
        ("--dataset-id 4", ("4", "3d_fullres", ["all"])),
        ("2d 0 --dataset-id 4", ("4", "2d", ["0"])),
        ("3d_fullres --dataset-id 4", ("4", "3d_fullres", ["all"])),
        ("004 2d all --dataset-id 4", ("004", "2d", ["all"])),
        ("Dataset004_A 2d --dataset-id 4", ("Dataset004_A", "2d", ["all"])),
    ],
)
def test_what_may_be_left_out(words: str, chosen: tuple[str, str, list[str]]) -> None:
    args = build_parser().parse_args(["run", *words.split()])
    _choose_positions(args)
    assert (args.dataset, args.configuration, args.fold) == chosen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Which data set? Give DATASET, or --inventory FILE --dataset-id N --cache-dir DIR."),
        ("5 2d --dataset-id 4", "DATASET is 5, and --dataset-id is 4. Leave DATASET out."),
        ("4 2d --c --val", "--c, --restart and --val exclude each other. Give one of them."),
    ],
)
def test_mistakes(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nnplug.cli.run._stop_on_signals", lambda: None)  # this process goes on afterwards
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    assert main(["run", *words.split(), "--no_preprocessing", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == f"nnplug: error: {message}\n"
    assert json.loads(out) == {"status": "error", "message": message}
