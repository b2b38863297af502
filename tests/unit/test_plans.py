"""``nnplug plans show`` and ``derive`` on the plans of real images: what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from nnplug.cli import main
from nnplug.errors import NnplugError
from nnplug.planning import plans_writing
from nnplug.planning.derivation import derive as derivation_of
from nnplug.planning.plans_file import open_plans
from nnplug.planning.preprocessing import preprocessing_key
from support.datasets import DatasetForTests, environment
from support.preprocessed import read_json


@pytest.fixture
def planned(hippocampus_prepared: DatasetForTests, tmp_path: Path) -> Iterator[Path]:
    """The preprocessed folder of the hippocampus without its cases; nnU-Net's variables are set."""
    folder = tmp_path / "preprocessed" / hippocampus_prepared.name
    folder.mkdir(parents=True)
    for path in hippocampus_prepared.preprocessed_folder.glob("*.json"):
        shutil.copy(path, folder)
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    (folder / "nnUNetPlans_3d_fullres" / "case.b2nd").touch()
    variables = {"nnUNet_preprocessed": str(folder.parent), "nnUNet_results": str(tmp_path / "results")}
    with environment(**{**hippocampus_prepared.env, **variables}):
        yield folder


def derive(*arguments: object, base: str = "3d_fullres") -> int:
    return main(["plans", "derive", "-d", "4", "-c", base, *map(str, arguments)])


def settings(folder: Path, name: str, plans: str = "nnUNetPlans") -> dict[str, Any]:
    return read_json(folder / f"{plans}.json")["configurations"][name]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object, base: str = "3d_fullres") -> str:
    capsys.readouterr()
    assert derive(*arguments, base=base) == 2
    return capsys.readouterr().err.removeprefix("nnplug: error: ").rstrip("\n")


# --- show ------------------------------------------------------------------------------------------------------------


