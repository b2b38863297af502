"""From a model folder to a network: what is loaded, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nnplug.errors import NnplugError
from nnplug.models.trained_models import read_model_folder
from nnplug.prediction.model import LoadedModel, load_model
from support.models import make_dataset_json, make_model_folder, make_plans, write_checkpoint, write_descriptions

FINAL = "checkpoint_final.pth"


def load(folder: Path, folds: tuple[int | str, ...] = (0,), **options: bool) -> LoadedModel:
    return load_model(read_model_folder(folder), folds, **options)


def error_of(folder: Path, folds: tuple[int | str, ...] = (0,), **options: bool) -> str:
    with pytest.raises(NnplugError) as caught:
        load(folder, folds, **options)
    return str(caught.value).replace(f"{folder}{os.sep}", "")


def with_architecture(folder: Path, **changes: Any) -> Path:
    """A model whose plans.json names another architecture; its checkpoint agrees with it."""
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["architecture"].update(changes)
    write_descriptions(folder, plans, make_dataset_json())
    init_args = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": make_dataset_json()}
    write_checkpoint(folder / "fold_0" / FINAL, make_plans(), make_dataset_json(), init_args=init_args)
    return folder


# --- what is loaded


def test_a_stock_model(tmp_path: Path) -> None:
    model = load(make_model_folder(tmp_path, folds=(0, 2)), (2, 0))
    assert (model.configuration, model.trainer_name, model.mirror_axes) == ("3d_fullres", "nnUNetTrainer", (0, 1, 2))
    assert len(model.parameters) == 2
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, model.parameters[0][key])
    assert any(not torch.equal(model.parameters[0][key], model.parameters[1][key]) for key in model.parameters[0])
    with torch.no_grad():
        assert model.network(torch.zeros(1, 1, 12, 16, 16)).shape == (1, 3, 12, 16, 16)


@pytest.mark.parametrize("axes", [None, (), []])
def test_no_mirroring(tmp_path: Path, axes: object) -> None:
    # nnU-Net's predictor crashes on an empty tuple
    assert load(make_model_folder(tmp_path, inference_allowed_mirroring_axes=axes)).mirror_axes is None


def test_a_stock_class_with_a_network_of_its_own(tmp_path: Path) -> None:
    from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(make_plans())
    network = nnUNetTrainerBN.build_network_architecture(plans, plans.get_configuration("3d_fullres"), 1, 3)
    weights = network.state_dict()
    assert any(key.endswith("running_mean") for key in weights)
    folder = make_model_folder(tmp_path / "bn", trainer_name="nnUNetTrainerBN", network_weights=weights)
    loaded = load(folder)
    assert any(isinstance(module, torch.nn.BatchNorm3d) for module in loaded.network.modules())
    # the same weights in a model of the default class are not taken
    other = make_model_folder(tmp_path / "other", network_weights=weights)
    assert error_of(other).startswith(f"The weights in fold_0/{FINAL} do not fit the network ")


STATIC = """
from torch import nn
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class OneLayerTrainer(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        return nn.Conv3d(num_input_channels, num_output_channels, 1)
"""


def test_a_class_in_the_folder_of_nnunet_exttrainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ext").mkdir()
    (tmp_path / "ext" / "one_layer_ext.py").write_text(STATIC)
    weights = torch.nn.Conv3d(1, 3, 1).state_dict()
    folder = make_model_folder(tmp_path / "model", trainer_name="OneLayerTrainer", network_weights=weights)
    assert error_of(folder) == (
        f"fold_0/{FINAL} was made by the trainer class 'OneLayerTrainer', which is neither in nnU-Net nor in a folder "
        "of the variable nnUNet_extTrainer. Install it, or set the variable."
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "ext"))
    assert isinstance(load(folder).network, torch.nn.Conv3d)


def test_a_base_trainer_with_a_network_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "one_layer_base.py").write_text(STATIC)
    monkeypatch.syspath_prepend(tmp_path / "site")
    weights = torch.nn.Conv3d(1, 3, 1).state_dict()
    entry = {"name": "mine", "base_trainer": "one_layer_base:OneLayerTrainer"}
    folder = make_model_folder(
        tmp_path / "model", trainer_name="OneLayerTrainer", network_weights=weights, nnplug=entry
    )
    assert "'one_layer_base:OneLayerTrainer' is outside of what a file may name" in error_of(folder)
    assert isinstance(load(folder, trust_code=True).network, torch.nn.Conv3d)
    entry["base_trainer"] = "collections:OrderedDict"
    make_model_folder(tmp_path / "model", trainer_name="OneLayerTrainer", network_weights=weights, nnplug=entry)
    message = f"fold_0/{FINAL}: base_trainer 'collections:OrderedDict' is no nnU-Net trainer."
    assert error_of(folder, trust_code=True) == message


# --- plugins


def test_a_missing_plugin(tmp_path: Path) -> None:
    nnplug = {"name": "acme_net", "distributions": {"acme-nets": "1.2", "nnplug": importlib.metadata.version("nnplug")}}
    folder = make_model_folder(tmp_path, nnplug=nnplug)
    assert error_of(folder) == (
        "The model 'acme_net' was trained with acme-nets 1.2, which is not installed. "
        "Install it: pip install acme-nets==1.2"
    )
    nnplug["distributions"]["acme-losses"] = "0.3"
    make_model_folder(tmp_path, nnplug=nnplug)
    assert error_of(folder) == (
        "The model 'acme_net' was trained with acme-losses 0.3 and acme-nets 1.2, which are not installed. "
        "Install it: pip install acme-losses==0.3 acme-nets==1.2"
    )


def test_a_missing_plugin_that_only_had_the_loss_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nnplug = {
        "name": "net+acme_loss",
        "distributions": {"acme-losses": "0.3"},
        "network_builder": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "base_trainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer",
    }
    load(make_model_folder(tmp_path, nnplug=nnplug))
    assert capsys.readouterr().err == (
        "nnplug: warning: the model 'net+acme_loss' was trained with acme-losses 0.3, which the network does not need. "
        "For the same code: pip install acme-losses==0.3\n"
    )


def test_another_version_of_a_plugin_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    installed = importlib.metadata.version("pluggy")
    folder = make_model_folder(tmp_path, nnplug={"name": "net", "distributions": {"pluggy": "0.1"}})
    load(folder)
    assert capsys.readouterr().err == (
        f"nnplug: warning: the model 'net' was trained with pluggy 0.1, {installed} is installed. "
        "For the same code: pip install pluggy==0.1\n"
    )
    load(make_model_folder(tmp_path, nnplug={"name": "net", "distributions": {"pluggy": installed}}))
    assert capsys.readouterr().err == ""


# --- names in plans.json


def test_a_network_whose_package_is_missing(tmp_path: Path) -> None:
    assert error_of(with_architecture(tmp_path, network_class_name="acme_nets.nets.PlainConvUNet")) == (
        "plans.json needs 'acme_nets.nets.PlainConvUNet', and no package 'acme_nets' is installed. "
        "Install the plugin that the model was trained with; a module of your own needs its folder in PYTHONPATH, and "
        "--trust-code."
    )


def test_no_other_network_of_the_same_name(tmp_path: Path) -> None:
    # stock nnU-Net takes dynamic_network_architectures' PlainConvUNet for any missing module
    folder = with_architecture(tmp_path, network_class_name="monai.networks.nets.gone.PlainConvUNet")
    message = error_of(folder)
    assert message == (
        "plans.json: architecture: 'monai.networks.nets.gone:PlainConvUNet': there is no module "
        "'monai.networks.nets.gone'. Is its package installed? A module of your own is found through PYTHONPATH."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "is outside of what a file may name"),
        ("subprocess.Popen", "is outside of what a file may name"),
        ("torch.hub.load", "is not a class that a file may name"),
        ("torch.os.system", "there is no module 'torch.os'"),
        ("PlainConvUNet", "is no name of a network or layer"),
        (None, ""),
        (3, "is no name of a network or layer"),
    ],
)
@pytest.mark.parametrize("place", ["network_class_name", "conv_op"])
def test_names_that_plans_may_not_hold(tmp_path: Path, place: str, name: object, message: str) -> None:
    if place == "conv_op":
        arguments = {**make_plans()["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"], place: name}
        folder = with_architecture(tmp_path, arch_kwargs=arguments)
    elif name is not None:
        folder = with_architecture(tmp_path, network_class_name=name)
    else:
        return
    error = error_of(folder)
    if name is None:
        assert error.startswith(
            "The network 'dynamic_network_architectures.architectures.unet.PlainConvUNet' of fold_0/"
        )
        return
    assert error.startswith("plans.json: architecture: ")
    assert message in error


def test_code_outside_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "outside_net.py").write_text(
        "from dynamic_network_architectures.architectures.unet import PlainConvUNet as Base\n"
        "class Net(Base):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    folder = with_architecture(tmp_path / "model", network_class_name="outside_net.Net")
    assert "'outside_net:Net' is outside of what a file may name" in error_of(folder)
    assert type(load(folder, trust_code=True).network).__name__ == "Net"


def test_a_name_with_two_meanings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "twofold_net"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def net(**kwargs):\n    raise AssertionError\n")
    (package / "net.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    folder = with_architecture(tmp_path / "model", network_class_name="twofold_net.net")
    message = "plans.json: architecture: 'twofold_net.net' names a module and an object; rename one."
    assert error_of(folder, trust_code=True) == message


# --- folds of one model


def rewrite(folder: Path, fold: int, plans: Mapping[str, Any], dataset_json: Mapping[str, Any], **changes: Any) -> None:
    write_checkpoint(folder / f"fold_{fold}" / FINAL, plans, dataset_json, **changes)


def test_folds_of_other_trainers(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, folds=(0, 1), nnplug={"name": "a"})
    rewrite(folder, 1, make_plans(), make_dataset_json(), nnplug={"name": "b"})
    assert error_of(folder, (0, 1)) == (
        f"fold_1/{FINAL} is of trainer 'b', fold_0/{FINAL} of 'a': the folds are not of one model."
    )


def test_a_checkpoint_without_a_configuration(tmp_path: Path) -> None:
    assert error_of(make_model_folder(tmp_path, init_args={})) == (
        f"fold_0/{FINAL} does not say which configuration it was trained on. Use a whole checkpoint."
    )


def test_folds_of_other_configurations(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, folds=(0, 1))
    rewrite(folder, 1, make_plans(), make_dataset_json(), init_args={"configuration": "2d"})
    assert "is of configuration '2d'" in error_of(folder, (0, 1))
    assert error_of(folder, (1,)) == (f"fold_1/{FINAL} is of configuration '2d', and plans.json has only 3d_fullres.")


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("spacing", {"spacing": [2.0, 1.0, 1.0]}),
        ("normalization", {"normalization_schemes": ["CTNormalization"]}),
        ("network architecture", {"architecture": {"arch_kwargs": {"features_per_stage": [8, 8]}}}),
        ("number of channels", {}),
        ("set of labels", {}),
    ],
)
def test_a_fold_of_other_plans_or_data(tmp_path: Path, what: str, change: dict[str, Any]) -> None:
    folder = make_model_folder(tmp_path, folds=(0, 1))
    plans, dataset_json = make_plans(), make_dataset_json()
    from nnplug.networks.network import deep_merge

    plans["configurations"]["3d_fullres"] = deep_merge(plans["configurations"]["3d_fullres"], change)
    if what == "number of channels":
        dataset_json["channel_names"]["1"] = "T2"
    if what == "set of labels":
        dataset_json["labels"]["third"] = 3
    rewrite(folder, 1, plans, dataset_json)
    assert error_of(folder, (0, 1)) == (
        f"fold_1/{FINAL} was trained with another {what} than {folder} describes now: the folder mixes models. "
        "Train the fold again, or put the plans.json and dataset.json of its training back."
    )
    load(folder, (0,))


def test_renamed_labels_and_another_patch_size_are_no_other_model(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    dataset_json = make_dataset_json()
    dataset_json["labels"] = {"background": 0, "sphere": 1, "cube": 2}
    write_descriptions(folder, make_plans(patch_size=[16, 16, 16]), dataset_json)
    load(folder)


# --- weights


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    content = torch.load(folder / "fold_0" / FINAL, weights_only=True)
    weights = content["network_weights"]
    first, second, *_ = weights
    weights[second] = torch.zeros(2, 3)
    weights["new.weight"] = weights.pop(first)
    torch.save(content, folder / "fold_0" / FINAL)
    assert error_of(folder) == (
        f"The weights in fold_0/{FINAL} do not fit the network "
        f"'dynamic_network_architectures.architectures.unet.PlainConvUNet': it lacks {first}; "
        f"it has unknown new.weight; other shape: {second} is 2x3 in the checkpoint and 4 in the network."
    )


def test_every_fold_must_fit(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, folds=(0, 1))
    write_checkpoint(folder / "fold_1" / FINAL, make_plans(), make_dataset_json(), network_weights={})
    message = error_of(folder, (0, 1))
    assert message.startswith(f"The weights in fold_1/{FINAL} do not fit")
    assert "it lacks encoder." in message
    assert " more." in message


def test_a_network_that_can_not_be_built(tmp_path: Path) -> None:
    arguments = make_plans()["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    folder = with_architecture(tmp_path, arch_kwargs={**arguments, "wings": 2})
    message = error_of(folder)
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    assert message.startswith(f"The network '{name}' of fold_0/{FINAL} could not be built (TypeError: ")
    assert "wings" in message


# --- safety


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_checkpoint_that_would_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = make_model_folder(tmp_path / "model", logging={"x": Malicious(marker)})
    assert "would run code when it is read" in error_of(folder)
    assert not marker.exists()
    load(folder, trust_checkpoint=True)
    assert marker.exists()


def test_old_plans_of_nnunet(tmp_path: Path) -> None:
    plans = make_plans()
    configuration = plans["configurations"]["3d_fullres"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration.update(
        UNet_class_name="PlainConvUNet",
        UNet_base_num_features=4,
        unet_max_num_features=8,
        n_conv_per_stage_encoder=[1, 1],
        n_conv_per_stage_decoder=[1],
        num_pool_per_axis=[1, 1, 1],
        pool_op_kernel_sizes=arguments["strides"],
        conv_kernel_sizes=arguments["kernel_sizes"],
    )
    folder = write_descriptions(tmp_path, plans, make_dataset_json())
    write_checkpoint(
        folder / "fold_0" / FINAL,
        make_plans(),
        make_dataset_json(),
        init_args={"configuration": "3d_fullres", "plans": json.loads(json.dumps(plans))},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load(folder).network is not None
