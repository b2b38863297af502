"""Planners and preprocessors of plugins: from the hook to plans, preprocessed cases, a model and its predictions."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnplug.cli import main
from nnplug.composition.portability import stock_prediction_obstacle
from nnplug.discovery.registry import Registry
from nnplug.errors import NnplugError
from nnplug.models.trained_models import read_model_folder
from nnplug.planning.classes import OWNERS, find_class, find_preprocessor, with_owners
from nnplug.planning.data import PlanningData, find_raw_data
from nnplug.planning.experiment import PlannerSettings, plan_experiment
from nnplug.planning.preprocessed_case import open_case
from nnplug.planning.preprocessing import preprocess
from nnplug.prediction.predicting import predict
from nnplug.prediction.reader_writer import PredictionPlans
from nnplug.processes.case_pool import Pool
from nnplug.sharing.requirements import requirements_text
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from support import DatasetForTests
from support.models import make_model_folder, make_plans, write_image
from support.plugin_packages import PluginSite
from support.small_trainings import small_config, train_here

HOOKS = """
@nnplug.hookimpl
def register_planners(register):
    register("acme.planning:SmallPatches")

@nnplug.hookimpl
def register_preprocessors(register):
    register("acme.planning:Inverted")
"""
PLANNING = """
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

class SmallPatches(ExperimentPlanner):
    def get_plans_for_configuration(self, *args):
        plan = super().get_plans_for_configuration(*args)
        return plan | {"batch_size": 3}

class Inverted(DefaultPreprocessor):
    def run_case_npy(self, data, *args):
        return super().run_case_npy(-data, *args)

class Neither:
    pass
"""
STOCK_ONLY = (
    "the preprocessor 'Inverted' comes from acme 1.5, and nnU-Net looks for preprocessors in its own package only"
)


def add_acme(site: PluginSite, version: str = "1.5", code: str = HOOKS, distribution: str = "acme") -> None:
    site.add(distribution, version, code=code, files={"planning.py": PLANNING})


@pytest.fixture
def acme(installed: PluginSite) -> PluginSite:
    add_acme(installed)
    return installed


@pytest.fixture
def data(tiny_prepared: DatasetForTests, tmp_path: Path) -> Iterator[PlanningData]:
    """Five raw cases with stock nnU-Net's fingerprint."""
    dataset = replace(tiny_prepared, preprocessed=tmp_path / "preprocessed").with_results(tmp_path / "results")
    with dataset.activated():
        found = find_raw_data(901)
        found.folder.mkdir(parents=True)
        shutil.copy(tiny_prepared.preprocessed_folder / "dataset_fingerprint.json", found.folder)
        yield found


def plan(data: PlanningData, **settings: Any) -> dict[str, Any]:
    name = plan_experiment(data, PlannerSettings(**settings))
    return json.loads((data.folder / f"{name}.json").read_text())


def reason_of(site: PluginSite, code: str) -> str:
    add_acme(site, code=code)
    [failure] = site.registry().failures
    return failure.reason or ""


# --- registration ----------------------------------------------------------------------------------------------------


def test_they_are_listed(acme: PluginSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == "acme 1.5  acme  planner SmallPatches, preprocessor Inverted\n"
    assert main(["plugins", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["planners"], row["preprocessors"]) == (["SmallPatches"], ["Inverted"])


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("int", "register() of register_planners takes 'package.module:Class', got <class 'int'> (acme/__init__.py:6)"),
        ("'acme.x'", "register() of register_planners takes 'package.module:Class', got 'acme.x' (acme/__init__.py:6)"),
        ("'a:B.C'", "register() of register_planners takes 'package.module:Class', got 'a:B.C' (acme/__init__.py:6)"),
    ],
)
def test_what_is_no_reference_is_refused(site: PluginSite, argument: str, reason: str) -> None:
    code = f"@nnplug.hookimpl\ndef register_planners(register):\n    register({argument})\n"
    assert reason_of(site, code) == reason


def test_twice_in_one_plugin(site: PluginSite) -> None:
    code = "@nnplug.hookimpl\ndef register_preprocessors(register):\n    register('a:B')\n    register('c:B')\n"
    assert reason_of(site, code) == "registers 'B' twice (acme/__init__.py:6 and acme/__init__.py:7)"
    assert site.registry().list_classes("preprocessor") == []


def test_nothing_is_imported_until_it_is_used(site: PluginSite) -> None:
    site.add("acme", code=HOOKS)  # there is no acme.planning
    assert [one.name for one in site.registry().list_classes("planner")] == ["SmallPatches"]


# --- by name ---------------------------------------------------------------------------------------------------------


def test_a_class_is_found_beside_nnunets(acme: PluginSite) -> None:
    found = find_class("SmallPatches", ExperimentPlanner, "experiment_planning")
    assert (found.__module__, found.__name__) == ("acme.planning", "SmallPatches")
    assert find_class("ExperimentPlanner", ExperimentPlanner, "experiment_planning") is ExperimentPlanner