def test_show(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plans", "show", "4", "-c", "3d_fullres"]) == 0
    lines = [line.rstrip().split("  ") for line in capsys.readouterr().out.splitlines()[2:]]
    shown = {cells[0]: cells[-1].strip() for cells in lines}
    assert shown["patch size"] == "40x56x40"
    assert shown["strides"] == "1x1x1 2x2x2 2x2x2 2x2x2"
    assert shown["normalization schemes"] == "ZScoreNormalization"
    assert shown["preprocessed"] == "yes"

    assert main(["plans", "show", "4", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["dataset"] == "Dataset004_Hippocampus"
    assert list(content["configurations"]) == ["2d", "3d_fullres"]
    assert content["configurations"]["2d"]["preprocessed"] == "no"
    assert content["configurations"]["3d_fullres"]["features"] == [32, 64, 128, 256]


def test_memory_is_what_nnunets_planner_reckons(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = settings(planned, "3d_fullres")["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 3
    )
    assert isinstance(network, PlainConvUNet)
    # 560 million values of a sample are 8 GB for a batch of two
    expected = network.compute_conv_feature_map_size((40, 56, 40)) / 560e6 * 8
    main(["plans", "show", "4", "--json"])
    found = json.loads(capsys.readouterr().out)["configurations"]["3d_fullres"]["estimated_memory_gb"]
    assert found == pytest.approx(expected, abs=0.005)


def test_show_of_a_planner_that_is_not_there(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = read_json(planned / "nnUNetPlans.json")
    (planned / "nnUNetPlans.json").write_text(json.dumps({**plans, "experiment_planner_used": "GonePlanner"}))
    assert main(["plans", "show", "4", "-c", "2d"]) == 0
    assert "estimated memory gb    unknown" in capsys.readouterr().out


def test_show_of_a_cache(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = planned.parent.rename(planned.parent.with_name("cache"))
    assert main(["plans", "show", "4"]) == 2
    assert main(["plans", "show", "4", "--cache-dir", str(cache)]) == 0
    assert capsys.readouterr().out.startswith(
        f"{cache / planned.name / 'nnUNetPlans.json'}, planned by ExperimentPlanner"
    )


# --- derive ----------------------------------------------------------------------------------------------------------


def test_a_batch_size_changes_nothing_else(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive("--name", "3d_bs9", "--set", "batch_size=9") == 0
    assert settings(planned, "3d_bs9") == {"inherits_from": "3d_fullres", "batch_size": 9}
    shown = capsys.readouterr().out.splitlines()
    assert "  batch_size: 2 -> 9" in shown
    assert shown[-2:] == [
        "The cases need not be preprocessed again: it takes those in nnUNetPlans_3d_fullres. Run:",
        "  nnplug train Dataset004_Hippocampus 3d_bs9 0",
    ]


def test_the_planners_choice_is_found_again(planned: Path) -> None:
    original = settings(planned, "3d_fullres")
    assert derive("--new-plans", "Again", "-gpu_memory_target", 8) == 0
    assert settings(planned, "3d_fullres", "Again") == original
    assert derive("--new-plans", "Again2", "--set", "patch_size=40,56,40") == 0
    assert settings(planned, "3d_fullres", "Again2") == original


def test_a_patch_gets_a_network(planned: Path) -> None:
    assert derive("--name", "3d_large", "--set", "patch_size=64,192,64", "--set", "batch_size=3") == 0
    made = settings(planned, "3d_large")
    assert made["patch_size"] == [64, 192, 64]
    kwargs = made["architecture"]["arch_kwargs"]
    assert kwargs["strides"] == [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 2, 1]]
    assert kwargs["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert kwargs["n_stages"] == 6
    assert (len(kwargs["n_conv_per_stage"]), len(kwargs["n_conv_per_stage_decoder"])) == (6, 5)
    assert "data_identifier" not in made
    # the cases are the same: neither configuration makes those of the other stale
    plans, dataset_json = read_json(planned / "nnUNetPlans.json"), read_json(planned / "dataset.json")
    assert preprocessing_key(plans, "3d_large", dataset_json) == preprocessing_key(plans, "3d_fullres", dataset_json)


def test_another_spacing_needs_other_cases(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive("--name", "3d_coarse", "--set", "spacing=2,1,1", "--json") == 0
    made = settings(planned, "3d_coarse")
    assert made["data_identifier"] == "nnUNetPlans_3d_coarse"
    assert made["median_image_size_in_voxels"][0] == pytest.approx(19, abs=1)
    assert made["patch_size"][0] < made["patch_size"][2]
    # slices twice as thick are pooled once less
    assert made["architecture"]["arch_kwargs"]["strides"][1] == [1, 2, 2]
    report = json.loads(capsys.readouterr().out)
    assert report["preprocessing_changed_by"] == ["spacing"]
    assert report["next"] == [
        "nnplug preprocess -d Dataset004_Hippocampus -c 3d_coarse",
        "nnplug train Dataset004_Hippocampus 3d_coarse 0",
    ]


def test_a_memory_target_is_kept(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive("--name", "a", "-gpu_memory_target", 0.1, "--json") == 0
    small = json.loads(capsys.readouterr().out)
    assert 0.05 < small["estimated_memory_gb"] <= 0.1
    assert settings(planned, "a")["patch_size"] == small["changes"]["patch_size"] < [40, 56, 40]
    assert derive("--name", "b", "-gpu_memory_target", 0.1, "--set", "batch_size=4", "--json") == 0
    more = json.loads(capsys.readouterr().out)
    assert more["estimated_memory_gb"] <= 0.1
    assert more["changes"]["batch_size"] == 4
    assert more["changes"]["patch_size"] < small["changes"]["patch_size"]


def test_a_patch_that_the_planner_would_not_choose(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive("--name", "a", "--set", "patch_size=160,160,160", "--json") == 0
    captured = capsys.readouterr()
    needed = json.loads(captured.out)["estimated_memory_gb"]
    assert captured.err == (
        f"nnplug: warning: 'a' is estimated to need {needed:.1f} GB, more than the 8 GB that nnU-Net's planner "
        "goes by. -gpu_memory_target GB refuses what is too large.\n"
    )
    target = ("-gpu_memory_target", 2 * needed)
    assert derive("--name", "b", "--set", "patch_size=160,160,160", "--set", "batch_size=2", *target) == 0
    assert capsys.readouterr().err == ""


def test_the_network_can_be_kept(planned: Path) -> None:
    assert derive("--name", "a", "--set", "patch_size=64,64,64", "--keep-network") == 0
    assert settings(planned, "a") == {"inherits_from": "3d_fullres", "patch_size": [64, 64, 64]}


def test_new_plans_leave_the_other_configurations_as_they_are(planned: Path) -> None:
    assert derive("--name", "3d_bs9", "--set", "batch_size=9") == 0
    before = read_json(planned / "nnUNetPlans.json")
    assert derive("--new-plans", "Own", "--set", "patch_size=32,32,32") == 0
    assert read_json(planned / "nnUNetPlans.json") == before
    assert read_json(planned / "Own.json")["plans_name"] == "Own"
    assert settings(planned, "3d_bs9", "Own") == {**before["configurations"]["3d_fullres"], "batch_size": 9}
    assert settings(planned, "2d", "Own") == before["configurations"]["2d"]


def test_another_planner(planned: Path, hippocampus_prepared: DatasetForTests) -> None:
    assert main(["plan", "-d", "4", "-pl", "nnUNetPlannerResEncM"]) == 0
    options = ("-p", "nnUNetResEncUNetMPlans")
    original = settings(planned, "3d_fullres", options[1])
    assert derive("--new-plans", "Again", *options, "--set", "patch_size=40,56,40") == 0
    assert settings(planned, "3d_fullres", "Again") == original
    assert original["architecture"]["arch_kwargs"]["n_blocks_per_stage"] == [1, 3, 4, 6]
    assert derive("--new-plans", "Smaller", *options, "-gpu_memory_target", 0.1) == 0
    assert settings(planned, "3d_fullres", "Smaller")["patch_size"] < original["patch_size"]


def test_a_second_stage_is_predicted_for(planned: Path) -> None:
    plans = read_json(planned / "nnUNetPlans.json")
    plans["configurations"] |= {
        "3d_lowres": {**plans["configurations"]["3d_fullres"], "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert derive("--name", "cascade_bs3", "--set", "batch_size=3", base="3d_cascade_fullres") == 0
    assert settings(planned, "3d_lowres")["next_stage"] == ["3d_cascade_fullres", "cascade_bs3"]
    # in place, the second stage goes with the configuration that it inherits from
    assert derive("--new-plans", "Own", "--set", "batch_size=5") == 0
    assert settings(planned, "3d_cascade_fullres", "Own") == plans["configurations"]["3d_cascade_fullres"]


def test_2d(planned: Path) -> None:
    assert derive("--name", "2d_small", "--set", "patch_size=64,64", "-gpu_memory_target", 1, base="2d") == 0
    made = settings(planned, "2d_small")
    assert made["architecture"]["arch_kwargs"]["strides"] == [[1, 1], *[[2, 2]] * 4]
    # nnU-Net's limit: a batch has at most 5% of the data set's voxels
    median = 36 * 50 * 36
    assert made["batch_size"] == pytest.approx(median * 12 * 0.05 / 64 / 64, rel=0.1)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("batch_size", "--set batch_size: expected KEY=VALUE, as in batch_size=2."),
        ("batch_size=0", "--set batch_size=0: expected an integer above 0."),
        ("batch_size=2,3", "--set batch_size=2,3: expected an integer above 0."),
        ("patch_size=8,8", "--set patch_size=8,8: expected 3 integers above 0, as in 40,56,40."),
        ("patch_size=8,8,a", "--set patch_size=8,8,a: expected 3 integers above 0, as in 40,56,40."),
        ("spacing=1,0,1", "--set spacing=1,0,1: expected 3 numbers of millimetres above 0, as in 1,1,1."),
        ("spacing=1,nan,1", "--set spacing=1,nan,1: expected 3 numbers of millimetres above 0, as in 1,1,1."),
        ("spacing=1,1", "--set spacing=1,1: expected 3 numbers of millimetres above 0, as in 1,1,1."),
        ("batch_dice=2", "--set batch_dice=2: expected true or false."),
        ("use_mask_for_norm=true,true", "--set use_mask_for_norm=true,true: expected one for each of 1 channels"),
        ("normalization_schemes=CT", "--set normalization_schemes=CT: nnU-Net has no ImageNormalization 'CT'."),
        ("preprocessor_name=Mine", "--set preprocessor_name=Mine: nnU-Net has no DefaultPreprocessor 'Mine'."),
        ("resampling_fn_seg=mine", "--set resampling_fn_seg=mine: nnU-Net has no resampling function 'mine'."),
        (
            "resampling_fn_data=resample_torch_fornnunet",
            "resampling_fn_data resample_torch_fornnunet has no argument 'order'. Give the right ones with "
            "--set resampling_fn_data_kwargs=JSON.",
        ),
        ("resampling_fn_seg_kwargs=1", '--set resampling_fn_seg_kwargs=1: expected a JSON object, as in {"order": 1}.'),
        ("data_identifier=a__b", "--set data_identifier=a__b: The name 'a__b' can not be used: expected letters"),
    ],
)
def test_wrong_values(planned: Path, capsys: pytest.CaptureFixture[str], assignment: str, message: str) -> None:
    assert error_of(capsys, "--name", "a", "--set", assignment).startswith(message)


def test_unknown_and_doubled_keys(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = error_of(capsys, "--name", "a", "--set", "batchsize=2")
    assert found.startswith(
        "--set batchsize=2: unknown key 'batchsize'. Did you mean 'batch_size'? Known are batch_size, "
    )
    assert "normalization_schemes" in found
    assert error_of(capsys, "--name", "a", "--set", "batch_size=2", "--set", "batch_size=3") == (
        "--set batch_size is given twice. Give it once."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "patch_size=100,128,128"],
            "patch_size=100,128,128 can not be halved as often as the network pools: sides have to be multiples of "
            "16,32,32. Sizes that fit: 96,128,128 or 112,128,128.",
        ),
        (
            ["--set", "patch_size=44,56,40", "--keep-network"],
            "patch_size=44,56,40 can not be halved as often as the network pools: sides have to be multiples of 8,8,8. "
            "Sizes that fit: 48,56,40.",
        ),
        (
            ["--set", "patch_size=16,16,16", "--keep-network"],
            "patch_size=16,16,16 leaves a feature map of 2,2,2 at the network's coarsest stage, where nnU-Net keeps 4 "
            "voxels an axis. Use at least 32,32,32.",
        ),
        (
            ["--set", "patch_size=2,56,40"],
            "patch_size=2,56,40 leaves a feature map of 2,7,5 at the network's coarsest stage, where nnU-Net keeps 4 "
            "voxels an axis. Use at least 4,32,32.",
        ),
        (
            ["--set", "patch_size=128,128,128", "--set", "batch_size=4", "-gpu_memory_target", "8"],
            "A batch of 4 patches of 128,128,128 is estimated to need 12.9 GB, more than -gpu_memory_target 8. Set a "
            "smaller patch_size or batch_size, or leave out patch_size: then one that fits is chosen.",
        ),
        ([], "Nothing to change. Give --set KEY=VALUE, -gpu_memory_target GB or --for-trainer TRAINER."),
        (
            ["-gpu_memory_target", "0.001"],
            "There is no patch for so little memory that a network could pool. Give more.",
        ),
        (["-gpu_memory_target", "0"], "-gpu_memory_target 0: expected gigabytes, above 0."),
    ],
)
def test_what_can_not_work(
    planned: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = (planned / "nnUNetPlans.json").read_bytes()
    assert error_of(capsys, "--name", "a", *arguments) == message
    assert (planned / "nnUNetPlans.json").read_bytes() == before


def test_another_network_than_the_planners(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = read_json(planned / "nnUNetPlans.json")
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "a.b.Other"
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    for change in (("--set", "patch_size=32,32,32"), ("-gpu_memory_target", 8)):
        assert error_of(capsys, "--name", "a", *change) == (
            "The network Other is not the one of the planner ExperimentPlanner (PlainConvUNet), so its stages can not "
            "be planned anew. Keep it with --keep-network."
        )


def test_names(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = ("--set", "batch_size=9")
    assert error_of(capsys, *change) == ("What is the new configuration called? Give --name NAME, or --new-plans NAME.")
    assert error_of(capsys, "--name", "a__b", *change).startswith("The name 'a__b' can not be used: expected letters")
    assert error_of(capsys, "--name", "a/b", *change).startswith("The name 'a/b' can not be used")
    assert error_of(capsys, "--name", "3d_fullres", *change) == (
        "The configuration '3d_fullres' can not be derived from itself. Choose another --name, or leave its name and "
        "give --new-plans NAME."
    )
    assert error_of(capsys, "--name", "3d_lowres", *change).startswith(
        "The configuration '3d_lowres' is written by nnU-Net's planner."
    )
    assert error_of(capsys, "--name", "a", *change, base="b") == (
        "The plans 'nnUNetPlans' of Dataset004_Hippocampus have no configuration 'b'; they have 2d, 3d_fullres."
    )
    assert error_of(capsys, "--new-plans", "nnUNetPlans", *change) == (
        "--new-plans nnUNetPlans is the name of the plans themselves. Choose another one."
    )


def test_what_is_there_is_kept(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive("--name", "a", "--set", "batch_size=9") == 0
    taken = f"{planned / 'nnUNetPlans.json'} has a configuration 'a' already. Choose another name, or give --overwrite"
    assert error_of(capsys, "--name", "a", "--set", "batch_size=3").startswith(taken)
    assert derive("--name", "a", "--set", "batch_size=3", "--overwrite") == 0
    assert settings(planned, "a")["batch_size"] == 3
    assert derive("--new-plans", "Own", "--set", "batch_size=9") == 0
    assert error_of(capsys, "--new-plans", "Own", "--set", "batch_size=3") == (
        f"There are plans 'Own' already ({planned / 'Own.json'}). Choose another name, or give --overwrite to replace "
        "it."
    )
    assert derive("--name", "b", "--set", "batch_size=5", base="a") == 0
    assert error_of(capsys, "--name", "a", "--set", "batch_size=3", "--overwrite") == (
        "'a' can not be replaced: b inherits from it. Choose another --name."
    )
    assert error_of(capsys, "--name", "a", "--set", "batch_size=3", "--overwrite", base="b") == (
        "'b' inherits from 'a', which can not inherit from it. Choose another --name."
    )


def test_nothing_that_others_write_meanwhile_is_lost(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_plans(4)  # what a slow command has read when the others below write
    derivation = derivation_of(file, "3d_fullres", {"batch_size": 3}, data_identifier="d", keep_network=True)
    is_locked = []
    check = plans_writing.check_data_folder

    def within(*arguments: Any) -> None:
        with pytest.raises(Timeout):
            FileLock(planned / ".nnplug_plans.lock").acquire(timeout=0)
        is_locked.append(True)
        check(*arguments)

    monkeypatch.setattr(plans_writing, "check_data_folder", within)
    assert derive("--name", "a", "--set", "batch_size=9") == 0
    plans_writing.write_derivation(file, "3d_fullres", "b", derivation, None)
    assert list(read_json(planned / "nnUNetPlans.json")["configurations"]) == ["2d", "3d_fullres", "a", "b"]
    assert is_locked == [True, True]

    with pytest.raises(NnplugError, match="has a configuration 'a' already"):
        plans_writing.write_derivation(file, "3d_fullres", "a", derivation, None)
    plans = read_json(planned / "nnUNetPlans.json")
    plans["configurations"]["3d_fullres"]["batch_size"] = 5
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(NnplugError) as caught:
        plans_writing.write_derivation(file, "3d_fullres", "c", derivation, None)
    assert str(caught.value) == (
        f"'3d_fullres' in {planned / 'nnUNetPlans.json'} was changed while 'c' was derived from it. Run it again."
    )


def test_plans_that_models_were_trained_with(planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "results" / planned.name
    model = models / "nnUNetTrainer__nnUNetPlans__a"
    for folder in (model, models / "nnUNetTrainer__nnUNetPlans__3d_fullres"):
        (folder / "fold_0").mkdir(parents=True)
        (folder / "fold_0" / "checkpoint_best.pth").touch()
    assert derive("--name", "b", "--set", "batch_size=4") == 0
    assert error_of(capsys, "--name", "a", "--set", "batch_size=3", "--overwrite") == (
        f"'a' in the plans 'nnUNetPlans' can not be changed: {model.name} in {model.parent} was trained with it, and "
        "could not be continued. Give --new-plans NAME with a name that is not taken."
    )
    assert derive("--new-plans", "Own", "--set", "batch_size=3") == 0

    elsewhere = (tmp_path / "results").rename(tmp_path / "models")
    assert f"{model.name} in {elsewhere / planned.name} was trained with it" in error_of(
        capsys, "--name", "a", "--set", "batch_size=3", "--results-dir", elsewhere
    )
    assert derive("--new-plans", "Other", "--set", "batch_size=3", "--results-dir", elsewhere) == 0
    assert capsys.readouterr().out.endswith(f" 3d_fullres 0 --results-dir {elsewhere} -p Other\n")


def test_cases_are_not_shared_with_others(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = ("--set", "spacing=2,2,2")
    shared = error_of(capsys, "--name", "a", *change, "--set", "data_identifier=nnUNetPlans_3d_fullres")
    assert shared == (
        f"'a' would take the cases of '3d_fullres' of nnUNetPlans.json in {planned / 'nnUNetPlans_3d_fullres'}, which "
        "are preprocessed in another way. Choose another name, or --set data_identifier=NAME."
    )
    (planned / "nnUNetPlans_a").mkdir()
    assert error_of(capsys, "--name", "a", *change) == (
        f"{planned / 'nnUNetPlans_a'} is there already, and no configuration says how it was made. Remove it. Choose "
        "another name, or --set data_identifier=NAME."
    )


def test_configurations_that_can_not_be_resolved(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = read_json(planned / "nnUNetPlans.json")
    plans["configurations"]["loop"] = {"inherits_from": "loop"}
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert "nnUNetPlans.json: configuration 'loop' can not be resolved" in error_of(
        capsys, "--name", "a", "--set", "batch_size=3", base="loop"
    )


def test_a_derivation_that_changes_nothing_says_so(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch_size = read_json(planned / "nnUNetPlans.json")["configurations"]["3d_fullres"]["batch_size"]
    assert derive("--name", "a", "--set", f"batch_size={batch_size}") == 0
    assert "\n  no difference: it is 3d_fullres under another name\n" in capsys.readouterr().out
