"""CUSTOM_ARCH_INFO.md: its files are written and imported, its configs make training steps, its package is loaded."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import re
import runpy
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nnplug
import numpy as np
import pytest
from nnplug import Component, NnplugError, TrainerConfig
from nnplug.composition.references import import_string
from nnplug.discovery.registry import GROUP, Registry, get_registry
from support.datasets import DatasetForTests
from support.plugin_packages import PluginSite, trainers

PAGE = (Path(__file__).resolve().parents[2] / "CUSTOM_ARCH_INFO.md").read_text(encoding="utf-8")
PACKAGE = "example_nets"

MakeTrainer = Callable[..., Any]


def blocks() -> list[tuple[int, str, str]]:
    """Python and TOML blocks: (line, name of the file or empty, text)."""
    found = []
    for match in re.finditer(r"^```(?:python|toml)\n(?:# (\S+\.(?:py|toml))\n)?(.*?)^```$", PAGE, re.M | re.S):
        found.append((PAGE.count("\n", 0, match.start()) + 1, match[1] or "", match[2]))
    return found


FILES = {name: text for _, name, text in blocks() if name}
SNIPPETS = [(line, text) for line, name, text in blocks() if not name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path`` with every file of the page."""
    site = tmp_path / "site"
    for name, text in FILES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site
    PluginSite(site).forget_modules()


@pytest.fixture
def make_trainer(tiny_dataset: DatasetForTests) -> Iterator[MakeTrainer]:
    import torch
    from nnplug.training.trainer import build_trainer_class

    def make(trainer: Any, configuration: str = "3d_fullres", **dataset: Any) -> Any:
        data = tiny_dataset.preprocessed_folder
        plans = {**json.loads((data / "nnUNetPlans.json").read_text()), "continue_training": False}
        dataset_json = {**json.loads((data / "dataset.json").read_text()), **dataset}
        resolved = nnplug.resolve(trainer) if not isinstance(trainer, nnplug.ResolvedConfig) else trainer
        return build_trainer_class(resolved)(plans, configuration, 0, dataset_json, torch.device("cpu"))

    with tiny_dataset.activated():
        yield make


def one_step(trainer: Any) -> float:
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert np.isfinite(loss)
    return loss


def small(config: TrainerConfig) -> TrainerConfig:
    """With a network that is quick, where the config has none."""
    return config if config.network_builder else config.copy(network_builder="my_networks:build_my_custom_network")


def configs_of(text: str) -> list[TrainerConfig]:
    names: dict[str, Any] = {}
    exec(compile(text, "CUSTOM_ARCH_INFO.md", "exec"), names)
    return names["configs"]


def test_every_block_is_known() -> None:
    assert len(FILES) == 16
    assert len(SNIPPETS) == 5
    assert PAGE.count("```python") + PAGE.count("```toml") == len(FILES) + len(SNIPPETS)


# --- from a script


@pytest.mark.usefixtures("folder")
def test_the_script_hands_its_config_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnplug.training.training import train

    called = []
    monkeypatch.setattr(
        nnplug, "train", lambda *args: called.append(inspect.signature(train).bind(*args)), raising=False
    )
    runpy.run_module("train_mine")
    assert not called
    runpy.run_module("train_mine", run_name="__main__")
    assert called[0].arguments["trainer"].name == "my_trainer"
    assert called[0].arguments["configuration"] == "3d_fullres"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_scripts_config_trains_and_is_found_again(make_trainer: MakeTrainer, configuration: str) -> None:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = make_trainer(importlib.import_module("train_mine").config, configuration)
    one_step(trainer)
    assert trainer.num_epochs == 500
    assert trainer.enable_deep_supervision
    # the last output has the weight 0, as in nnU-Net
    learns = [head.weight.grad is not None and head.weight.grad.any().item() for head in trainer.network.heads]
    assert learns == [True, True, False]
    patch = tuple(trainer.configuration_manager.patch_size)
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network(torch.zeros((1, 1, *patch))).shape == (1, 3, *patch)
    stock = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    stock.load_state_dict(trainer.network.state_dict())


