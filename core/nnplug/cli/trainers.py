"""``nnplug trainers``: list what ``-tr`` takes."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from typing import Any

from nnplug.errors import NnplugError

EXAMPLE = """example:
  nnplug trainers                list every registered trainer
  nnplug trainers 'monai_*net'   a glob
  nnplug trainers loss           a part of the name, or a word of the description
  nnplug trainers --stock        nnU-Net's own classes as well
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "trainers",
        help="list trainers",
        description="List the trainers of all installed plugins. Any of them can stand after -tr, joined with '+'.",
        epilog=EXAMPLE,
    )
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="a glob for the name, or a part of it; else a word of the description",
    )
    parser.add_argument("--stock", action="store_true", help="list nnU-Net's own trainer classes too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """List."""
    from nnplug.discovery.registry import get_registry

    registry = get_registry()
    rows = _select(_registered() + (_stock() if args.stock else []), args.pattern)
    if args.pattern and not rows:
        hint = "" if args.stock else " nnU-Net's own classes are listed with --stock."
        raise NnplugError(f"No trainer matches '{args.pattern}'. List all of them with: nnplug trainers.{hint}")
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    if registry.failures:
        count = len(registry.failures)
        noun = "plugin" if count == 1 else "plugins"
        print(f"{count} {noun} failed to load. See why with: nnplug plugins", file=sys.stderr)
    return 0


def _select(rows: list[dict[str, Any]], pattern: str | None) -> list[dict[str, Any]]:
    """The rows whose name matches, then those with a word of their description that begins with the pattern."""
    from nnplug.discovery.registry import matching

    if not pattern:
        return rows
    names = set(matching({_bare(row) for row in rows}, pattern))
    word = re.compile(rf"\b{re.escape(pattern)}", re.IGNORECASE)
    described = [row for row in rows if _bare(row) not in names and word.search(row["description"] or "")]
    return [*(row for row in rows if _bare(row) in names), *described]


def _bare(row: dict[str, Any]) -> str:
    return row["name"].partition("@")[0]


def _registered() -> list[dict[str, Any]]:
    from nnplug.composition.terms import normalise_distribution
    from nnplug.discovery.registry import get_registry

    registry = get_registry()
    rows = []
    for name in registry.list_names():
        found = registry.registrations[name]
        for one in found:
            is_ambiguous = len(found) > 1
            rows.append(
                {
                    "name": f"{name}@{normalise_distribution(one.distribution or '')}" if is_ambiguous else name,
                    "description": one.config.description,
                    "distribution": one.distribution,
                    "version": one.version,
                    "file": one.where,
                    "ambiguous": is_ambiguous,
                    "stock": False,
                }
            )
    return rows


def _stock() -> list[dict[str, Any]]:
    from nnplug.discovery.registry import natural_key, stock_registration
    from nnplug.discovery.stock_names import external_trainers, stock_trainers

    known = {**external_trainers(), **stock_trainers()}
    rows = []
    for name in sorted(known, key=natural_key):
        rows.append(
            {
                "name": name,
                "description": known[name].description or None,
                "distribution": "nnunetv2" if name in stock_trainers() else "nnUNet_extTrainer",
                "version": None,
                "file": stock_registration(known[name]).where,
                "ambiguous": False,
                "stock": True,
            }
        )
    return rows


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("No plugin registers a trainer.")
        return
    names = max(len(row["name"]) for row in rows)
    owners = max(len(row["distribution"]) for row in rows)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in rows:
        note = "(two plugins use this name) " if row["ambiguous"] else ""
        description = (row["description"] or "").partition("\n")[0]
        line = f"{row['name']:<{names}}  {row['distribution']:<{owners}}  {note}{description}".rstrip()
        print(line[:width])
