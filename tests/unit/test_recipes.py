"""Recipes: TOML files, one trainer a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from nnplug import Component, NnplugError
from nnplug.composition.recipes import read_file_recipe, read_recipe
from nnplug.discovery.registry import Registry

WHOLE = """
name = "paper"
description = "As in the paper"
source = "A. Author, 2024"
extends = "wide"
unset = ["mirror_axes", "plans.batch_dice"]
network_builder = "acme.net:Net"
num_epochs = 200
initial_lr = 1e-3
patch_size = [40, 56, 40]
amp = true

[loss_fn]
use = "acme.loss:blob"
weight = 2
kinds = ["a", "b"]

[plans.architecture.arch_kwargs]
n_stages = 5
"""


def write(folder: Path, text: str | bytes, name: str = "my.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_kind_of_field(tmp_path: Path) -> None:
    config = read_recipe(write(tmp_path, WHOLE))
    assert config.set_fields() == {
        "name": "paper",
        "description": "As in the paper",
        "source": "A. Author, 2024",
        "extends": "wide",
        "unset": ("mirror_axes", "plans.batch_dice"),
        "network_builder": Component("acme.net:Net"),
        "loss_fn": Component("acme.loss:blob", weight=2, kinds=["a", "b"]),
        "num_epochs": 200,
        "initial_lr": 1e-3,
        "patch_size": (40, 56, 40),
        "amp": True,
        "plans": {"architecture": {"arch_kwargs": {"n_stages": 5}}},
    }


def test_the_name_is_that_of_the_file_if_none_is_given(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "num_epochs = 5", "quick.toml")).name == "quick"


BAD = [
    ("num_epochs = 'many'", "num_epochs: expected an integer >= 1, got 'many'."),
    ("num_epochs = 5.0", "num_epochs: expected an integer >= 1, got 5.0."),
    ("num_epoch = 5", "num_epoch: no such field (did you mean num_epochs?)."),
    ("[loss_fn]\nweight = 2", "loss_fn.use: expected 'package.module:attribute', got None."),
    ("loss_fn = 'acme.loss.blob'", "loss_fn: expected 'package.module:attribute', got 'acme.loss.blob'."),
    ("[plans]\npatch_size = [1]", "plans.patch_size: expected 2 or 3 integers >= 1, got [1]."),
    (
        "[plans.architecture]\nwhen = 2024-01-01",
        "plans.architecture.when: expected a plain value (number, text, true, false, list, table), "
        "got datetime.date(2024, 1, 1).",
    ),
    ("unset = ['seed']", "unset: nothing to drop without extends. Remove unset or name what this extends."),
    (
        "name = 'a__b'",
        "name: expected a name of letters, digits, '.', '-' and single '_' that begins with a letter and does not end "
        "with '_', got 'a__b'.",
    ),
    ("num_epochs = ", "not valid TOML: Invalid value (at end of document)."),
    (b"name = '\xff'", "not a text file in UTF-8."),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_mistake_is_named_with_file_and_path(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(NnplugError) as error:
        read_recipe(path, "my.toml")
    assert str(error.value) == f"my.toml: {message}"


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"gone\.toml: there is no such recipe file\.$"):
        read_recipe(tmp_path / "gone.toml")
    with pytest.raises(NnplugError, match=r"can not be read: Is a directory\.$"):
        read_recipe(tmp_path)


def test_a_recipe_by_path_is_identified_by_its_content(tmp_path: Path) -> None:
    text = "name = 'mine'\nnum_epochs = 5\n"
    digits = hashlib.sha256(text.encode()).hexdigest()[:8]
    config = read_file_recipe(write(tmp_path, text))
    assert config.name == f"mine-{digits}"
    assert read_file_recipe(write(tmp_path, text, "elsewhere.toml")).name == config.name
    assert read_file_recipe(write(tmp_path, text + "seed = 1\n")).name != config.name


def test_a_recipe_by_path_composes(tmp_path: Path) -> None:
    path = write(tmp_path, "num_epochs = 5\n[loss_fn]\nuse = 'torch.nn:MSELoss'\n")
    name = read_file_recipe(path).name
    registry = Registry([])
    assert registry.resolve(path).name == name
    resolved = registry.resolve(f"initial_lr=1e-3+{path}")
    assert resolved.name == f"{name}+initial_lr=0.001"
    assert resolved.origins["num_epochs"].file == str(path)
    assert registry.resolve(f"num_epochs=9+loss_fn=@{path}").name == f"loss_fn=@{name}+num_epochs=9"


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    folder = tmp_path / "a+b=c @d"
    folder.mkdir()
    path = write(folder, "num_epochs = 5")
    assert Registry([]).resolve(str(path)).config.num_epochs == 5


def test_the_name_of_a_recipe_by_path_is_explained(tmp_path: Path) -> None:
    name = read_file_recipe(write(tmp_path, "num_epochs = 5")).name
    with pytest.raises(NnplugError) as error:
        Registry([]).resolve(name)
    assert str(error.value) == (
        f"Unknown trainer '{name}'. It looks like a recipe given as a file: give the file again, -tr my.toml. "
        "List them with: nnplug trainers."
    )


def test_a_recipe_by_path_may_not_import_from_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path, "loss_fn = 'os:system'")
    with pytest.raises(NnplugError) as error:
        Registry([]).resolve(str(path))
    assert str(error.value).startswith(
        f"{path}: loss_fn: 'os:system' is outside of what a file may name: torch, monai,"
    )
    assert Registry([]).resolve(str(path), trust_code=True).config.loss_fn == Component("os:system")