@pytest.mark.usefixtures("folder")
def test_the_patch_that_is_proposed(make_trainer: MakeTrainer) -> None:
    (example,) = re.findall(r"^nnplug: error: (.* can not take a patch .*)$", PAGE, re.MULTILINE)
    config = importlib.import_module("train_mine").config.copy(patch_size=(25, 28, 24))
    with pytest.raises(NnplugError) as caught:
        make_trainer(config).initialize()
    before, after = example.split("(...)")
    assert str(caught.value).startswith(before)
    assert str(caught.value).endswith(after)


@pytest.mark.usefixtures("folder")
def test_what_is_written_into_the_plans(make_trainer: MakeTrainer) -> None:
    (shown,) = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
    builder = Component("my_networks:build_my_custom_network", width=16)
    trainer = make_trainer(TrainerConfig(name="t", network_builder=builder))
    written = trainer.configuration_manager.configuration["architecture"]
    assert written["network_class_name"] == shown["network_class_name"]
    assert written["arch_kwargs"]["width"] == shown["arch_kwargs"]["width"]
    assert set(written) == set(shown)


# --- what is refused


def PlainConvUNet(**kwargs: Any) -> None:
    raise AssertionError(kwargs)


def takes_no_flag(input_channels: int, num_classes: int) -> None:
    raise AssertionError((input_channels, num_classes))


def takes_all(**kwargs: Any) -> None:
    raise AssertionError(kwargs)


def in_script(**kwargs: Any) -> None:
    raise AssertionError(kwargs)


def make_inner() -> Callable[..., None]:
    def inner(**kwargs: Any) -> None:
        raise AssertionError(kwargs)

    return inner


REFUSED: dict[str, Any] = {
    "a lambda": lambda **_: None,
    "a function inside a function": make_inner(),
    "a function of the script that runs": in_script,
    "`functools.partial`": partial(takes_all, width=3),
    "arguments that JSON can not hold": Component(takes_all, width=object()),
    "no parameter `deep_supervision` and no `**kwargs`": takes_no_flag,
    "the name of something in dynamic_network_architectures, such as `PlainConvUNet`": PlainConvUNet,
}


def refused_rows() -> list[tuple[str, str]]:
    table = PAGE.partition("| | the message says |\n| --- | --- |\n")[2].partition("\n\n")[0]
    return [tuple(cell.strip() for cell in row.strip("|").split(" | ")) for row in table.splitlines()]  # type: ignore[misc]


def test_every_row_of_what_is_refused_is_tested() -> None:
    assert [row for row, _ in refused_rows()] == list(REFUSED)


@pytest.mark.parametrize(("row", "message"), refused_rows(), ids=[row for row, _ in refused_rows()])
def test_what_is_refused(row: str, message: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = REFUSED[row]
    if builder is in_script:
        monkeypatch.setattr(in_script, "__module__", "__main__")
    with pytest.raises(NnplugError, match=re.escape(message.strip("`"))):
        make_trainer(TrainerConfig(name="t", network_builder=builder)).initialize()


# --- losses, optimisers, samplers, transforms


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("line", "text"), SNIPPETS, ids=[f"line {line}" for line, _ in SNIPPETS])
def test_configs_make_a_step(line: int, text: str, make_trainer: MakeTrainer) -> None:
    configs = configs_of(text)
    assert configs, line
    for config in configs:
        one_step(make_trainer(small(config)))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "dataset",
    [
        {"labels": {"background": 0, "core": 1, "shell": 2, "ignore": 3}},
        {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [1, 2]},
        {
            "labels": {"background": 0, "whole": [1, 2], "core": 1, "ignore": 3},
            "regions_class_order": [1, 2],
        },
    ],
    ids=["ignore label", "regions", "both"],
)
def test_the_loss_takes_what_it_declares(make_trainer: MakeTrainer, dataset: dict[str, Any]) -> None:
    import torch

    trainer = make_trainer(small(TrainerConfig(name="t", loss_fn="my_losses:SquaredError")), **dataset)
    trainer.initialize()
    labels, has_regions = trainer.label_manager, trainer.label_manager.has_regions
    num_channels = 2 + labels.has_ignore_label if has_regions else 1
    highest = 1 if has_regions else 3
    outputs = [torch.randn(2, labels.num_segmentation_heads, size, size, size) for size in (8, 4)]
    targets = [torch.randint(0, highest + 1, (2, num_channels, size, size, size)).float() for size in (8, 4)]
    assert 0 < float(trainer.loss(outputs, targets)) < 1
    with pytest.raises(NnplugError, match="does not support"):
        make_trainer(small(TrainerConfig(name="u", loss_fn="my_losses:MyLoss")), **dataset).initialize()


