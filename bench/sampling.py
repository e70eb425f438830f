"""Times a task's calls in this process."""

from __future__ import annotations

import itertools
import math
import time

from bench.contenders import Task

# Untimed calls for a quarter of a sample's length warm up caches and threads before it. Calls that
# take longer than this need no warm-up.
LONG_CALL_NS = 20e6


class Sampler:
    """Takes samples of a task: times of some consecutive calls.

    In training every call gets changed parameters; changing them is not timed.

    Attributes:
        calls: the number of calls in the last sample.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._short = True
        self._sample_ns = 0.0
        self.calls = 1

    def calibrate(self, sample_ns: float) -> float:
        """Finds how many calls a sample of this length takes; returns nanoseconds per call."""
        self._sample_ns = sample_ns
        self._time(1)
        ns = self._time(self.calls)
        while True:
            while ns * self.calls < sample_ns:
                wanted = math.ceil(1.1 * sample_ns / ns)
                self.calls = max(self.calls + 1, min(wanted, 10 * self.calls))
                ns = self._time(self.calls)
            # A slow start, for example because threads were created, is measured again.
            turns = 1 if ns >= LONG_CALL_NS else 3
            again = min(self._time(self.calls) for _ in range(turns))
            if again * self.calls >= sample_ns / 2:
                return ns
            ns = again

    def sample(self) -> float:
        """Takes one sample: nanoseconds per call.

        Increases the number of calls if the calibration was disturbed and they take far less time.
        """
        if self.calls > 1 or self._short:
            self._time(math.ceil(self.calls / 4))
        ns = self._time(self.calls)
        if ns * self.calls >= self._sample_ns / 2:
            return ns
        self.calibrate(self._sample_ns)
        return self._time(self.calls)

    def run_for(self, seconds: float) -> tuple[float, int]:
        """Calls repeatedly for this time; returns nanoseconds per call and the number of calls."""
        run, calls = self._task.run, 0
        begin = time.perf_counter_ns()
        now, end = begin, begin + seconds * 1e9
        while now < end:
            run()
            calls += 1
            now = time.perf_counter_ns()
        return (now - begin) / calls, calls

    def _time(self, calls: int) -> float:
        task = self._task
        run, clock = task.run, time.perf_counter_ns
        total = 0
        if task.change is None:
            begin = clock()
            for _ in itertools.repeat(None, calls):
                run()
            total = clock() - begin
        else:
            for _ in range(calls):
                task.change()
                begin = clock()
                run()
                total += clock() - begin
        self._short = total < LONG_CALL_NS
        return total / calls
