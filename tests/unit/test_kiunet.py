"""KiU-Net: the paper's network to the parameter, both branches and their exchange, life in nnU-Net."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import re
import tomllib
import weakref
from pathlib import Path
from typing import Any

import nnplug
import pytest
import torch
from nnplug import NnplugError
from nnplug.networks.network import configure_plans, dry_run
from nnplug.training.trainer import build_trainer_class
from nnplug_kiunet.blocks import CrossResidualFusion, Layers
from nnplug_kiunet.ki_branch import plan_ki_branch
from nnplug_kiunet.network import KiUNet
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from support.monai_networks import STRIDES, one_thread, plan_of, shapes_of  # noqa: F401
from support.stock_trainers import made_up_dataset_json, made_up_plans, make_trainer
from torch import nn

PRESETS: dict[str, dict[str, Any]] = {
    name: dict(nnplug.resolve(name).config.network_builder.kwargs)
    for name in ("kiunet", "kiunet_conv", "kiunet_minimal", "kiunet_large")
}
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "kiunet.md").read_text(encoding="utf-8")
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
STOCK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
# (strides, patch): one configuration of each kind that nnU-Net plans
SHAPES = [("isotropic", (24, 16)), ("isotropic", (16, 24, 16)), ("anisotropic", (8, 16, 32))]
TWO_STAGES = {
    "n_stages": 2,
    "features_per_stage": 4,
    "kernel_sizes": 3,
    "strides": [1, 2],
    "n_conv_per_stage": 2,
    "n_conv_per_stage_decoder": 1,
}
BATCH_NORM = {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}, "nonlin": "torch.nn.ReLU"}


def build(patch: tuple[int, ...], kind: str = "isotropic", *, deep_supervision: bool = False, **more: Any) -> nn.Module:
    """As stock nnU-Net builds it from a plans file, in tiny."""
    torch.manual_seed(0)
    arch_kwargs = plan_of(len(patch), kind) | more
    name = "nnplug_kiunet.network.KiUNet"
    return get_network_from_plans(name, arch_kwargs, IMPORTED, 1, 3, deep_supervision=deep_supervision)


def image_of(patch: tuple[int, ...], batch_size: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 1, *patch, generator=torch.Generator().manual_seed(1))


def train_once(network: nn.Module, image: torch.Tensor) -> list[str]:
    """Trainable parameters that a step leaves without a finite gradient."""
    output = network.train()(image)
    outputs = output if isinstance(output, list) else [output]
    sum(2.0**-i * t.float().square().mean() for i, t in enumerate(outputs)).backward()
    trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    return [name for name, p in trainable if p.grad is None or not p.grad.isfinite().all()]


def maps_of(network: nn.Module, image: torch.Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Name of every layer that makes a feature map, and (C, *size) of the map, as they are called."""
    maps: list[tuple[str, tuple[int, ...]]] = []
    for name, module in network.named_modules():
        if not any(module.children()):
            module.register_forward_hook(lambda _, __, output, name=name: maps.append((name, tuple(output.shape[1:]))))
    network(image)
    return maps


# --- the paper's network ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_network() -> KiUNet:
    """A 2D plan with the recipe of the documents applied."""
    [recipe] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    settings = tomllib.loads(recipe)
    component = settings.pop("network_builder")
    builder = nnplug.Component(component.pop("use"), **component)
    resolved = nnplug.resolve(nnplug.TrainerConfig(**settings, network_builder=builder))
    plans = configure_plans(made_up_plans(patch_size=(32, 32)), "2d", resolved)
    architecture = plans["configurations"]["2d"]["architecture"]
    assert architecture["network_class_name"] == "nnplug_kiunet.network.KiUNet"
    torch.manual_seed(1)
    return get_network_from_plans(*architecture.values(), 1, 2, deep_supervision=False)


def test_with_the_papers_settings_it_has_the_papers_parameters(paper_network: KiUNet) -> None:
    assert sum(p.numel() for p in paper_network.parameters()) == 216_546
    assert {type(m) for m in paper_network.modules()} >= {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Upsample}
    assert train_once(copy.deepcopy(paper_network), image_of((16, 24), 2)) == []


