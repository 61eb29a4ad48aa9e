"""What a boundary policy costs: decoding throughput with each of them beside `full`, in one harness and one run.

    python benchmarks/policies.py [data=tally ...] [--adapter FOLDER] [--tokens 96] [--batch 1 8 32] [--repeat 3] [--length 33]
                                  [--marked FOLDER] [--lag 0] [--cpu-time]

All solve the same problems (of tally, unless others are named) with the same adapter (the shipped one of tally), greedily, through the one
decode loop, write the same number of tokens and never stop early. `every` and `random` end segments of `--length` tokens on average, which
is what a line of tally has; `its own` is the boundary that the adapter was trained with, its limits on length included; `classifier` needs
one in the adapter's folder. The rows take turns, so that whatever else the machine does
falls on all of them; the table shows the best of the repeats. `--lag` is `scheme.lag`, for an adapter with a window. `--cpu-time`
counts what the processor spent on it instead of what the clock says, which other work on the machine hardly changes (with one thread:
OMP_NUM_THREADS=1). Runs on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from context_memory import plugins, rows
from context_memory.adapter import read_card
from context_memory.boundaries.base import Boundary
from context_memory.boundaries.classifier import FILE, Classifier
from context_memory.encode import Encoder
from context_memory.generate import Decoder, Settings
from context_memory.loading import accelerator, load

ADAPTER = Path(__file__).resolve().parents[1] / "adapters" / "smollm2-135m-instruct-tally-concat"
TALLY = ["data=tally", "data.min_steps=5", "data.max_steps=6"]


class Endless(Encoder):
    """Never stops at an end-of-turn token."""

    stops = frozenset()  # type: ignore[assignment]


class Timed(Classifier):
    """Adds up the time that its head takes."""

    spent = 0.0
    clock = staticmethod(time.perf_counter)

    def read(self, hidden: torch.Tensor) -> list[float]:
        if hidden.is_cuda:
            torch.cuda.synchronize()  # what was queued before is not the head's
        start = self.clock()
        scores = super().read(hidden)
        Timed.spent += self.clock() - start
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=TALLY, help="key=value: the problems; tally of 5 or 6 steps if none is given")
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--tau", type=float, default=0.35, help="of the classifier")
    parser.add_argument("--tokens", type=int, default=96, help="tokens a row")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--length", type=int, default=33, help="tokens a segment, for every and random")
    parser.add_argument("--lag", type=int, help="scheme.lag, instead of the adapter's")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, not of the clock")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where the CPU multiplies it natively, else float32")
    parser.add_argument("--marked", help="an adapter of recipes/tally_model_concat.yaml, for a row of that policy")
    args = parser.parse_args()
    Timed.clock = clock = time.process_time if args.cpu_time else time.perf_counter
    model, place = read_card(args.adapter).base.name, accelerator()
    ours = load(model, args.adapter, dtype=args.dtype, device=place)
    if args.lag is not None:
        ours.scheme = replace(ours.scheme, lag=args.lag)  # type: ignore[type-var]
    full = load(model, args.adapter, dtype=args.dtype, device=place, scheme=plugins.make("schemes", "full"))
    policies: dict[str, Boundary] = {
        "newline": plugins.make("boundaries", "newline"),
        "rules": plugins.make("boundaries", "rules"),
        "every": plugins.make("boundaries", "every", n=args.length),
        "random": plugins.make("boundaries", "random", mean=args.length),
    }  # type: ignore[dict-item]
    policies["its own"] = ours.encoder.boundary
    if (args.adapter / FILE).is_file():
        policies["classifier"] = Timed(tau=args.tau, path=str(args.adapter))
    ways = {"full": (full, policies["newline"]), **{name: (ours, policy) for name, policy in policies.items()}}
    if args.marked:
        marked = load(model, args.marked, dtype=args.dtype, device=place)
        ways["model"] = (marked, marked.encoder.boundary)
    examples = list(rows.configure(args.data, None, None).examples("test", max(args.batch)))
    where = torch.cuda.get_device_name() if place else f"{torch.get_num_threads()} threads"
    what = f"{model}, {str(ours.base.dtype).removeprefix('torch.')}, {where}"
    title = f"{what}, {args.tokens} new tokens a row, best of {args.repeat}{', CPU time' * args.cpu_time}"
    for batch in args.batch:
        table = Table(title=f"{title}; batch {batch}")
        for name in ("policy", "tokens/s", "of full", "compressions a row", "head's share %"):
            table.add_column(name, justify="right")
        best, folds, share = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0), 0.0
        for _ in range(args.repeat):
            for name, (lm, policy) in ways.items():
                encoder = Endless(lm.tokenizer, policy, ours.encoder.pins)
                decoder = Decoder(lm, encoder, [encoder.prompt(e) for e in examples[:batch]], Settings(args.tokens))
                tokens = decoder.run()
                for _, _ in zip(range(batch), tokens):
                    pass  # the prompts are read and every row has its first token
                Timed.spent, start = 0.0, clock()
                for _ in tokens:
                    pass
                seconds = clock() - start
                if (speed := batch * (args.tokens - 1) / seconds) > best[name]:
                    best[name] = speed
                    share = Timed.spent / seconds if name == "classifier" else share
                folds[name] = sum(o.compressions for o in decoder.outputs) / batch
        for name, speed in best.items():
            said = f"{100 * share:.2f}" if name == "classifier" else ""
            table.add_row(name, f"{speed:.1f}", f"{speed / best['full']:.2f}", f"{folds[name]:.1f}", said)
        Console().print(table)


if __name__ == "__main__":
    main()
