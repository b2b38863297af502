"""``nnplug fingerprint``, ``plan``, ``preprocess`` and ``plan_and_preprocess``, with nnU-Net's options."""

from __future__ import annotations

import argparse
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.files.folder_use import FolderUse
    from nnplug.planning.data import PlanningData
    from nnplug.planning.experiment import PlannerSettings
    from nnplug.planning.pipeline import Running
    from nnplug.planning.shards import Shard

EXAMPLES = {
    "fingerprint": """example:
  nnplug fingerprint -d 4 -np 8
  nnplug fingerprint -d 4 --shard 1/4
""",
    "plan": """example:
  nnplug plan -d 4
  nnplug plan -d 4 -pl nnUNetPlannerResEncM -gpu_memory_target 16 -overwrite_plans_name ResEnc16G
""",
    "preprocess": """example:
  nnplug preprocess -d 4 -c 3d_fullres -np 8
  nnplug preprocess -d 4 -c 3d_fullres --shard 1/4
""",
    "plan_and_preprocess": """example:
  nnplug plan_and_preprocess -d 4 --verify_dataset_integrity -c 3d_fullres
  nnplug plan_and_preprocess --inventory inventory.json --dataset-id 4 --dataset-name Hippocampus --cache-dir cache
""",
}


def add_parser(subparsers: Any) -> None:
    parser = _add(subparsers, "fingerprint", "extract_fingerprint", "sizes, spacings and intensities of a data set")
    _add_fingerprint_options(parser, "-np")
    _add_shard(parser)
    parser.set_defaults(func=run_fingerprint)

    parser = _add(subparsers, "plan", "plan_experiment", "let nnU-Net plan: patch size, batch size, network")
    _add_planner_options(parser)
    parser.set_defaults(func=run_plan)

    parser = _add(subparsers, "preprocess", None, "preprocess the cases of planned configurations")
    parser.add_argument("-plans_name", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    _add_preprocessing_options(parser)
    parser.add_argument("--clean", action="store_true", help="make every case anew")
    _add_shard(parser)
    parser.set_defaults(func=run_preprocess)

    parser = _add(subparsers, "plan_and_preprocess", None, "fingerprint, plan and preprocess a data set")
    _add_fingerprint_options(parser, "-npfp")
    _add_planner_options(parser)
    parser.add_argument("--no_pp", action="store_true", help="fingerprint and plan only")
    _add_preprocessing_options(parser)
    parser.set_defaults(func=run_plan_and_preprocess)


def _add(subparsers: Any, name: str, nnunet_name: str | None, text: str) -> argparse.ArgumentParser:
    from nnplug.cli.inventory import add_inventory_options

    parser = subparsers.add_parser(
        name,
        aliases=[nnunet_name] if nnunet_name else [],
        help=text,
        description=f"{text[0].upper()}{text[1:]}. The results are those of nnU-Net's own command; what is there "
        "already and still holds is kept.",
        epilog=EXAMPLES[name],
    )
    parser.add_argument("-d", dest="datasets", metavar="DATASET", nargs="+", help="ids or names of raw data sets")
    add_inventory_options(parser)
    parser.add_argument("--verbose", action="store_true", help="show what nnU-Net prints")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bars")
    return parser


def _add_fingerprint_options(parser: argparse.ArgumentParser, processes: str) -> None:
    add = parser.add_argument
    add("-fpe", dest="extractor", metavar="CLASS", default="DatasetFingerprintExtractor", help="default: %(default)s")
    add(
        processes,
        dest="num_processes_fingerprint",
        metavar="N",
        type=int,
        help="processes (default: 8, at most one a core; 0: no worker processes)",
    )
    add("--verify_dataset_integrity", action="store_true", help="check every rule first; an inventory's always are")
    add("--clean", action="store_true", help="begin anew, for example when the data has changed")


def _add_planner_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "planner, also of a plugin (default: %(default)s)"
    add("-pl", dest="planner", metavar="CLASS", default="ExperimentPlanner", help=text)
    add("-gpu_memory_target", metavar="GB", type=float, help="memory to plan for (default: the planner's)")
    add(
        "-preprocessor_name",
        dest="preprocessor",
        metavar="CLASS",
        default="DefaultPreprocessor",
        help="preprocessor, also of a plugin (default: %(default)s)",
    )
    add(
        "-overwrite_target_spacing",
        dest="target_spacing",
        metavar="MM",
        nargs="+",
        type=float,
        help="spacing of 3d_fullres, three numbers in the order of the array's axes (slices first)",
    )
    add("-overwrite_plans_name", metavar="PLANS", help="name of the plans (default: the planner's)")


def _add_preprocessing_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-c",
        dest="configurations",
        metavar="CONFIGURATION",
        nargs="+",
        default=["2d", "3d_fullres", "3d_lowres"],
        help="configurations (default: 2d 3d_fullres 3d_lowres, as far as the plans have them)",
    )
    add(
        "-np",
        dest="num_processes",
        metavar="N",
        nargs="+",
        type=int,
        help="processes, one number or one for each configuration (default: 8 for 2d and 3d_lowres, 4 for others, at "
        "most one a core; 0: no worker processes)",
    )


