"""The system's figures of this process, under Prometheus' standard names ``process_*``."""

from __future__ import annotations

import contextlib
import math
import os
import resource

from manallm_proxy.observe.aioprometheus_internals import CounterFamily, GaugeFamily, Registry


def process_gauges(registry: Registry, started: float | None) -> None:
    """``process_*`` under Prometheus' standard names, without those that the system does not provide."""

    def gauge(name: str, doc: str, number: float) -> None:
        GaugeFamily(f"process_{name}", doc, (), [((), number)], registry)

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = CounterFamily("process_cpu_seconds_total", "User and system CPU time", (), registry)
    seconds.numbers[()] = used.ru_utime + used.ru_stime
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    gauge("max_fds", "Limit of open file descriptors", math.inf if soft == resource.RLIM_INFINITY else soft)
    if started is not None:
        gauge("start_time_seconds", "When the process began", started)
    with contextlib.suppress(OSError):
        gauge("open_fds", "Open file descriptors", len(os.listdir("/proc/self/fd")))
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = _stat()
        virtual, resident = int(fields[20]), int(fields[21]) * resource.getpagesize()
        gauge("virtual_memory_bytes", "Virtual memory", virtual)
        gauge("resident_memory_bytes", "Resident memory", resident)


def _stat() -> list[str]:
    """The fields of ``/proc/self/stat`` after the program's name, which may contain anything (proc(5))."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def process_start() -> float | None:
    """Start time in seconds since the epoch; None if unknown. ``/proc/stat`` is slow on machines with many cores."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(_stat()[19])
        with open("/proc/stat", encoding="ascii", errors="replace") as file:
            booted = [int(line.split()[1]) for line in file if line.startswith("btime ")]
        return booted[0] + ticks / os.sysconf("SC_CLK_TCK")
    return None
