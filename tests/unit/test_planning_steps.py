"""Fingerprint, plans and preprocessing: stock nnU-Net's results, whatever fails or is interrupted on the way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnplug.errors import NnplugError
from nnplug.files.folder_use import FolderUse
from nnplug.planning.data import PlanningData, find_raw_data, open_inventory
from nnplug.planning.experiment import PlannerSettings, plan_experiment
from nnplug.planning.fingerprint import extract_fingerprint
from nnplug.planning.pipeline import plan, preprocess_configurations
from nnplug.planning.preprocessing import check_made_for, preprocess, preprocessing_key
from nnplug.planning.shards import Shard
from nnplug.processes.case_pool import Pool
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from support import DatasetForTests
from support.full_disk import largest_file
from support.inventories import MadeInventory, make_case
from support.preprocessed import assert_same_cases, assert_same_results, files, read_json

POOL = Pool(0)
CONFIGURATION = "3d_fullres"


@pytest.fixture
def tiny(tiny_prepared: DatasetForTests, tmp_path: Path) -> Iterator[PlanningData]:
    """The raw data set of five cases that stock nnU-Net has preprocessed elsewhere, to be preprocessed here."""
    dataset = replace(tiny_prepared, preprocessed=tmp_path / "preprocessed")
    with dataset.with_results(tmp_path / "results").activated(nnUNet_n_proc_DA="1"):
        yield find_raw_data(901)


@pytest.fixture
def planned(tiny: PlanningData, tiny_prepared: DatasetForTests) -> PlanningData:
    """The same with stock nnU-Net's fingerprint and plans."""
    tiny.folder.mkdir(parents=True)
    for name in ("dataset_fingerprint.json", "nnUNetPlans.json", "dataset.json"):
        shutil.copy(tiny_prepared.preprocessed_folder / name, tiny.folder)
    return tiny


@pytest.fixture
def made(tmp_path: Path, few_samples: None) -> MadeInventory:
    return MadeInventory(tmp_path / "data", num_cases=3)


def opened(made: MadeInventory) -> PlanningData:
    data, problems = open_inventory(made.write(), 7, "Made", made.folder.parent / "cache")
    assert problems == []
    return data


def worked_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that a pool works on from now on."""
    names: list[str] = []
    run = Pool.run

    def noting(self: Pool, work: Callable, shared: object, cases: dict, title: str, *more: object) -> dict:
        names.extend(cases if "Checking" not in title else [])
        return run(self, work, shared, cases, title, *more)

    monkeypatch.setattr(Pool, "run", noting)
    return names


def run(data: PlanningData, **options: object) -> list[str]:
    """Preprocess, and return the messages."""
    messages: list[str] = []
    preprocess(data, "nnUNetPlans", CONFIGURATION, POOL, on_message=messages.append, **options)
    return messages


# --- the same as stock nnU-Net ---------------------------------------------------------------------------------------


def test_everything_equals_stock(tiny: PlanningData, tiny_prepared: DatasetForTests) -> None:
    assert extract_fingerprint(tiny, POOL)
    assert plan_experiment(tiny, PlannerSettings()) == "nnUNetPlans"
    run(tiny)
    stock = tiny_prepared.preprocessed_folder
    assert_same_results(tiny.folder, stock, CONFIGURATION)
    assert (tiny.folder / "dataset.json").read_bytes() == (stock / "dataset.json").read_bytes()
    for path in (stock / "gt_segmentations").iterdir():
        assert (tiny.folder / "gt_segmentations" / path.name).read_bytes() == path.read_bytes()


def test_an_inventory_equals_stock_with_the_same_dataset_json(made: MadeInventory, tmp_path: Path) -> None:
    """Cases without any label change the type of nnU-Net's numbers; images of another shape its median."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    made.save("labels/case_1.nii.gz", np.zeros_like(make_case(1)[1]))
    image, label = make_case(0)
    image[:, :3] = image[:1] = 0  # cropped, labelled voxels too, and a hole that is not
    image[2:4, 4:6, 4:6] = 0
    label[:, 2] = 1
    made.save("images/case_0_0000.nii.gz", image)
    made.save("labels/case_0.nii.gz", label)
    image, label = make_case(2, (7, 12, 9))
    made.save("images/case_2_0000.nii.gz", image, spacing=(0.5, 0.7, 3.0))
    made.save("labels/case_2.nii.gz", label, spacing=(0.5, 0.7, 3.0))
    data = opened(made)
    assert extract_fingerprint(data, POOL)
    stock = replace(data, preprocessed=tmp_path / "stock")
    with stock.activated():
        extractor = DatasetFingerprintExtractor(data.name, 1)
        extractor.show_progress_bar = False
        with _in_this_process():
            extractor.run()
    name = "dataset_fingerprint.json"
    assert (data.folder / name).read_bytes() == (stock.folder / name).read_bytes()
    assert sorted(path.name for path in data.folder.iterdir()) == [
        ".nnplug_fingerprint.lock",
        "dataset.json",
        "dataset_fingerprint.json",
        "nnplug_data.json",
    ]


