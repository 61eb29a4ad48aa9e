"""What a boundary policy costs: decoding throughput with each of them beside `full`, in one harness and one run.

    python benchmarks/policies.py [--tokens 96] [--batch 1 8 32] [--repeat 3] [--length 33] [--marked FOLDER]

All solve the same tally problems with the shipped adapters, greedily, through the one decode loop, write the same number of tokens and
never stop early. `every` and `random` end segments of `--length` tokens on average, which is what a line has. The rows take turns, so that
whatever else the machine does falls on all of them; the table shows the best of the repeats.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from context_memory import plugins
from context_memory.boundaries.base import Boundary
from context_memory.boundaries.classifier import Classifier
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.generate import Decoder, Settings
from context_memory.model import CompressedLM

MODEL = "smollm2-135m-instruct"
ADAPTER = Path(__file__).resolve().parents[1] / "adapters" / f"{MODEL}-tally-concat"


class Endless(Encoder):
    """Never stops at an end-of-turn token."""

    stops = frozenset()  # type: ignore[assignment]


class Timed(Classifier):
    """Adds up the time that its head takes."""

    spent = 0.0

    def read(self, hidden: torch.Tensor) -> list[float]:
        start = time.perf_counter()
        scores = super().read(hidden)
        Timed.spent += time.perf_counter() - start
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=96, help="tokens a row")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--length", type=int, default=33, help="tokens a segment, for every and random")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where the CPU multiplies it natively, else float32")
    parser.add_argument("--marked", help="an adapter of recipes/tally_model_concat.yaml, for a row of that policy")
    args = parser.parse_args()
    ours = CompressedLM.load(MODEL, ADAPTER, dtype=args.dtype)
    full = CompressedLM.load(MODEL, ADAPTER, dtype=args.dtype, scheme=plugins.make("schemes", "full"))
    policies: dict[str, Boundary] = {
        "newline": plugins.make("boundaries", "newline"),
        "rules": plugins.make("boundaries", "rules"),
        "every": plugins.make("boundaries", "every", n=args.length),
        "random": plugins.make("boundaries", "random", mean=args.length),
        "classifier": Timed(tau=0.35, path=str(ADAPTER)),
    }  # type: ignore[dict-item]
    rows = {"full": (full, policies["newline"]), **{name: (ours, policy) for name, policy in policies.items()}}
    if args.marked:
        marked = CompressedLM.load(MODEL, args.marked, dtype=args.dtype)
        rows["model"] = (marked, marked.encoder.boundary)
    examples = Tally(min_steps=5, max_steps=6).examples("test")
    what = f"{MODEL}, {str(ours.base.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    table = Table(title=f"{what}, {args.tokens} new tokens a row, best of {args.repeat}")
    for name in ("batch", "policy", "tokens/s", "of full", "compressions a row", "head's share %"):
        table.add_column(name, justify="right")
    for batch in args.batch:
        best, folds, share = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.0), 0.0
        for _ in range(args.repeat):
            for name, (lm, policy) in rows.items():
                encoder = Endless(lm.tokenizer, policy, ours.encoder.pins)
                decoder = Decoder(lm, encoder, [encoder.prompt(e) for e in examples[:batch]], Settings(args.tokens))
                tokens = decoder.run()
                for _, _ in zip(range(batch), tokens):
                    pass  # the prompts are read and every row has its first token
                Timed.spent, start = 0.0, time.perf_counter()
                for _ in tokens:
                    pass
                seconds = time.perf_counter() - start
                if (speed := batch * (args.tokens - 1) / seconds) > best[name]:
                    best[name] = speed
                    share = Timed.spent / seconds if name == "classifier" else share
                folds[name] = sum(o.compressions for o in decoder.outputs) / batch
        for name, speed in best.items():
            said = f"{100 * share:.2f}" if name == "classifier" else ""
            table.add_row(str(batch), name, f"{speed:.1f}", f"{speed / best['full']:.2f}", f"{folds[name]:.1f}", said)
    Console().print(table)


if __name__ == "__main__":
    main()
