"""The one decode loop: batched, greedy or sampled; compresses while it generates, each row at its own step.

A boundary costs no forward pass. The token that ends a segment is fed as any other; the step after it feeds
[comp tokens, slots, y] instead of [y], under a mask where y sees the memory with this segment folded in and not the segment,
and then the segment's keys and values are freed. Every row of every table runs through this loop, `full` as well.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from context_memory import memory_columns, memory_merge
from context_memory.boundaries.base import Step
from context_memory.encode import Encoder, Keeping
from context_memory.errors import InputError
from context_memory.memory import Memory
from context_memory.output import Output, Settings
from context_memory.plan import RAW, Column, boundary_columns, build
from context_memory.text import Segment

if TYPE_CHECKING:
    from context_memory.model import CompressedLM


@dataclass
class _Row:
    """A row's state between steps."""

    number: int
    out: Output
    prompt_end: int
    """Position of the first token of the answer."""
    pending: int
    """Sampled, not fed yet."""
    keeping: Keeping
    """Pins its segments."""
    held_prompt: int = 0
    """Raw tokens of the prompt that the memory still holds."""
    segment: list[int] = field(default_factory=list)
    text: str = ""
    scores: dict[Any, list[float]] = field(default_factory=dict)
    """Of the segment's tokens, for policies and rules that read hidden states."""
    closed: bool = False
    """The segment has ended with the last token that was fed."""
    waiting: list[int] = field(default_factory=list)
    """Positions after segments that have ended and are to be folded, the oldest first: at the next step, or up to `Scheme.lag` tokens
    later, in company with other rows."""
    fed: int = 0
    total: int = 0
    total_reasoning: int = 0


