"""Every recipe changes what it says and nothing else, and is what nnU-Net's trainer class is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnplug
import numpy as np
import pytest
import torch
from nnplug.training.trainer import build_trainer_class
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.stock_launcher import declare_missing_operators
from support.stock_trainers import made_up_dataset_json, made_up_plans, make_trainer, stock_class
from support.trainer_traits import differing, traits_of_trainer

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "configs/nnplug_configs/trainers").glob("*.toml"))
TABLE = ROOT / "docs" / "stock_trainers.md"

# nnU-Net's CosineAnnealingLR asks for an order of steps that only a whole training has
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

CUBE, FLAT, SLICE = (16, 16, 16), (8, 32, 32), (16, 16)
MIRRORING = {"mirror_axes", "mirror_axes_in_prediction", "transforms"}
DA5 = {"initial_patch_size", "transforms"}

# recipe: what differs from nnU-Net's default, and the patch on which it does
CHANGES: dict[str, tuple[set[str], tuple[int, ...]]] = {
    "adam": ({"optimizer"}, CUBE),
    "adamw": ({"optimizer"}, CUBE),
    "adan": ({"optimizer"}, CUBE),
    "batch_norm": ({"network"}, CUBE),
    "batch_size_8": ({"batch_size"}, CUBE),
    "benchmark_5epochs": ({"num_epochs", "learning_rates"}, CUBE),
    "ce_loss": ({"loss"}, CUBE),
    "cosine_lr": ({"learning_rates"}, CUBE),
    "da5": (DA5, CUBE),
    "da5_order0": (DA5, CUBE),
    "da5_seg_order0": (DA5, CUBE),
    "da_seg_order0": ({"transforms"}, CUBE),
    "dice_ce_no_smooth_loss": ({"loss"}, CUBE),
    "dice_loss": ({"loss"}, CUBE),
    "dice_topk10_loss": ({"loss"}, CUBE),
    "lr_1en3": ({"initial_lr", "learning_rates"}, CUBE),
    "lr_3en4": ({"initial_lr", "learning_rates"}, CUBE),
    "mirror_0": (MIRRORING, SLICE),
    "mirror_01": (MIRRORING, CUBE),
    "no_da": (MIRRORING | {"initial_patch_size"}, CUBE),
    "no_deep_supervision": ({"enable_deep_supervision", "loss", "transforms"}, CUBE),
    "no_dummy_2d": ({"dummy_2d", "rotation", "initial_patch_size", "transforms"}, FLAT),
    "no_mirroring": (MIRRORING, CUBE),
    "probabilistic_oversampling": ({"probabilistic_oversampling", "oversample_foreground_percent"}, CUBE),
    "probabilistic_oversampling_010": ({"probabilistic_oversampling", "oversample_foreground_percent"}, CUBE),
    "probabilistic_oversampling_033": ({"probabilistic_oversampling"}, CUBE),
    "topk10_loss": ({"loss"}, CUBE),
    "topk10_smoothed_loss": ({"loss"}, CUBE),
    "warmup_lr": ({"learning_rates"}, CUBE),
}
# recipe that spells nnU-Net's default: a trainer that does otherwise, how to take the recipe's part, what that changes
RETURNS = {
    "sgd": ("nnUNetTrainerAdam", "optimizer=@sgd+lr_scheduler=@poly_lr", {"optimizer"}),
    "poly_lr": ("nnUNetTrainerCosAnneal", "lr_scheduler=@poly_lr", {"learning_rates"}),
    "dice_ce_loss": ("nnUNetTrainerCELoss", "loss_fn=@dice_ce_loss", {"loss"}),
}
# a class that nnU-Net runs on CUDA only; test_benchmark_is_five_epochs tests what its recipe does
CUDA_ONLY = ("nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading")


@pytest.fixture(autouse=True, scope="module")
def _settings() -> Iterator[None]:
    declare_missing_operators()  # Primus needs timm, and timm needs torchvision
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small wait for their threads longer than they compute
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def traits_of(tmp_path, monkeypatch):
    """The traits of a trainer, by its ``-tr`` text or class, on made-up plans."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_compile", "0")

    def traits(trainer: str | type[nnUNetTrainer], patch_size: tuple[int, ...] = CUBE, **plans: Any) -> dict[str, Any]:
        cls = build_trainer_class(nnplug.resolve(trainer)) if isinstance(trainer, str) else trainer
        return traits_of_trainer(
            make_trainer(cls, made_up_plans(patch_size=patch_size, **plans), made_up_dataset_json())
        )

    return traits


