"""Where the time goes: PyTorch's profiler over a few steps, as a trace and as a table.

    trace.json       for chrome://tracing or ui.perfetto.dev
    operators.txt    the operators that cost most, dearest first

A step is megabytes of trace (2 where 30 layers decode), so a few are recorded, after one that only warms the profiler up. Recording
observes: results stay the same, the steps that are recorded take longer. Switched off, nothing of the profiler is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import profiler
from transformers import TrainerCallback

from context_memory.atomic import whole, write_text

TRACE, TABLE = "trace.json", "operators.txt"
DECODING, TRAINING = range(3, 14), range(2, 5)
"""The steps that are recorded, counted from 1."""
OPERATORS = 40
"""Lines of the table."""


@contextmanager
def profiled(on: bool, folder: Path, steps: range) -> Iterator[Callable[[], None]]:
    """Gives a function to be called after every step; the files are written after the last of `steps`, or at the end."""
    if not on:
        yield lambda: None
        return

    def write(seen: profiler.profile) -> None:
        with whole(folder / TRACE) as beside:
            seen.export_chrome_trace(str(beside))
        where = "cuda" if torch.cuda.is_available() else "cpu"
        table = seen.key_averages().table(sort_by=f"self_{where}_time_total", row_limit=OPERATORS)
        write_text(folder / TABLE, table)

    plan = profiler.schedule(wait=steps.start - 2, warmup=1, active=len(steps), repeat=1)
    with profiler.profile(schedule=plan, on_trace_ready=write) as recorder:
        yield recorder.step
    if recorder.step_num < steps.start - 1:
        print(f"profile: nothing recorded, it came to an end before step {steps.start}.", file=sys.stderr)


class EachStep(TrainerCallback):
    """Calls a function after every update."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step()
