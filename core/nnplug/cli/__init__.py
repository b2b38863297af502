"""``nnplug``: one sub-command a module. A module is cheap to import; what is heavy is imported when it runs."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from nnplug.completion import complete_configurations, complete_datasets, complete_trainers
from nnplug.errors import NnplugError
from nnplug.processes.interrupts import EXIT_INTERRUPTED, TrainingInterrupted, ignore_signals

COMMANDS = (
    *("trainers", "show", "plugins", "check", "inventory", "convert", "plan_and_preprocess"),
    *("plans", "move_plans", "splits", "inspect", "annotate"),
    *("train", "run", "predict", "history", "new-plugin", "env", "demo"),
    *("evaluate", "find_best", "ensemble", "postprocess", "export", "install"),
)
_COMPLETERS = {"DATASET": complete_datasets, "CONFIGURATION": complete_configurations}
_TRAINER_OPTIONS = ("-tr", "-prev_stage_trainer")

EPILOG = """example:
  nnplug trainers 'monai_*'
  nnplug train 4 3d_fullres 0 -tr monai_segresnet+num_epochs=100

completion of commands, trainers, data sets and configurations in bash and zsh:
  eval "$(register-python-argcomplete nnplug)"
"""


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from nnplug import __version__

        print(f"nnplug {__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Shows descriptions and examples as they are written, and takes options by their whole name."""

    def __init__(self, **settings: Any) -> None:
        defaults = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**{**defaults, **settings})


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = _Parser(
        prog="nnplug",
        description="nnU-Net with plug-in trainers: architectures, losses, samplers and schedules by name.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name in COMMANDS:
        import_module(f"nnplug.cli.{name.replace('-', '_')}").add_parser(subparsers)
    for command in list_commands(parser).values():
        _finish(command)
    return parser


def list_commands(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command by its name (``inventory make`` for one in two words), without aliases."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                if command not in found.values():
                    found |= {f"{prefix}{name}": command, **list_commands(command, f"{prefix}{name} ")}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or the exit code of the command; 2 for a user's mistake, 75 for a training that was interrupted and can be
        continued, 130 after Ctrl-C.
    """
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    args = _parse(parser, list(sys.argv[1:] if argv is None else argv))
    try:
        return int(args.func(args) or 0)
    except NnplugError as error:
        if args.debug:
            traceback.print_exc()
        print(f"nnplug: error: {error}", file=sys.stderr)
        return 2
    except TrainingInterrupted as interrupted:
        ignore_signals()
        print(f"nnplug: {interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("nnplug: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (| head): nothing is wrong, and the interpreter must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The arguments; what no command knows is told with the usage of the command and not of ``nnplug``."""
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        words = " ".join(word for word in argv if not word.startswith("-"))
        commands = list_commands(parser)
        command = commands[max((name for name in commands if f"{words} ".startswith(f"{name} ")), key=len)]
        known = [option for action in command._actions for option in action.option_strings]
        near = get_close_matches(unknown[0], known, n=1) or [
            o for o in known if o.lstrip("-") == unknown[0].lstrip("-")
        ]
        hint = f" Did you mean {near[0]}?" if near else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
    return args


def import_quickly(module: str) -> Any:
    """Import a module that brings torch and nnU-Net along.

    Modules live as long as the process, yet looking for garbage among them takes a fifth of the time of their import.
    """
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        gc.enable()


class stdout_for_json:
    """Send what this process and its children print to standard error; keep standard output for JSON."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __enter__(self) -> None:
        if self.wanted:
            sys.stdout.flush()
            self.kept = os.dup(1)
            os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            sys.stdout.flush()
            os.dup2(self.kept, 1)
            os.close(self.kept)


def _finish(command: argparse.ArgumentParser) -> None:
    """What every command has: ``--debug`` behind it too, and completion of names."""
    # Without a default of its own, or it would take back what was given in front of the command.
    command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for action in command._actions:
        is_trainer = not set(action.option_strings).isdisjoint(_TRAINER_OPTIONS)
        completer = complete_trainers if is_trainer else _COMPLETERS.get(str(action.metavar))
        if completer and not hasattr(action, "completer"):
            action.completer = completer  # type: ignore[attr-defined]
