"""Parameters, multiply-adds, memory and the diagram of networks. B batch, C channels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnplug.networks import diagram as network_diagram
from nnplug.networks.report import save_diagram, summarise, summary_text
from torch import nn

FLOAT = 4
N, D, HEADS = 64, 32, 4
ATTENTION = N * D * 3 * D + N * D * D + 2 * N * N * D


class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x_BND).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(-2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k), -1) @ v


class FusedAttention(EinsumAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)


class TwoHeads(nn.Module):
    """An encoder that the decoder holds too, and two outputs, as nnU-Net's networks have with deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.decoder = nn.Module()
        self.decoder.encoder = self.encoder
        self.decoder.head = nn.Conv2d(4, 2, 1)
        self.decoder.unused = nn.Conv2d(4, 2, 1)

    def forward(self, x_BC: torch.Tensor) -> list[torch.Tensor]:
        logits_BC = self.decoder.head(self.encoder(x_BC))
        return [logits_BC, nn.functional.avg_pool2d(logits_BC, 2)]


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        return self.conv(x_BC) if x_BC.sum().item() == 0 else x_BC


def nnunet(kind: str, device: str = "meta", **settings: Any) -> nn.Module:
    from dynamic_network_architectures.architectures import unet

    blocks = {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}
    if kind == "ResidualEncoderUNet":
        blocks = {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": 1}
    settings = {
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "strides": [1, 2, 2, 2, 2, 2],
        "deep_supervision": True,
        **blocks,
        **settings,
    }
    with torch.device(device):
        return getattr(unet, kind)(
            input_channels=1,
            n_stages=len(settings["strides"]),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            num_classes=3,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            **settings,
        )


def monai(kind: str) -> nn.Module:
    from monai.networks import nets

    if kind == "UNet":
        return nets.UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)
    return nets.SwinUNETR(1, 3, feature_size=24)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "PlainConvUNet": (lambda: nnunet("PlainConvUNet"), (2, 1, 128, 128, 128)),
    "ResidualEncoderUNet": (lambda: nnunet("ResidualEncoderUNet"), (2, 1, 128, 128, 128)),
    "UNet": (lambda: monai("UNet"), (2, 1, 64, 64, 64)),
    "SwinUNETR": (lambda: monai("SwinUNETR"), (2, 1, 64, 64, 64)),
}
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program dot is not installed")


# Multiply-adds


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("network", "input_shape", "multiply_adds"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 16, 16), 2 * 16**2 * 8 * 3 * 9),
        (nn.Conv3d(4, 8, 3, stride=2, padding=1), (2, 4, 16, 16, 16), 2 * 8**3 * 8 * 4 * 27),
        (nn.Conv3d(8, 8, 3, padding=1, groups=8), (2, 8, 8, 8, 8), 2 * 8**3 * 8 * 27),
        (nn.ConvTranspose3d(8, 4, 2, 2), (2, 8, 8, 8, 8), 2 * 8**3 * 8 * 4 * 8),
        (nn.ConvTranspose2d(8, 8, 2, 2, groups=4), (2, 8, 8, 8), 2 * 8**2 * 8 * 2 * 4),
        (nn.Linear(32, 16), (2, 10, 32), 2 * 10 * 32 * 16),
        (nn.InstanceNorm3d(4, affine=True), (2, 4, 8, 8, 8), 0),
        (EinsumAttention(), (2, N, D), 2 * ATTENTION),
        (FusedAttention(), (2, N, D), 2 * ATTENTION),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_multiply_adds(network: nn.Module, input_shape: tuple[int, ...], multiply_adds: int, device: str) -> None:
    summary = summarise(network, input_shape, device)
    assert summary.problem is None
    assert summary.multiply_adds == multiply_adds


def test_layers_add_up() -> None:
    summary = summarise(nnunet("PlainConvUNet"), (2, 1, 64, 64, 64))
    by_name = {layer.name: layer for layer in summary.layers}
    assert by_name["encoder"].num_parameters + by_name["decoder"].num_parameters == summary.num_parameters
    parts = [layer for layer in summary.layers if layer.depth == 1]
    assert [part.name for part in parts] == ["encoder", "decoder"]
    assert sum(part.multiply_adds or 0 for part in parts) == summary.multiply_adds
    first = by_name["encoder.stages.0.0.convs.0.conv"]
    assert (first.kind, first.depth, first.num_parameters) == ("Conv3d", 7, 32 * 27 + 32)
    assert first.multiply_adds == 2 * 64**3 * 32 * 27
    assert by_name["decoder.stages"].output_shape is None
    heads_and_upsampling = by_name["decoder.transpconvs"].multiply_adds + by_name["decoder.seg_layers"].multiply_adds
    assert by_name["decoder.stages"].multiply_adds + heads_and_upsampling == by_name["decoder"].multiply_adds
    assert first.output_shape == (2, 32, 64, 64, 64)


