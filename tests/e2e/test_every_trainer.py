"""Every registered trainer trains, and stock nnU-Net predicts with what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnplug.composition.references import load
from nnplug.discovery.registry import get_registry
from support import run_nnplug, run_stock
from support.datasets import DatasetForTests

TRAINERS = sorted(get_registry().list_names())


@pytest.mark.full
@pytest.mark.parametrize("name", TRAINERS)
def test_stock_predicts_with(hippocampus: DatasetForTests, tmp_path: Path, name: str) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text(
        f'extends = "{name}"\nnum_epochs = 1\nnum_iterations_per_epoch = 1\nnum_val_iterations_per_epoch = 1\n'
        "batch_size = 2\npatch_size = [32, 64, 32]\n"
    )
    config = get_registry().resolve(name).config
    sampler = config.sampler and load(config.sampler.target, trusted=True)
    if hasattr(sampler, "write_example_inputs"):
        hippocampus = hippocampus.private_copy(tmp_path / "private")
        cases = [*hippocampus.splits[0]["train"], *hippocampus.splits[0]["val"]]
        sampler.write_example_inputs(hippocampus.preprocessed_folder, cases, **config.sampler.kwargs)
    dims = config.spatial_dims or (2, 3)
    configuration = "3d_fullres" if 3 in dims else "2d"
    env = hippocampus.env
    done = run_nnplug("train", 4, configuration, 0, "-tr", recipe, "-device", "cpu", "--json", env=env, timeout=1800)
    result = json.loads(done.stdout)
    assert result["stock_prediction_obstacle"] is None

    images = tmp_path / "images"
    images.mkdir()
    image = min((hippocampus.raw_folder / "imagesTr").iterdir())
    (images / image.name).symlink_to(image)
    model = ["-d", 4, "-c", configuration, "-f", 0, "-tr", result["trainer"], "-device", "cpu", "--disable_tta"]
    run_stock("nnUNetv2_predict", "-i", images, "-o", tmp_path / "stock", *model, env=env, timeout=1800)
    assert list((tmp_path / "stock").glob("*.nii.gz"))
