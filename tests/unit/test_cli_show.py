"""``nnplug show``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nnplug.cli import main
from support.plugin_packages import PluginSite, trainers


@pytest.fixture(autouse=True)
def nets(installed: PluginSite) -> PluginSite:
    installed.add(
        "acme-nets",
        "2.1",
        code=trainers(
            "name='net', network_builder='acme_nets.net:Net', description='A net', source='A paper',"
            " plans={'architecture': {'arch_kwargs': {'n_stages': 4}}}",
            "name='blob', loss_fn=Component('acme_nets.loss:blob', weight=1, soft=True)",
        ),
    )
    return installed


def columns(line: str) -> list[str]:
    return re.split(r" {2,}", line.rstrip())


def test_every_field_that_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "num_epochs=5+blob+net+loss_fn.weight=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["blob+net+loss_fn.weight=2+num_epochs=5", ""]
    assert [columns(line) for line in lines[2:9]] == [
        ["FIELD", "VALUE", "NNU-NET'S DEFAULT", "SET BY"],
        ["network_builder", "acme_nets.net:Net", "the plan's U-Net", "net (acme-nets 2.1, acme_nets/__init__.py:6)"],
        ["loss_fn", "acme_nets.loss:blob", "Dice + cross-entropy", "blob (acme-nets 2.1, acme_nets/__init__.py:7)"],
        ["", ".soft", "true", "blob (acme-nets 2.1, acme_nets/__init__.py:7)"],
        ["", ".weight", "2", "loss_fn.weight=2"],
        ["num_epochs", "5", "1000", "num_epochs=5"],
        [
            "plans.architecture.arch_kwargs.n_stages",
            "4",
            "as planned",
            "net (acme-nets 2.1, acme_nets/__init__.py:6)",
        ],
    ]
    assert len({line.index(value) for line, value in zip(lines[3:8:4], ("acme", "5"), strict=True)}) == 1
    assert lines[9:] == ["", "Stock nnU-Net can predict with it where acme-nets is installed."]


def test_a_single_name_has_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "net"]) == 0
    assert capsys.readouterr().out.startswith("net\n  A net\n  A paper\n\nFIELD")


def test_a_class_of_nnunet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nnUNetTrainerDiceLoss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split() == [
        "loss_fn",
        "decided",
        "in",
        "the",
        "class",
        "Dice",
        "+",
        "cross-entropy",
        "class",
        "nnUNetTrainerDiceLoss",
    ]
    assert lines[-1] == "Stock nnU-Net can predict with it."


def test_nothing_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nnUNetTrainer"]) == 0
    assert "Sets nothing: it trains as nnU-Net does. The fields: nnplug show NAME --all\n" in capsys.readouterr().out


def test_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    from nnplug.composition.fields import SETTINGS

    assert main(["show", "nnUNetTrainer", "--all"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:-2]] == list(SETTINGS)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "blob+loss_fn.weight=2+base_trainer=@nnUNetTrainerBN", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "blob+base_trainer=@nnUNetTrainerBN+loss_fn.weight=2"
    assert report["fields"]["loss_fn"] == {
        "value": {"use": "acme_nets.loss:blob", "soft": True, "weight": 2},
        "stock": "Dice + cross-entropy",
        "term": "blob",
        "distribution": "acme-nets",
        "version": "2.1",
        "file": "acme_nets/__init__.py:7",
        "more_settings": {},
        "unnamed_settings": [],
        "settings": {
            "loss_fn.weight": {"term": "loss_fn.weight=2", "distribution": None, "version": None, "file": None}
        },
    }
    assert report["decided_by_class"] == {"network_builder": "nnUNetTrainerBN"}
    assert report["not_set"]["num_epochs"] == "1000"
    assert report["distributions"] == {"acme-nets": "2.1"}
    assert report["stock_prediction"] == {"possible": True, "reason": None, "needs": []}
    assert report["config"]["loss_fn"]["weight"] == 2


@pytest.fixture
def sources(nets: PluginSite) -> Path:
    folder = nets.folder / "acme_nets"
    (folder / "net.py").write_text(
        "raise RuntimeError('showing imports nothing')\n"
        "class Net:\n"
        "    def __init__(self, input_channels, num_classes, deep_supervision=False, width=8, act='relu'): ...\n"
    )
    (folder / "loss.py").write_text("def blob(context, *, weight, soft=False, **more):\n    pass\n")
    return folder


def test_what_else_can_be_set(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "net+blob+network_builder.width=4"]) == 0
    assert (
        "\n\nMore settings with their defaults, set as in +FIELD.SETTING=VALUE:\n"
        "  network_builder (what the plan sets comes before these): act='relu'\n\n"
    ) in capsys.readouterr().out
    assert main(["show", "net", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    assert fields["network_builder"]["more_settings"] == {"width": "8", "act": "'relu'"}


def test_a_setting_that_the_code_does_not_have(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "net+network_builder.widht=4"]) == 2
    assert capsys.readouterr().err == (
        "nnplug: error: network_builder acme_nets.net:Net has no setting 'widht' (did you mean width?). "
        "It takes: width, act.\n"
    )
    assert main(["show", "blob+loss_fn.anything=4"]) == 0
    assert "\nloss_fn has no parameter anything: its **kwargs take any. Misspelt?\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (
            "acme_gone.nets:Net",
            "'acme_gone.nets:Net': there is no module 'acme_gone'. Is its package installed?",
        ),
        ("acme_nets.loss:blobb", "'acme_nets.loss:blobb': 'acme_nets.loss' has no 'blobb' (did you mean blob?)."),
    ],
)
def test_code_that_is_not_there(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ref: str, message: str
) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text(f"[loss_fn]\nuse = '{ref}'\n")
    assert main(["show", str(recipe), "--trust-code"]) == 2
    assert capsys.readouterr().err.startswith(f"nnplug: error: {message}")


def test_the_cure_of_a_conflict_between_files_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (str(tmp_path / name) for name in ("one.toml", "other.toml"))
    Path(one).write_text("loss_fn = 'torch.nn:CrossEntropyLoss'\n")
    Path(other).write_text("loss_fn = 'torch.nn:NLLLoss'\n")
    assert main(["show", f"{one}+{other}"]) == 2
    cure = capsys.readouterr().err.rpartition("To decide: ")[2].strip()
    assert cure == f"{one}+{other}+loss_fn=@{other}"
    assert main(["show", cure]) == 0
    assert "torch.nn:NLLLoss" in capsys.readouterr().out


def test_what_stock_nnunet_can_not_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text("[plans]\nresampling_fn_probabilities = 'mine'\n")
    assert main(["show", str(recipe)]) == 0
    assert capsys.readouterr().out.endswith(
        "Stock nnU-Net can not predict with it: plans.resampling_fn_probabilities: nnU-Net looks for 'mine' in its own "
        "package only, and it is not there.\n"
    )


def test_code_of_a_recipe_has_to_be_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_losses.py").write_text("def blob(output, target): ...\n")
    recipe = tmp_path / "my.toml"
    recipe.write_text("loss_fn = 'my_losses:blob'\n")
    assert main(["show", str(recipe)]) == 2
    assert "add --trust-code." in capsys.readouterr().err
    assert main(["show", str(recipe), "--trust-code"]) == 0
