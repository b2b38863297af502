"""Wheels of this tree, and fresh virtual environments to install them into."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.commands import clean_environment

ROOT = Path(__file__).resolve().parents[2]


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of a project, built from a copy so that nothing is left in the tree; its file is in ``folder``."""
    copy = folder / f"source of {source.name}"
    if source == ROOT:
        for name in ("pyproject.toml", "README.md", "LICENSE", "core", "plugins", "configs"):
            _copy(source / name, copy / name)
    else:
        _copy(source, copy)
    output = folder / f"wheel of {source.name}"
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(copy)], folder)
    [wheel] = output.glob("*.whl")
    return wheel


class VirtualEnvironment:
    """A virtual environment with nnplug's wheel, which shares only nnplug's dependencies with the running one.

    Args:
        folder: does not exist yet.
        nnplug: the wheel.
    """

    def __init__(self, folder: Path, nnplug: Path) -> None:
        self.folder = folder
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
        self.pip("install", "--no-deps", "--no-index", nnplug)
        # behind its own packages, and without the .pth files there, by which the running environment finds this tree
        paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        [site] = folder.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text("\n".join(paths) + "\n")

    def pip(self, *args: object) -> None:
        """pip of the running environment, on this one."""
        python = str(self.folder / "bin" / "python")
        _run([sys.executable, "-m", "pip", "--python", python, *map(str, args)], self.folder)

    def run(
        self, *command: object, env: dict[str, str] | None = None, check: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A program of this environment, such as ``nnplug`` or ``python``."""
        program, *args = map(str, command)
        return _run([str(self.folder / "bin" / program), *args], cwd or self.folder, env, check)

    @contextmanager
    def installed(self, wheel: Path) -> Iterator[None]:
        """With one more package for a ``with`` block."""
        name = wheel.name.partition("-")[0]
        self.pip("install", "--no-deps", "--no-index", wheel)
        try:
            yield
        finally:
            self.pip("uninstall", "--yes", name)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.egg-info", "build", "dist", "__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _run(
    command: list[str], cwd: Path, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(env)
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\nreturned {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
