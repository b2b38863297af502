"""Cases in worker processes: one that fails is named, the others go on, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from joblib import cpu_count
from nnplug.errors import NnplugError
from nnplug.processes.case_pool import Pool, choose_num_processes
from support.commands import clean_environment
from support.pool_work import double, environment_of, fail, loaded

CASES = {f"case_{index}": index for index in range(6)}


@pytest.fixture(params=[0, 2])
def pool(request: pytest.FixtureRequest) -> Pool:
    return Pool(request.param, progress_bar=False)


def test_results(pool: Pool) -> None:
    results: dict[str, object] = {}
    assert pool.run(double, 10, CASES, "Doubling", results.__setitem__) == {}
    assert results == {name: (name, 10 * case) for name, case in CASES.items()}


def test_failing_cases_are_named_and_the_others_go_on(pool: Pool) -> None:
    how = {"case_1": "case", "case_2": "error", "case_3": "printed", "case_4": "memory"}
    results: dict[str, object] = {}
    assert pool.run(fail, how, CASES, "Failing", results.__setitem__) == {
        "case_1": "the reason alone",
        "case_2": "ValueError: second line",
        "case_3": "ERROR! said by nnU-Net",
        "case_4": "memory ran out. Use fewer processes, or a machine with more memory",
    }
    assert results == {"case_0": 0, "case_5": 5}


def test_what_ends_everything(pool: Pool) -> None:
    with pytest.raises(NnplugError, match="the disk is full"):
        pool.run(fail, {"case_1": "stop"}, CASES, "Failing")


def test_a_killed_worker_costs_its_own_case_only() -> None:
    results: dict[str, object] = {}
    failures = Pool(2, progress_bar=False).run(
        fail, {"case_1": "killed", "case_4": "killed"}, CASES, "Failing", results.__setitem__
    )
    reason = (
        "its worker process died, most likely because memory ran out, else because a library crashed on its files. "
        "Use fewer processes, or a machine with more memory"
    )
    assert failures == {"case_1": reason, "case_4": reason}
    assert results == {name: case for name, case in CASES.items() if name not in failures}


def test_workers_have_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that they are forked from may have been started before."""
    pool, found = Pool(1, progress_bar=False), []
    for value in ("one", "two"):
        monkeypatch.setenv("NNPLUG_TEST", value)
        pool.run(environment_of, "NNPLUG_TEST", {"a": 0}, "Looking", lambda _, result: found.append(result))
    assert found == ["one", "two"]


def run_script(script: str, *arguments: object) -> subprocess.Popen[str]:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{script}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def test_modules_are_imported_once_for_all_workers() -> None:
    script = (
        "from nnplug.processes.case_pool import Pool\nfrom support.pool_work import loaded\n"
        "if __name__ == '__main__':\n"
        "    Pool(1, preload=('sqlite3',)).run(loaded, 'sqlite3', {'a': 0}, '', lambda _, found: print(found))\n"
    )
    process = run_script(script)
    output, errors = process.communicate(timeout=60)
    assert output == "True\n", errors
    assert "sqlite3" not in sys.modules or loaded("sqlite3", "", 0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_command(tmp_path: Path, number: int) -> None:
    script = (
        "import pathlib, signal\nfrom nnplug.processes.case_pool import Pool\n"
        "from support.pool_work import wait_and_note\n"
        "if __name__ == '__main__':\n"
        # a test run in the background inherits that Ctrl-C is ignored
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    Pool(2).run(wait_and_note, pathlib.Path(sys.argv[1]), {'a': 0, 'b': 0, 'c': 0}, '')\n"
    )
    process = run_script(script, tmp_path)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name.split("-")[1]) for path in tmp_path.iterdir()]
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_until(lambda: not any(is_running(worker) for worker in workers))


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_number_of_processes() -> None:
    cores = cpu_count()
    assert choose_num_processes(None, None, 100) == cores
    assert choose_num_processes(None, 8, 100) == min(8, cores)
    assert choose_num_processes(3, 8, 100) == 3
    assert choose_num_processes(3, 8, 2) == 2
    assert choose_num_processes(0, 8, 100) == 0
    with pytest.raises(NnplugError, match=r"can not be -1\. 0 works without worker processes"):
        choose_num_processes(-1, 8, 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system can not bind processes to cores")
def test_only_cores_of_the_job_count() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert choose_num_processes(None, None, 100) == 1
    finally:
        os.sched_setaffinity(0, cores)
