"""Rules of the tree that no single module can hold."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nnplug
import pytest
from packaging.requirements import Requirement
from support.commands import clean_environment

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").is_file())
#: Come with nnunetv2, which can not do without them.
FROM_NNUNET = {"SimpleITK", "acvl_utils", "matplotlib", "nibabel", "scipy", "sklearn"}
CONFIG_PACKAGES = sorted(path.name for path in (ROOT / "configs").iterdir() if (path / "__init__.py").is_file())
CORE = sorted((ROOT / "core").rglob("*.py"))
PLUGIN_MODULES = sorted([*(ROOT / "plugins").rglob("*.py"), *(ROOT / "configs").rglob("*.py")])
MAX_LINES = 400


def tracked_files() -> list[Path]:
    """What git tracks or would track; the whole tree but hidden folders where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        files = [path for path in ROOT.rglob("*") if path.is_file()]
        return [path for path in files if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every import of a module: (module, imported names); relative imports start with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_plugins_to_check() -> None:
    assert PLUGINS
    assert CORE
    assert CONFIG_PACKAGES


PACKAGES_WITH_A_TABLE = [path for path in CORE if path.name == "__init__.py" and "\n====" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", PACKAGES_WITH_A_TABLE, ids=relative)
def test_a_table_of_modules_is_whole(path: Path) -> None:
    table = path.read_text(encoding="utf-8").split("\n====", 1)[1].split("\n====", 1)[0].splitlines()[1:]
    modules = {other.stem for other in path.parent.glob("*.py")} - {"__init__"}
    assert sorted(line.split()[0] for line in table) == sorted(modules)


def test_packages_that_know_no_others() -> None:
    """What everything is built on, and the kit of plugin authors, which nothing is built on."""
    low, kit = ("files",), "nnplug.testing"
    for path in CORE:
        package = path.relative_to(ROOT / "core" / "nnplug").parts[0]
        known = {module for module, _ in imports(path) if module.startswith("nnplug.")}
        if package in low:
            assert {module.split(".")[1] for module in known} <= {*low, "errors"}, relative(path)
        if package not in ("testing", "cli"):
            assert not [module for module in known if module.startswith(kit)], relative(path)


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_core_names_no_plugin(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = [name for name in [*PLUGINS, *CONFIG_PACKAGES] if re.search(rf"\b{name}\b", text)]
    assert not named, "core must not know which plug-ins there are"


@pytest.mark.parametrize("path", PLUGIN_MODULES, ids=relative)
def test_plugins_use_public_names_only(path: Path) -> None:
    # a plug-in of ours has what a stranger's has: the names that nnplug exports, no other sub-modules of it
    for module, names in imports(path):
        if module.split(".")[0] != "nnplug":
            continue
        assert module in ("nnplug", "nnplug.testing"), f"{module} is not public; import from nnplug"
        public = public_names(module)
        assert set(names) <= public, f"not public in {module}: {sorted(set(names) - public)}"


def public_names(module: str) -> set[str]:
    package = importlib.import_module(module)
    assert all(hasattr(package, name) for name in package.__all__)
    return set(package.__all__)


@pytest.mark.parametrize(
    "code",
    [
        "import nnplug",
        "import nnplug; list(nnplug.list_trainers())",
        "from nnplug.cli import main; assert main(['trainers']) == 0",
        "from nnplug.cli import main; assert main(['plugins']) == 0",
    ],
)
def test_listing_imports_neither_torch_nor_nnunet(code: str) -> None:
    heavy = "[m for m in ('torch', 'nnunetv2', 'monai', 'numpy') if m in sys.modules]"
    command = [sys.executable, "-c", f"import sys\n{code}\nloaded = {heavy}\nassert not loaded, loaded"]
    result = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert result.returncode == 0, result.stderr


def test_no_machine_paths() -> None:
    folders = ["wo" + "rk", "ro" + "ot", "ho" + "me/[a-z]", "Us" + "ers/[A-Za-z]", "o" + "pt/"]  # not to find itself
    pattern = re.compile(rf"/(?:{'|'.join(folders)})\b")
    found = []
    for path in tracked_files():
        if path.suffix in {".png", ".pdf", ".gz", ".npz", ".pth"} or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()}")
    assert not found


@pytest.mark.parametrize("path", [*CORE, *PLUGIN_MODULES], ids=relative)
def test_modules_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def dependencies() -> list[str]:
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [line for line in [*project["dependencies"], *extras] if not line.startswith(project["name"] + "[")]


@pytest.mark.parametrize("dependency", dependencies())
def test_dependencies_have_both_bounds(dependency: str) -> None:
    operators = {specifier.operator for specifier in Requirement(dependency).specifier}
    assert operators & {">=", "~=", "=="}, "no lower bound"
    assert operators & {"<", "<=", "~=", "=="}, "no upper bound"


def test_third_party_imports_are_dependencies() -> None:
    """What the shipped packages import is declared, so that it is there on a machine with nnplug alone."""
    provided = importlib.metadata.packages_distributions()
    declared = {canonical(Requirement(line).name) for line in dependencies()}
    own = {"nnplug", *PLUGINS, *CONFIG_PACKAGES}
    missing = set()
    for path in [*CORE, *PLUGIN_MODULES]:
        for module, _ in imports(path):
            top = module.split(".")[0]
            if not top or top in own or top in sys.stdlib_module_names:
                continue
            if not declared & {canonical(name) for name in provided.get(top, [])}:
                missing.add(f"{relative(path)}: {top}")
    missing = {line for line in missing if line.split(": ")[1] not in FROM_NNUNET}
    assert not missing


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_licence_is_apache() -> None:
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")


def test_entry_points_name_packages_that_are_here() -> None:
    named = set(PYPROJECT["project"]["entry-points"]["nnplug"].values())
    assert named <= {*PLUGINS, *CONFIG_PACKAGES}


@pytest.mark.parametrize("name", sorted(PYPROJECT["project"]["entry-points"]["nnplug"].values()))
def test_plugins_say_which_api_they_are_written_for(name: str) -> None:
    assert importlib.import_module(name).NNPLUG_API == nnplug.API_VERSION


def test_documents_link_to_files_that_exist() -> None:
    broken = []
    for path in tracked_files():
        if path.suffix != ".md":
            continue
        # in code `heads[0](full)` is no link
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:|#", target) and not (path.parent / target.split("#")[0]).exists():
                broken.append(f"{relative(path)}: {target}")
    assert not broken