def test_shared_and_unused_modules() -> None:
    summary = summarise(TwoHeads(), (2, 1, 8, 8))
    layers = {layer.name: (layer.num_parameters, layer.multiply_adds, layer.output_shape) for layer in summary.layers}
    assert layers["encoder"] == (48, 2 * 64 * 36, (2, 4, 8, 8))
    assert layers["decoder"] == (20, 2 * 64 * 8, None)
    assert layers["decoder.head"] == (10, 2 * 64 * 8, (2, 2, 8, 8))
    assert layers["decoder.unused"] == (10, 0, None)
    assert summary.num_parameters == 68


def test_module_called_twice_counts_twice() -> None:
    conv = nn.Conv2d(2, 2, 1)
    summary = summarise(nn.Sequential(conv, nn.ReLU(), conv), (1, 2, 4, 4))
    assert summary.num_parameters == 6
    assert summary.layers[0].multiply_adds == summary.multiply_adds == 2 * 16 * 4


# Memory


def test_activation_bytes_are_what_autograd_keeps() -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(inplace=True)
    )
    input_values, feature_values, statistics = 2 * 8**3, 2 * 4 * 8**3, 3 * (2 * 4)
    # The convolution keeps its input; the norm its input, mean, deviation, repeated weight; the activation its output.
    summary = summarise(network, (2, 1, 8, 8, 8))
    assert summary.activation_bytes == FLOAT * (input_values + 2 * feature_values + statistics)
    assert summary.parameter_bytes == FLOAT * summary.num_parameters == FLOAT * (4 * 27 + 4 + 8)


def test_kept_storage_counts_once() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.requires_grad_().exp()
            return y * y.view(-1).view_as(y)

    assert summarise(Square(), (2, 100)).activation_bytes == FLOAT * 200


def test_meta_and_real_pass_keep_the_same() -> None:
    network = nnunet("PlainConvUNet", "cpu", features_per_stage=[4, 8], strides=[1, 2])
    on_meta, on_cpu = (summarise(network, (2, 1, 16, 16, 16), device) for device in ("meta", "cpu"))
    assert on_meta == on_cpu
    assert on_meta.activation_bytes > 16**3 * FLOAT * 2 * 4


def test_fused_attention_keeps_no_scores() -> None:
    scores = FLOAT * 2 * HEADS * N * N
    fused = summarise(FusedAttention(), (2, N, D)).activation_bytes
    spelt_out = summarise(EinsumAttention(), (2, N, D)).activation_bytes
    assert fused is not None
    assert spelt_out is not None
    assert fused < scores < spelt_out


# The network stays as it is


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("training", [True, False])
def test_network_is_not_changed(device: str, training: bool, tmp_path: Path) -> None:
    network = TwoHeads().train(training)
    calls: list[object] = []
    network.encoder.register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    call = nn.Module.__call__
    assert summarise(network, (2, 1, 8, 8), device).problem is None
    save_diagram(network, (2, 1, 8, 8), tmp_path / "network_architecture.pdf")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert all(module.training is training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert calls == []
    assert nn.Module.__call__ is call
    assert network.decoder.encoder is network.encoder


def test_frozen_parameters() -> None:
    network = TwoHeads()
    network.encoder.requires_grad_(False)
    summary = summarise(network, (2, 1, 8, 8))
    assert (summary.num_parameters, summary.num_trainable) == (68, 20)
    assert summary_text(summary).startswith("TwoHeads: 68 parameters (272 B), 48 of them not trained\n")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net))])
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = TwoHeads()
    assert summarise(wrap(network), (2, 1, 8, 8)) == summarise(network, (2, 1, 8, 8))


def test_network_that_looks_at_values() -> None:
    network = LooksAtValues()
    summary = summarise(network, (1, 1, 4, 4))
    assert (summary.num_parameters, summary.multiply_adds, summary.activation_bytes) == (4, None, None)
    assert summary.problem == "RuntimeError: Tensor.item() cannot be called on meta tensors"
    assert summary_text(summary) == (
        "LooksAtValues: 4 parameters (16 B)\n"
        "Multiply-adds and activations are not known (RuntimeError: Tensor.item() cannot be called on meta tensors)"
    )
    assert summarise(network, (1, 1, 4, 4), "cpu").multiply_adds == 32


def test_summary_text() -> None:
    network = nnunet("PlainConvUNet", features_per_stage=[32, 64, 128], strides=[1, 2, 2])
    lines = summary_text(summarise(network, (2, 1, 40, 56, 40))).splitlines()
    assert lines == [
        "PlainConvUNet: 1.36 M parameters (5.18 MiB)",
        "Forward pass of a batch of 2 x (1, 40, 56, 40): 33.6 G multiply-adds, 280 MiB kept for the backward pass "
        "without mixed precision",
        "  encoder: 859 k parameters, 10.7 G multiply-adds",
        "  decoder: 498 k parameters, 22.9 G multiply-adds",
    ]