def test_an_unknown_name_tells_what_plugins_have(acme: PluginSite) -> None:
    acme.add("broken", code="import xformers_missing\n")
    with pytest.raises(NnplugError) as caught:
        find_class("Inverter", DefaultPreprocessor, "preprocessing")
    assert str(caught.value) == (
        "nnU-Net has no DefaultPreprocessor 'Inverter'. Did you mean 'Inverted'? It has DefaultPreprocessor. Plugins "
        "have Inverted. One plugin failed to load: broken 1.0 (No module named 'xformers_missing')."
    )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("acme.planning:Neither", "does not derive from nnU-Net's DefaultPreprocessor."),
        (
            "acme.plan:Neither",
            "can not be used: 'acme.plan:Neither': there is no module 'acme.plan'. Is its package installed? A module "
            "of your own is found through PYTHONPATH.",
        ),
    ],
)
def test_a_class_that_can_not_be_used(installed: PluginSite, reference: str, message: str) -> None:
    add_acme(installed, code=HOOKS.replace("acme.planning:Inverted", reference))
    with pytest.raises(NnplugError) as caught:
        find_class("Neither", DefaultPreprocessor, "preprocessing")
    assert str(caught.value) == f"The preprocessor 'Neither' of acme 1.5 (acme/__init__.py:11) {message}"


def test_two_plugins_with_one_name(acme: PluginSite) -> None:
    add_acme(acme, "2.0", distribution="other")
    with pytest.raises(NnplugError) as caught:
        find_class("Inverted", DefaultPreprocessor, "preprocessing")
    assert str(caught.value) == (
        "The preprocessor 'Inverted' is registered by 'acme 1.5' (acme/__init__.py:11) and 'other 2.0' "
        "(other/__init__.py:11). Uninstall one."
    )


def test_a_plugin_with_the_name_of_a_class_of_nnunet(installed: PluginSite) -> None:
    add_acme(installed, code=HOOKS.replace("acme.planning:SmallPatches", "acme.planning:ExperimentPlanner"))
    with pytest.raises(NnplugError) as caught:
        find_class("ExperimentPlanner", ExperimentPlanner, "experiment_planning")
    assert str(caught.value) == (
        "The planner 'ExperimentPlanner' is registered by 'acme 1.5' (acme/__init__.py:7) and is a class of nnU-Net. "
        "Uninstall the plugin, or rename its class."
    )


# --- planning and preprocessing --------------------------------------------------------------------------------------


def test_the_owner_of_a_preprocessor_is_kept_where_its_plugin_is_away() -> None:
    owner = {"distribution": "acme", "version": "1.5"}
    plans = {"configurations": {"2d": {"preprocessor_name": "Inverted"}}, OWNERS: {"Inverted": owner, "Unused": owner}}
    assert with_owners(plans)[OWNERS] == {"Inverted": owner}


def test_plans_of_a_plugins_planner_are_stocks_in_form(acme: PluginSite, data: PlanningData) -> None:
    plans = plan(data, planner="SmallPatches")
    assert plans["experiment_planner_used"] == "SmallPatches"
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 3
    assert OWNERS not in plans
    assert find_preprocessor(plans, "DefaultPreprocessor") is DefaultPreprocessor


def test_the_command_takes_the_names(acme: PluginSite, data: PlanningData) -> None:
    arguments = ["plan", "-d", "901", "-pl", "SmallPatches", "-preprocessor_name", "Inverted"]
    assert main([*arguments, "-overwrite_plans_name", "Acme"]) == 0
    plans = json.loads((data.folder / "Acme.json").read_text())
    assert plans["configurations"]["2d"]["preprocessor_name"] == "Inverted"
    assert plans[OWNERS] == {"Inverted": {"distribution": "acme", "version": "1.5"}}


def test_an_unknown_preprocessor_is_refused_when_planning(acme: PluginSite, data: PlanningData) -> None:
    with pytest.raises(NnplugError, match=r"^nnU-Net has no DefaultPreprocessor 'Invert'\. Did you mean 'Inverted'\?"):
        plan(data, preprocessor="Invert")
    assert not list(data.folder.glob("nnUNetPlans.json"))


