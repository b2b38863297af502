"""References to code: how they fail, and which of them a file may name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from functools import partial

import pytest
from nnplug import NnplugError
from nnplug.composition.references import FileReference, describe, import_string, load, load_dotted
from support.plugin_packages import PluginSite, trainers

PLUGIN = """
import os
from collections import OrderedDict
from functools import partial

def builder():
    return "built"

class Nested:
    class Inner:
        pass

shell = os.system
half = partial(builder)
"""


def refused(ref: str) -> str:
    with pytest.raises(NnplugError) as error:
        load(ref, trusted=False)
    return str(error.value)


def module_level() -> None:
    """Stands for a function of a module."""


class Outer:
    def method(self) -> None: ...


def test_an_object_is_returned_as_it_is() -> None:
    assert load(module_level, trusted=False) is module_level


def test_a_reference_is_imported() -> None:
    assert load("collections:OrderedDict", trusted=True) is OrderedDict
    assert load("os:path.join", trusted=True) is os.path.join
    assert load_dotted("collections.OrderedDict", trusted=True) is OrderedDict


@pytest.mark.parametrize("ref", ["collections", "collections.OrderedDict", "a:b:c", ":x", "a:", "a b:c", "1a:b"])
def test_what_is_no_reference(ref: str) -> None:
    with pytest.raises(NnplugError) as error:
        load(ref, trusted=True)
    assert str(error.value) == f"'{ref}' is not a reference. Write 'package.module:attribute'."


def test_a_missing_module(site: PluginSite) -> None:
    site.add("acme-nets")
    for ref, module in (("nowhere.net:Net", "nowhere"), ("acme_nets.net:Net", "acme_nets.net")):
        with pytest.raises(NnplugError) as error:
            load(ref, trusted=True)
        assert str(error.value) == f"'{ref}': there is no module '{module}'. Is its package installed? " + (
            "A module of your own is found through PYTHONPATH."
        )


def test_a_missing_dependency(site: PluginSite) -> None:
    site.add("acme-nets", files={"net.py": "import xformers_missing.ops\n"})
    with pytest.raises(NnplugError) as error:
        load("acme_nets.net:Net", trusted=True)
    assert str(error.value) == (
        "'acme_nets.net:Net': importing 'acme_nets.net' needs 'xformers_missing', which is not installed."
    )
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


def test_a_module_that_raises(site: PluginSite) -> None:
    site.add("acme-nets", files={"net.py": "raise RuntimeError('no GPU\\nat all')\n", "empty.py": "raise ValueError\n"})
    with pytest.raises(NnplugError) as error:
        load("acme_nets.net:Net", trusted=True)
    assert str(error.value) == "'acme_nets.net:Net': importing 'acme_nets.net' failed (RuntimeError: no GPU)."
    with pytest.raises(NnplugError, match=r"failed \(ValueError: no reason given\)"):
        load("acme_nets.empty:Net", trusted=True)


def test_a_missing_attribute() -> None:
    with pytest.raises(NnplugError) as error:
        load("collections:OrderedDic", trusted=True)
    assert (
        str(error.value) == "'collections:OrderedDic': 'collections' has no 'OrderedDic' (did you mean OrderedDict?)."
    )


def test_a_reference_to_an_object() -> None:
    assert import_string(module_level) == f"{__name__}:module_level"
    assert import_string(Outer.method) == f"{__name__}:Outer.method"
    assert import_string("a.b:c") == "a.b:c"
    assert load(import_string(OrderedDict), trusted=True) is OrderedDict


def in_a_script() -> None:
    """Made to look as if it were defined in a script."""


def test_what_another_process_can_not_import() -> None:
    def closure() -> None: ...

    in_a_script.__module__ = "__main__"
    cases = {
        "it is a lambda. Write a function with def in a module.": lambda: None,
        "it is defined inside a function. Move it to the top of its module.": closure,
        "it is defined in a script. Move it to a module.": in_a_script,
        "it is an object, not a class or function of a module.": Outer(),
        "Use nnplug.Component(function, key=value) instead.": partial(module_level),
    }
    for reason, obj in cases.items():
        with pytest.raises(NnplugError) as error:
            import_string(obj)
        assert str(error.value).endswith(reason)
        assert "can not be imported by name" in str(error.value)


def test_a_name_that_belongs_to_another_object(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = module_level
    monkeypatch.setattr(sys.modules[__name__], "module_level", Outer)
    with pytest.raises(NnplugError, match="another object has that name in the module"):
        import_string(hidden)


def test_everything_can_be_described() -> None:
    assert describe("a:b") == "a:b"
    assert describe(lambda: None).endswith("<lambda>")
    assert describe(Outer()) == f"{__name__}:Outer"


@pytest.mark.parametrize(
    "ref", ["os:system", "subprocess:call", "builtins:exec", "numpy:load", "nnplug.composition.references:load"]
)
def test_a_file_may_not_name_other_packages(ref: str) -> None:
    assert refused(ref) == (
        f"'{ref}' is outside of what a file may name: torch, monai, nnunetv2, dynamic_network_architectures and "
        "packages of installed plugins. If you trust the file and that code, add --trust-code."
    )


def test_a_module_is_not_imported_before_it_is_allowed(site: PluginSite) -> None:
    (site.folder / "evil.py").write_text("raise SystemExit('ran')")
    assert "outside of what a file may name" in refused("evil:x")
    assert "evil" not in sys.modules


def test_a_mark_of_a_file_outlives_trust() -> None:
    with pytest.raises(NnplugError, match="outside of what a file may name"):
        load(FileReference("os:system"), trusted=True)
    assert load("os:system", trusted=True) is os.system


def test_a_file_may_name_what_a_plugin_defines(installed: PluginSite) -> None:
    installed.add("acme-nets", code=trainers(), files={"net.py": PLUGIN})
    assert load("acme_nets.net:builder", trusted=False)() == "built"
    assert load("acme_nets.net:Nested.Inner", trusted=False).__name__ == "Inner"


@pytest.mark.parametrize(
    ("path", "home"),
    [
        ("shell", "posix"),
        ("os.system", "posix"),
        ("OrderedDict", "collections"),
        ("partial", "functools"),
        ("half", "functools"),
    ],
)
def test_a_file_may_not_name_what_a_plugin_imports(installed: PluginSite, path: str, home: str) -> None:
    installed.add("acme-nets", code=trainers(), files={"net.py": PLUGIN})
    assert refused(f"acme_nets.net:{path}") == (
        f"'acme_nets.net:{path}' is defined in '{home}', which a file may not name. "
        "If you trust the file and that code, add --trust-code."
    )


@pytest.mark.parametrize("path", ["builder.__globals__", "__builtins__", "_private"])
def test_a_file_may_not_name_what_is_private(installed: PluginSite, path: str) -> None:
    installed.add("acme-nets", code=trainers(), files={"net.py": PLUGIN})
    assert refused(f"acme_nets.net:{path}") == (
        f"'acme_nets.net:{path}' is private; a file may name public things only. If you trust it, add --trust-code."
    )


def test_all_packages_of_a_plugin_distribution_count(installed: PluginSite) -> None:
    installed.add("acme-nets", code=trainers())
    (installed.folder / "acme_more").mkdir()
    (installed.folder / "acme_more" / "__init__.py").write_text("def build():\n    return 1\n")
    assert "outside" in refused("acme_more:build")
    record = installed.folder / "acme_nets-1.0.dist-info" / "RECORD"
    record.write_text("acme_nets/__init__.py,,\nacme_more/__init__.py,,\n")
    from nnplug.discovery.registry import get_registry

    get_registry().__dict__.pop("packages")
    assert load("acme_more:build", trusted=False)() == 1


TORCH = """
from nnplug import NnplugError
from nnplug.composition.references import load
TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
for ref in (
    "torch.nn:MSELoss", "torch.optim:AdamW", "torch.optim.lr_scheduler:CosineAnnealingLR", TRAINER + ":nnUNetTrainer",
    "nnunetv2.training.dataloading.data_loader:nnUNetDataLoader",
    "nnunetv2.training.lr_scheduler.polylr:PolyLRScheduler",
    TRAINER + ":nnUNetTrainer.get_training_transforms", TRAINER + ":nnUNetTrainer.get_validation_transforms",
    "dynamic_network_architectures.architectures.unet:PlainConvUNet", "monai.losses.dice:DiceLoss",
):
    load(ref, trusted=False)
for ref in (
    "torch:load", "torch.hub:load", "torch:os.system", "torch.jit:load", "torch.utils.cpp_extension:load",
    "torch:compile",
    "torch.nn:functional.cross_entropy", "torch.serialization:load", "monai.bundle.scripts:run",
    "torch.utils.data:DataLoader",
    TRAINER + ":nnUNetTrainer.run_training", TRAINER + ":join", "torch:Tensor", "torch.utils:cpp_extension",
):
    try:
        load(ref, trusted=False)
    except NnplugError as error:
        print(error)
    else:
        raise SystemExit(f"{ref} was loaded")
"""


def test_of_the_libraries_a_file_may_name_components_only() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == (
        "'torch.hub:load' is not a class that a file may name: of torch these are modules, losses, optimizers, "
        "schedules, loaders and trainers. If you trust the file, add --trust-code."
    )
    assert len(done.stdout.splitlines()) == 14
