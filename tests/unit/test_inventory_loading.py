"""An inventory's own contradictions: each is said with its place, what was found and what to do, all at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from nnplug.errors import NnplugError
from nnplug.inventory.loading import load_inventory, load_raw_folder
from nnplug.inventory.readers import choose_reader
from nnplug.problems import Problem, raise_problems
from support.inventories import MadeInventory


@pytest.fixture
def made(tmp_path: Path) -> MadeInventory:
    return MadeInventory(tmp_path / "data")


def problems_of(made: MadeInventory, *, labelled: bool = True) -> list[str]:
    made.write()
    _, problems = load_inventory(made.path, labelled=labelled)
    return [str(problem).replace(f"{made.folder}{os.sep}", "") for problem in problems]


def test_a_good_inventory(made: MadeInventory) -> None:
    inventory, problems = load_inventory(made.path)
    assert problems == []
    assert inventory.channel_names == ("MRI",)
    assert list(inventory.cases) == ["case_0", "case_1"]
    assert inventory.cases["case_0"].images == (made.folder / "images" / "case_0_0000.nii.gz",)
    assert inventory.cases["case_0"].label == made.folder / "labels" / "case_0.nii.gz"


def test_dataset_json_is_what_nnunet_reads(made: MadeInventory) -> None:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    made.content["description"] = "kept"
    inventory, _ = load_inventory(made.write())
    written = inventory.dataset_json()
    assert {key: value for key, value in written.items() if key != "dataset"} == {
        key: value for key, value in made.content.items() if key != "dataset"
    }
    found = get_filenames_of_train_images_and_targets("/nowhere", json.loads(json.dumps(written)))
    assert {name: [*map(Path, entry["images"])] for name, entry in found.items()} == {
        name: list(files.images) for name, files in inventory.cases.items()
    }


def test_channels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    made = MadeInventory(tmp_path, channels=("T1", "T2"))
    made.content["channel_names"] = {"1": "T2", "0": "T1"}
    inventory, problems = load_inventory(made.write())
    assert (inventory.channel_names, problems) == (("T1", "T2"), [])
    assert list(inventory.dataset_json()["channel_names"].items()) == [("0", "T1"), ("1", "T2")]


def test_variables_home_and_relative_paths(made: MadeInventory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(made.folder))
    monkeypatch.setenv("SCANS", str(made.folder / "images"))
    made.entry("case_0")["images"] = ["$SCANS/case_0_0000.nii.gz"]
    made.entry("case_0")["label"] = "~/labels/case_0.nii.gz"
    made.entry("case_1")["images"] = ["images/../images/case_1_0000.nii.gz"]
    monkeypatch.chdir("/")
    inventory, problems = load_inventory(made.write())
    assert problems == []
    assert [files.images[0] for files in inventory.cases.values()] == [
        made.folder / "images" / f"case_{index}_0000.nii.gz" for index in range(2)
    ]
    assert inventory.cases["case_0"].label == made.folder / "labels" / "case_0.nii.gz"


def test_a_variable_that_is_not_set(made: MadeInventory) -> None:
    made.entry("case_0")["label"] = "${NO_SUCH_VARIABLE}/case_0.nii.gz"
    assert problems_of(made) == [
        "case case_0: ${NO_SUCH_VARIABLE}/case_0.nii.gz: the variable NO_SUCH_VARIABLE is not set. "
        "export NO_SUCH_VARIABLE=FOLDER, or write the path out."
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no file inventory.json."),
        ("{", "inventory.json is no valid JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        ("[]", "inventory.json does not hold a JSON object. An inventory has the keys channel_names, labels, "),
        ("{}", "inventory.json has no channel_names and no labels and no file_ending and no dataset. An inventory has"),
    ],
)
def test_no_inventory(made: MadeInventory, text: str | None, message: str) -> None:
    made.path.unlink()
    if text is not None:
        made.path.write_text(text)
    with pytest.raises(NnplugError) as caught:
        load_inventory(made.path)
    assert str(caught.value).replace(f"{made.folder}{os.sep}", "").startswith(message)


def test_all_problems_at_once(made: MadeInventory) -> None:
    made.content["numTraining"] = 3
    made.content["channel_names"] = {"1": "MRI"}
    made.content["labels"] = {"background": 0, "box": 2}
    made.entry("case_0")["images"] = ["images/gone.nii.gz"]
    made.entry("case_1")["label"] = "labels"
    assert problems_of(made) == [
        "channel_names has the keys '1'. "
        'It has to map "0", "1", ... to names, for example {"0": "T1", "1": "FLAIR"}.',
        "the labels are 0, 2: 1 is missing. nnU-Net needs consecutive integers: renumber them, also in the images, "
        "to 0 to 1.",
        "case case_0, images/gone.nii.gz: there is no such file. Mend the path, or leave the case out.",
        "case case_1, labels: it is not a file. Mend the path, or leave the case out.",
        "numTraining is 3, and dataset has 2 cases. Make it 2, or see which cases are missing.",
    ]
    inventory, _ = load_inventory(made.path)
    assert inventory.cases == {}


def test_cases_without_images_or_label(made: MadeInventory) -> None:
    made.content["dataset"]["case_0"] = {"images": "images/case_0_0000.nii.gz", "label": "labels/case_0.nii.gz"}
    del made.entry("case_1")["label"]
    example = 'Give {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}.'
    assert problems_of(made) == [
        f"case case_0: it has no list of images. {example}",
        f"case case_1: it has no label. {example}",
    ]


def test_no_cases(made: MadeInventory) -> None:
    made.content.update(dataset={}, numTraining=0)
    assert problems_of(made) == ["dataset has no cases. It maps each case to its images and its label."]


def test_cases_to_predict_need_no_label(made: MadeInventory) -> None:
    made.content = {"dataset": {"a": {"images": ["images/case_0_0000.nii.gz"]}}}
    assert problems_of(made, labelled=False) == []
    inventory, _ = load_inventory(made.path, labelled=False)
    assert inventory.cases["a"].label is None


def test_a_case_that_is_there_twice(made: MadeInventory) -> None:
    text = json.dumps(made.content).replace('"case_1"', '"case_0"')
    made.path.write_text(text)
    _, problems = load_inventory(made.path)
    assert str(problems[0]) == f"{made.path}: the key 'case_0' is there 2 times. Names have to differ."


def test_a_file_that_is_used_twice(made: MadeInventory) -> None:
    (made.folder / "again.nii.gz").symlink_to(made.folder / "images" / "case_0_0000.nii.gz")
    made.entry("case_1")["images"] = ["again.nii.gz"]
    made.entry("case_0")["label"] = "images/case_0_0000.nii.gz"
    assert problems_of(made) == [
        "case case_0, images/case_0_0000.nii.gz: used as label, and by the same case as channel 0. "
        "Each file belongs to one case and one channel.",
        "case case_1, again.nii.gz: used as channel 0, and by case case_0 as channel 0. "
        "Each file belongs to one case and one channel.",
    ]


def test_labels_that_are_stored_once_are_not_used_twice(made: MadeInventory) -> None:
    """Tools that store equal files once make one file of the empty labels of several cases."""
    label = made.folder / "labels" / "case_1.nii.gz"
    label.unlink()
    label.symlink_to(made.folder / "labels" / "case_0.nii.gz")
    assert problems_of(made) == []
    made.entry("case_1")["label"] = "labels/../labels/case_0.nii.gz"
    assert problems_of(made) == [
        "case case_1, labels/case_0.nii.gz: used as label, and by case case_0 as label. "
        "Each file belongs to one case and one channel."
    ]


def test_file_ending(made: MadeInventory) -> None:
    made.content["file_ending"] = "nii.gz"
    assert problems_of(made) == ["file_ending is 'nii.gz'. Give the ending that predictions get, for example .nii.gz."]


def test_a_file_without_permission(made: MadeInventory, monkeypatch: pytest.MonkeyPatch) -> None:
    # the tests may run as root, who may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: "case_0_0000" not in str(path) or mode != os.R_OK)
    assert problems_of(made) == [
        "case case_0, images/case_0_0000.nii.gz: there is no permission to read it. "
        "Mend the path, or leave the case out."
    ]


def test_one_problem_is_one_line_and_several_are_a_list() -> None:
    problem = Problem("something is wrong", "Mend it.", "a", Path("b.nii"))
    with pytest.raises(NnplugError) as one:
        raise_problems("data", [problem])
    assert str(one.value) == "data: case a, b.nii: something is wrong. Mend it."
    with pytest.raises(NnplugError) as two:
        raise_problems("data", [problem] * 2)
    line = "case a, b.nii: something is wrong. Mend it."
    assert str(two.value).splitlines() == ["data: 2 problems:", f"  {line}", f"  {line}"]
    raise_problems("data", [])


# --- raw data sets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw data set with two cases and two channels."""
    made = MadeInventory(tmp_path / "made", channels=("T1", "T2"))
    folder = tmp_path / "Dataset005_Made"
    folder.mkdir()
    (made.folder / "images").rename(folder / "imagesTr")
    (made.folder / "labels").rename(folder / "labelsTr")
    del made.content["dataset"]
    (folder / "dataset.json").write_text(json.dumps(made.content))
    return folder


