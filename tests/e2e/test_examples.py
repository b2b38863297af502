"""Packages of others, as their users have them: wheels, installed with pip beside nnplug's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.datasets import DatasetForTests
from support.wheels import ROOT, VirtualEnvironment, build_wheel

SHORT = "num_epochs=1+num_iterations_per_epoch=2+num_val_iterations_per_epoch=1"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def site(scratch: Path) -> VirtualEnvironment:
    """A fresh virtual environment with nnplug."""
    return VirtualEnvironment(scratch / "venv", build_wheel(ROOT, scratch))


def example(name: str, scratch: Path) -> Path:
    return build_wheel(ROOT / "examples" / name, scratch)


@pytest.fixture(scope="module")
def acme(scratch: Path) -> Path:
    """The wheel of examples/nnplug-acme."""
    return example("nnplug-acme", scratch)


@pytest.fixture
def model(site: VirtualEnvironment, acme: Path, tiny_dataset: DatasetForTests) -> Path:
    """The folder of a model that was trained with nnplug-acme, which is no longer installed."""
    with site.installed(acme):
        train = ("nnplug", "train", 901, "3d_fullres", 0, "-device", "cpu", "--json")
        done = site.run(*train, "-tr", f"acme+{SHORT}", env=tiny_dataset.env)
    result = json.loads(done.stdout)
    assert result["status"] == "completed"
    assert result["stock_prediction_obstacle"] is None
    assert result["stock_prediction_needs"] == ["nnplug-acme"]
    return Path(result["model_path"])


def test_nnplug_in_the_environment_is_the_wheel(site: VirtualEnvironment) -> None:
    where = site.run(
        "python", "-c", "import nnplug, nnplug_configs, torch; print(nnplug.__file__, nnplug_configs.__file__)"
    )
    assert all(Path(file).is_relative_to(site.folder) for file in where.stdout.split())
    ours = [line.split()[1] for line in site.run("nnplug", "plugins").stdout.splitlines()]
    assert set(ours) == {"0.1.0"}


def test_a_plugin_is_there_while_it_is_installed(site: VirtualEnvironment, acme: Path) -> None:
    with site.installed(acme):
        assert site.run("nnplug", "trainers", "acme*").stdout == (
            "acme          nnplug-acme  The network, the loss and the sampler of nnplug-acme\n"
            "acme_loss     nnplug-acme  Soft Jaccard\n"
            "acme_net      nnplug-acme  Dilated convolutions at full resolution\n"
            "acme_sampler  nnplug-acme  Every case once before one comes again\n"
        )
        plugins = site.run("nnplug", "plugins", "--check").stdout.splitlines()
        [line] = [line for line in plugins if line.startswith("nnplug-acme 0.1.0 ")]
        assert line.split(maxsplit=3)[2:] == ["nnplug_acme", "3 trainers, 1 recipe, preprocessor AcmePreprocessor"]
    gone = site.run("nnplug", "trainers", "acme*", check=False)
    assert gone.returncode == 2
    assert gone.stderr.startswith("nnplug: error: No trainer matches 'acme*'.")
    unknown = site.run("nnplug", "show", "acme_net", check=False)
    assert unknown.stderr.startswith("nnplug: error: Unknown trainer 'acme_net'.")


def test_a_model_needs_its_plugin(
    site: VirtualEnvironment, acme: Path, model: Path, tiny_dataset: DatasetForTests, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    image = min((tiny_dataset.raw_folder / "imagesTr").iterdir())
    (images / image.name).symlink_to(image)
    predict = ("nnplug", "predict_from_modelfolder", "-i", images, "-o", tmp_path / "out", "-m", model, "-f", 0)
    predict += ("-device", "cpu")
    refused = site.run(*predict, env=tiny_dataset.env, check=False)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"nnplug: error: The model '{model.name.partition('__')[0]}' was trained with nnplug-acme 0.1.0, which is not "
        "installed. Install it: pip install nnplug-acme==0.1.0\n"
    )
    assert not list(tmp_path.glob("out/*.nii.gz"))
    with site.installed(acme):
        site.run(*predict, env=tiny_dataset.env)
    assert list(tmp_path.glob("out/*.nii.gz"))


def test_two_plugins_with_one_name(site: VirtualEnvironment, acme: Path, scratch: Path) -> None:
    with site.installed(acme), site.installed(example("nnplug-acme-clash", scratch)):
        assert site.run("nnplug", "trainers", "acme_net").stdout == (
            "acme_net@nnplug-acme        nnplug-acme        (two plugins use this name) "
            "Dilated convolutions at full resolution\n"
            "acme_net@nnplug-acme-clash  nnplug-acme-clash  (two plugins use this name) "
            "Not the network of nnplug-acme\n"
        )
        refused = site.run("nnplug", "show", "acme_net", check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith("nnplug: error: Trainer 'acme_net' is registered by 'nnplug-acme 0.1.0' (")
        assert refused.stderr.endswith("). Use 'acme_net@nnplug-acme' or uninstall one.\n")
        assert "nnplug_acme.network:DilatedNet" in site.run("nnplug", "show", "acme_net@nnplug-acme").stdout
        assert site.run("nnplug", "show", "acme_net@nnplug-acme-clash+acme_loss").returncode == 0


def test_a_plugin_that_can_not_be_imported(site: VirtualEnvironment, acme: Path, scratch: Path) -> None:
    with site.installed(acme), site.installed(example("nnplug-acme-broken", scratch)):
        listed = site.run("nnplug", "plugins", check=False)
        assert listed.returncode == 1
        [broken] = [line for line in listed.stdout.splitlines() if line.startswith("nnplug-acme-broken 0.1.0 ")]
        assert broken.endswith("broken: No module named 'acme_missing_library'")
        trainers = site.run("nnplug", "trainers", "acme_net")
        assert trainers.stdout.startswith("acme_net  nnplug-acme  ")
        assert trainers.stderr == "1 plugin failed to load. See why with: nnplug plugins\n"
        unknown = site.run("nnplug", "show", "acme_broken", check=False)
        assert unknown.stderr.endswith(
            "One plugin failed to load: nnplug-acme-broken 0.1.0 (No module named 'acme_missing_library').\n"
        )


def test_the_examples_own_tests_pass(site: VirtualEnvironment, acme: Path) -> None:
    with site.installed(acme):
        done = site.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=ROOT / "examples" / "nnplug-acme")
    assert " passed" in done.stdout


def test_what_new_plugin_writes_is_built_installed_and_passes(site: VirtualEnvironment, tmp_path: Path) -> None:
    site.run("nnplug", "new-plugin", "my-nets", "-o", tmp_path)
    with site.installed(build_wheel(tmp_path / "my-nets", tmp_path)):
        assert site.run("nnplug", "show", "my_nets_unet+my_nets_focal").returncode == 0
        done = site.run("python", "-m", "pytest", "-q", cwd=tmp_path / "my-nets")
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
