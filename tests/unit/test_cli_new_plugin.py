"""``nnplug new-plugin``. That what it writes can be built, installed and tested is shown in tests/e2e."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import nnplug
import pytest
from nnplug.cli import main
from nnplug.composition.terms import canonical_name
from support.full_disk import largest_file
from support.plugin_packages import PluginSite

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-plugin", "Acme.Nets"]) == 0
    assert capsys.readouterr().out == (
        "Wrote acme-nets. Next:\n"
        "  pip install -e './acme-nets[test]'\n"
        "  pytest acme-nets\n"
        "  nnplug check acme_nets_unet acme_nets_focal --quick\n"
        "  nnplug train 4 3d_fullres 0 -tr acme_nets_unet+acme_nets_focal+num_epochs=100\n"
    )
    written = files(folder / "acme-nets")
    assert list(written) == [
        "README.md",
        "acme_nets/__init__.py",
        "acme_nets/losses.py",
        "acme_nets/network.py",
        "pyproject.toml",
        "tests/test_acme_nets.py",
    ]
    assert "$" not in "".join(written.values())
    assert sum(len(text.splitlines()) for text in written.values()) <= 100
    project = tomllib.loads(written["pyproject.toml"])["project"]
    assert project["name"] == "acme-nets"
    assert project["dependencies"] == [f"nnplug>={nnplug.__version__}"]
    assert f"\nNNPLUG_API = {nnplug.API_VERSION}\n" in written["acme_nets/__init__.py"]


def test_it_is_a_plugin(folder: Path, site: PluginSite) -> None:
    assert main(["new-plugin", "acme-nets", "-o", "new/place"]) == 0
    package = folder / "new/place/acme-nets"
    os.symlink(package / "acme_nets", site.folder / "acme_nets")
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    site.add_metadata(project["name"], project["version"], project["entry-points"]["nnplug"], ["acme_nets"])
    registry = site.registry()
    assert registry.failures == []
    assert registry.list_names() == ["acme_nets_focal", "acme_nets_unet"]
    resolved = registry.resolve("acme_nets_focal+acme_nets_unet+loss_fn.gamma=1+network_builder.width=8")
    assert resolved.distributions == {"acme-nets": "0.1.0"}


def test_its_loss_is_a_mean_over_annotated_voxels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert main(["new-plugin", "ignoring-nets"]) == 0
    monkeypatch.syspath_prepend(str(folder / "ignoring-nets"))
    context = nnplug.LossContext(num_classes=3, spatial_dims=2, ignore_label=3)
    loss = importlib.import_module("ignoring_nets.losses").FocalLoss(context)
    output, target = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 1, 8, 8))
    annotated = loss(output, target)
    ignored = torch.full_like(target, 3)
    torch.testing.assert_close(loss(torch.cat([output] * 3, 2), torch.cat([ignored, target, ignored], 2)), annotated)
    assert loss(output, ignored) == 0


def test_all_of_its_network_is_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two outputs nnU-Net gives the lower one the weight 0."""
    import torch
    from nnplug.training.losses import supervision_weights

    assert main(["new-plugin", "training-nets"]) == 0
    monkeypatch.syspath_prepend(str(folder / "training-nets"))
    build = importlib.import_module("training_nets.network").SmallUNet
    torch.manual_seed(0)
    network = build(1, 2, torch.nn.Conv2d, torch.nn.InstanceNorm2d, {"affine": True}, deep_supervision=True)
    output = network(torch.randn(2, 1, 16, 16))
    outputs = output if isinstance(output, list) else [output]
    weights = supervision_weights(len(outputs))
    sum(weight * out.square().sum() for weight, out in zip(weights, outputs, strict=True)).backward()
    assert [name for name, value in network.named_parameters() if not value.grad.any()] == []


@pytest.mark.parametrize("name", ["a", "a-name-that-is-as-long-as-is-k"])
def test_it_is_formatted(folder: Path, name: str) -> None:
    assert main(["new-plugin", name]) == 0
    for command in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), name]
        done = subprocess.run(ruff, capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, done.stdout
    module = name.replace("-", "_")
    canonical_name([f"{module}_unet", f"{module}_focal"], ["num_epochs=100"], "")  # short enough


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-plugin", "acme-nets"]) == 0
    (folder / "acme-nets" / "README.md").write_text("mine")
    before = files(folder)
    assert main(["new-plugin", "ACME_nets"]) == 2
    assert capsys.readouterr().err == (
        "nnplug: error: acme-nets is there already; nothing was written. Choose another name, or -o FOLDER.\n"
    )
    (folder / "file").write_text("mine")
    assert main(["new-plugin", "file"]) == 2
    assert files(folder) == {**before, "file": "mine"}


NOT_A_NAME = (
    "is not a name for a package: expected letters, digits and single '-', beginning with a letter, at most 30; "
    "for example acme-nets."
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", f"'' {NOT_A_NAME}"),
        ("2nets", f"'2nets' {NOT_A_NAME}"),
        ("acme--nets", f"'acme--nets' {NOT_A_NAME}"),
        ("acme-", f"'acme-' {NOT_A_NAME}"),
        ("../nets", f"'../nets' {NOT_A_NAME}"),
        ("acme nets", f"'acme nets' {NOT_A_NAME}"),
        ("ä", f"'ä' {NOT_A_NAME}"),
        ("n" * 31, f"'{'n' * 31}' {NOT_A_NAME}"),
        ("Class", "'Class' is a word of Python and can not be imported as a module. Choose another."),
        ("match", "'match' is a word of Python and can not be imported as a module. Choose another."),
        ("json", "There is a module 'json' already ("),
        ("NNplug", "There is a module 'nnplug' already ("),
        ("monai-dice", "There is a trainer 'monai_dice_focal' already"),
    ],
)
def test_names_that_no_package_can_have(
    folder: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-plugin", name]) == 2
    assert capsys.readouterr().err.startswith(f"nnplug: error: {message}")
    assert not list(folder.iterdir())


def test_a_place_that_can_not_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("")
    assert main(["new-plugin", "acme-nets", "-o", "file"]) == 2
    assert capsys.readouterr().err == "nnplug: error: file/acme-nets can not be written: Not a directory.\n"


def test_what_can_not_be_written_whole_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with largest_file(300):
        assert main(["new-plugin", "acme-nets"]) == 2
    assert capsys.readouterr().err == "nnplug: error: acme-nets can not be written: File too large.\n"
    assert list(folder.iterdir()) == []
    assert main(["new-plugin", "acme-nets"]) == 0