def test_summary_text_names_the_heaviest_of_many_parts() -> None:
    network = nn.Sequential(*(nn.Conv2d(1, 1, 1 + 2 * (size % 4), padding=size % 4) for size in range(8)))
    lines = summary_text(summarise(network, (1, 1, 8, 8))).splitlines()
    assert [line.split(":")[0].strip() for line in lines[2:]] == ["1", "2", "3", "5", "6", "7", "and 2 lighter parts"]


@pytest.mark.parametrize("name", NETWORKS)
def test_real_networks_in_less_than_two_seconds(name: str, tmp_path: Path) -> None:
    build, input_shape = NETWORKS[name]
    network = build()
    summarise(TwoHeads(), (2, 1, 8, 8))  # imports
    save_diagram(TwoHeads(), (2, 1, 8, 8), tmp_path / "first.pdf")
    began = time.process_time()
    summary = summarise(network, input_shape)
    save_diagram(network, input_shape, tmp_path / "second.pdf")
    assert time.process_time() - began < 2
    assert summary.problem is None
    assert summary.multiply_adds is not None
    assert summary.multiply_adds > 1e9


# The diagram


@pytest.mark.parametrize("name", NETWORKS)
def test_diagram_has_few_boxes(name: str) -> None:
    from nnplug.networks.replica import replica_of
    from torchview import draw_graph

    build, input_shape = NETWORKS[name]
    source = network_diagram._diagram_source(draw_graph, replica_of(build(), "meta"), input_shape)
    assert 15 <= source.count("<TABLE") <= network_diagram.MAX_BOXES
    assert str(input_shape) in source


def test_diagram_of_a_network_wider_than_the_limit() -> None:
    from torchview import draw_graph

    network = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(100)))
    source = network_diagram._diagram_source(draw_graph, network.to("meta"), (1, 1, 8, 8))
    assert source.count("<TABLE") >= 100


@needs_dot
def test_diagram_is_a_pdf(tmp_path: Path) -> None:
    path = tmp_path / "network_architecture.pdf"
    network = nnunet("PlainConvUNet", "cpu", features_per_stage=[4, 8], strides=[1, 2])
    assert save_diagram(network, (2, 1, 16, 16, 16), path, log=pytest.fail) == path
    assert path.read_bytes().startswith(b"%PDF")
    assert path.read_bytes().rstrip().endswith(b"%%EOF")
    assert [file.name for file in tmp_path.iterdir()] == ["network_architecture.pdf"]


def fake_dot(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "dot"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys, time\nsource = sys.stdin.read()\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_diagram_is_what_dot_makes_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "assert sys.argv[1:] == ['-Tpdf'] and 'Conv2d' in source and '(2, 1, 8, 8)' in source; print('%PDF-fake')"
    fake_dot(tmp_path, script, monkeypatch)
    path = tmp_path / "network_architecture.pdf"
    assert save_diagram(TwoHeads(), (2, 1, 8, 8), path, log=pytest.fail) == path
    assert path.read_text() == "%PDF-fake\n"


def reasons(path: Path, network: nn.Module | None = None) -> list[str]:
    """What is logged when there is no diagram."""
    logged: list[str] = []
    assert save_diagram(network or TwoHeads(), (2, 1, 8, 8), path, log=logged.append) is None
    assert not path.exists()
    assert save_diagram(network or TwoHeads(), (2, 1, 8, 8), path) is None
    return logged


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchview", None)
    assert reasons(tmp_path / "network_architecture.pdf") == [
        "No network_architecture.pdf: the packages that draw it are missing. "
        "Install them with: pip install 'nnplug[diagram]'"
    ]


def test_missing_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reasons(tmp_path / "network_architecture.pdf") == [
        "No network_architecture.pdf: Graphviz's program dot is missing. Install it with: apt-get install graphviz "
        "(Debian, Ubuntu), brew install graphviz (macOS) or conda install graphviz"
    ]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit('syntax error\\nin line 1')", "dot failed: syntax error in line 1"),
        ("print('half a')", "dot failed:"),
        ("time.sleep(60)", "dot needed more than 1 s"),
    ],
)
def test_dot_that_fails(script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_diagram, "SECONDS_FOR_LAYOUT", 1.0)
    fake_dot(tmp_path, script, monkeypatch)
    assert [line.strip() for line in reasons(tmp_path / "d.pdf")] == [f"No d.pdf: {reason}"]
    assert [file.name for file in tmp_path.iterdir()] == ["bin"]


def test_network_that_can_not_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dot(tmp_path, "print('%PDF-fake')", monkeypatch)
    reason = "No d.pdf: RuntimeError: Tensor.item() cannot be called on meta tensors"
    assert reasons(tmp_path / "d.pdf", LooksAtValues()) == [reason]


def test_folder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dot(tmp_path, "print('%PDF-fake')", monkeypatch)
    path = tmp_path / "missing" / "d.pdf"
    (line,) = reasons(path)
    assert line.startswith(f"No d.pdf: Could not write {path}: No such file or directory")


def test_importing_imports_neither_torch_nor_torchview() -> None:
    code = "import sys, nnplug.networks.report; print([m for m in ('torch', 'torchview') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
