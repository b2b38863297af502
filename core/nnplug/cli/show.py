"""``nnplug show``: everything about one trainer."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.composition.resolved import Origin, ResolvedConfig

EXAMPLE = """example:
  nnplug show monai_segresnet+num_epochs=100
  nnplug show nnUNetTrainerDA5 --all
  nnplug show ./my.toml --json
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    from nnplug.cli import complete_trainers

    parser = subparsers.add_parser(
        "show",
        help="show what a trainer sets",
        description="Show every field that a trainer sets, where it comes from and what nnU-Net does without it.",
        epilog=EXAMPLE,
    )
    name = parser.add_argument("name", metavar="NAME", help="as after -tr: a name, a composition or a recipe file")
    name.completer = complete_trainers
    parser.add_argument("--all", action="store_true", help="show the fields that are not set as well")
    parser.add_argument("--trust-code", action="store_true", help="let a recipe name code anywhere")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Show."""
    from nnplug.discovery.registry import get_registry

    resolved = get_registry().resolve(args.name, trust_code=args.trust_code)
    report = describe_trainer(resolved)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, args.all)
    return 0


def describe_trainer(resolved: ResolvedConfig) -> dict[str, Any]:
    """What the command tells, as plain values."""
    from nnplug.composition.component import Component
    from nnplug.composition.fields import FIELDS, SETTINGS
    from nnplug.composition.layers import leaves
    from nnplug.composition.portability import needed_packages, stock_prediction_obstacle
    from nnplug.composition.resolved import plain
    from nnplug.composition.settings import read_settings
    from nnplug.discovery.stock_names import fields_set_by

    config = resolved.config
    values = {name: getattr(config, name) for name in SETTINGS if getattr(config, name) is not None}
    values.update(leaves(values.pop("plans", {}), "plans"))
    rows = {}
    for key, value in values.items():
        origin = _origin(resolved.origins[key])
        rows[key] = {"value": plain(value), "stock": FIELDS[key.partition(".")[0]].stock, **origin}
        for setting in [name for name in resolved.origins if name.startswith(f"{key}.")]:
            rows[key].setdefault("settings", {})[setting] = _origin(resolved.origins[setting])
        if isinstance(value, Component) and key != "base_trainer":
            settings = read_settings(key, value)
            rows[key].update(more_settings=settings.more, unnamed_settings=settings.unnamed)
    implied = fields_set_by(config.base_trainer.target) if config.base_trainer else {}
    obstacle = stock_prediction_obstacle(resolved)
    return {
        "name": resolved.name,
        "description": config.description,
        "source": config.source,
        "fields": rows,
        "decided_by_class": {name: owner for name, owner in sorted(implied.items()) if name not in values},
        "not_set": {name: FIELDS[name].stock for name in SETTINGS if name not in values and name not in implied},
        "distributions": dict(resolved.distributions),
        "stock_prediction": {"possible": obstacle is None, "reason": obstacle, "needs": needed_packages(resolved)},
        "config": resolved.as_dict(),
    }


def _origin(origin: Origin) -> dict[str, Any]:
    return {
        "term": origin.term,
        "distribution": origin.distribution,
        "version": origin.version,
        "file": origin.file,
    }


def _print(report: dict[str, Any], with_unset: bool) -> None:
    print(report["name"])
    for text in filter(None, (report["description"], report["source"])):
        print(f"  {text}")
    print()
    table = [("FIELD", "VALUE", "NNU-NET'S DEFAULT", "SET BY")]
    for key, row in report["fields"].items():
        table.append((key, _value(key, row["value"]), row["stock"], _owner(row)))
        table += _settings(key, row)
    for key, owner in report["decided_by_class"].items():
        table.append((key, "decided in the class", _default(key), f"class {owner}"))
    if with_unset:
        table += [(key, "-", stock, "") for key, stock in report["not_set"].items()]
    if len(table) == 1:
        print("Sets nothing: it trains as nnU-Net does. The fields: nnplug show NAME --all")
    else:
        _print_columns(table)
    more = {key: row["more_settings"] for key, row in report["fields"].items() if row.get("more_settings")}
    if more:
        print("\nMore settings with their defaults, set as in +FIELD.SETTING=VALUE:")
    for key, settings in more.items():
        of_plan = " (what the plan sets comes before these)" if key == "network_builder" else ""
        print(f"  {key}{of_plan}: {', '.join(f'{name}={default}' for name, default in settings.items())}")
    for key, row in report["fields"].items():
        if row.get("unnamed_settings"):
            print(f"\n{key} has no parameter {', '.join(row['unnamed_settings'])}: its **kwargs take any. Misspelt?")
    print()
    prediction = report["stock_prediction"]
    if not prediction["possible"]:
        print(f"Stock nnU-Net can not predict with it: {prediction['reason']}.")
    elif prediction["needs"]:
        print(f"Stock nnU-Net can predict with it where {prediction['needs'][0]} is installed.")
    else:
        print("Stock nnU-Net can predict with it.")


def _settings(key: str, row: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """One line an argument of a component."""
    if not isinstance(row["value"], dict) or "use" not in row["value"]:
        return []
    rows = []
    for name, value in row["value"].items():
        if name in ("use", "repr"):
            continue
        path = f"{key}.{name}"
        assigned = [
            row["settings"][one] for one in row.get("settings", {}) if one == path or one.startswith(f"{path}.")
        ]
        rows.append((f"  .{name}", _value(path, value), "", _owner(assigned[0]) if assigned else _owner(row)))
    return rows


def _value(key: str, value: Any) -> str:
    from nnplug.composition.fields import FIELDS
    from nnplug.composition.values import format_value

    if isinstance(value, dict):
        return str(value["repr"] if "repr" in value else value["use"] if "use" in value else json.dumps(value))
    return FIELDS[key].format(value) if key in FIELDS else format_value(value)


def _default(key: str) -> str:
    from nnplug.composition.fields import FIELDS

    return FIELDS[key].stock


def _owner(row: dict[str, Any]) -> str:
    places = [f"{row['distribution']} {row['version']}" if row["distribution"] else None, row["file"]]
    place = ", ".join(filter(None, places))
    return f"{row['term']} ({place})" if place else str(row["term"])


def _print_columns(table: list[tuple[str, str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[3]]).rstrip())