def test_cases_a_training_and_what_it_says(
    acme: PluginSite, data: PlanningData, tiny_prepared: DatasetForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = plan(data, preprocessor="Inverted")
    assert preprocess(data, "nnUNetPlans", "3d_fullres", Pool(0))
    shutil.copy(tiny_prepared.preprocessed_folder / "splits_final.json", data.folder)
    name = tiny_prepared.splits[0]["train"][0]
    image = open_case(data.folder, name, "nnUNetPlans").image
    np.testing.assert_allclose(
        image, -open_case(tiny_prepared.preprocessed_folder, name, "nnUNetPlans").image, atol=1e-6
    )
    dataset = replace(tiny_prepared, preprocessed=data.preprocessed, results=data.folder.parents[1] / "results")
    [result] = train_here(dataset, small_config())
    assert result["stock_prediction_obstacle"] == STOCK_ONLY
    model = Path(result["model_path"])
    kept = json.loads((model / "plans.json").read_text())
    assert kept[OWNERS] == plans[OWNERS] == {"Inverted": {"distribution": "acme", "version": "1.5"}}
    manifest = json.loads((model / "nnplug.json").read_text())
    assert (manifest["plans"][OWNERS], manifest["distributions"]) == (plans[OWNERS], {"acme": "1.5"})
    assert "acme==1.5" in requirements_text(read_model_folder(model)).splitlines()


def test_another_version_of_the_plugin_preprocesses_again(
    acme: PluginSite, data: PlanningData, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(data, preprocessor="Inverted")
    assert preprocess(data, "nnUNetPlans", "3d_fullres", Pool(0))
    cases = data.folder / "nnUNetPlans_3d_fullres"
    made = {path.name: path.stat().st_mtime_ns for path in cases.glob("*.pkl")}
    assert preprocess(data, "nnUNetPlans", "3d_fullres", Pool(0))
    assert {path.name: path.stat().st_mtime_ns for path in cases.glob("*.pkl")} == made
    (info,) = acme.folder.glob("acme-*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.6\n")
    registry = acme.registry()
    monkeypatch.setattr("nnplug.discovery.registry.get_registry", lambda: registry)
    assert preprocess(data, "nnUNetPlans", "3d_fullres", Pool(0))
    assert not set(made.values()) & {path.stat().st_mtime_ns for path in cases.glob("*.pkl")}


# --- prediction ------------------------------------------------------------------------------------------------------


def test_portability_is_told_from_the_name(acme: PluginSite) -> None:
    resolved = Registry([]).resolve("num_epochs=1")
    assert stock_prediction_obstacle(resolved, "DefaultPreprocessor") is None
    assert stock_prediction_obstacle(resolved, "Inverted") == STOCK_ONLY
    assert stock_prediction_obstacle(resolved, "Gone") == (
        "the preprocessor 'Gone' is not nnU-Net's, and nnU-Net looks for preprocessors in its own package only"
    )
    plans = PlansManager(make_plans(preprocessor_name="Inverted"))
    assert plans.get_configuration("3d_fullres").preprocessor_class is None, "so stock prediction would end here"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of stock nnU-Net whose plans need acme's preprocessor."""
    path = make_model_folder(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=(0,))
    plans = json.loads((path / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "Inverted"
    plans[OWNERS] = {"Inverted": {"distribution": "acme", "version": "1.5"}}
    (path / "plans.json").write_text(json.dumps(plans))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a_0000.nii.gz", seed=0)
    return tmp_path / "images"


def segment(model: Path, images: Path, output: Path) -> np.ndarray:
    [path] = predict(model, images, output, device="cpu", progress_bar=False)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_predictions_use_it(
    acme: PluginSite, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = segment(model, images, tmp_path / "out")
    assert "warning" not in capsys.readouterr().err
    plans = (model / "plans.json").read_text()
    (model / "plans.json").write_text(plans.replace(': "Inverted"', ': "DefaultPreprocessor"'))
    other = segment(model, images, tmp_path / "other")
    image = sitk.ReadImage(str(images / "a_0000.nii.gz"))
    sitk.WriteImage(-image, str(images / "a_0000.nii.gz"))
    np.testing.assert_array_equal(found, segment(model, images, tmp_path / "inverted"))
    assert not np.array_equal(found, other)


def test_worker_processes_are_sent_it(acme: PluginSite, tmp_path: Path) -> None:
    plans = PredictionPlans(make_plans(preprocessor_name="Inverted"), tmp_path / "report")
    sent = pickle.loads(pickle.dumps(plans.get_configuration("3d_fullres")))
    assert sent.preprocessor_class is importlib.import_module("acme.planning").Inverted
    assert sent.spacing == [1.0, 1.0, 1.0]


def test_what_is_missing_is_named(installed: PluginSite, model: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(NnplugError) as caught:
        segment(model, images, tmp_path / "out")
    assert str(caught.value) == (
        f"{model / 'plans.json'}: The plans need the preprocessor 'Inverted' of acme 1.5, which is not installed. "
        "Install it: pip install acme==1.5"
    )


def test_another_version_is_told(
    installed: PluginSite, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_acme(installed, "1.6")
    segment(model, images, tmp_path / "out")
    assert capsys.readouterr().err.splitlines()[0] == (
        "nnplug: warning: the model's images were preprocessed with 'Inverted' of acme 1.5, acme 1.6 is installed. "
        "For the same code: pip install acme==1.5"
    )
