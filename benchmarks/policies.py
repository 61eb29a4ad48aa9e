"""What a boundary policy costs: decoding throughput with each of them beside `full`, in one harness and one run.

    python benchmarks/policies.py [--tokens 96] [--batch 1 8 32] [--repeat 3] [--length 24]

All decode greedily the same number of tokens through the one decode loop and never stop early. A fresh adapter of two comp tokens and a
fresh classifier: speed does not depend on what they learnt. `every` and `random` end segments of `--length` tokens on average; the
threshold of the classifier is set so that it fires about as often. The rows take turns, so that whatever else the machine does
falls on all of them; the table shows the best of the repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from context_memory import fetch, head, loading, plugins
from context_memory.adapter import Base
from context_memory.boundaries.base import Boundary
from context_memory.boundaries.classifier import FILE, Classifier
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.generate import Decoder, Settings
from context_memory.model import CompressedLM

MODEL = "smollm2-135m-instruct"


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


def threshold(lm: CompressedLM, policy: Classifier, encoder: Encoder, length: int) -> Classifier:
    """The policy with a tau that one token in `length` reaches, by the states of a few prompts."""
    ids = [i for e in Tally().examples("test")[:4] for s in encoder.prompt(e) for i in s.ids]
    with torch.inference_mode():
        scores = sorted(policy.read(lm.base.model(torch.tensor([ids])).last_hidden_state[0]))
    return replace(policy, tau=min(0.999, max(0.001, scores[-max(1, len(scores) // length)])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=96, help="tokens a row")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--length", type=int, default=24, help="tokens a segment, for every, random and classifier")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where the CPU multiplies it natively, else float32")
    args = parser.parse_args()
    dtype, folder = loading.numbers(args.dtype), fetch.get(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def load(scheme: str, **settings: int) -> CompressedLM:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        lora = LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
        made = plugins.make("schemes", scheme, **settings)
        lm = CompressedLM(base, tokenizer, made, lora=lora if settings else None).eval()  # type: ignore[arg-type]
        lm.facts = Base(MODEL, lm.n_layers, base.config.hidden_size, base.config.vocab_size, "benchmark")
        return lm

    full, ours = load("full"), load("concat", n_comp=2)
    pins = [plugins.make("pins", "prompt")]
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        head.save(head.Head(ours.base.config.hidden_size), Path(scratch) / FILE, {"model": MODEL, "weights": "benchmark", "task": ""})
        learnt = threshold(ours, Timed(path=scratch), Endless(tokenizer, plugins.make("boundaries", "newline"), pins), args.length)  # type: ignore[arg-type]
        policies: dict[str, Boundary] = {
            "newline": plugins.make("boundaries", "newline"),
            "rules": plugins.make("boundaries", "rules"),
            "every": plugins.make("boundaries", "every", n=args.length),
            "random": plugins.make("boundaries", "random", mean=args.length),
            "classifier": learnt,
            "model": plugins.make("boundaries", "model"),
        }  # type: ignore[dict-item]
        what = f"{MODEL}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
        table = Table(title=f"{what}, {args.tokens} new tokens a row, greedy, best of {args.repeat}")
        for name in ("batch", "policy", "tokens/s", "of full", "compressions a row", "classifier's share %"):
            table.add_column(name, justify="right")
        for batch in args.batch:
            rows = {"full": (full, policies["newline"]), **{name: (ours, policy) for name, policy in policies.items()}}
            best, folds, share = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.0), 0.0
            for _ in range(args.repeat):
                for name, (lm, policy) in rows.items():
                    encoder = Endless(tokenizer, policy, pins)  # type: ignore[arg-type]
                    decoder = Decoder(lm, encoder, [encoder.prompt(e) for e in Tally().examples("test")[:batch]], Settings(args.tokens))
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
