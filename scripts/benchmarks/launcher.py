# SPDX-License-Identifier: Apache-2.0
"""Run one command and write down its cost: launcher.py RESULT LOG COMMAND...

A process of its own, because a child's peak memory begins with what its parent
had: here that is a bare interpreter (about 9 MB), not the whole benchmark.
"""
import os
import sys
import time


def main(result: str, log: str, *command: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    streams = [(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate((nothing, output, output))]
    start = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=streams)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - start
    with open(result, "w") as file:
        file.write("%d %r %r %d" % (status, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss))


if __name__ == "__main__":
    main(*sys.argv[1:])
