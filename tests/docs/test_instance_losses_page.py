"""docs/instance_losses.md: its commands name trainers, its recipe and its table of settings are right."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import nnplug
import pytest
from nnplug import LossContext
from nnplug.training.losses import make_loss
from nnplug_instance_losses import losses

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "instance_losses.md").read_text(encoding="utf-8")
CONTEXT = LossContext(num_classes=2, spatial_dims=3)
TRAINERS = re.findall(r"^nnplug train .* -tr (\S+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainers_of_the_commands(trainer: str) -> None:
    loss, _ = make_loss(nnplug.resolve(trainer).config.loss_fn, CONTEXT)
    assert isinstance(loss, losses.InstanceLoss)


def test_every_part_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(\w+_loss)` \|", PAGE, re.MULTILINE)
    assert listed == ["blob_dice_loss", "blob_dice_ce_loss", "region_dice_loss", "region_dice_ce_loss"]
    made = [make_loss(nnplug.resolve(name).config.loss_fn, CONTEXT)[0] for name in listed]
    assert [(loss.cells, loss.cross_entropy) for loss in made] == [
        (c, ce) for c in (False, True) for ce in (False, True)
    ]
    assert TRAINERS


def test_settings_and_defaults() -> None:
    listed = dict(re.findall(r"^\| `loss_fn\.(\w+)` \| `?(\w+)`? \|", PAGE, re.MULTILINE))
    parameters = inspect.signature(losses.InstanceLoss).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert listed == {name: f"{value:g}" if isinstance(value, float) else value for name, value in defaults.items()}


def test_the_recipe(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "blob_light.toml"
    file.write_text(recipe)
    loss, _ = make_loss(nnplug.resolve(file).config.loss_fn, CONTEXT)
    assert type(loss) is losses.BlobDiceLoss
    assert (loss.weight_global, loss.weight_instance, loss.deep_supervision) == (1, 0.25, "full")