def raw_problems(folder: Path) -> list[str]:
    return [str(problem).replace(f"{folder}{os.sep}", "") for problem in load_raw_folder(folder)[1]]


def test_a_raw_folder_is_read_as_nnunet_reads_it(raw: Path) -> None:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    (raw / "imagesTr" / "notes.txt").write_text("ignored")
    inventory, problems = load_raw_folder(raw)
    assert problems == []
    stock = get_filenames_of_train_images_and_targets(str(raw))
    assert [(name, [*map(str, files.images)], str(files.label)) for name, files in inventory.cases.items()] == [
        (name, entry["images"], entry["label"]) for name, entry in stock.items()
    ]


def test_descriptions_in_the_style_of_the_decathlon(raw: Path, made: MadeInventory) -> None:
    new = json.loads((raw / "dataset.json").read_text())
    old = {"modality": new.pop("channel_names"), "labels": {"0": "Background", "1": "box"}, "numTraining": 2}
    (raw / "dataset.json").write_text(json.dumps(old))
    inventory, problems = load_raw_folder(raw)
    assert problems == []
    assert (inventory.channel_names, inventory.labels, inventory.file_ending) == (
        ("T1", "T2"),
        {"background": 0, "box": 1},
        ".nii.gz",
    )
    notes = ["modality is taken for channel_names", "labels are turned from value: name into name: value"]
    assert list(inventory.converted) == [*notes, "file_ending is .nii.gz"]
    made.content["labels"] = {"0": "background", "1": "box"}
    inventory, problems = load_inventory(made.write())
    assert (problems, inventory.converted) == ([], tuple(notes[1:]))
    assert inventory.labels == {"background": 0, "box": 1}