def table_rows() -> list[tuple[str, str]]:
    """Class and spelling of every row in the docs that has both."""
    rows = re.findall(r"^\| `(nnUNet\w+|_Primus\w+)` \| `([^`]+)` \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 60
    return rows


def needs_adan(text: str) -> None:
    if re.search(r"\badan\b", text):
        pytest.importorskip("adan_pytorch")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_is(name):
    resolved = nnplug.resolve(name)
    assert resolved.name == name
    assert resolved.config.description
    assert resolved.config.source.startswith("nnunetv2: nnUNet")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_changes_what_it_says(name, traits_of):
    needs_adan(name)
    if name in RETURNS:
        other, assignment, changes = RETURNS[name]
        assert differing(traits_of(other), traits_of(f"{other}+{assignment}")) == changes
        assert differing(traits_of(nnUNetTrainer), traits_of(f"{other}+{assignment}")) == set()
        assert differing(traits_of(nnUNetTrainer), traits_of(name)) == set()
    else:
        changes, patch_size = CHANGES[name]
        assert differing(traits_of(nnUNetTrainer, patch_size), traits_of(name, patch_size)) == changes


def test_every_recipe_is_tested():
    assert sorted([*CHANGES, *RETURNS]) == RECIPES


@pytest.mark.parametrize(("name", "text"), [row for row in table_rows() if row[0] not in CUDA_ONLY])
def test_spelling_in_the_docs_is_the_class(name, text, traits_of):
    needs_adan(text)
    # instance norm and batch norm are told apart by name; that SyncBatchNorm is batch norm is tested below
    known = {"network"} if name == "nnUNetTrainerBN" else set()
    theirs = traits_of(stock_class(name))
    assert differing(theirs, traits_of(text)) == known
    if name != text and not name.startswith("_"):  # the class by its name, as nnplug builds on it
        assert differing(theirs, traits_of(name)) == set()


@pytest.mark.parametrize(
    ("name", "text", "patch_size"),
    [
        ("nnUNetTrainer_noDummy2DDA", "no_dummy_2d", FLAT),
        ("nnUNetTrainerDA5", "da5", FLAT),
        ("nnUNetTrainer_onlyMirror01_DA5", "da5+mirror_01", FLAT),
        ("nnUNetTrainerNoDA", "no_da", FLAT),
        ("nnUNetTrainer_onlyMirror01", "mirror_0", SLICE),
        ("nnUNetTrainer_onlyMirror01_1500ep", "mirror_0+num_epochs=1500", SLICE),
        ("nnUNetTrainer_onlyMirror01_DASegOrd0", "da_seg_order0+mirror_0", SLICE),
        ("nnUNetTrainer_onlyMirror01_DA5", "da5+mirror_0", SLICE),
    ],
)
def test_augmentation_of_flat_patches_and_slices_is_that_of_the_class(name, text, patch_size, traits_of):
    assert differing(traits_of(stock_class(name), patch_size), traits_of(text, patch_size)) == set()


@pytest.mark.parametrize(
    "parts",
    [
        ("da5", "no_mirroring", "batch_norm", "adamw", "lr_3en4", "dice_topk10_loss", "probabilistic_oversampling_010"),
        ("da_seg_order0", "no_deep_supervision", "warmup_lr", "batch_size_8"),
        ("no_da", "ce_loss", "adam", "cosine_lr", "probabilistic_oversampling_033", "benchmark_5epochs"),
    ],
)
def test_parts_combine(parts, traits_of):
    combined, default = traits_of("+".join(parts)), traits_of(nnUNetTrainer)
    assert differing(default, combined) == set().union(*(CHANGES[part][0] for part in parts))
    settings = ("optimizer", "initial_lr", "network", "batch_size", "mirror_axes", "initial_patch_size", "dummy_2d")
    for part in parts:
        changed = CHANGES[part][0].intersection(settings)
        assert not differing({key: combined[key] for key in changed}, {key: traits_of(part)[key] for key in changed})


@pytest.mark.parametrize("batch_size", [2, 3, 5, 12])
def test_share_of_random_oversampling_is_that_of_the_class(batch_size, traits_of):
    theirs = traits_of(stock_class("nnUNetTrainer_probabilisticOversampling"), batch_size=batch_size)
    assert differing(theirs, traits_of("probabilistic_oversampling", batch_size=batch_size)) == set()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("share", ["", "_033", "_010"])
def test_random_oversampling_is_the_same_on_every_rank(share, rank, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr(trainer_module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(trainer_module.dist, "get_rank", lambda: rank)
    found = []
    for cls in (
        stock_class(f"nnUNetTrainer_probabilisticOversampling{share}"),
        build_trainer_class(nnplug.resolve(f"probabilistic_oversampling{share}")),
    ):
        trainer = make_trainer(cls, made_up_plans(batch_size=5), made_up_dataset_json())
        trainer.is_ddp = True
        trainer._set_batch_size_and_oversample()
        found.append((trainer.batch_size, trainer.oversample_foreground_percent))
    assert found[0] == pytest.approx(found[1])


def test_benchmark_is_five_epochs(traits_of):
    assert differing(traits_of("nnUNetTrainer_5epochs"), traits_of("benchmark_5epochs")) == set()


def test_mirroring_along_two_axes_is_refused_in_2d():
    with pytest.raises(nnplug.NnplugError, match=re.escape("'mirror_01' works in 3D only; configuration '2d' is 2D.")):
        build_trainer_class(nnplug.resolve("mirror_01"))(
            made_up_plans(patch_size=SLICE), "2d", 0, made_up_dataset_json()
        )


@pytest.mark.parametrize("patch_size", [CUBE, SLICE], ids=["3d", "2d"])
def test_batch_norm_computes_what_the_class_computes(patch_size, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    networks = []
    for cls in (stock_class("nnUNetTrainerBN"), build_trainer_class(nnplug.resolve("batch_norm"))):
        trainer = make_trainer(cls, made_up_plans(patch_size=patch_size), made_up_dataset_json())
        networks.append(
            trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3, False)
        )
    theirs, ours = networks
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand((2, 1, *patch_size), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():  # running means and variances moved alike
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=0, atol=0)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name, tiny_dataset):
    """The whole trainer on preprocessed data: one step with a finite loss that changes the weights."""
    needs_adan(name)
    folder = tiny_dataset.preprocessed_folder
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((folder / "dataset.json").read_text())
    arch_kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arch_kwargs["features_per_stage"] = [4] * arch_kwargs["n_stages"]
    with tiny_dataset.activated():
        trainer = make_trainer(build_trainer_class(nnplug.resolve(name)), plans, dataset_json, "3d_fullres")
        trainer.initialize()
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
        trainer.network.train()
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert np.isfinite(loss)
    after = trainer.network.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
