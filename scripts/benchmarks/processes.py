# SPDX-License-Identifier: Apache-2.0
"""Processes: commands that are measured to their end, and servers that run beside them."""
import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
#: The distribution's own programs come first.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
#: What the distribution ships, as a user has it, or what PYTHON names; no shim, which would be measured too.
PYTHON = os.path.realpath(shutil.which(os.environ.get("PYTHON", "")) or shutil.which("python3", path=PATH)
                          or sys.executable)
LONGEST = 900  # seconds of a command


class Measured(NamedTuple):
    seconds: float
    cpu: float  # seconds of all threads and children
    memory: float  # MB (10**6 bytes): the peak of the largest process


def measure(args: Sequence[str], env: Dict[str, str], log: Path) -> Measured:
    """Run a command to its end, its output into ``log``; raises with that unless it succeeds."""
    os.sync()
    result = log.with_name("cost")
    launcher = [PYTHON, "-I", "-S", str(Path(__file__).with_name("launcher.py")), str(result), str(log)]
    process = subprocess.Popen([*launcher, *args], env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait(LONGEST)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code != 0:
        raise RuntimeError("%s can't be run" % args[0])
    status, seconds, cpu, kilobytes = result.read_text().split()
    if int(status) != 0:
        output = log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError("%s: status %s\n%s" % (" ".join(args), status, output))
    return Measured(float(seconds), float(cpu), int(kilobytes) * 1024 / 1e6)


def peak_memory(pid: int) -> float:
    """MB that a running process has had at most."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/%d/status" % pid).read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def cpu_seconds(pid: int) -> float:
    """Seconds that a running process, and children that it has waited for, have computed so far."""
    fields = Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(args: Sequence[str], env: Dict[str, str], log: Path, ready: Callable[[], bool]) -> Iterator[int]:
    """A server until the block ends; its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(args, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("%s does not start\n%s" % (args[0], log.read_text()[-2000:]))
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(host: str) -> bool:
    """Whether a registry's front door is open."""
    try:
        with contextlib.closing(http.client.HTTPConnection(host, timeout=5)) as connection:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
