# SPDX-License-Identifier: Apache-2.0
import threading
from typing import List

import pytest

from minipull.progress import Meter, Progress, discard, serialized

TIMEOUT = 30.0


@pytest.mark.parametrize("progress,text", [
    (Progress(), ""),
    (Progress(message="Using default tag"), "Using default tag"),
    (Progress(id="a1", action="Pull complete"), "a1: Pull complete"),
    (Progress(id="a1", action="Downloading", current=5, total=10), "a1: Downloading 5/10"),
    (Progress(id="a1", message="said", action="done"), "a1: said"),
])
def test_an_event_prints_as_one_line(progress: Progress, text: str) -> None:
    assert str(progress) == text
    discard(progress)


@pytest.mark.parametrize("total,chunk,reports", [
    (0, 1 << 18, [3 << 18, 6 << 18]),  # unknown: past every 512 KiB
    (-1, 1 << 20, [1 << 20, 2 << 20, 3 << 20, 4 << 20, 5 << 20, 6 << 20, 7 << 20, 8 << 20]),
    (1 << 30, 1 << 18, [3 << 18, 6 << 18]),  # 512 KiB is less than 1 %
    (1000, 6, [12, 24, 36, 48]),  # past every 1 %
    (8, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
])
def test_a_meter_reports_steps_and_the_end(total: int, chunk: int, reports: List[int]) -> None:
    seen: List[Progress] = []
    meter = Meter(seen.append, "a1", "Downloading", total)
    for _ in range(8):
        meter.advance(chunk)
    assert [event.current for event in seen] == reports
    assert not any(event.last_update for event in seen)
    meter.finish()
    assert meter.current == 8 * chunk
    assert seen[-1] == Progress("a1", "", "Downloading", 8 * chunk, total, None, True)


def test_a_serialized_output_is_never_in_two_threads_at_once() -> None:
    inside, most = [0], [0]
    lock = threading.Lock()

    def output(progress: Progress) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        threading.Event().wait(0.001)
        with lock:
            inside[0] -= 1

    locked = serialized(output)
    threads = [threading.Thread(target=lambda: [locked(Progress()) for _ in range(10)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert most == [1] and inside == [0]


def test_a_serialized_output_may_cause_an_event_and_may_raise() -> None:
    seen: List[str] = []

    def output(progress: Progress) -> None:
        seen.append(progress.id)
        if progress.id == "outer":
            locked(Progress(id="inner"))
            raise ValueError

    locked = serialized(output)
    for _ in range(2):
        with pytest.raises(ValueError):
            locked(Progress(id="outer"))
    assert seen == ["outer", "inner"] * 2
