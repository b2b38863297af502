"""What is refused before a network is loaded, and how it is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nnplug.errors import NnplugError
from nnplug.models.trained_models import ModelFolder, read_model_folder
from nnplug.prediction.inputs import check_inputs, find_cases, is_complete
from support.models import make_dataset_json, make_plans, write_descriptions, write_image


def make_model(tmp_path: Path, *channels: str, ending: str = ".nii.gz", **plans: object) -> ModelFolder:
    channels = channels or ("MRI",)
    folder = write_descriptions(
        tmp_path / "model", {**make_plans(channels), **plans}, make_dataset_json(channels, ending)
    )
    return read_model_folder(folder)


def error_of(tmp_path: Path, model: ModelFolder, **options: object) -> str:
    with pytest.raises(NnplugError) as caught:
        check_inputs(tmp_path / "in", tmp_path / "out", model, **options)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{tmp_path}{os.sep}", "")


def names(cases: list) -> list[str]:
    return [case.name for case in cases]


def test_good_cases_and_a_new_output_folder(tmp_path: Path) -> None:
    for case in ("b", "a_1"):
        for channel in (0, 1):
            write_image(tmp_path / "in" / f"{case}_{channel:04d}.nii.gz")
    (tmp_path / "in" / "notes.txt").write_text("kept out")
    cases, remaining = check_inputs(tmp_path / "in", tmp_path / "new" / "out", make_model(tmp_path, "T1", "T2"))
    assert cases == remaining
    assert names(cases) == ["a_1", "b"]
    assert [path.name for path in cases[0].files] == ["a_1_0000.nii.gz", "a_1_0001.nii.gz"]
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_input_folder_is_missing_or_a_file(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    assert error_of(tmp_path, model) == "There is no input folder in."
    write_image(tmp_path / "image.nii.gz").rename(tmp_path / "in")
    assert error_of(tmp_path, model) == "The input in is a file: give the folder with the images (CASE_0000.nii.gz)."


def test_no_file_of_the_model_s_format(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    model = make_model(tmp_path)
    start = "in has no '.nii.gz' file, which the model was trained with. "
    assert error_of(tmp_path, model) == start + "It has: no files."
    for name in ("a_0000.nii", "b_0000.nii", "a_0000.mha"):
        (tmp_path / "in" / name).touch()
    assert error_of(tmp_path, model) == start + "It has: 2 '.nii', 1 '.mha'."


def test_missing_channel_number(tmp_path: Path) -> None:
    """The number of a case stays, or every case would be renamed to one name."""
    write_image(tmp_path / "in" / "case_001.nii.gz")
    message = "in: case_001.nii.gz has no four-digit channel number: rename it to case_001_0000.nii.gz."
    assert error_of(tmp_path, make_model(tmp_path)) == message


def test_missing_channel_file(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0002", "b_0001"):
        write_image(tmp_path / "in" / f"{name}.nii.gz")
    assert error_of(tmp_path, make_model(tmp_path, "T1", "T2", "FLAIR")).splitlines() == [
        "in: 2 problems:",
        "  case a: missing channel a_0001.nii.gz (T2); the model takes 3 (T1, T2, FLAIR)",
        "  case b: missing channel b_0000.nii.gz (T1), b_0002.nii.gz (FLAIR); the model takes 3 (T1, T2, FLAIR)",
    ]


def test_wrong_channel_count(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001"):
        write_image(tmp_path / "in" / f"{name}.nii.gz")
    message = error_of(tmp_path, make_model(tmp_path))
    assert message == "in: case a: unexpected channel a_0001.nii.gz; the model takes 1 (MRI)."


def test_channels_inside_a_file_count(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "in" / "a_0000.png")
    rgb = make_model(tmp_path, "red", "green", "blue", ending=".png", image_reader_writer="NaturalImage2DIO")
    assert names(check_inputs(tmp_path / "in", tmp_path / "out", rgb)[0]) == ["a"]
    grey = make_model(tmp_path, "grey", ending=".png", image_reader_writer="NaturalImage2DIO")
    assert error_of(tmp_path, grey) == "in: case a has 3 channels (a_0000.png holds 3); the model takes 1 (grey)."


def test_channels_of_other_size_or_spacing(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz", shape=(14, 16, 18))
    write_image(tmp_path / "in" / "a_0001.nii.gz", shape=(14, 16, 10))
    model = make_model(tmp_path, "T1", "T2")
    sizes = "a_0000.nii.gz 18x16x14, a_0001.nii.gz 10x16x14"
    assert error_of(tmp_path, model) == f"in: case a: the channels differ in size ({sizes})."
    write_image(tmp_path / "in" / "a_0001.nii.gz", shape=(14, 16, 18), spacing_mm=1.1)
    assert error_of(tmp_path, model).startswith(
        "in: case a: the channels differ in voxel spacing (a_0000.nii.gz (1.0, "
    )


def test_unreadable_image(tmp_path: Path) -> None:
    for case in "abc":
        write_image(tmp_path / "in" / f"{case}_0000.nii.gz")
    (tmp_path / "in" / "a_0000.nii.gz").write_bytes(b"no image")
    truncated = (tmp_path / "in" / "b_0000.nii.gz").read_bytes()[:-2000]
    (tmp_path / "in" / "b_0000.nii.gz").write_bytes(truncated)
    lines = error_of(tmp_path, make_model(tmp_path)).splitlines()
    assert lines[0] == "in: 2 problems:"
    assert lines[1].startswith("  a_0000.nii.gz can not be read: Unable to determine ImageIO reader")
    assert lines[2:] == ["  b_0000.nii.gz can not be read: the file is truncated or damaged"]


def test_ten_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(25):
        (tmp_path / "in" / f"c{index:02d}_0000.nii.gz").touch()
    lines = error_of(tmp_path, make_model(tmp_path)).splitlines()
    assert lines[0] == "in: 25 problems:"
    assert lines[1] == "  c00_0000.nii.gz can not be read: the file is empty"
    assert (lines[-1], len(lines)) == ("  and 15 more", 12)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("what", "folder"), [("the input folder", "in"), ("the model folder", "model")])
def test_output_folder_is_taken(tmp_path: Path, what: str, folder: str) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    model = make_model(tmp_path)
    with pytest.raises(NnplugError, match=rf"The output folder .*{folder} is {what}: choose another\."):
        check_inputs(tmp_path / "in", tmp_path / "in" / ".." / folder, model)


def test_output_folder_of_a_data_set(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("{}")
    model = make_model(tmp_path)
    message = "The output folder out holds a dataset.json that no prediction wrote: choose another."
    assert error_of(tmp_path, model) == message
    (tmp_path / "out" / "predict_from_raw_data_args.json").write_text("{}")
    check_inputs(tmp_path / "in", tmp_path / "out", model)


def test_output_folder_can_not_be_made(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    (tmp_path / "file").touch()
    with pytest.raises(NnplugError, match=r"The output folder .*out can not be made: .*file is a file\."):
        check_inputs(tmp_path / "in", tmp_path / "file" / "out", make_model(tmp_path))


def test_output_folder_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    model = make_model(tmp_path)
    # root may write everywhere, so the system's answer is made up
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert error_of(tmp_path, model).startswith("The output folder out can not be written: no permission in ")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert error_of(tmp_path, model) == "The output folder out can not be written: No space left on device."


def test_previous_stage(tmp_path: Path) -> None:
    for case in "ab":
        write_image(tmp_path / "in" / f"{case}_0000.nii.gz")
    model = make_model(tmp_path)
    missing = "in: There is no folder prev with the predictions of the previous stage."
    assert error_of(tmp_path, model, prev_stage_predictions=tmp_path / "prev") == missing
    write_image(tmp_path / "prev" / "a.nii.gz")
    missing = "in: case b: the previous stage's prediction prev/b.nii.gz is missing."
    assert error_of(tmp_path, model, prev_stage_predictions=tmp_path / "prev") == missing
    (tmp_path / "prev" / "b.nii.gz").touch()
    unreadable = "in: prev/b.nii.gz can not be read: the file is empty."
    assert error_of(tmp_path, model, prev_stage_predictions=tmp_path / "prev") == unreadable
    write_image(tmp_path / "prev" / "b.nii.gz")
    check_inputs(tmp_path / "in", tmp_path / "out", model, prev_stage_predictions=tmp_path / "prev")


def test_parts_share_the_cases(tmp_path: Path) -> None:
    for case in "abcde":
        write_image(tmp_path / "in" / f"{case}_0000.nii.gz")
    (tmp_path / "in" / "e_0000.nii.gz").write_bytes(b"")  # is of the first part
    model = make_model(tmp_path)
    assert names(check_inputs(tmp_path / "in", tmp_path / "out", model, num_parts=2, part_id=1)[0]) == ["b", "d"]
    assert "e_0000.nii.gz can not be read" in error_of(tmp_path, model, num_parts=2, part_id=0)
    message = "Part 2 of 2 does not exist: parts count from 0 to num_parts - 1."
    assert error_of(tmp_path, model, num_parts=2, part_id=2) == message


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png"])
def test_a_half_written_prediction_is_not_complete(tmp_path: Path, ending: str) -> None:
    reader = "NaturalImage2DIO" if ending == ".png" else "SimpleITKIO"
    model = make_model(tmp_path, ending=ending, image_reader_writer=reader)
    source = tmp_path / "in" / f"a_0000{ending}"
    whole = tmp_path / "out" / f"a{ending}"
    whole.parent.mkdir()
    if ending == ".png":
        import numpy as np
        from PIL import Image

        source.parent.mkdir()
        Image.fromarray(np.random.default_rng(0).integers(0, 9, (60, 60), np.uint8)).save(source)
    else:
        write_image(source, shape=(40, 40, 40))
    (case,) = find_cases(tmp_path / "in", model)[0]
    assert not is_complete(case, whole.parent, model, save_probabilities=False)
    whole.write_bytes(source.read_bytes())
    assert is_complete(case, whole.parent, model, save_probabilities=False)
    assert check_inputs(tmp_path / "in", whole.parent, model, continue_prediction=True) == ([case], [])
    for share in (0.0, 0.001, 0.01, 0.1, 0.5, 0.98):
        whole.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
        assert not is_complete(case, whole.parent, model, save_probabilities=False), share


def test_probabilities_must_be_whole_too(tmp_path: Path) -> None:
    import numpy as np

    model = make_model(tmp_path)
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    write_image(tmp_path / "out" / "a.nii.gz")
    (case,) = find_cases(tmp_path / "in", model)[0]
    npz = tmp_path / "out" / "a.npz"
    assert not is_complete(case, npz.parent, model, save_probabilities=True)
    np.savez_compressed(npz, probabilities=np.random.default_rng(0).random((3, 10, 10, 10)))
    assert is_complete(case, npz.parent, model, save_probabilities=True)
    npz.write_bytes(npz.read_bytes()[:-30])
    assert not is_complete(case, npz.parent, model, save_probabilities=True)


def test_the_checks_import_no_torch() -> None:
    code = "import sys, nnplug.prediction.predicting; sys.exit('torch' in sys.modules or 'nnunetv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
