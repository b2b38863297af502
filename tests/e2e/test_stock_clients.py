"""Stock nnU-Net's other commands take nnplug's folders for their own: model selection, ensembles, export, cascades."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from nnplug import evaluate
from nnplug.evaluation.model_selection import find_best
from nnplug.prediction.ensembling import ensemble
from support import run_nnplug, run_stock
from support.datasets import DatasetForTests, _threads_for_processes
from support.predictions import read_segmentation

NAMES = [
    f"{part}+num_epochs=1+num_iterations_per_epoch=1+num_val_iterations_per_epoch=1"
    for part in ("dice_loss", "monai_dynunet")
]


@pytest.fixture(scope="module")
def trained(tiny_prepared: DatasetForTests, tmp_path_factory: pytest.TempPathFactory) -> DatasetForTests:
    """Two folds of two trainers, with the probabilities that model selection needs."""
    dataset = tiny_prepared.with_results(tmp_path_factory.mktemp("results"))
    for name in NAMES:
        run_nnplug("train", 901, "2d", 0, 1, "-tr", name, "--npz", "-device", "cpu", env=dataset.env)
    return dataset


def one_image(dataset: DatasetForTests, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(min((dataset.raw_folder / "imagesTr").iterdir()), folder)
    return folder


def test_find_best_configuration(trained: DatasetForTests) -> None:
    run_stock("nnUNetv2_find_best_configuration", 901, "-c", "2d", "-tr", *NAMES, "-f", 0, 1, "-np", 1, env=trained.env)

    best = json.loads((trained.results_folder / "inference_information.json").read_text())
    assert len(best["all_results"]) == 3  # two models and their ensemble
    reordered = ["+".join(reversed(name.split("+"))) for name in NAMES]
    with trained.activated(), _threads_for_processes():
        ours = find_best("901", trainers=reordered, configurations=["2d"], folds=[0, 1], num_processes=1)
    for key in ("all_results", "best_model_or_ensemble"):
        assert ours[key] == best[key]


def test_ensemble(trained: DatasetForTests, tmp_path: Path) -> None:
    images = one_image(trained, tmp_path / "images")
    for number, name in enumerate(NAMES):
        model = ["-m", trained.model_folder(name, "2d"), "-f", 0, "-device", "cpu", "--save_probabilities"]
        run_nnplug("predict_from_modelfolder", "-i", images, "-o", tmp_path / str(number), *model)

    run_stock("nnUNetv2_ensemble", "-i", tmp_path / "0", tmp_path / "1", "-o", tmp_path / "ensemble", "-np", 1)
    [stock] = (tmp_path / "ensemble").glob("*.nii.gz")
    [ours] = ensemble([tmp_path / "0", tmp_path / "1"], tmp_path / "ours", num_processes=0)
    np.testing.assert_array_equal(read_segmentation(ours), read_segmentation(stock))


def test_evaluate_folder(trained: DatasetForTests, tmp_path: Path) -> None:
    model = trained.model_folder(NAMES[0], "2d")
    truth = tmp_path / "truth"
    truth.mkdir()
    for prediction in (model / "fold_0" / "validation").glob("*.nii.gz"):
        shutil.copy(trained.raw_folder / "labelsTr" / prediction.name, truth)
    options = ["-djfile", model / "dataset.json", "-pfile", model / "plans.json", "-o", tmp_path / "summary.json"]

    run_stock("nnUNetv2_evaluate_folder", truth, model / "fold_0" / "validation", *options, "-np", 1, env=trained.env)

    ours = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    stock = json.loads((tmp_path / "summary.json").read_text())
    assert stock["foreground_mean"] == ours["foreground_mean"]
    folders = [truth, model / "fold_0" / "validation"]
    run_nnplug("evaluate", *folders, *options[:4], "-o", tmp_path / "ours.json", "-np", 0, env=trained.env)
    with trained.activated():
        of_fold = evaluate(model / "fold_0")
    for measured in (json.loads((tmp_path / "ours.json").read_text()), of_fold):
        assert {name: measured["mean"]["1"][name] for name in stock["mean"]["1"]} == stock["mean"]["1"]


def test_export_and_install(trained: DatasetForTests, tmp_path: Path) -> None:
    """Each takes the other's file, and what stock has installed from ours predicts."""
    name = NAMES[1]
    chosen = ["-d", 901, "-c", "2d", "-tr", name, "-f", 0, 1]
    run_stock("nnUNetv2_export_model_to_zip", *chosen, "-o", tmp_path / "stock.zip", env=trained.env)
    run_nnplug("export", *chosen, "-o", tmp_path / "ours.zip", env=trained.env)
    ours, stocks = (set(zipfile.ZipFile(tmp_path / f"{who}.zip").namelist()) for who in ("ours", "stock"))
    own = {f"{trained.name}/{name}__nnUNetPlans__2d/{file}" for file in ("nnplug.json", "nnplug_requirements.txt")}
    # find_best of another test may have left what it found
    assert ours - own == {file for file in stocks if "/inference_information." not in file}
    assert own <= ours

    run_nnplug("install", tmp_path / "stock.zip", "--results-dir", tmp_path / "from_stock")
    assert stocks == {
        path.relative_to(tmp_path / "from_stock").as_posix()
        for path in (tmp_path / "from_stock").rglob("*")
        if path.is_file()
    }
    elsewhere = trained.with_results(tmp_path / "elsewhere")
    run_stock("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "ours.zip", env=elsewhere.env)
    images = one_image(trained, tmp_path / "images")
    options = [*chosen, "-device", "cpu"]
    run_stock("nnUNetv2_predict", "-i", images, "-o", tmp_path / "predicted", *options, env=elsewhere.env)
    assert list((tmp_path / "predicted").glob("*.nii.gz"))


def test_cascade(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    dataset = with_cascade(tiny_dataset.private_copy(tmp_path / "private"))
    first, second = NAMES[0], NAMES[0].replace("dice_loss", "no_mirroring")
    missing = run_nnplug(
        "train", 901, "3d_cascade_fullres", 0, "-tr", second, "-device", "cpu", env=dataset.env, check=False
    )
    assert missing.returncode == 2
    assert "is the second stage of a cascade and needs the predictions of '3d_lowres'" in missing.stderr
    assert "-prev_stage_trainer NAME" in missing.stderr

    run_nnplug("train", 901, "3d_lowres", "all", "-tr", first, "-device", "cpu", env=dataset.env)
    predicted = dataset.model_folder(first, "3d_lowres") / "predicted_next_stage" / "3d_cascade_fullres"
    assert len(list(predicted.iterdir())) == 5
    stage = ["-prev_stage_trainer", first, "-device", "cpu", "--json"]
    done = run_nnplug("train", 901, "3d_cascade_fullres", 0, "-tr", second, *stage, env=dataset.env)
    assert json.loads(done.stdout)["status"] == "completed"


def with_cascade(dataset: DatasetForTests) -> DatasetForTests:
    """Two more configurations, and two folds so that both stages are quick."""
    folder = dataset.preprocessed_folder
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    configurations = plans["configurations"]
    configurations["3d_lowres"] = {
        **configurations["3d_fullres"],
        "data_identifier": "nnUNetPlans_3d_lowres",
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    shutil.copytree(folder / "nnUNetPlans_3d_fullres", folder / "nnUNetPlans_3d_lowres")
    cases = sorted(case for part in dataset.splits[0].values() for case in part)
    halves = (cases[:2], cases[2:])
    splits = [{"train": a, "val": b} for a, b in (halves, halves[::-1])]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return dataset
