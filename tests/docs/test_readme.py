"""What README and the index of the documents show must work as it stands there."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from pathlib import Path

import pytest
from nnplug import LossContext, list_trainers, resolve
from nnplug.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:nnplug|nnUNetv2_\w+) .*)$", README, re.MULTILINE)


def test_the_session_is_found() -> None:
    assert len(COMMANDS) == 6


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_typed(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program != "nnplug":
        assert importlib.metadata.entry_points(group="console_scripts", name=program)
        return
    args = build_parser().parse_args(arguments)
    if getattr(args, "trainer", None):
        resolve(args.trainer)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^    make ([\w-]+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_recipe_makes_a_loss(tmp_path: Path) -> None:
    import torch
    from nnplug.training.losses import build_loss

    (recipe,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "my_recipe.toml"
    path.write_text(recipe, encoding="utf-8")
    config = resolve(str(path)).config
    assert (config.num_epochs, config.loss_fn.kwargs["label_smoothing"]) == (500, 0.1)
    loss = build_loss(config.loss_fn, LossContext(num_classes=3, spatial_dims=3), None)
    target = torch.randint(0, 3, (2, 1, 4, 4, 4)).float()
    sure = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1) * 20.0
    assert float(loss(sure, target)) < float(loss(-sure, target))


def test_the_number_of_networks() -> None:
    networks = [name for name in list_trainers("monai_*") if resolve(name).config.network_builder is not None]
    assert len(networks) == 9
    assert "nine MONAI networks" in README


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "index.md" or f"({path.name})" in index, path.name


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs" / "images" / "demo.png").stat().st_size < 300_000
