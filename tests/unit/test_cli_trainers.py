"""``nnplug trainers``."""

from __future__ import annotations

import json

import pytest
from nnplug.cli import main
from support.plugin_packages import PluginSite, trainers


@pytest.fixture
def nets(installed: PluginSite) -> PluginSite:
    installed.add(
        "acme-nets",
        "2.1",
        code=trainers(
            "name='unet10', description='Ten levels, not shared'", "name='unet9'", "name='shared', description='Mine'"
        ),
    )
    installed.add("other", code=trainers("name='shared', seed=1"), recipes={"quick.toml": "num_epochs = 5"})
    return installed


@pytest.mark.usefixtures("nets")
def test_a_line_a_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trainers"]) == 0
    assert capsys.readouterr() == (
        "quick             other\n"
        "shared@acme-nets  acme-nets  (two plugins use this name) Mine\n"
        "shared@other      other      (two plugins use this name)\n"
        "unet9             acme-nets\n"
        "unet10            acme-nets  Ten levels, not shared\n",
        "",
    )


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("unet*", ["unet9", "unet10"]),
        ("ick", ["quick"]),
        ("*0", ["unet10"]),
        ("SHARED", ["shared@acme-nets", "shared@other", "unet10"]),
        ("level", ["unet10"]),
        ("mine", ["shared@acme-nets"]),
    ],
)
def test_patterns(capsys: pytest.CaptureFixture[str], pattern: str, names: list[str]) -> None:
    assert main(["trainers", pattern]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


@pytest.mark.usefixtures("nets")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trainers", "--json", "quick"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "quick",
            "description": None,
            "distribution": "other",
            "version": "1.0",
            "file": "other/recipes/quick.toml",
            "ambiguous": False,
            "stock": False,
        }
    ]


@pytest.mark.usefixtures("nets")
def test_nothing_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trainers", "zork"]) == 2
    assert capsys.readouterr().err == (
        "nnplug: error: No trainer matches 'zork'. List all of them with: nnplug trainers. "
        "nnU-Net's own classes are listed with --stock.\n"
    )
    assert main(["trainers", "zork", "--stock"]) == 2
    assert capsys.readouterr().err == (
        "nnplug: error: No trainer matches 'zork'. List all of them with: nnplug trainers.\n"
    )


@pytest.mark.usefixtures("nets")
def test_stock_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trainers", "--stock", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["unet9"]["stock"] is False
    assert rows["nnUNetTrainerDA5"]["stock"] is True
    assert rows["nnUNetTrainerDA5"]["distribution"] == "nnunetv2"
    assert main(["trainers", "--stock", "*_?epochs"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nnUNetTrainerCELoss_5epochs     nnunetv2"


def test_broken_plugins_are_mentioned(installed: PluginSite, capsys: pytest.CaptureFixture[str]) -> None:
    installed.add("good", code=trainers("name='a'"))
    installed.add("bad", code="raise OSError\n")
    assert main(["trainers"]) == 0
    assert capsys.readouterr() == ("a  good\n", "1 plugin failed to load. See why with: nnplug plugins\n")


def test_no_plugin_at_all(installed: PluginSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert not list(installed.folder.iterdir())
    assert main(["trainers"]) == 0
    assert capsys.readouterr().out == "No plugin registers a trainer.\n"
