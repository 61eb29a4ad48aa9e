"""Decoding throughput with compression beside the stock `generate` of the same model and prompts, in one run.

    python benchmarks/decoding.py [--model llama-3.1-8b] [--tokens 96] [--batch 1 8] [--repeat 3] [--dtype bfloat16]

Both decode greedily the same number of tokens and never stop early. Ours compresses every 24 tokens into two comp tokens (a
fresh adapter: speed does not depend on what it learnt) and frees the rest. The two take turns, so that whatever else the
machine does falls on both; the table shows the best of the repeats. Runs on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import time

import sized
import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table

from context_memory import loading, plugins
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.generate import Settings, generate
from context_memory.model import CompressedLM

MODEL = "smollm2-135m-instruct"


class Endless(Encoder):
    """Never stops at an end-of-turn token."""

    stops = frozenset()  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help=f"by name, or with random weights: {', '.join(sized.SHAPES)}")
    parser.add_argument("--tokens", type=int, default=96, help="tokens a row")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--every", type=int, default=24, help="tokens a segment")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where the CPU multiplies it natively, else float32")
    args = parser.parse_args()
    place = loading.accelerator()
    dtype = loading.numbers(args.dtype, place)
    stock, _ = sized.base(args.model, dtype, place)
    base, tokenizer = sized.base(args.model, dtype, place)
    tokenizer.padding_side = "left"
    lora = LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
    lm = CompressedLM(base, tokenizer, plugins.make("schemes", "concat", n_comp=2), lora=lora).eval()  # type: ignore[arg-type]
    encoder = Endless(tokenizer, plugins.make("boundaries", "every", n=args.every), [plugins.make("pins", "prompt")])  # type: ignore[arg-type, list-item]
    examples = Tally(max_steps=5).examples("test")
    where = torch.cuda.get_device_name() if place else f"{torch.get_num_threads()} threads"
    what = f"{args.model}, {str(dtype).removeprefix('torch.')}, {where}"
    table = Table(title=f"{what}, {args.tokens} new tokens a row, greedy, best of {args.repeat}")
    for name in ("batch", "stock generate, tokens/s", "with compression, tokens/s", "ratio", "peak KV tokens, stock", "ours"):
        table.add_column(name, justify="right")
    for batch in args.batch:
        prompts = [encoder.prompt(e) for e in examples[:batch]]
        texts = [tokenizer.decode([i for s in p for i in s.ids]) for p in prompts]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(stock.device)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.repeat):
            start = time.perf_counter()
            out = stock.generate(**inputs, max_new_tokens=args.tokens, min_new_tokens=args.tokens, do_sample=False)
            times[0].append(time.perf_counter() - start)
            assert out.shape[1] == inputs["input_ids"].shape[1] + args.tokens
            start = time.perf_counter()
            outs = generate(lm, encoder, prompts, Settings(max_new_tokens=args.tokens))
            times[1].append(time.perf_counter() - start)
            assert all(len(o.ids) == args.tokens and o.compressions >= (args.tokens - 1) // args.every - 1 for o in outs)
        a, b = (batch * args.tokens / min(t) for t in times)
        peak = max(o.peak_kv_tokens for o in outs)
        table.add_row(str(batch), f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}", str(inputs["input_ids"].shape[1] + args.tokens - 1), str(peak))
    Console().print(table)


if __name__ == "__main__":
    main()
