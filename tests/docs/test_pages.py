"""Every page: commands can be typed, links lead somewhere, the index knows it, JSON examples are JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from nnplug.cli import build_parser, list_commands

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CUSTOM_ARCH_INFO.md", ROOT / "CONTRIBUTING.md"])

#: Text in code that begins like a command and is none: what nnplug prints, and the usage lines of the reference.
_NOT_TYPED = re.compile(r"nnplug(:| \d|\.|$)")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    """Fenced blocks of shell and plain text, and blocks indented by four spaces."""
    fenced = re.findall(r"^```(?:bash|console|text|sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    without = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return fenced + re.findall(r"(?:^    .*\n?)+", without, re.MULTILINE)


def inline_code(text: str) -> list[str]:
    without = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", without)


def commands_of(path: Path) -> list[str]:
    """Command lines of nnplug and nnU-Net, as they would be typed."""
    found = []
    for block in code_blocks(text_of(path)):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\$ |srun )?((?:nnplug|nnUNetv2_\w+) .*)", line)
            if match and not _NOT_TYPED.match(match[1]):
                found.append(re.split(r" \|\|? | && |\s+#|   *(?=[a-z])", match[1])[0])
    return found


COMMANDS = [(shown(page), command) for page in PAGES for command in commands_of(page)]
MENTIONS = [
    (shown(page), code) for page in PAGES for code in inline_code(text_of(page)) if re.match(r"nnplug [a-z_]+\b", code)
]
# in code `heads[0](full)` is no link
OUTSIDE_CODE = {page: re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL) for page in PAGES}
LINKS = [(shown(page), link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", OUTSIDE_CODE[page])]


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 40
    assert {"README.md", "docs/train.md", "docs/predict.md", "CUSTOM_ARCH_INFO.md"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_commands_can_be_typed(page: str, command: str) -> None:
    program, *arguments = shlex.split(command)
    if program != "nnplug":
        assert importlib.metadata.entry_points(group="console_scripts", name=program), page
        return
    build_parser().parse_args(arguments)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """Commands by name, aliases included; ``inventory make`` is in two words."""
    parser = build_parser()
    [action] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {**action.choices, **list_commands(parser)}


@pytest.mark.parametrize(("page", "code"), MENTIONS, ids=[f"{page}: {code}" for page, code in MENTIONS])
def test_mentioned_commands_and_options_exist(page: str, code: str) -> None:
    """In a sentence a command need not be whole."""
    _, command, *arguments = code.split()
    assert command in subcommands(), page
    parser = subcommands().get(" ".join([command, *arguments[:1]]), subcommands()[command])
    known = parser._option_string_actions
    assert [word for word in arguments if word.startswith("-") and word not in known] == [], page


def test_options_in_tables_exist() -> None:
    """The options in the first column of the tables of train.md and predict.md."""
    for page, command in (("train.md", "train"), ("predict.md", "predict")):
        cells = re.findall(r"^\| (`-[^|]*) \|", text_of(DOCS / page), re.MULTILINE)
        options = [word for cell in cells for word in re.findall(r"`(--?[\w-]+)", cell)]
        assert len(options) > 8
        assert [option for option in options if option not in subcommands()[command]._option_string_actions] == []


def test_every_option_of_train_is_described() -> None:
    options = {option for option in subcommands()["train"]._option_string_actions if option not in ("-h", "--help")}
    page = text_of(DOCS / "train.md")
    assert [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", page)] == []


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    without = re.sub(r"^```.*?^```$", "", text_of(path), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without, re.MULTILINE):
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page}: {link}" for page, link in LINKS])
def test_links_lead_somewhere(page: str, link: str) -> None:
    if re.match(r"[a-z]+:", link):
        assert link.startswith("https://")
        return
    file, _, anchor = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    assert target.exists(), f"{page}: {link}"
    if anchor:
        assert anchor in anchors(target), f"{page}: {link}; {shown(target.resolve())} has {sorted(anchors(target))}"


@pytest.mark.parametrize("page", [page.name for page in DOCS.glob("*.md") if page.name != "index.md"])
def test_the_index_links_every_page(page: str) -> None:
    assert f"]({page})" in text_of(DOCS / "index.md")


def test_the_architecture_page_is_linked() -> None:
    for page in (DOCS / "index.md", ROOT / "README.md"):
        assert "CUSTOM_ARCH_INFO.md)" in text_of(page), shown(page)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_json_is_json(page: Path) -> None:
    for block in re.findall(r"^```json\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        json.loads(block)


def test_the_result_of_a_training_is_described(tmp_path: Path) -> None:
    from nnplug.models.results import combine, fold_result

    page = text_of(DOCS / "train.md")
    fold = tmp_path / "Dataset004_Hippocampus" / "dice_loss__nnUNetPlans__3d_fullres" / "fold_0"
    (fold / "validation").mkdir(parents=True)
    metrics = {"Dice": 0.9, "IoU": 0.8}
    summary = {"foreground_mean": metrics, "mean": {"1": metrics, "2": metrics}}
    (fold / "validation" / "summary.json").write_text(json.dumps(summary))
    result = fold_result(
        fold,
        dataset="Dataset004_Hippocampus",
        trainer="dice_loss",
        checkpoint="checkpoint_final.pth",
        validation_loss=-0.8,
        obstacle=None,
        seconds=1.0,
    )
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    written = json.loads(example)
    assert list(written) == list(result)
    assert written["predict_command"] == result["predict_command"]
    assert written["metrics"].keys() == result["metrics"].keys()
    assert written["per_class"].keys() == result["per_class"].keys()
    table = page.partition("## The result")[2].partition("## ")[0]
    explained = {
        key for row in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)
    }
    assert explained == set(result)
    assert set(combine([result, result])) - set(result) == {"folds"}
    assert set(result) - set(combine([result, result])) == {"per_class"}


def test_variables_of_nnunet_are_described() -> None:
    """Each variable that is described is one that nnplug or nnU-Net reads."""
    import importlib.util

    table = text_of(DOCS / "train.md").partition("## Environment variables")[2].partition("\n## ")[0]
    described = re.findall(r"`(nnUNet_\w+)`", "\n".join(re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)))
    spec = importlib.util.find_spec("nnunetv2")
    assert spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or []] + [ROOT / "core" / "nnplug"]
    sources = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    assert len(described) == 9
    assert [name for name in described if name not in sources] == []


def test_the_script_of_the_training_page() -> None:
    import nnplug

    (script,) = re.findall(r"^```python\n(.*?)^```$", text_of(DOCS / "train.md"), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": "train_mine"}
    exec(compile(script, "train.md", "exec"), names)
    config = names["config"]
    assert isinstance(config, nnplug.TrainerConfig)
    resolved = nnplug.resolve(config)
    assert (resolved.name, resolved.config.num_epochs) == ("my_trainer", 200)
    assert resolved.origins["optimizer"].term == "adam"
