"""Answers a second at the largest batch that a fixed memory holds: `full` beside compressed memories, in one run.

    python benchmarks/throughput.py [--model llama-3.1-8b] [--budget 128] [--schemes full concat merge] [--tokens 50] [--segments 16]

Every user has a memory of 16 segments of 50 tokens and asks a question; the memories of all users are stacked into one batch
(`Memory.batch`) and answered together. A small batch is answered first and its caches are measured, at their largest, padding
included; the largest batch is what the budget divided by that gives. A few users are written and stacked again and again,
because what a memory says changes neither bytes nor speed; a fresh adapter serves for the same reason. Writing the memories is
not timed: it is done once, as the text comes. Runs on the GPU where there is one. Each answer of the small batch is compared
with that of its user alone, and each of the large batch with the small one's (in bfloat16 a batch rounds otherwise, and a tie
may fall the other way). The last columns tell what a larger batch gives from what a smaller memory gives by itself.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import sized
import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table

from context_memory import loading, plugins
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.generate import Settings, generate
from context_memory.memory import Memory
from context_memory.model import CompressedLM
from context_memory.text import Segment

MODEL = "smollm2-135m-instruct"
USERS = 3


class Endless(Encoder):
    """Never stops at an end-of-turn token."""

    stops = frozenset()  # type: ignore[assignment]


@dataclass
class Side:
    """A scheme with the memories of a few users, and their questions."""

    lm: CompressedLM
    encoder: Encoder
    users: list[Memory]
    questions: list[list[int]]
    settings: Settings

    def answer(self, who: list[int]) -> tuple[float, list[list[int]], int]:
        """Seconds, answers and the largest bytes a row, of these users as one batch."""
        memory = Memory.batch([self.users[i] for i in who])
        prompts = [[Segment(tuple(self.questions[i]), compress=False, target=True)] for i in who]
        start = time.perf_counter()
        outs = generate(self.lm, self.encoder, prompts, self.settings, memory)
        seconds = time.perf_counter() - start
        assert all(len(o.ids) == self.settings.max_new_tokens for o in outs)
        return seconds, [o.ids for o in outs], max(o.peak_kv_bytes for o in outs)

    def best(self, rows: int, repeat: int) -> tuple[float, list[list[int]], int]:
        """Answers a second of the fastest of some runs, its answers, and the largest bytes a row."""
        runs = [self.answer([i % USERS for i in range(rows)]) for _ in range(repeat)]
        seconds, ids, _ = min(runs)
        return rows / seconds, ids, max(r[2] for r in runs)


def side(name: str, args: argparse.Namespace, dtype: torch.dtype) -> Side:
    base, tokenizer = sized.base(args.model, dtype, loading.accelerator())
    trained = name in ("concat", "merge", "capped")
    lora = LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False) if trained else None
    scheme = plugins.make("schemes", name, **({"n_comp": args.n_comp} if trained else {}))
    lm = CompressedLM(base, tokenizer, scheme, lora=lora).eval()  # type: ignore[arg-type]
    encoder = Endless(tokenizer, plugins.make("boundaries", "turn"))  # type: ignore[arg-type]
    ids = encoder.ids("\n".join(f"{e.prompt} {e.target}" for e in Tally(max_steps=5).examples("test")[:100]))
    each = args.segments * args.tokens + args.question
    own = [ids[i * each : (i + 1) * each] for i in range(USERS)]
    assert len(own[-1]) == each, "not enough text; ask for fewer or shorter segments"
    memory = lm.memory(rows=USERS)
    with torch.inference_mode():
        for s in range(0, args.segments * args.tokens, args.tokens):
            memory.run([[Segment(tuple(text[s : s + args.tokens]))] for text in own])
    users, questions = [memory.pick([i]) for i in range(USERS)], [text[-args.question :] for text in own]
    return Side(lm, encoder, users, questions, Settings(max_new_tokens=args.answer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help=f"by name, or with random weights: {', '.join(sized.SHAPES)}")
    parser.add_argument("--budget", type=float, default=128, help="MiB for the caches of a batch")
    parser.add_argument("--schemes", nargs="+", default=["full", "concat", "merge"], help="the others are held against the first")
    parser.add_argument("--n-comp", type=int, default=2, help="comp tokens a segment")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=50, help="tokens a segment")
    parser.add_argument("--question", type=int, default=16, help="tokens of a question")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where the CPU multiplies it natively, else float32")
    args = parser.parse_args()
    place, budget = loading.accelerator(), int(args.budget * 2**20)
    dtype = loading.numbers(args.dtype, place)
    where = torch.cuda.get_device_name() if place else f"{torch.get_num_threads()} threads"
    what = f"{args.model}, {str(dtype).removeprefix('torch.')}, {where}"
    title = f"{what}; {args.segments} x {args.tokens} tokens a user, {args.question} + {args.answer} tokens a question; {args.budget:g} MiB"
    table = Table(title=f"{title}; best of {args.repeat}")
    for column in ("scheme", "KV MiB a row", "batch", "KV MiB", "answers/s", "ratio", "same as alone"):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    table.add_column(f"answers/s at {args.schemes[0]}'s batch", justify="right")
    table.add_column("ratio", justify="right")
    first: tuple[int, float] | None = None
    for name in args.schemes:
        it = side(name, args, dtype)
        few = list(range(USERS))
        _, ids, bytes_a_row = it.answer(few)
        same = sum(it.answer([i])[1][0] == ids[i] for i in few)
        rows = budget // bytes_a_row
        if not rows:
            raise SystemExit(f"one user's cache of scheme '{name}' is {bytes_a_row / 2**20:.1f} MiB; raise --budget above that.")
        speed, large, largest = it.best(rows, args.repeat)
        assert largest * rows <= budget, "the batch came to more than its budget"
        equal = sum(x == ids[i % USERS] for i, x in enumerate(large))
        first = first or (rows, speed)
        level = speed if rows == first[0] else it.best(first[0], args.repeat)[0]
        table.add_row(
            name, f"{largest / 2**20:.2f}", str(rows), f"{largest * rows / 2**20:.0f}", f"{speed:.2f}", f"{speed / first[1]:.2f}",
            f"{same + equal}/{USERS + rows}", f"{level:.2f}", f"{level / first[1]:.2f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
