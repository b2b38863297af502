"""UIU-Net: the paper's network to the parameter, the plan's shape, and what a network must do to live in nnU-Net."""

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
from nnplug.networks.network import configure_plans
from nnplug.training.trainer import build_trainer_class
from nnplug_uiunet.blocks import Grid, InteractiveCrossAttention, Layers, ResidualUBlock
from nnplug_uiunet.network import UIUNet
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from support.monai_networks import one_thread, plan_of, shapes_of  # noqa: F401
from support.stock_trainers import made_up_dataset_json, made_up_plans, make_trainer
from torch import nn

TRAINERS = ("uiunet", "uiunet_minimal")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "uiunet.md"
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
STOCK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
# (strides, patch): one configuration of each kind that nnU-Net plans
SHAPES = [("isotropic", (24, 16)), ("isotropic", (16, 24, 16)), ("anisotropic", (16, 32, 16))]
BATCH_NORM = {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}, "nonlin": "torch.nn.ReLU"}


def build(
    patch: tuple[int, ...],
    kind: str = "isotropic",
    *,
    deep_supervision: bool = False,
    num_classes: int = 3,
    **more: Any,
) -> nn.Module:
    """As stock nnU-Net builds it from a plans file, in tiny."""
    torch.manual_seed(0)
    plan = plan_of(len(patch), kind) | {"patch_size": list(patch)} | more
    unused = ("n_conv_per_stage", "n_conv_per_stage_decoder")
    arch_kwargs = {key: value for key, value in plan.items() if key not in unused}
    name = "nnplug_uiunet.network.UIUNet"
    return get_network_from_plans(name, arch_kwargs, IMPORTED, 1, num_classes, deep_supervision=deep_supervision)


def image_of(patch: tuple[int, ...], batch_size: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 1, *patch, generator=torch.Generator().manual_seed(1))


