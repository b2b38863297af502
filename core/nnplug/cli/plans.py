"""``nnplug plans show`` and ``derive``: what nnU-Net has planned, and configurations made from it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.planning.derivation import Derivation
    from nnplug.planning.plans_file import PlansFile

EXAMPLE = """example:
  nnplug plans show 4
  nnplug plans derive -d 4 -c 3d_fullres --name 3d_small --set batch_size=4 --set patch_size=32,40,32
"""
EXAMPLE_DERIVE = """example:
  nnplug plans derive -d 4 -c 3d_fullres --name 3d_small --set batch_size=4 --set patch_size=32,40,32
  nnplug plans derive -d 4 -c 3d_fullres --name 3d_coarse --set spacing=2,1.5,1.5
  nnplug plans derive -d 4 -c 3d_fullres --new-plans Plans24G -gpu_memory_target 24
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "plans",
        help="show plans, derive configurations",
        description="Show what nnU-Net has planned, and derive configurations from it.",
        epilog=EXAMPLE,
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_show(actions)
    _add_derive(actions)


def _add_show(actions: Any) -> None:
    parser = actions.add_parser(
        "show",
        help="show the configurations of plans",
        description="Show the configurations of plans: patch, batch, network, memory, preprocessed data. Axes are in "
        "the plans' order.",
        epilog=EXAMPLE,
    )
    parser.add_argument("dataset", metavar="DATASET", help="id or name of a planned data set")
    parser.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="only this one")
    _add_common(parser)
    parser.set_defaults(func=run_show)


def _add_derive(actions: Any) -> None:
    from nnplug.cli import complete_trainers

    parser = actions.add_parser(
        "derive",
        help="make a configuration from another one",
        description="Make a configuration from another one. Its network is planned anew by nnU-Net's planner where "
        "patch, spacing or memory are others.",
        epilog=EXAMPLE_DERIVE,
    )
    add = parser.add_argument
    add("-d", dest="dataset", metavar="DATASET", required=True, help="id or name of a planned data set")
    add("-c", dest="configuration", metavar="CONFIGURATION", required=True, help="the one to derive from")
    add("--name", metavar="NAME", help="name of the new one (default with --new-plans: that of -c)")
    add(
        "--set",
        dest="assignments",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change an entry, such as batch_size=2, patch_size=128,128,128 or spacing=1,1,1 (mm); may be repeated",
    )
    add("-gpu_memory_target", metavar="GB", type=float, help="choose patch and batch that are not set for this memory")
    trainer = add(
        "--for-trainer",
        metavar="TRAINER",
        help="choose patch and batch so that the network of this trainer (as after -tr) fits the memory",
    )
    trainer.completer = complete_trainers
    add("--trust-code", action="store_true", help="let a recipe after --for-trainer name code anywhere")
    add("--keep-network", action="store_true", help="keep the network, as pretrained weights need it")
    add("--new-plans", metavar="PLANS", help="write new plans, which have the other configurations as well")
    add("--overwrite", action="store_true", help="replace a derived configuration, or new plans, of that name")
    add(
        "--results-dir",
        metavar="DIR",
        type=Path,
        help="folder of models, whose plans are not changed, as nnUNet_results",
    )
    _add_common(parser)
    parser.set_defaults(func=run_derive)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    add("--cache-dir", metavar="DIR", type=Path, help="cache of an inventory, as nnUNet_preprocessed")
    add("--json", action="store_true", help="print JSON")


# --- show ------------------------------------------------------------------------------------------------------------


def run_show(args: argparse.Namespace) -> int:
    """Show."""
    from nnplug.planning.plans_file import describe_configuration

    file = _open(args)
    names = [args.configuration] if args.configuration is not None else list(file.plans["configurations"])
    described = {name: describe_configuration(file, name) for name in names}
    if args.json:
        content = {"dataset": file.folder.name, "plans": file.name, "path": str(file.path)}
        print(json.dumps({**content, "configurations": described}, indent=2))
    else:
        print(f"{file.path}, planned by {file.plans['experiment_planner_used']}")
        _print_table(described)
    return 0


def _open(args: argparse.Namespace) -> PlansFile:
    from nnplug.cli import import_quickly
    from nnplug.cli.inventory import set_folders

    set_folders(args)
    return import_quickly("nnplug.planning.plans_file").open_plans(args.dataset, args.plans)


