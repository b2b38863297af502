"""The command line itself: exit codes, help, completion, and the speed that keeps it pleasant."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import nnplug
import pytest
from nnplug import NnplugError, cli
from nnplug.cli import COMMANDS, complete_trainers, main
from nnplug.completion import complete_configurations, complete_datasets
from support.commands import clean_environment
from support.plugin_packages import PluginSite, trainers


def run_main(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *options: str) -> int:
    """The exit code of a command that raises."""

    def run(_: object) -> int:
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr("nnplug.cli.env.run", run)
    return main([*options, "env"])


def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, NnplugError("no such thing")) == 2
    assert capsys.readouterr() == ("", "nnplug: error: no such thing\n")


@pytest.mark.parametrize("arguments", [["--debug", "show", "zork"], ["show", "zork", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.splitlines()[-1].startswith("nnplug: error: Unknown trainer 'zork'.")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "nnplug: interrupted\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(monkeypatch, ZeroDivisionError())


def test_the_exit_code_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, None) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"nnplug {nnplug.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["zork"], ["trainers", "--zork"], ["trainers", "--js"]])
def test_wrong_arguments_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: nnplug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train 4 3d_fullres 0 -c", "nnplug train: error: unrecognized arguments: -c. Did you mean --c?"),
        ("predict -i a -o b -d 4 -c 2d --disable_ta", "--disable_ta. Did you mean --disable_tta?"),
        ("inventory check x --nothing", "nnplug inventory check: error: unrecognized arguments: --nothing."),
    ],
)
def test_an_unknown_option_is_told_by_its_command(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments.split())
    assert exit.value.code == 2
    assert expected in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["-h"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n    {name}" in shown


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "-h"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "example" in shown
    assert f"nnplug {name}" in shown.partition("example")[2]


def test_every_command_module_is_listed() -> None:
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__"}
    assert modules == {name.replace("-", "_") for name in COMMANDS}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom nnplug.cli import build_parser\nbuild_parser()\n"
        "heavy = ('torch', 'nnunetv2', 'numpy', 'rich', 'nnplug.discovery.registry')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f"{sys.executable} -m nnplug trainers --json | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[\n", "")


def test_completion(installed: PluginSite) -> None:
    installed.add("nets", code=trainers("name='unet_a', seed=1", "name='unet_b', seed=1", "name='blob', loss_fn='a:b'"))
    assert complete_trainers("unet") == ["unet_a", "unet_b"]
    assert complete_trainers("unet_a+bl") == ["unet_a+blob"]
    assert complete_trainers("unet_a+num_e") == ["unet_a+num_epochs="]
    assert complete_trainers("unet_a+loss_fn=@b") == ["unet_a+loss_fn=@blob"]
    assert complete_trainers("zork") == []


@pytest.mark.usefixtures("installed")
def test_completion_of_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("recipes", "results"):
        Path(folder).mkdir()
    for name in ("my.toml", "recipes/long.toml", "recipes/notes.txt"):
        Path(name).touch()
    assert complete_trainers("m") == ["mirror_axes=", "my.toml"]
    assert complete_trainers("re") == []
    assert complete_trainers("./re") == ["./recipes/", "./results/"]
    assert complete_trainers("amp=true+./recipes/") == ["amp=true+./recipes/long.toml"]


def test_completion_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(prefix: str, dataset: str) -> list[str]:
        return complete_configurations(prefix, parsed_args=argparse.Namespace(dataset=dataset))

    planned, trained = tmp_path / "preprocessed" / "Dataset004_A", tmp_path / "results" / "Dataset004_A"
    (tmp_path / "preprocessed" / "Dataset011_B").mkdir(parents=True)
    (trained / "nnUNetTrainer__nnUNetPlans__3d_old").mkdir(parents=True)
    planned.mkdir()
    (planned / "nnUNetPlans.json").write_text('{"configurations": {"2d": {}, "3d_fullres": {}}}')
    assert complete_datasets("") == []
    assert complete("", "4") == ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert complete_datasets("Data") == ["Dataset004_A", "Dataset011_B"]
    assert complete_datasets("1") == ["11"]
    assert complete("", "4") == ["2d", "3d_fullres", "3d_old"]
    assert complete("3", "Dataset004_A") == ["3d_fullres", "3d_old"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nnplug tra", {"train", "trainers"}),
        ("nnplug show unet_", {"unet_a"}),
        ("nnplug train 4 2d 0 -tr unet_", {"unet_a"}),
        ("nnplug train Da", {"Dataset004_Hippocampus"}),
        ("nnplug predict -i a -o b -d 4 -c 3", {"3d_fullres", "3d_lowres", "3d_cascade_fullres"}),
    ],
)
def test_completion_in_a_shell(site: PluginSite, tmp_path: Path, line: str, expected: set[str]) -> None:
    site.add("nets", code=trainers("name='unet_a', seed=1"))
    (tmp_path / "Dataset004_Hippocampus").mkdir()
    answer = tmp_path / "answer"
    environment = clean_environment(
        {
            "PYTHONPATH": str(site.folder),
            "nnUNet_preprocessed": str(tmp_path),
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        }
    )
    subprocess.run([sys.executable, "-m", "nnplug"], env=environment, check=True, capture_output=True)
    assert {word.strip() for word in answer.read_text().split("\n")} == expected
