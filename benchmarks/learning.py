"""What trainers learn from the same cases in the same small number of steps, beside stock nnU-Net.

    python benchmarks/learning.py               # every trainer and the losses for instances: hours on two cores
    python benchmarks/learning.py kiunet uiunet # only trainers whose name holds one of these
    python benchmarks/learning.py --table       # only the table in benchmarks/README.md, of the runs that are done

Every run is kept in a cache and not repeated. The budget is far below what any of the trainers needs: the figures tell
how trainers start, not how they end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import nnplug
import numpy as np
from nnplug.discovery.registry import get_registry
from support.commands import clean_environment
from support.datasets import DATA_FOLDER, DatasetForTests, prepared, write_dataset_json, write_hippocampus
from support.stock_launcher import declare_missing_operators

CACHE = measuring.DATASETS.parent / "learning"
SEEDS = (1, 2)
STOCK = "nnUNetTrainer"
#: Settings of every run, as the fields of a recipe. Without mirroring, which takes most of the validation's time.
SHORT = {"num_epochs": 10, "num_iterations_per_epoch": 20, "num_val_iterations_per_epoch": 1, "mirror_axes": []}
VOLUMES = {"batch_size": 2, "patch_size": [32, 32, 32], **SHORT}
#: What can not take such patches gets others with as many voxels a step.
OTHER_PATCHES = {"monai_swinunetr": {"batch_size": 1, "patch_size": [64, 32, 32]}}
NUCLEI = {"batch_size": 4, "patch_size": [128, 128], **SHORT}


def write_nuclei(folder: Path) -> None:
    """The fluorescence images as nnU-Net's 2D data set; files unchanged."""
    from shutil import copyfile

    labels = sorted((DATA_FOLDER / "nuclei2d" / "labels").glob("*.png"))
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for label in labels:
        copyfile(label, folder / "labelsTr" / label.name)
        copyfile(label.parents[1] / "images" / label.name, folder / "imagesTr" / f"{label.stem}_0000.png")
    write_dataset_json(
        folder,
        labels={"background": 0, "nucleus": 1},
        num_cases=len(labels),
        channels=("rescale_to_0_1",),
        ending=".png",
    )


def networks_losses_samplers() -> list[str]:
    """Registered trainers that bring code of their own or draw otherwise; no other names or shares of the same."""
    registry = get_registry()
    found = [STOCK]
    for name in registry.list_names():
        resolved = registry.resolve(name)
        fields = ("network_builder", "loss_fn", "sampler", "probabilistic_oversampling")
        brings = any(getattr(resolved.config, field) is not None for field in fields)
        if brings and resolved.origins and resolved.config.oversample_foreground_percent is None:
            is_other_name = all(origin.term != name for origin in resolved.origins.values())
            found += [] if is_other_name else [name]
    return found


def result_of(
    dataset: DatasetForTests, configuration: str, trainer: str, seed: int, budget: dict[str, Any], *, train: bool
) -> Path | None:
    """Folder of the finished fold 0 of a run; trained now where it is not there, or None."""
    name = f"learning_{trainer}_{seed}"
    results = CACHE / dataset.name
    recipe = results / "recipes" / f"{name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    settings = {"name": name, "seed": seed, **budget, **OTHER_PATCHES.get(trainer, {})}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    if trainer != STOCK:
        lines.insert(1, f"extends = {json.dumps(trainer)}")
    recipe.write_text("\n".join(lines) + "\n")
    data = dataset.with_results(results)
    fold = data.model_folder(nnplug.resolve(recipe).name, configuration) / "fold_0"
    if (fold / "nnplug_result.json").exists():
        return fold
    if not train:
        return None
    command = [sys.executable, "-m", "nnplug", "train", str(data.id), configuration, "0", "-tr", str(recipe)]
    # batches made in the process itself: with workers their order would not be the seed's
    env = clean_environment({**data.env, "nnUNet_n_proc_DA": "0"})
    subprocess.run([*command, "-device", "cpu", "--c"], env=env, check=True)
    return fold


def dice_of(fold: Path) -> float:
    return json.loads((fold / "nnplug_result.json").read_text())["metrics"]["dice"]