def _print_table(described: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    from nnplug.console import table_console

    table = Table(box=None, pad_edge=False)
    for column in ("", *described):
        table.add_column(column, overflow="fold")
    for row in next(iter(described.values())):
        cells = [_cell(row, configuration[row]) for configuration in described.values()]
        if any(cells):
            table.add_row(row.replace("_", " "), *cells)
    table_console().print(table)


def _cell(row: str, value: Any) -> str:
    if value is None:
        return "unknown" if row == "estimated_memory_gb" else ""
    if row in ("strides", "kernel_sizes"):
        return " ".join("x".join(map(str, stage)) if isinstance(stage, list) else str(stage) for stage in value)
    if row == "patch_size":
        return "x".join(map(str, value))
    if row == "spacing":
        return " x ".join(f"{side:.4g}" for side in value) + " mm"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- derive ----------------------------------------------------------------------------------------------------------


def run_derive(args: argparse.Namespace) -> int:
    """Derive."""
    _check_options(args)
    file = _open(args)
    from nnplug.planning.plans_writing import check_target, write_derivation

    name = args.name or args.configuration
    check_target(file, args.configuration, name, args.new_plans, args.overwrite)
    derivation = _derive(args, file, f"{args.new_plans or file.name}_{name}")
    path = write_derivation(file, args.configuration, name, derivation, args.new_plans, args.overwrite)
    report = _report(args, file, derivation, path, name)
    print(json.dumps(report, indent=2) if args.json else _report_text(report, derivation, args.configuration))
    _warn_of_memory(derivation, name)
    return 0


def _warn_of_memory(derivation: Derivation, name: str) -> None:
    needed, planned = derivation.estimated_gb, derivation.target_gb
    if derivation.trainer is None and needed is not None and needed > planned:
        print(
            f"nnplug: warning: '{name}' is estimated to need {needed:.1f} GB, more than the {planned:g} GB that "
            "nnU-Net's planner goes by. -gpu_memory_target GB refuses what is too large.",
            file=sys.stderr,
        )


def _check_options(args: argparse.Namespace) -> None:
    from nnplug.errors import NnplugError

    target = args.gpu_memory_target
    if args.name is None and args.new_plans is None:
        raise NnplugError("What is the new configuration called? Give --name NAME, or --new-plans NAME.")
    if target is not None and not 0 < target < float("inf"):
        raise NnplugError(f"-gpu_memory_target {target:g}: expected gigabytes, above 0.")
    if not args.assignments and target is None and args.for_trainer is None:
        raise NnplugError("Nothing to change. Give --set KEY=VALUE, -gpu_memory_target GB or --for-trainer TRAINER.")
    if args.for_trainer is not None and args.keep_network:
        raise NnplugError("--for-trainer plans the network for its patch, --keep-network keeps it. Give one of them.")


def _derive(args: argparse.Namespace, file: PlansFile, data_identifier: str) -> Derivation:
    from nnplug.planning.derivation import derive
    from nnplug.planning.settings import parse_settings

    changes = parse_settings(args.assignments, file.configuration(args.configuration))
    target = args.gpu_memory_target
    if args.for_trainer is not None:
        from nnplug.planning.trainer_fit import derive_for_trainer

        return derive_for_trainer(
            file,
            args.configuration,
            changes,
            args.for_trainer,
            data_identifier=data_identifier,
            target_gb=target,
            trust_code=args.trust_code,
        )
    return derive(
        file,
        args.configuration,
        changes,
        data_identifier=data_identifier,
        target_gb=target,
        keep_network=args.keep_network,
    )


def _report(args: argparse.Namespace, file: PlansFile, derivation: Derivation, path: Path, name: str) -> dict[str, Any]:
    from nnplug.planning.plans_file import preprocessed_state

    plans = path.stem
    state = preprocessed_state(file.folder, derivation.settings["data_identifier"])
    commands = _next_commands(args, file.folder.name, plans, name)
    return {
        "path": str(path),
        "plans": plans,
        "configuration": name,
        "changes": derivation.changes,
        "estimated_memory_gb": _rounded(derivation.estimated_gb),
        "trainer": derivation.trainer,
        "trainer_memory_gb": _rounded(derivation.trainer_gb),
        "preprocessing_changed_by": derivation.data_changes,
        "preprocessed": state,
        "next": commands if state != "yes" else commands[1:],
    }


def _next_commands(args: argparse.Namespace, dataset: str, plans: str, name: str) -> list[str]:
    from nnplug.cli.inventory import folder_option

    cache, is_default = folder_option("--cache-dir", args.cache_dir), plans == "nnUNetPlans"
    folders = cache + folder_option("--results-dir", args.results_dir)
    trainer = f" -tr {shlex.quote(args.for_trainer)}" if args.for_trainer is not None else ""
    return [
        f"nnplug preprocess -d {dataset} -c {name}{cache}{'' if is_default else f' -plans_name {plans}'}",
        f"nnplug train {dataset} {name} 0{folders}{'' if is_default else f' -p {plans}'}{trainer}",
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _report_text(report: dict[str, Any], derivation: Derivation, base: str) -> str:
    lines = [f"{report['path']}: configuration {report['configuration']}, from {base}"]
    for key, value in report["changes"].items():
        if key == "architecture":
            kwargs = value["arch_kwargs"]
            lines += [f"  {row}: {_cell(row, kwargs[key])}" for row, key in _NETWORK if key in kwargs]
        else:
            lines.append(f"  {key}: {_cell(key, derivation.base.get(key))} -> {_cell(key, value)}")
    if not report["changes"]:
        lines.append(f"  no difference: it is {base} under another name")
    if report["estimated_memory_gb"] is not None:
        lines.append(f"Estimated memory: {report['estimated_memory_gb']} GB with nnU-Net's own network.")
    if report["trainer"] is not None:
        lines.append(f"Estimated memory: {report['trainer_memory_gb']} GB with {report['trainer']}.")
    lines.append(_preprocessing_text(report, derivation))
    return "\n".join([*lines, *(f"  {command}" for command in report["next"])])


_NETWORK = (("features", "features_per_stage"), ("strides", "strides"), ("kernel_sizes", "kernel_sizes"))


def _preprocessing_text(report: dict[str, Any], derivation: Derivation) -> str:
    identifier = derivation.settings["data_identifier"]
    if report["preprocessing_changed_by"]:
        changed = ", ".join(report["preprocessing_changed_by"])
        return f"It needs preprocessed cases of its own, {identifier}, because of {changed}. Run:"
    if report["preprocessed"] == "yes":
        return f"The cases need not be preprocessed again: it takes those in {identifier}. Run:"
    return f"It takes the cases in {identifier}, which are not preprocessed yet. Run:"
