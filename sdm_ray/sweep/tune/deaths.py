"""Why the process of a trial died: what Ray and the process itself have to say, as one phrase."""

from __future__ import annotations

import re
from pathlib import Path

MAX_REASON = 300
KILLED, NODE_LOST = "killed, or crashed without a word", "its node was lost"
OUT_OF_MEMORY = "NODE_OUT_OF_MEMORY: killed by Ray because the memory of its node ran low"
_OUTSIDE = ("NODE_OUT_OF_MEMORY", "NODE_DIED", "WORKER_DIED: SIGTERM")
_NODE = re.compile(r"\bnode\b[^.]{0,80}\b(?:has died|died|was (?:lost|removed|terminated)|is dead)", re.IGNORECASE)
_HUNGRY = re.compile(r"killed due to the node running low on memory", re.IGNORECASE)
_EXIT = re.compile(r"Worker exit type: (\w+) Worker exit detail: (.+?\.)(?:\s|$)", re.DOTALL)
_ERROR = re.compile(r"[\w.]*(?:Error|Exception|Interrupt)\b: \S")
_PID = re.compile(r"^\s*pid: (\d+)", re.MULTILINE)
_FATAL = re.compile(r"^(?:Fatal Python error: |terminate called ).*", re.MULTILINE)


def death_reason(text: str, logs: Path | None) -> str | None:
    """Why a process died, from Tune's account of its failures; None where that says nothing.

    Args:
        text: Tune's error file of the trial: a section for each failure, the last one at the end.
        logs: Ray's log folder on this machine, where a process leaves its last words; None knows none.
    """
    section = text.rpartition("Failure # ")[2]
    lines = [line.strip() for line in section.splitlines()[1:] if line.strip()]
    if not lines:
        return None
    exited = _EXIT.search(section)
    if exited is None and _HUNGRY.search(section):
        return OUT_OF_MEMORY
    if exited is None and _NODE.search(section):
        return NODE_LOST
    if exited is None:
        raised = [line for line in lines if _ERROR.match(line)]
        return (raised or lines)[-1][:MAX_REASON]
    words = _last_words(section, logs)
    if words is not None:
        return words[:MAX_REASON]
    kind, detail = exited.groups()
    if "connection error code 2" in detail:  # all that Ray knows of a process that is gone
        return KILLED
    return f"{kind}: {' '.join(detail.split())}"[:MAX_REASON]


def is_from_outside(reason: str | None) -> bool:
    """Whether a process was ended from outside, by its reason: killed, out of the machine's memory, its node lost.

    One that crashed left words of its own.
    """
    return reason is not None and (reason in (KILLED, NODE_LOST) or reason.startswith(_OUTSIDE))


def _last_words(section: str, logs: Path | None) -> str | None:
    """The fatal error in the log of a process of this machine."""
    pid = _PID.search(section)
    if pid is None or logs is None:
        return None
    for path in logs.glob(f"worker-*-{pid.group(1)}.err"):
        said = path.read_text(encoding="utf-8", errors="replace").rstrip()
        last = said.rpartition("\n")[2]
        found = _FATAL.findall(said) or [last] * bool(_ERROR.match(last))
        if found:
            return str(found[-1]).strip()
    return None
