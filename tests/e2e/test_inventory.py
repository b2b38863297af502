"""Real data in place, described by inventories: planned, trained, predicted, and read by stock nnU-Net's commands.

No variable of nnU-Net's is set for nnplug here but those that keep the runs small.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import DatasetForTests, run_nnplug, run_stock
from support.commands import clean_environment
from support.inventories import MadeInventory, make_case
from support.preprocessed import assert_same_cases, assert_same_results, files

SMALL = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "0"}
SHORT = "num_epochs=1+num_iterations_per_epoch=2+num_val_iterations_per_epoch=1"
CONFIGURATION = "3d_fullres"


def write_inventory(path: Path, cases: dict[str, tuple[list[Path], Path]], **description: object) -> Path:
    dataset = {name: {"images": list(map(str, images)), "label": str(label)} for name, (images, label) in cases.items()}
    path.write_text(json.dumps({**description, "numTraining": len(cases), "dataset": dataset}))
    return path


def options(inventory: Path, dataset_id: int, name: str) -> list[object]:
    cache = inventory.parent / "cache"
    return ["--inventory", inventory, "--dataset-id", dataset_id, "--dataset-name", name, "--cache-dir", cache]


@pytest.fixture(scope="module")
def hippocampus_cache(
    hippocampus_prepared: DatasetForTests, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    """The Decathlon's own folder, twelve cases, planned and preprocessed; returns the inventory."""
    source = data_folder / "Task04_Hippocampus"
    labels = sorted((source / "labelsTr").glob("*.nii.gz"))[:12]
    inventory = write_inventory(
        tmp_path_factory.mktemp("hippocampus") / "inventory.json",
        {path.name.removesuffix(".nii.gz"): ([source / "imagesTr" / path.name], path) for path in labels},
        channel_names={"0": "MRI"},
        labels={"background": 0, "anterior": 1, "posterior": 2},
        file_ending=".nii.gz",
    )
    run_nnplug(
        "plan_and_preprocess", *options(inventory, 4, "Hippocampus"), "-c", CONFIGURATION, "2d", "-npfp", 2, "-np", 2
    )
    return inventory


def test_in_place_and_the_same_as_stock(hippocampus_cache: Path, hippocampus_prepared: DatasetForTests) -> None:
    made = hippocampus_cache.parent / "cache" / "Dataset004_Hippocampus"
    assert_same_results(made, hippocampus_prepared.preprocessed_folder, CONFIGURATION, "2d")
    assert all(path.is_symlink() for path in (made / "gt_segmentations").iterdir())
    images = [path for path in hippocampus_cache.parent.rglob("*.nii.gz") if not path.is_symlink()]
    assert images == [], "nothing is copied"


