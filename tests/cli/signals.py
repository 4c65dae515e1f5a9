# SPDX-License-Identifier: Apache-2.0
"""Signals to a program that is ready for them, on machines of any speed."""
import time


def _caught(process):
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
        mask = next((line.split()[1] for line in status if line.startswith("SigCgt")), "0")
    return int(mask, 16)


def send_when_ready(process, number, then=1.0):
    """Sends a signal `then` seconds after the process catches it."""
    while process.poll() is None and not _caught(process) >> (number - 1) & 1:
        time.sleep(0.02)
    time.sleep(then)
    process.send_signal(number)
