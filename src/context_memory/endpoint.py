"""`<COMP>` written into solutions by an OpenAI-compatible endpoint: what it will cost is said before, and no reply is paid for twice.

Each row goes to the disk as it comes: `<out>.partial.jsonl` begins with a line that says how the rows were asked for, and the same
command goes on with what is missing, after a kill too. At the end the rows are written in the order of the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from context_memory import reply
from context_memory.annotate import Row, readable, row, write
from context_memory.begun import Partial
from context_memory.client import Client, NoReply, Settings
from context_memory.console import bar
from context_memory.data.gsm8k import MARKER
from context_memory.errors import UserError
from context_memory.text import Example

COPIES = 3
"""Replies that are asked for until one can be used."""
DOWN = 4
"""Questions in succession without a reply, after which the endpoint counts as down."""
LEFT_OUT = "left_out"
Key = tuple[str, str]


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked, if every first reply can be used."""

    requests: int
    tokens_in: int
    tokens_out: int

    def price(self, per_million_in: float, per_million_out: float) -> float:
        return (self.tokens_in * per_million_in + self.tokens_out * per_million_out) / 1e6


class Job:
    """All of it: `estimate`, then `run`, then `finish`.

    Raises:
        UserError: the output is there already, or its partial file was asked for in another way.
    """

    def __init__(self, examples: Sequence[Example], settings: Settings, out: Path, rewrite: bool = False) -> None:
        if out.exists():
            raise UserError(f"--out={out} is there already; name another file, or delete it to ask again.")
        self.settings, self.out, self.rewrite = settings, out, rewrite
        self.examples = {(e.prompt, e.target): e for e in examples if readable(e)}
        self.left = Counter({"could not be read back": sum(not readable(e) for e in examples)})
        head = {"endpoint": settings.url, "model": settings.model, "prompt": reply.REWRITE if rewrite else reply.COPY}
        self.partial = Partial(out, head)

    @property
    def known(self) -> dict[Key, Row]:
        """A row by question and solution (a problem may have several), or why its example was left out."""
        return {(line["question"], line["original_reasoning"]): line for line in self.partial.lines}

    @property
    def missing(self) -> list[Example]:
        known = self.known
        return [e for k, e in self.examples.items() if k not in known]

    def estimate(self, ids: Callable[[str], Sequence[int]]) -> Estimate:
        """In the tokens of a tokenizer that is at hand. A solution of the model's own is taken to be as long as the one that is known."""
        todo, marker = self.missing, len(ids(f" {MARKER}"))
        into = sum(len(ids(reply.question(e, self.rewrite))) for e in todo)
        return Estimate(len(todo), into, sum(len(ids(e.target)) + marker * len(e.target.splitlines()) for e in todo))

    def run(self) -> None:
        """Ask for what is missing.

        Raises:
            UserError: the endpoint is down or refuses; what came is kept.
        """
        todo, total, silent = self.missing, len(self.examples), 0
        with Client(self.settings) as client, bar() as progress, ThreadPoolExecutor(self.settings.workers) as pool:
            task = progress.add_task("annotate", total=total, completed=total - len(todo), speed="")
            futures = [pool.submit(self._one, client, e) for e in todo]
            try:
                for future in as_completed(futures):
                    fault = future.result()
                    if client.stopped.is_set():
                        continue  # on to the question whose error stopped all others
                    silent = silent + 1 if fault else 0
                    self.left.update([fault.reason] if fault else [])
                    if fault and silent >= min(DOWN, len(todo)):
                        raise UserError(f"{self.settings.url} gave no reply to {silent} questions in succession; the last time: {fault}.")
                    progress.advance(task)
            except BaseException as e:
                client.stopped.set()
                pool.shutdown(cancel_futures=True)  # waits for the replies that are under way, and keeps them
                if isinstance(e, UserError):
                    kept = f"{len(self.known)} of {total} solutions are kept in '{self.partial.path}'"
                    raise UserError(f"{e} {kept}; the same command goes on.") from e
                raise

    def finish(self) -> list[Row]:
        """Write the rows in the order of the data; `left` counts the others by reason.

        Raises:
            UserError: there is no row.
        """
        known = self.known
        found = [known[k] for k in self.examples if k in known]
        self.left.update(line[LEFT_OUT] for line in found if LEFT_OUT in line)
        rows = [line for line in found if LEFT_OUT not in line]
        if not rows:
            raise UserError(
                f"no solution could be used ({self.reasons() or 'there was none'}); take another --model or other data, "
                f"and delete '{self.partial.path}' if it is to be asked again."
            )
        write(rows, self.out)
        self.partial.done()
        return rows

    def reasons(self) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in sorted(self.left.items(), key=lambda x: (-x[1], x[0])) if n)

    def _one(self, client: Client, example: Example) -> NoReply | None:
        """Ask until a reply can be used. What gets no reply leaves no line, so that it is asked again by the same command."""
        checked = reply.Checked()
        for _ in range(COPIES):
            try:
                said = client.ask(reply.question(example, self.rewrite, checked.fault))
            except NoReply as e:
                return e
            checked = reply.check(said, example, self.rewrite)
            if checked.marked:
                self.partial.add(row(example, checked.marked))
                return None
        self.partial.add({"question": example.prompt, "original_reasoning": example.target, LEFT_OUT: checked.fault})
        return None
