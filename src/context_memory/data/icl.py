"""In-context learning: the segments are demonstrations, the answer is one of a task's labels.

In the manner of MetaICL (Min et al., NAACL 2022, arXiv:2110.15943) as in Kim et al., ICLR 2024, section 4: trained on many tasks and
tested on others. Reads a folder with `train/` and `test/` of one .jsonl a task (rows {task, split, input, output, options};
`tasks.json` may say which are `permissive`), or MetaICL's own (`<task>/<task>_16_100_train.jsonl`, rows without a split; `data.config=`
its list of train and test tasks). Training draws a task, k demonstrations and a query, and learns every demonstration's label from
those before it. Testing asks the same queries after the same demonstrations of a seed, equally many a task, so that the mean over
items is the macro mean; one of each task in turn, so that the first few are of all tasks. Demonstrations are drawn; those of MetaICL are
published, a file a seed: the first k rows of the first file by name (seed 100, its default; then 13, 21, 42, 87), and so on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from context_memory.data._files import must
from context_memory.data._licences import UNKNOWN, joined
from context_memory.data._rouge import among, said
from context_memory.data._tasks import Item, Pools, Task, must_have, pools, terms
from context_memory.data.base import Dataset
from context_memory.text import Example

SPLITS = ("train", "validation", "test")


def example(demos: Sequence[Item], query: Item, id: str, task: str = "", group: str = "") -> Example:
    """A demonstration is its input, a line end, its output; the question and its answer are the same in two parts."""
    context = tuple(f"{i}\n{o}\n" for i, o, _ in demos)
    learn = tuple(len(i) + 1 for i, _, _ in demos)
    return Example(query[0], query[1], context, learn=learn, options=query[2], id=id, meta={"task": task}, group=group)


@dataclass(frozen=True)
class Icl(Dataset):
    """Tasks of `path`, else of `$CCM_DATA/icl`."""

    path: str = ""
    """A folder or file in the place of `$CCM_DATA`'s."""
    config: str = ""
    """MetaICL's list of tasks, a .json file {"train": [...], "test": [...]}."""
    k: int = 16
    """Demonstrations."""
    seeds: int = 1
    """Draws of demonstrations to test with; of MetaICL's own, as many as there are files (five)."""
    queries: int = 50
    """Of each task to test on, for each draw."""
    train: int = 20000
    """Examples to train on, drawn with `seed`."""
    seed: int = 0
    """Of all draws."""
    held_out: int = 0
    """So many of the tasks to train on, drawn with `seed`, are the validation part and not trained on: whether what is learnt carries over
    to other tasks. 0: validation is other items of the same tasks."""
    permissive: bool = True
    """Train on tasks whose licence allows redistribution and commercial use alone, where `tasks.json` says which."""

    samples: ClassVar[tuple[Example, ...]] = tuple(
        example([("I loved it.", "good", ("good", "bad")), ("Dull.", "bad", ("good", "bad"))], (text, label, ("good", "bad")), str(i))
        for i, (text, label) in enumerate([("A delight.", "good"), ("A waste of time.", "bad"), ("Never again.", "bad")])
    )

    def __post_init__(self) -> None:
        for name, least in (("k", 0), ("seeds", 1), ("queries", 1), ("train", 1), ("held_out", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def licence(self) -> str:
        """Those of the tasks that are trained on, of which each has its own; without `tasks.json` nothing is known."""
        try:
            noted = terms(self.path)
            learnt = self._free(pools(self.path, self.config)[0])
        except ValueError:
            return UNKNOWN
        return joined(*sorted(noted[task].licence if task in noted else UNKNOWN for task in learnt)) if noted and learnt else UNKNOWN

    def examples(self, split: str) -> Sequence[Example]:
        must(split, SPLITS, "icl")
        learnt, unseen = pools(self.path, self.config)
        kept, aside = self._apart(self._free(learnt))
        return self._drawn(kept) if split == "train" else self._asked(unseen if split == "test" else aside, split)

    def _free(self, tasks: Pools) -> Pools:
        """With `permissive`, the tasks that are known to be so; all where nothing says it."""
        noted = terms(self.path) if self.permissive else None
        return tasks if noted is None else {t: p for t, p in tasks.items() if t in noted and noted[t].permissive}

    def _apart(self, tasks: Pools) -> tuple[Pools, Pools]:
        """The tasks to train on, and those to validate with."""
        if not self.held_out:
            return tasks, tasks
        if self.held_out >= len(tasks):
            raise ValueError(f"held_out={self.held_out} of {len(tasks)} task(s) leaves none to train on; hold out fewer.")
        aside = random.Random(f"{self.seed} held out").sample(sorted(tasks), self.held_out)
        return {t: p for t, p in tasks.items() if t not in aside}, {t: tasks[t] for t in sorted(aside)}

    def _drawn(self, tasks: Pools) -> list[Example]:
        must_have(tasks, shown=1 + min(self.k, 1), asked=0)
        out: list[Example] = []
        for i in range(self.train):
            draw = random.Random(f"{self.seed} train {i}")
            task = draw.choice(sorted(tasks))
            *demos, query = draw.sample(tasks[task].shown, min(self.k + 1, len(tasks[task].shown)))
            out.append(example(demos, query, f"icl/train/{i}", task))
        return out

    def _asked(self, tasks: Pools, split: str) -> list[Example]:
        must_have(tasks, shown=min(self.k, 1), asked=1)
        least = min(min(len(rows.asked) for rows in tasks.values()), self.queries)
        out: list[Example] = []
        for seed in range(self.seeds):
            told = {task: self._told(task, tasks[task], split, seed) for task in sorted(tasks)}
            out += [example(told[t], tasks[t].asked[i], f"icl/{t}/{seed}/{i}", t, f"{t}/{i}") for i in range(least) for t in told]
        return out

    def _told(self, task: str, rows: Task, split: str, seed: int) -> Sequence[Item]:
        """The demonstrations of a seed."""
        if not rows.draws:
            return random.Random(f"{self.seed + seed} {split} {task}").sample(rows.shown, min(self.k, len(rows.shown)))
        if seed >= len(rows.draws):
            have = f"has demonstrations of {len(rows.draws)} seed(s), one a file"
            raise ValueError(f"task '{task}' {have}, and seeds is {self.seeds}; lower it, or put the other seeds' files there.")
        return rows.draws[seed][: self.k]

    def classes(self, example: Example, answer: str) -> tuple[str, str, str]:
        return example.meta["task"], said(example.target), among(example.options, answer)

    def score(self, example: Example, answer: str) -> dict[str, float]:
        correct = float(said(answer) == said(example.target))
        return {"correct": correct, **({f"task {example.meta['task']}": correct} if example.meta["task"] else {})}
