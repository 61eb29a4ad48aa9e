"""What a training would be: measured on one real micro-batch, forward and backward, and multiplied.

How many micro-batches an epoch has is reckoned from the first few hundred examples, since to encode all of them takes minutes.
Where the number of comp tokens is drawn (`training.n_comp`), every micro-batch is measured with the largest: an upper bound.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from context_memory import gate
from context_memory.batches import BLOCK, Batch
from context_memory.config import Config
from context_memory.job import prepare
from context_memory.train import run_folder
from context_memory.trainer import Learner

LONG = 10.0
"""Seconds of a pass that is not measured again."""


def estimate(config: Config) -> str:
    """A few lines: parameters, rows, tokens, time and memory."""
    job = prepare(config, sampled=True)
    lm, learner = job.lm, Learner(job.lm, config.training.loss)
    learner.train()
    batches = [job.collate([Batch(job.schedule[i].rows)]) for i in range(min(8, len(job.schedule)))]
    raw = sum(int((b["kind"] == 0).sum()) for b in batches) / len(batches)
    labels = sum(int((b["labels"] != -100).sum()) for b in batches) / len(batches)
    rows = sum(b["ids"].shape[0] for b in batches) / len(batches)
    widest = max(batches, key=lambda b: b["ids"].numel())
    batch = {k: v.to(lm.device) for k, v in widest.items()}
    print(f"measuring a micro-batch of {widest['ids'].numel():,} tokens, forward and backward", file=sys.stderr, flush=True)
    took = 0.0
    for _ in range(2):  # the first pass pays for allocations, which is nothing beside a long one
        start = time.perf_counter()
        learner(**batch)["loss"].backward()
        if (took := time.perf_counter() - start) > LONG:
            break
    seconds = took * sum(b["ids"].numel() for b in batches) / len(batches) / widest["ids"].numel()
    cuda = lm.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    adam = 8 * gate.trainable(lm)
    micro = len(job.schedule)
    total = seconds * micro
    reckoned = len(job.schedule.rows) > BLOCK and config.training.max_steps is None
    about = f" (reckoned from a sample of {BLOCK} examples)" if reckoned else ""
    most = f", at most: as if every micro-batch had {lm.scheme.n_comp} comp tokens a boundary" if config.training.n_comp else ""
    return "\n".join(
        [
            f"run         {run_folder(config)}",
            f"model       {lm.facts}, {lm.base.dtype}, scheme {lm.scheme.title}, gate {lm.gate}",
            f"parameters  {gate.trainable(lm):,} trained of {sum(p.numel() for p in lm.parameters()):,}",
            f"data        {len(job.schedule.rows):,} examples; {micro:,} micro-batches{about} of some {rows:.1f} rows, "
            f"{raw:,.0f} raw tokens, {labels:,.0f} labels" + "".join(f"; {what}" for what in job.remarks()),
            f"steps       {job.steps:,} updates{about}, {raw * micro:,.0f} raw tokens",
            f"time        {total / 60:.1f} minutes without evaluations, at {raw / seconds:,.0f} raw tokens/s (measured){most}",
            f"memory      {(peak + adam) / 2**30:.2f} GiB at the peak{most}",
        ]
    )