@pytest.mark.usefixtures("folder")
def test_ignored_voxels_do_not_count() -> None:
    import torch
    from nnplug import LossContext
    from nnplug.training.losses import build_loss

    context = LossContext(num_classes=3, spatial_dims=3, ignore_label=3)
    loss = build_loss(Component("my_losses:SquaredError"), context, None)
    target = torch.randint(0, 3, (2, 1, 4, 4, 4)).float()
    target[:, :, :2] = 3
    output = torch.randn(2, 3, 4, 4, 4)
    changed = output.clone()
    changed[:, :, :2] += torch.randn(2, 3, 2, 4, 4)
    assert torch.equal(loss(output, target), loss(changed, target))
    assert loss(-output, target) != loss(output, target)


@pytest.mark.usefixtures("folder")
def test_the_loss_gets_what_its_transform_makes(make_trainer: MakeTrainer) -> None:
    import torch

    trainer = make_trainer(small(TrainerConfig(name="t", loss_fn="my_border_loss:FarFalseAlarms")))
    one_step(trainer)
    target = next(trainer.dataloader_train)["target"]
    assert all(scaled.shape[1] == 2 for scaled in target)
    assert 1 < target[0][:, 1].max() <= 20
    assert (target[0][:, 1][target[0][:, 0] > 0] == 0).all()
    outputs = [torch.randn(2, 3, *scaled.shape[2:]) for scaled in target]
    by_workers, in_step = (trainer.loss(outputs, given) for given in (target, [scaled[:, :1] for scaled in target]))
    torch.testing.assert_close(by_workers, in_step, rtol=0.05, atol=0)  # the second has distances of its own per scale
    far = trainer.loss.loss.loss
    labels = torch.zeros(1, 1, 1, 12, dtype=torch.int16)
    labels[..., 0] = 1
    near, distant = (torch.zeros(1, 3, 1, 12) for _ in range(2))
    near[:, 1, :, 1] = distant[:, 1, :, 9] = 5
    assert far(distant, labels, None) > far(near, labels, None)
    validation = next(trainer.dataloader_val)
    assert validation["target"][0].shape[1] == 1
    assert np.isfinite(trainer.validation_step(validation)["loss"])


