"""Runs a folder of cases and says which of them end in an internal error, hang, or say nothing.

A case is a folder with a file `cmd`, a bash script; `why.md` beside it says what is right. In all of their text files
`CASES` stands for the folder of the cases, `BASE` for one that may be written, with this checkout as `work` in it,
`TMP` for a folder in that, and `CHECKOUT` for this checkout. `_base/env` is what scripts source first.

    python -m tests.cases CASES OUT [NAME ...] [--timeout SECONDS]

The cases are copied to OUT, which must be new; a script's output lies in OUT/log/NAME.txt. Some take a minute, and some
need root.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import ROOT

FAULT = re.compile(r"internal error: .*|^Traceback \(most recent call last\):", re.MULTILINE)
SCRIPT = "cmd"


class Outcome(NamedTuple):
    """How a case went."""

    name: str
    code: int | None
    """Exit code of the script; None where it ran out of time."""
    seconds: float
    faults: tuple[str, ...]
    """Internal errors and tracebacks in its output."""
    last: str
    """The last line that it printed."""

    @property
    def is_good(self) -> bool:
        """Whether it ended by itself, without a fault and with a word."""
        return self.code is not None and not self.faults and bool(self.last)

    def line(self) -> str:
        """For people."""
        word = "ok" if self.is_good else "TIME" if self.code is None else "FAULT" if self.faults else "SILENT"
        return (
            f"{word:6} {self.name:32} {self.seconds:5.0f} s  rc {self.code}  {(self.faults or (self.last,))[0][:160]}"
        )


def prepare(cases: Path, out: Path) -> Path:
    """Copy cases to a new folder, with paths in place of the words that stand for them, and give the copy's folder."""
    copy = out / "cases"
    shutil.copytree(cases, copy)
    (out / "work").symlink_to(ROOT)
    (out / "tmp").mkdir()
    words = {"CASES": copy, "BASE": out, "TMP": out / "tmp", "CHECKOUT": ROOT}
    for path in copy.rglob("*"):
        if path.is_file() and (path.suffix in (".yaml", ".py") or path.name in (SCRIPT, "env")):
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(r"\b(CASES|BASE|TMP|CHECKOUT)\b", lambda found: str(words[found[0]]), text))
    return copy


def run(case: Path, log: Path, timeout: float) -> Outcome:
    """Run the script of a case in a process group of its own, which is killed when its time is over."""
    log.parent.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PY": sys.executable, "W": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", str(case / SCRIPT)], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            cwd=case.parent, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    faults = tuple(dict.fromkeys(FAULT.findall(text)))
    return Outcome(case.name, code, time.monotonic() - started, faults, lines[-1] if lines else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are named, or all; the exit code is 1 where one is not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, metavar="CASES")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="of each case [300]")
    given = parser.parse_args(arguments)
    found = sorted(path.parent.name for path in given.cases.glob(f"*/{SCRIPT}"))
    unknown = sorted(set(given.names) - set(found))
    if unknown or not found:
        parser.error(f"no case {', '.join(unknown)} in {given.cases}, which holds: {', '.join(found) or 'none'}")
    if given.out.exists():
        parser.error(f"{given.out} exists; name a new folder")
    out = given.out.absolute()
    copy = prepare(given.cases, out)
    outcomes = []
    for name in given.names or found:
        outcomes.append(run(copy / name, out / "log" / f"{name}.txt", given.timeout))
        print(outcomes[-1].line(), flush=True)
    print(f"{sum(outcome.is_good for outcome in outcomes)} of {len(outcomes)} good; output in {out / 'log'}")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
