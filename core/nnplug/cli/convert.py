"""``nnplug convert``: other layouts and formats to nnU-Net's, and predictions back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.conversion.running import Outcome
    from nnplug.processes.case_pool import Pool

EXAMPLE = """examples:
  nnplug convert msd -i Task04_Hippocampus
  nnplug convert images fundus --labels background=0 vessel=255 --dataset-id 12 --dataset-name Vessels
"""
EXAMPLE_IMAGES = """examples:
  nnplug convert images nuclei --labels background nucleus --dataset-id 11 --dataset-name Nuclei
  nnplug convert images scans --images '{case}.tif' --label '{case}_mask.tif' --labels background=0 pore=255 \\
      --spacing x=5 y=5 z=10 um --dataset-id 12 --dataset-name Pores
  nnplug convert images new_scans --images '{case}.tif' --spacing x=5 y=5 z=10 um -o to_predict
"""
EXAMPLE_SOIL = """example:
  nnplug convert soil --images scans --annotations drawn --classes solid pore water --unlabelled 0 --margin 32 \\
      --spacing x=5 y=5 z=5 um --dataset-id 13 --dataset-name Soil
  nnplug convert soil --settings soil.toml
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="turn other layouts and formats into nnU-Net's, and predictions back",
        description="Every file is checked before it is written, appears whole, and is never overwritten without "
        "--overwrite. A conversion that was interrupted goes on when it is run again.",
        epilog=EXAMPLE,
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_msd(actions)
    _add_v1(actions)
    _add_images(actions)
    _add_soil(actions)
    _add_predictions(actions)
    _add_describing(actions)


def _add(actions: Any, name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
    )


def _add_target(parser: argparse.ArgumentParser, *id_options: str) -> None:
    add = parser.add_argument
    add(*id_options, "--dataset-id", dest="dataset_id", metavar="N", type=int, help="id of the new data set, 0 to 999")
    add("--dataset-name", metavar="NAME", help="its name, without DatasetXXX_")
    add("--raw-dir", metavar="DIR", type=Path, help="folder of data sets (default: nnUNet_raw)")


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dry-run", action="store_true", help="read and check everything, write nothing")
    add("--overwrite", action="store_true", help="replace files that are there")
    add("-np", "-p", dest="num_processes", metavar="N", type=int, help="processes (default: one a core)")
    add("--no_pbar", action="store_true", help="no progress bar")


def _add_msd(actions: Any) -> None:
    parser = _add(
        actions,
        "msd",
        "a task folder of the Medical Segmentation Decathlon",
        "Convert TaskXX_NAME with 3D or 4D images into DatasetXXX_NAME. Volumes are copied; the channels of 4D images "
        "are split.",
        "example:\n  nnplug convert msd -i Task04_Hippocampus -output_task_id 104\n",
    )
    parser.add_argument("-i", dest="folder", metavar="FOLDER", type=Path, required=True, help="the task folder")
    _add_target(parser, "-output_task_id", "-overwrite_id")
    _add_running(parser)
    parser.set_defaults(func=run_msd)


def _add_v1(actions: Any) -> None:
    parser = _add(
        actions,
        "v1",
        "a task folder of nnU-Net v1",
        "Convert TaskXXX_NAME, whose images are named CASE_0000, into DatasetXXX_NAME. Images are copied; 2D data that "
        "is stored as volumes of one slice becomes 2D.",
        "example:\n  nnplug convert v1 -i nnUNet_raw_data/Task004_Hippocampus --dataset-id 104\n",
    )
    parser.add_argument("-i", dest="folder", metavar="FOLDER", type=Path, required=True, help="the task folder")
    _add_target(parser)
    _add_running(parser)
    parser.set_defaults(func=run_v1)