def test_a_model_of_an_inventory(hippocampus_cache: Path, tmp_path: Path) -> None:
    """Trained and predicted by nnplug from inventories, then predicted by stock nnU-Net."""
    data = options(hippocampus_cache, 4, "Hippocampus")
    results = ["--results-dir", tmp_path / "results"]
    done = run_nnplug("train", CONFIGURATION, 0, *data, *results, "-tr", SHORT, "-device", "cpu", env=SMALL)
    command = re.search("^Predict with: (nnplug predict -i INPUT .*)$", done.stdout, re.MULTILINE)[1]
    assert shlex.split(command)[-2:] == ["--results-dir", str(tmp_path / "results")]
    content = json.loads(hippocampus_cache.read_text())
    images = {name: entry["images"] for name, entry in list(content["dataset"].items())[:2]}
    to_predict = tmp_path / "to_predict.json"
    to_predict.write_text(json.dumps({"dataset": {name: {"images": paths} for name, paths in images.items()}}))
    run_nnplug(
        *("predict", "--inventory", to_predict, "-o", tmp_path / "ours", "-c", CONFIGURATION, "--dataset-id", 4),
        *(*results, "-device", "cpu"),
        env=SMALL,
    )
    (model,) = (tmp_path / "results" / "Dataset004_Hippocampus").iterdir()
    (tmp_path / "images").mkdir()
    for name, (image,) in images.items():
        (tmp_path / "images" / f"{name}_0000.nii.gz").symlink_to(image)
    run_stock(
        *("nnUNetv2_predict_from_modelfolder", "-i", tmp_path / "images", "-o", tmp_path / "stock", "-m", model),
        *("-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1),
        env=SMALL,
    )
    for name in images:
        file = f"{name}.nii.gz"
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes()


def test_the_command_line_of_nnunet(tiny_prepared: DatasetForTests, tmp_path: Path) -> None:
    env = {"nnUNet_raw": str(tiny_prepared.raw), "nnUNet_preprocessed": str(tmp_path / "preprocessed")}
    options = ["-d", 901, "--verify_dataset_integrity", "-c", CONFIGURATION, "2d", "-npfp", 1, "-np", 1, "--no_pbar"]
    run_nnplug("plan_and_preprocess", *options, env=env)
    stock = tiny_prepared.preprocessed_folder
    assert_same_results(tmp_path / "preprocessed" / tiny_prepared.name, stock, CONFIGURATION, "2d")


def test_stock_preprocesses_from_the_cache(hippocampus_cache: Path, tmp_path: Path) -> None:
    """The cache is an ordinary folder of nnU-Net's."""
    cache = hippocampus_cache.parent / "cache"
    copy = tmp_path / "cache" / "Dataset004_Hippocampus"
    copy.mkdir(parents=True)
    for path in (cache / copy.name).glob("*.json"):
        (copy / path.name).write_bytes(path.read_bytes())
    variables = {"nnUNet_raw": str(copy.parent), "nnUNet_preprocessed": str(copy.parent)}
    run_stock("nnUNetv2_preprocess", "-d", 4, "-c", CONFIGURATION, "-np", 2, "--no_pbar", env=variables)
    folder = f"nnUNetPlans_{CONFIGURATION}"
    assert_same_cases(cache / copy.name / folder, copy / folder)


def test_changed_data_is_refused_until_the_cache_is_made_anew(hippocampus_cache: Path, tmp_path: Path) -> None:
    content = json.loads(hippocampus_cache.read_text())
    del content["dataset"]["hippocampus_001"], content["numTraining"]
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content))
    data = options(hippocampus_cache, 4, "Hippocampus")
    data[1] = changed
    cache = hippocampus_cache.parent / "cache" / "Dataset004_Hippocampus"
    for command in (["plan_and_preprocess"], ["train", CONFIGURATION, 0, "--results-dir", tmp_path / "results"]):
        refused = run_nnplug(*command, *data, check=False)
        assert refused.returncode == 2
        assert refused.stderr == (
            f"nnplug: error: The cache {cache} was made from other data: 1 case gone (hippocampus_001). "
            "Give --clean to make it anew, or another --cache-dir.\n"
        )


@pytest.mark.full
def test_four_channels(ms_lesions_prepared: DatasetForTests, data_folder: Path, tmp_path: Path) -> None:
    source = data_folder / "ms_lesions_4ch"
    description = json.loads((ms_lesions_prepared.raw_folder / "dataset.json").read_text())
    inventory = tmp_path / "inventory.json"
    run_nnplug(
        *("inventory", "make", source, "-o", inventory, "--labels", "background", "lesion"),
        *("--channels", *description["channel_names"].values()),
    )
    run_nnplug("plan_and_preprocess", *options(inventory, 7, "MSLesions"), "-c", CONFIGURATION, "-npfp", 1, "-np", 2)
    made = tmp_path / "cache" / "Dataset007_MSLesions"
    assert_same_results(made, ms_lesions_prepared.preprocessed_folder, CONFIGURATION)