def test_wrong_names_in_a_raw_folder(raw: Path) -> None:
    (raw / "imagesTr" / "case_0_0000.nii.gz").rename(raw / "imagesTr" / "case_0.nii.gz")
    (raw / "labelsTr" / "case_1.nii.gz").unlink()
    assert raw_problems(raw) == [
        "imagesTr/case_0.nii.gz: the name has no four-digit channel number. Rename it to case_0000.nii.gz.",
        "case case_0, imagesTr/case_0_0001.nii.gz: channel 0000 of case case_0 is missing before this one. "
        "Channels count from 0000 without a gap.",
        "case case_1, labelsTr/case_1.nii.gz: there is no such file. Mend the path, or leave the case out.",
    ]


@pytest.mark.parametrize("ending", [None, "nii.gz"])
def test_a_raw_folder_without_a_file_ending(raw: Path, ending: str | None) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "file_ending": ending}))
    with pytest.raises(NnplugError) as error:
        load_raw_folder(raw)
    advice = "Give the ending that predictions get, for example .nii.gz."
    assert str(error.value) == f"{raw / 'dataset.json'}: file_ending is {ending!r}. {advice}"


def test_no_reader_of_its_own(raw: Path, made: MadeInventory) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "overwrite_image_reader_writer": None}))
    made.content["overwrite_image_reader_writer"] = None
    for inventory, problems in (load_raw_folder(raw), load_inventory(made.write())):
        assert problems == []
        assert choose_reader(inventory).__name__ == "SimpleITKIO"
        # nnU-Net fails with null
        assert "overwrite_image_reader_writer" not in inventory.dataset_json()


def test_a_raw_folder_without_its_folders(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"There is no file .*dataset\.json\."):
        load_raw_folder(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(NnplugError, match=r"has no labels and no file_ending and no channel_names\. nnU-Net needs"):
        load_raw_folder(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {}, "file_ending": ".nii.gz", "channel_names": {}}')
    with pytest.raises(NnplugError, match=r"has no folder imagesTr and no folder labelsTr\."):
        load_raw_folder(tmp_path)
