"""One conversation, three ways: what training runs in one masked pass, what a memory does turn by turn, and what is generated.

    python examples/three_ways.py --adapter adapters/smollm2-135m-instruct-tally-concat

All three are the same computation, and this shows it on real weights; then it shows what the memory is worth: the perplexity of the last
answer with everything in view, from the memory, and without what was said before. Exits with 1 if the three differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from context_memory import CompressedLM
from context_memory.boundaries.turn import Turn
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.generate import generate
from context_memory.output import Settings
from context_memory.plan import layout
from context_memory.schemes.full import Full
from context_memory.text import Example, Segment, runs

TALK = Example(
    context=(
        "Hi, I am Jin. I moved here from Busan last week.",
        "Welcome, Jin! How do you like it here?",
        "It is colder than Busan, but people are kind.",
        "Give it a month and you will not notice the cold.",
    ),
    prompt="I hope so. Do you remember where I come from?",
    target="Yes, Jin, you moved here from Busan.",
    turns=True,
)


@dataclass(frozen=True)
class Result:
    """How far apart the three are, and what the memory is worth."""

    apart: float
    """Largest difference of the logits in one pass and turn by turn, as a share of the largest logit."""
    generated: tuple[int, int]
    """Tokens generated from the memory, and how many of them the one pass chooses as well."""
    text: str
    entries: int
    """Entries a layer that the memory of the context holds,"""
    tokens: int
    """and the tokens that it was made of."""
    perplexity: dict[str, float]


@torch.inference_mode()
def compare(lm: CompressedLM, encoder: Encoder, example: Example, most: int = 24) -> Result:
    """Run the example the three ways."""
    segments = encoder.segments(example)
    parallel = _one_pass(lm, segments)

    memory, recursive, held = lm.memory(), [], (0, 0)
    for part in runs(segments):
        hidden = memory.run([part])
        recursive.append(lm.logits(hidden[0, : sum(len(s.ids) for s in part)]))
        held = (memory.tokens, memory.raw[0]) if part[-1].compress else held
    apart = float((parallel - torch.cat(recursive)).abs().max() / parallel.abs().max())

    (out,) = generate(lm, encoder, [encoder.prompt(example)], Settings(max_new_tokens=most))
    said = [*encoder.prompt(example), Segment(tuple(out.ids), compress=False, target=True)]
    chosen = _one_pass(lm, said).argmax(-1)[-len(out.ids) - 1 : -1].tolist()
    agree = sum(a == b for a, b in zip(chosen, out.ids))

    full = lm.under(Full())
    perplexity = {
        "full": _perplexity(full, encoder, example),
        "memory": _perplexity(lm, encoder, example),
        "nothing": _perplexity(full, encoder, replace(example, context=())),
    }
    return Result(apart, (len(out.ids), agree), out.text, *held, perplexity)


def _one_pass(lm: CompressedLM, segments: Sequence[Segment]) -> torch.Tensor:
    """(raw tokens, vocabulary) logits."""
    plan = layout(segments, lm.scheme, lm.positions).to(lm.device)
    return lm(plan)[plan.tokens.raw]


def _perplexity(lm: CompressedLM, encoder: Encoder, example: Example) -> float:
    """Of the target and the end of its turn."""
    logits, labels = lm.labelled(layout(encoder.segments(example), lm.scheme, lm.positions).to(lm.device))
    return float(torch.nn.functional.cross_entropy(logits.double(), labels).exp())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="parallel == recursive == generated, and what a memory is worth.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="known name, hub id, folder or .gguf file")
    parser.add_argument("--adapter", required=True, help="a compression adapter's folder")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args(arguments)
    try:
        lm = CompressedLM.load(given.model, given.adapter, dtype=given.dtype)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    own = lm.encoder
    encoder = Encoder(lm.tokenizer, Turn(), own.pins, chat=own.chat, prompt=own.question)  # turns are compressed whole
    print("\n".join(f"  {text}" for text in TALK.context) + f"\n> {TALK.prompt}\n")
    r = compare(lm, encoder, TALK)
    written, agree = r.generated
    print(f"from the memory   {r.text!r}")
    print(f"memory            {len(TALK.context)} turns, {r.tokens} tokens -> {r.entries} entries a layer ({lm.scheme})")
    print(f"one pass and turn by turn   logits differ by {r.apart:.1e} of the largest ({given.dtype})")
    print(f"generated and one pass      {agree} of {written} tokens are the same")
    print(f"perplexity of {TALK.target!r}")
    print("\n".join(f"  {name:<8} {value:10.3f}" for name, value in r.perplexity.items()))
    same = r.apart < 1e4 * torch.finfo(lm.base.dtype).eps and agree == written
    print("parallel == recursive == generated" if same else "the three are NOT the same")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
