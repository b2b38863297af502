"""``case_weights``: the file, the probabilities, and the weights that a fold was trained with."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nnplug import NnplugError, TrainingRun
from nnplug_sampling import train_start
from nnplug_sampling.case_weights import read_weights, sampling_probabilities
from nnplug_sampling.loader import SamplingLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.stats import chisquare


def write(folder: Path, text: str, name: str = "case_weights.json") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.json", '{"a": 2, "b": 0.5, "c": 0}'),
        ("w.csv", "case,weight\na,2\nb,0.5\nc,0\n"),
        ("w.csv", "case,weight,remark\na,2\n\nb,0.5,small,\nc,0,\n"),
        ("w.CSV", "\ufeffweight,why,case\r\n2,hard,a\r\n.5,,b\r\n0,bad scan,c\r\n"),
    ],
    ids=["json", "csv", "csv with a remark", "csv of a spreadsheet"],
)
def test_both_formats(tmp_path: Path, name: str, text: str) -> None:
    assert read_weights(tmp_path, write(tmp_path, text, name)) == {"a": 2.0, "b": 0.5, "c": 0.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": -1}', "b: expected a weight >= 0, got -1."),
        ('{"a": "many"}', "a: expected a weight >= 0, got 'many'."),
        ('{"a": true}', "a: expected a weight >= 0, got True."),
        ('{"a": NaN}', "a: expected a weight >= 0, got nan."),
        ('{"a": Infinity}', "a: expected a weight >= 0, got inf."),
        ('{"a": 1, "b": 1, "a": 2}', "a is listed twice. Keep one weight."),
        ("[1, 2]", 'expected {"CASE": WEIGHT, ...}.'),
        ('{"a": 1' + "0" * 400 + "}", "a: expected a weight >= 0, got 1000000000000000000000000000000000000000."),
        (
            "[" * 100_000,
            "not valid JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string.",
        ),
        ('{"a": 1', "not valid JSON: Expecting ',' delimiter: line 1 column 8 (char 7)."),
    ],
)
def test_a_wrong_json_file(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(NnplugError) as error:
        read_weights(tmp_path, write(tmp_path, text))
    assert str(error.value).removeprefix(f"{tmp_path / 'case_weights.json'}").lstrip(": ") == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,2\nb,1\n", "expected the columns case,weight in its first line, in these letters and with commas."),
        ("", "expected the columns case,weight in its first line, in these letters and with commas."),
        ("case,weight\na,-2\n", "a: expected a weight >= 0, got -2.0."),
        ("case,weight\na,two\n", "a: expected a weight >= 0, got 'two'."),
        ("case,weight\na\n", "a: expected a weight >= 0, got ''."),
        ("case,weight\na,0,5\n", "a,0,5: 3 values, and there are 2 columns. Write numbers with a point."),
        ("case,weight\na,1_0\n", "a: expected a weight >= 0, got '1_0'."),
        ("case,weight\na,\n", "a: expected a weight >= 0, got ''."),
        (
            "case,weight,weight\na,1,2\n",
            "expected the columns case,weight in its first line, in these letters and with commas.",
        ),
        ("case,weight\na," + "1" * 200_000, "not a CSV file: field larger than field limit (131072)."),
        ("case,weight\na,1\na,2\n", "a is listed twice. Keep one weight."),
    ],
)
def test_a_wrong_csv_file(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(NnplugError) as error:
        read_weights(tmp_path, write(tmp_path, text, "w.csv"))
    assert str(error.value) == f"{tmp_path / 'w.csv'}: {reason}"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NnplugError) as error:
        read_weights(tmp_path, "w.json")
    assert str(error.value) == (
        f"{tmp_path / 'w.json'} is missing. "
        'Write it: {"CASE": 2, "OTHER": 0.5} with a weight for every training case.'
    )
    with pytest.raises(NnplugError, match=r"w\.csv is missing\. Write it: the lines case,weight and CASE,2 with a "):
        read_weights(tmp_path, "w.csv")
    for name in ("../w.json", "/tmp/w.json", "", 3):
        with pytest.raises(NnplugError) as error:
            read_weights(tmp_path, name)  # type: ignore[arg-type]
        assert str(error.value) == (f"sampler.case_weights: expected the name of a file in {tmp_path}, got {name!r}.")
    (tmp_path / "w.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NnplugError, match=r"w\.json can not be read: "):
        read_weights(tmp_path, "w.json")


@pytest.mark.parametrize("name", ["w.json", "w.csv"])
def test_weights_that_are_written_can_be_read(tmp_path: Path, name: str) -> None:
    SamplingLoader.write_example_inputs(tmp_path, ["a", "b"], case_weights=name, better_ignore=True)
    assert read_weights(tmp_path, name) == {"a": 1, "b": 2}
    SamplingLoader.write_example_inputs(tmp_path / "not there", ["a", "b"])


KNOWN = ("a", "b", "c", "val")
FILE = Path("w.json")


def test_probabilities_are_the_shares_of_the_training_cases() -> None:
    weights = {"a": 3.0, "b": 1.0, "c": 0.0, "val": 100.0}
    assert sampling_probabilities(weights, ["c", "a", "b"], KNOWN, FILE).tolist() == [0, 0.75, 0.25]
    huge = {"a": 1e308, "b": 1e308, "c": 0.0}
    assert sampling_probabilities(huge, ["a", "b", "c"], KNOWN, FILE).tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"a": 1, "b": 1, "c": 1, "x": 1}, "the data set has no case x. Correct the names or remove them."),
        (
            {"a": 1, "b": 1, "c": 1, "x": 1, "y": 1, "z": 1},
            "the data set has no case x and 2 more. Correct the names or remove them.",
        ),
        ({"a": 1, "b": 1}, "no weight for c. Add it; the weight 0 leaves a case out."),
        ({"val": 1}, "no weight for a and 2 more. Add it; the weight 0 leaves a case out."),
        (
            {"a": 0, "b": 0, "c": 0, "val": 1},
            "every training case of this fold has the weight 0. Give one of them more.",
        ),
    ],
)
def test_weights_that_do_not_fit_the_cases(weights: dict[str, float], reason: str) -> None:
    with pytest.raises(NnplugError) as error:
        sampling_probabilities(weights, ["a", "b", "c"], KNOWN, FILE)
    assert str(error.value) == f"w.json: {reason}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for folder in ("Dataset901_Tiny", "fold_0"):
        (tmp_path / folder).mkdir()
    return TrainingRun(
        trainer="case_weights",
        dataset="Dataset901_Tiny",
        configuration="3d_fullres",
        plans="nnUNetPlans",
        fold="0",
        output_folder=tmp_path / "fold_0",
        num_epochs=1,
        device="cpu",
        is_resumed=False,
        config={"sampler": {"use": "nnplug_sampling.loader:SamplingLoader", "case_weights": "w.json"}},
    )


def test_a_training_goes_on_with_the_weights_that_it_began_with(run: TrainingRun, tmp_path: Path) -> None:
    data = tmp_path / "Dataset901_Tiny"
    write(data, '{"a": 2, "b": 1}', "w.json")
    train_start(run)
    kept = run.output_folder / "case_weights.json"
    assert json.loads(kept.read_text()) == {"a": 2, "b": 1}

    write(data, '{"b": 1.0, "a": 2}', "w.json")  # the same, written differently
    train_start(replace(run, is_resumed=True))

    write(data, '{"a": 3, "c": 1}', "w.json")
    with pytest.raises(NnplugError) as error:
        train_start(replace(run, is_resumed=True))
    assert str(error.value) == (
        f"{run.output_folder} was trained with other case weights: a had 2.0 and has 3.0 now, and 2 more differ. "
        "Restore w.json, or start anew with --restart."
    )
    assert json.loads(kept.read_text()) == {"a": 2, "b": 1}
    train_start(run)
    assert json.loads(kept.read_text()) == {"a": 3, "c": 1}


def test_a_record_that_is_broken_stops_the_training(run: TrainingRun, tmp_path: Path) -> None:
    write(tmp_path / "Dataset901_Tiny", '{"a": 2, "b": 1}', "w.json")
    kept = run.output_folder / write(run.output_folder, '{"a": 2, "b')
    with pytest.raises(NnplugError) as error:
        train_start(replace(run, is_resumed=True))
    assert str(error.value) == (
        f"{kept}: not valid JSON: Unterminated string starting at: line 1 column 10 (char 9). "
        "Restore what the training began with, or start anew with --restart."
    )


def test_a_record_is_replaced_and_never_written_over(run: TrainingRun, tmp_path: Path) -> None:
    write(tmp_path / "Dataset901_Tiny", '{"a": 2, "b": 1}', "w.json")
    write(run.output_folder, '{"a": 5}')
    old = tmp_path / "the same file"
    os.link(run.output_folder / "case_weights.json", old)
    train_start(run)
    assert json.loads(old.read_text()) == {"a": 5}
    assert [path.name for path in run.output_folder.iterdir()] == ["case_weights.json"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"sampler": {"use": "nnplug_sampling.loader:SamplingLoader", "better_ignore": True}},
        {"sampler": {"use": "other:Loader", "case_weights": "w.json"}},
    ],
)
def test_other_trainings_keep_nothing(run: TrainingRun, config: dict[str, object]) -> None:
    train_start(replace(run, config=config))
    assert not list(run.output_folder.iterdir())


class Cases:
    """What a loader asks of a data set before it loads a case."""

    def __init__(self, dataset_folder: Path) -> None:
        self.source_folder = str(dataset_folder / "nnUNetPlans_3d_fullres")
        self.identifiers = ["a", "b", "c"]

    def get_identifiers(self, folder: str) -> list[str]:
        assert folder == self.source_folder
        return ["a", "b", "c", "val"]


def test_draws_follow_the_weights(tmp_path: Path) -> None:
    labels = LabelManager({"background": 0, "x": 1}, None)
    write(tmp_path, '{"a": 6, "b": 3, "c": 0, "val": 9}')
    loader = SamplingLoader(Cases(tmp_path), 3, (4, 4), (4, 4), labels, case_weights="case_weights.json")
    np.random.seed(0)
    drawn = np.concatenate([loader.get_indices() for _ in range(1000)])
    counts = [np.count_nonzero(drawn == case) for case in "abc"]
    assert counts[2] == 0
    assert chisquare(counts[:2], [2000, 1000]).pvalue > 0.01

    write(tmp_path, '{"a": 6, "b": 3, "d": 1}')
    with pytest.raises(NnplugError, match=r"case_weights\.json: the data set has no case d\."):
        SamplingLoader(Cases(tmp_path), 3, (4, 4), (4, 4), labels, case_weights="case_weights.json")
