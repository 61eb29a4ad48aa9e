"""One pass and step by step against the slow recursion of `reference.py`, for every scheme and family."""

from __future__ import annotations

import pytest
import torch

import reference
from context_memory.plan import layout
from context_memory.schemes.concat import Concat
from context_memory.schemes.merge import Merge
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Segment

torch.set_num_threads(1)
EXACT = 1e-10
TEXT = [
    Segment((5, 9, 3), pins=(True, False, False)), Segment((7,)), Segment((1, 2, 8, 4), pins=(False, False, True, False)),
    Segment((6, 6, 2), compress=False, target=True), Segment((3, 1), target=True, pins=(False, True)),
    Segment((4, 4, 8, 20, 21, 22, 23, 24, 25), compress=False, target=True),
]  # fmt: skip


def text(scheme) -> list[Segment]:  # type: ignore[no-untyped-def]
    return TEXT if scheme.max_steps is None else [*TEXT[:1], TEXT[3], TEXT[5]]


@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_recursion_by_hand(family: str, scheme, positions: str) -> None:  # type: ignore[no-untyped-def]
    """The logits of every raw token are those of the recursion, in one pass and step by step."""
    if scheme.name not in reference.WRITTEN:
        pytest.skip(f"the recursion of {scheme.name} is not written in reference.py")
    lm, segments = tiny_lm(family, scheme, positions=positions), text(scheme)
    wanted = reference.logits(lm, segments)
    plan, memory = layout(segments, scheme, positions), lm.memory()
    with torch.no_grad():
        whole = lm(plan)[plan.tokens.raw]
        steps = torch.cat([lm.logits(memory.run([[s]])[0, : len(s.ids)]) for s in segments])
    assert (whole - wanted).abs().max() < EXACT
    assert (steps - wanted).abs().max() < EXACT


@pytest.mark.parametrize("slip", ["average", "decay", "recurrent", "positions"])
def test_control_another_rule_is_seen(slip: str) -> None:
    """The recursion of a scheme that differs in one rule gives other logits."""
    lm = tiny_lm("llama", Merge(n_comp=1))
    wanted = reference.logits(lm, TEXT)
    faster = {"average": "exponential", "decay": 0.9}
    other = {"average": {"average": "exponential"}, "decay": faster, "recurrent": {"recurrent": False}}
    lm.scheme = Merge(n_comp=1, **other.get(slip, {}))  # type: ignore[arg-type]
    plan = layout(TEXT, lm.scheme, "base" if slip == "positions" else "skip")
    with torch.no_grad():
        assert (lm(plan)[plan.tokens.raw] - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("other", [{"window": 4}, {"window": 6}, {"window": 5, "cache": 9}, {"window": 5, "lag": 2}])
def test_control_another_window_is_seen(other: dict[str, int]) -> None:
    """One token more or less of what stays in view gives other logits."""
    lm = tiny_lm("llama", Concat(n_comp=1, window=5))
    wanted = reference.logits(lm, TEXT)
    lm.scheme = Concat(n_comp=1, **other)
    with torch.no_grad():
        plan = layout(TEXT, lm.scheme, "skip")
        assert (lm(plan)[plan.tokens.raw] - wanted).abs().max() > 1e-3