def panoptic_quality(fold: Path) -> tuple[float, float]:
    """Panoptic quality, and F1 of nuclei that overlap by more than half, over the validation images."""
    import torch

    declare_missing_operators()  # torchmetrics imports torchvision
    from skimage.io import imread
    from skimage.measure import label
    from torchmetrics.detection import PanopticQuality

    measure = PanopticQuality(things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    for path in sorted((fold / "validation").glob("*.png")):
        instances = imread(DATA_FOLDER / "nuclei2d" / "instances" / path.name).astype(np.int32)
        predicted = label(imread(path) > 0).astype(np.int32)
        pair = [
            torch.from_numpy(np.stack([(ids > 0), ids], -1).astype(np.int32))[None] for ids in (predicted, instances)
        ]
        measure.update(*pair)
    quality, _, detection = measure.compute()[0].tolist()
    return quality, detection


def volumes(chosen: Callable[[str], bool], *, train: bool) -> list[str]:
    """Table of validation Dice on the MR volumes."""
    dataset = prepared("Dataset040_Hippocampus", partial(write_hippocampus, num_cases=40), measuring.DATASETS)
    cases = sorted(path.name.split(".")[0] for path in (dataset.raw_folder / "labelsTr").iterdir())
    weights = {case: 1 + 2 * (i % 2) for i, case in enumerate(cases)}  # every other case three times as often
    (dataset.preprocessed_folder / "case_weights.json").write_text(json.dumps(weights))
    names = [name for name in networks_losses_samplers() if name == STOCK or chosen(name)]
    found = runs(dataset, "3d_fullres", names, VOLUMES, dice_of, train=train)
    stock = found.get(STOCK, {})
    lines = ["| trainer | Dice, by seed | mean | less stock's |", "|---|---|---|---|"]
    for name, by_seed in sorted(found.items(), key=lambda item: -statistics.mean(item[1].values())):
        mean = statistics.mean(by_seed.values())
        both = [dice - stock[seed] for seed, dice in by_seed.items() if seed in stock]
        less = f"{statistics.mean(both):+.3f}" if both else ""
        lines.append(f"| `{name}` | {', '.join(f'{d:.3f}' for d in by_seed.values())} | {mean:.3f} | {less} |")
    return lines


def nuclei(chosen: Callable[[str], bool], *, train: bool) -> list[str]:
    """Table of Dice and instance measures on the nuclei, for the losses that look at instances."""
    dataset = prepared("Dataset041_Nuclei", write_nuclei, measuring.DATASETS)
    losses = [name for name in networks_losses_samplers() if name.startswith(("blob_", "region_"))]
    names = [STOCK, *(name for name in losses if chosen(name))]
    found = runs(dataset, "2d", names, NUCLEI, lambda fold: (dice_of(fold), *panoptic_quality(fold)), train=train)
    lines = ["| loss | Dice | panoptic quality | F1 of nuclei |", "|---|---|---|---|"]
    for name, by_seed in found.items():
        columns = [" / ".join(f"{values[i]:.3f}" for values in by_seed.values()) for i in range(3)]
        lines.append(f"| `{name}` | " + " | ".join(columns) + " |")
    return lines


def runs(
    dataset: DatasetForTests,
    configuration: str,
    names: list[str],
    budget: dict[str, Any],
    measure: Callable[[Path], Any],
    *,
    train: bool,
) -> dict[str, dict[int, Any]]:
    """What is measured, by trainer and seed; without training only what is there already."""
    found: dict[str, dict[int, Any]] = {}
    for seed in SEEDS:
        for name in names:
            try:
                fold = result_of(dataset, configuration, name, seed, budget, train=train)
            except (subprocess.CalledProcessError, nnplug.NnplugError) as error:
                print(f"{name}, seed {seed}: {error}", file=sys.stderr)
                continue
            if fold is not None:
                found.setdefault(name, {})[seed] = measure(fold)
    return found


def main() -> None:
    options = measuring.parser(__doc__ or "")
    options.add_argument("part", nargs="*", help="part of a trainer's name")
    options.add_argument("--table", action="store_true", help="train nothing")
    args = options.parse_args()
    is_chosen = lambda name: not args.part or any(part in name for part in args.part)  # noqa: E731
    text = "\n".join(
        [
            f"Task04_Hippocampus, 32 cases to train on, 8 to validate, 200 steps of {VOLUMES['batch_size']} patches:",
            "",
            *volumes(is_chosen, train=not args.table),
            "",
            f"2D nuclei, 88 images to train on, 22 to validate, 200 steps of {NUCLEI['batch_size']} patches, by seed:",
            "",
            *nuclei(is_chosen, train=not args.table),
        ]
    )
    print(text)
    if not args.part:
        measuring.write_section("learning", text)


if __name__ == "__main__":
    main()
