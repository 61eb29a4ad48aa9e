"""An encoder-decoder learns to remember, from random weights: what does its memory keep of pairs that it was told segment by segment?

    python benchmarks/t5_recall.py [--segments 3] [--keys 6] [--values 8] [--base 1500] [--steps 700]

Every context segment is a pair "key value"; the question is one of the keys, the answer its value. First a tiny T5 is trained in full with
its whole context in view (`full`). Then it is frozen, and each scheme trains its adapter alone: LoRA at comp tokens, and their embeddings.
Accuracy on 2,000 fresh examples, answered step by step: segments written to a memory one by one, the question read after them.
`nothing` is the frozen model that is shown the question alone; 1 / values is chance.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5ForConditionalGeneration

from context_memory import plugins
from context_memory.encoder_decoder import CompressedSeq2Seq
from context_memory.families.t5 import T5
from context_memory.intervals import wilson
from context_memory.plan import IGNORE, Plan, layout, stack
from context_memory.schemes.base import Scheme
from context_memory.text import Segment

PAD, EOS, FIRST = 0, 1, 2


@dataclass(frozen=True)
class Task:
    """Pairs to remember. Ids: padding, EOS, keys, values."""

    segments: int
    keys: int
    values: int

    def draw(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(n, segments, 2) pairs, (n, 2) questions, (n, 1) answers."""
        keys = torch.rand(n, self.keys, generator=draw).argsort(1)[:, : self.segments] + FIRST
        values = torch.randint(self.values, keys.shape, generator=draw) + FIRST + self.keys
        asked = torch.randint(self.segments, (n, 1), generator=draw)
        key = keys.gather(1, asked)
        return torch.stack([keys, values], -1), torch.cat([key, torch.full_like(key, EOS)], 1), values.gather(1, asked)

    def plan(self, lm: CompressedSeq2Seq, n: int, draw: torch.Generator) -> Plan:
        """Examples laid out; all are alike but for their ids."""
        pair, end = Segment((FIRST, FIRST)), {"compress": False, "target": True}
        row = [*[pair] * self.segments, Segment((FIRST, EOS), **end), Segment((FIRST,), loss=(True,), **end)]  # type: ignore[arg-type]
        plan = stack([layout(row, lm.scheme, lm.positions)] * n)
        pairs, questions, answers = self.draw(n, draw)
        ids = plan.ids.clone()
        ids[plan.tokens.raw] = torch.cat([pairs.flatten(1), questions, answers], 1).flatten()
        return replace(plan, ids=ids, labels=torch.where(plan.labels == IGNORE, IGNORE, answers))


def train(lm: CompressedSeq2Seq, task: Task, steps: int, lr: float, rows: int = 64) -> None:
    """Cross-entropy on the answer; the rate falls to a twentieth."""
    draw = torch.Generator().manual_seed(1)
    parameters = [p for p in lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * max(0.05, 1 - step / steps)
        loss = cross_entropy(*lm.labelled(task.plan(lm, rows, draw)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


@torch.no_grad()
def right(lm: CompressedSeq2Seq, task: Task, n: int = 2000) -> tuple[int, int]:
    """(right answers, bytes that the decoder attends to and the memory holds, an example), step by step."""
    pairs, questions, answers = task.draw(n, torch.Generator().manual_seed(2))
    memory = lm.memory(rows=n)
    segments = [[Segment(tuple(pair)) for pair in row] for row in pairs.tolist()]
    if lm.scheme.max_steps == 1:
        segments = [[Segment(tuple(row))] for row in pairs.flatten(1).tolist()]
    for turn in zip(*segments):
        memory.run([[segment] for segment in turn])
    reading = memory.read(questions.tolist())
    said = lm.logits(lm.decode(reading.states, reading.seen, answers))[:, 0].argmax(-1)
    return int((said == answers[:, 0]).sum()), (memory.nbytes() + reading.nbytes()) // n


def fresh(task: Task) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=FIRST + task.keys + task.values, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=1,
                 num_heads=4, dropout_rate=0.0, relative_attention_num_buckets=16, relative_attention_max_distance=32,
                 feed_forward_proj="gated-gelu", pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD)
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("segments", 3), ("keys", 6), ("values", 8), ("base", 1500), ("steps", 700)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    task = Task(options.segments, options.keys, options.values)
    torch.set_num_threads(1)
    print(f"{'scheme':16}{'entries':>8}{'right, of 2,000':>17}{'95 % interval':>17}{'bytes':>8}{'seconds':>9}", flush=True)
    taught = fresh(task)
    wanted = [("full", 0), ("nothing", 0), ("concat", 1), ("gist", 4), ("merge", 4)]
    for name, n_comp in wanted:
        scheme: Scheme = plugins.make("schemes", name, **({"n_comp": n_comp} if n_comp else {}))  # type: ignore[assignment]
        base = fresh(task)
        base.load_state_dict(taught.state_dict())
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(T5.targets)) if n_comp else None
        lm = CompressedSeq2Seq(taught if name == "full" else base, None, scheme, lora=lora)
        start = time.perf_counter()
        if name == "full":
            lm.base.requires_grad_(True)
            train(lm, task, options.base, lr=2e-3)
        elif n_comp:
            train(lm, task, options.steps, lr=5e-3)
        seconds = time.perf_counter() - start
        count, size = right(lm.eval(), task)
        told = wilson(count, 2000)
        entries = 2 * options.segments if name == "full" else scheme.capacity(options.segments)
        label = f"{name}, {n_comp} comp" if n_comp else name
        interval = f"{100 * told.low:.1f} to {100 * told.high:.1f}"
        print(f"{label:16}{entries:8}{f'{count / 20:.1f} %':>17}{interval:>17}{size:8,}{seconds:9.0f}", flush=True)


if __name__ == "__main__":
    main()