@pytest.mark.full
def test_2d_images(data_folder: Path, tmp_path: Path) -> None:
    """PNG images of cells: planned, trained and predicted; stock nnU-Net takes the same shapes."""
    source = data_folder / "nuclei2d"
    stems = sorted(path.stem for path in (source / "images").glob("*.png"))[:6]
    inventory = write_inventory(
        tmp_path / "inventory.json",
        {stem: ([source / "images" / f"{stem}.png"], source / "labels" / f"{stem}.png") for stem in stems},
        channel_names={"0": "fluorescence"},
        labels={"background": 0, "nucleus": 1},
        file_ending=".png",
    )
    data = options(inventory, 8, "Nuclei")
    run_nnplug("plan_and_preprocess", *data, "-npfp", 1, "-np", 1, "--verify_dataset_integrity")
    cache = tmp_path / "cache" / "Dataset008_Nuclei"
    assert list(json.loads((cache / "nnUNetPlans.json").read_text())["configurations"]) == ["2d"]
    assert len(files(cache / "nnUNetPlans_2d")) == 3 * len(stems)
    results = ["--results-dir", tmp_path / "results"]
    trainer = "num_epochs=1+num_iterations_per_epoch=2+batch_size=1+patch_size=128x128"
    run_nnplug("train", "2d", 0, *data, *results, "-tr", trainer, "-device", "cpu", env=SMALL, timeout=900)
    assert list((tmp_path / "results" / "Dataset008_Nuclei").glob("*__2d/fold_0/validation/summary.json"))


# --- interrupted, shared, failing ------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> MadeInventory:
    return MadeInventory(tmp_path / "data", num_cases=6)


def test_shards_that_run_at_once_make_the_whole(made: MadeInventory) -> None:
    data = options(made.path, 5, "Made")
    for command in (["fingerprint", "-np", 0], ["plan"], ["preprocess", "-c", CONFIGURATION, "-np", 0]):
        if command[0] == "plan":
            run_nnplug(*command, *data)
            continue
        shards = [_start(*command, *data, "--shard", f"{index}/2") for index in (1, 2)]
        for shard in shards:
            _, errors = shard.communicate(timeout=300)
            assert shard.returncode == 0, errors
    cache = made.folder / "cache" / "Dataset005_Made"
    assert len(files(cache / f"nnUNetPlans_{CONFIGURATION}")) == 3 * 6
    assert not list(cache.glob("*.unfinished"))
    assert not (cache / ".nnplug_fingerprint").exists()


def test_a_killed_run_goes_on_where_it_was(made: MadeInventory) -> None:
    for index in range(6):
        image, label = make_case(index, (64, 96, 96))
        made.save(f"images/case_{index}_0000.nii.gz", image)
        made.save(f"labels/case_{index}.nii.gz", label)
    data = options(made.path, 5, "Made")
    run_nnplug("plan_and_preprocess", *data, "--no_pp", "-npfp", 1)
    cache = made.folder / "cache" / "Dataset005_Made"
    process = _start("preprocess", *data, "-c", CONFIGURATION, "-np", 1)
    done = cache / f"nnUNetPlans_{CONFIGURATION}.unfinished" / ".done"
    deadline = time.monotonic() + 120
    while not (done.is_dir() and any(done.iterdir())):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in done.iterdir()}
    assert 0 < len(kept) < 6
    assert not (cache / f"nnUNetPlans_{CONFIGURATION}").exists()
    run_nnplug("preprocess", *data, "-c", CONFIGURATION, "-np", 1)
    done = cache / f"nnUNetPlans_{CONFIGURATION}" / ".done"
    now = {path.name: path.stat().st_mtime_ns for path in done.iterdir()}
    assert len(now) == 6
    assert {name: now[name] for name in kept} == kept


def test_a_failing_case_is_named_and_the_exit_code_says_so(made: MadeInventory) -> None:
    made.save("labels/case_2.nii.gz", make_case(2)[1] * 3)
    data = options(made.path, 5, "Made")
    failed = run_nnplug("plan_and_preprocess", *data, "-npfp", 2, check=False)
    assert failed.returncode == 2
    assert failed.stderr == (
        "nnplug: error: Dataset005_Made: the fingerprint of 1 case failed, the others are kept: case case_2, "
        f"{made.folder / 'labels' / 'case_2.nii.gz'}: the label holds 3; labels has 0, 1. "
        "Add the label, or change these voxels.\n"
    )
    kept = made.folder / "cache" / "Dataset005_Made" / ".nnplug_fingerprint"
    assert sorted(path.name for path in kept.iterdir()) == [f"case_{index}" for index in (0, 1, 3, 4, 5)]


def _start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nnplug", *map(str, arguments)],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
