"""``nnplug env``: what makes stock nnU-Net's commands take nnplug's names."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

EXAMPLE = """example:
  eval "$(nnplug env)"
  nnUNetv2_train 4 3d_fullres 0 -tr 'monai_segresnet+num_epochs=100'

  nnplug env --shell fish | source
  nnplug env --shell powershell | Out-String | Invoke-Expression
"""
VARIABLE = "nnUNet_extTrainer"


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "env",
        help="print what makes nnUNetv2_train -tr take nnplug's names",
        description="Print the shell command that makes stock nnUNetv2_train take every nnplug trainer name. "
        "Prediction needs no variable.",
        epilog=EXAMPLE,
    )
    parser.add_argument("--shell", choices=("sh", "fish", "powershell"), default="sh", help="default: %(default)s")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print."""
    print(_FORMATS[args.shell](folders(os.environ.get(VARIABLE, ""))))
    return 0


def folders(present: str) -> str:
    """nnplug's folder in front of the folders that the variable holds already."""
    from nnplug.discovery.stock_names import STOCK_FOLDER

    ours = str(STOCK_FOLDER)
    kept = [folder for folder in present.split(os.pathsep) if folder.strip() and folder != ours]
    return os.pathsep.join([ours, *kept])


def _sh(value: str) -> str:
    return f"export {VARIABLE}={shlex.quote(value)}"


def _fish(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {VARIABLE} '{escaped}'"


def _powershell(value: str) -> str:
    return f"$env:{VARIABLE} = '{value.replace(chr(39), chr(39) * 2)}'"


_FORMATS = {"sh": _sh, "fish": _fish, "powershell": _powershell}