@pytest.mark.usefixtures("folder")
def test_settings_arrive(make_trainer: MakeTrainer) -> None:
    made = {config.name: config for _, text in SNIPPETS for config in configs_of(text)}

    trainer = make_trainer(small(made["my_schedule"]))
    trainer.initialize()
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.98), 3e-5)
    trainer.lr_scheduler.step(500)
    assert group["lr"] == pytest.approx((3e-4 + 1e-5) / 2)

    favoured = made["favoured"].sampler
    prefix = str(make_trainer("nnUNetTrainer").get_tr_and_val_datasets()[0].identifiers[0])
    config = made["favoured"].copy(name="one_case", sampler=Component(favoured.target, prefix=prefix, times=3.0))
    trainer = make_trainer(small(config))
    one_step(trainer)
    chances = trainer.dataloader_train.data_loader.sampling_probabilities
    assert chances[0] == pytest.approx(3 * chances[1])
    assert trainer.dataloader_val.data_loader.sampling_probabilities is None

    trainer = make_trainer(small(made["inner"].copy(name="small", patch_size=(8, 8, 8))))
    one_step(trainer)
    assert "Random patches stay 2 voxels away from the border." in Path(trainer.log_file).read_text()
    loader = trainer.dataloader_train.data_loader
    starts = [loader.get_bbox((40, 30, 9), False, None)[0] for _ in range(50)]
    sides = loader.patch_size
    assert {start[0] for start in starts} <= set(range(2, 40 - sides[0] - 2 + 1))
    assert min(start[2] for start in starts) < 2  # no room along this axis

    trainer = make_trainer(small(made["little_rotation"]))
    one_step(trainer)
    [spatial] = [t for t in trainer.dataloader_train.data_loader.transforms.transforms if hasattr(t, "rotation")]
    assert spatial.rotation == (-0.087, 0.087)


# --- what comes with nnplug


def test_every_built_in_with_code_of_its_own_is_described() -> None:
    registrations = [one for found in get_registry().registrations.values() for one in found]
    with_code = {
        one.config.name
        for one in registrations
        if one.distribution == "nnplug" and (one.config.network_builder or one.config.loss_fn or one.config.sampler)
    }
    assert len(with_code) > 30
    section = PAGE.partition("\n## What comes with nnplug\n")[2].partition("\n## ")[0]
    first_cells = "".join(re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE))
    described = set(re.findall(r"`([a-z]\w+)`", first_cells))
    assert with_code - described == set()
    assert described - set(get_registry().registrations) == set()


# --- what stays


def api_rows() -> list[tuple[str, str]]:
    table = PAGE.partition("| the plugin says | `nnplug plugins` shows |\n| --- | --- |\n")[2].partition("\n\n")[0]
    return [tuple(cell.strip() for cell in row.strip("|").split(" | ")) for row in table.splitlines()]  # type: ignore[misc]


DECLARED = {
    "nothing": "",
    "the number of this nnplug": "NNPLUG_API = nnplug.API_VERSION\n",
    "a higher one": "NNPLUG_API = 2\n",
    "a lower one": "NNPLUG_API = 0\n",
    "no number": "NNPLUG_API = '1'\n",
}


def test_every_declaration_is_in_the_table() -> None:
    assert [row for row, _ in api_rows()] == list(DECLARED)
    assert f"While `nnplug.API_VERSION` is {nnplug.API_VERSION}," in PAGE
    assert f"\nNNPLUG_API = {nnplug.API_VERSION}\n" in PAGE


