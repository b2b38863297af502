"""MONAI's networks, built the way stock nnU-Net builds them from a plans file."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from monai.networks import nets
from monai.networks.nets.mednext import create_mednext
from nnplug import NnplugError
from nnplug_monai.patch_rule import PatchRule
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

TINY = {
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1, 1]},
    "segresnetds": {"init_filters": 4, "blocks_down": [1, 1, 1, 1]},
    "swinunetr": {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4},
    "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
    "attentionunet": {},
    "dynunet": {},
    "mednext": {"init_filters": 4},
    "basicunetplusplus": {"features": [4, 4, 4, 4, 4, 4]},
    "vnet": {},
}
SUPERVISED = ("segresnetds", "dynunet", "mednext", "basicunetplusplus")
STRIDES = {
    "isotropic": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "anisotropic": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def plan_of(dims: int, strides: str = "isotropic", **changes: Any) -> dict[str, Any]:
    """``arch_kwargs`` as nnU-Net's planner writes them."""
    taken = [stride[-dims:] for stride in STRIDES[strides]]
    kernels = [[1 if s == 1 and i == 1 else 3 for s in stride] for i, stride in enumerate(taken)]
    arch_kwargs = {
        "n_stages": 4,
        "features_per_stage": [4, 8, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": kernels,
        "strides": taken,
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
    return arch_kwargs | changes


def build(
    name: str,
    patch: tuple[int, ...],
    *,
    deep_supervision: bool = False,
    num_channels: int = 1,
    num_classes: int = 3,
    plan: dict[str, Any] | None = None,
    **settings: Any,
) -> nn.Module:
    """Build as stock nnU-Net does: by dotted name, from JSON that holds only what the builder takes."""
    module = importlib.import_module(f"nnplug_monai.networks.{name}")
    accepted = inspect.signature(getattr(module, f"build_{name}")).parameters
    plan = plan_of(len(patch)) if plan is None else plan
    arch_kwargs = {key: value for key, value in (plan | {"patch_size": list(patch)}).items() if key in accepted}
    return get_network_from_plans(
        f"nnplug_monai.networks.{name}.build_{name}",
        json.loads(json.dumps(arch_kwargs | settings)),
        [key for key in ("conv_op", "norm_op", "dropout_op", "nonlin") if key in arch_kwargs],
        num_channels,
        num_classes,
        deep_supervision=deep_supervision,
    )


def build_tiny(name: str, patch: tuple[int, ...], **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, patch, **TINY[name], **kwargs)


def shapes_of(output: torch.Tensor | list[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in (output if isinstance(output, list) else [output])]


class Case(NamedTuple):
    name: str
    patch: tuple[int, ...]
    num_channels: int
    num_classes: int
    extra_outputs: list[tuple[int, ...]]
    """Spatial sizes of the outputs after the first with deep supervision."""


CASES = [
    Case("segresnet", (24, 16), 3, 2, []),
    Case("segresnet", (16, 24, 16), 1, 3, []),
    Case("segresnetds", (24, 16), 3, 2, [(12, 8), (6, 4)]),
    Case("segresnetds", (16, 24, 16), 1, 3, [(8, 12, 8), (4, 6, 4)]),
    Case("swinunetr", (64, 32), 3, 2, []),
    Case("swinunetr", (32, 64, 32), 1, 3, []),
    Case("unetr", (32, 16), 3, 2, []),
    Case("unetr", (16, 32, 16), 1, 3, []),
    Case("attentionunet", (24, 16), 3, 2, []),
    Case("attentionunet", (16, 24, 16), 1, 3, []),
    Case("dynunet", (24, 16), 3, 2, [(12, 8), (6, 4)]),
    Case("dynunet", (16, 24, 16), 1, 3, [(8, 12, 8), (4, 6, 4)]),
    Case("mednext", (32, 16), 3, 2, [(16, 8), (8, 4), (4, 2), (2, 1)]),
    Case("mednext", (16, 32, 16), 1, 3, [(8, 16, 8), (4, 8, 4), (2, 4, 2), (1, 2, 1)]),
    Case("basicunetplusplus", (35, 18), 3, 2, [(35, 18)] * 3),
    Case("basicunetplusplus", (17, 33, 16), 1, 3, [(17, 33, 16)] * 3),
    Case("vnet", (32, 16), 4, 2, []),
    Case("vnet", (16, 32, 16), 1, 3, []),
]
SUPERVISED_CASES = [case for case in CASES if case.name in SUPERVISED]
IN_2D = [case for case in SUPERVISED_CASES if len(case.patch) == 2]


def case_id(case: Case) -> str:
    return f"{case.name}-{len(case.patch)}d"


def image_of(case: Case, batch_size: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, case.num_channels, *case.patch, generator=torch.Generator().manual_seed(1))


def raises_value_error(message: str) -> Any:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def build_case(case: Case, **kwargs: Any) -> nn.Module:
    return build_tiny(case.name, case.patch, num_channels=case.num_channels, num_classes=case.num_classes, **kwargs)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_one_tensor_without_deep_supervision_and_a_batch_of_one_trains_every_parameter(case: Case) -> None:
    network = build_case(case).train()
    output = network(image_of(case))
    assert isinstance(output, torch.Tensor)
    assert output.shape == (1, case.num_classes, *case.patch)
    output.square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert without == frozen
    heads = {id(p) for head in network.extra_heads() for p in head.parameters()} if case.extra_outputs else set()
    assert {id(p) for p in network.parameters() if not p.requires_grad} == heads
    network.eval()
    assert shapes_of(network(image_of(case, batch_size=2))) == [(2, case.num_classes, *case.patch)]


@pytest.mark.parametrize("case", SUPERVISED_CASES, ids=case_id)
def test_deep_supervision_returns_every_resolution_and_trains_every_parameter(case: Case) -> None:
    network = build_case(case, deep_supervision=True)
    expected = [(1, case.num_classes, *size) for size in (case.patch, *case.extra_outputs)]
    for training in (False, True):
        output = network.train(training)(image_of(case))
        assert isinstance(output, list)
        assert shapes_of(output) == expected
    # weights as nnU-Net's, the last one small as under DDP
    weights = [2.0**-i for i in range(len(output) - 1)] + [1e-6]
    sum(w * t.square().sum() for w, t in zip(weights, output, strict=True)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("case", IN_2D, ids=case_id)
def test_deep_supervision_can_be_switched_at_any_time(case: Case) -> None:
    network, image = build_case(case, deep_supervision=True).eval(), image_of(case)
    assert network.deep_supervision is True
    outputs = network(image)
    network.deep_supervision = False
    assert network.deep_supervision is False
    torch.testing.assert_close(network(image), outputs[0], rtol=0, atol=0)
    network.deep_supervision = True
    assert all(p.requires_grad for p in network.parameters())
    for again, before in zip(network(image), outputs, strict=True):
        torch.testing.assert_close(again, before, rtol=0, atol=0)


@pytest.mark.parametrize("case", IN_2D, ids=case_id)
def test_state_dict_does_not_depend_on_deep_supervision(case: Case) -> None:
    on, off, image = build_case(case, deep_supervision=True), build_case(case), image_of(case)
    off.load_state_dict(on.state_dict(), strict=True)
    torch.testing.assert_close(off.eval()(image), on.eval()(image)[0], rtol=0, atol=0)
    on.load_state_dict(off.state_dict(), strict=True)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.patch) == 2], ids=case_id)
def test_network_can_be_copied_and_pickled_after_a_step(case: Case) -> None:
    network, image = build_case(case, deep_supervision=bool(case.extra_outputs)), image_of(case)
    first = network(image)
    (first[0] if isinstance(first, list) else first).sum().backward()
    network.eval()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert shapes_of(twin(image)) == shapes_of(network(image))
        with pytest.raises(ValueError, match=r"needs sides"):
            twin(image[..., :7])


# in a process of its own: taking down a process group beside other threads can wait for ever
DDP_STEPS = """
import os, sys
import torch
sys.path.insert(0, sys.argv[2])
import test_monai_networks as tests

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
for case in tests.IN_2D:
    network = torch.nn.parallel.DistributedDataParallel(tests.build_case(case).train())
    for _ in range(2):  # DDP complains at the second step of what the first left without a gradient
        network(tests.image_of(case)).sum().backward()
    print(case.name, flush=True)
os._exit(0)
"""


def test_ddp_accepts_every_network_without_deep_supervision(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DDP_STEPS, str(tmp_path / "store"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [case.name for case in IN_2D]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", TINY)
def test_default_settings_run_on_meta_tensors_at_a_real_patch(name: str, dims: int) -> None:
    patch = (64, 64, 64)[:dims]
    plan = plan_of(dims, features_per_stage=[32, 64, 128, 256])
    with torch.device("meta"), torch.no_grad():
        network = build(name, patch, deep_supervision=name in SUPERVISED, plan=plan).train()
        output = network(torch.empty(2, 1, *patch))
    assert all(p.device.type == "meta" for p in network.parameters())
    assert shapes_of(output)[0] == (2, 3, *patch)


# --- the same network as MONAI's ------------------------------------------------------------------------------------


def monai_twin(name: str) -> nn.Module:
    common = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
    if name == "segresnetds":
        return nets.SegResNetDS(**common, init_filters=4, blocks_down=(1, 1, 1, 1), dsdepth=3)
    if name == "mednext":
        return nets.MedNeXt(
            **common, init_filters=4, kernel_size=3, use_residual_connection=True, deep_supervision=True
        )
    if name == "basicunetplusplus":
        return nets.BasicUNetPlusPlus(**common, features=(4,) * 6, deep_supervision=True)
    return nets.DynUNet(
        **common,
        kernel_size=[[3, 3]] * 4,
        strides=[[1, 1], [2, 2], [2, 2], [2, 2]],
        upsample_kernel_size=[[2, 2]] * 3,
        filters=[4, 8, 8, 8],
        deep_supervision=True,
        deep_supr_num=2,
    )


@pytest.mark.parametrize("name", SUPERVISED)
def test_outputs_are_those_of_monai_with_the_same_weights(name: str) -> None:
    torch.manual_seed(2)
    theirs, image = monai_twin(name).train(), torch.randn(2, 1, 32, 48)
    ours = build_tiny(name, (32, 48), deep_supervision=True).train()
    lost = ours.load_state_dict(theirs.state_dict(), strict=name != "dynunet")
    assert lost.missing_keys == []
    assert all(key.startswith("skip_layers.") for key in lost.unexpected_keys)
    got, wanted = ours(image), theirs(image)
    if name == "dynunet":
        wanted = torch.unbind(wanted, dim=1)
        got = [nn.functional.interpolate(t, (32, 48)) for t in got]
    elif name == "basicunetplusplus":
        wanted = wanted[::-1]
    assert len(got) == len(wanted)
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("variant", ["S", "B", "M", "L"])
def test_mednext_variants_are_those_of_monai(variant: str) -> None:
    with torch.device("meta"):
        theirs = create_mednext(variant, spatial_dims=3, out_channels=3, deep_supervision=True)
        ours = build("mednext", (32, 32, 32), variant=variant)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


# --- what comes from the plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", STRIDES)
def test_dynunet_has_the_outputs_of_nnunets_own_network(strides: str) -> None:
    plan, patch = plan_of(3, strides), (16, 32, 16)
    stock = get_network_from_plans(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        plan,
        ["conv_op", "norm_op", "nonlin"],
        1,
        3,
        deep_supervision=True,
    )
    image = torch.zeros(1, 1, *patch)
    ours = build("dynunet", patch, plan=plan, deep_supervision=True)
    assert shapes_of(ours(image)) == shapes_of(list(stock(image)))
    assert ours.downsamples[0].conv1.conv.kernel_size == ((1, 3, 3) if strides == "anisotropic" else (3, 3, 3))


def test_dynunet_takes_normalisation_and_activation_of_the_plan() -> None:
    plan = plan_of(2, norm_op="torch.nn.BatchNorm2d", norm_op_kwargs={"eps": 0.1}, nonlin="torch.nn.ReLU")
    block = build("dynunet", (16, 16), plan=plan).input_block
    assert isinstance(block.norm1, nn.BatchNorm2d)
    assert block.norm1.eps == 0.1
    assert isinstance(block.lrelu, nn.ReLU)
    plan["norm_op"] = "torch.nn.SyncBatchNorm"
    network = build("dynunet", (16, 16), plan=plan)
    assert isinstance(network.input_block.norm1, nn.SyncBatchNorm)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 3, 16, 16)
    block = build("dynunet", (16, 16), plan=plan, norm_name=["group", {"num_groups": 2}], act_name="gelu").input_block
    assert isinstance(block.norm1, nn.GroupNorm)
    assert isinstance(block.lrelu, nn.GELU)


@pytest.mark.parametrize("strides", STRIDES)
def test_attentionunet_takes_channels_and_strides_of_the_plan(strides: str) -> None:
    plan, patch = plan_of(3, strides, features_per_stage=[4, 6, 8, 10]), (8, 16, 16)
    network = build("attentionunet", patch, plan=plan)
    assert network.channels == (4, 6, 8, 10)
    assert network.strides == [tuple(stride) for stride in STRIDES[strides][1:]]
    assert network(torch.zeros(2, 1, *patch)).shape == (2, 3, *patch)
    assert network.patch_rule.divisor == ((4, 8, 8) if strides == "anisotropic" else (8, 8, 8))


def test_segresnetds_pools_coarse_axes_later() -> None:
    network = build_tiny("segresnetds", (4, 16, 16), deep_supervision=True, resolution=[4.0, 1.0, 1.0])
    assert network.patch_rule.divisor == (2, 8, 8)
    assert shapes_of(network(torch.zeros(2, 1, 4, 16, 16)))[1:] == [(2, 3, 4, 8, 8), (2, 3, 4, 4, 4)]


def test_fewer_outputs_can_be_asked_for() -> None:
    image = torch.zeros(2, 1, 16, 16)
    for name, setting in (("segresnetds", {"dsdepth": 2}), ("dynunet", {"deep_supr_num": 1})):
        network = build_tiny(name, (16, 16), deep_supervision=True, **setting)
        assert shapes_of(network(image)) == [(2, 3, 16, 16), (2, 3, 8, 8)]
        network = build_tiny(name, (16, 16), **setting)
        assert network(image).shape == (2, 3, 16, 16)


def test_settings_given_by_the_caller_stay_as_they_are() -> None:
    from nnplug_monai.networks.segresnetds import build_segresnetds

    norm: list[Any] = ["instance", {}]
    build_segresnetds(1, 2, conv_op=nn.Conv2d, init_filters=4, norm=norm)
    assert norm == ["instance", {}]


def test_vnet_drops_whole_channels_in_2d() -> None:
    drops = [m for m in build_tiny("vnet", (32, 32)).modules() if isinstance(m, nn.Dropout2d | nn.Dropout3d)]
    assert drops
    torch.manual_seed(0)
    for drop in drops:
        kept = drop.train()(torch.ones(8, 32, 4, 4)).amax(dim=(2, 3)) > 0
        assert kept.any(dim=1).all(), "no sample loses all of its channels"
        assert not kept.all()


def test_unetr_has_no_parameters_of_a_cross_attention() -> None:
    assert not [name for name, _ in build_tiny("unetr", (16, 16)).named_parameters() if "cross" in name]


# --- patch sizes -----------------------------------------------------------------------------------------------------

SIZES_2D = [(8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (32, 64), (24, 24), (48, 16), (17, 32), (15, 64), (20, 20)]


@pytest.mark.parametrize("name", [name for name in TINY if name != "unetr"])
def test_patch_rule_is_exact(name: str) -> None:
    """What the rule refuses fails in MONAI's own code, and what it lets through runs."""
    taken = []
    with torch.device("meta"), torch.no_grad():
        network = build_tiny(name, (64, 64))
        rule = network.patch_rule
        network._forward_pre_hooks.clear()
        for size in SIZES_2D:
            try:  # nnU-Net predicts one patch at a time
                outputs = network.train()(torch.empty(2, 1, *size)), network.eval()(torch.empty(1, 1, *size))
                runs = all(output.shape[2:] == size for output in outputs)
            except (RuntimeError, ValueError):
                runs = False
            try:
                rule.check(size)
            except ValueError:
                assert not runs, f"{size} runs and is refused"
            else:
                assert runs, f"{size} is let through and fails"
                taken.append(size)
    assert taken
    assert len(taken) < len(SIZES_2D)


def test_unetr_patch_rule_is_exact() -> None:
    for size in SIZES_2D:
        with torch.device("meta"), torch.no_grad():
            theirs = nets.UNETR(1, 3, size, 4, 12, 12, 2, spatial_dims=2) if min(size) >= 16 else None
            try:
                runs = theirs is not None and theirs(torch.empty(2, 1, *size)).shape == (2, 3, *size)
            except (RuntimeError, ValueError):
                runs = False
            try:
                build_tiny("unetr", size)(torch.empty(2, 1, *size))
                assert runs, size
            except ValueError:
                assert not runs, size


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("segresnet", (40, 56, 44), "SegResNet needs sides that are multiples of 8"),
        ("swinunetr", (40, 56, 40), "SwinUNETR needs sides that are multiples of 32"),
        ("swinunetr", (32, 32, 32), "SwinUNETR needs a side of at least 64: its coarsest level has one voxel"),
        ("vnet", (40, 56, 40), "VNet needs sides that are multiples of 16"),
        ("mednext", (40, 56, 40), "MedNeXt needs sides that are multiples of 16"),
        ("mednext", (16, 16), "MedNeXt needs a side of at least 32: its coarsest level has one voxel"),
        ("basicunetplusplus", (15, 64), "BasicUNetPlusPlus needs sides of at least 16"),
        ("dynunet", (20, 16), "DynUNet needs sides that are multiples of 8"),
    ],
)
def test_message_on_a_patch_that_does_not_fit(name: str, patch: tuple[int, ...], message: str) -> None:
    with torch.device("meta"), raises_value_error(message):
        build_tiny(name, patch)(torch.empty(2, 1, *patch))


def test_message_names_the_sides_of_an_anisotropic_plan() -> None:
    with raises_value_error("DynUNet needs sides that are multiples of 4x8x8"):
        build("dynunet", (6, 16, 16), plan=plan_of(3, "anisotropic"))(torch.zeros(2, 1, 6, 16, 16))


def test_unetr_refuses_a_patch_it_was_not_built_for() -> None:
    with raises_value_error("UNETR needs sides that are multiples of 16"):
        build_tiny("unetr", (40, 56, 40))
    network = build_tiny("unetr", (32, 16))
    with raises_value_error("UNETR was built for patches of 32x16 and takes no other size"):
        network(torch.zeros(1, 1, 16, 32))


def test_rule_is_readable_on_the_network() -> None:
    assert build_tiny("vnet", (32, 32)).patch_rule == PatchRule("VNet", (16, 16))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TINY if name not in SUPERVISED])
