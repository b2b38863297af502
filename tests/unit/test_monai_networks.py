"""MONAI's networks in nnU-Net: outputs, gradients, the deep-supervision switch, what comes from the plan."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from monai.networks.nets.mednext import create_mednext
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from support.monai_networks import (
    CASES,
    IN_2D,
    STRIDES,
    SUPERVISED,
    SUPERVISED_CASES,
    TINY,
    Case,
    build,
    build_case,
    build_tiny,
    case_id,
    image_of,
    one_thread,  # noqa: F401
    plan_of,
    shapes_of,
)
from torch import nn


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
from support import monai_networks as tests

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
    command = [sys.executable, "-c", DDP_STEPS, str(tmp_path / "store"), str(Path(__file__).parents[1])]
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
