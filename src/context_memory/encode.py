"""From words to segments of ids: the one place that knows chat roles, BOS and where a text is cut.

What is said at once (a context segment, a question, an answer) is tokenised once and cut by token index, and what is said later
never changes it: so training, `Memory.write`, chat and generation see the same ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from context_memory.boundaries.base import Boundary
from context_memory.errors import InputError
from context_memory.pins.base import Piece, Pin, flags
from context_memory.text import Example, Segment

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS = ("keep", "compress")
Scores = Mapping[Any, Sequence[float]]
"""What each policy or rule that needs hidden states made of them, token by token."""
NONE: Scores = {}
_USER, _ASSISTANT, _AGAIN = "\u2042user\u2042", "\u2042assistant\u2042", "\u2042again\u2042"


@dataclass(frozen=True)
class Roles:
    """The fixed strings around what people say, read off the tokenizer's chat template."""

    head: str
    """Before the first user turn: BOS, a default system prompt, the user's role."""
    answer: str
    """Between what the user says and what the assistant answers."""
    end: str
    """After the last answer: the end-of-turn token and what the template puts around it."""
    again: str
    """Between an answer and the next user turn (begins as `end` does)."""

    @classmethod
    def of(cls, tokenizer: Any) -> Roles:
        """Read the template once, with sentinels for the contents. Without one: BOS, text, newline, text, EOS."""
        if not getattr(tokenizer, "chat_template", None):
            bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
            return cls(bos, "\n", eos, "\n\n")
        turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}, {"role": "user", "content": _AGAIN}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        short = tokenizer.apply_chat_template(turns[:2], tokenize=False)
        asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        head, answer = asked.split(_USER)
        return cls(head, answer, short.split(_ASSISTANT)[1], whole.split(_ASSISTANT)[1].split(_AGAIN)[0])


