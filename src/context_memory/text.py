"""Words and ids, no tensors: what a dataset yields and what a plan is laid out from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One item of a dataset.

    `context` is written to the memory segment by segment, `prompt` is read after it, `target` is what the model should
    answer. A chain of thought has no context: its segments are the steps of the target, cut by a boundary policy.
    """

    prompt: str
    target: str
    context: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()
    """Offsets in `target` (characters) after which an annotator put a boundary; empty where the policy decides."""
    learn: tuple[int, ...] = ()
    """For every context segment, the offset (characters) from which training predicts its text as well, from the segments before it;
    -1 for not at all. Empty: the target alone is learnt."""
    running: bool = False
    """Context, prompt and target are one running text: nothing is put between them, and nothing ends it."""
    options: tuple[str, ...] = ()
    """Answers to choose among, the target one of them; empty where any text may be said."""
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    turns: bool = False
    """Context, prompt and target are the turns of one conversation: user and assistant alternate, and the target is the assistant's."""
    group: str = ""
    """What it has in common with other items, such as a user, or a question that is asked after several draws of demonstrations: items of
    one group are no independent evidence (`intervals.py`)."""

    @property
    def digest(self) -> str:
        """A hash of all that an answer and its scores depend on."""
        tree = {k: v for k, v in asdict(self).items() if k != "group"}
        return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Segment:
    """A run of raw tokens that is compressed together (or, the last one, not at all).

    `loss`: the model learns to predict these tokens. `compress`: comp tokens follow and the raw tokens are forgotten.
    `pins`: which tokens stay verbatim; as long as `ids`, or empty for none.
    """

    ids: tuple[int, ...]
    loss: tuple[bool, ...] = ()
    compress: bool = True
    pins: tuple[bool, ...] = ()
    target: bool = False
    """Part of what the model answers (rather than of what it is given)."""
    question: bool = False
    """Part of what is asked (rather than of the context before it)."""

    def __post_init__(self) -> None:
        for name in ("loss", "pins"):
            flags = getattr(self, name)
            if flags and len(flags) != len(self.ids):
                raise ValueError(f"{name} has {len(flags)} flags for {len(self.ids)} tokens; give one a token, or none.")


def runs(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments in parts that each end with at most one that is compressed, as `Memory.run` takes them."""
    out: list[list[Segment]] = [[]]
    for segment in segments:
        out[-1].append(segment)
        if segment.compress:
            out.append([])
    return [part for part in out if part]
