"""``nnplug check``: whether a trainer does what every trainer must."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from nnplug.testing import Outcome

EXAMPLE = """example:
  nnplug check monai_dynunet
  nnplug check monai_dynunet+dice_loss --quick
  nnplug check --all --quick --json
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    from nnplug.cli import complete_trainers

    parser = subparsers.add_parser(
        "check",
        help="check that a trainer does what every trainer must",
        description="Build, train and predict with a trainer on small made-up data and compare with what nnU-Net "
        "needs. Exit code 1 where a check fails, or where one of several trainers can not be checked.",
        epilog=EXAMPLE,
    )
    names = parser.add_argument("names", metavar="NAME", nargs="*", help="as after -tr: a name, a composition, a file")
    names.completer = complete_trainers
    parser.add_argument("--all", action="store_true", help="check every registered trainer")
    parser.add_argument("--quick", action="store_true", help="leave out the checks that take many seconds")
    parser.add_argument("--trust-code", action="store_true", help="let a recipe name code anywhere")
    parser.add_argument("--json", action="store_true", help="print only the result, as JSON, on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Check, one trainer after the other."""
    from nnplug.cli import stdout_for_json
    from nnplug.discovery.registry import get_registry
    from nnplug.errors import NnplugError

    if bool(args.names) == args.all:
        raise NnplugError("Which trainer? Give names as after -tr, or --all for every registered one.")
    names = get_registry().list_names() if args.all else args.names
    results: list[tuple[str, Sequence[Outcome]]] = []
    refused: dict[str, str] = {}
    with stdout_for_json(args.json):
        from nnplug.console import table_console
        from nnplug.testing.report import print_summary

        console = table_console(stderr=args.json)
        for name in names:
            try:
                results.append((name, _check(name, args, len(names) == 1, console)))
            except NnplugError as error:
                if len(names) == 1:
                    raise
                refused[name] = str(error)  # the others are checked nevertheless
        console.print()
        print_summary(results, console)
        for name, message in refused.items():
            console.print(f"{name}: can not be checked: {message}", markup=False)
    if args.json:
        from nnplug.testing.report import as_plain

        plain = [as_plain(name, outcomes) for name, outcomes in results]
        errors = [{"trainer": name, "passed": False, "error": message} for name, message in refused.items()]
        print(json.dumps([*plain, *errors], indent=2))
    has_failed = any(one.status == "failed" for _, outcomes in results for one in outcomes)
    return 1 if has_failed or refused else 0


def _check(name: str, args: argparse.Namespace, is_only_one: bool, console: Console) -> Sequence[Outcome]:
    from nnplug.testing import check_trainer, run_checks
    from nnplug.testing.report import print_checks, print_remarks

    checks = [check for _, check in check_trainer(name, quick=args.quick, trust_code=args.trust_code)]
    outcomes: list[Outcome] = []
    with console.status(name) as status:
        for number, check in enumerate(checks, 1):
            text = f"{name}: {check.name} ({number} of {len(checks)})"
            status.update(text)
            # a file shows no status; of many trainers a line each is enough
            if not console.is_terminal and (is_only_one or number == 1):
                print(text, file=sys.stderr, flush=True)
            outcomes += run_checks([check])
    if is_only_one:
        print_checks(name, outcomes, console)
    else:
        print_remarks([one for one in outcomes if one.status != "passed"], console)
    return outcomes