def test_deep_supervision_is_refused_where_there_is_one_output(name: str) -> None:
    with pytest.raises(NnplugError) as caught:
        build_tiny(name, (64, 64), deep_supervision=True)
    assert str(caught.value).startswith("has no deep supervision: ")
    assert str(caught.value).endswith(" has one output. Use enable_deep_supervision=false.")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "vnet",
            {"num_channels": 3},
            "can not have 3 input channels: VNet repeats the image to 16 and takes 1, 2, 4, 8 or 16.",
        ),
        (
            "unetr",
            {"patch_size": None},
            "needs to know the patch size, and the plan's arch_kwargs do not hold patch_size.",
        ),
        ("mednext", {"variant": "XL"}, "comes in the sizes S, B, M and L; network_builder.variant is 'XL'."),
        ("mednext", {"kernel_size": 4}, "needs an odd kernel; network_builder.kernel_size is 4."),
        (
            "mednext",
            {"blocks_up": [1, 1]},
            "needs as many levels up as down; network_builder.blocks_up has 2 entries, blocks_down 4.",
        ),
        ("segresnetds", {"dsdepth": 9}, "can have 1 to 3 outputs; network_builder.dsdepth is 9."),
        ("segresnetds", {"blocks_down": [1]}, "needs at least two levels: network_builder.blocks_down has one entry."),
        (
            "dynunet",
            {"deep_supr_num": 3},
            "has 4 stages and so 1 to 2 extra outputs; network_builder.deep_supr_num is 3.",
        ),
        ("dynunet", {"strides": [[1, 1], [2, 2]]}, "needs a plan with at least three stages; this one has 2."),
        (
            "dynunet",
            {"strides": [[2, 2], [2, 2], [2, 2], [2, 2]]},
            "works at full resolution first; the plan's first stride is [2, 2], not 1.",
        ),
        (
            "attentionunet",
            {"strides": [[2, 2], [2, 2], [2, 2], [2, 2]]},
            "works at full resolution first; the plan's first stride is [2, 2], not 1.",
        ),
        ("attentionunet", {"features_per_stage": [8]}, "needs a plan with at least two stages; this one has one."),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        build(name, (32, 32), **(TINY[name] | arguments))
    assert str(caught.value) == message


def test_refusals_of_the_plan() -> None:
    with pytest.raises(NnplugError) as caught:
        build("vnet", (32, 32), plan=plan_of(2, conv_op="torch.nn.Conv1d"))
    assert str(caught.value) == "works with the conv_op Conv2d or Conv3d; the plan has Conv1d."
    with pytest.raises(NnplugError) as caught:
        build("dynunet", (32, 32), plan=plan_of(2, norm_op="torch.nn.LayerNorm"))
    assert str(caught.value) == (
        "can not take the plan's norm_op LayerNorm. Name MONAI's layer: network_builder.norm_name=batch"
    )