@contextlib.contextmanager
def _in_this_process() -> Iterator[None]:
    """Stock nnU-Net's spawned pool would import torch for longer than the work takes."""
    from support.datasets import _threads_for_processes

    with _threads_for_processes():
        yield


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_shards_are_merged_by_the_last_one(tiny: PlanningData, few_samples: None) -> None:
    file = tiny.folder / "dataset_fingerprint.json"
    extract_fingerprint(tiny, POOL)
    whole = file.read_bytes()
    file.unlink()
    messages: list[str] = []
    assert not extract_fingerprint(tiny, POOL, shard=Shard(2, 2), on_message=messages.append)
    assert messages == ["Fingerprint: shard 2/2 is done, 3 cases of other shards are not yet."]
    assert not file.exists()
    assert extract_fingerprint(tiny, POOL, shard=Shard(1, 2))
    assert file.read_bytes() == whole


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any),
    num_samples=st.integers(1, 40),
    num_channels=st.integers(1, 3),
)
def test_samples_are_those_that_nnunet_draws(sizes: list[int], num_samples: int, num_channels: int) -> None:
    """Fewer, as many or more voxels than samples, and none."""
    from nnplug.planning.samples import Samples, keep_for_samples
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    rng = np.random.default_rng(0)
    stock: list[list] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index, size in enumerate(sizes):
            images = rng.normal(size=(num_channels, 1, 1, size + 1)).astype(np.float32)
            label = np.array([0] + [1] * size).reshape(1, 1, 1, -1)
            stock.append(
                DatasetFingerprintExtractor.collect_foreground_intensities(label, images, num_samples=num_samples)[0]
            )
            paths.append(Path(folder, f"{index}.npy"))
            np.save(paths[-1], keep_for_samples(images[:, 0, 0, 1:], num_samples))
        samples = Samples(paths, num_samples)
        for channel in range(num_channels):
            expected = np.concatenate([case[channel] for case in stock])
            drawn = samples.draw(channel)
            assert drawn.dtype == expected.dtype
            assert np.array_equal(drawn, expected)