def test_with_the_papers_settings_its_maps_are_the_papers(paper_network: KiUNet) -> None:
    """Channels and sizes of the paper's table for an image of 32x32; conv, resize, norm, activation in that order."""
    called = maps_of(copy.deepcopy(paper_network), image_of((32, 32), 2))
    maps = dict(called)

    def stage(name: str) -> list[tuple[int, ...]]:
        parts = [(part.removeprefix(f"{name}."), shape) for part, shape in called if part.startswith(f"{name}.")]
        assert [part for part, _ in parts] == ["conv", "all_modules.1", "norm", "nonlin"]
        return [shape for _, shape in parts]

    def squares(channels: int, before: int, after: int) -> list[tuple[int, ...]]:
        return [(channels, before, before)] + [(channels, after, after)] * 3

    for level, channels in enumerate((16, 32, 64)):
        small, large = 32 >> level, 32 << level
        assert stage(f"encoder.u_stages.{level}.0") == squares(channels, small, small // 2)
        assert stage(f"encoder.ki_stages.{level}") == squares(channels, large, large * 2)
        assert maps[f"encoder.fusions.{level}.from_u.nonlin"] == (channels, small // 2, small // 2)
        assert maps[f"encoder.fusions.{level}.from_ki.nonlin"] == (channels, large * 2, large * 2)
    for level, channels in enumerate((8, 16, 32)):
        small, large = 32 >> level, 32 << level
        assert stage(f"decoder.u_stages.{level}") == squares(channels, small // 2, small)
        assert stage(f"decoder.ki_stages.{level}") == squares(channels, large * 2, large)
    assert [f"decoder.fusions.{index}.from_ki.nonlin" in maps for index in range(3)] == [True, True, False]
    assert maps["decoder.fusions.0.from_ki.nonlin"] == (16, 64, 64)
    assert maps["decoder.fusions.1.from_u.nonlin"] == (32, 8, 8)
    assert maps["decoder.seg_layers.0"] == (2, 32, 32)


def test_with_the_papers_settings_it_computes_what_the_paper_says(paper_network: KiUNet) -> None:
    """The whole pass once more, written out: both branches, exchange, skips, the sum at the end."""
    network, x = copy.deepcopy(paper_network).eval(), image_of((16, 24), 2)
    encoder, decoder = network.encoder, network.decoder

    def resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    def exchanged(fusion: nn.Module, u: torch.Tensor, ki: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return u + resized(fusion.from_ki(ki), u), ki + resized(fusion.from_u(u), ki)

    with torch.no_grad():
        u = ki = x
        skips = []
        for level in range(3):
            u, ki = encoder.u_stages[level](u), encoder.ki_stages[level](ki)
            u, ki = exchanged(encoder.fusions[level], u, ki)
            skips.append((u, ki))
        for level in (2, 1):
            u, ki = decoder.u_stages[level](u), decoder.ki_stages[level](ki)
            u, ki = exchanged(decoder.fusions[level - 1], u, ki)
            u, ki = u + skips[level - 1][0], ki + skips[level - 1][1]
        expected = decoder.seg_layers[0](decoder.u_stages[0](u) + decoder.ki_stages[0](ki))
        torch.testing.assert_close(network(x), expected)
        assert expected.min() < 0 < expected.max(), "raw logits"


# --- the Ki branch ---------------------------------------------------------------------------------------------------


def layers_of(dims: int) -> Layers:
    conv_op, norm_op = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[dims - 2]
    return Layers(conv_op, True, norm_op, {"affine": True}, None, None, nn.LeakyReLU, {"inplace": True})


def test_the_exchange_goes_both_ways_at_once_and_widens_where_maps_are_small() -> None:
    fusion = CrossResidualFusion(layers_of(3), 8, 3, (3, 3, 3), (1, 3, 3))
    u, ki = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 3, 12, 16, 20)
    new_u, new_ki = fusion(u.clone(), ki.clone())
    shrunk = nn.functional.interpolate(fusion.from_ki(ki), (3, 4, 5), mode="trilinear")
    torch.testing.assert_close(new_u, u + fusion.widen(shrunk))
    torch.testing.assert_close(new_ki, ki + nn.functional.interpolate(fusion.from_u(u), (12, 16, 20), mode="trilinear"))
    convolutions = {tuple(m.weight.shape) for m in fusion.modules() if isinstance(m, nn.Conv3d)}
    assert convolutions == {(3, 8, 3, 3, 3), (3, 3, 1, 3, 3), (8, 3, 1, 1, 1)}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("kind", "patch"), SHAPES)
def test_the_ki_branch_is_finer_than_the_patch_and_keeps_its_cap(
    kind: str, patch: tuple[int, ...], preset: str
) -> None:
    wide = {"features_per_stage": [32, 48, 64, 64]}
    with torch.device("meta"):
        network = build(patch, kind, deep_supervision=True, **wide, **PRESETS[preset])
        maps = maps_of(network, torch.empty(1, 1, *patch))
    cap = PRESETS[preset].get("max_ki_memory", 32)
    fine = [(name, shape) for name, shape in maps if math.prod(shape[1:]) > math.prod(patch)]
    assert fine
    for name, (channels, *size) in fine:
        assert all(side >= own for side, own in zip(size, patch, strict=True)), name
        assert channels * math.prod(size) <= cap * math.prod(patch), name
        assert channels <= 32, f"{name}: wide layers never sit at the highest resolution"
    num_stages = PRESETS[preset].get("num_ki_stages", 3)
    assert len(network.encoder.ki_stages) == len(network.decoder.ki_stages) == num_stages
    ends = [shape for name, shape in maps if re.fullmatch(r"(en|de)coder\.ki_stages\.\d+\.nonlin", name)]
    sizes = [math.prod(size) for _, *size in ends]
    assert all(size > math.prod(patch) for size in sizes[:-1])
    assert ends[-1][1:] == patch, "it returns to the patch's size at its end and not before"


I2, I3 = [(1, 1), *[(2, 2)] * 7], [(1, 1, 1), *[(2, 2, 2)] * 5]
FLAT = [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    ("strides", "settings", "growth", "features"),
    [
        (I3, {}, [(2, 2, 2), (1, 1, 1), (1, 1, 1)], (4,) * 4),
        (I3[:3], {}, [(2, 2, 2), (1, 1, 1)], (4,) * 3),
        (I3[:2], {}, [(2, 2, 2)], (4,) * 2),
        (I2, {}, [(2, 2), (1, 1), (1, 1)], (8,) * 4),
        (I2, {"max_ki_memory": 1024}, [(2, 2), (1, 1), (1, 1)], (32,) * 4),
        (I2, {"max_ki_growth": 8, "max_ki_memory": 100}, [(2, 2)] * 3, (1,) * 4),
        (I2, {"max_ki_growth": 4, "max_ki_memory": 100}, [(2, 2), (2, 2), (1, 1)], (6,) * 4),
        (FLAT, {}, [(1, 2, 2), (1, 1, 1), (2, 1, 1)], (4,) * 4),
        (FLAT, {"num_ki_stages": 2}, [(1, 2, 2), (1, 1, 1)], (8,) * 3),
        (FLAT, {"max_ki_growth": 4, "max_ki_memory": 64}, [(1, 2, 2), (1, 2, 2), (2, 1, 1)], (2,) * 4),
        ([(1, 1), (3, 3), (2, 4)], {}, [(2, 2), (1, 1)], (8,) * 3),
        ([(1, 1), (3, 3), (2, 4)], {"max_ki_growth": 8, "max_ki_memory": 72}, [(3, 3), (2, 2)], (2,) * 3),
        ([(1, 1), (1, 1), (2, 2), (2, 2)], {}, [(2, 2), (1, 1), (1, 1)], (8,) * 4),
        (I3, {"ki_features": 3}, [(2, 2, 2), (1, 1, 1), (1, 1, 1)], (3,) * 4),
        (I3, {"max_ki_memory": 31.5}, [(2, 2, 2), (1, 1, 1), (1, 1, 1)], (3,) * 4),
        (I3, {"ki_features": [4, 4, 2, 2]}, [(2, 2, 2), (1, 1, 1), (1, 1, 1)], (4, 4, 2, 2)),
    ],
)
def test_the_ki_branch_grows_by_the_plans_strides(
    strides: list[tuple[int, ...]],
    settings: dict[str, Any],
    growth: list[tuple[int, ...]],
    features: tuple[int, ...],
) -> None:
    settings = {"num_ki_stages": 3, "max_ki_growth": 2, "max_ki_memory": 32} | settings
    branch = plan_ki_branch(strides, 32, **settings)
    assert branch.growth == tuple(growth)
    assert branch.features == features


def test_levels_below_the_ki_branch_are_the_u_branchs_own() -> None:
    deep = {"n_stages": 5, "features_per_stage": [4, 4, 6, 8, 10], "kernel_sizes": 3, "strides": [1, 2, 2, 2, 2]}
    plan = {**deep, "n_conv_per_stage": 1, "n_conv_per_stage_decoder": [1, 2, 1, 3]}
    network = build((32, 32), deep_supervision=True, num_ki_stages=2, **plan)
    assert shapes_of(network(image_of((32, 32)))) == [(1, 3, side, side) for side in (32, 16, 8, 4)]
    assert [len(part.u_stages) for part in (network.encoder, network.decoder)] == [4, 4]
    assert [len(part.ki_stages) for part in (network.encoder, network.decoder)] == [2, 2]
    assert [len(part.fusions) for part in (network.encoder, network.decoder)] == [2, 1]
    # nnU-Net counts the decoder's convolutions from the coarsest level, here the lists begin with the finest
    convs = [len(r.convs) if hasattr(r, "convs") else 0 for r in network.decoder.refinements]
    assert convs == [2, 0, 1, 0]
    assert train_once(network, image_of((32, 32))) == []


@pytest.mark.parametrize("pool", ["max", "conv"])
def test_both_branches_shrink_by_pooling_or_by_strided_convolutions(pool: str) -> None:
    network = build((16, 16, 16), pool=pool)
    pools = [module.stride for module in network.modules() if isinstance(module, nn.MaxPool3d)]
    strided = [m.stride for m in network.modules() if isinstance(m, nn.Conv3d) and math.prod(m.stride) > 1]
    # three levels of the U branch, one stage of the Ki branch
    assert (pools, strided) == (([(2, 2, 2)] * 4, []) if pool == "max" else ([], [(2, 2, 2)] * 4))


# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("kind", "patch"), SHAPES)
def test_outputs_are_those_of_nnunets_own_network(kind: str, patch: tuple[int, ...], preset: str) -> None:
    network, image = build(patch, kind, deep_supervision=True, **PRESETS[preset]), image_of(patch, 2)
    stock = get_network_from_plans(STOCK, plan_of(len(patch), kind), IMPORTED, 1, 3, deep_supervision=True)
    assert shapes_of(network(image)) == shapes_of(stock(image))
    assert len(stock(image)) == 3
    assert train_once(network, image) == []


def test_kernels_and_channels_are_the_plans() -> None:
    kernels = [[1, 3, 3], [3, 3, 5], [3, 5, 3], [5, 3, 3]]
    network = build((8, 16, 16), "anisotropic", features_per_stage=[4, 6, 8, 10], kernel_sizes=kernels)
    shapes = [stage[0].conv.weight.shape for stage in network.encoder.u_stages]
    assert [list(shape[2:]) for shape in shapes] == kernels[1:]
    assert [list(stage.conv.kernel_size) for stage in network.decoder.u_stages] == kernels[1:]
    assert [list(r.convs[0].conv.kernel_size) for r in network.decoder.refinements] == kernels[:3]
    assert [shape[0] for shape in shapes] == [6, 8, 10]
    assert [len(stage[1].convs) for stage in network.encoder.u_stages] == [1, 1, 1]
    of_ki = {s.conv.kernel_size for part in (network.encoder, network.decoder) for s in part.ki_stages}
    assert of_ki == {(1, 3, 3)}
    assert [head.in_channels for head in network.decoder.seg_layers] == [4, 6, 8]
    assert isinstance(network.encoder.ki_stages[0].norm, nn.InstanceNorm3d)


def test_residual_encoder_plans_are_taken() -> None:
    plans = made_up_plans(patch_size=(16, 16, 16))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    del architecture["arch_kwargs"]["n_conv_per_stage"]
    architecture["arch_kwargs"]["n_blocks_per_stage"] = [1, 3, 4, 6]
    configured = configure_plans(plans, "3d_fullres", nnplug.resolve("kiunet"))
    architecture = configured["configurations"]["3d_fullres"]["architecture"]
    assert "n_blocks_per_stage" not in architecture["arch_kwargs"]
    network = get_network_from_plans(*architecture.values(), 1, 3, deep_supervision=True)
    assert len(network(image_of((16, 16, 16)))) == 3


@pytest.mark.parametrize("pool", ["max", "conv"])
@pytest.mark.parametrize(("kind", "patch"), [("isotropic", (25, 17)), ("isotropic", (11, 18, 23)),
                                             ("anisotropic", (9, 17, 31))])  # fmt: skip
def test_odd_sizes_are_rounded_up_as_by_strided_convolutions(kind: str, patch: tuple[int, ...], pool: str) -> None:
    sizes = [patch]
    for stride in plan_of(len(patch), kind)["strides"][1:3]:
        sizes.append(tuple(-(-side // s) for side, s in zip(sizes[-1], stride, strict=True)))
    network = build(patch, kind, deep_supervision=True, pool=pool)
    assert [shape[2:] for shape in shapes_of(network(image_of(patch)))] == sizes
    assert train_once(network, image_of(patch)) == []


def test_where_a_side_was_rounded_up_the_maps_keep_their_places() -> None:
    """The U branch's map of 5 voxels covers 10 of a patch with 9: the tenth is dropped, nothing is stretched."""
    network, seen = build((9, 9), **TWO_STAGES), {}
    network.decoder.u_stages[0].register_forward_hook(lambda _, __, output: seen.update(u=output))
    network.decoder.ki_stages[0].register_forward_hook(lambda _, __, output: seen.update(ki=output))
    output = network(image_of((9, 9)))
    assert seen["u"].shape == (1, 4, 10, 10)
    expected = network.decoder.seg_layers[0](seen["u"][..., :9, :9] + seen["ki"])
    torch.testing.assert_close(output, expected)


def test_two_stages_are_enough() -> None:
    network = build((8, 8), deep_supervision=True, **TWO_STAGES)
    assert shapes_of(network(image_of((8, 8)))) == [(1, 3, 8, 8)]
    assert train_once(network, image_of((8, 8))) == []


def test_fewer_outputs_can_be_asked_for() -> None:
    network, image = build((16, 16), deep_supervision=True, num_outputs=1), image_of((16, 16))
    assert shapes_of(network(image)) == [(1, 3, 16, 16)]
    assert len(network.decoder.seg_layers) == 1
    network.decoder.deep_supervision = False
    assert network(image).shape == (1, 3, 16, 16)


# --- life in nnU-Net -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [{}, BATCH_NORM], ids=["instance", "batch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_of_one_trains_every_parameter(preset: str, norm: dict[str, Any]) -> None:
    image = image_of((16, 16, 16))
    supervised = build((16, 16, 16), deep_supervision=True, **PRESETS[preset], **norm)
    assert all(p.requires_grad for p in supervised.parameters())
    assert train_once(supervised, image) == []
    alone = build((16, 16, 16), **PRESETS[preset], **norm)
    assert train_once(alone, image) == []
    frozen = {name for name, p in alone.named_parameters() if not p.requires_grad}
    assert frozen == {f"decoder.seg_layers.{level}.{kind}" for level in (1, 2) for kind in ("weight", "bias")}


@pytest.mark.parametrize(("kind", "patch"), SHAPES)
def test_deep_supervision_is_a_switch_that_changes_nothing_else(kind: str, patch: tuple[int, ...]) -> None:
    on, image = build(patch, kind, deep_supervision=True).eval(), image_of(patch)
    outputs = on(image)
    off = build(patch, kind).eval()
    nn.init.ones_(off.decoder.seg_layers[0].weight)
    off.load_state_dict(on.state_dict(), strict=True)
    on.load_state_dict(off.state_dict(), strict=True)
    assert torch.equal(off(image), outputs[0])
    on.decoder.deep_supervision = False
    assert torch.equal(on(image), outputs[0])
    assert not on.decoder.seg_layers[1].weight.requires_grad
    for network in (on, off):
        network.decoder.deep_supervision = True
        assert all(torch.equal(a, b) for a, b in zip(network(image), outputs, strict=True))
        assert all(p.requires_grad for p in network.parameters())


def test_convolutions_are_initialised_as_nnunets() -> None:
    network = build((16, 16, 16), features_per_stage=[32, 32, 32, 32], max_ki_memory=128)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert all(not module.bias.any() for module in convolutions)
    large = [module for module in convolutions if module.weight.numel() > 5000]
    assert {module.out_channels for module in large} == {16, 32}
    for module in large:
        fan_in = module.weight[0].numel()
        assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


def test_it_can_be_copied_and_pickled_after_a_step_and_is_freed_without_garbage_collection() -> None:
    network, image = build((16, 16), deep_supervision=True), image_of((16, 16))
    train_once(network, image)
    twins = [copy.deepcopy(network.eval()), pickle.loads(pickle.dumps(network))]
    assert all(torch.equal(twin(image)[0], network(image)[0]) for twin in twins)
    gone = weakref.ref(network)
    gc.disable()
    try:
        del network
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("patch", [(16, 16), (16, 16, 16)])
def test_mixed_precision(patch: tuple[int, ...]) -> None:
    network = build(patch, deep_supervision=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert {t.dtype for t in network(image_of(patch))} == {torch.bfloat16}
        assert train_once(network, image_of(patch)) == []


def test_it_compiles_in_one_piece_and_the_switch_still_works() -> None:
    three = {"n_stages": 3, "features_per_stage": 4, "kernel_sizes": 3, "strides": [1, 2, 2]}
    once = {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}
    network, image = build((15, 16), deep_supervision=True, **three, **once), image_of((15, 16))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), network(image))
    network.decoder.deep_supervision = False
    torch.testing.assert_close(compiled(image), network(image))


@pytest.mark.parametrize("cap", [32, 128])
def test_narrow_convolutions_have_the_layout_that_is_fast_on_a_cpu(cap: int) -> None:
    network = build((16, 16, 16), features_per_stage=16, max_ki_memory=cap)
    network.load_state_dict(copy.deepcopy(network.state_dict()))
    layouts: dict[bool, set[bool]] = {True: set(), False: set()}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d) and math.prod(module.kernel_size) > 1 and module.in_channels > 1:
            is_fast = module.weight.is_contiguous(memory_format=torch.channels_last_3d)
            layouts["ki_stages" in name or "from_ki" in name].add(is_fast)
    assert layouts == {True: {cap == 32}, False: {False}}, "4 channels, or 16"


@pytest.mark.parametrize("patch", [(16, 24), (16, 8, 8)])
@pytest.mark.parametrize("pool", ["max", "conv"])
def test_gradients_have_the_strides_of_their_parameters(patch: tuple[int, ...], pool: str) -> None:
    """Otherwise DDP warns at every start, and copies."""
    network = build(patch, deep_supervision=True, pool=pool)
    train_once(network, image_of(patch, 2))
    others = [name for name, value in network.named_parameters() if value.grad.stride() != value.stride()]
    assert others == []


def test_memory_estimate_counts_convolutions_and_interpolations() -> None:
    one = {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}
    network = build((8, 16, 16), num_ki_stages=1, max_ki_memory=16, **one)  # two channels in the Ki branch
    before = copy.deepcopy(network.state_dict())
    estimate = network.compute_conv_feature_map_size((8, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    voxels = [8 * 16 * 16 // 8**level for level in range(4)]
    encoder = 8 * voxels[0] + 8 * voxels[1] + 8 * voxels[2]  # pooled after the convolution
    decoder = 8 * (voxels[3] + voxels[2]) + 8 * (voxels[2] + voxels[1]) + 4 * (voxels[1] + voxels[0])
    ki = 2 * (voxels[0] + 8 * voxels[0]) + 2 * 8 * voxels[0]
    fusion = 2 * voxels[1] + 2 * 8 * voxels[0] + 8 * voxels[1]
    assert estimate == encoder + decoder + ki + fusion + 4 * voxels[0] + 3 * voxels[0]  # 1x1 to the U branch, head
    with torch.device("meta"):
        other = build((8, 16, 16), num_ki_stages=1, max_ki_memory=16, **one)
    assert other.compute_conv_feature_map_size((8, 16, 16)) == estimate


def test_it_says_how_fine_and_how_large_its_ki_branch_is() -> None:
    wide = {"features_per_stage": 32, "n_conv_per_stage": 1}
    with torch.device("meta"):
        text = build((8, 16, 16), "anisotropic", num_ki_stages=2, max_ki_memory=35, **wide).extra_repr()
    assert text == ("Ki branch: 2x2x2 times the patch, 4 channels, largest map 32 channels of the patch's size, cap 35")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_stages": 1}, "needs a plan with two stages or more; this one has 1."),
        ({"strides": 2}, "works at full resolution first; the plan's first stride is [2, 2], not 1."),
        ({"strides": 1}, "needs a plan with a stride above 1: the Ki branch grows where the other one shrinks."),
        ({"kernel_sizes": [3, 3, 3, 2]}, "needs odd kernel sizes; the plan has [[3, 3], [3, 3], [3, 3], [2, 2]]."),
        ({"strides": [1, 2, 2]}, "needs 4 strides for this plan, or one for all; got 3."),
        (
            {"n_conv_per_stage_decoder": [2] * 4},
            "needs 3 n_conv_per_stage_decoder for this plan, or one for all; got 4.",
        ),
        (
            {"n_conv_per_stage": [2, 2, 2, 0]},
            "needs n_conv_per_stage of whole numbers from 1 on; the plan has [2, 2, 2, 0].",
        ),
        ({"pool": "avg"}, "has no pool=avg. It takes: max, conv."),
        ({"num_ki_stages": 0}, "needs num_ki_stages of 1 or more, not 0."),
        ({"max_ki_growth": 1}, "needs a max_ki_growth of 2 or more, not 1: the Ki branch is the finer one."),
        ({"num_outputs": 4}, "has 1 to 3 outputs with this plan; num_outputs is 4."),
        (
            {"ki_features": [4, 4]},
            "needs 4 whole numbers from 1 on as ki_features, one a level of the Ki branch; got [4, 4].",
        ),
        (
            {"ki_features": 2.5},
            "needs 4 whole numbers from 1 on as ki_features, one a level of the Ki branch; got [2.5, 2.5, 2.5, 2.5].",
        ),
        ({"max_ki_growth": 2.5}, "needs a max_ki_growth of 2 or more, not 2.5: the Ki branch is the finer one."),
        ({"max_ki_memory": "many"}, "needs a max_ki_memory above 0, not 'many'."),
        ({"max_ki_memory": math.nan}, "needs a max_ki_memory above 0, not nan."),
        ({"num_ki_stages": True}, "needs num_ki_stages of 1 or more, not True."),
        ({"num_outputs": 1.5}, "has 1 to 3 outputs with this plan; num_outputs is 1.5."),
        (
            {"n_conv_per_stage": "two"},
            "needs n_conv_per_stage of whole numbers from 1 on; the plan has ['t', 'w', 'o'].",
        ),
        ({"strides": [1, 0, 2, 2]}, "needs strides of whole numbers from 1 on; the plan has [1, 0, 2, 2]."),
        (
            {"max_ki_growth": 8},
            "needs max_ki_memory=64 for a Ki branch of 1 channels that grows 8x8-fold; it is 32. "
            "Set that, or a lower max_ki_growth.",
        ),
        (
            {"ki_features": [8, 16, 32, 64], "max_ki_growth": 8},
            "needs max_ki_memory=4096 for a Ki branch of 64 channels that grows 8x8-fold; it is 32. "
            "Set that, or a lower max_ki_growth.",
        ),
    ],
)  # fmt: skip
def test_refusals_say_what_is_needed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NnplugError, match=f"^{re.escape(message)}$"):
        build((16, 16), **changes)


def test_a_patch_that_shrinks_to_one_voxel_is_refused_with_one_that_fits() -> None:
    reason = "KiU-Net needs a side that is larger: 4x8x8 voxels become one at its coarsest level"
    with pytest.raises(ValueError, match=f"^{reason}$"):
        build((4, 7, 8), "anisotropic")(image_of((4, 7, 8)))
    assert build((4, 9, 8), "anisotropic")(image_of((4, 9, 8))).shape == (1, 3, 4, 9, 8)
    common = {"trainer": "kiunet", "num_input_channels": 1, "num_classes": 3, "batch_size": 2, "deep_supervision": True}
    with pytest.raises(NnplugError) as caught:
        dry_run(lambda patch, on: build(patch, deep_supervision=on), patch_size=(7, 8), **common)
    assert str(caught.value) == (
        "The network of 'kiunet' can not take a patch of 7x8 (KiU-Net needs a side that is larger: 8x8 voxels become "
        "one at its coarsest level). A size that fits: +patch_size=16x16"
    )


# --- trainers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(16, 16, 16), (16, 24)])
@pytest.mark.parametrize("name", PRESETS)
def test_trainer_changes_the_network_only(
    name: str, patch: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("nnUNet_raw", "nnUNet_results", "nnUNet_preprocessed"):
        monkeypatch.setenv(folder, str(tmp_path))
    config = nnplug.resolve(name).config
    assert set(config.set_fields()) == {"name", "description", "source", "network_builder"}
    trainer = make_trainer(
        build_trainer_class(nnplug.resolve(name)), made_up_plans(patch_size=patch), made_up_dataset_json()
    )
    monkeypatch.setattr(trainer_module, "infer_dataset_class", lambda _: None)  # there is no data
    trainer.initialize()
    assert trainer.num_epochs == 1000
    assert isinstance(trainer.network, KiUNet)
    assert len(trainer.network.encoder.ki_stages) == PRESETS[name].get("num_ki_stages", 3)


def test_the_ki_branches_in_the_documents_are_those_that_are_built() -> None:
    """The table "Resolution and cap" of docs/kiunet.md: resolution and channels by preset for some plans."""
    table = PAGE.partition("## Resolution and cap")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| ([\d, x]+) \| ([\dx]+) \| `(\w+)` \| ([\dx]+) \| (\d+) \| ([\d.]+) MiB \|$", table, re.MULTILINE
    )
    assert len(rows) >= 12
    assert {row[2] for row in rows} == set(PRESETS)
    for strides, patch, preset, resolution, channels, size in rows:
        steps = [tuple(map(int, step.split("x"))) for step in strides.split(", ")]
        settings = {"num_ki_stages": 3, "max_ki_growth": 2, "max_ki_memory": 32}
        settings |= {key: value for key, value in PRESETS[preset].items() if key in settings}
        branch = plan_ki_branch([tuple(1 for _ in steps[0]), *steps], 32, **settings)
        assert "x".join(map(str, branch.resolution)) == resolution
        assert set(branch.features) == {int(channels)}
        voxels = math.prod(int(side) * r for side, r in zip(patch.split("x"), branch.resolution, strict=True))
        assert float(size) == pytest.approx(4 * int(channels) * voxels / 2**20, abs=0.5)
