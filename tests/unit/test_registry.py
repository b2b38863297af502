"""The registry: one broken plugin never hides the others, and clashes are errors only where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from nnplug import NnplugError, TrainerConfig
from nnplug.discovery.registry import PluginRecord, Registry, UnknownTrainerError, get_registry, natural_key
from support.plugin_packages import PluginSite, trainers

UNET = "name='unet_r', network_builder='plug.net:Net'"


def unknown(registry: Registry, text: str) -> str:
    with pytest.raises(UnknownTrainerError) as error:
        registry.resolve(text)
    return str(error.value)


def failed(site: PluginSite, **package: object) -> PluginRecord:
    """The record of a plugin that is broken, next to one that is not."""
    site.add("good", code=trainers("name='fine', num_epochs=5"))
    site.add("bad", **package)  # type: ignore[arg-type]
    registry = site.registry()
    bad, good = registry.plugins
    assert good.is_loaded
    assert registry.resolve("fine").config.num_epochs == 5
    assert registry.list_names() == ["fine"]
    assert registry.failures == [bad]
    assert bad.module is None
    assert bad.traceback is not None
    assert bad.reason is not None
    assert not [module for module in registry.manager.get_plugins() if module.__name__ == "bad"]
    return bad


def test_python_trainers_and_recipes_are_registered_with_their_provenance(site: PluginSite) -> None:
    site.add(
        "acme-nets",
        "2.1",
        code="X = 1\n" + trainers("name='acme_net', network_builder='acme_nets.net:Net'"),
        recipes={"quick.toml": "num_epochs = 5\nextends = 'acme_net'", "notes.txt": "no recipe"},
    )
    registry = site.registry()
    [record] = registry.plugins
    assert (record.distribution, record.version, record.entry_point) == ("acme-nets", "2.1", "acme_nets = acme_nets")
    assert (record.num_trainers, record.num_recipes, record.reason) == (1, 1, None)
    assert record.file == str(site.folder / "acme_nets" / "__init__.py")
    [net], [quick] = registry.registrations["acme_net"], registry.registrations["quick"]
    assert (net.owner, net.where, net.is_file) == ("acme-nets 2.1", "acme_nets/__init__.py:7", False)
    assert (quick.owner, quick.where, quick.is_file) == ("acme-nets 2.1", "acme_nets/recipes/quick.toml", True)
    resolved = registry.resolve("quick")
    assert resolved.origins["network_builder"].file == "acme_nets/__init__.py:7"
    assert resolved.distributions == {"acme-nets": "2.1"}


def test_a_hook_may_take_fewer_arguments_and_register_nothing(site: PluginSite) -> None:
    site.add("logger", code="@nnplug.hookimpl\ndef epoch_end(metrics):\n    pass\n")
    [record] = site.registry().plugins
    assert record.is_loaded
    assert (record.num_trainers, record.num_recipes) == (0, 0)


def test_code_of_other_distributions_of_plugins_counts(site: PluginSite) -> None:
    site.add("acme-nets", "2.1", code=trainers())
    site.add("acme-recipes", "0.3", code=trainers("name='paper', loss_fn='acme_nets.loss:blob'"))
    assert site.registry().resolve("paper").distributions == {"acme-nets": "2.1", "acme-recipes": "0.3"}


BROKEN = [
    ("import xformers_missing\n", "No module named 'xformers_missing'"),
    ("raise RuntimeError('no GPU\\nreally')\n", "RuntimeError: no GPU"),
    ("raise ValueError\n", "ValueError"),
    ("raise SystemExit(3)\n", "SystemExit: 3"),
    ("def f(:\n", "SyntaxError: invalid syntax (__init__.py, line 4)"),
    ("", "has no hook. Mark one with @nnplug.hookimpl, for example register_trainers(register)"),
    (
        "@nnplug.hookimpl\ndef register_trainer(register):\n    pass\n",
        "there is no hook 'register_trainer'. Did you mean 'register_trainers'?",
    ),
    (
        "@nnplug.hookimpl\ndef on_batch(run):\n    pass\n",
        "there is no hook 'on_batch'. The hooks are: register_trainers, register_recipes, register_planners, "
        "register_preprocessors, train_start, epoch_end, "
        "checkpoint_saved, train_end",
    ),
    (
        "@nnplug.hookimpl\ndef epoch_end(run, metric):\n    pass\n",
        "epoch_end(run, metrics) has no argument 'metric'",
    ),
    (
        "def register_trainers(register):\n    pass\n",
        "'register_trainers' is not marked as a hook. Write @nnplug.hookimpl above def register_trainers",
    ),
    (
        "def register_trainer(register):\n    pass\n" + trainers(),
        "'register_trainer' is not marked as a hook. Write @nnplug.hookimpl above def register_trainers",
    ),
    (
        trainers("name='twice'", "name='other'", "name='twice', num_epochs=5"),
        "registers 'twice' twice (bad/__init__.py:6 and bad/__init__.py:8)",
    ),
    (
        trainers("name='num_epochs'"),
        "bad/__init__.py:6: the name 'num_epochs' is reserved: it means something else after -tr. Choose another",
    ),
    (
        trainers("name='all'"),
        "bad/__init__.py:6: the name 'all' is reserved: it means something else after -tr. Choose another",
    ),
    (
        trainers("name='a', num_epochs='many'"),
        "trainer 'a': num_epochs: expected an integer >= 1, got 'many'",
    ),
    (trainers("name='a', epochs=3"), "TypeError: TrainerConfig.__init__() got an unexpected keyword argument 'epochs'"),
    (
        "@nnplug.hookimpl\ndef register_trainers(register):\n    register('unet')\n",
        "register() takes a nnplug.TrainerConfig, got str (bad/__init__.py:6)",
    ),
    (
        "@nnplug.hookimpl\ndef register_recipes():\n    return 'nowhere'\n",
        "register_recipes returned 'nowhere', which is not a folder",
    ),
    (
        "NNPLUG_API = 2\n" + trainers(),
        "it is written for plugin API 2 of nnplug, and this nnplug has API 1. Install a newer nnplug: "
        "pip install -U nnplug",
    ),
    (
        "NNPLUG_API = 0\n" + trainers(),
        "it is written for plugin API 0 of nnplug, and this nnplug has API 1. Install a newer version of the plugin",
    ),
    ("NNPLUG_API = '1'\n" + trainers(), "NNPLUG_API is '1', not a number. Write NNPLUG_API = 1"),
]


@pytest.mark.parametrize(("code", "reason"), BROKEN)
def test_a_broken_plugin_is_kept_as_a_record(site: PluginSite, code: str, reason: str) -> None:
    assert failed(site, code=code).reason == reason


def test_a_broken_recipe_breaks_its_plugin(site: PluginSite) -> None:
    record = failed(site, recipes={"a.toml": "num_epochs = 5", "b.toml": "num_epochs = 'many'"})
    assert record.reason == "bad/recipes/b.toml: num_epochs: expected an integer >= 1, got 'many'"


def test_a_missing_module(site: PluginSite) -> None:
    site.add_metadata("bad", "1.0", {"bad": "bad_gone"}, [])
    [record] = site.registry().plugins
    assert record.reason == "No module named 'bad_gone'"


def test_this_api_can_be_declared(site: PluginSite) -> None:
    site.add("good", code="NNPLUG_API = nnplug.API_VERSION\n" + trainers())
    assert site.registry().failures == []


def test_one_module_under_two_entry_points(site: PluginSite) -> None:
    site.add("acme", code=trainers("name='a'"))
    site.add_metadata("other", "1.0", {"again": "acme"}, [])
    first, second = site.registry().plugins
    assert first.is_loaded
    assert second.reason == "registers twice: 'acme: acme = acme' names the same module"


def test_one_distribution_registers_a_name_in_two_entry_points(site: PluginSite) -> None:
    site.add("acme", code=trainers("name='a'"))
    (site.folder / "more.py").write_text("import nnplug\nfrom nnplug import TrainerConfig\n" + trainers("name='a'"))
    (site.folder / "acme-1.0.dist-info" / "entry_points.txt").write_text("[nnplug]\nacme = acme\nmore = more\n")
    assert [record.reason for record in site.registry().plugins] == [
        None,
        "registers 'a' twice (also in acme/__init__.py:6 of this package)",
    ]


def test_two_distributions_may_use_one_entry_point_name(site: PluginSite) -> None:
    site.add("one", code=trainers("name='a'"), entry_point="main")
    site.add("two", code=trainers("name='b'"), entry_point="main")
    assert site.registry().list_names() == ["a", "b"]


def test_an_ambiguous_name(site: PluginSite) -> None:
    site.add("plug-a", "1.0", code=trainers(UNET, "name='other'"))
    site.add("Plug.B", "2.1", module="plug_b", code=trainers("name='unet_r', network_builder='plug.net:Other'"))
    registry = site.registry()
    with pytest.raises(NnplugError) as error:
        registry.resolve("unet_r+num_epochs=5")
    assert str(error.value) == (
        "Trainer 'unet_r' is registered by 'plug-a 1.0' (plug_a/__init__.py:6) and 'Plug.B 2.1' (plug_b/__init__.py:6)"
        ". Use 'unet_r@plug-a' or uninstall one."
    )
    assert registry.resolve("other").name == "other"
    resolved = registry.resolve("num_epochs=5+unet_r@plug_b")
    assert resolved.name == "unet_r@plug-b+num_epochs=5"
    assert resolved.as_dict()["network_builder"] == {"use": "plug.net:Other"}
    assert resolved.distributions == {"plug-b": "2.1"}
    assert registry.resolve(resolved.name).as_dict() == resolved.as_dict()
    assert registry.resolve("num_epochs=5+network_builder=@unet_r@plug-a").name == (
        "network_builder=@unet_r@plug-a+num_epochs=5"
    )
    assert unknown(registry, "unet_r@plug-c") == (
        "Unknown trainer 'unet_r@plug-c'. There is 'unet_r@plug-a' and 'unet_r@plug-b'."
    )


def test_a_name_like_those_of_classes(site: PluginSite) -> None:
    site.add("plug-a", code=trainers("name='nnUNetTrainerMine', num_epochs=5", "name='nnUNetTrainerDA5', num_epochs=5"))
    registry = site.registry()
    assert registry.resolve("nnUNetTrainerMine").name == "nnUNetTrainerMine"
    with pytest.raises(NnplugError) as error:
        registry.resolve("nnUNetTrainerDA5")
    assert str(error.value).startswith(
        "Trainer 'nnUNetTrainerDA5' is registered by 'plug-a 1.0' (plug_a/__init__.py:7) and is a trainer class "
        "(nnunetv2/training/nnUNetTrainer/variants/data_augmentation/nnUNetTrainerDA5.py:"
    )
    assert str(error.value).endswith("). Use 'nnUNetTrainerDA5@plug-a' or rename the class.")
    assert registry.resolve("nnUNetTrainerDA5@plug-a").name == "nnUNetTrainerDA5@plug-a"
    assert registry.resolve("nnUNetTrainerDA5@plug-a").config.num_epochs == 5


def test_the_name_of_a_field_is_for_a_trainer_that_sets_it(site: PluginSite) -> None:
    site.add("plug-a", code=trainers("name='num_epochs', num_epochs=5"))
    assert site.registry().resolve("num_epochs+initial_lr=0.1").config.num_epochs == 5


def test_the_distribution_is_left_out_where_it_is_not_needed(site: PluginSite) -> None:
    site.add("plug-a", code=trainers(UNET))
    assert site.registry().resolve("unet_r@plug-a").name == "unet_r"


def test_unknown_names(site: PluginSite) -> None:
    site.add("nets", code=trainers("name='kiunet_minimal'", "name='UIUNet'"))
    registry = site.registry()
    listed = "List them with: nnplug trainers."
    assert (
        unknown(registry, "kiunet_minmal")
        == f"Unknown trainer 'kiunet_minmal'. Did you mean 'kiunet_minimal'? {listed}"
    )
    assert unknown(registry, "uiunet") == f"Unknown trainer 'uiunet'. Did you mean 'UIUNet'? {listed}"
    assert unknown(registry, "zork") == f"Unknown trainer 'zork'. {listed}"
    assert unknown(registry, "num_epochs") == "Unknown trainer 'num_epochs'. It is a field. Write num_epochs=VALUE."
    assert unknown(registry, "loss_fn") == "Unknown trainer 'loss_fn'. It is a field. Write loss_fn=@NAME."
    assert unknown(registry, "kiunet_minimal+zork") == f"Unknown trainer 'zork'. {listed}"
    assert (
        unknown(registry, "nnUNetTrainerDA4")
        == f"Unknown trainer 'nnUNetTrainerDA4'. Did you mean 'nnUNetTrainerDA5'? {listed}"
    )
    assert (
        unknown(registry, "nnUNetTrainr") == f"Unknown trainer 'nnUNetTrainr'. Did you mean 'nnUNetTrainer'? {listed}"
    )
    assert (
        unknown(registry, "nnunettrainerda5")
        == f"Unknown trainer 'nnunettrainerda5'. Did you mean 'nnUNetTrainerDA5'? {listed}"
    )
    assert unknown(registry, "kiunet_minimal@nowhere") == (
        "Unknown trainer 'kiunet_minimal@nowhere'. There is 'kiunet_minimal@nets'."
    )


def test_an_unknown_name_mentions_broken_plugins(site: PluginSite) -> None:
    site.add("acme-nets", "0.2", code="import xformers_missing\n")
    assert unknown(site.registry(), "zork") == (
        "Unknown trainer 'zork'. List them with: nnplug trainers. "
        "One plugin failed to load: acme-nets 0.2 (No module named 'xformers_missing')."
    )
    site.add("bad-nets", "0.3", code="raise OSError('disk')\n")
    assert unknown(site.registry(), "zork").endswith(
        "2 plugins failed to load: acme-nets 0.2 (No module named 'xformers_missing'); bad-nets 0.3 (OSError: disk)."
    )


def test_configs_built_in_python(site: PluginSite) -> None:
    site.add("nets", "1.5", code=trainers("name='unet', num_epochs=5"))
    registry = site.registry()
    assert registry.resolve(TrainerConfig(name="mine", num_epochs=5)).distributions == {}
    registered = registry.resolve(TrainerConfig(name="unet", num_epochs=5))
    assert registered.distributions == {"nets": "1.5"}
    assert registry.resolve(registered) is registered
    derived = registry.resolve(TrainerConfig(name="mine", extends="unet", initial_lr=0.1))
    assert derived.as_dict() == {"name": "mine", "initial_lr": 0.1, "num_epochs": 5}
    for name, reason in (
        (
            "unet",
            "has the name of a trainer of 'nets 1.5' (nets/__init__.py:6). Give it another: config.copy(name=...)",
        ),
        ("true", "the name 'true' is reserved: it means something else after -tr. Choose another."),
        ("nnUNetTrainerDA5", "the name 'nnUNetTrainerDA5' is that of a class of nnU-Net. Choose another."),
    ):
        with pytest.raises(NnplugError) as error:
            registry.resolve(TrainerConfig(name=name, num_epochs=6))
        assert str(error.value) in (f"TrainerConfig '{name}': {reason}", f"TrainerConfig '{name}' {reason}")


def test_natural_order() -> None:
    names = ["unet10", "Unet9", "attention", "unet", "unet2d", "2d"]
    assert sorted(names, key=natural_key) == ["2d", "attention", "unet", "unet2d", "Unet9", "unet10"]


def test_patterns(site: PluginSite) -> None:
    site.add("nets", code=trainers(*(f"name='{name}'" for name in ("unet10", "unet9", "KiUNet", "blob_loss"))))
    registry = site.registry()
    assert registry.list_names() == ["blob_loss", "KiUNet", "unet9", "unet10"]
    assert registry.list_names("unet") == ["KiUNet", "unet9", "unet10"]
    assert registry.list_names("unet*") == ["unet9", "unet10"]
    assert registry.list_names("unet?") == ["unet9"]
    assert registry.list_names("*[0-9]") == ["unet9", "unet10"]
    assert registry.list_names("zork") == []


def test_the_registry_of_the_process_is_made_once() -> None:
    assert get_registry() is get_registry()
    assert get_registry().failures == []


def test_plugins_of_this_distribution_are_found_by_a_fresh_process(site: PluginSite) -> None:
    site.add("acme-nets", code=trainers("name='acme_net', num_epochs=5"))
    code = "import nnplug; print(nnplug.resolve('acme_net+amp=true').name, 'acme_net' in nnplug.list_trainers('acme'))"
    environment = {"PYTHONPATH": str(site.folder), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "acme_net+amp=true True\n", done.stderr


def test_registration_is_found_where_the_call_is(site: PluginSite) -> None:
    site.add(
        "nets",
        code="from nets.more import add\n\n@nnplug.hookimpl\ndef register_trainers(register):\n    add(register)\n",
        files={
            "more.py": "from nnplug import TrainerConfig\n\ndef add(register):\n    register(TrainerConfig(name='a'))\n"
        },
    )
    assert site.registry().registrations["a"][0].where == str(Path("nets", "more.py")) + ":4"
