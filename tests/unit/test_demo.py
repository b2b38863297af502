"""The demo's images, its folder and its report; the whole run is in tests/e2e."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from nnplug import NnplugError
from nnplug.demo import images
from nnplug.demo.folder import STATE, DemoFolder, check_raw_dataset
from nnplug.demo.held_out import HeldOutCase, choose_held_out, link_images
from nnplug.demo.networks import count_parameters, smallest_network
from nnplug.demo.pipeline import Demo, DemoSettings, run_demo
from nnplug.demo.report import draw_picture, mean_dice, mean_of_known, table_text
from nnplug.discovery.registry import get_registry
from nnplug.networks.network import configure_plans
from support import DatasetForTests

# --- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return images.load_template()


@pytest.mark.parametrize(
    ("grey", "white", "label"),
    [(127, 0, 0), (128, 0, 1), (128, 128, 1), (200, 255, 2), (0, 127, 0), (0, 128, 2), (255, 200, 1)],
)
def test_the_larger_map_above_127_gives_the_label(grey: int, white: int, label: int) -> None:
    maps = [np.full((1, 1, 1), value, np.uint8) for value in (grey, white)]
    assert images.label_tissue(*maps).item() == label


def test_the_template_gives_39_blocks(template: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, labels, _ = template
    blocks = images.cut_blocks(labels)
    assert len(blocks) == 39
    for block in blocks:
        assert image[block.region].shape == (40, 40, 40)
        assert min((labels[block.region] == label).mean() for label in (1, 2)) > 0.05


def test_mirror_images_stay_on_one_side_of_every_split(template: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, labels, _ = template
    assert np.array_equal(image, image[::-1]), "the template is symmetric: this is why pairs are kept together"
    blocks = images.cut_blocks(labels)
    held_out, splits = images.split_blocks(blocks)
    pair_of = {block.case: block.pair for block in blocks}
    trained = {case for split in splits for case in split["train"]}
    assert len(held_out) == 6
    assert not {block.case for block in held_out} & trained
    assert not {block.pair for block in held_out} & {pair_of[case] for case in trained}
    for split in splits:
        assert sorted([*split["train"], *split["val"]]) == sorted(trained)
        assert not {pair_of[case] for case in split["train"]} & {pair_of[case] for case in split["val"]}
    assert sorted(case for split in splits for case in split["val"]) == sorted(trained)


def test_the_raw_dataset_holds_the_template_unchanged(
    template: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    import nibabel

    image, labels, affine = template
    folder = tmp_path / images.DATASET_NAME
    splits = images.write_raw_dataset(folder)
    content = json.loads((folder / "dataset.json").read_text())
    files = sorted(folder.rglob("*_0000.nii.gz"))
    assert len(files) == 39
    assert content["numTraining"] == len(list((folder / "labelsTr").iterdir())) == 33
    assert len(splits) == 5
    assert content["channel_names"] == {"0": "rgb_to_0_1"}, "blocks of one image keep their common scale"
    for file in files[::8]:
        block = nibabel.load(file)
        part = file.parent.name[-2:]
        segmentation = nibabel.load(folder / f"labels{part}" / file.name.replace("_0000", ""))
        # from voxel to mm and back through the whole template's geometry
        start = np.rint(np.linalg.inv(affine) @ block.affine @ [0, 0, 0, 1]).astype(int)[:3]
        region = tuple(slice(first, first + 40) for first in start)
        assert np.array_equal(np.asarray(block.dataobj), image[region])
        assert np.array_equal(np.asarray(segmentation.dataobj), labels[region])


def test_missing_nilearn_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(NnplugError, match=r"pip install 'nnplug\[demo\]'; or give your own data with --dataset FOLDER"):
        images.write_raw_dataset(tmp_path / "x")


# --- folder ----------------------------------------------------------------------------------------------------------


class Said(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


def open_folder(path: Path, dataset: str = "Dataset901_Tiny", source: Path | None = None) -> DemoFolder:
    return DemoFolder(path, dataset, source, Said())


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(NnplugError, match=r"holds something that no demo made\. Name another folder with -o"):
        open_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NnplugError, match="holds something that no demo made"):
        open_folder(tmp_path / "out")
    with pytest.raises(NnplugError, match=r"can not be made \(Not a directory\)"):
        open_folder(tmp_path / "out" / "deeper")


def test_another_dataset_needs_another_folder(tmp_path: Path) -> None:
    open_folder(tmp_path / "out")
    open_folder(tmp_path / "out")
    with pytest.raises(NnplugError, match=r"holds a demo with Dataset901_Tiny\. Name another folder with -o"):
        open_folder(tmp_path / "out", "Dataset902_Other")


def test_a_changed_dataset_needs_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "Dataset901_Tiny"
    source.mkdir()
    (source / "a.txt").write_text("1")
    open_folder(tmp_path / "out", source=source)
    open_folder(tmp_path / "out", source=source)
    (source / "b.txt").write_text("2")
    with pytest.raises(NnplugError, match="holds a demo with Dataset901_Tiny, whose files have changed since"):
        open_folder(tmp_path / "out", source=source)


def test_a_finished_step_is_done_once_while_its_files_are_there(tmp_path: Path) -> None:
    calls = []
    for whole, expected in ((True, 1), (True, 1), (False, 2)):
        folder = open_folder(tmp_path / "out")
        folder.step("plan", "Plan", "nnUNetv2_plan -d 901", lambda whole=whole: whole, lambda: calls.append(1))
        assert len(calls) == expected
        assert "$ nnUNetv2_plan -d 901" in folder.say
    assert json.loads((tmp_path / "out" / STATE).read_text())["finished"]["plan"]["seconds"] >= 0


def test_a_step_that_fails_is_done_again(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("6 feet under")

    folder = open_folder(tmp_path / "out")
    with pytest.raises(
        NnplugError, match=r"nnU-Net stopped at Dataset901_Tiny: 6 feet under \(what it printed: .*nnunet.log\)"
    ):
        folder.step("plan", "Plan", None, lambda: True, lambda: folder.quietly(fail))
    calls = []
    open_folder(tmp_path / "out").step("plan", "Plan", None, lambda: True, lambda: calls.append(1))
    assert calls == [1]


def test_what_nnunet_prints_goes_to_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path / "out")
    folder.quietly(lambda: print("please cite"))
    assert capsys.readouterr().out == ""
    assert (folder.path / "nnunet.log").read_text() == "please cite\n"


def test_variables_are_set_for_the_demo_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "mine")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    before = dict(os.environ)
    with open_folder(tmp_path / "out").environment():
        assert os.environ["nnUNet_results"] == str(tmp_path / "out" / "nnUNet_results")
        assert int(os.environ["nnUNet_n_proc_DA"]) > 0, "nnU-Net's planning can not do with 0"
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["Dataset901_Tiny", "brains", "Dataset9_X"])
def test_a_folder_that_is_no_raw_dataset_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NnplugError, match=f"There is no folder .*{name}. --dataset takes a raw data set of nnU-Net"):
        check_raw_dataset(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(NnplugError, match=r"its name must be DatasetXXX_NAME, and it must hold dataset\.json"):
        check_raw_dataset(tmp_path / name)
    (tmp_path / name / "dataset.json").write_text("{}")
    if name == "Dataset901_Tiny":
        assert check_raw_dataset(tmp_path / name) == tmp_path / name
    else:
        with pytest.raises(NnplugError, match="its name must be DatasetXXX_NAME"):
            check_raw_dataset(tmp_path / name)


def test_mistakes_are_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match="Unknown trainer 'nnUNetTrainr'"):
        run_demo(DemoSettings(output=tmp_path / "out", trainers=("nnUNetTrainr",)))
    with pytest.raises(NnplugError, match="There is no folder"):
        run_demo(DemoSettings(output=tmp_path / "out", dataset=tmp_path / "none"))
    assert not (tmp_path / "out").exists()


def make_demo(path: Path) -> Demo:
    settings = DemoSettings(output=path, num_epochs=3, num_iterations_per_epoch=7)
    demo = Demo(settings, open_folder(path), None)
    demo.write_recipe()
    return demo


@pytest.mark.parametrize("folder", ["out", "with+plus"])
@pytest.mark.parametrize("label", ["nnUNetTrainer", "nnUNetTrainerDA5"])
def test_trainers_get_the_length_of_the_demo(tmp_path: Path, folder: str, label: str) -> None:
    trainer = make_demo(tmp_path / folder).shorten(label)
    resolved = get_registry().resolve(trainer.text)
    assert (trainer.label, trainer.name) == (label, resolved.name)
    config = resolved.config
    lengths = (config.num_epochs, config.num_iterations_per_epoch, config.num_val_iterations_per_epoch)
    assert lengths == (3, 7, 4)


def test_a_length_that_is_given_stays(tmp_path: Path) -> None:
    demo = make_demo(tmp_path / "out")
    own = get_registry().resolve(demo.shorten("nnUNetTrainer+num_iterations_per_epoch=9").text).config
    assert (own.num_epochs, own.num_iterations_per_epoch) == (3, 9)
    # a trainer that sets a length by its name is shortened too
    recipe = tmp_path / "long.toml"
    recipe.write_text("num_epochs = 4000")
    long = get_registry().resolve(demo.shorten(str(recipe)).text).config
    assert (long.num_epochs, long.num_iterations_per_epoch) == (3, 7)


# --- held-out cases, networks ----------------------------------------------------------------------------------------


def test_test_cases_with_labels_are_held_out_first(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / tiny_dataset.name
    shutil.copytree(tiny_dataset.raw_folder, raw)
    content = json.loads((raw / "dataset.json").read_text())
    validation = choose_held_out(raw, tiny_dataset.preprocessed_folder, content, 0)
    assert [case.name for case in validation] == tiny_dataset.splits[0]["val"]
    assert validation[0].images[0].is_file()
    for sub in ("images", "labels"):
        (raw / f"{sub}Ts").mkdir()
    for case in ("tiny_00", "tiny_01"):
        shutil.copy(raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "imagesTs")
    assert choose_held_out(raw, tiny_dataset.preprocessed_folder, content, 0) == validation, "no labels, no Dice"
    shutil.copy(raw / "labelsTr" / "tiny_01.nii.gz", raw / "labelsTs")
    cases = choose_held_out(raw, tiny_dataset.preprocessed_folder, content, 0)
    assert [(case.name, case.truth) for case in cases] == [("tiny_01", raw / "labelsTs" / "tiny_01.nii.gz")]
    link_images(cases, tmp_path / "held_out", ".nii.gz")
    link_images(cases, tmp_path / "held_out", ".nii.gz")
    links = list((tmp_path / "held_out").iterdir())
    assert [link.name for link in links] == ["tiny_01_0000.nii.gz"]
    assert links[0].read_bytes() == (raw / "imagesTs" / "tiny_01_0000.nii.gz").read_bytes()


def test_the_smallest_network_that_takes_the_patch_is_chosen(tiny_dataset: DatasetForTests) -> None:
    plans = json.loads((tiny_dataset.preprocessed_folder / "nnUNetPlans.json").read_text())
    content = json.loads((tiny_dataset.preprocessed_folder / "dataset.json").read_text())
    chosen = smallest_network(plans, "3d_fullres", content)
    assert chosen is not None
    configured = configure_plans(plans, "3d_fullres", get_registry().resolve(chosen))
    assert count_parameters(configured, "3d_fullres", content) < count_parameters(plans, "3d_fullres", content)


# --- report ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def report_case(tiny_dataset: DatasetForTests) -> tuple[Path, HeldOutCase]:
    """A model folder without a model (the report reads its two JSON files), and a case."""
    model = tiny_dataset.model_folder("x")
    model.mkdir(parents=True)
    shutil.copy(tiny_dataset.preprocessed_folder / "nnUNetPlans.json", model / "plans.json")
    shutil.copy(tiny_dataset.preprocessed_folder / "dataset.json", model)
    raw = tiny_dataset.raw_folder
    image = raw / "imagesTr" / "tiny_00_0000.nii.gz"
    return model, HeldOutCase("tiny_00", (image,), raw / "labelsTr" / "tiny_00.nii.gz")


def write_prediction(case: HeldOutCase, folder: Path, *, without: int) -> Path:
    import SimpleITK as sitk

    truth = sitk.ReadImage(str(case.truth))
    folder.mkdir(parents=True)
    sitk.WriteImage(truth * sitk.Cast(truth != without, sitk.sitkUInt8), str(folder / f"{case.name}.nii.gz"))
    return folder


def test_dice_of_each_label(report_case: tuple[Path, HeldOutCase], tmp_path: Path) -> None:
    model, case = report_case
    predictions = write_prediction(case, tmp_path / "p", without=2)
    assert mean_dice(model, predictions, [case]) == {"ball": 1.0, "box": 0.0}


def test_dice_leaves_out_what_no_case_has() -> None:
    assert mean_of_known([0.5, math.nan, 1.0]) == 0.75
    assert mean_of_known([math.nan]) is None


def test_the_picture_is_a_small_png(report_case: tuple[Path, HeldOutCase], tmp_path: Path) -> None:
    from matplotlib.image import imread

    model, case = report_case
    predictions = {f"net{n}": write_prediction(case, tmp_path / f"p{n}", without=n) for n in (1, 2)}
    draw_picture(tmp_path / "demo.png", model, [case], predictions, "a note")
    picture = imread(tmp_path / "demo.png")
    assert picture.shape[1] > picture.shape[0] > 200
    assert (tmp_path / "demo.png").stat().st_size < 300_000
    quarter = picture.shape[1] // 4
    for column in range(4):  # a title above every picture
        assert picture[:24, column * quarter : (column + 1) * quarter, :3].min() < 0.4
    # both labels' colours, #e69f00 and #56b4e9 over grey, are somewhere: orange has least blue, sky blue least red
    red, green, blue = (picture[..., channel] for channel in range(3))
    assert ((red > 0.5) & (blue < 0.4) & (green > 0.3)).sum() > 100
    assert ((blue > 0.6) & (red < 0.7) & (blue - red > 0.2)).sum() > 100


def test_the_table_has_a_line_for_each_trainer() -> None:
    row = {"dice": {"grey": 0.81234, "white": None}, "validation_dice": 0.7, "num_parameters": 5_603_177}
    rows = [{**row, "label": label, "training_seconds": seconds} for label, seconds in (("a", 61.4), ("b", 9))]
    heading, rule, *body = table_text(rows).splitlines()
    assert heading.split() == ["-tr", "Dice", "grey", "Dice", "white", "validation", "Dice", "parameters", "training"]
    assert set(rule.strip()) == {"─"}
    assert body[0].split() == ["a", "0.812", "-", "0.700", "5.60", "M", "61", "s"]
    assert body[1].split()[0] == "b"
