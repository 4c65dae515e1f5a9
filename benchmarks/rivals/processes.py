# SPDX-License-Identifier: Apache-2.0
"""Programs run to their end, with the time and memory they took and what else ran meanwhile."""

import os
import pathlib
import subprocess
import threading
import time

from .rows import Failed


def busy_seconds():
    """Of all CPUs, since the machine started: not idle, not waiting for a disk."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(field) for field in fields[:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(seconds):
    """Returns once other work took less than a tenth of a CPU for half a second, or in the end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - before < 0.05:
            return


class Result:
    """Of a process: what it wrote, its peak of resident bytes, seconds from its start to its end, and
    how many CPUs other work kept busy meanwhile."""

    def __init__(self, command, environment=None, codes=(0,)):
        busy, begin = busy_seconds(), time.perf_counter()
        try:
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                       env=environment)
        except OSError as error:
            raise Failed(f"{command[0]}: {error}") from error
        errors = []
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
        reader.start()
        try:
            self.out = process.stdout.read()
            reader.join()
        except BaseException:  # interrupted: the program ends with us
            process.kill()
            process.wait()
            raise
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.errors = errors[0]
        self.seconds = time.perf_counter() - begin
        self.peak_rss = usage.ru_maxrss * 1024
        own = usage.ru_utime + usage.ru_stime
        self.others = max(0.0, (busy_seconds() - busy - own) / self.seconds)
        if process.returncode not in codes:
            lines = self.errors.strip().splitlines() or ["no message"]
            name = pathlib.Path(command[0]).name
            raise Failed(f"{name} ended with {process.returncode}: {lines[-1]}")
