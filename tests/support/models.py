"""Model folders without a training: nnU-Net's files around a small network with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURE: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


def make_plans(channels: Sequence[str] = ("MRI",), **changes: Any) -> dict[str, Any]:
    """Plans with a ``3d_fullres``; ``changes`` replaces entries of that configuration."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [12, 16, 16],
        "median_image_size_in_voxels": [14, 16, 18],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": RESAMPLING,
        "architecture": deepcopy(ARCHITECTURE),
        "batch_dice": False,
        **changes,
    }
    return {
        "dataset_name": "Dataset902_Made",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [14, 16, 18],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(index): {} for index, _ in enumerate(channels)},
    }


def make_dataset_json(channels: Sequence[str] = ("MRI",), ending: str = ".nii.gz") -> dict[str, Any]:
    return {
        "channel_names": {str(index): channel for index, channel in enumerate(channels)},
        "labels": {"background": 0, "ball": 1, "box": 2},
        "numTraining": 5,
        "file_ending": ending,
    }


def write_descriptions(folder: Path, plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> Path:
    """``plans.json`` and ``dataset.json`` of a model folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def write_checkpoint(path: Path, plans: Mapping[str, Any], dataset_json: Mapping[str, Any], **changes: Any) -> None:
    """What stock nnU-Net would save, with weights that depend on the fold's name; ``changes`` replaces entries."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    configuration = plans["configurations"]["3d_fullres"]
    architecture = configuration["architecture"]
    num_labels = len(dataset_json["labels"])
    # a cascade's second stage also sees one channel for each label of the first stage
    num_inputs = len(dataset_json["channel_names"]) + (num_labels - 1 if configuration.get("previous_stage") else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(path.parent.name.encode()))
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            num_inputs,
            num_labels,
            deep_supervision=True,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 1,
        "init_args": {
            "plans": dict(plans),
            "configuration": "3d_fullres",
            "fold": path.parent.name.removeprefix("fold_"),
            "dataset_json": dict(dataset_json),
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **changes,
    }
    torch.save(checkpoint, path)


def make_model_folder(
    folder: Path,
    folds: Sequence[int | str] = (0,),
    channels: Sequence[str] = ("MRI",),
    plans: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A model folder that nnU-Net predicts with; ``changes`` replaces entries of the checkpoints."""
    plans, dataset_json = plans or make_plans(channels), make_dataset_json(channels)
    write_descriptions(folder, plans, dataset_json)
    for fold in folds:
        write_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth", plans, dataset_json, **changes)
    return folder


def write_image(path: Path, seed: int = 0, shape: tuple[int, ...] = (14, 16, 18), spacing_mm: float = 1.0) -> Path:
    """An image of noise with a bright block, in any format that SimpleITK writes."""
    import SimpleITK as sitk

    rng = np.random.default_rng(seed)
    voxels = rng.normal(100, 10, shape)
    voxels[tuple(slice(4, 9) for _ in shape)] += 60
    image = sitk.GetImageFromArray(voxels.astype(np.float32))
    image.SetSpacing([spacing_mm] * len(shape))
    image.SetOrigin([-3.0] * len(shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), path.name.endswith((".nii.gz", ".nrrd")))
    return path
