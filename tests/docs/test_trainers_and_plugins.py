"""docs/trainers.md, plugins.md and sampling.md: examples run, printed output is what is printed, nothing is missing."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from nnplug import EpochMetrics, TrainingRun
from nnplug.cli import main
from nnplug.composition.fields import FIELDS
from nnplug.composition.recipes import read_recipe
from nnplug.discovery.plugin_loading import HOOKS
from nnplug.discovery.registry import get_registry
from support.plugin_packages import PluginSite

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("trainers.md", "plugins.md", "sampling.md")


def blocks(language: str) -> list[tuple[str, str]]:
    """Code blocks of a language: (where, text)."""
    found = []
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append((f"{page}:{text.count(chr(10), 0, match.start()) + 1}", match[1]))
    assert found
    return found


def commands() -> list[tuple[str, str, str]]:
    """Commands of the console blocks with what they print: (where, command, output)."""
    found = []
    for where, text in blocks("console"):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((where, command, output))
    return found


def named_file(text: str) -> str | None:
    match = re.match(r"# (\S+\.(?:py|toml))\n", text)
    return match[1] if match else None


@pytest.mark.parametrize(("where", "command", "output"), commands())
def test_commands_print_what_the_page_says(
    where: str, command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command)
    assert program == "nnplug", where
    main(arguments)
    printed = capsys.readouterr()
    assert printed.out + printed.err == output, where


@pytest.mark.parametrize(("where", "text"), blocks("python"))
def test_python_examples_run(where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = named_file(text)
    if name is None:
        exec(compile(text, where, "exec"), {"__name__": "__main__"})
        return
    package = name.partition("/")[0]
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / package).mkdir()
    (tmp_path / name).write_text(text)
    (tmp_path / package / "recipes").mkdir()
    site = PluginSite(tmp_path)
    site.add_metadata(package, "1.0", {package: package}, [package])
    [record] = site.registry().plugins
    site.forget_modules()
    assert record.reason is None, where


@pytest.mark.parametrize(("where", "text"), blocks("toml"))
def test_toml_examples_are_valid(where: str, text: str, tmp_path: Path) -> None:
    name = named_file(text)
    assert name is not None, where
    if name == "pyproject.toml":
        assert tomllib.loads(text)["project"]["entry-points"]["nnplug"] == {"acme_nets": "acme_nets"}
        return
    path = tmp_path / name
    path.write_text(text)
    resolved = get_registry().resolve(path)
    assert resolved.name.startswith(f"{read_recipe(path).name}-")


def test_every_field_has_a_row() -> None:
    text = (DOCS / "trainers.md").read_text(encoding="utf-8")
    section = text.partition("\n## Fields\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(FIELDS)


def test_every_hook_has_a_heading() -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == list(HOOKS)


@pytest.mark.parametrize("kind", [TrainingRun, EpochMetrics])
def test_every_attribute_is_listed(kind: type) -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    assert not [name for name in kind.__dataclass_fields__ if f"`{name}`" not in text]  # type: ignore[attr-defined]
