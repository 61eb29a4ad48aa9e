"""In how many decode steps some row of a batch runs comp tokens, by `scheme.lag`: what a GPU pays for a boundary is paid in such steps.

    python benchmarks/lag.py ROW --adapter FOLDER [--batch 1 8 32] [--lag 0 4 8 12]

ROW is the folder of an evaluated row: its answers, in an order that a seed says, are put into batches and cut where the adapter's boundary
policy cuts, as the decode loop would (`generate.due`). No model is run.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from context_memory.adapter import read_card
from context_memory.config import Config
from context_memory.fetch import get
from context_memory.generate import due
from context_memory.records import gather
from context_memory.text import Example


def folds(tokens: int, edges: Sequence[int], lag: int) -> set[int]:
    """The steps, by the tokens fed before, in which an answer of so many tokens runs comp tokens."""
    steps, waiting, ended = set[int](), 0, set(edges)
    for fed in range(1, tokens):
        waiting += fed in ended
        if due(waiting, fed + 1, lag):
            steps.add(fed)
            waiting -= 1
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", type=Path)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--lag", type=int, nargs="+", default=[0, 4, 8, 12])
    args = parser.parse_args()
    card = read_card(args.adapter)
    tokenizer = AutoTokenizer.from_pretrained(get(card.base.name))
    encoder = Config.from_dict(card.config).encoder(tokenizer)
    examples = [Example("", p.answer or "") for p in gather([args.row])[0].lines]
    random.Random(0).shuffle(examples)
    answers = [(len(encoder.answer(e)), encoder.edges(e)) for e in examples]
    table = Table(title="steps in which some row runs comp tokens, %")
    for name in ("batch", *(f"lag {lag}" for lag in args.lag)):
        table.add_column(name, justify="right")
    for size in args.batch:
        groups = [answers[i : i + size] for i in range(0, len(answers) - size + 1, size)]
        steps = sum(max(n for n, _ in group) - 1 for group in groups)
        some = [sum(len(set[int]().union(*(folds(n, e, lag) for n, e in group))) for group in groups) for lag in args.lag]
        table.add_row(str(size), *(f"{100 * n / steps:.1f}" for n in some))
    Console().print(table)


if __name__ == "__main__":
    main()