def _add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard", metavar="I/N", help="only every N-th case from the I-th on, I from 1 to N, as a job of an array"
    )


# --- running ---------------------------------------------------------------------------------------------------------


def run_fingerprint(args: argparse.Namespace) -> int:
    for data in _begin(args):
        with _use(data, args):
            _fingerprint(data, args, _shard(args))
    return 0


def run_plan(args: argparse.Namespace) -> int:
    from nnplug.planning.pipeline import plan

    for data in _begin(args):
        plan(data, _planner(args), _running(args))
    return 0


def run_preprocess(args: argparse.Namespace) -> int:
    for data in _begin(args):
        with _use(data, args):
            _preprocess(data, args, args.plans_name, _shard(args))
    return 0


def run_plan_and_preprocess(args: argparse.Namespace) -> int:
    from nnplug.planning.pipeline import plan
    from nnplug.planning.shards import WHOLE

    for data in _begin(args):
        with _use(data, args):
            _fingerprint(data, args, WHOLE)
            plans_name = plan(data, _planner(args), _running(args))
            if not args.no_pp:
                _preprocess(data, args, plans_name, WHOLE)
    return 0


def _use(data: PlanningData, args: argparse.Namespace) -> FolderUse:
    """With ``--clean`` no training reads the data while they are made; jobs that share the cases only look first."""
    from nnplug.files.folder_use import FolderUse

    use = FolderUse(data.folder)
    if args.clean:
        use.make_anew()
        if getattr(args, "shard", None) is not None:
            use.end()
    return use


def _begin(args: argparse.Namespace) -> list[PlanningData]:
    from nnplug.cli import import_quickly
    from nnplug.cli.inventory import choose_data

    # unlike a signal, an exception ends the worker processes too; nnU-Net's own forked ones are ended by the signal
    signal.signal(signal.SIGTERM, _exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))
    data = choose_data(args)
    import_quickly("nnplug.planning.pipeline")
    return data


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _fingerprint(data: PlanningData, args: argparse.Namespace, shard: Shard) -> None:
    from nnplug.planning.pipeline import fingerprint

    fingerprint(
        data,
        num_processes=args.num_processes_fingerprint,
        shard=shard,
        verify=args.verify_dataset_integrity,
        clean=args.clean,
        extractor=args.extractor,
        running=_running(args),
    )


def _preprocess(data: PlanningData, args: argparse.Namespace, plans_name: str, shard: Shard) -> None:
    from nnplug.planning.pipeline import preprocess_configurations

    preprocess_configurations(
        data,
        plans_name,
        args.configurations,
        num_processes=args.num_processes,
        shard=shard,
        clean=args.clean,
        running=_running(args),
    )


def _running(args: argparse.Namespace) -> Running:
    from nnplug.planning.pipeline import Running

    return Running(progress_bar=not args.no_pbar, verbose=args.verbose)


def _planner(args: argparse.Namespace) -> PlannerSettings:
    from nnplug.planning.experiment import PlannerSettings

    return PlannerSettings(
        planner=args.planner,
        gpu_memory_target_gb=args.gpu_memory_target,
        preprocessor=args.preprocessor,
        target_spacing=args.target_spacing,
        plans_name=args.overwrite_plans_name,
    )


def _shard(args: argparse.Namespace) -> Shard:
    from nnplug.planning.shards import WHOLE, Shard

    return Shard.parse(args.shard) if args.shard is not None else WHOLE
