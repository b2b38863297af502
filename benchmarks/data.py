"""What planning and preprocessing cost beside stock nnU-Net: wall time and peak memory, with as many processes.

    python benchmarks/data.py                           # all, a table in benchmarks/README.md
    python benchmarks/data.py --repeats 1 --size 64     # a try, printed only

Whole commands of both sides on the same raw data, in turns; every result of one side is compared with the other's.
Memory is that of all processes of a command together, each shared page counted once (PSS), at its highest.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import parser, ratios_of, shown, table, write_section
from support.commands import clean_environment
from support.datasets import DATA_FOLDER, write_dataset_json, write_hippocampus
from support.preprocessed import assert_same_cases

CONFIGURATION = "3d_fullres"
SECONDS_BETWEEN_LOOKS = 0.05
HEADER = ("what", "nnplug", "stock", "ratio: median (95 % interval)", "wanted, at most")
STOCK = {"fingerprint": "nnUNetv2_extract_fingerprint", "preprocess": "nnUNetv2_preprocess"}


def write_volumes(folder: Path, size: int, num_cases: int) -> None:
    """Smooth noise with an empty border, holes and three labels; spacings differ, so that there is resampling."""
    import SimpleITK as sitk

    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    grid = np.indices((size,) * 3, np.float32) / size
    for index in range(num_cases):
        rng = np.random.default_rng(index)
        image = sum(np.sin(axis * rng.uniform(10, 40) + rng.uniform(0, 6)) for axis in grid)
        image = np.round(400 + 100 * image + rng.normal(0, 20, image.shape)).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        for value, centre in enumerate(rng.uniform(0.3, 0.7, (3, 3)), 1):
            label[sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) < 0.015] = value
        border = size // 16
        for axis in range(3):
            np.moveaxis(image, axis, 0)[:border] = 0
        image[label.shape[0] // 2 :, :20, :20] = 0
        for array, name in ((image, f"imagesTr/v_{index}_0000.nii.gz"), (label, f"labelsTr/v_{index}.nii.gz")):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((0.8, 0.8, 0.8 + 0.1 * index))
            sitk.WriteImage(volume, str(folder / name))
    labels = {"background": 0, "one": 1, "two": 2, "three": 3}
    write_dataset_json(folder, labels=labels, num_cases=num_cases, channels=("CT",))


# --- one command -----------------------------------------------------------------------------------------------------


def measure(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall time in seconds and peak memory in GB."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=clean_environment(env),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of_session(process.pid))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{process.stderr.read() if process.stderr else ''}")
    return seconds, peak / 1e9


def memory_of_session(session: int) -> int:
    """Bytes that its processes hold, shared pages divided among those who share them."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    return total


def commands(step: str, dataset_id: int, processes: int) -> dict[str, list[str]]:
    options = ["-d", str(dataset_id), "-np", str(processes), "--no_pbar"]
    options += ["-c", CONFIGURATION] if step == "preprocess" else []
    stock = str(Path(sys.executable).with_name(STOCK[step]))
    return {"nnplug": [sys.executable, "-m", "nnplug", step, *options], "stock": [stock, *options]}


# --- both sides ------------------------------------------------------------------------------------------------------


def compare(raw: Path, name: str, processes: int, repeats: int, scratch: Path) -> list[tuple[str, ...]]:
    """A row for each step."""
    dataset_id = int(name[7:10])
    rows = []
    for step in ("fingerprint", "preprocess"):
        figures: dict[str, list[tuple[float, float]]] = {"nnplug": [], "stock": []}
        for _ in range(repeats):
            made = {}
            for side, command in commands(step, dataset_id, processes).items():
                preprocessed = scratch / side
                shutil.rmtree(preprocessed, ignore_errors=True)
                if step == "preprocess":
                    shutil.copytree(scratch / "planned", preprocessed)
                env = {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(preprocessed), "nnUNet_results": str(scratch)}
                figures[side].append(measure(command, env))
                made[side] = preprocessed / name
            if step == "fingerprint":
                file = "dataset_fingerprint.json"
                assert (made["nnplug"] / file).read_bytes() == (made["stock"] / file).read_bytes()
                plan(raw, dataset_id, made["stock"].parent, scratch / "planned")
            else:
                folder = json.loads((made["stock"] / "nnUNetPlans.json").read_text())["configurations"][CONFIGURATION]
                assert_same_cases(*(made[side] / folder["data_identifier"] for side in ("nnplug", "stock")))
        cases = len(list((raw / name / "labelsTr").iterdir()))
        what = f"{name[11:]}, {cases} cases, {step}, {processes} processes"
        rows += [row(f"{what}: seconds", figures, 0), row(f"{what}: peak memory, GB", figures, 1)]
    return rows


def plan(raw: Path, dataset_id: int, fingerprint: Path, planned: Path) -> None:
    """Stock's fingerprint and plans, for both sides to preprocess with."""
    shutil.rmtree(planned, ignore_errors=True)
    shutil.copytree(fingerprint, planned)
    env = {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(planned)}
    command = [sys.executable, "-m", "nnplug", "plan", "-d", str(dataset_id)]
    subprocess.run(command, env=clean_environment(env), check=True, capture_output=True)


def row(what: str, figures: dict[str, list[tuple[float, float]]], index: int) -> tuple[str, ...]:
    ours, stock = ([one[index] for one in figures[side]] for side in ("nnplug", "stock"))
    medians = (f"{statistics.median(side):.2f}" for side in (ours, stock))
    return what, *medians, shown(ratios_of(ours, stock)), "1.00"


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--size", type=int, default=256, help="voxels a side of the made-up volumes")
    options.add_argument("--volumes", type=int, default=4, help="number of them")
    options.add_argument("--hippocampus", type=int, default=120, help="cases of Task04_Hippocampus")
    args = options.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        if DATA_FOLDER.is_dir() and args.hippocampus:
            write_hippocampus(raw / "Dataset004_Hippocampus", args.hippocampus)
            rows += compare(raw, "Dataset004_Hippocampus", args.processes, args.repeats, Path(scratch))
        name = f"Dataset256_Volumes{args.size}"
        write_volumes(raw / name, args.size, args.volumes)
        rows += compare(raw, name, args.processes, args.repeats, Path(scratch))
    made = table(HEADER, rows)
    print(made)
    if args == options.parse_args([]):
        write_section("data", made)


if __name__ == "__main__":
    main()
