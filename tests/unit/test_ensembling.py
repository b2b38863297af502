"""Averaging predictions and post-processing them: as nnU-Net does it, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from nnplug import NnplugError
from nnplug.cli import main
from nnplug.prediction.ensembling import check_probabilities, ensemble
from nnplug.prediction.postprocessing import postprocess
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from support.predictions import make_truth, read_segmentation, write_predictions, write_segmentation

CASES = ("a", "b.x")


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return [write_predictions(tmp_path / name, CASES, noise) for name, noise in (("first", 1.0), ("second", 3.0))]


def steps(path: Path, *regions: object) -> Path:
    function = remove_all_but_largest_component_from_segmentation
    content = ([function] * len(regions), [{"labels_or_regions": one} for one in regions])
    path.write_bytes(pickle.dumps(content))
    return path


class Harmful:
    def __reduce__(self) -> object:
        return os.mkdir, ("was_run",)


# --- ensemble --------------------------------------------------------------------------------------------------------


def test_the_segmentation_of_the_mean(inputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    (inputs[0] / ".c.npz").write_bytes(b"being written")
    assert main(["ensemble", "-i", *map(str, inputs), "-o", str(output), "-np", "0", "--save_npz"]) == 0
    assert capsys.readouterr().out == f"2 segmentations in {output}.\n"
    for case in CASES:
        arrays = [np.load(folder / f"{case}.npz")["probabilities"].astype(np.float32) for folder in inputs]
        mean = (arrays[0] + arrays[1]) / 2
        np.testing.assert_array_equal(read_segmentation(output / f"{case}.nii.gz"), mean.argmax(axis=0))
        np.testing.assert_array_equal(np.load(output / f"{case}.npz")["probabilities"], mean)
    expected = {f"{case}{ending}" for case in CASES for ending in (".nii.gz", ".npz", ".pkl")}
    assert {path.name for path in output.iterdir()} == {*expected, "dataset.json", "plans.json"}
    # the result can be averaged and evaluated again
    assert len(ensemble([output, inputs[0]], tmp_path / "again", num_processes=0)) == 2
    assert not list((tmp_path / "again").glob("*.npz"))


def test_every_problem_of_an_ensemble_is_listed(inputs: list[Path], tmp_path: Path) -> None:
    first, second = inputs
    write_predictions(second, ("only_here",), 1.0)
    with np.load(second / "a.npz") as file:
        np.savez(second / "a.npz", probabilities=file["probabilities"][:, 1:])
    (first / "b.x.pkl").unlink()
    (second / "b.x.npz").write_bytes(b"nothing")
    with pytest.raises(NnplugError) as error:
        ensemble(inputs, tmp_path / "out")
    again = "Predict it again with --save_probabilities."
    assert str(error.value).splitlines() == [
        "The ensemble: 4 problems:",
        f"  case only_here: it has no probabilities (only_here.npz) in {first}. {again}",
        f"  case a, {second / 'a.npz'}: its shape is (3, 5, 10, 12), that in {first} (3, 6, 10, 12). {again}",
        f"  case b.x, {second / 'b.x.npz'}: it is no file of probabilities (File is not a zip file). {again}",
        f"  case b.x, {first / 'b.x.npz'}: b.x.pkl is missing beside it. {again}",
    ]
    assert not (tmp_path / "out").exists()


def test_probabilities_that_are_damaged_anywhere(inputs: list[Path]) -> None:
    path = inputs[0] / "a.npz"
    whole = path.read_bytes()
    told = set()
    # where the member and its compressed header are, and the archive's own list of members
    for position in [*range(100), *range(len(whole) - 120, len(whole))]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        told |= {problem.found.partition("(")[0] for problem in check_probabilities({"a": [path]})}
    assert told == {"it is no file of probabilities "}
    header = b"{'descr': ('<f2'"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header)
    [problem] = check_probabilities({"a": [path]})
    assert problem.found.startswith("it is no file of probabilities (")


def test_a_case_that_can_not_be_averaged_is_named_and_the_others_go_on(inputs: list[Path], tmp_path: Path) -> None:
    damaged = bytearray((inputs[1] / "a.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF  # its header is whole
    (inputs[1] / "a.npz").write_bytes(damaged)
    with pytest.raises(NnplugError, match=r"^The ensemble: case a: .+\. Mend it and run this again\.$"):
        ensemble(inputs, tmp_path / "out", num_processes=0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.x.nii.gz"]


def test_folders_that_make_no_ensemble(inputs: list[Path], tmp_path: Path) -> None:
    first, second = inputs
    with pytest.raises(NnplugError, match=r"^There is no folder .*nowhere\.$"):
        ensemble([first, tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(NnplugError, match=r"needs at least two folders, all of them different\. Name them with -i\."):
        ensemble([first, first], tmp_path / "out")
    with pytest.raises(NnplugError, match=r"The output folder is the input folder .*second: choose another one\."):
        ensemble(inputs, second)
    content = json.loads((second / "dataset.json").read_text())
    (second / "dataset.json").write_text(json.dumps({**content, "labels": {"background": 0, "other": 1, "box": 2}}))
    with pytest.raises(NnplugError, match=r"second has labels .*'other'.*, and .*first has .*: their classes differ\."):
        ensemble(inputs, tmp_path / "out")
    (second / "plans.json").unlink()
    with pytest.raises(
        NnplugError, match=r"There is no plans\.json in .*second\. Predictions of nnplug and nnU-Net have"
    ):
        ensemble(inputs, tmp_path / "out")
    for path in [*first.glob("*.npz"), *second.glob("*.npz")]:
        path.unlink()
    shutil.copy(first / "plans.json", second)
    shutil.copy(first / "dataset.json", second)
    with pytest.raises(NnplugError, match=r"first has no probabilities \(\.npz\)\. Predict it again with"):
        ensemble(inputs, tmp_path / "out")


def test_properties_that_run_code_are_not_read(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (inputs[0] / "a.pkl").write_bytes(pickle.dumps({"spacing": Harmful()}))
    with pytest.raises(NnplugError, match=r"a\.pkl would run code when it is read: it names posix\.mkdir"):
        ensemble(inputs, tmp_path / "out", num_processes=0)
    assert not Path("was_run").exists()


# --- post-processing -------------------------------------------------------------------------------------------------


def test_steps_are_applied_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, output = write_predictions(tmp_path / "in", CASES, 0.0), tmp_path / "out"
    clean = make_truth(0)
    spotted = clean.copy()
    spotted[0, 0, 0], spotted[0, 0, -1] = 1, 2
    write_segmentation(inputs / "a.nii.gz", spotted)
    (inputs / ".c.nii.gz").write_bytes(b"being written")
    file = steps(tmp_path / "postprocessing.pkl", np.int64(1), [1, (1, 2)])
    assert main(["postprocess", "-i", str(inputs), "-o", str(output), "-pp_pkl_file", str(file), "-np", "0"]) == 0
    assert capsys.readouterr().out == f"2 segmentations in {output}.\n"
    found = read_segmentation(output / "a.nii.gz")
    largest = 1 + int(np.sum(clean == 2) > np.sum(clean == 1))
    np.testing.assert_array_equal(found, np.where(clean == largest, largest, 0))
    assert {path.name for path in output.iterdir()} == {"a.nii.gz", "b.x.nii.gz", "dataset.json", "plans.json"}

    only_first = postprocess(inputs, tmp_path / "one", steps(file, 1), num_processes=0)
    expected = clean.copy()
    expected[0, 0, -1] = 2
    np.testing.assert_array_equal(read_segmentation(only_first[0]), expected)


def test_what_postprocessing_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = write_predictions(tmp_path / "in", CASES, 0.0)
    file = steps(tmp_path / "postprocessing.pkl", 1)
    with pytest.raises(NnplugError, match=r"^There is no folder .*nowhere\.$"):
        postprocess(tmp_path / "nowhere", tmp_path / "out", file)
    with pytest.raises(
        NnplugError, match=r"The output folder is the input folder .*in: choose another one, or they are"
    ):
        postprocess(inputs, inputs, file)
    damaged = (inputs / "a.nii.gz").read_bytes()
    (inputs / "a.nii.gz").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(NnplugError, match=r"a\.nii\.gz: it can not be read: .*\. Predict it again\."):
        postprocess(inputs, tmp_path / "out", file)
    for path in inputs.glob("*.nii.gz"):
        path.unlink()
    with pytest.raises(NnplugError, match=r"in has no '\.nii\.gz' file, the file_ending of dataset\.json\."):
        postprocess(inputs, tmp_path / "out", file)
    (inputs / "plans.json").unlink()
    with pytest.raises(NnplugError, match=r"There is no plans\.json in .*in and none in .*\. Name it with -plans_json"):
        postprocess(inputs, tmp_path / "out", file)
    file.write_bytes(pickle.dumps(([Harmful()], [{"labels_or_regions": 1}])))
    assert main(["postprocess", "-i", str(inputs), "-o", str(tmp_path / "out"), "-pp_pkl_file", str(file)]) == 2
    assert "postprocessing.pkl would run code when it is read: it names posix.mkdir" in capsys.readouterr().err
    assert not Path("was_run").exists()
    assert not (tmp_path / "out").exists()
