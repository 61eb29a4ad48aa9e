"""Training throughput: a compression step beside a plain causal LoRA step of the same model, in one run.

    python benchmarks/training.py [--steps 6] [--rows 8] [--attn eager] [--dtype bfloat16]

Rows are shaped like GSM8K (the real ones where $CCM_DATA has them, else token counts of the same distribution). Ours: scheme
concat, two comp tokens, cross-entropy on the answer, LoRA at comp tokens. Theirs: stock transformers + PEFT, an ordinary LoRA
of the same rank on the same modules, labels on the same tokens. Counted are raw tokens: no padding, no comp tokens. The two
take turns, step by step, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from context_memory import fetch, loading, plugins
from context_memory.encode import Encoder
from context_memory.loss import cross_entropy
from context_memory.model import CompressedLM
from context_memory.plan import IGNORE, Plan, layout, stack
from context_memory.text import Segment

MODEL = "smollm2-135m-instruct"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def rows(count: int, tokenizer: object) -> list[list[Segment]]:
    """Question pinned, a line a step, like GSM8K's."""
    encoder = Encoder(tokenizer, plugins.make("boundaries", "newline"), [plugins.make("pins", "prompt")])  # type: ignore[arg-type, list-item]
    home = Path(os.environ.get("CCM_DATA", "")) / "gsm8k"
    if home.is_dir():
        examples = plugins.make("data", "gsm8k", path=str(home)).examples("train")  # type: ignore[attr-defined]
        return [encoder.segments(e) for e in examples[:count]]
    draw = random.Random(0)

    def text(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100, 40_000) for _ in range(n))

    made = []
    for _ in range(count):
        asked = text(draw.randint(50, 130))
        steps = [text(draw.randint(15, 45)) for _ in range(draw.randint(2, 6))]
        lines = [Segment(s, loss=(True,) * len(s), target=True) for s in steps]
        question = Segment(asked, compress=False, pins=(True,) * len(asked))
        made.append([question, *lines, Segment(text(6), loss=(True,) * 6, compress=False, target=True)])
    return made


def ours(attention: str, dtype: torch.dtype, batches: Sequence[Sequence[list[Segment]]]) -> tuple[Callable[[int], float], list[Plan]]:
    """A step of ours: seconds of forward, backward and update."""
    base = AutoModelForCausalLM.from_pretrained(fetch.get(MODEL), dtype=dtype)
    scheme = plugins.make("schemes", "concat", n_comp=2)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS)
    lm = CompressedLM(base, None, scheme, lora=lora, attn_implementation=attention)  # type: ignore[arg-type]
    lm.train()
    plans = [stack([layout(row, lm.scheme, supervise="memory") for row in batch]) for batch in batches]
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=3e-4)

    def step(i: int) -> float:
        start = time.perf_counter()
        where = plans[i].labels != IGNORE
        loss = cross_entropy(lm.hidden(plans[i])[where], plans[i].labels[where], lm.logits, base.config.vocab_size) / int(where.sum())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return step, plans


def theirs(dtype: torch.dtype, batches: Sequence[Sequence[list[Segment]]]) -> Callable[[int], float]:
    """A step of stock transformers + PEFT on the same tokens."""
    base = AutoModelForCausalLM.from_pretrained(fetch.get(MODEL), dtype=dtype)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    full = plugins.make("schemes", "full")
    plans = [stack([layout(row, full) for row in batch]) for batch in batches]  # type: ignore[arg-type]

    def step(i: int) -> float:
        plan = plans[i]
        real = plan.tokens.raw
        labels = torch.full_like(plan.ids, IGNORE)
        labels[:, 1:] = plan.labels[:, :-1]
        start = time.perf_counter()
        model(input_ids=plan.ids, attention_mask=real.long(), labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each, after one to warm up")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--attn", default="sdpa", help="attention of our side (theirs is what stock transformers takes: sdpa)")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where the CPU multiplies it natively, else float32")
    args = parser.parse_args()
    dtype = loading.numbers(args.dtype)
    tokenizer = AutoTokenizer.from_pretrained(fetch.get(MODEL))
    made = sorted(rows(args.rows * (args.steps + 1), tokenizer), key=lambda row: sum(len(s.ids) for s in row))
    batches = [made[i : i + args.rows] for i in range(0, len(made), args.rows)]
    random.Random(0).shuffle(batches)
    mine, plans = ours(args.attn, dtype, batches)
    stock = theirs(dtype, batches)
    mine(0), stock(0)
    seconds = [(mine(i), stock(i)) for i in range(1, len(batches))]
    tokens = sum(p.real for p in plans[1:])
    shape = f"{len(batches) - 1} steps of {args.rows} rows, {tokens} raw tokens"
    table = Table(title=f"{MODEL}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, {shape}")
    for name in ("step", "seconds", "raw tokens/s", "ratio"):
        table.add_column(name, justify="left" if name == "step" else "right")
    a, b = (sum(s[k] for s in seconds) for k in (0, 1))
    table.add_row("plain causal LoRA (transformers + PEFT)", f"{b:.1f}", f"{tokens / b:.0f}", "1.00")
    table.add_row(f"concat, 2 comp tokens ({args.attn})", f"{a:.1f}", f"{tokens / a:.0f}", f"{b / a:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
