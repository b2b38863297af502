"""docs/reference.md is what docs/make_reference.py makes of the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nnplug
import pytest
from nnplug import testing
from nnplug.cli import COMMANDS, build_parser
from nnplug.composition.fields import FIELDS
from nnplug.discovery.plugin_loading import HOOKS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "reference.md").read_text(encoding="utf-8")


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def comparable(page: str) -> str:
    """The page; without the commands where this Python's argparse breaks lines in its own way."""
    if sys.version_info < (3, 13):
        return page
    before, _, rest = page.partition("\n## Commands\n")
    return before + rest.partition("\n## ")[2]


@pytest.mark.parametrize("columns", ["40", "250"])
def test_the_page_is_what_the_code_says(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    is_current = comparable(load_maker().make()) == comparable(PAGE)
    assert is_current, "docs/reference.md is out of date. Run: python docs/make_reference.py"


def test_nothing_is_missing() -> None:
    commands = list(load_maker().subcommands(build_parser()))
    assert set(COMMANDS) <= set(commands)
    assert re.findall(r"^### nnplug ([\w -]+)$", section("Commands"), re.MULTILINE) == commands
    assert re.findall(r"^\| `(\w+)` \|", section("Fields"), re.MULTILINE) == list(FIELDS)
    assert re.findall(r"^### (\w+)$", section("Hooks"), re.MULTILINE) == list(HOOKS)
    assert re.findall(r"^### nnplug\.(\w+)$", section("Public names"), re.MULTILINE) == nnplug.__all__
    assert re.findall(r"^### nnplug\.testing\.(\w+)$", section("Names for tests"), re.MULTILINE) == testing.__all__


def test_every_argument_of_train_and_predict_is_described() -> None:
    for name in ("train", "predict"):
        text = section("Public names").partition(f"### nnplug.{name}\n")[2].partition("\n### ")[0]
        arguments = re.findall(r"^    (\w+):", text, re.MULTILINE)
        described = re.findall(r"^\* (\w+(?:, \w+)*): ", text.partition("\nArgs:\n")[2], re.MULTILINE)
        assert len(arguments) > 10
        assert set(arguments) <= set(", ".join(described).split(", ")), name


def test_it_is_made_without_torch() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(DOCS)!r}); import make_reference as m; m.make(); "
        "sys.exit(bool({'torch', 'nnunetv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
