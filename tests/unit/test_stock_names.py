"""nnU-Net's trainer classes, read from sources without importing them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nnplug import NnplugError
from nnplug.composition.references import load
from nnplug.discovery.registry import Registry
from nnplug.discovery.stock_names import STOCK_FOLDER, external_trainers, fields_set_by, find_trainer, stock_trainers

VARIANTS = "nnunetv2.training.nnUNetTrainer.variants"

MINE = '''
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from shared.base import Base


class MyTrainer(nnUNetTrainerDiceLoss):
    """My trainer.

    More text.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.num_epochs = 7
        self.note, self.initial_lr = "x", 0.5


class MyNet(Base):
    @staticmethod
    def build_network_architecture():
        pass


class NotATrainer:
    pass


class Unknown(Missing):
    pass
'''
BASE = """
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock


class Base(stock.nnUNetTrainer):
    def configure_optimizers(self):
        pass
"""


@pytest.fixture
def external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in nnUNet_extTrainer, next to nnplug's own."""
    folder = tmp_path / "ext"
    (folder / "shared").mkdir(parents=True)
    (folder / "mine.py").write_text(MINE)
    (folder / "shared" / "base.py").write_text(BASE)
    (folder / "broken.py").write_text("class Broken(:\n")
    monkeypatch.setenv(
        "nnUNet_extTrainer", os.pathsep.join([str(STOCK_FOLDER), str(folder), str(tmp_path / "gone"), ""])
    )
    return folder


def test_nnunets_classes_are_found() -> None:
    found = stock_trainers()
    assert {"nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainer_250epochs", "nnUNet_Primus_M_Trainer"} <= set(found)
    assert "AbstractPrimus" not in found
    trainer = found["nnUNetTrainerDA5"]
    assert trainer.reference == f"{VARIANTS}.data_augmentation.nnUNetTrainerDA5:nnUNetTrainerDA5"
    assert f"class {trainer.name}" in trainer.file.read_text().splitlines()[trainer.line - 1]


EXPECTED = {
    "nnUNetTrainer": {},
    "nnUNetTrainerDiceLoss": {"loss_fn"},
    "nnUNetTrainerDA5": {"training_transforms"},
    "nnUNetTrainerBN": {"network_builder"},
    "nnUNetTrainerAdam3en4": {"optimizer", "lr_scheduler", "initial_lr"},
    "nnUNetTrainer_100epochs": {"num_epochs"},
    "nnUNetTrainerNoDeepSupervision": {"enable_deep_supervision"},
    "nnUNetTrainerDA5_10epochs": {"training_transforms", "num_epochs"},
    "nnUNetTrainer_noDummy2DDA": {},
}


@pytest.mark.parametrize(("name", "fields"), EXPECTED.items())
def test_what_a_class_decides(name: str, fields: set[str]) -> None:
    assert set(stock_trainers()[name].sets) == set(fields)
    assert fields_set_by(stock_trainers()[name].reference) == stock_trainers()[name].sets


def test_the_class_that_decides_is_named() -> None:
    assert stock_trainers()["nnUNetTrainerAdam3en4"].sets["optimizer"] == "nnUNetTrainerAdam"


def test_reading_agrees_with_the_classes_themselves() -> None:
    code = f"""
import importlib, json
from nnplug.discovery.stock_names import fields_set_by, stock_trainers
for name, trainer in stock_trainers().items():
    if not trainer.reference.startswith({VARIANTS!r}) or "competitions" in trainer.reference:
        continue
    module = importlib.import_module(trainer.reference.partition(":")[0])
    assert dict(fields_set_by(getattr(module, name))) == dict(trainer.sets), name
print("agreed")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("agreed\n"), done.stderr


def test_reading_imports_nothing() -> None:
    code = (
        "import sys, nnplug.discovery.stock_names as names; names.stock_trainers(); "
        "print([m for m in sys.modules if 'nnunet' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_base_that_a_package_passes_on(external: Path) -> None:
    package = external / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .base import Own\n")
    (package / "base.py").write_text(BASE.replace("class Base", "class Own"))
    (external / "passed_on.py").write_text("from package import Own\nclass nnUNetTrainerPassedOn(Own):\n    pass\n")
    assert "nnUNetTrainerPassedOn" in external_trainers()


def test_folders_of_the_variable_count(external: Path) -> None:
    found = external_trainers()
    assert set(found) == {"MyTrainer", "MyNet", "Base"}
    mine = found["MyTrainer"]
    assert (mine.description, mine.file, mine.line) == ("My trainer.", external / "mine.py", 7)
    assert mine.sets == {"loss_fn": "nnUNetTrainerDiceLoss", "num_epochs": "MyTrainer", "initial_lr": "MyTrainer"}
    assert found["MyNet"].sets == {"network_builder": "MyNet", "optimizer": "Base", "lr_scheduler": "Base"}
    assert fields_set_by("nnUNet_extTrainer:MyNet") == found["MyNet"].sets
    assert find_trainer("MyTrainer") is mine


def test_without_the_variable_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert external_trainers() == {}
    with pytest.raises(NnplugError) as error:
        load("nnUNet_extTrainer:MyTrainer", trusted=False)
    assert str(error.value) == "No folder in the variable nnUNet_extTrainer has a trainer class 'MyTrainer'."


@pytest.mark.usefixtures("external")
def test_a_class_of_a_folder_is_a_trainer_name() -> None:
    resolved = Registry([]).resolve("MyTrainer+num_epochs=3")
    assert resolved.name == "MyTrainer+num_epochs=3"
    assert resolved.as_dict()["base_trainer"] == {"use": "nnUNet_extTrainer:MyTrainer"}


def test_a_class_of_a_folder_is_imported_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"made_trainer_{os.getpid()}"
    source = "class nnUNetTrainer:\n    pass\n\n\nclass Light(nnUNetTrainer):\n    pass\n"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    before = list(sys.path)
    assert load("nnUNet_extTrainer:Light", trusted=False).__name__ == "Light"
    assert sys.path == before
    del sys.modules[module]


def test_a_class_whose_module_has_the_name_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ast.py").write_text("class nnUNetTrainer:\n    pass\n\n\nclass Hidden(nnUNetTrainer):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(NnplugError) as error:
        load("nnUNet_extTrainer:Hidden", trusted=True)
    assert str(error.value) == (
        f"{tmp_path / 'ast.py'}: another module is named 'ast' ({ast.__file__}). Rename the file."
    )


def test_a_class_whose_module_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "class nnUNetTrainer:\n    pass\n\n\nclass Late(nnUNetTrainer):\n    pass\n\n\nraise OSError('disk')\n"
    (tmp_path / "late_trainer.py").write_text(source)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(NnplugError) as error:
        load("nnUNet_extTrainer:Late", trusted=True)
    assert str(error.value) == f"{tmp_path / 'late_trainer.py'}: importing it failed (OSError: disk)."


def test_what_is_no_class_decides_nothing() -> None:
    assert fields_set_by("nowhere.module:Class") == {}
    assert fields_set_by("collections:OrderedDict") == {}
    assert fields_set_by(lambda: None) == {}