def _add_images(actions: Any) -> None:
    parser = _add(
        actions,
        "images",
        "PNG, BMP, JPG, TIFF, MHA, NRRD, NIfTI",
        "Convert images and labels without loss into a raw data set or an inventory, or images alone into a folder to "
        "predict. Patterns are those of nnplug inventory make; without them the folder has images and labels.",
        EXAMPLE_IMAGES,
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", type=Path, help="folder with the files")
    add("--images", metavar="PATTERN", nargs="+", help="one with {channel}, or one for each channel in its order")
    add("--label", metavar="PATTERN", help="pattern of the labels")
    add("--csv", metavar="FILE", type=Path, help="a table with the columns case, label and one for each channel")
    labels = "names of the values 0, 1, 2, ..., or NAME=VALUE for other values in the files, which are renumbered"
    add("--labels", metavar="NAME", nargs="+", default=[], help=labels)
    add("--channels", metavar="NAME", nargs="+", help="names of the channels; CT and others choose a normalisation")
    _add_spacing(parser)
    endings = ".nii.gz, .nii, .mha, .nrrd, .tif or .png (default: .png for 2D images, .nii.gz for volumes)"
    add("--file-ending", metavar="ENDING", help=endings)
    add("--inventory", metavar="FILE", type=Path, help="write this inventory, and the images into a folder beside it")
    add("-o", dest="output", metavar="DIR", type=Path, help="folder for images to predict, without labels")
    _add_target(parser)
    _add_running(parser)
    parser.set_defaults(func=run_images)


def _add_soil(actions: Any) -> None:
    parser = _add(
        actions,
        "soil",
        "sparsely annotated X-ray CT",
        "Convert volumes of which a part is annotated. What is not annotated becomes nnU-Net's ignore label; the first "
        "class becomes its background. Settings come from options or a TOML file; options win.",
        EXAMPLE_SOIL,
    )
    add = parser.add_argument
    add("--settings", metavar="FILE", type=Path, help="TOML file; its keys are the options' names with _ for -")
    add("--images", metavar="DIR", type=Path, help="folder of the volumes")
    add("--annotations", metavar="DIR", type=Path, help="folder of the annotations")
    add("--image-postfix", metavar="TEXT", help="end of the volumes' names (default: .tif)")
    add("--annotation-postfix", metavar="TEXT", help="end of the annotations' names (default: .tif)")
    add("--classes", metavar="NAME", nargs="+", help="names of the classes in the order of their numbers")
    add("--unlabelled", metavar="N", type=int, help="number of what is not annotated: 0 (default), -1 or another")
    add("--margin", metavar="N", type=int, help="voxels kept around the annotated part (default: 32)")
    add("--no-crop", action="store_true", default=None, help="keep whole volumes")
    norm = "noNorm, zscore (default), rescale_to_0_1 or rgb_to_0_1: the channel's name, by which nnU-Net normalises"
    add("--normalization", metavar="NAME", help=norm)
    add("--bake-in", action="store_true", default=None, help="normalise the voxels now; the channel's name is noNorm")
    _add_spacing(parser)
    add("--file-ending", metavar="ENDING", help=".nii.gz (default), .nii, .mha, .nrrd or .tif")
    _add_target(parser)
    _add_running(parser)
    parser.set_defaults(func=run_soil)


def _add_predictions(actions: Any) -> None:
    parser = _add(
        actions,
        "predictions",
        "predictions in NIfTI, to MHA or TIFF",
        "Convert every NIfTI file of a folder, with voxels and geometry kept exactly. A TIFF has its geometry in a "
        "JSON file beside it.",
        "examples:\n  nnplug convert predictions -i predicted -o as_mha --file-ending .mha\n"
        "  nnplug convert predictions -i predicted -o as_scans --reference scans\n",
    )
    add = parser.add_argument
    add("-i", dest="folder", metavar="DIR", type=Path, required=True, help="folder of predictions")
    add("-o", dest="output", metavar="DIR", type=Path, required=True, help="folder of the result")
    add("--file-ending", metavar="ENDING", help=".mha or .tif (default: that of the reference)")
    text = "folder of the images, CASE or CASE_0000: each prediction gets the geometry and the format of its image"
    add("--reference", metavar="DIR", type=Path, help=text)
    _add_running(parser)
    parser.set_defaults(func=run_predictions)


def _add_describing(actions: Any) -> None:
    parser = _add(
        actions,
        "generate-dataset-json",
        "a dataset.json for a raw data set without one",
        "Count the cases in imagesTr and labelsTr and write dataset.json.",
        "example:\n  nnplug convert generate-dataset-json Dataset011_Cells --channels MR --labels background cell\n",
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=Path, help="DatasetXXX_NAME with imagesTr and labelsTr")
    add("--channels", metavar="NAME", nargs="+", required=True, help="names of the channels 0000, 0001, ...")
    labels = "names of the values 0, 1, 2, ..., or NAME=VALUE, or NAME=VALUE,VALUE for a region"
    add("--labels", metavar="NAME", nargs="+", required=True, help=labels)
    add("--regions-class-order", metavar="N", type=int, nargs="+", help="value to write for each region")
    add("--file-ending", metavar="ENDING", default=".nii.gz", help="of every file (default: .nii.gz)")
    add("--dry-run", action="store_true", help="check everything, write nothing")
    add("--overwrite", action="store_true", help="replace a dataset.json that is there")
    parser.set_defaults(func=run_describing)


def _add_spacing(parser: argparse.ArgumentParser) -> None:
    text = "voxel spacing by axis with its unit, as x=0.5 y=0.5 z=2 mm; it wins over that of the files"
    parser.add_argument("--spacing", metavar="AXIS=SIZE", nargs="+", help=text)


# --- running ---------------------------------------------------------------------------------------------------------


def run_msd(args: argparse.Namespace) -> int:
    return _convert_task(args, numbered=False)


def run_v1(args: argparse.Namespace) -> int:
    return _convert_task(args, numbered=True)


def _convert_task(args: argparse.Namespace, *, numbered: bool) -> int:
    from nnplug.conversion.decathlon import TaskFolder, convert_task

    task = TaskFolder(args.folder, args.raw_dir, args.dataset_id, args.dataset_name, numbered)
    return _report(args, convert_task(task, _pool(args), overwrite=args.overwrite, dry_run=args.dry_run))


def run_images(args: argparse.Namespace) -> int:
    from nnplug.conversion.images import ImageFiles, convert_images, parse_labels
    from nnplug.errors import NnplugError

    if (args.folder is None) == (args.csv is None):
        raise NnplugError("Where are the files? Give a FOLDER or --csv FILE, one of them.")
    files = ImageFiles(
        folder=args.folder,
        target=_choose_target(args),
        image_patterns=args.images,
        label_pattern=args.label,
        table=args.csv,
        labels=parse_labels(args.labels),
        channels=args.channels,
        spacing_mm=_spacing(args),
        ending=args.file_ending,
        inventory=args.inventory,
    )
    return _report(args, convert_images(files, _pool(args), overwrite=args.overwrite, dry_run=args.dry_run))


def run_soil(args: argparse.Namespace) -> int:
    from dataclasses import fields

    from nnplug.conversion.soil import SoilSettings, convert_soil, load_settings

    given = {field.name: getattr(args, field.name, None) for field in fields(SoilSettings)}
    given["spacing"] = " ".join(args.spacing) if args.spacing else None
    settings = load_settings(args.settings, given)
    return _report(args, convert_soil(settings, _pool(args), overwrite=args.overwrite, dry_run=args.dry_run))


def run_predictions(args: argparse.Namespace) -> int:
    from nnplug.conversion.predictions import convert_predictions

    running = {"reference": args.reference, "overwrite": args.overwrite, "dry_run": args.dry_run}
    return _report(args, convert_predictions(args.folder, args.output, args.file_ending, _pool(args), **running))


def run_describing(args: argparse.Namespace) -> int:
    from nnplug.conversion.describing import describe_raw_folder, parse_regions
    from nnplug.problems import count

    content = describe_raw_folder(
        args.folder,
        args.channels,
        parse_regions(args.labels),
        args.file_ending,
        regions_class_order=args.regions_class_order,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
    )
    print(f"{args.folder / 'dataset.json'}: {count(content['numTraining'], 'case')}.")
    return 0


def _choose_target(args: argparse.Namespace) -> Path:
    """A data set, the folder beside an inventory, or one for images to predict."""
    from nnplug.conversion.target import raw_target
    from nnplug.errors import NnplugError

    ways = [args.dataset_id is not None, args.inventory is not None, args.output is not None]
    if sum(ways) != 1 or (args.dataset_id is not None) != (args.dataset_name is not None):
        raise NnplugError(
            "Where to? Give --dataset-id N --dataset-name NAME, --inventory FILE, or -o DIR for images to predict, one "
            "of them."
        )
    if (args.output is None) != bool(args.labels):
        raise NnplugError("-o DIR is for images to predict. A data set has labels: name them with --labels.")
    if args.inventory is not None:
        return Path(args.inventory.with_suffix(""))
    return args.output or raw_target(args.raw_dir, args.dataset_id, args.dataset_name)


def _spacing(args: argparse.Namespace) -> dict[str, float] | None:
    from nnplug.conversion.spacing import parse_spacing

    return None if args.spacing is None else parse_spacing(args.spacing)


def _pool(args: argparse.Namespace) -> Pool:
    from nnplug.conversion.running import PRELOAD
    from nnplug.processes.case_pool import Pool, choose_num_processes

    number = choose_num_processes(args.num_processes, None, 1 << 30)
    return Pool(number, progress_bar=not args.no_pbar, preload=PRELOAD)


def _report(args: argparse.Namespace, outcome: Outcome) -> int:
    from nnplug.problems import count

    target, converted, num_cases = outcome.target, outcome.converted, outcome.num_cases
    if not converted:
        print(f"{target}: {count(num_cases, 'case')}, all of them converted before.")
    elif args.dry_run:
        print(f"{target}: {count(len(converted), 'case')} would be converted; no problem found.")
    else:
        before = num_cases - len(converted)
        print(f"{target}: {count(len(converted), 'case')} converted{f', {before} before' if before else ''}.")
    return 0