@pytest.mark.parametrize(("row", "shown"), api_rows(), ids=[row for row, _ in api_rows()])
def test_what_a_plugin_may_declare(row: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    site = PluginSite(tmp_path)
    site.add("declares", code=DECLARED[row] + trainers("name='declared', num_epochs=5"))
    [record] = site.registry().plugins
    site.forget_modules()
    assert record.reason == (shown.strip("`") if shown.startswith("`") else None)


# --- recipe and package


def test_the_recipe_needs_trust_and_then_trains(folder: Path, make_trainer: MakeTrainer) -> None:
    path = folder / "my_recipe.toml"
    with pytest.raises(NnplugError, match="add --trust-code"):
        nnplug.resolve(path)
    resolved = nnplug.resolve(path, trust_code=True)
    trainer = make_trainer(resolved)
    one_step(trainer)
    assert trainer.network.stem[0].out_channels == 24
    assert trainer.num_epochs == 300


def registry_with_the_package(folder: Path) -> Registry:
    project = tomllib.loads(FILES["pyproject.toml"])
    assert project["tool"]["setuptools"]["packages"] == [PACKAGE]
    entry_points = project["project"]["entry-points"][GROUP]
    PluginSite(folder).add_metadata(project["project"]["name"], project["project"]["version"], entry_points, [PACKAGE])
    own = [e for d in importlib.metadata.distributions(path=[str(folder)]) for e in d.entry_points if e.group == GROUP]
    others = [e for e in importlib.metadata.entry_points(group=GROUP) if e.name != PACKAGE]
    return Registry([*others, *own])


def test_the_package_is_a_plugin(
    folder: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = registry_with_the_package(folder)
    monkeypatch.setattr("nnplug.discovery.registry.get_registry", lambda: registry)

    assert registry.failures == []
    assert [name for name in registry.list_names() if name.startswith("example_net")] == [
        "example_net",
        "example_net_adam",
    ]
    for name in ("example_net", "example_net_adam"):
        trainer = make_trainer(registry.resolve(name))
        one_step(trainer)
        assert len(trainer.network) == 3
        assert not trainer.enable_deep_supervision
    assert type(trainer.optimizer).__name__ == "Adam"
    [record] = [record for record in registry.plugins if record.distribution == "example-nets"]
    capsys.readouterr()
    result = {"status": "completed", "metrics": {"dice": 0.5}}
    registry.call_plugin(record, "train_end", run=trainer.describe_run(), result=result)
    assert capsys.readouterr().out == "example_nets: example_net_adam, fold 0: Dice 0.5\n"
    assert (
        import_string(sys.modules["example_nets.network"].build_example_net) == "example_nets.network:build_example_net"
    )


@pytest.mark.usefixtures("make_trainer")
def test_the_packages_own_test_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnplug.testing import run_checks

    registry = registry_with_the_package(folder)
    monkeypatch.setattr("nnplug.discovery.registry.get_registry", lambda: registry)
    test = importlib.import_module("test_example_nets").test_example_net
    checks = [parameter.values[0] for parameter in test.pytestmark[0].args[1]]
    assert {check.resolved.name for check in checks} == {"example_net"}
    outcomes = list(run_checks(checks))
    assert len(outcomes) > 20
    assert [outcome.message for outcome in outcomes if outcome.status != "passed"] == []


def test_the_planner_and_the_preprocessor_are_used(
    folder: Path, tiny_prepared: DatasetForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnplug.planning.data import find_raw_data
    from nnplug.planning.experiment import PlannerSettings, plan_experiment
    from nnplug.planning.preprocessed_case import open_case
    from nnplug.planning.preprocessing import Pool, preprocess

    site = PluginSite(folder)
    site.add_metadata("example-planning", "0.1.0", {"example_planning": "example_planning"}, ["example_planning"])
    registry = site.registry()
    assert registry.failures == []
    monkeypatch.setattr("nnplug.discovery.registry.get_registry", lambda: registry)
    with replace(tiny_prepared, preprocessed=tmp_path / "preprocessed").activated():
        data = find_raw_data(901)
        data.folder.mkdir(parents=True)
        shutil.copy(tiny_prepared.preprocessed_folder / "dataset_fingerprint.json", data.folder)
        settings = PlannerSettings(planner="LargerBatchPlanner", preprocessor="ClippingPreprocessor")
        assert plan_experiment(data, settings) == "nnUNetPlans"
        preprocess(data, "nnUNetPlans", "3d_fullres", Pool(0))
    plans = json.loads((data.folder / "nnUNetPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["batch_size"] >= 4
    assert plans["nnplug_preprocessors"] == {
        "ClippingPreprocessor": {"distribution": "example-planning", "version": "0.1.0"}
    }
    name = tiny_prepared.splits[0]["train"][0]
    clipped, stock = (
        np.ptp(open_case(where, name, "nnUNetPlans").image)
        for where in (data.folder, tiny_prepared.preprocessed_folder)
    )
    assert clipped < stock


def test_the_package_is_listed_without_torch(folder: Path) -> None:
    import subprocess

    code = "import sys, example_nets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0
