"""``nnplug splits make`` and ``check``: what is written, and every leak that is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nnplug.cli import main
from nnplug.errors import NnplugError
from nnplug.planning.splits import hold_out
from support.datasets import DatasetForTests, environment
from support.inventories import SHAPE, MadeInventory
from support.preprocessed import read_json

NAMES = [f"case_{index}" for index in range(12)]


class Lab:
    """Twelve small cases of six patients, described by an inventory; every third case has no box."""

    def __init__(self, folder: Path) -> None:
        self.inventory = MadeInventory(folder / "data", num_cases=len(NAMES))
        for index in range(0, len(NAMES), 3):
            self.inventory.save(self.inventory.entry(f"case_{index}")["label"], np.zeros(SHAPE, np.uint8))
        self.cache = folder / "cache"
        self.folder = self.cache / "Dataset004_Lab"
        self.splits = self.folder / "splits_final.json"
        self.patients = folder / "patients.csv"
        rows = [f"{name},patient_{index // 2}" for index, name in enumerate(NAMES)]
        self.patients.write_text("\n".join(["case,patient", *rows]))

    def run(self, command: str, *arguments: object) -> int:
        data = [
            "--inventory",
            self.inventory.path,
            "--dataset-id",
            4,
            "--dataset-name",
            "Lab",
            "--cache-dir",
            self.cache,
        ]
        return main(["splits", command, *map(str, [*data, *arguments])])

    def made(self) -> list[dict[str, list[str]]]:
        return json.loads(self.splits.read_text())

    def write(self, *folds: tuple[list[str], list[str]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.splits.write_text(json.dumps([{"train": train, "val": val} for train, val in folds]))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    variables = {"nnUNet_raw": "", "nnUNet_preprocessed": "", "nnUNet_results": str(tmp_path / "results")}
    with environment(**variables):
        yield Lab(tmp_path)


def error_of(capsys: pytest.CaptureFixture[str], lab: Lab, command: str, *arguments: object) -> str:
    capsys.readouterr()
    assert lab.run(command, *arguments) == 2
    return capsys.readouterr().err.removeprefix("nnplug: error: ").rstrip("\n")


# --- make ------------------------------------------------------------------------------------------------------------


def test_without_wishes_they_are_nnunets_own(
    hippocampus_prepared: DatasetForTests, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with environment(**{**hippocampus_prepared.env, "nnUNet_preprocessed": str(tmp_path)}):
        assert main(["splits", "make", "-d", "4"]) == 0
        assert main(["splits", "check", "-d", "4"]) == 0
    made = read_json(tmp_path / hippocampus_prepared.name / "splits_final.json")
    assert made == hippocampus_prepared.splits
    assert capsys.readouterr().out.endswith("No problem in 5 folds of 12 cases; 0 held out.\n")


def test_groups_stay_on_one_side(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.run("make", "-k", 3, "--group", lab.patients) == 0
    assert "  fold 0: 8 train, 4 val (2 groups)" in capsys.readouterr().out
    made = lab.made()
    assert sorted(name for fold in made for name in fold["val"]) == sorted(NAMES)
    for fold in made:
        sides = [{int(name[5:]) // 2 for name in fold[part]} for part in ("train", "val")]
        assert not sides[0] & sides[1]
    assert lab.run("check", "--group", lab.patients) == 0


def test_groups_by_an_expression(lab: Lab) -> None:
    # the last digit of a name
    assert lab.run("make", "-k", 2, "--group", r"(\d)$") == 0
    for fold in lab.made():
        assert ("case_1" in fold["train"]) == ("case_11" in fold["train"])
    first = lab.made()
    assert lab.run("make", "-k", 2, "--group", r"(\d)$", "--overwrite") == 0
    assert lab.made() == first
    assert lab.run("make", "-k", 2, "--group", r"(\d)$", "--overwrite", "--seed", 7) == 0
    assert lab.made() != first


def test_every_fold_gets_its_share_of_the_classes(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        assert lab.run("make", "-k", 4, "--stratify", "labels", "--seed", seed, "--overwrite") == 0
        for fold in lab.made():
            assert sum(int(name[5:]) % 3 == 0 for name in fold["val"]) == 1
        assert "  fold 0: 9 train, 3 val; 1: 2, none: 1" in capsys.readouterr().out
    assert lab.run("make", "-k", 5, "--stratify", "labels", "--overwrite") == 0
    assert "Not in the validation of every fold, for lack of cases: none." in capsys.readouterr().out


def test_strata_from_a_table_and_groups(lab: Lab, tmp_path: Path) -> None:
    # two of the six patients are of another hospital
    hospitals = tmp_path / "hospitals.csv"
    hospitals.write_text("case;hospital\n" + "".join(f"{name};{'AB'[index < 4]}\n" for index, name in enumerate(NAMES)))
    for seed in (1, 2, 3):
        wishes = ("--group", lab.patients, "--stratify", hospitals, "--seed", seed, "--overwrite")
        assert lab.run("make", "-k", 2, *wishes) == 0
        for fold in lab.made():
            assert sum(int(name[5:]) < 4 for name in fold["val"]) == 2


def test_held_out_cases_are_in_no_fold(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.run("make", "-k", 2, "--held-out", 0.33, "--group", lab.patients) == 0
    kept = json.loads((lab.folder / "splits_held_out.json").read_text())
    assert len(kept) == 4
    assert len({int(name[5:]) // 2 for name in kept}) == 2
    assert not set(kept) & {name for fold in lab.made() for part in fold.values() for name in part}
    assert f"{lab.folder / 'splits_held_out.json'}: 4 cases, in no fold." in capsys.readouterr().out
    assert lab.run("check") == 0

    # without any, the list of the old splits goes, and is kept
    assert lab.run("make", "-k", 2, "--overwrite") == 0
    assert not (lab.folder / "splits_held_out.json").exists()
    [old] = lab.folder.glob("replaced_splits_held_out_*.json")
    assert f"No longer held out: {', '.join(kept)}. The old list is kept as {old.name}; " in capsys.readouterr().out
    assert lab.run("make", "-k", 2, "--overwrite", "--held-out", old) == 0
    assert json.loads((lab.folder / "splits_held_out.json").read_text()) == kept


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.33, 0.5])
@pytest.mark.parametrize("stratum_size", [1, 2, 4, 15, 40])
def test_the_share_that_is_held_out_does_not_hang_on_the_strata(share: float, stratum_size: int) -> None:
    names = [f"c{index:02d}" for index in range(40)]
    strata = {name: str(index // stratum_size) for index, name in enumerate(names)}
    for seed in range(3):
        chosen = hold_out(names, share, seed, strata=strata)
        assert len(set(chosen)) == round(share * 40)
        numbers = Counter(strata[name] for name in chosen)
        for stratum, size in Counter(strata.values()).items():
            assert abs(numbers[stratum] - size * round(share * 40) / 40) < 1
            assert size == 1 or numbers[stratum] < size


@pytest.mark.parametrize(("share", "number"), [(0.02, 1), (0.05, 4), (0.1, 4), (0.25, 12), (0.5, 20)])
def test_held_out_groups_with_small_strata(share: float, number: int) -> None:
    names = [f"c{index:02d}" for index in range(40)]
    groups = {name: str(index // 4) for index, name in enumerate(names)}
    groups["c00"] = groups["c01"] = "small"
    size = Counter(groups.values())
    chosen = hold_out(names, share, groups=groups, strata=groups)
    assert abs(len(chosen) - share * 40) <= 2
    assert Counter(groups[name] for name in chosen).items() <= size.items()


def test_groups_that_are_too_large_for_the_share() -> None:
    names = [f"c{index:02d}" for index in range(40)]
    groups = {name: str(index // 13) for index, name in enumerate(names)}
    assert hold_out(names, 0.05, groups=groups) == ["c39"]
    assert len(hold_out(names, 0.35, groups=groups)) == 14
    with pytest.raises(NnplugError) as error:
        hold_out(names, 0.1, groups=groups)
    assert str(error.value) == (
        "--held-out 0.1: whole groups come to 1 of 40 cases, a share of 0.025. Give a share near that, or a file with "
        "the cases."
    )
    # of equal ones that are all too large, one
    tens = {name: name[1] for name in names}
    assert {len(hold_out(names, 0.05, seed, groups=tens)) for seed in range(5)} == {10}


def test_held_out_cases_from_a_file(lab: Lab, tmp_path: Path) -> None:
    listed = tmp_path / "test_cases.txt"
    listed.write_text("case_0\ncase_1\n\n")
    assert lab.run("make", "-k", 2, "--held-out", listed) == 0
    assert json.loads((lab.folder / "splits_held_out.json").read_text()) == ["case_0", "case_1"]


def test_splits_that_are_there(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.run("make", "-k", 3) == 0
    before = lab.splits.read_bytes()
    assert error_of(capsys, lab, "make", "-k", 2) == (
        f"There are splits already ({lab.splits}). Give --overwrite to replace them."
    )
    fold = tmp_path / "results" / "Dataset004_Lab" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    for folder in (fold, fold.with_name("fold_all")):
        folder.mkdir(parents=True)
        (folder / "checkpoint_best.pth").touch()
    name = "nnUNetTrainer__nnUNetPlans__2d/fold_0"
    assert error_of(capsys, lab, "make", "-k", 2) == (
        f"There are splits already ({lab.splits}), with which were trained: {name}. Give --overwrite to replace them."
    )
    assert lab.splits.read_bytes() == before
    elsewhere = (tmp_path / "results").rename(tmp_path / "models")
    assert lab.run("make", "-k", 2, "--overwrite", "--results-dir", elsewhere) == 0
    shown = capsys.readouterr().out
    assert f"Trained with them: {name}. Such folds can not be continued, nor compared with new ones." in shown
    [kept] = lab.folder.glob("replaced_splits_final_*.json")
    assert kept.read_bytes() == before
    assert f"The old splits are kept as {kept.name}." in shown
    for _ in range(2):  # within one second
        assert lab.run("make", "-k", 2, "--overwrite") == 0
    assert len(list(lab.folder.glob("replaced_splits_final_*.json"))) == 3


def test_splits_of_the_raw_data_set(
    hippocampus_prepared: DatasetForTests, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw" / hippocampus_prepared.name
    raw.mkdir(parents=True)
    for path in hippocampus_prepared.raw_folder.iterdir():
        (raw / path.name).symlink_to(path)
    (raw / "splits_final.json").write_text("[]")
    with environment(nnUNet_raw=str(raw.parent), nnUNet_preprocessed=str(tmp_path / "preprocessed")):
        assert main(["splits", "make", "-d", "4"]) == 2
    assert capsys.readouterr().err == (
        f"nnplug: error: {raw / 'splits_final.json'}: the raw data set brings splits of its own, on which nnU-Net's "
        "planner insists. Move that file away first.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", 1], "-k 1: expected 2 folds or more."),
        (["-k", 13], "-k 13: there are only 12 cases. Make fewer folds."),
        (["-k", 7, "--group", "{patients}"], "-k 7: there are only 6 groups. Make fewer folds."),
        (["-k", 9, "--stratify", "{patients}"], "-k 9: no stratum has as many cases. Make fewer folds or strata."),
        (["--held-out", "0.7"], "--held-out 0.7: expected a share above 0 and up to 0.5, or a file."),
        (["--held-out", "gone.txt"], "gone.txt can not be read ([Errno 2] No such file or directory: 'gone.txt')."),
        (["--held-out", "{table}"], "--held-out {table}: not in the data set: a,1."),
        (["--held-out", "{object}"], "{object}: expected a list of names of cases."),
        (
            ["--held-out", "{one}", "--group", "{patients}"],
            "--held-out {one} holds out a part of group patient_0. Hold out all of a group or nothing.",
        ),
        (
            ["--held-out", "0.1", "--group", "(c)"],
            "--held-out 0.1: there are too few cases or groups to keep some of them out.",
        ),
        (
            ["--group", "gone.csv"],
            "--group gone.csv can not be read ([Errno 2] No such file or directory: 'gone.csv').",
        ),
        (
            ["--group", "patient"],
            "--group patient: it finds nothing in case_0, case_1, case_2, case_3, case_4 and 7 more.",
        ),
        (["--group", "(a"], "--group (a: neither a file nor a regular expression (missing ), unterminated"),
        (["--group", "{table}"], "--group {table} has no line for case_0, case_1, case_2, case_3, case_4 and 7 more."),
        (["--group", "{doubled}"], "{doubled}, line 3: case case_0 is in 'a' and in 'b'. Name one."),
        (["--stratify", "{short}"], "{short}, line 2: expected a case and its group, got 'case_0'."),
    ],
)
def test_wrong_wishes(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[object], message: str
) -> None:
    files = {"table": "a,1\n", "doubled": "case,group\ncase_0,a\ncase_0,b\n", "short": "case,group\ncase_0\n"}
    files |= {"one": "case_0\n", "object": "{}"}
    paths = {"patients": lab.patients}
    for name, text in files.items():
        ending = {"one": "txt", "object": "json"}.get(name, "csv")
        paths[name] = tmp_path / f"{name}.{ending}"
        paths[name].write_text(text)
    filled = [text.format(**paths) if isinstance(text, str) else text for text in arguments]
    assert error_of(capsys, lab, "make", *filled).startswith(message.format(**paths))
    assert not lab.splits.exists()


# --- check -----------------------------------------------------------------------------------------------------------

HALVES = (NAMES[:6], NAMES[6:])


@pytest.mark.parametrize(
    ("folds", "problem"),
    [
        ([(NAMES[:7], NAMES[6:])], "fold 0: case_6 in train and in val. Take them out of one side."),
        ([(NAMES, [])], "fold 0: nothing in val. Give it some cases."),
        ([([*HALVES[0], "case_0"], HALVES[1])], "fold 0: case_0 more than once in train. Name each case once."),
        ([([*HALVES[0], "tomato"], HALVES[1])], "fold 0: tomato in train, not in the data set. Take them out."),
        ([(NAMES[:5], HALVES[1])], "case_5 in no fold. Add them, or hold them out with --held-out."),
        (
            [HALVES, (NAMES[:11], NAMES[11:])],
            "case_11 validated in several folds. nnU-Net merges the validations of all folds, where each case has to "
            "be once.",
        ),
        ([(NAMES[:5], NAMES[5:])], "fold 0: group patient_2 in train and in val. Keep a group on one side."),
    ],
)
def test_leaks_are_refused(
    lab: Lab, capsys: pytest.CaptureFixture[str], folds: list[tuple[list[str], list[str]]], problem: str
) -> None:
    lab.write(*folds)
    groups = ["--group", lab.patients] if "group" in problem else []
    assert error_of(capsys, lab, "check", *groups) == f"{lab.splits}: {problem}"


def test_held_out_cases_that_are_used(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab.write(HALVES, HALVES[::-1])
    assert lab.run("check") == 0
    listed = tmp_path / "kept.json"
    listed.write_text('["case_0", "tomato"]')
    assert error_of(capsys, lab, "check", "--held-out", listed).splitlines() == [
        f"{lab.splits}: 3 problems:",
        "  fold 0: case_0 used, though held out. Take them out.",
        "  fold 1: case_0 used, though held out. Take them out.",
        "  held out, but not in the data set: tomato. Mend the list.",
    ]


def test_files_that_are_no_splits(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, lab, "check") == f"The splits file {lab.splits} is missing."
    lab.folder.mkdir(parents=True)
    for text in ("[]", '{"train": []}', '[{"train": ["a"]}]', '[{"train": "a", "val": ["b"]}]'):
        lab.splits.write_text(text)
        assert error_of(capsys, lab, "check") == (
            'The splits are not in nnU-Net\'s format: a list of {"train": [names], "val": [names]}.'
        )
