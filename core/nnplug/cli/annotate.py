"""``nnplug annotate``: paint a sparse annotation of a volume in napari."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug annotate -i scans -o drawn -id soil_1 --classes classes.toml
  nnplug convert soil --images scans --annotations drawn --classes solid pore --dataset-id 13 --dataset-name Soil
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "annotate",
        help="annotate a volume in napari",
        description="Open a volume in napari, with an earlier annotation or the middle slice segmented by Otsu's "
        "threshold. Saved every minute and when the window is closed. Needs: pip install 'nnplug[annotate]'",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add(
        "-i",
        dest="images",
        metavar="IMAGES",
        type=Path,
        required=True,
        help="folder of volumes (TIFF, MHA, NIfTI, ...)",
    )
    add("-o", dest="annotations", metavar="ANNOTATIONS", type=Path, required=True, help="folder of annotations")
    add("-id", dest="sample", metavar="SAMPLE", required=True, help="name of the volume without its ending")
    classes = "names and colours of the classes (.toml, .json, .csv), numbered from 1"
    add("--classes", metavar="FILE", type=Path, required=True, help=classes)
    otsu = "classes that dark and bright voxels of the middle slice begin with (default: the first two)"
    add("--otsu", metavar=("DARK", "BRIGHT"), nargs=2, help=otsu)
    copy = "go on with a copy (.npz) that was made because the last save failed"
    add("--from", dest="copy", metavar="FILE", type=Path, help=copy)
    autosave = "minutes from one save to the next (default: %(default)s)"
    add("--autosave", metavar="MINUTES", type=float, default=1.0, help=autosave)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.annotation.classes import read_classes
    from nnplug.annotation.session import open_session
    from nnplug.annotation.viewer import annotate, require_window
    from nnplug.errors import NnplugError

    if not args.autosave > 0:
        raise NnplugError(f"--autosave {args.autosave:g}: expected minutes, above 0.")
    classes = read_classes(args.classes)
    require_window()
    with open_session(args.images, args.annotations, args.sample, classes, args.otsu, args.copy) as session:
        if args.copy is not None:
            begun = f"as it was in {args.copy}"
        else:
            begun = "resumed" if session.is_resumed else "begun with the middle slice by Otsu's threshold"
        print(f"{session.path}: {begun}.")
        annotate(session, args.autosave)
    print(f"{session.path}: saved.")
    return 0
