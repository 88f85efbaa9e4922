"""The script that runs cases tells faults, silence and hanging from a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import ROOT
from tests.cases import main

SCRIPTS = {
    "fault": 'echo "internal error: KeyError: 1"; exit 1',
    "good": '. CASES/_base/env\necho "error: $WHERE is bad"; exit 2',
    "hangs": "echo begun; sleep 60",
    "silent": "true",
}


def test_faults_silence_and_hanging_are_told_from_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, out = tmp_path / "given", tmp_path / "out"
    (cases / "_base").mkdir(parents=True)
    (cases / "_base" / "env").write_text("WHERE=CHECKOUT/BASEMENT\n")
    for name, script in SCRIPTS.items():
        (cases / name).mkdir()
        (cases / name / "cmd").write_text(script + "\n")
    assert main([str(cases), str(out), "--timeout", "0.5"]) == 1
    *lines, total = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["FAULT", "fault"], ["ok", "good"], ["TIME", "hangs"], ["SILENT", "silent"],
    ]  # fmt: skip
    assert lines[1].endswith(f"rc 2  error: {ROOT}/BASEMENT is bad")
    assert total.startswith("1 of 4 good")
    assert main([str(cases), str(tmp_path / "again"), "good"]) == 0
    with pytest.raises(SystemExit):
        main([str(cases), str(out)])