class Decoder:
    """Decodes a batch. Iterate over `run()` for (row, token id) as they come; `outputs` are complete afterwards."""

    def __init__(
        self, lm: CompressedLM, encoder: Encoder, prompts: Sequence[Sequence[Segment]], settings: Settings, memory: Memory | None = None
    ) -> None:
        if not prompts:
            raise InputError("no prompts to answer; give at least one.")
        if memory is not None and (memory.lm.base is not lm.base or memory.lm.scheme != lm.scheme):
            raise InputError("the memory is another model's, or was made under another scheme; write its segments again with this one.")
        self.lm, self.encoder, self.settings = lm, encoder, settings
        self.prompts = [lm.scheme.arrange(p) for p in prompts]
        self.memory, self._lent = memory if memory is not None else lm.memory(len(prompts)), memory is not None
        self.outputs = [Output(prompt_tokens=sum(len(s.ids) for s in p)) for p in prompts]
        encoder.check(lm.origin)
        self._places = lm.scheme.n_comp if lm.positions == "base" else 0
        """That comp tokens take up."""
        self._lag = max(min(lm.scheme.lag, 1), lm.scheme.lag - max(self._places, 1) + 1)
        """`Scheme.lag` in tokens that are fed: it counts positions, and with `positions=base` comp tokens take some of them up."""
        self._lanes: list[_Row | None] = []
        """The row that each row of the memory belongs to; None once its answer has ended."""
        self._random = [torch.Generator().manual_seed(settings.seed + i) for i in range(len(prompts))]
        self._warpers: list[Any] = [TemperatureLogitsWarper(settings.temperature)] if settings.temperature else []
        if settings.temperature and settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    @torch.inference_mode()
    def run(self) -> Iterator[tuple[int, int]]:
        """Yields (row, token id); the end-of-turn token is left out."""
        self._start()
        while True:
            for row in self._live():
                if self._accept(row):
                    yield row.number, row.pending
            self._retire()
            if not self._live():
                return
            self._step()

    def pieces(self) -> Generator[str, None, None]:
        """The answer to the only prompt, in pieces of text as they come; no more than `Output.text` will hold."""
        said, out = "", self.outputs[0]
        for _ in self.run():
            text = out.text
            if out.reason != "stop":
                text = self.encoder.text(out.ids)
                text = text[: len(text) - self.settings.begun(text)]
            if len(text) > len(said) and not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character waits for its other bytes
                yield text[len(said) :]
                said = text
        if len(out.text) > len(said):  # it ended with what might have become a stop string
            yield out.text[len(said) :]

    def _live(self) -> list[_Row]:
        return [row for row in self._lanes if row is not None]

    def _start(self) -> None:
        """Write what comes before the answer, segment by segment, and sample the first token of every row."""
        last: dict[int, Tensor] = {}
        for turn, hidden in self.memory.follow(self.prompts):
            last |= {n: hidden[n, raw - 1] for n, segments in enumerate(turn) if (raw := sum(len(s.ids) for s in segments))}
        first = torch.stack([last[n] for n in range(len(self.prompts))])
        keeping = [Keeping(self.encoder, prompt) for prompt in self.prompts]
        self._lanes = [_Row(n, out, self.memory.clock[n], -1, keeping[n]) for n, out in enumerate(self.outputs)]
        self._count_prompt(range(len(self.prompts)))
        self._sample(self.lm.logits(first))

    def _accept(self, row: _Row) -> bool:
        """Take the pending token into the answer; false if it ends it."""
        out = row.out
        if row.pending in self.encoder.stops:
            out.reason = "eos"
            return False
        out.ids.append(row.pending)
        if self.settings.stop:
            text = self.encoder.text(out.ids)
            found = [at for s in self.settings.stop if (at := text.find(s)) >= 0]
            if found:
                out.reason, out.text = "stop", text[: min(found)]
        return True

    def _retire(self) -> None:
        """Complete the outputs of rows that ended; drop such rows once they are half of the batch, unless the memory is the caller's."""
        for lane, row in enumerate(self._lanes):
            room = self.lm.max_positions - self.memory.clock[lane] - self._places * (row is not None and row.closed)
            if row is None or (row.out.reason == "length" and len(row.out.ids) < self.settings.max_new_tokens and room > 0):
                continue
            out = row.out
            out.text = out.text if out.reason == "stop" else self.encoder.text(out.ids)
            if row.fed:
                out.mean_kv_tokens, out.mean_reasoning_kv_tokens = row.total / row.fed, row.total_reasoning / row.fed
            else:  # an answer of one token at most, which was never fed: the prompt is all that was held
                out.peak_kv_tokens, out.peak_kv_bytes = self.memory.length[lane], self.memory.nbytes() // self.memory.rows
            if row.waiting:  # what goes on from this memory finds that text open, as it finds a segment that the last token ended
                self.memory.held.segment[lane].clamp_(max=self.memory.step[lane])
            self._lanes[lane] = None
        going = [lane for lane, row in enumerate(self._lanes) if row is not None]
        if going and 2 * len(going) <= len(self._lanes) and not self._lent:
            self.memory = self.memory.pick(going)
            self._lanes = [self._lanes[lane] for lane in going]

    def _step(self) -> None:
        """Feed every row's pending token, and the comp tokens of the rows that fold a segment; sample the next ones."""
        memory, scheme = self.memory, self.lm.scheme
        columns: list[list[Column]] = []
        clock = list(memory.clock)
        self._end([lane for lane, row in enumerate(self._lanes) if row is not None and row.closed], clock)
        folds = [lane for lane, row in enumerate(self._lanes) if row is not None and due(len(row.waiting), len(row.out.ids), self._lag)]
        due_now = set(folds)
        unfolded = memory_merge.unfolded(memory) if folds and scheme.mixes else [0] * memory.rows
        for lane, row in enumerate(self._lanes):
            if row is None:
                columns.append([])
                continue
            step, fold = memory.step[lane], list[Column]()
            if lane in due_now:
                fold = boundary_columns(scheme, step, row.waiting[0], unfolded[lane])
            columns.append([*fold, (RAW, step + len(row.waiting), True, False, clock[lane], row.pending, 0)])
            clock[lane] += 1
        hidden = memory.advance(build(columns), clock, slack=memory_columns.SLACK, slide=True)
        if scheme.slides:
            self._count_prompt(range(len(self._lanes)))
        self._count(columns)
        memory.fold(folds, exact=False)
        for lane in folds:
            if (folded := self._lanes[lane]) is not None:
                folded.waiting.pop(0)
                folded.out.compressions += 1
        self._count_prompt(folds)
        last = torch.tensor([max(len(c) - 1, 0) for c in columns], device=hidden.device)
        fresh = hidden[torch.arange(len(columns), device=hidden.device), last]
        if scheme.hides:
            self._close(fresh)
        self._sample(self.lm.logits(fresh))

    def _end(self, lanes: Sequence[int], clock: list[int]) -> None:
        """End the segment of these lanes, whose last token has been fed: it waits to be folded."""
        scheme = self.lm.scheme
        self._pin(lanes)
        for lane in lanes:
            if (row := self._lanes[lane]) is None:
                continue
            if scheme.max_steps is not None and self.memory.step[lane] >= scheme.max_steps:
                raise InputError(
                    f"scheme '{scheme.name}' compresses at most {scheme.max_steps} time(s) and the answer came to another boundary; "
                    "use boundary=turn, or a scheme that goes on."
                )
            row.waiting.append(clock[lane])
            row.segment, row.text, row.scores, row.closed = [], "", {}, False
            clock[lane] += self._places

    def _close(self, hidden: Tensor) -> None:
        """Note the tokens that were fed, and ask the policy which segments end with them; (rows, hidden) their states."""
        policy, read = self.encoder.boundary, self.encoder.read(hidden)
        for lane, row in enumerate(self._lanes):
            if row is None:
                continue
            piece = self.encoder.piece(row.pending)
            row.segment.append(row.pending)
            row.text += piece
            for reader, scores in read.items():
                row.scores.setdefault(reader, []).append(scores[lane])
            row.closed = policy.fires(Step(row.segment, row.text, piece, read[policy][lane] if policy in read else None))

    def _pin(self, lanes: Sequence[int]) -> None:
        """Mark the tokens of the segments that have ended in these lanes which the pin rules keep."""
        rows = {lane: row for lane in lanes if (row := self._lanes[lane]) is not None}
        keep = {lane: row.keeping.pin(row.segment, scores=row.scores) for lane, row in rows.items()}
        keep = {lane: kept for lane, kept in keep.items() if any(kept)}
        if not keep:
            return
        held = self.memory.held
        which = torch.tensor(list(keep), device=held.kind.device)
        step = torch.tensor([self.memory.step[lane] + len(rows[lane].waiting) for lane in keep], device=which.device)[:, None]
        own = held.raw[which] & (held.segment[which] == step)
        place = torch.where(own, held.position[which], -1).cpu()  # once for all lanes: a GPU makes each look at it wait
        marks = [
            (lane, column)
            for (lane, kept), where in zip(keep.items(), place)
            for column, yes in zip(where.argsort()[-len(kept) :].tolist(), kept, strict=True)
            if yes
        ]
        at, columns = torch.tensor(marks, device=which.device).T
        held.pin[at, columns] = True

    def _sample(self, logits: Tensor) -> None:
        """(rows, vocabulary) -> the pending token of every row that goes on."""
        if not self.settings.temperature:
            tokens = logits.argmax(-1).tolist()
        else:
            scores = logits.float()
            for warper in self._warpers:
                scores = warper(None, scores)
            chance = [0.0 if row is None else torch.rand((), generator=self._random[row.number]).item() for row in self._lanes]
            tokens = drawn(scores.softmax(-1), torch.tensor(chance, device=scores.device)).tolist()
        for row, token in zip(self._lanes, tokens):
            if row is not None:
                row.pending = token

    def _count(self, columns: Sequence[Sequence[Column]]) -> None:
        share = self.memory.nbytes() // self.memory.rows
        for lane, row in enumerate(self._lanes):
            if row is None:
                continue
            out, now = row.out, self.memory.length[lane]
            out.peak_kv_tokens = max(out.peak_kv_tokens, now)
            out.peak_reasoning_kv_tokens = max(out.peak_reasoning_kv_tokens, now - row.held_prompt)
            out.peak_kv_bytes = max(out.peak_kv_bytes, share)
            row.fed, row.total, row.total_reasoning = row.fed + 1, row.total + now, row.total_reasoning + now - row.held_prompt

    def _count_prompt(self, lanes: Sequence[int]) -> None:
        held = self.memory.held
        known = held.raw if self.lm.scheme.static else held.pin  # else every head holds others of the rest: all of it counts
        rows = {lane: row for lane in lanes if (row := self._lanes[lane]) is not None}
        if not rows:
            return
        which = torch.tensor(list(rows), device=known.device)
        ends = torch.tensor([row.prompt_end for row in rows.values()], device=known.device)[:, None]
        for row, n in zip(rows.values(), (known[which] & (held.position[which] < ends)).sum(1).tolist(), strict=True):
            row.held_prompt = n


def due(waiting: int, tokens: int, lag: int) -> bool:
    """Whether a row of so many waiting segments, whose answer has so many tokens, folds the oldest: at once; or with `Scheme.lag` at every
    so manieth token, which comes at the same step for all rows of a batch, and when another segment has ended meanwhile."""
    return waiting > 1 or (waiting == 1 and (not lag or tokens % lag == 0))


def drawn(probabilities: Tensor, chance: Tensor) -> Tensor:
    """One token a row where (rows,) `chance`, uniform in [0, 1), falls among the (rows, vocabulary) probabilities, on their device."""
    reached = probabilities.double().cumsum(-1)
    return torch.searchsorted(reached, chance.double()[:, None] * reached[:, -1:], right=True)[:, 0]


def generate(
    lm: CompressedLM, encoder: Encoder, prompts: Sequence[Sequence[Segment]], settings: Settings, memory: Memory | None = None
) -> list[Output]:
    """Answer a batch of prompts; each row compresses at its own boundaries. The memory, if given, goes on from where it is."""
    decoder = Decoder(lm, encoder, prompts, settings, memory)
    for _ in decoder.run():
        pass
    return decoder.outputs
