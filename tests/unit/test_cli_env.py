"""``nnplug env`` and the module that it makes stock nnU-Net find."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nnplug.cli import main
from nnplug.discovery.stock_names import STOCK_FOLDER
from support.plugin_packages import PluginSite, trainers

ODD = "a folder/with $HOME 'quotes' and \\"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["env", *arguments]) == 0
    return capsys.readouterr().out


def test_the_folder_exists_and_holds_the_module() -> None:
    assert [path.name for path in sorted(STOCK_FOLDER.glob("*.py"))] == ["__init__.py", "nnplug_trainers.py"]


@pytest.mark.parametrize(
    ("present", "kept"),
    [(None, []), ("", []), ("/x/mine", ["/x/mine"]), (f"/x/mine:{STOCK_FOLDER}:/y", ["/x/mine", "/y"]), (ODD, [ODD])],
)
def test_a_shell_reads_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, present: str | None, kept: list[str]
) -> None:
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    if present is not None:
        monkeypatch.setenv("nnUNet_extTrainer", present)
    script = printed(capsys) + 'printf %s "$nnUNet_extTrainer"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split(os.pathsep) == [str(STOCK_FOLDER), *kept]


def test_other_shells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", "it's \\x")
    assert printed(capsys, "--shell", "fish") == f"set -gx nnUNet_extTrainer '{STOCK_FOLDER}:it\\'s \\\\x'\n"
    assert printed(capsys, "--shell", "powershell") == f"$env:nnUNet_extTrainer = '{STOCK_FOLDER}:it''s \\x'\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_reads_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", ODD)
    script = printed(capsys, "--shell", "fish") + 'printf %s "$nnUNet_extTrainer"'
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f":{ODD}")


ASK = """
import sys
import nnplug_trainers as module
for name in sys.argv[1:]:
    try:
        print(getattr(module, name).__name__)
    except AttributeError as error:
        print(f"AttributeError: {error}")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_nnplug_names_are_attributes_of_the_module(site: PluginSite) -> None:
    site.add("nets", code=trainers("name='quick', num_epochs=5", "name='slow', num_epochs=6"))
    names = [
        "quick",
        "amp=false+quick",
        "num_epochs=5",
        "zork",
        "zork+num_epochs=5",
        "nnUNetTrainerDA5",
        "__wrapped__",
        "quick+slow",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(STOCK_FOLDER), str(site.folder)])}
    command = [sys.executable, "-W", "ignore", "-c", ASK, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert lines[:4] == ["quick", "quick+amp=false", "num_epochs=5", "AttributeError: nnplug has no trainer 'zork'"]
    assert lines[4] == "AttributeError: Unknown trainer 'zork'. List them with: nnplug trainers."
    assert lines[5:7] == [f"AttributeError: nnplug has no trainer '{name}'" for name in names[5:7]]
    assert lines[7] == (
        "NnplugError: 'quick' and 'slow' both set num_epochs; '-tr quick+slow' can have only one. "
        "To decide: quick+slow+num_epochs=6"
    )


def test_listing_with_the_variable_set(site: PluginSite, tmp_path: Path) -> None:
    site.add("nets", code=trainers("name='quick', num_epochs=5"))
    environment = {**os.environ, "PYTHONPATH": str(site.folder), "nnUNet_extTrainer": str(STOCK_FOLDER)}
    command = [sys.executable, "-m", "nnplug", "trainers", "--stock", "nnplug*"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert "No trainer matches 'nnplug*'" in done.stderr
