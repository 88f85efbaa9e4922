"""Extracts the reason for the death of a trial's process, as one phrase, from Ray's messages and the process's log."""

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
    """Reason for the latest death of a process, from Tune's error file; None if the file gives none.

    Args:
        text: Tune's error file of the trial: a section for each failure, the latest one at the end.
        logs: Ray's log folder on this machine, which is searched for the process's own last error; None searches none.
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
    if "connection error code 2" in detail:  # Ray's generic message: the connection was closed
        return KILLED
    return f"{kind}: {' '.join(detail.split())}"[:MAX_REASON]


def is_from_outside(reason: str | None) -> bool:
    """Whether a reason is an external cause: the process was killed, the node ran out of memory, or the node was lost.

    A process that crashes by itself leaves its own error message.
    """
    return reason is not None and (reason in (KILLED, NODE_LOST) or reason.startswith(_OUTSIDE))


def _last_words(section: str, logs: Path | None) -> str | None:
    """Fatal error in the log of a process on this machine."""
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
