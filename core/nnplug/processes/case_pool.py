"""Work on the cases of a data set in worker processes: one that fails is named, the others go on. Imports no torch.

On Linux workers are forked from a server process that has imported what they need, so the imports cost time and memory
once and not for every worker, as with nnU-Net's spawned pools.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from nnplug.errors import NnplugError
from nnplug.image_headers import UnreadableImageError, reason

_DIED = (
    "its worker process died, most likely because memory ran out, else because a library crashed on its files. Use "
    "fewer processes, or a machine with more memory"
)
_Work = tuple[Callable[..., Any], Any, bool]  # function, what it shares, whether nnU-Net's prints are let through
_work: _Work | None = None


class CaseFailure(Exception):
    """A case that can not be worked on; the message is the reason alone."""


@dataclass(frozen=True)
class Pool:
    """How to work on cases.

    Attributes:
        num_processes: worker processes; 0 works in this process.
        progress_bar: show one where there is a terminal.
        verbose: let through what nnU-Net prints.
        preload: modules that workers need.
    """

    num_processes: int
    progress_bar: bool = True
    verbose: bool = False
    preload: tuple[str, ...] = ()

    def run(
        self,
        work: Callable[[Any, str, Any], Any],
        shared: Any,
        cases: Mapping[str, Any],
        title: str,
        on_result: Callable[[str, Any], None] = lambda _name, _result: None,
    ) -> dict[str, str]:
        """Call ``work(shared, name, case)`` for every case.

        Args:
            work: function of a module; its exceptions are taken for failures of the case, but a NnplugError ends all.
            shared: sent to each worker once.
            cases: what to send for each case, by its name.
            title: of the progress bar.
            on_result: called here with the name and what ``work`` returned.

        Returns:
            Why cases failed, by name.
        """
        failures: dict[str, str] = {}
        with _progress(title, len(cases), self.progress_bar) as advance:

            def take(name: str, outcome: tuple[Any, str | None]) -> None:
                result, failure = outcome
                if failure is None:
                    on_result(name, result)
                else:
                    failures[name] = failure
                advance(len(failures))

            if self.num_processes == 0:
                for name, case in cases.items():
                    take(name, _attempt((work, shared, self.verbose), name, case))
                return failures
            died = self._run_workers((work, shared, self.verbose), cases, self.num_processes, take)
            # several were at work when one was killed: each of them alone tells which it was
            for name in died:
                if self._run_workers((work, shared, self.verbose), {name: cases[name]}, 1, take):
                    take(name, (None, _DIED))
        return failures

    def _run_workers(
        self,
        work: _Work,
        cases: Mapping[str, Any],
        num_processes: int,
        take: Callable[[str, tuple[Any, str | None]], None],
    ) -> list[str]:
        """Returns the cases that were being worked on when a worker died."""
        died: list[str] = []
        waiting = list(cases)
        while waiting:
            running: dict[Future[Any], str] = {}
            with self._executor(work, min(num_processes, len(waiting))) as executor:
                try:
                    while waiting or running:
                        while waiting and len(running) < num_processes:
                            future = executor.submit(_attempt_in_worker, waiting[0], cases[waiting[0]])
                            running[future] = waiting.pop(0)
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            outcome = future.result()
                            take(running.pop(future), outcome)
                except BrokenProcessPool:
                    died += running.values() or [waiting.pop(0)]
        return died

    @contextlib.contextmanager
    def _executor(self, work: _Work, number: int) -> Iterator[ProcessPoolExecutor]:
        # elsewhere libraries that are imported need not stand being forked
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload(list(self.preload))
        others = set(multiprocessing.active_children())
        executor = ProcessPoolExecutor(number, context, initializer=_begin, initargs=(work, dict(os.environ)))
        try:
            yield executor
        except BaseException:
            # what an interrupted worker has written bears a temporary name
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            executor.shutdown(cancel_futures=True)


def choose_num_processes(asked: int | None, default: int | None, num_cases: int) -> int:
    """Processes for a number of cases: not more than cases, by default not more than cores that this job may use.

    Raises:
        NnplugError: a negative number.
    """
    from joblib import cpu_count

    if asked is not None and asked < 0:
        raise NnplugError(f"The number of processes can not be {asked}. 0 works without worker processes.")
    number = (cpu_count() if default is None else min(default, cpu_count())) if asked is None else asked
    return min(number, max(1, num_cases))


# --- in a worker -----------------------------------------------------------------------------------------------------


def _begin(work: _Work, environment: dict[str, str]) -> None:
    global _work
    _work = work
    os.environ.update(environment)  # the server may have been started before some of it was set
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one decides
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    """However that ends, killed included; a worker would wait for its next case for ever."""
    main_process = multiprocessing.parent_process()
    if main_process is not None:
        connection.wait([main_process.sentinel])
        os._exit(1)


def _attempt_in_worker(name: str, case: Any) -> tuple[Any, str | None]:
    assert _work is not None
    return _attempt(_work, name, case)


def _attempt(work: _Work, name: str, case: Any) -> tuple[Any, str | None]:
    """The result, or why there is none."""
    function, shared, verbose = work
    printed = io.StringIO()
    quiet = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(printed)
    try:
        with quiet, contextlib.nullcontext() if verbose else contextlib.redirect_stderr(printed):
            return function(shared, name, case), None
    except NnplugError:
        raise
    except (CaseFailure, UnreadableImageError) as error:
        return None, str(error)
    except Exception as error:
        if isinstance(error, MemoryError):
            return None, "memory ran out. Use fewer processes, or a machine with more memory"
        # nnU-Net's readers print what is wrong and raise an exception without a text
        said = " ".join(line.strip() for line in printed.getvalue().splitlines() if line.strip())
        return None, f"{type(error).__name__}: {reason(error)}" if str(error) or not said else said[-500:]


# --- showing it ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(title: str, total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Yields what is called after each case with the number of failures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: Sequence[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("[red]{task.fields[failed]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total, failed="")

        def advance(num_failed: int) -> None:
            progress.update(task, advance=1, failed=f"{num_failed} failed" if num_failed else "")

        yield advance
