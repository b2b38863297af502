"""``nnplug plugins``."""

from __future__ import annotations

import json

import pytest
from nnplug.cli import main
from support.plugin_packages import PluginSite, trainers


def test_what_is_installed(installed: PluginSite, capsys: pytest.CaptureFixture[str]) -> None:
    installed.add("acme-nets", "2.1", code=trainers("name='a'", "name='b'"), recipes={"c.toml": "", "d.toml": ""})
    installed.add("one", code=trainers("name='e'"))
    installed.add("logger", code="@nnplug.hookimpl\ndef epoch_end(run):\n    pass\n")
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == (
        "acme-nets 2.1  acme_nets  2 trainers, 2 recipes\n"
        "logger 1.0     logger     hooks only\n"
        "one 1.0        one        1 trainer\n"
    )


def test_what_is_broken(installed: PluginSite, capsys: pytest.CaptureFixture[str]) -> None:
    installed.add("bad", "0.2", code="import xformers_missing\n")
    assert main(["plugins"]) == 1
    assert capsys.readouterr().out == "bad 0.2  bad  broken: No module named 'xformers_missing'\n"
    assert main(["plugins", "--debug"]) == 1
    assert "Traceback (most recent call last):" in capsys.readouterr().out


def test_json(installed: PluginSite, capsys: pytest.CaptureFixture[str]) -> None:
    installed.add("bad", "0.2", code="raise OSError('disk')\n")
    assert main(["plugins", "--json"]) == 1
    [row] = json.loads(capsys.readouterr().out)
    assert row.pop("traceback").startswith("Traceback")
    assert row == {
        "distribution": "bad",
        "version": "0.2",
        "entry_point": "bad = bad",
        "file": None,
        "trainers": 0,
        "recipes": 0,
        "planners": [],
        "preprocessors": [],
        "reason": "OSError: disk",
        "heavy_imports": [],
    }


def test_no_plugin(installed: PluginSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert not list(installed.folder.iterdir())
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == "No plugin is installed.\n"


def test_check_names_plugins_that_slow_every_command_down(
    installed: PluginSite, capsys: pytest.CaptureFixture[str]
) -> None:
    for heavy in ("torch", "nnunetv2"):
        (installed.folder / heavy).mkdir()
        (installed.folder / heavy / "__init__.py").write_text("")
    installed.add("at-import", code="import torch\n" + trainers("name='a'"))
    installed.add("in-hook", code=trainers("name='b'") + "    import torch\n    import nnunetv2\n")
    installed.add("light", code=trainers("name='c'"))
    assert main(["plugins"]) == 0
    capsys.readouterr()
    assert main(["plugins", "--check"]) == 1
    assert capsys.readouterr().out == (
        "at-import 1.0  at_import  1 trainer; imports torch when it is listed: import inside functions\n"
        "in-hook 1.0    in_hook    1 trainer; imports torch and nnunetv2 when it is listed: import inside functions\n"
        "light 1.0      light      1 trainer\n"
    )


def test_check_of_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--check"]) == 0
    assert "broken" not in capsys.readouterr().out
