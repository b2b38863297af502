"""nnU-Net's trainer classes, and objects of them without a data set: from plans written by hand, in milliseconds."""

from __future__ import annotations

import ast
import importlib.util
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch

LABELS = {"background": 0, "ball": 1, "box": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}

PACKAGE = "nnunetv2.training.nnUNetTrainer"


def made_up_plans(
    *, patch_size: tuple[int, ...] = (16, 16, 16), batch_size: int = 2, batch_dice: bool = False
) -> dict[str, Any]:
    """Plans with one configuration, ``3d_fullres`` or ``2d`` as the patch has axes, of a U-Net with four stages."""
    dims = len(patch_size)
    configuration = {
        "data_identifier": "made_up",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": list(patch_size),
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": batch_dice,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 4,
                "features_per_stage": [4, 8, 8, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [[3] * dims] * 4,
                "strides": [[1] * dims] + [[2] * dims] * 3,
                "n_conv_per_stage": [1] * 4,
                "n_conv_per_stage_decoder": [1] * 3,
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset990_MadeUp",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "transpose_forward": list(range(dims)),
        "transpose_backward": list(range(dims)),
        "configurations": {"3d_fullres" if dims == 3 else "2d": configuration},
    }


def made_up_dataset_json(*, regions: bool = False, ignore_label: bool = False) -> dict[str, Any]:
    """A dataset.json with one channel and the labels 0, 1, 2 or the regions {1, 2}, {2}; the ignore label is 3."""
    content: dict[str, Any] = {
        "channel_names": {"0": "MRI"},
        "labels": dict(REGIONS if regions else LABELS),
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    if ignore_label:
        content["labels"]["ignore"] = 3
    if regions:
        content["regions_class_order"] = [1, 2]
    return content


def make_trainer(trainer: type, plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str = "") -> Any:
    """An object of a trainer class, on the CPU, for fold 0. nnU-Net's three folders must be set."""
    plans = deepcopy(plans)
    configuration = configuration or next(iter(plans["configurations"]))
    plans["continue_training"] = False
    return trainer(
        plans=plans,
        configuration=configuration,
        fold=0,
        dataset_json=deepcopy(dataset_json),
        device=torch.device("cpu"),
    )


@cache
def stock_class_modules() -> dict[str, str]:
    """Every class of nnU-Net's trainer package and the module that defines it, read from the sources."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    found = {}
    for file in sorted(root.rglob("*.py")):
        module = ".".join((PACKAGE, *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name] = module
    return found


def stock_class(name: str) -> Any:
    """A trainer class of nnU-Net by its name."""
    return getattr(importlib.import_module(stock_class_modules()[name]), name)
