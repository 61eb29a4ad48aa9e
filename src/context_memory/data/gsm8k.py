"""GSM8K: grade-school word problems, as published or with the places to compress written in.

Cobbe et al. 2021, arXiv:2110.14168 (MIT). Plain rows {question, answer} lose their calculator marks `<<48/2=24>>`. Annotated rows
{question, reasoning_with_compression, answer} have `<COMP>` where an annotator would compress: there the marker becomes a cut
(`Example.cuts`) and leaves the text. Annotators are models and get a tenth of the problems wrong. Traces {question, answer,
original_reasoning} are what a model wrote itself: the target is `original_reasoning` to the letter, however it says its answer
(`traces.py` writes them). In both, `answer` gives the right number, and rows whose text ends in another one are dropped and
counted, since to train on them teaches mistakes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from context_memory.data import _hub
from context_memory.data._answers import final_number, same
from context_memory.data._fields import texts
from context_memory.data._files import CARVED, Row, once, part, rows_of
from context_memory.data.base import Dataset
from context_memory.text import Example

SPLITS = ("train", "validation", "test")
ALONE = re.compile(r"\S*\d\S*( \w+)?\.?")
"""An answer that is a number, perhaps with its unit."""
CALCULATOR = re.compile(r"<<[^<>\n]*>>")
MARKER = "<COMP>"


def hub_rows(split: str) -> list[Row]:
    """The rows of a published split, from the hub."""
    instead = "give data.path= a .jsonl file or a folder with train.jsonl and test.jsonl, or put that folder at $CCM_DATA/gsm8k."
    return list(_hub.hub_rows("openai/gsm8k", split, instead, "main", whole=True))


def uncomp(text: str) -> tuple[str, tuple[int, ...]]:
    """Annotated text without its markers, and where they stood. A marker with nothing but space to compress is no cut.

    >>> uncomp("1 + 1 = 2 <COMP>\\n2 + 2 = 4 <COMP>\\n#### 4")
    ('1 + 1 = 2 \\n2 + 2 = 4 \\n#### 4', (10, 21))
    """
    pieces = text.split(MARKER)
    target, cuts, start = "", [], 0
    for piece in pieces[:-1]:
        target += piece
        if target[start:].strip():
            cuts.append(len(target))
            start = len(target)
    target += pieces[-1]
    return target, tuple(cut for cut in cuts if target[cut:].strip())


def example(row: Row, id: str) -> Example | None:
    """The row as an example; None where the answer of an annotator or a trace is wrong."""
    where, fields = row
    question, answer = (text.strip() for text in texts(row, "question", "answer"))
    annotated, own = (texts(row, n)[0] if fields.get(n) else fields.get(n) for n in ("reasoning_with_compression", "original_reasoning"))
    plain = annotated is None and own is None
    gold = final_number(answer, marked=plain)
    if gold is None and plain and ALONE.fullmatch(answer.strip()):
        raise ValueError(
            f"{where}: 'answer' is a number alone ({answer[-40:]!r}) and there is no solution to it; it belongs into "
            "'reasoning_with_compression' or 'original_reasoning', or into 'answer' itself, with '#### 72' at the end."
        )
    if gold is None:
        raise ValueError(f"{where}: no final number in 'answer' ({answer[-40:]!r}); end it with '#### 72'.")
    if plain:
        return Example(question, CALCULATOR.sub("", answer), id=id, meta={"answer": gold})
    target, cuts = (own or "", ()) if annotated is None else uncomp(annotated)
    right = same(final_number(target), gold)
    return Example(question, target, cuts=cuts, id=id, meta={"answer": gold}) if right else None


@once
def load(path: str, split: str) -> tuple[tuple[Example, ...], int]:
    """The examples of a split and how many rows were dropped."""
    source = Path(path).expanduser()
    file = "test" if split == "test" else "train"
    share: Mapping[str, range] = {"train": range(5, 100), "validation": range(5), "test": range(100)}
    if not path:
        rows = hub_rows(file)
    elif source.is_dir():
        found = [source / f"{file}{suffix}" for suffix in (".jsonl", ".json") if (source / f"{file}{suffix}").is_file()]
        if not found:
            have = ", ".join(sorted(p.name for p in source.iterdir())[:12])
            raise ValueError(f"data.path={path} has no {file}.jsonl or {file}.json; have: {have or 'nothing'}. Name a file instead.")
        rows = rows_of(found[0])
    elif source.is_file():
        share = CARVED
        rows = rows_of(source)
    else:
        raise ValueError(f"data.path={path} does not exist; give a .jsonl or .json file, or a folder with train.jsonl and test.jsonl.")
    made = [example(row, f"gsm8k/{file}/{i}") for i, row in enumerate(rows)]  # all of them: a broken row is an error in any split
    mine = [e for e, (_, fields) in zip(made, rows, strict=True) if part(fields["question"]) in share[split]]
    kept = tuple(e for e in mine if e is not None)
    return kept, len(mine) - len(kept)


def written(*rows: tuple[str, str]) -> Iterator[Example]:
    """Rows as examples, for the samples below."""
    for i, (question, reasoning) in enumerate(rows):
        field = "reasoning_with_compression" if MARKER in reasoning else "answer"
        found = example(
            (f"sample {i}", {"question": question, "answer": reasoning.split("####")[1], field: reasoning}), f"gsm8k/sample/{i}"
        )
        assert found is not None
        yield found


@dataclass(frozen=True)
class Gsm8k(Dataset):
    """GSM8K from `path`, else `$CCM_DATA/gsm8k`, else the hub.

    A folder has `train` and `test` as .jsonl or .json, and validation is 5 % of train. A single file is carved: 85 % train,
    5 % validation, 10 % test. A question's text decides its part, so a split is the same on every machine.
    """

    path: str = ""
    """A folder or file in the place of `$CCM_DATA`'s."""

    samples: ClassVar[tuple[Example, ...]] = tuple(
        written(
            (
                "Nia has 4 bags with 6 marbles each. She gives away 5. How many marbles are left?",
                "Nia has 4 * 6 = <<4*6=24>>24 marbles.\nAfter giving some away she has 24 - 5 = <<24-5=19>>19 marbles.\n#### 19",
            ),
            (
                "A lamp costs $1,200 and a table costs $300 more. What do both cost?",
                "The table costs 1200 + 300 = <<1200+300=1500>>1,500.\nBoth: 1200 + 1500 = $<<1200+1500=2700>>2,700.\n#### 2,700",
            ),
            (
                "Ravi reads 12 pages a day for 3 days and then 9 more. How many pages has he read?",
                "In 3 days Ravi reads 12 * 3 = 36 pages. <COMP>\n\nWith the 9 others that makes 36 + 9 = 45. <COMP>\n\n#### 45",
            ),
        )
    )

    @property
    def licence(self) -> str:
        """Of the problems; whoever annotated or solved them anew has a say as well."""
        return "MIT"

    def source(self) -> str:
        """Where the rows come from; empty for the hub."""
        home = os.environ.get("CCM_DATA", "")
        return self.path or (str(Path(home) / "gsm8k") if home and (Path(home) / "gsm8k").exists() else "")

    def examples(self, split: str) -> Sequence[Example]:
        if split not in SPLITS:
            raise ValueError(f"gsm8k has the splits {', '.join(SPLITS)}; got '{split}'.")
        return load(self.source(), split)[0]

    def dropped(self, split: str) -> int:
        """How many annotated rows and traces of `split` were left out because their final answer is wrong."""
        self.examples(split)
        return load(self.source(), split)[1]

    def score(self, example: Example, answer: str) -> dict[str, float]:
        return {"correct": float(same(final_number(answer), example.meta["answer"]))}
