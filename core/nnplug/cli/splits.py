"""``nnplug splits make`` and ``check``: the cross-validation by hand."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.planning.data import PlanningData

EXAMPLE = """example:
  nnplug splits make -d 4 --group patients.csv --stratify labels --held-out 0.2
  nnplug splits check -d 4 --group patients.csv
"""
_PRELOAD = ("nnplug.inventory.checking",)
_LABELS = "labels"


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "splits",
        help="make or check the splits of the cross-validation",
        description="Make or check splits_final.json, which nnU-Net trains by.",
        epilog=EXAMPLE,
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    make = _add(actions, "make", "distribute the cases over folds")
    add = make.add_argument
    add("-k", dest="num_folds", metavar="K", type=int, default=5, help="number of folds (default: %(default)s)")
    add("--seed", metavar="N", type=int, default=12345, help="of the shuffling (default: %(default)s, nnU-Net's)")
    add(
        "--stratify",
        metavar="FILE|labels",
        help="give every fold its share of each stratum: a CSV file with case and stratum, or the word labels for "
        "which classes a case has",
    )
    add("--held-out", metavar="FILE|SHARE", help="keep cases out of all folds: a file with their names, or 0 to 0.5")
    add("--overwrite", action="store_true", help="replace splits that are there; the old ones are kept beside them")
    make.set_defaults(func=run_make)

    check = _add(actions, "check", "refuse leaks, unknown, missing and doubled cases")
    check.add_argument("--held-out", metavar="FILE", type=Path, help="cases that no fold may use (default: as made)")
    check.add_argument("--splits", metavar="FILE", type=Path, help="another file than the data set's own")
    check.set_defaults(func=run_check)


def _add(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    from nnplug.cli.inventory import add_inventory_options

    parser = actions.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=EXAMPLE,
    )
    parser.add_argument("-d", dest="datasets", metavar="DATASET", nargs=1, help="id or name of a raw data set")
    parser.add_argument(
        "--group",
        metavar="FILE|REGEX",
        help="cases that belong together, such as those of a patient: a CSV file with case and group, or a regular "
        "expression that finds the group in the case's name",
    )
    add_inventory_options(parser, results=name == "make")
    return parser


# --- running ---------------------------------------------------------------------------------------------------------


def run_make(args: argparse.Namespace) -> int:
    """Make."""
    from nnplug.cli import import_quickly
    from nnplug.cli.inventory import choose_data

    [data] = choose_data(args)
    splits = import_quickly("nnplug.planning.splits")
    splits.check_free(data, args.overwrite)
    cases = list(data.inventory.cases)
    groups = splits.read_groups(args.group, cases, "--group") if args.group is not None else None
    strata = _strata(data, args.stratify)
    held_out = _held_out(args, cases, groups, strata)
    remaining = [name for name in cases if name not in held_out]
    made = splits.make_splits(remaining, args.num_folds, args.seed, groups=groups, strata=strata)
    _check(made, cases, groups, held_out, data.folder / splits.FILE_NAME)
    messages = splits.write_splits(data, made, held_out, overwrite=args.overwrite)
    print(f"{data.folder / splits.FILE_NAME}: {len(made)} folds of {len(remaining)} cases.")
    _print_folds(made, groups, strata)
    if held_out:
        print(f"{data.folder / splits.HELD_OUT_NAME}: {len(held_out)} cases, in no fold. --all-data would use them.")
    if strata is not None and (rare := splits.rare_strata(remaining, args.num_folds, strata)):
        print(f"Not in the validation of every fold, for lack of cases: {', '.join(rare)}.")
    print("\n".join(messages), end="\n" if messages else "")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Check."""
    from nnplug.cli import import_quickly
    from nnplug.cli.inventory import choose_data

    [data] = choose_data(args)
    module = import_quickly("nnplug.planning.splits")
    from nnplug.files.json_files import read_required_json

    cases = list(data.inventory.cases)
    path = args.splits or data.folder / module.FILE_NAME
    content = read_required_json(path, "The splits file")
    groups = module.read_groups(args.group, cases, "--group") if args.group is not None else None
    beside = data.folder / module.HELD_OUT_NAME
    file = args.held_out or (beside if beside.is_file() else None)
    held_out = module.read_names(file) if file is not None else []
    _check(content, cases, groups, held_out, path)
    print(f"No problem in {len(content)} folds of {len(cases) - len(held_out)} cases; {len(held_out)} held out.")
    return 0


def _check(
    splits: Any, cases: Sequence[str], groups: Mapping[str, str] | None, held_out: Sequence[str], path: Path
) -> None:
    from nnplug.planning.split_checks import check_splits
    from nnplug.problems import raise_problems

    raise_problems(path, check_splits(splits, cases, groups=groups, held_out=held_out))


def _strata(data: PlanningData, text: str | None) -> dict[str, str] | None:
    """The stratum of each case; of ``labels`` the classes that it has."""
    if text is None:
        return None
    cases = list(data.inventory.cases)
    if text != _LABELS:
        from nnplug.planning.splits import read_groups

        return read_groups(text, cases, "--stratify")
    from nnplug.inventory.checking import check_cases
    from nnplug.problems import raise_problems
    from nnplug.processes.case_pool import Pool, choose_num_processes

    pool = Pool(choose_num_processes(None, None, len(cases)), preload=_PRELOAD)
    reports, problems = check_cases(data.inventory, pool, voxels=True)
    raise_problems(data.name, problems)
    present = {
        name: [value for value, number in (r.label_voxels or {}).items() if number] for name, r in reports.items()
    }
    return {name: " ".join(map(str, values)) or "none" for name, values in present.items()}


def _held_out(
    args: argparse.Namespace,
    cases: Sequence[str],
    groups: Mapping[str, str] | None,
    strata: Mapping[str, str] | None,
) -> list[str]:
    from nnplug.errors import NnplugError
    from nnplug.planning.splits import hold_out, read_names
    from nnplug.problems import shortened

    if args.held_out is None:
        return []
    try:
        share = float(args.held_out)
    except ValueError:
        names = read_names(Path(args.held_out))
        if unknown := sorted(set(names) - set(cases)):
            raise NnplugError(f"--held-out {args.held_out}: not in the data set: {shortened(unknown)}.") from None
        if groups is not None:
            halves = {groups[name] for name in names} & {groups[name] for name in cases if name not in names}
            if halves:
                raise NnplugError(
                    f"--held-out {args.held_out} holds out a part of group {shortened(sorted(halves))}. Hold out all "
                    "of a group or nothing."
                ) from None
        return sorted(set(names))
    return hold_out(cases, share, args.seed, groups=groups, strata=strata)


def _print_folds(
    splits: Sequence[Mapping[str, Sequence[str]]], groups: Mapping[str, str] | None, strata: Mapping[str, str] | None
) -> None:
    from collections import Counter

    from nnplug.problems import count

    for number, split in enumerate(splits):
        text = f"  fold {number}: {len(split['train'])} train, {len(split['val'])} val"
        if groups is not None:
            text += f" ({count(len({groups[name] for name in split['val']}), 'group')})"
        if strata is not None:
            counts = Counter(strata[name] for name in split["val"])
            text += "; " + ", ".join(f"{name}: {counts[name]}" for name in sorted(counts))
        print(text)
