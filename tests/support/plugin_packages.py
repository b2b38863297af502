"""Plugin packages written into a folder: a package with its ``.dist-info``, as pip leaves it."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path

from nnplug.discovery.registry import GROUP, Registry

HEADER = "import nnplug\nfrom nnplug import Component, TrainerConfig\n\n"


class PluginSite:
    """A folder of made-up plugin packages.

    Args:
        folder: where they are written; has to be importable (on ``sys.path``) to load them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        distribution: str,
        version: str = "1.0",
        *,
        module: str | None = None,
        code: str = "",
        recipes: dict[str, str] | None = None,
        entry_point: str | None = None,
        files: dict[str, str] | None = None,
    ) -> Path:
        """Write one package; returns its folder.

        Args:
            distribution: name of the distribution.
            version: its version.
            module: name of the package, the distribution's with underscores where not given.
            code: of ``__init__.py``, after the imports in `HEADER`.
            recipes: file name to text, in the folder ``recipes``, handed over by a hook.
            entry_point: name of the entry point, the module's where not given.
            files: more modules of the package: file name to text.
        """
        module = module or distribution.replace("-", "_")
        package = self.folder / module
        package.mkdir()
        if recipes is not None:
            code += (
                "\n@nnplug.hookimpl\ndef register_recipes():\n"
                "    from pathlib import Path\n    return Path(__file__).parent / 'recipes'\n"
            )
            (package / "recipes").mkdir()
            for name, text in recipes.items():
                (package / "recipes" / name).write_text(text, encoding="utf-8")
        (package / "__init__.py").write_text(HEADER + code, encoding="utf-8")
        for name, text in (files or {}).items():
            (package / name).write_text(text, encoding="utf-8")
        self.add_metadata(distribution, version, {entry_point or module: module}, [module])
        return package

    def add_metadata(self, distribution: str, version: str, entry_points: dict[str, str], packages: list[str]) -> None:
        """Write only the ``.dist-info`` folder."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")
        record = [f"{package}/__init__.py,," for package in packages]
        (info / "RECORD").write_text("\n".join(record) + "\n")

    def registry(self) -> Registry:
        """A registry of the packages in this folder alone."""
        importlib.invalidate_caches()
        found = []
        for distribution in importlib.metadata.distributions(path=[str(self.folder)]):
            found += [entry for entry in distribution.entry_points if entry.group == GROUP]
        return Registry(found)

    def forget_modules(self) -> None:
        """Take what was imported from this folder out of ``sys.modules``."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]


def trainers(*configs: str) -> str:
    """Code of a hook that registers these configs, each given as the arguments of TrainerConfig."""
    lines = [f"    register(TrainerConfig({config}))" for config in configs]
    return "@nnplug.hookimpl\ndef register_trainers(register):\n" + "\n".join(lines or ["    pass"]) + "\n"
