"""``nnplug install``: the models of a zip file."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug install model.zip
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "install",
        help="install trained models from a zip file",
        description="Install the models of a zip file that nnplug or nnU-Net has exported. The file is checked first, "
        "and nothing in it is run.",
        epilog=EXAMPLE,
    )
    parser.add_argument("archive", metavar="ZIP", type=Path, help="the file")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace models that are there already, and keep them under replaced_TIME",
    )
    parser.add_argument(
        "--results-dir", metavar="DIR", type=Path, help="folder of trained models, in place of nnUNet_results"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.cli.inventory import folder_option
    from nnplug.sharing.installing import install_models

    missing: dict[str, None] = {}
    for model in install_models(args.archive, results=args.results_dir, overwrite=args.overwrite):
        trainer, plans, configuration = model.path.name.split("__")
        folds = " ".join("fold_all" if fold == "all" else fold for fold in model.folds)
        command = ["-d", model.path.parent.name, "-c", configuration, "-tr", trainer, "-p", plans]
        where = folder_option("--results-dir", args.results_dir)
        print(f"{model.path}\n  nnplug predict -i INPUT -o OUTPUT {shlex.join(command)} -f {folds}{where}")
        if model.replaced is not None:
            print(f"  The model that was there is now {model.replaced}.")
        missing |= dict.fromkeys(model.missing)
    if missing:
        print(
            f"Not installed here, and needed to predict with it: {', '.join(missing)}. If you trust its maker: "
            f"pip install {' '.join(missing)}"
        )
    return 0
