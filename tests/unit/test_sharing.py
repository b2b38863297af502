"""Models as zip files: what is in them, and which files are refused before anything is written."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnplug import NnplugError
from nnplug.cli import main
from nnplug.models.model_folder import Manifest
from nnplug.models.trained_models import list_models
from nnplug.sharing.exporting import export_models
from nnplug.sharing.installing import install_models
from nnplug.sharing.members import MAX_FILES, find_problem
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from support.models import make_dataset_json, make_plans
from support.predictions import write_validated_model

DATASET = "Dataset902_Made"
TRAINER = "dice_loss+num_epochs=1"
DESCRIPTIONS = {"plans.json": make_plans, "dataset.json": make_dataset_json}
MODEL = f"{DATASET}/{TRAINER}__nnUNetPlans__3d_fullres"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """One model of two folds, trained with the plugin acme-nets 1.2."""
    model = write_validated_model(tmp_path / "results" / MODEL, (("a",), ("b",)), 1.0)
    manifest = Manifest(
        TRAINER, {"name": TRAINER}, {"acme-nets": "1.2", "nnplug": "0.1.0"}, make_plans(), {}, "3d_fullres"
    )
    (model / "nnplug.json").write_text(json.dumps(manifest.as_json()))
    (model / "fold_0" / "nnplug_fold.json").write_text("{}")
    (model / "fold_0" / "checkpoint_best.pth").write_bytes(b"best")
    merged = model / "crossval_results_folds_0_1"
    merged.mkdir()
    steps = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": 1}])
    (merged / "postprocessing.pkl").write_bytes(pickle.dumps(steps))
    ensemble = tmp_path / "results" / DATASET / "ensembles"
    for other in (model.name, "other__nnUNetPlans__2d"):
        folder = ensemble / f"ensemble___{model.name}___{other}___0_1"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
    return tmp_path / "results"


def make_zip(path: Path, content: dict[str, bytes | str] | None = None) -> Path:
    """A small model; ``content`` adds files to it or replaces some (None takes one away)."""
    files: dict[str, Any] = {
        f"{MODEL}/plans.json": json.dumps(make_plans()),
        f"{MODEL}/dataset.json": json.dumps(make_dataset_json()),
        f"{MODEL}/fold_0/checkpoint_final.pth": b"weights",
        **(content or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


# --- export ----------------------------------------------------------------------------------------------------------


def test_what_is_exported(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.zip"
    command = ["export", "-d", "902", "-o", str(file), "--results-dir", str(results)]
    assert main([*command, "-tr", "num_epochs=1+dice_loss"]) == 0
    printed = capsys.readouterr().out
    assert f"{MODEL}: folds 0 1\n" in printed
    assert f"To install it: nnplug install {file}" in printed
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        text = archive.read(f"{MODEL}/nnplug_requirements.txt").decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["acme-nets==1.2", "nnplug==0.1.0"]
    in_model = ["plans.json", "dataset.json", "nnplug.json", "nnplug_requirements.txt"]
    in_model += [
        f"fold_{fold}/{name}" for fold in (0, 1) for name in ("checkpoint_final.pth", "validation/summary.json")
    ]
    ensemble = f"{DATASET}/ensembles/ensemble___{Path(MODEL).name}___{Path(MODEL).name}___0_1/summary.json"
    merged = f"{MODEL}/crossval_results_folds_0_1/postprocessing.pkl"
    assert names == {*(f"{MODEL}/{name}" for name in in_model), merged, ensemble}

    assert main([*command, "-f", "0", "-chk", "checkpoint_final.pth", "checkpoint_best.pth", "--exp_cv_preds"]) == 0
    names = {name.removeprefix(f"{MODEL}/") for name in zipfile.ZipFile(file).namelist()}
    assert {"fold_0/checkpoint_best.pth", "fold_0/validation/a.nii.gz"} < names
    assert not {name for name in names if "fold_1" in name or name.endswith((".npz", "a.pkl"))}


def test_what_can_not_be_exported(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    both = ["checkpoint_final.pth", "checkpoint_best.pth"]
    with pytest.raises(NnplugError, match=r"has no fold_1/checkpoint_best\.pth\. Leave them out with --not_strict\."):
        export_models("902", file, checkpoints=both, results=results)
    with pytest.raises(NnplugError, match=r"has no checkpoint_final\.pth for fold_7\."):
        export_models("902", file, folds=["0", "7"], results=results)
    with pytest.raises(NnplugError, match=r"has no model of configuration '2d' with plans 'nnUNetPlans'"):
        export_models("902", file, configurations=["2d", "3d_fullres"], results=results)
    with pytest.raises(NnplugError, match=r"has no model with plans 'others'\."):
        export_models("902", file, plans="others", results=results)
    assert not file.exists()
    [exported] = export_models(
        *("902", file),
        configurations=["2d", "3d_fullres"],
        folds=["0", "7"],
        checkpoints=both,
        strict=False,
        results=results,
    )
    assert (exported.folds, exported.left_out) == ((0,), ("fold_7",))
    [exported] = export_models("902", file, checkpoints=both, strict=False, results=results)
    assert (exported.folds, exported.left_out) == ((0, 1), ("fold_1/checkpoint_best.pth",))
    shutil.copytree(results / MODEL, results / DATASET / "other__nnUNetPlans__2d")
    with pytest.raises(NnplugError, match=r"has models of several trainers\. Say which with -tr: dice_loss.*, other\."):
        export_models("902", file, results=results)


def test_the_first_stage_of_a_cascade(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / MODEL / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    path.write_text(json.dumps(plans))
    assert main(["export", "-d", "902", "-o", str(tmp_path / "m.zip"), "--results-dir", str(results)]) == 0
    assert "needs the predictions of 3d_lowres, which is not in the file: add it with -c" in capsys.readouterr().out


# --- install ---------------------------------------------------------------------------------------------------------


def test_an_exported_model_is_installed(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, target = tmp_path / "model.zip", tmp_path / "elsewhere"
    export_models("902", file, results=results)
    assert main(["install", str(file), "--results-dir", str(target)]) == 0
    printed = capsys.readouterr().out
    command = f"nnplug predict -i INPUT -o OUTPUT -d {DATASET} -c 3d_fullres -tr {TRAINER} -p nnUNetPlans -f 0 1"
    assert f"  {command} --results-dir {target}\n" in printed
    assert "Not installed here, and needed to predict with it: acme-nets==1.2. If you trust its maker:" in printed
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            assert (target / name).read_bytes() == archive.read(name)
    assert [path.name for path in target.iterdir()] == [DATASET]

    (target / MODEL / "plans.json").write_text("mine")
    assert main(["install", str(file), "--results-dir", str(target)]) == 2
    assert f"There is already {target / MODEL}, " in (error := capsys.readouterr().err)
    assert error.endswith("Replace it with --overwrite, or move it away.\n")
    assert (target / MODEL / "plans.json").read_text() == "mine"
    (target / MODEL / "old").touch()
    assert main(["install", str(file), "--results-dir", str(target), "--overwrite"]) == 0
    assert json.loads((target / MODEL / "plans.json").read_text()) == make_plans()
    assert not (target / MODEL / "old").exists()
    assert [path.name for path in target.iterdir()] == [DATASET]
    [kept] = (target / DATASET).glob("replaced_*")
    assert f"  The model that was there is now {kept / Path(MODEL).name}.\n" in capsys.readouterr().out
    assert (kept / Path(MODEL).name / "plans.json").read_text() == "mine"
    assert (kept / Path(MODEL).name / "old").exists()
    assert [names[2] for names in list_models(target / DATASET)] == ["3d_fullres"]
    assert main(["install", str(file), "--results-dir", str(target), "--overwrite"]) == 0
    assert len(list((target / DATASET).glob("replaced_*"))) == 2


def test_a_file_of_stock_nnunet_tells_the_package_of_its_network(tmp_path: Path) -> None:
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "acme_nets.unet.Net"
    information = {f"{DATASET}/inference_information.json": "{}"}
    file = make_zip(tmp_path / "m.zip", {f"{MODEL}/plans.json": json.dumps(plans), **information})
    target = tmp_path / "results"
    (target / DATASET).mkdir(parents=True)
    (target / DATASET / "inference_information.json").write_text("mine")
    [model] = install_models(file, results=target)
    assert (model.path, model.folds, model.missing) == (target / MODEL, ("0",), ("acme_nets",))
    assert (target / DATASET / "inference_information.json").read_text() == "mine"
    [again] = install_models(make_zip(file), results=target, overwrite=True)
    assert again.missing == ()


def test_a_network_of_a_script_names_no_package(tmp_path: Path) -> None:
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "__main__.Net"
    file = make_zip(tmp_path / "m.zip", {f"{MODEL}/plans.json": json.dumps(plans)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__spec__", None)  # as in one that is run by its path
        [model] = install_models(file, results=tmp_path / "results")
    assert model.missing == ()


def link(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo(f"{MODEL}/fold_1")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive.writestr(member, "/etc")


def pipe(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo(f"{MODEL}/pipe")
    member.create_system, member.external_attr = 3, (stat.S_IFIFO | 0o777) << 16
    archive.writestr(member, "")


def named(name: str) -> Callable[[zipfile.ZipFile], None]:
    return lambda archive: archive.writestr(name, "text")


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr(f"{MODEL}/zeros", bytes(101_000_000), zipfile.ZIP_DEFLATED)


OUTSIDE = "would be written outside its folder"


@pytest.mark.parametrize(
    ("add", "reason"),
    [
        (named("../evil"), f"'../evil' {OUTSIDE}"),
        (named(f"{DATASET}/../../evil"), f"'{DATASET}/../../evil' {OUTSIDE}"),
        (named("/tmp/evil"), f"'/tmp/evil' {OUTSIDE}"),
        (named("C:/evil"), f"'C:/evil' {OUTSIDE}"),
        (named(f"{DATASET}\\..\\..\\evil"), OUTSIDE),
        (named(f"{MODEL}/\x1b[2J"), "holds control characters"),
        (named("evil.txt"), "'evil.txt' is in no DatasetXXX_NAME folder, as nnU-Net's exported models are"),
        (named("Dataset903_File"), "'Dataset903_File' is a file, and should be a folder"),
        (named(f"{MODEL}/plans.json/evil"), f"it holds '{MODEL}/plans.json' twice"),
        (named(f"{MODEL}/PLANS.json"), f"it holds '{MODEL}/PLANS.json' twice"),
        (link, f"'{MODEL}/fold_1' is a link"),
        (pipe, f"'{MODEL}/pipe' is no ordinary file"),
        (bomb, "MB to 101 MB; the limit is 20 times its size, which models stay far below"),
    ],
)
def test_harmful_files_are_refused(tmp_path: Path, add: Callable[[zipfile.ZipFile], None], reason: str) -> None:
    file, target = make_zip(tmp_path / "m.zip"), tmp_path / "results"
    with zipfile.ZipFile(file, "a") as archive:
        add(archive)
    before = everything_in(tmp_path)
    with pytest.raises(NnplugError) as error:
        install_models(file, results=target)
    assert str(error.value).startswith(f"{file} is not installed: ")
    assert reason in str(error.value)
    assert str(error.value).endswith(". Nothing was written.")
    assert everything_in(tmp_path) == before


def test_encrypted_members_and_too_many_files() -> None:
    secret = zipfile.ZipInfo(f"{MODEL}/plans.json")
    secret.flag_bits |= 1
    assert find_problem([secret], 1) == f"'{MODEL}/plans.json' is encrypted"
    many = [zipfile.ZipInfo(f"{MODEL}/{number}") for number in range(MAX_FILES + 1)]
    assert find_problem(many, 1) == f"it holds {MAX_FILES + 1} files, more than {MAX_FILES}"


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {f"{MODEL}/plans.json": "{"},
            r"m\.zip is not installed: The plans file Dataset902_Made/.*plans\.json is no valid",
        ),
        (
            {f"{MODEL}/plans.json": json.dumps({**make_plans(), "configurations": [1]})},
            r"is not installed: Dataset902_Made/.*plans\.json is not complete: its configurations are no JSON object\.",
        ),
        ({f"{MODEL}/crossval/postprocessing.pkl": pickle.dumps(([[1]], [{}]))}, r"is no post-processing file of nnU"),
        ({f"{MODEL}/dataset.json": None}, r"m\.zip is not installed: .* is no model folder: it has no dataset\.json\."),
        (
            {f"{MODEL}/fold_0/checkpoint_final.pth": None},
            r"m\.zip is not installed: .* has no fold with a checkpoint\.",
        ),
        ({f"{MODEL}/crossval/postprocessing.pkl": pickle.dumps(Harmful())}, r"would run code .* names posix\.mkdir"),
        ({f"{MODEL}/fold_0/validation/a.pkl": pickle.dumps(Harmful())}, r"would run code .* names posix\.mkdir"),
    ],
)
def test_content_that_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NnplugError, match=reason):
        install_models(make_zip(tmp_path / "m.zip", content), results=tmp_path / "results")
    assert not (tmp_path / "results").exists()
    assert not Path("was_run").exists()


def test_files_that_are_no_whole_zip_file(tmp_path: Path) -> None:
    target = tmp_path / "results"
    with pytest.raises(NnplugError, match=r"^There is no file .*nothing\.zip\.$"):
        install_models(tmp_path / "nothing.zip", results=target)
    with pytest.raises(NnplugError, match=r"is a folder, and a zip file is installed\. Pack it with: nnplug export$"):
        install_models(tmp_path, results=target)
    file = tmp_path / "m.zip"
    file.write_bytes(b"nothing")
    with pytest.raises(
        NnplugError, match=r"m\.zip is no whole zip file \(File is not a zip file\)\. Download it again\."
    ):
        install_models(file, results=target)
    content = make_zip(file).read_bytes()
    file.write_bytes(content.replace(b"weights", b"wEights"))
    with pytest.raises(NnplugError, match=r"m\.zip is no whole zip file \(Bad CRC-32 .*\)\. Download it again\."):
        install_models(file, results=target)
    assert not target.exists()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{DATASET}/readme.txt", "text")
    with pytest.raises(
        NnplugError, match=r"m\.zip holds no model: expected a folder DatasetXXX_NAME/TRAINER__PLANS__CONF"
    ):
        install_models(file, results=target)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target = make_zip(tmp_path / "m.zip"), tmp_path / "results"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 10, 10))
        with pytest.raises(NnplugError, match=r"m\.zip needs 0\.00 GB, and .*results has 0\.00 GB free\."):
            install_models(file, results=target)
    assert not target.exists()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(
        NnplugError,
        match=r"Could not write .*the models of m\.zip: No space left on device .* unchanged\. Free some space",
    ):
        install_models(file, results=target)
    assert everything_in(target) == []


def content_of(folder: Path) -> dict[str, str | None]:
    return {str(path): path.read_text() if path.is_file() else None for path in everything_in(folder)}


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_models_that_can_not_all_be_moved_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    other = MODEL.replace("3d_fullres", "3d_lowres")
    new = {f"{other}/{name}": json.dumps(make()) for name, make in DESCRIPTIONS.items()}
    new |= {f"{other}/fold_0/checkpoint_final.pth": b"weights", f"{DATASET}/ensembles/e/summary.json": b"{}"}
    file, target = make_zip(tmp_path / "m.zip"), tmp_path / "results"
    install_models(file, results=target)
    (target / MODEL / "mine").touch()
    before = content_of(target)
    make_zip(file, new)
    rename, number = os.rename, itertools.count(1)

    def refuse_one(source: Path, destination: Path) -> None:
        if ".nnplug-install-" in str(source) and next(number) == failing:
            raise OSError(13, "Permission denied")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", refuse_one)
    with pytest.raises(NnplugError, match=r"Could not write .*: Permission denied .* before is unchanged\."):
        install_models(file, results=target, overwrite=True)
    assert content_of(target) == before


def test_a_file_in_the_place_of_a_model(tmp_path: Path) -> None:
    file, target = make_zip(tmp_path / "m.zip"), tmp_path / "results"
    (target / DATASET).mkdir(parents=True)
    (target / MODEL).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(
            NnplugError, match=r"3d_fullres is a file, and the models need a folder there\. Move it away\."
        ):
            install_models(file, results=target, overwrite=overwrite)
    assert (target / MODEL).read_text() == "mine"


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_another_data_set_with_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    file = make_zip(tmp_path / "m.zip")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / variable / "Dataset0902_Mine").mkdir()
    with pytest.raises(NnplugError) as error:
        install_models(file)
    assert str(error.value) == (
        f"{file} is not installed: it would add {DATASET}, and Dataset0902_Mine in {tmp_path / variable} has this id, "
        "by which nnU-Net could find neither of them then. Install it into a folder of its own with --results-dir, "
        "and predict with nnplug predict_from_modelfolder."
    )
    assert not (tmp_path / "nnUNet_results" / DATASET).exists()
    assert len(install_models(file, results=tmp_path / "its_own")) == 1
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("Dataset902_Twice/a", "")
    with pytest.raises(NnplugError, match="and Dataset902_Twice in the file too has this id"):
        install_models(file, results=tmp_path / "another")


def test_the_results_folder_is_that_of_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert main(["install", str(make_zip(tmp_path / "m.zip"))]) == 0
    assert (tmp_path / "results" / MODEL / "plans.json").is_file()
