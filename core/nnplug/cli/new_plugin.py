"""``nnplug new-plugin``: a package of one's own, whole and working."""

from __future__ import annotations

import argparse
import keyword
import os
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from nnplug.errors import NnplugError

TEMPLATE = Path(__file__).parents[1] / "plugin_template"
EXAMPLE = """example:
  nnplug new-plugin acme-nets
  pip install -e './acme-nets[test]'
  pytest acme-nets
"""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*\Z")
# so that "NAME_unet+NAME_focal+num_epochs=100" is a name that a trainer can have
_LONGEST_NAME = 30


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "new-plugin",
        help="write a plugin package to start from",
        description=(
            "Write a package that pip can install: a network, a loss, their registration and a test that passes. "
            "Nothing is overwritten."
        ),
        epilog=EXAMPLE,
    )
    parser.add_argument("name", metavar="NAME", help="of the package, for example acme-nets")
    parser.add_argument(
        "-o",
        dest="folder",
        metavar="FOLDER",
        type=Path,
        default=Path(),
        help="where its folder is made (default: here)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the package and say what comes next."""
    from nnplug.composition.terms import normalise_distribution

    folder = write_package(args.name, args.folder)
    module = normalise_distribution(args.name).replace("-", "_")
    print(f"Wrote {folder}. Next:")
    print(f"  pip install -e '{folder if folder.is_absolute() else f'./{folder}'}[test]'")
    print(f"  pytest {folder}")
    print(f"  nnplug check {module}_unet {module}_focal --quick")
    print(f"  nnplug train 4 3d_fullres 0 -tr {module}_unet+{module}_focal+num_epochs=100")
    return 0


def write_package(name: str, parent: Path) -> Path:
    """Write a plugin package.

    Args:
        name: of the distribution; it becomes lower case, with hyphens, and with underscores the name of the module.
        parent: folder to make the package's folder in.

    Returns:
        The package's folder.

    Raises:
        NnplugError: no name for a package, a name that is taken, or the folder is there already.
    """
    from nnplug import API_VERSION, __version__
    from nnplug.composition.terms import normalise_distribution

    distribution = normalise_distribution(name)
    module = distribution.replace("-", "_")
    _check_name(name, module)
    folder = parent / distribution
    fields = {"distribution": distribution, "module": module, "version": __version__, "api_version": API_VERSION}
    if os.path.lexists(folder):
        raise NnplugError(f"{folder} is there already; nothing was written. Choose another name, or -o FOLDER.")
    try:
        if not parent.exists():
            parent.mkdir(parents=True)
        # beside, so that what is renamed at the end is whole
        with TemporaryDirectory(prefix=f".{distribution}-", dir=parent) as temporary:
            made = Path(temporary, distribution)
            for template in sorted(TEMPLATE.rglob("*.tmpl")):
                path = made / str(template.relative_to(TEMPLATE).with_suffix("")).replace("package", module)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(Template(template.read_text(encoding="utf-8")).substitute(fields), encoding="utf-8")
            made.rename(folder)
    except OSError as error:
        raise NnplugError(f"{folder} can not be written: {error.strerror}.") from None
    return folder


def _check_name(name: str, module: str) -> None:
    if not _NAME.match(name) or len(name) > _LONGEST_NAME:
        raise NnplugError(
            f"'{name}' is not a name for a package: expected letters, digits and single '-', beginning with a letter, "
            f"at most {_LONGEST_NAME}; for example acme-nets."
        )
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise NnplugError(f"'{name}' is a word of Python and can not be imported as a module. Choose another.")
    spec = find_spec(module)
    if spec is not None and spec.origin is not None:  # without it: a mere folder in the current one
        raise NnplugError(f"There is a module '{module}' already ({spec.origin}). Choose another name.")
    from nnplug.discovery.registry import get_registry

    taken = sorted({f"{module}_unet", f"{module}_focal"} & set(get_registry().list_names()))
    if taken:
        raise NnplugError(
            f"There is a trainer '{taken[0]}' already, the name that one of '{name}' would have. Choose another."
        )