class Encoder:
    """Cuts examples into segments.

    Args:
        boundary: where the steps of a target end. An example that brings its own `cuts` is cut there instead.
        pins: which tokens stay verbatim.
        chat: put the text into the tokenizer's chat roles (where it has a template).
        prompt: `keep`, the question is read and stays in the segment of the first step (pin it to keep it longer), or
            `compress`, it is cut by the boundary policy and compressed like everything else.
    """

    def __init__(self, tokenizer: Any, boundary: Boundary, pins: Sequence[Pin] = (), chat: bool = True, prompt: str = "keep") -> None:
        if prompt not in PROMPTS:
            raise InputError(f"prompt must be one of {', '.join(PROMPTS)}, got {prompt!r}; to keep the question for good add pins=prompt.")
        self.tokenizer, self.boundary = tokenizer, boundary.settle(tokenizer)
        self.pins = tuple(pin.settle(tokenizer) for pin in pins)
        if self.boundary.mark and any(pin.needs_hidden for pin in self.pins):
            raise InputError("pins that are learnt go with a boundary that writes no mark of its own; use boundary=classifier.")
        self.chat, self.question = chat, prompt
        self._pieces: dict[int, str] = {}

    @cached_property
    def roles(self) -> Roles:
        """The strings around the turns; for `chat=False`, BOS and EOS alone."""
        if self.chat:
            return Roles.of(self.tokenizer)
        return Roles(self.tokenizer.bos_token or "", "\n", self.tokenizer.eos_token or "", "\n\n")

    @cached_property
    def closing(self) -> int | None:
        """The end-of-turn token: the first one of `roles.end` that is no text, or else no blank, or else EOS."""
        ids = self.ids(self.roles.end)
        known = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder} if ids else set()
        found = [i for i in ids if i in known] or [i for i in ids if self.tokenizer.decode([i]).strip()]
        return found[0] if found else self.tokenizer.eos_token_id

    @cached_property
    def stops(self) -> frozenset[int]:
        """Ids that end an answer: EOS and the end-of-turn token."""
        return frozenset(i for i in (self.tokenizer.eos_token_id, self.closing) if i is not None)

    @cached_property
    def readers(self) -> tuple[Boundary | Pin, ...]:
        """The policy and the rules that need hidden states."""
        every: list[Boundary | Pin] = [self.boundary, *self.pins]
        return tuple(x for x in every if x.needs_hidden)

    def read(self, hidden: Tensor) -> dict[Any, list[float]]:
        """The scores of (n, hidden) last hidden states."""
        return {x: x.read(hidden) for x in self.readers}

    def check(self, origin: Mapping[str, str]) -> None:
        """Raises UserError if something learnt belongs to other weights than hidden states come from (`CompressedLM.origin`)."""
        for x in self.readers:
            x.check(origin)

    @cached_property
    def mark(self) -> tuple[int, ...]:
        """The token that the model writes at the end of a segment, for policies that have one."""
        return (self.tokenizer.convert_tokens_to_ids(self.boundary.mark),) if self.boundary.mark else ()

    def ids(self, text: str) -> list[int]:
        """Token ids, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # no word about long texts

    def piece(self, token: int) -> str:
        """The text of one token within a text: a decoder of sentencepiece drops the blank at the beginning of one."""
        if token not in self._pieces:
            before = self.ids("a")[-1:]
            self._pieces[token] = self.tokenizer.decode([*before, token])[len(self.tokenizer.decode(before)) :]
        return self._pieces[token]

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer; end-of-turn, the policy's own mark and other special tokens are left out."""
        return str(self.tokenizer.decode([i for i in ids if i not in self.mark], skip_special_tokens=True))

    def context(self, text: str, first: bool) -> Segment:
        """A context segment; the head of the roles stands before the first one."""
        return self._segment(self.ids(self._before(first, running=False) + text + "\n"), first)

    def _before(self, first: bool, running: bool) -> str:
        """What stands before the first thing that is said: of a running text, BOS alone."""
        return ((self.tokenizer.bos_token or "") if running else self.roles.head) if first else ""

    @cached_property
    def lines(self) -> bool:
        """Whether a conversation is a line a turn, because there are no chat roles to put it into."""
        return not (self.chat and getattr(self.tokenizer, "chat_template", None))

    def turns(self, texts: Sequence[str], answered: bool = False, first: bool = True) -> list[Segment]:
        """What has been said in a conversation, a segment a turn, to be compressed; `asked` goes on from there.

        Side by side the segments are what the chat template makes of the conversation. Without roles, a turn is a line.

        Args:
            answered: the first of these turns is the assistant's; from there on they alternate.
            first: nothing was said before.
        """
        out: list[Segment] = []
        for i, text in enumerate(texts):
            start = first and i == 0
            before, after = self._roles_around((i % 2 == 0) == answered, start)
            out.append(self._segment(self.ids(before + text + after), start))
        return out

    def _roles_around(self, mine: bool, first: bool) -> tuple[str, str]:
        """What stands before and behind a turn of a conversation, the assistant's or the user's."""
        head = self._before(first, running=False)
        if self.lines:
            return head, "\n"
        return head + self.roles.answer * (first and mine), self.roles.again if mine else self.roles.answer

    def _around(self, example: Example, i: int) -> tuple[str, str]:
        """What stands before and behind context segment i."""
        if example.turns:
            return self._roles_around((len(example.context) - i) % 2 == 1, i == 0)
        return self._before(i == 0, example.running), "\n" * (not example.running)

    def asked(self, text: str, first: bool, running: bool = False) -> list[Segment]:
        """A question and the assistant's role, after whatever the memory holds."""
        head = self._before(first, running)
        return self._question(self.ids(head + text + self.roles.answer * (not running)), len(self.ids(head)), first)

    def prompt(self, example: Example) -> list[Segment]:
        """The segments before the answer: context, then question, which is not compressed unless `prompt=compress`."""
        out: list[Segment] = []
        for i, text in enumerate(example.context):
            if not text:
                raise InputError(f"context segment {i} of example '{example.id}' is empty; leave it out or write some text.")
            before, after = self._around(example, i)
            segment = self._segment(self.ids(before + text + after), first=i == 0)
            learn = example.learn[i] if example.learn else -1
            out.append(segment if learn < 0 else replace(segment, loss=self._learnt(before, text + after, learn)))
        return [*out, *self.asked(example.prompt, not out, example.running)]

    def _learnt(self, before: str, text: str, start: int) -> tuple[bool, ...]:
        """Which tokens of a context segment are learnt: those that hold a character of it from `start` on, `before` not counted."""
        encoded = self.tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
        return tuple(end > len(before) + start for _, end in encoded["offset_mapping"])

    def segments(self, example: Example, scores: Scores = NONE) -> list[Segment]:
        """The whole example; the answer, up to its end-of-turn token, is what is learnt.

        Args:
            scores: of every token of the answer, for policies and rules that need hidden states.
        """
        answer, end, starts = self._answer(example)
        edges = self._edges(example, answer, starts, scores)
        out = self.prompt(example)
        keeping = Keeping(self, out)
        for a, b in itertools.pairwise([0, *edges]):
            step = (*answer[a:b], *self.mark)
            kept = keeping.pin(step, scores={x: s[a:b] for x, s in scores.items()})
            out.append(Segment(step, loss=(True,) * len(step), pins=kept, target=True))
        tail = (*answer[edges[-1] if edges else 0 :], *end)
        return [*out, Segment(tail, loss=(True,) * len(tail), compress=False, target=True)]

    def uncut(self, example: Example) -> list[Segment]:
        """The whole example with no boundary in the answer."""
        answer, end, _ = self._answer(example)
        tail = (*answer, *end)
        return [*self.prompt(example), Segment(tail, loss=(True,) * len(tail), compress=False, target=True)]

    def cuts(self, example: Example) -> tuple[int, ...]:
        """Where the boundary policy ends a segment of the target that has text behind it: offsets in characters, as `Example.cuts`."""
        return self.offsets(example, self.edges(replace(example, cuts=())))

    def edges(self, example: Example) -> list[int]:
        """How many tokens of the answer stand before every boundary: the example's own, or the policy's."""
        answer, _, starts = self._answer(example)
        return self._edges(example, answer, starts, NONE)

    def offsets(self, example: Example, edges: Sequence[int]) -> tuple[int, ...]:
        """`edges` that have text behind them, as offsets in characters."""
        answer, _, starts = self._answer(example)
        return tuple(starts[edge] for edge in edges if edge < len(answer))

    def _edges(self, example: Example, answer: tuple[int, ...], starts: Sequence[int], scores: Scores) -> list[int]:
        if example.cuts:
            edges = (next((i for i, s in enumerate(starts) if s >= cut), len(answer)) for cut in example.cuts)
            return list(dict.fromkeys(edges))  # two within one token are one
        policy = self.boundary.offline if self.mark else self.boundary
        return policy.edges(answer, self.piece, scores.get(policy, ()))

    def answer(self, example: Example) -> tuple[int, ...]:
        """Token ids of the target alone."""
        return self._answer(example)[0]

    def _answer(self, example: Example) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
        """Ids of the target, the token that ends the turn, and the offset (characters) at which each token of the target begins."""
        end = self.roles.end * (not example.running)
        encoded = self.tokenizer(example.target + end, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        stop = next((i for i, s in enumerate(starts) if s >= len(example.target)), len(ids))
        return tuple(ids[:stop]), (self.closing,) if end and self.closing is not None else (), starts[:stop]

    def pin(
        self,
        ids: Sequence[int],
        first: bool = False,
        prompt: bool = False,
        scores: Scores = NONE,
        held: frozenset[str] = frozenset(),
    ) -> tuple[bool, ...]:
        """Which tokens of a closed segment stay; `scores` are of its tokens, `held` the numbers that stand verbatim before it."""
        return flags(self.pins, Piece(ids, [self.piece(i) for i in ids], first, prompt, held), scores)

    def _question(self, ids: Sequence[int], head: int, first: bool) -> list[Segment]:
        """One segment that stays open; or, to be compressed, one for every part, the roles with the first and the last."""
        if self.question == "keep":
            return [self._segment(ids, first, prompt=True, compress=False)]
        end = len(ids) - len(self.ids(self.roles.answer))
        parts = self.boundary.offline.split(ids[head:end], self.piece) or [()]
        parts[0] = (*ids[:head], *parts[0])
        parts[-1] = (*parts[-1], *ids[end:])
        return [self._segment(part, first and i == 0, prompt=True) for i, part in enumerate(parts)]

    def _segment(self, ids: Sequence[int], first: bool = False, prompt: bool = False, compress: bool = True) -> Segment:
        return Segment(tuple(ids), pins=self.pin(ids, first, prompt), compress=compress, question=prompt)


class Keeping:
    """Pins the segments of one answer one after the other: a rule may leave out what stands verbatim already (`Piece.held`).

    Args:
        before: what the answer follows. Of the question the numbers that stay are known; of what was said before it none are, since a
            memory that is handed over does not know its words.
    """

    def __init__(self, encoder: Encoder, before: Sequence[Segment] = ()) -> None:
        self._encoder, self._held = encoder, frozenset[str]()
        for segment in before:
            if segment.question:
                self._hold(segment.ids, segment.pins)

    def pin(self, ids: Sequence[int], first: bool = False, scores: Scores = NONE) -> tuple[bool, ...]:
        """Which tokens of the next closed segment stay."""
        kept = self._encoder.pin(ids, first, scores=scores, held=self._held)
        self._hold(ids, kept)
        return kept

    def _hold(self, ids: Sequence[int], kept: Sequence[bool]) -> None:
        found = Piece(ids, [self._encoder.piece(i) for i in ids]).figures() if any(kept) else []
        self._held |= {value for value, tokens in found if all(kept[i] for i in tokens)}