def test_a_fingerprint_that_is_there_is_kept(
    planned: PlanningData, few_samples: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = worked_on(monkeypatch)
    assert extract_fingerprint(planned, POOL)
    assert names == []
    assert extract_fingerprint(planned, POOL, clean=True)
    assert len(names) == 5


def test_failing_cases_are_all_named_and_the_others_are_kept(
    made: MadeInventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = make_case(0)[1]
    made.save("labels/case_0.nii.gz", label * 5)
    image = make_case(2)[0]
    image[0, 0, 0] = np.inf
    made.save("images/case_2_0000.nii.gz", image)
    made.save("labels/case_2.nii.gz", label * 7)
    data = opened(made)
    with pytest.raises(NnplugError) as caught:
        extract_fingerprint(data, POOL)
    assert str(caught.value).replace(f"{made.folder}/", "").splitlines() == [
        "Dataset007_Made: the fingerprint of 2 cases failed, the others are kept: 3 problems:",
        "  case case_0, labels/case_0.nii.gz: the label holds 5; labels has 0, 1. "
        "Add the label, or change these voxels.",
        "  case case_2, images/case_2_0000.nii.gz: NaN or infinity in 1 voxel. "
        "Replace them by a value that means nothing there, for example 0.",
        "  case case_2, labels/case_2.nii.gz: the label holds 7; labels has 0, 1. "
        "Add the label, or change these voxels.",
    ]
    assert not (data.folder / "dataset_fingerprint.json").exists()
    made.save("labels/case_0.nii.gz", label)
    made.save("labels/case_2.nii.gz", label)
    made.save("images/case_2_0000.nii.gz", make_case(2)[0])
    names = worked_on(monkeypatch)
    assert extract_fingerprint(data, POOL)
    assert names == ["case_0", "case_2"]


def test_headers_are_checked_before_anything_is_worked_on(made: MadeInventory, monkeypatch: pytest.MonkeyPatch) -> None:
    made.save("labels/case_1.nii.gz", make_case(1)[1][1:])
    made.save("labels/case_2.nii.gz", make_case(2)[1] * 7)
    names = worked_on(monkeypatch)
    with pytest.raises(NnplugError, match="10x8x5 voxels, the first channel has 10x8x6") as caught:
        extract_fingerprint(opened(made), POOL)
    assert names == []
    assert "labels/case_2.nii.gz: the label holds 7; labels has 0, 1." in str(caught.value), "all problems at once"


def test_a_raw_data_set_is_checked_when_that_is_asked_for(
    tiny: PlanningData, few_samples: None, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(tiny.raw / tiny.name, raw / tiny.name)
    dataset_json = json.loads((raw / tiny.name / "dataset.json").read_text())
    dataset_json["labels"] = {"background": 0, "ball": 1}
    (raw / tiny.name / "dataset.json").write_text(json.dumps(dataset_json))
    data = find_raw_data_in(raw, tiny)
    assert extract_fingerprint(data, POOL), "as stock nnU-Net, which does not look without being asked to"
    with pytest.raises(NnplugError, match=r"the label holds 2; labels has 0, 1\."):
        extract_fingerprint(data, POOL, verify=True)
    with pytest.raises(
        NnplugError, match=r"the fingerprint of 5 cases failed(.|\n)*the label holds 2; labels has 0, 1\."
    ):
        extract_fingerprint(data, POOL, verify=True, clean=True)


def find_raw_data_in(raw: Path, data: PlanningData) -> PlanningData:
    with replace(data, raw=raw).activated():
        return find_raw_data(data.name)


def test_nothing_is_labelled(made: MadeInventory) -> None:
    for index in range(3):
        made.save(f"labels/case_{index}.nii.gz", np.zeros_like(make_case(0)[1]))
    with pytest.raises(NnplugError) as caught:
        extract_fingerprint(opened(made), POOL)
    assert str(caught.value) == (
        "No case has a labelled voxel, so there are no intensities to plan with. See the labels."
    )


def test_an_unknown_extractor(tiny: PlanningData) -> None:
    with pytest.raises(NnplugError) as caught:
        extract_fingerprint(tiny, POOL, extractor="DatasetFingerprintExtracter")
    assert str(caught.value) == (
        "nnU-Net has no DatasetFingerprintExtractor 'DatasetFingerprintExtracter'. Did you mean "
        "'DatasetFingerprintExtractor'? It has DatasetFingerprintExtractor."
    )


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_case_without_one_of_the_channels_is_named(tiny_prepared: DatasetForTests, tmp_path: Path) -> None:
    copied = tmp_path / "raw" / tiny_prepared.name
    shutil.copytree(tiny_prepared.raw_folder, copied)
    described = read_json(copied / "dataset.json")
    described["channel_names"] = {"0": "T1", "1": "T2"}
    (copied / "dataset.json").write_text(json.dumps(described))
    images = copied / "imagesTr"
    for path in sorted(images.iterdir())[1:]:
        shutil.copy(path, images / path.name.replace("_0000", "_0001"))
    dataset = replace(tiny_prepared, raw=copied.parent, preprocessed=tmp_path / "preprocessed")
    with dataset.with_results(tmp_path / "results").activated(), pytest.raises(NnplugError) as caught:
        extract_fingerprint(find_raw_data(901), POOL)
    assert "case tiny_00: it has 1 channel, and channel_names has T1, T2. Mend the case" in str(caught.value)


def test_plans_need_a_fingerprint(tiny: PlanningData) -> None:
    with pytest.raises(NnplugError) as caught:
        plan_experiment(tiny, PlannerSettings())
    assert str(caught.value) == (
        "Dataset901_Tiny has no fingerprint yet. Run nnplug fingerprint with the same data set first."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            PlannerSettings(planner="nnUNetPlannerResEnc"),
            "nnU-Net has no ExperimentPlanner 'nnUNetPlannerResEnc'. Did you",
        ),
        (PlannerSettings(target_spacing=(1, 1)), "-overwrite_target_spacing 1 1: expected three numbers above 0."),
        (PlannerSettings(gpu_memory_target_gb=0), "-gpu_memory_target 0: expected gigabytes, above 0."),
    ],
)
def test_wrong_planner_settings(planned: PlanningData, settings: PlannerSettings, message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        plan_experiment(planned, settings)
    assert str(caught.value).startswith(message)


def test_settings_reach_the_planner_and_own_configurations_are_kept(planned: PlanningData) -> None:
    settings = PlannerSettings("nnUNetPlannerResEncM", 16, target_spacing=(2, 1.5, 1), plans_name="Mine")
    assert plan_experiment(planned, settings) == "Mine"
    path = planned.folder / "Mine.json"
    plans = read_json(path)
    assert plans["experiment_planner_used"] == "nnUNetPlannerResEncM"
    assert plans["configurations"][CONFIGURATION]["spacing"] == [2.0, 1.5, 1.0]
    plans["configurations"]["my_own"] = {"inherits_from": CONFIGURATION, "batch_size": 7}
    path.write_text(json.dumps(plans))
    plan_experiment(planned, settings)
    assert read_json(path)["configurations"]["my_own"] == {"inherits_from": CONFIGURATION, "batch_size": 7}


# --- preprocessing ---------------------------------------------------------------------------------------------------


def final(data: PlanningData) -> Path:
    return data.folder / f"nnUNetPlans_{CONFIGURATION}"


def unfinished(data: PlanningData) -> Path:
    return data.folder / f"nnUNetPlans_{CONFIGURATION}.unfinished"


def test_shards_make_the_whole(planned: PlanningData, tiny_prepared: DatasetForTests) -> None:
    assert run(planned, shard=Shard(1, 2)) == [
        f"{CONFIGURATION}: shard 1/2 is done, 2 cases of other shards are not yet."
    ]
    assert not final(planned).exists(), "neither nnplug nor stock nnU-Net may train on a part"
    assert run(planned, shard=Shard(2, 2)) == []
    assert not unfinished(planned).exists()
    assert_same_cases(final(planned), tiny_prepared.preprocessed_folder / final(planned).name)


def test_the_same_command_elsewhere_is_faster(
    planned: PlanningData, tiny_prepared: DatasetForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the folder with the drafts of this one away: that is no failure of the cases."""
    original = DefaultPreprocessor.run_case_save
    elsewhere = iter([True])

    def work(self: DefaultPreprocessor, *args: object) -> None:
        original(self, *args)
        if next(elsewhere, False):
            run(planned)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", work)
    run(planned)
    assert_same_cases(final(planned), tiny_prepared.preprocessed_folder / final(planned).name)
    assert not unfinished(planned).exists()


def test_plans_that_were_moved_here_need_no_fingerprint(planned: PlanningData) -> None:
    for name in ("dataset.json", "dataset_fingerprint.json"):
        (planned.folder / name).unlink()
    run(planned)
    original = planned.raw / planned.name / "dataset.json"
    assert (planned.folder / "dataset.json").read_bytes() == original.read_bytes()


def test_what_is_there_is_not_made_again(planned: PlanningData, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planned)
    names = worked_on(monkeypatch)
    run(planned)
    assert names == []
    run(planned, clean=True)
    assert len(names) == 5


def fail_at(monkeypatch: pytest.MonkeyPatch, *cases: str, error: Exception) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    run_case_save = DefaultPreprocessor.run_case_save

    def failing(self: DefaultPreprocessor, output: str, *more: object) -> None:
        run_case_save(self, output, *more)
        if Path(output).name in cases:
            raise error

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", failing)


def test_failing_cases_are_named_and_the_others_are_kept(
    planned: PlanningData, tiny_prepared: DatasetForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "tiny_01", "tiny_03", error=ValueError("no good"))
        with pytest.raises(NnplugError) as caught:
            run(planned)
    assert str(caught.value).splitlines() == [
        "Dataset901_Tiny: the preprocessing of 2 cases failed, the others are kept: 2 problems:",
        "  case tiny_01: ValueError: no good. Mend the case, or leave it out.",
        "  case tiny_03: ValueError: no good. Mend the case, or leave it out.",
    ]
    assert not final(planned).exists()
    assert not [name for name in files(unfinished(planned)) if "tiny_01" in name or "tiny_03" in name]
    names = worked_on(monkeypatch)
    run(planned)
    assert names == ["tiny_01", "tiny_03"]
    assert_same_cases(final(planned), tiny_prepared.preprocessed_folder / final(planned).name)


def test_what_a_killed_run_left_is_not_taken_for_whole(
    planned: PlanningData, tiny_prepared: DatasetForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(planned, shard=Shard(1, 2))
    folder = unfinished(planned)
    # killed between two renames, inside a write, and while it noted what it did
    shutil.copy(folder / "tiny_00.b2nd", folder / "tiny_01.b2nd")
    (folder / ".draft").mkdir()
    (folder / ".draft" / "tiny_03.b2nd").write_bytes(b"half")
    (folder / ".done" / "tiny_02").write_text('{"key"')
    (folder / "gone_case.b2nd").write_bytes(b"of a case that is no longer there")
    names = worked_on(monkeypatch)
    run(planned)
    assert names == ["tiny_01", "tiny_02", "tiny_03"]
    assert_same_cases(final(planned), tiny_prepared.preprocessed_folder / final(planned).name)
    assert sorted(path.name for path in final(planned).iterdir() if path.is_dir()) == [".done"]


def test_other_plans_make_the_cases_anew(planned: PlanningData, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planned)
    names = worked_on(monkeypatch)
    path = planned.folder / "nnUNetPlans.json"
    plans = read_json(path)
    configuration = plans["configurations"][CONFIGURATION]
    configuration["batch_size"] = 17
    path.write_text(json.dumps(plans))
    run(planned)
    assert names == [], "the batch size has no influence"
    configuration["spacing"] = [2.0, 2.0, 2.0]
    path.write_text(json.dumps(plans))
    run(planned)
    assert len(names) == 5
    assert not unfinished(planned).exists()


def write_other_plans(data: PlanningData) -> None:
    """Plans with another spacing whose cases would lie where those of nnUNetPlans are, as those of ResEnc planners."""
    plans = read_json(data.folder / "nnUNetPlans.json")
    plans["configurations"][CONFIGURATION]["spacing"] = [2.0, 2.0, 2.0]
    (data.folder / "others.json").write_text(json.dumps({**plans, "plans_name": "others"}))


def preprocess_others(data: PlanningData, **options: bool) -> None:
    preprocess_configurations(data, "others", [CONFIGURATION], num_processes=[0], **options)


def test_cases_of_other_plans_are_replaced_only_when_asked_for(planned: PlanningData) -> None:
    run(planned)
    write_other_plans(planned)
    before = files(final(planned))
    with pytest.raises(NnplugError) as caught:
        preprocess_others(planned)
    assert str(caught.value) == (
        f"'{CONFIGURATION}' would take the cases of '{CONFIGURATION}' of nnUNetPlans.json in {final(planned)}, which "
        "are preprocessed in another way. Derive one with cases of its own (nnplug plans derive), or replace the cases "
        "with --clean."
    )
    assert files(final(planned)) == before
    preprocess_others(planned, clean=True)
    check_made_for(planned.folder, read_json(planned.folder / "others.json"), CONFIGURATION)
    with pytest.raises(NnplugError, match=rf"other way than '{CONFIGURATION}' of nnUNetPlans says. Run: nnplug prep"):
        check_made_for(planned.folder, read_json(planned.folder / "nnUNetPlans.json"), CONFIGURATION)


def test_other_cases_wait_until_no_training_reads_those_there(
    planned: PlanningData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnplug.planning.preprocessing._PATIENCE_S", 0.2)
    run(planned)
    path = planned.folder / "nnUNetPlans.json"
    plans = read_json(path)
    plans["configurations"][CONFIGURATION]["spacing"] = [2.0, 2.0, 2.0]
    path.write_text(json.dumps(plans))
    before = files(final(planned))
    with FolderUse(planned.folder) as training:
        training.read()
        with pytest.raises(NnplugError, match=r"^A training reads .*901_Tiny, and this would"):
            run(planned)
    assert files(final(planned)) == before
    run(planned)


def test_plans_that_models_began_with(
    planned: PlanningData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "results" / planned.name / f"mine__nnUNetPlans__{CONFIGURATION}"
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_latest.pth").write_bytes(b"")
    plan(planned)
    assert "warning" not in capsys.readouterr().out
    plan(planned, PlannerSettings(gpu_memory_target_gb=1, target_spacing=(2, 2, 2)))
    warning = capsys.readouterr().out.splitlines()[-1]
    assert warning.startswith(
        f"nnplug: warning: {model.name} began with other plans of this name. They predict as before"
    )


def test_a_changed_image_makes_its_case_anew(made: MadeInventory, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(made)
    extract_fingerprint(data, POOL)
    plan_experiment(data, PlannerSettings())
    run(data)
    made.save("images/case_1_0000.nii.gz", make_case(9)[0])
    names = worked_on(monkeypatch)
    run(data)
    assert names == ["case_1"]


def test_what_stock_nnunet_has_made_is_replaced_as_a_whole(
    planned: PlanningData, tiny_prepared: DatasetForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = tiny_prepared.preprocessed_folder / final(planned).name
    shutil.copytree(stock, final(planned))
    (final(planned) / "gone_case.pkl").write_bytes(b"")
    names = worked_on(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("nnplug.planning.preprocessing._CaseFolder.put", lambda *_: 1 / 0)
        with pytest.raises(NnplugError, match="the preprocessing of 5 cases failed"):
            run(planned)
    (kept,) = planned.folder.glob("replaced_*")
    assert (kept / "gone_case.pkl").exists(), "until the new ones are whole"
    assert not final(planned).exists()
    names.clear()
    run(planned)
    assert not kept.exists()
    assert len(names) == 5
    assert_same_cases(final(planned), stock)


def test_the_key_names_what_preprocessing_reads(planned: PlanningData) -> None:
    plans = read_json(planned.folder / "nnUNetPlans.json")
    dataset_json = read_json(planned.folder / "dataset.json")
    key = preprocessing_key(plans, CONFIGURATION, dataset_json)
    plans["configurations"]["mine"] = {"inherits_from": CONFIGURATION, "batch_size": 8, "previous_stage": "3d_lowres"}
    assert preprocessing_key(plans, "mine", dataset_json) == key
    plans["configurations"]["mine"]["normalization_schemes"] = ["CTNormalization"]
    assert preprocessing_key(plans, "mine", dataset_json) != key
    assert preprocessing_key(plans, CONFIGURATION, {**dataset_json, "labels": {"background": 0, "all": 1}}) != key


@pytest.mark.parametrize("num_bytes", [1000, 30_000])
def test_a_disk_that_fills_ends_it_with_one_line(
    planned: PlanningData, tiny_prepared: DatasetForTests, num_bytes: int
) -> None:
    with largest_file(num_bytes), pytest.raises(NnplugError) as caught:
        run(planned)
    message = str(caught.value)
    assert message.startswith("Could not write ")
    assert "File too large" in message
    assert message.endswith("What was there before is unchanged. Free some space and run it again.")
    assert not final(planned).exists()
    assert files(unfinished(planned)) == []
    run(planned)
    assert_same_cases(final(planned), tiny_prepared.preprocessed_folder / final(planned).name)


def test_a_disk_that_fills_during_the_fingerprint(made: MadeInventory) -> None:
    for index in range(3):
        image, label = make_case(index, (24, 24, 24))
        made.save(f"images/case_{index}_0000.nii.gz", image)
        made.save(f"labels/case_{index}.nii.gz", np.ones_like(label))
    data = opened(made)
    with largest_file(20_000), pytest.raises(NnplugError, match=r"File too large .* Free some space and run it again"):
        extract_fingerprint(data, POOL)
    assert not (data.folder / "dataset_fingerprint.json").exists()
    assert list((data.folder / ".nnplug_fingerprint").iterdir()) == []
    assert extract_fingerprint(data, POOL)


def test_a_disk_that_fills_while_planning(planned: PlanningData) -> None:
    before = {path.name: path.read_bytes() for path in planned.folder.iterdir()}
    with largest_file(3000), pytest.raises(NnplugError, match=r"File too large .* Free some space and run it again"):
        plan_experiment(planned, PlannerSettings(plans_name="Other"))
    assert {path.name: path.read_bytes() for path in planned.folder.iterdir()} == before


# --- ground truth ----------------------------------------------------------------------------------------------------


def test_labels_of_an_inventory_are_linked_unless_their_format_is_another(made: MadeInventory) -> None:
    import SimpleITK as sitk

    label = make_case(1)[1]
    made.entry("case_1")["label"] = str(
        made.save("truth/one.mha", label, spacing=(1.0, 1.0, 1.0)).relative_to(made.folder)
    )
    data = opened(made)
    extract_fingerprint(data, POOL)
    plan_experiment(data, PlannerSettings())
    run(data)
    folder = data.folder / "gt_segmentations"
    assert files(folder) == ["case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"]
    assert (folder / "case_0.nii.gz").readlink() == made.folder / "labels" / "case_0.nii.gz"
    assert not (folder / "case_1.nii.gz").is_symlink()
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "case_1.nii.gz"))), label)
    made.save("truth/one.mha", label * 0)
    made.entry("case_0")["label"] = str(made.save("truth/zero.nii.gz", label).relative_to(made.folder))
    run(opened(made))
    assert (folder / "case_0.nii.gz").readlink() == made.folder / "truth" / "zero.nii.gz"
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "case_1.nii.gz"))).any()


def test_a_label_that_is_gone_or_has_another_size_is_copied_again(planned: PlanningData) -> None:
    run(planned)
    gone, other = (planned.folder / "gt_segmentations" / f"tiny_0{index}.nii.gz" for index in (0, 1))
    raw = other.read_bytes()
    time = other.stat().st_mtime_ns
    gone.unlink()
    other.write_bytes(b"older, with the same time")
    os.utime(other, ns=(time, time))
    run(planned)
    assert gone.is_file()
    assert other.read_bytes() == raw
