"""``nnplug plugins``: what is installed, what is broken and why."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.discovery.registry import PluginRecord

EXAMPLE = """example:
  nnplug plugins
  nnplug plugins --check   also names plugins that slow every command down
"""
HEAVY = ("torch", "nnunetv2")

# Run in a fresh process: what one plugin imports must not be hidden by what another imported before it.
_PROBE = """
import json, sys
path, name, distribution = json.loads(sys.argv[1])
sys.path[:] = path
from importlib.metadata import entry_points
from nnplug.discovery.registry import GROUP, Registry
Registry([entry for entry in entry_points(group=GROUP) if entry.name == name and entry.dist.name == distribution])
print(json.dumps([module for module in %r if module in sys.modules]))
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "plugins",
        help="list plugins and what is wrong with them",
        description="List the installed plugins. Exit code 1 where one of them is broken.",
        epilog=EXAMPLE,
    )
    parser.add_argument("--check", action="store_true", help="name plugins that import torch or nnunetv2 when listed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """List."""
    from nnplug.discovery.registry import get_registry

    rows = []
    for record in get_registry().plugins:
        row = _row(record)
        if args.check and record.is_loaded:
            row["heavy_imports"] = heavy_imports(record)
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows, args.debug)
    return 1 if any(row["reason"] or row["heavy_imports"] for row in rows) else 0


def heavy_imports(record: PluginRecord) -> list[str]:
    """Those of torch and nnunetv2 that listing this plugin's trainers imports."""
    name = record.entry_point.partition(" = ")[0]
    argument = json.dumps([sys.path, name, record.distribution])
    command = [sys.executable, "-c", _PROBE % (HEAVY,), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return [f"unknown: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"]
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


def _row(record: PluginRecord) -> dict[str, Any]:
    return {
        "distribution": record.distribution,
        "version": record.version,
        "entry_point": record.entry_point,
        "file": record.file,
        "trainers": record.num_trainers,
        "recipes": record.num_recipes,
        "planners": [one.name for one in record.classes if one.kind == "planner"],
        "preprocessors": [one.name for one in record.classes if one.kind == "preprocessor"],
        "reason": record.reason,
        "traceback": record.traceback,
        "heavy_imports": [],
    }


def _print(rows: list[dict[str, Any]], debug: bool) -> None:
    if not rows:
        print("No plugin is installed.")
        return
    titles = [f"{row['distribution']} {row['version']}" for row in rows]
    width = max(map(len, titles))
    modules = [row["entry_point"].partition(" = ")[2] for row in rows]
    module_width = max(map(len, modules))
    for row, title, module in zip(rows, titles, modules, strict=True):
        text = f"broken: {row['reason']}" if row["reason"] else _counts(row)
        if row["heavy_imports"]:
            text += f"; imports {' and '.join(row['heavy_imports'])} when it is listed: import inside functions"
        print(f"{title:<{width}}  {module:<{module_width}}  {text}")
        if debug and row["traceback"]:
            print(row["traceback"])


def _counts(row: dict[str, Any]) -> str:
    counts = [
        f"{row[key]} {noun}{'' if row[key] == 1 else 's'}"
        for key, noun in (("trainers", "trainer"), ("recipes", "recipe"))
        if row[key]
    ]
    for noun in ("planner", "preprocessor"):
        names = row[f"{noun}s"]
        counts += [f"{noun}{'' if len(names) == 1 else 's'} {' '.join(names)}"] if names else []
    return ", ".join(counts) or "hooks only"