def train_once(network: nn.Module, image: torch.Tensor) -> list[str]:
    """Parameters that a step leaves without a finite gradient."""
    output = network.train()(image)
    outputs = output if isinstance(output, list) else [output]
    sum(2.0**-i * t.float().square().mean() for i, t in enumerate(outputs)).backward()
    return [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


# --- the paper's network ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_plans() -> dict[str, Any]:
    """A 2D plan with the recipe of the documents applied."""
    [recipe] = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    recipe = tomllib.loads(recipe)
    component = recipe.pop("network_builder")
    builder = nnplug.Component(component.pop("use"), **component)
    patch = tuple(recipe.pop("patch_size"))
    resolved = nnplug.resolve(nnplug.TrainerConfig(**recipe, network_builder=builder, patch_size=patch))
    return configure_plans(made_up_plans(patch_size=(32, 32)), "2d", resolved)["configurations"]["2d"]


@pytest.fixture(scope="module")
def paper_network(paper_plans: dict[str, Any]) -> UIUNet:
    architecture = paper_plans["architecture"]
    assert architecture["network_class_name"] == "nnplug_uiunet.network.UIUNet"
    with torch.device("meta"):
        return get_network_from_plans(*architecture.values(), 3, 1, allow_init=False, deep_supervision=True)


def test_with_the_papers_settings_it_has_the_papers_parameters(paper_network: UIUNet) -> None:
    assert sum(p.numel() for p in paper_network.parameters()) == 50_541_461
    # mid and out of every block, in the paper's order
    encoder = [(block.bottom.output_channels, block.project.output_channels) for block in paper_network.encoder.stages]
    assert encoder == [(32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512)]
    decoder = [(block.bottom.output_channels, block.project.output_channels) for block in paper_network.decoder.stages]
    assert decoder == [(16, 64), (32, 64), (64, 128), (128, 256), (256, 512)]
    assert len(paper_network.decoder.attentions) == 4
    assert {type(module) for module in paper_network.modules()} >= {nn.BatchNorm2d, nn.ReLU}
    assert all(module.bias is not None for module in paper_network.modules() if is_3x3_of_several(module))


def is_3x3_of_several(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels > 2


def test_with_the_papers_settings_its_blocks_are_the_papers(paper_network: UIUNet) -> None:
    blocks = [*paper_network.encoder.stages, *paper_network.decoder.stages]
    pools = [[pool.stride for pool in block.pools if isinstance(pool, nn.MaxPool2d)] for block in blocks]
    assert pools == [[(2, 2)] * n for n in (5, 4, 3, 2, 0, 0, 5, 4, 3, 2, 0)]  # an RSU-L pools L - 2 times
    for block, pooled in zip(blocks, pools, strict=True):
        down, bottom, up = (
            [conv.conv.dilation[0] for conv in part] for part in (block.encoder, [block.bottom], block.decoder)
        )
        ones = [1] * (len(pooled) + 1)
        assert (down, bottom, up) == ((ones, [2], ones) if pooled else ([1, 2, 4], [8], [4, 2, 1]))
        assert all(conv.conv.padding == conv.conv.dilation for conv in [*block.encoder, block.bottom, *block.decoder])


# --- blocks ----------------------------------------------------------------------------------------------------------


def layers_of(dims: int) -> Layers:
    conv_op, norm_op = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[dims - 2]
    return Layers(conv_op, True, norm_op, {"affine": True}, None, None, nn.ReLU, None)


def test_the_block_adds_its_u_net_to_its_first_convolution() -> None:
    block = ResidualUBlock(layers_of(2), 3, 4, 6, [Grid((1, 1), (3, 3)), *[Grid((2, 2), (3, 3))] * 2])
    x = torch.randn(1, 3, 13, 10)
    sizes = []
    for conv in (*block.encoder, block.bottom, *block.decoder):
        conv.register_forward_hook(lambda _, inputs, output: sizes.append((*inputs[0].shape[1:], output.shape[1])))
    projected, output = block.project(x), block(x)
    down = [(6, 13, 10, 4), (4, 7, 5, 4), (4, 4, 3, 4)]
    assert sizes == [*down, (4, 4, 3, 4), (8, 4, 3, 4), (8, 7, 5, 4), (8, 13, 10, 6)]
    block.decoder[-1] = nn.Identity()  # what the last convolution would get: the last level above, then its skip
    with pytest.raises(RuntimeError, match="size of tensor"):
        block(x)
    block.decoder[-1] = nn.Conv2d(8, 6, 1, bias=False)
    nn.init.zeros_(block.decoder[-1].weight)
    assert torch.equal(block(x), projected)
    assert not torch.equal(output, projected)


def test_attention_weighs_channels_of_the_skip_and_places_of_the_deeper_feature() -> None:
    torch.manual_seed(0)
    attention = InteractiveCrossAttention(layers_of(3), 6, 32, Grid((1, 1, 1), (3, 3, 3))).eval()
    attention.post = nn.Identity()
    high, low = torch.randn(2, 6, 4, 5, 6), torch.randn(2, 32, 4, 5, 6)

    def weights(high: torch.Tensor, low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the two halves were multiplied with."""
        weighted_high, weighted_low = attention(high, low).split(32, 1)
        aligned = attention.align(high)
        return torch.where(aligned.abs() > 1e-3, weighted_high / aligned, torch.nan), weighted_low / low

    places, channels = weights(high, low)
    first_place = channels[:, :, :1, :1, :1]
    torch.testing.assert_close(channels, first_place.expand_as(channels), rtol=1e-3, atol=1e-3)
    assert len(first_place.unique()) == first_place.numel(), "every channel has its own weight"
    same_for_all = places.nanmean(1, keepdim=True)
    torch.testing.assert_close(
        places, torch.where(places.isnan(), places, same_for_all), rtol=1e-3, atol=1e-3, equal_nan=True
    )
    assert same_for_all.nanmean() != same_for_all[:, :, :1].nanmean(), "places differ"
    for values in (channels, places[~places.isnan()]):  # 2 * sigmoid
        assert 0 < values.min() < 1 < values.max() < 2
    assert_close = torch.testing.assert_close
    assert_close(weights(high, torch.randn_like(low))[1], channels, rtol=1e-3, atol=1e-3)
    assert_close(weights(high.flip(2), low)[1], channels, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(weights(torch.randn_like(high), low)[1], channels, atol=1e-2)
    assert not torch.allclose(weights(high, torch.randn_like(low))[0], places, atol=1e-2, equal_nan=True)


def test_attention_finds_places_by_mean_and_maximum_over_channels() -> None:
    attention = InteractiveCrossAttention(layers_of(2), 6, 32, Grid((1, 1), (3, 3)))
    seen: dict[str, torch.Tensor] = {}
    attention.squeeze.register_forward_hook(lambda _, __, output: seen.update(squeezed=output))
    attention.spatial_weights.register_forward_hook(lambda _, inputs, __: seen.update(pooled=inputs[0]))
    attention(torch.randn(2, 6, 7, 5), torch.randn(2, 32, 7, 5))
    squeezed = seen["squeezed"]
    assert squeezed.shape[1] == 8
    assert torch.equal(seen["pooled"], torch.stack([squeezed.mean(1), squeezed.max(1).values], 1))


def test_attention_gets_the_interpolated_deeper_feature_and_the_skip() -> None:
    network, image = build((9, 16)), image_of((9, 16))
    seen: list[tuple[torch.Tensor, ...]] = []
    for attention in network.decoder.attentions:
        attention.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    deeper: list[torch.Tensor] = []
    for stage in network.decoder.stages:
        stage.register_forward_hook(lambda _, __, output: deeper.append(output))
    maps = network.encoder(image)
    network(image)
    assert [tuple(low.shape[2:]) for _, low in seen] == [(3, 4), (5, 8)]
    for (high, low), skip, below in zip(seen, [maps[2], maps[1]], [maps[3], deeper[0]], strict=True):
        assert torch.equal(low, skip)
        assert torch.equal(high, nn.functional.interpolate(below, skip.shape[2:], mode="bilinear"))


# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strides", "patch"), SHAPES)
def test_outputs_are_those_of_nnunets_own_network(strides: str, patch: tuple[int, ...]) -> None:
    network, image = build(patch, strides, deep_supervision=True), image_of(patch, 2)
    stock = get_network_from_plans(STOCK, plan_of(len(patch), strides), IMPORTED, 1, 3, deep_supervision=True)
    assert shapes_of(network(image)) == shapes_of(stock(image))
    assert len(stock(image)) == 3
    kernels = plan_of(len(patch), strides)["kernel_sizes"]
    assert [list(head.kernel_size) for head in network.decoder.side_heads] == kernels
    assert [list(conv.conv.kernel_size) for conv in network.encoder.stages[0].encoder][:2] == kernels[:2]


def test_blocks_pool_as_the_plan_does_while_four_voxels_remain() -> None:
    def pools(patch: tuple[int, ...] | None, strides: str = "isotropic", **plan: Any) -> list[list[tuple[int, ...]]]:
        network = build(patch or (16, 16, 16), strides, **({} if patch else {"patch_size": None}), **plan)
        blocks = network.encoder.stages
        return [[p.stride for p in block.pools if not isinstance(p, nn.Identity)] for block in blocks]

    assert "poolings inside the blocks by stage: 2, 0, 0, 0" in repr(build((16, 32, 32)))
    two = (2, 2, 2)
    assert pools(None) == pools((40, 56, 40)) == [[two] * 3, [two] * 2, [], []]
    assert pools((16, 32, 32)) == [[two] * 2, [], [], []]
    assert pools((8, 32, 32)) == [[], [], [], []]
    assert pools((16, 32, 32), "anisotropic") == [[(1, 2, 2), two, two], [two, two], [], []]


def test_dilations_reach_half_of_the_map_at_most() -> None:
    block = build((40, 56, 40)).encoder.stages[-1]
    assert [conv.conv.dilation for conv in (*block.encoder, block.bottom)] == [
        (1, 1, 1), (2, 2, 2), (2, 3, 2), (2, 3, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("patch", [(25, 17), (11, 18, 23)])
def test_odd_sizes_are_rounded_up_as_by_strided_convolutions(patch: tuple[int, ...]) -> None:
    half = tuple(-(-side // 2) for side in patch)
    quarter = tuple(-(-side // 2) for side in half)
    output = build(patch, deep_supervision=True)(image_of(patch))
    assert [shape[2:] for shape in shapes_of(output)] == [patch, half, quarter]


SMALL = {
    "n_stages": 6,
    "features_per_stage": [4, 8, 8, 8, 8, 8],
    "kernel_sizes": [3] * 6,
    "strides": [1, 2, 2, 2, 2, 2],
}


@pytest.mark.parametrize("norm", [{}, BATCH_NORM], ids=["instance", "batch"])
@pytest.mark.parametrize("side", [16, 32])
def test_a_patch_that_shrinks_to_one_voxel_trains_with_a_batch_of_one(side: int, norm: dict[str, Any]) -> None:
    network = build((side,) * 3, deep_supervision=True, **SMALL, **norm)
    assert train_once(network, image_of((side,) * 3)) == []
    output = network.eval()(image_of((side,) * 3, 2))
    assert [shape[2] for shape in shapes_of(output)] == [-(-side // 2**stage) for stage in range(5)]


def test_two_stages_are_enough() -> None:
    two = {"n_stages": 2, "features_per_stage": 8, "kernel_sizes": 3, "strides": [1, 2]}
    network = build((8, 8), deep_supervision=True, **two)
    assert shapes_of(network(image_of((8, 8)))) == [(1, 3, 8, 8)]
    assert train_once(network, image_of((8, 8))) == []


# --- life in nnU-Net -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [{}, BATCH_NORM], ids=["instance", "batch"])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_a_batch_of_one_trains_every_parameter(deep_supervision: bool, norm: dict[str, Any]) -> None:
    network = build((16, 16, 16), deep_supervision=deep_supervision, **norm)
    assert train_once(network, image_of((16, 16, 16))) == []
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("strides", "patch"), SHAPES)
def test_deep_supervision_is_a_switch_that_changes_nothing_else(strides: str, patch: tuple[int, ...]) -> None:
    on, image = build(patch, strides, deep_supervision=True).eval(), image_of(patch)
    outputs = on(image)
    off = build(patch, strides, num_classes=3).eval()
    nn.init.ones_(off.decoder.fuse.weight)
    off.load_state_dict(on.state_dict(), strict=True)
    on.load_state_dict(off.state_dict(), strict=True)
    assert torch.equal(off(image), outputs[0])
    on.decoder.deep_supervision = False
    assert torch.equal(on(image), outputs[0])
    off.decoder.deep_supervision = True
    assert all(torch.equal(a, b) for a, b in zip(off(image), outputs, strict=True))


def test_the_output_is_the_1x1_convolution_of_all_interpolated_sides() -> None:
    network, image = build((9, 12, 16), deep_supervision=True).eval(), image_of((9, 12, 16))
    sides: list[torch.Tensor] = []
    for head in network.decoder.side_heads:
        head.register_forward_hook(lambda _, __, output: sides.append(output))
    output, *others = network(image)
    assert len(sides) == 4
    assert others == [sides[2], sides[1]]  # the heads run from the bottleneck up
    size = image.shape[2:]
    stacked = torch.cat([nn.functional.interpolate(side, size, mode="trilinear") for side in reversed(sides)], 1)
    torch.testing.assert_close(output, network.decoder.fuse(stacked))
    assert output.min() < 0 < output.max(), "raw logits"


def test_convolutions_are_initialised_as_nnunets() -> None:
    network = build((16, 16, 16), features_per_stage=[32, 32, 32, 32])
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert all(not module.bias.any() for module in convolutions if module.bias is not None)
    for module in convolutions:
        if module.weight.numel() > 5000:
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


@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 16)])
def test_mixed_precision(patch: tuple[int, ...]) -> None:
    network = build(patch, deep_supervision=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert {t.dtype for t in network(image_of(patch))} == {torch.bfloat16}
        assert train_once(network, image_of(patch)) == []


def test_it_compiles_in_one_piece_and_the_switch_still_works() -> None:
    three = {"n_stages": 3, "features_per_stage": [4, 8, 8], "kernel_sizes": 3, "strides": [1, 2, 2]}
    network, image = build((16, 16), deep_supervision=True, **three), image_of((16, 16))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), network(image))
    network.decoder.deep_supervision = False
    torch.testing.assert_close(compiled(image), network(image))


def test_memory_estimate_counts_convolutions_and_interpolations() -> None:
    network = build((8, 8, 8), **BATCH_NORM)
    before = copy.deepcopy(network.state_dict())
    estimate = network.compute_conv_feature_map_size((8, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    counted = 0

    def count(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(count)
    network(image_of((8, 16, 16)))
    voxels = [8 * 16 * 16 // 8**stage for stage in range(4)]
    fused = 3 * sum(voxels) + 3 * voxels[0] * 3  # the fusion at every side's size, three interpolations to the patch
    # in tiny, blocks do not pool; each decoder stage gets the interpolation of what is below
    below = 8 * voxels[2] + 8 * voxels[1] + 4 * voxels[0]
    assert estimate == counted + fused + below
    with torch.device("meta"):
        assert build((8, 8, 8), **BATCH_NORM).compute_conv_feature_map_size((8, 16, 16)) == estimate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_stages": 1}, "needs a plan with two stages or more; this one has 1."),
        ({"strides": 2}, "needs a plan whose first stride is 1, not (2, 2): its output has the patch's size."),
        ({"kernel_sizes": [3, 3, 3, 2]}, "needs odd kernel sizes; the plan has [(3, 3), (3, 3), (3, 3), (2, 2)]."),
        ({"strides": [1, 2, 2]}, "needs one of strides for each of the plan's 4 stages, not 3."),
        ({"width": 0}, "needs a width above 0, not 0."),
        (
            {"encoder_inner_features": [4]},
            "needs 4 whole numbers from 1 on as encoder_inner_features for this plan, not [4].",
        ),
        (
            {"encoder_inner_features": 3},
            "needs 4 whole numbers from 1 on as encoder_inner_features for this plan, not [3].",
        ),
        ({"width": "wide"}, "needs a width above 0, not 'wide'."),
        ({"width": math.nan}, "needs a width above 0, not nan."),
        ({"width": True}, "needs a width above 0, not True."),
        ({"strides": [1, 0, 2, 2]}, "needs strides of whole numbers from 1 on; the plan has [1, 0, 2, 2]."),
        (
            {"decoder_inner_features": [4, 0, 4]},
            "needs 3 whole numbers from 1 on as decoder_inner_features for this plan, not [4, 0, 4].",
        ),
    ],
)
def test_refusals_say_what_is_needed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NnplugError, match=f"^{re.escape(message)}$"):
        build((16, 16), **changes)


# --- trainers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_results", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.mark.parametrize("patch", [(16, 16, 16), (16, 24)])
@pytest.mark.parametrize("name", TRAINERS)
def test_trainer_changes_the_network_only(
    name: str, patch: tuple[int, ...], folders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = nnplug.resolve(name).config
    changed = {field for field in config.__dataclass_fields__ if getattr(config, field) not in (None, ())}
    assert changed == {"name", "description", "source", "network_builder"}
    trainer = make_trainer(
        build_trainer_class(nnplug.resolve(name)), made_up_plans(patch_size=patch), made_up_dataset_json()
    )
    monkeypatch.setattr(trainer_module, "infer_dataset_class", lambda _: None)  # there is no data
    trainer.initialize()
    assert trainer.num_epochs == 1000
    assert isinstance(trainer.network, UIUNet)
    width = 0.5 if name == "uiunet_minimal" else 1
    features = [stage.project.output_channels for stage in trainer.network.encoder.stages]
    assert features == [width * count for count in (4, 8, 8, 8)]
    assert trainer.configuration_manager.network_arch_init_kwargs["patch_size"] == list(patch)
    assert trainer._get_deep_supervision_scales() == [[2.0**-i] * len(patch) for i in range(3)]


def test_a_plan_that_can_not_be_taken_stops_the_training_with_its_name(folders: None) -> None:
    plans = made_up_plans()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][0] = [1, 2, 2]
    trainer = make_trainer(build_trainer_class(nnplug.resolve("uiunet")), plans, made_up_dataset_json())
    with pytest.raises(NnplugError, match=r"^The network of 'uiunet' needs a plan whose first stride is 1"):
        trainer.initialize()
