"""Intervals and tests by hand; items of one group count as what they are worth together."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from context_memory.f1 import macro_f1
from context_memory.intervals import Estimate, mcnemar, mean, paired_difference, ratio, share, sign_test, wilson, worth
from context_memory.metrics import Prediction, summarise, versus


def test_wilson_by_hand() -> None:
    e = wilson(8, 10)  # (0.8 + 0.19207) / 1.38415 -+ 1.95996 / 1.38415 * sqrt(0.016 + 0.0096036)
    assert (e.mean, e.n) == (0.8, 10)
    assert (e.low, e.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 20).low == pytest.approx(0, abs=1e-12) and wilson(20, 20).high == pytest.approx(1)
    with pytest.raises(ValueError, match="no items"):
        wilson(0, 0)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def test_paired_difference_by_hand() -> None:
    e = paired_difference([1] + [-1] * 5 + [0] * 94)  # (1.5 - 5.5) / 102 -+ 1.95996 * sqrt(7 - 16 / 102) / 102
    assert e.mean == pytest.approx(-0.04)
    assert (e.low, e.high) == pytest.approx((-0.039216 - 0.050266, -0.039216 + 0.050266), abs=1e-5)
    never = paired_difference([0] * 50)
    assert never.mean == 0 and never.low < 0 < never.high  # no difference seen is not certainty


def test_a_ratio_by_hand() -> None:
    e = ratio([1, 3, 8], [1, 2, 3])  # 2; errors -1, -1, 2, whose mean has a standard error of 1; 2 is the mean of what is below
    assert (e.mean, e.n) == (2, 3)
    assert (e.low, e.high) == pytest.approx((2 - 1.959964 / 2, 2 + 1.959964 / 2))


Interval = Callable[[Sequence[float], Sequence[str]], Estimate]


@pytest.mark.parametrize("interval", [
    mean, share, paired_difference,
    lambda values, groups: ratio(values, [1 + v for v in values], groups),
    lambda values, groups: macro_f1([("", "a", "a" if v > 0 else "b") for v in values], groups),
])  # fmt: skip
def test_the_same_item_twice_says_no_more_than_once(interval: Interval) -> None:
    draw = random.Random(0)
    values = [float(draw.random() < 0.3) for _ in range(200)]
    names = [str(i) for i in range(200)]
    once, alone, twice, apart = (interval(v, g) for v, g in ((values, []), (values, names), (values * 2, names * 2), (values * 2, [])))
    assert (alone.low, alone.high) == (once.low, once.high)
    assert (twice.mean, twice.n) == (pytest.approx(once.mean), 400)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=2e-3)
    assert apart.high - apart.low < 0.75 * (once.high - once.low)  # control: as 400 items


def test_items_of_a_group_that_have_nothing_in_common_are_worth_what_they_are() -> None:
    draw = random.Random(1)
    values = [float(draw.random() < 0.5) for _ in range(2000)]
    assert 1700 < worth(values, [str(i % 500) for i in range(2000)]) <= 2000
    assert worth([1.0] * 30, [str(i % 3) for i in range(30)]) == 3  # all alike: no more than the groups
    assert share([1.0] * 30, [str(i % 3) for i in range(30)]).low == wilson(3, 3).low
    assert worth([1.0, 0.0], ["a", "a"]) == 1  # one group alone says nothing of how groups differ


def test_the_sign_test_counts_groups() -> None:
    won = [1.0] * 10
    assert sign_test(won) == mcnemar(10, 0) < sign_test(won, "aabbccddee") == mcnemar(5, 0)
    assert sign_test([1, -1], "aa") == 1


def test_rows_count_the_items_of_a_user_together() -> None:
    """In every interval of a table, and in the paired test; without groups nothing changes."""

    def rows(group: Callable[[int], str], right: Callable[[int], bool]) -> list[Prediction]:
        base = Prediction("", "p", "t", answer="a", reason="chosen", nll_tokens=2)
        return [
            replace(
                base, id=str(i), prompt=str(i), group=group(i), scores={"correct": float(right(i)), "mae": i % 7 / 3}, nll=2.0 + right(i)
            )
            for i in range(80)
        ]

    def by_four(i: int) -> str:
        return str(i // 4)

    found = {}
    for name, group in (("alone", lambda i: ""), ("each", str), ("users", by_four)):
        row, full, nothing = (rows(group, r) for r in (lambda i: i % 16 < 8, lambda i: i % 32 < 24, lambda i: i % 80 < 4))
        found[name] = (summarise(row), versus(row, full, nothing))
    assert found["alone"] == found["each"]
    (alone, beside), (users, together) = found["alone"], found["users"]
    assert users.scores["correct"].mean == alone.scores["correct"].mean and users.n == alone.n
    for wide, narrow in (
        (users.scores["correct"], alone.scores["correct"]), (users.nll, alone.nll), (together.difference, beside.difference),
        (together.nll_difference, beside.nll_difference), (together.accuracy_gap_closed, beside.accuracy_gap_closed),
    ):  # fmt: skip
        assert wide is not None and narrow is not None and wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert together.p is not None and beside.p is not None and together.p > beside.p
