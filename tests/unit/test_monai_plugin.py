"""The plug-in as nnplug sees it: what is registered, and what becomes of it in a plan."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import nnplug
import nnplug_monai
import pytest
import torch
from nnplug.composition.references import load
from nnplug.loss_contract import LossContext
from nnplug.networks.network import configure_plans, dry_run
from nnplug.training.losses import build_loss, supervision_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

SUPERVISED = {"monai_segresnetds", "monai_dynunet", "monai_mednext", "monai_basicunetplusplus"}
NETWORKS = SUPERVISED | {
    "monai_segresnet",
    "monai_swinunetr",
    "monai_unetr",
    "monai_attentionunet",
    "monai_vnet",
}
LOSSES = {
    "monai_generalized_dice",
    "monai_dice_focal",
    "monai_tversky",
    "monai_soft_cldice",
    "monai_hausdorff_dt",
}


def registered() -> dict[str, nnplug.TrainerConfig]:
    found: list[nnplug.TrainerConfig] = []
    nnplug_monai.register_trainers(found.append)
    assert len({config.name for config in found}) == len(found)
    return {config.name: config for config in found}


def test_listing_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys, nnplug_monai; nnplug_monai.register_trainers(lambda config: None);"
        "print(sorted(sys.modules.keys() & {'torch', 'monai', 'nnunetv2', 'numpy'}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_every_network_and_loss_is_registered_and_can_be_imported() -> None:
    configs = registered()
    assert configs.keys() == NETWORKS | LOSSES
    for config in configs.values():
        assert config.description
        assert config.source
        for component in (config.network_builder, config.loss_fn):
            if component is not None:
                assert callable(load(component.target, trusted=False))


def test_networks_set_no_more_than_the_network() -> None:
    for name, config in registered().items():
        fields = {"network_builder"} if name in NETWORKS else {"loss_fn"}
        if name in NETWORKS - SUPERVISED:
            assert config.enable_deep_supervision is False
            fields |= {"enable_deep_supervision"}
        if name == "monai_basicunetplusplus":
            assert config.compile is False
            fields |= {"compile"}
        assert nnplug.resolve(config).as_dict().keys() == fields | {"name"}


def plans_of(dims: int, patch: tuple[int, ...]) -> dict[str, Any]:
    """Plans like those of Task04_Hippocampus, the channels aside."""
    arch_kwargs = {
        "n_stages": 4,
        "features_per_stage": [4, 8, 16, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * 4,
        "strides": [[1] * dims] + [[2] * dims] * 3,
        "n_conv_per_stage": [2, 2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return {"configurations": {"c": {"patch_size": list(patch), "batch_size": 2, "architecture": architecture}}}


def try_in_plans(trainer: str, patch: tuple[int, ...], num_channels: int = 1) -> tuple[tuple[int, ...], ...]:
    """Output sizes of the network that the trainer puts into the plans."""
    resolved = nnplug.resolve(trainer)
    settings = configure_plans(plans_of(len(patch), patch), "c", resolved)["configurations"]["c"]
    architecture = settings["architecture"]

    def build(size: tuple[int, ...], deep_supervision: bool) -> torch.nn.Module:
        arch_kwargs = architecture["arch_kwargs"]
        if "patch_size" in arch_kwargs:
            arch_kwargs = arch_kwargs | {"patch_size": list(size)}
        return get_network_from_plans(
            architecture["network_class_name"],
            arch_kwargs,
            architecture["_kw_requires_import"],
            num_channels,
            3,
            deep_supervision=deep_supervision,
        )

    outputs = dry_run(
        build,
        trainer=resolved.name,
        num_input_channels=num_channels,
        num_classes=3,
        patch_size=tuple(settings["patch_size"]),
        batch_size=settings["batch_size"],
        deep_supervision=resolved.config.enable_deep_supervision is not False,
    )
    return outputs.sizes


@pytest.mark.parametrize(
    ("trainer", "patch", "num_outputs"),
    [
        ("monai_segresnet", (40, 56, 40), 1),
        ("monai_segresnetds+network_builder.init_filters=8", (40, 56, 40), 3),
        ("monai_swinunetr+network_builder.feature_size=12", (64, 32, 32), 1),
        ("monai_unetr+network_builder.hidden_size=24+network_builder.mlp_dim=24", (48, 64, 48), 1),
        ("monai_attentionunet", (40, 56, 40), 1),
        ("monai_dynunet", (40, 56, 40), 3),
        ("monai_dynunet+no_deep_supervision", (40, 56, 40), 1),
        ("monai_mednext+network_builder.init_filters=8", (48, 64, 48), 5),
        ("monai_basicunetplusplus", (40, 56, 40), 4),
        ("monai_vnet", (48, 64, 48), 1),
    ],
)
def test_network_runs_in_a_plan(trainer: str, patch: tuple[int, ...], num_outputs: int) -> None:
    for size in (patch, patch[:2]):
        sizes = try_in_plans(trainer, size)
        assert (len(sizes), sizes[0]) == (num_outputs, size)


@pytest.mark.parametrize(
    ("name", "rule", "fits"),
    [
        ("monai_mednext", "MedNeXt needs sides that are multiples of 16", "48x64x48"),
        ("monai_swinunetr", "SwinUNETR needs sides that are multiples of 32", "64x64x64"),
        ("monai_unetr", "UNETR needs sides that are multiples of 16", "48x64x48"),
        ("monai_vnet", "VNet needs sides that are multiples of 16", "48x64x48"),
    ],
)
def test_patch_of_the_hippocampus_plan_is_refused_with_the_rule_and_a_size_that_fits(
    name: str, rule: str, fits: str
) -> None:
    with pytest.raises(nnplug.NnplugError) as caught:
        try_in_plans(name, (40, 56, 40))
    assert rule in str(caught.value)
    assert str(caught.value).endswith(f"+patch_size={fits}")
    assert try_in_plans(f"{name}+patch_size={fits}", (40, 56, 40))[0] == tuple(map(int, fits.split("x")))


def test_refusals_read_as_one_sentence() -> None:
    with pytest.raises(nnplug.NnplugError) as caught:
        try_in_plans("monai_vnet", (48, 64, 48), num_channels=3)
    assert str(caught.value) == (
        "The network of 'monai_vnet' can not have 3 input channels: "
        "VNet repeats the image to 16 and takes 1, 2, 4, 8 or 16."
    )
    with pytest.raises(nnplug.NnplugError) as caught:
        try_in_plans("monai_segresnet+enable_deep_supervision=true", (40, 56, 40))
    assert "has no deep supervision: SegResNet has one output. Use enable_deep_supervision=false." in str(caught.value)
    with pytest.raises(nnplug.NnplugError, match="has no setting 'varaint'"):
        try_in_plans("monai_mednext+network_builder.varaint=L", (48, 64, 48))


@pytest.mark.parametrize("has_regions", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_takes_what_nnunet_hands_over(name: str, has_regions: bool) -> None:
    """Lists of outputs and of targets with an ignore label, as in training with deep supervision."""
    num_channels, sizes = (2, [(16, 12), (8, 6), (4, 3)]) if has_regions else (3, [(16, 12), (8, 6), (4, 3)])
    context = LossContext(num_classes=num_channels, spatial_dims=2, ignore_label=3, has_regions=has_regions)
    loss_fn = nnplug.resolve(name).config.loss_fn
    assert loss_fn is not None
    loss = build_loss(loss_fn, context, supervision_weights(3, last=1e-6))
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, num_channels, *size, generator=generator).requires_grad_() for size in sizes]
    labels = [torch.randint(0, 4, (2, 1, *size), generator=generator) for size in sizes]
    targets = [torch.cat([t > 0, t == 2, t == 3], dim=1) if has_regions else t.float() for t in labels]
    value = loss(outputs, targets)
    value.backward()
    assert torch.isfinite(value)
    for output, label in zip(outputs, labels, strict=True):
        assert output.grad is not None
        assert (output.grad[(label == 3).expand_as(output)] == 0).all()
        assert (output.grad != 0).any()


def test_settings_of_a_loss_reach_it() -> None:
    config = nnplug.resolve("monai_dynunet+monai_tversky+loss_fn.alpha=0.2+loss_fn.beta=0.8").config
    assert config.loss_fn is not None
    adapter = build_loss(config.loss_fn, LossContext(num_classes=2, spatial_dims=3), None)
    assert (adapter.loss.loss.alpha, adapter.loss.loss.beta) == (0.2, 0.8)
