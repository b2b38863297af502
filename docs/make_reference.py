"""Write docs/reference.md from the code: commands, fields, hooks, public names, exit codes.

    python docs/make_reference.py

Functions are read from their source, so neither torch nor nnunetv2 is imported.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nnplug
from nnplug import cli, hookspecs, testing
from nnplug.composition.fields import FIELDS
from nnplug.config import TrainerConfig
from nnplug.discovery.plugin_loading import HOOKS
from nnplug.loss_contract import LossTraits
from nnplug.processes import interrupts

PAGE = Path(__file__).with_name("reference.md")
WIDTH = 110
HEAD = """# Reference

<!-- Made by docs/make_reference.py from the code. Do not edit: change the code and run it. -->

[Commands](#commands), [fields](#fields), [hooks](#hooks), [public names](#public-names),
[names for tests](#names-for-tests), [exit codes](#exit-codes).
"""


def make() -> str:
    """The whole page."""
    sections = [HEAD, commands(), fields(), hooks(), public_names(), names_for_tests(), exit_codes()]
    return "\n".join(section.strip("\n") + "\n" for section in sections)


# --- commands


def commands() -> str:
    """``-h`` of every command, at a fixed width."""
    parser = cli.build_parser()
    parts = [
        "## Commands\n\nPrinted with `-h`. The layout is that of Python 3.11 and 3.12.\n",
        _help("nnplug", parser),
    ]
    parts += [_help(f"nnplug {name}", command) for name, command in subcommands(parser).items()]
    return "\n".join(parts)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command by its name."""
    return cli.list_commands(parser)


def _help(title: str, parser: argparse.ArgumentParser) -> str:
    formatter = parser.formatter_class

    def fixed(prog: str) -> argparse.HelpFormatter:
        return formatter(prog, width=WIDTH)

    parser.formatter_class = fixed  # type: ignore[assignment]
    text = "\n".join(line.rstrip() for line in parser.format_help().splitlines())
    return f"### {title}\n\n```text\n{text.strip()}\n```\n"


# --- fields


def fields() -> str:
    """The table of the fields of a trainer config."""
    described = _described_arguments(TrainerConfig)
    types = {field.name: str(field.type) for field in dataclasses.fields(TrainerConfig)}
    types["name"] = "str"
    lines = [
        "## Fields",
        "",
        "Of `nnplug.TrainerConfig`, of a recipe, and (all but the first five) of `-tr field=value`. A field that is",
        "not set leaves what nnU-Net does. `Code` is a callable, `package.module:attribute` as text, or a `Component`.",
        "More: [Trainers](trainers.md#fields).",
        "",
        "| field | type | values | nnU-Net's default |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in FIELDS.items():
        kind = types[name].removesuffix(" | None")
        lines.append(f"| `{name}` | {_cell(kind)} | {_prose_cell(described[name])} | {field.stock or '-'} |")
    return "\n".join(lines)


def _described_arguments(documented: Any) -> dict[str, str]:
    """Name to text of the ``Args:`` section of a docstring."""
    section = (inspect.getdoc(documented) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        match = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if match:
            names = match[1].split(", ")
            found.update(dict.fromkeys(names, match[2]))
        else:
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _prose_cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|").rstrip(".")


# --- hooks


def hooks() -> str:
    """Every hook with its signature, then what the lifecycle hooks are given."""
    parts = [
        "## Hooks\n\nFunctions of a module, marked with `@nnplug.hookimpl`. More: [Plugins](plugins.md#hooks).\n",
    ]
    for name in HOOKS:
        parts.append(
            f"### {name}\n\n{_code(_signature('nnplug.hookspecs', name))}\n{_paragraphs(getattr(hookspecs, name))}\n"
        )
    return "\n".join(parts)


# --- public names


def public_names() -> str:
    """Every name of ``nnplug.__all__`` with its signature and the first paragraph of its docstring."""
    parts = [
        f"## Public names\n\n`from nnplug import ...`. These names and their arguments stay as they are while the API "
        f"version is {nnplug.API_VERSION}. Other modules of nnplug are not part of the API.\n"
    ]
    for name in nnplug.__all__:
        parts.append(f"### nnplug.{name}\n\n{_public(name).strip()}\n")
    return "\n".join(parts)


def names_for_tests() -> str:
    """Every name of ``nnplug.testing.__all__``."""
    parts = ["## Names for tests\n\n`from nnplug.testing import ...`. More: [Checking a trainer](check.md).\n"]
    for name in testing.__all__:
        is_constant = name == "CASES"
        text = f"`{testing.CASES}`: cases of every made-up data set." if is_constant else _defined(name, testing)
        parts.append(f"### nnplug.testing.{name}\n\n{text.strip()}\n")
    return "\n".join(parts)


def _public(name: str) -> str:
    if name == "API_VERSION":
        number = nnplug.API_VERSION
        return f"`{number}`. A plugin that says `NNPLUG_API = {number}` is refused by an nnplug with another number."
    if name == "__version__":
        return "The version of nnplug, text."
    if name == "hookimpl":
        return "Decorator that marks a function as a [hook](#hooks)."
    traits = f"\n{_sections(inspect.getdoc(LossTraits) or '')}" if name == "loss_traits" else ""
    return _defined(name, nnplug) + traits


def _defined(name: str, package: ModuleType) -> str:
    """Signature and docstring of a public name of a package."""
    module, node = _definition(name, package.__name__)
    text = _sections(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        return f"{_code(_signature(module, name))}\n{text}"
    return f"{_code(_class_signature(node))}\n{text}" + _methods(node)


def _definition(name: str, module: str) -> tuple[str, ast.FunctionDef | ast.ClassDef]:
    """Module and definition of a public name, found by following imports in the sources."""
    for _ in range(5):
        body = _source(module).body
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return module, node
        module = next(node.module for node in _imports(body) if name in [alias.name for alias in node.names])
    raise AssertionError(name)


def _imports(body: list[ast.stmt]) -> Iterator[ast.ImportFrom]:
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node
        elif isinstance(node, ast.If):
            yield from _imports(node.body)


def _source(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _signature(module: str, name: str) -> str:
    """The signature as it stands in the source, one argument a line where it is long."""
    [node] = [n for n in _source(module).body if isinstance(n, ast.FunctionDef) and n.name == name]
    return _format(node.name, node)


def _format(name: str, node: ast.FunctionDef) -> str:
    arguments = _argument_texts(node.args)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(arguments)}){returns}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {a},\n" for a in arguments) + f"){returns}"


def _argument_texts(arguments: ast.arguments) -> list[str]:
    """Texts of the arguments with annotation and default, ``self`` left out."""
    found = []
    named = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(named) - len(arguments.defaults)) + list(arguments.defaults)
    for index, (argument, default) in enumerate(zip(named, defaults, strict=True)):
        if argument.arg != "self":
            found.append(_one(argument, default))
        if arguments.posonlyargs and index == len(arguments.posonlyargs) - 1:
            found.append("/")
    if arguments.vararg:
        found.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += [_one(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return found + ([f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else [])


def _one(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


def _class_signature(node: ast.ClassDef) -> str:
    """What a class is called with: its ``__init__``, or the fields of a dataclass."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            member.returns = None
            return _format(node.name, member)
    given = [ast.unparse(member) for member in node.body if isinstance(member, ast.AnnAssign)]
    if not given:
        return node.name + "(" + ", ".join(ast.unparse(base) for base in node.bases) + ")"
    given = ["*", *given] if "kw_only=True" in map(ast.unparse, _decorator_keywords(node)) else given
    line = f"{node.name}({', '.join(given)})"
    return line if len(line) <= WIDTH else f"{node.name}(\n" + "".join(f"    {text},\n" for text in given) + ")"


def _decorator_keywords(node: ast.ClassDef) -> Iterator[ast.keyword]:
    for decorator in node.decorator_list:
        yield from decorator.keywords if isinstance(decorator, ast.Call) else []


def _methods(node: ast.ClassDef) -> str:
    """Public methods and properties, with the first line of their docstrings."""
    found = []
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in member.decorator_list)
            shown = member.name if is_property else _format(member.name, member).replace("\n", " ")
            found.append(f"* `{shown}`: {_prose((ast.get_docstring(member) or '').splitlines()[0])}")
    return "\nMembers:\n\n" + "\n".join(found) + "\n" if found else ""


def exit_codes() -> str:
    """What the commands return."""
    signals = ", ".join(interrupts.SIGNALS)
    return f"""## Exit codes

| code | |
| --- | --- |
| 0 | done |
| 1 | a crash, with its traceback. `nnplug plugins --check`: a plugin is broken or slow to list |
| 2 | a mistake of the user, in one line on standard error; `--debug` shows the traceback |
| {interrupts.EXIT_INTERRUPTED} | a training was stopped by {signals}; it can be continued with `--c` |
| 130 | stopped at once by Ctrl-C (in a training by the second one) |
| 143 | a prediction was stopped by SIGTERM; its worker processes are ended too |
"""


# --- docstrings to Markdown


def _code(text: str) -> str:
    return f"```text\n{text}\n```\n"


def _paragraphs(documented: Any) -> str:
    return _prose(inspect.getdoc(documented) or "")


def _sections(docstring: str) -> str:
    """The text of a docstring; its sections as lists."""
    text, *sections = re.split(r"\n\n(?=(?:Args|Attributes|Returns|Raises|Example|Source):\n)", docstring)
    parts = [_prose(text) + "\n"]
    for section in sections:
        title, _, body = section.partition("\n")
        if title == "Example:":
            continue
        parts.append(f"{title}\n\n{_items(inspect.cleandoc(body))}\n")
    return "\n".join(parts)


def _items(body: str) -> str:
    """One list item for each line that is not indented further."""
    items: list[str] = []
    for line in body.splitlines():
        if items and (line.startswith(" ") or not re.match(r"[\w*][\w*, .|\[\]]*: ", line)):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    return "\n".join(f"* {_prose(item)}" for item in items)


def _prose(text: str) -> str:
    text = re.sub(r":(?:class|func|data|meth|mod):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text).replace("**kwargs:", "`**kwargs`:")


if __name__ == "__main__":
    PAGE.write_text(make(), encoding="utf-8")
    assert not {"torch", "nnunetv2"} & set(sys.modules), "the page must be made without torch"
    print(f"{PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE} written")
