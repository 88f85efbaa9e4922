"""Records survive kills and absent servers, and are delivered in order."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from sdm_ray.core.errors import RunError
from sdm_ray.tracking import outbox
from sdm_ray.tracking.outbox import SWEEP_RUN, Delivery, Journal, Record, RejectedError


class FakeServer:
    """Takes records while it is up; a record named in `poison` it never takes."""

    def __init__(self, *, up: bool = True, poison: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.up, self.poison, self.got = up, poison, []  # type: ignore[var-annotated]
        self.num_calls = 0

    def apply(self, records: list[Record]) -> None:
        self.num_calls += 1
        if not self.up:
            raise ConnectionError("connection refused")
        for record in records:
            if record["n"] in self.poison:
                raise RejectedError("bad name")
            if record["n"] not in self.got:
                self.got.append(record["n"])


def fill(journal: Journal, numbers: range) -> None:
    for number in numbers:
        journal.append({"n": number, "call": "log"})


def test_pending_and_acknowledge_walk_through_the_records(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, range(5))
    records, positions = journal.pending(2)
    assert [record["n"] for record in records] == [0, 1]
    journal.acknowledge(positions[0])
    records, positions = journal.pending(10)
    assert [record["n"] for record in records] == [1, 2, 3, 4]
    assert journal.count_pending() == 4
    journal.acknowledge(positions[-1])
    assert journal.pending(10) == ([], [])
    assert [record["n"] for record in journal.records()] == [0, 1, 2, 3, 4]


def test_a_new_process_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    fill(first, range(4))
    first.acknowledge(first.pending(3)[1][-1])
    first.close()
    second = Journal(tmp_path)
    fill(second, range(4, 6))
    assert [record["n"] for record in second.pending(10)[0]] == [3, 4, 5]


def test_half_a_line_left_by_a_kill_is_dropped(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    fill(first, range(2))
    first.close()
    with first.path.open("ab") as file:
        file.write(b'{"n": 2, "call": "lo')
    second = Journal(tmp_path)
    fill(second, range(3, 4))
    assert [record["n"] for record in second.pending(10)[0]] == [0, 1, 3]


def test_a_mark_beyond_the_journal_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "delivered").write_text("999999")
    journal = Journal(tmp_path)
    fill(journal, range(1))
    assert len(journal.pending(10)[0]) == 1


def test_everything_arrives_in_order(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), FakeServer()
    delivery = Delivery(journal, server)
    fill(journal, range(300))
    assert delivery.close(10, 10)
    assert server.got == list(range(300))
    assert server.num_calls < 300, "records are handed over in chunks"


def test_a_server_that_comes_back_gets_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "FIRST_WAIT_SECONDS", 0.01)
    journal, server = Journal(tmp_path), FakeServer(up=False)
    delivery = Delivery(journal, server)
    with caplog.at_level(logging.WARNING):
        fill(journal, range(20))
        while server.num_calls < 3:
            time.sleep(0.005)
        assert server.got == []
        server.up = True
        assert delivery.close(10, 10)
    assert server.got == list(range(20))
    said = [record.getMessage() for record in caplog.records]
    assert len([message for message in said if "connection refused" in message]) == 1, "one warning an outage"


def test_what_an_absent_server_missed_waits_for_the_next_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    delivery = Delivery(journal, FakeServer(up=False))
    fill(journal, range(3))
    start = time.monotonic()
    assert not delivery.close(30, 0.2)
    assert time.monotonic() - start < 5, "the end of a sweep waits briefly for a server that is away"
    later, server = Journal(tmp_path), FakeServer()
    assert Delivery(later, server).close(10, 10)
    assert server.got == [0, 1, 2]


@pytest.mark.parametrize("poison", [{0}, {63}, {5, 6, 70}])
def test_a_rejected_record_is_skipped_and_the_rest_arrives(tmp_path: Path, poison: set[int]) -> None:
    journal, server = Journal(tmp_path), FakeServer(poison=poison)
    fill(journal, range(100))
    assert Delivery(journal, server).close(10, 10)
    assert server.got == [number for number in range(100) if number not in poison]


def test_appending_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    released = threading.Event()

    class Hanging:
        def apply(self, records: list[Record]) -> None:
            released.wait(30)

    journal = Journal(tmp_path)
    delivery = Delivery(journal, Hanging())
    start = time.monotonic()
    fill(journal, range(1000))
    assert time.monotonic() - start < 2
    assert not delivery.close(0.2, 0.1)
    released.set()


class Faulty(FakeServer):
    """A sink with a fault of our own: records named in `faults` raise as a wrong line of code does."""

    def __init__(self, faults: set[int]) -> None:
        super().__init__()
        self.faults = faults

    def apply(self, records: list[Record]) -> None:
        for record in records:
            if record["n"] in self.faults:
                raise AttributeError("'NoneType' object has no attribute 'info'")
        super().apply(records)


def test_a_fault_of_our_own_is_loud_once_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, server = Journal(tmp_path), Faulty({3, 9})
    for number in range(12):
        journal.append({"n": number, "call": "log", "trial": f"t{number % 3}"})
    with caplog.at_level(logging.WARNING):
        assert not Delivery(journal, server).close(10, 10)
    kept = [3, 6, 9]  # later records of the same trial build on the one that failed
    assert server.got == [number for number in range(12) if number not in kept]
    assert len(caplog.records) == 1
    assert "a fault of sdm-ray" in caplog.text
    assert "NoneType" in caplog.text
    later, mended = Journal(tmp_path), FakeServer()
    assert Delivery(later, mended).close(10, 10)
    assert mended.got == kept
    assert not later.aside.exists()


def test_trials_wait_where_a_fault_keeps_their_sweep_from_beginning(tmp_path: Path) -> None:
    """Their runs belong to that of the sweep: without it the server would refuse each of them for good."""
    journal, server = Journal(tmp_path), Faulty({0})
    for number, trial in enumerate((SWEEP_RUN, "t0", "t1", "t0")):
        journal.append({"n": number, "call": "start", "trial": trial})
    assert not Delivery(journal, server).close(10, 10)
    assert server.got == []
    mended = FakeServer()
    assert Delivery(Journal(tmp_path), mended).close(10, 10)
    assert mended.got == [0, 1, 2, 3]


def test_a_record_that_cannot_be_set_aside_waits_in_the_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, server = Journal(tmp_path), Faulty({1})
    journal.aside.mkdir()  # nothing can be written there
    for number in range(3):
        journal.append({"n": number, "call": "log", "trial": "t0"})
    delivery = Delivery(journal, server)
    deadline = time.monotonic() + 10
    while "tracking waits" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert journal.count_pending() == 2
    journal.aside.rmdir()
    assert not delivery.close(10, 10)
    mended = FakeServer()
    assert Delivery(Journal(tmp_path), mended).close(10, 10)
    assert (server.got, mended.got) == ([0], [1, 2])


def test_nothing_is_delivered_where_no_server_was_found(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RunError("no MLflow server answers")

    journal, server = Journal(tmp_path), FakeServer()
    fill(journal, range(3))
    delivery = Delivery(journal, server, refuse)
    with pytest.raises(RunError, match="no MLflow server answers"):
        delivery.wait_connected()
    start = time.monotonic()
    assert not delivery.close(30, 30)
    assert time.monotonic() - start < 5
    assert server.num_calls == 0
    assert journal.count_pending() == 3


def test_damaged_lines_are_skipped_and_the_rest_is_delivered(tmp_path: Path) -> None:
    """In the middle, one after the other, and at the end, as a disk that was full or a crash leaves them."""
    first = Journal(tmp_path)
    fill(first, range(2))
    first.close()
    with first.path.open("ab") as file:
        file.write(b'{"n":7,"ca\n\x00\x00\x00\nnull\n{"n": 8}\n')
    second = Journal(tmp_path)
    fill(second, range(2, 4))
    with second.path.open("ab") as file:
        file.write(b"torn\n")
    second.close()
    third = Journal(tmp_path)
    assert [record["n"] for record in third.records()] == [0, 1, 2, 3]
    server = FakeServer()
    delivery = Delivery(third, server)
    assert delivery.close(10.0, 10.0)
    assert server.got == [0, 1, 2, 3]


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe", b"text", b"-5", b"3", b"999999"])
def test_where_the_delivered_part_cannot_be_told_all_is_delivered_again(tmp_path: Path, mark: bytes) -> None:
    journal = Journal(tmp_path)
    fill(journal, range(3))
    journal.acknowledge(journal.pending(10)[1][-1])
    journal.close()
    (tmp_path / "delivered").write_bytes(mark)
    assert Journal(tmp_path).count_pending() == 3


def test_a_journal_is_rewound_and_knows_what_has_begun(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert not journal.rewind()
    for name in ("a", "b"):
        journal.append({"n": 0, "call": "start", "trial": name})
    journal.acknowledge(journal.pending(1)[1][0])
    assert journal.begun() == {"a"}
    assert journal.rewind()
    assert journal.count_pending() == 2
