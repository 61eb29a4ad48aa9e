"""Every dress that an answer comes in, as a table; and what must not be taken for one."""

from __future__ import annotations

import pytest

from context_memory.data._answers import final_number, numbers, same

DRESSES = [
    ("#### 72", 72),
    ("####72", 72),
    ("#### 1,234", 1234),
    ("#### 12,345,678.50", 12345678.5),
    ("#### $72.00", 72),
    ("#### $1,234", 1234),
    ("#### -5", -5),
    ("#### -$5", -5),
    ("#### $-5", -5),
    ("#### 0.5", 0.5),
    ("#### .5", 0.5),
    ("#### 72 clips", 72),
    ("#### 72.", 72),
    ("#### **72**", 72),
    ("#### 50%", 50),
    ("#### €9", 9),
    ("####\n72", 72),
    ("#### \\boxed{72}", 72),
    ("#### \\$72", 72),
    ("#### The answer is 72", 72),
    ("#### 12 + 7 = 19", 19),
    ("48 / 2 = 24\nFinal answer: #### 72", 72),
    ("#### 5\nNo, wait.\n#### 6", 6),
    ("#### 72\nThat was 3 steps.", 72),
    ("#### Step 1: add 3\nSo we get 7.\n#### 10", 10),
    ("It is \\boxed{72}.", 72),
    ("It is $\\boxed{1{,}234}$.", 1234),
    ("It is \\boxed{72\\text{ clips}}", 72),
    ("It is \\boxed{ -3 }", -3),
    ("So \\boxed{x = 4}", 4),
    ("The answer is 72.", 72),
    ("The answer is: $1,234 for 3 days.", 1234),
    ("Answer: 72", 72),
    ("The final answer is **72** clips.", 72),
    ("She sold 48 + 24 = 72 clips altogether.", 72),
    ("72", 72),
    ("$72.00", 72),
    ("72 clips", 72),
    ("So the total is $\\boxed{7}$. Check: 7 + 3 = 10.", 7),
    ("The answer is 7. Check: 7 + 3 = 10.", 7),
    ("First \\boxed{3} is the cost and the final \\boxed{4} is the profit.", 4),
    ("So the answer is 12 for one. For both, the answer is 24.", 24),
    ("#### 1. Cost\nIt is 3.\n#### 2. Conclusion\nThe total is \\boxed{42}.", 42),
    ("#### 72. Done", 72),
    ("\\boxed{1,\\!200}", 1200),
    ("\\boxed{1\\,200}", 1200),
    ("#### 1 200", 1200),
    ("#### 12 34", 12),
    ("\\boxed{\\frac{1}{2}}", 0.5),
    ("The answer is \\frac{3}{4}.", 0.75),
    ("The answer is 3/4.", 0.75),
    ("#### 1 1/2", 1.5),
    ("#### -1/2", -0.5),
    ("#### 48/2 = 24", 24),
    ("#### \N{MINUS SIGN}5", -5),
]

NONE = [
    "",
    "I do not know.",
    "####",
    "#### ",
    "#### Step",
    "#### unknown",
    "She sold 48 + 24 = 72 clips altog",
    "She sold 48 + 24 = 72",
    "First 12 + 7 = 19 apples.\nThen 19 + 5 =",
    "12 + 7 = 19 apples.\n#### ",
    "The answer is",
    "It is 3, so the total is \\boxed{1",
]


@pytest.mark.parametrize(("answer", "number"), DRESSES)
def test_final_number(answer: str, number: float) -> None:
    assert final_number(answer) == number
    assert not same(final_number(answer), number + 1)


@pytest.mark.parametrize("answer", NONE)
def test_no_answer_is_none_and_equals_nothing(answer: str) -> None:
    assert final_number(answer) is None
    assert not same(final_number(answer), 0)
    assert not same(None, None)


def test_marked_takes_hashes_only() -> None:
    assert final_number("#### 72", marked=True) == 72
    assert final_number("The answer is \\boxed{72}.", marked=True) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20-5 = 15", [20, 5, 15]),
        ("20 - 5 = 15", [20, 5, 15]),
        ("from -3 to 4", [-3, 4]),
        ("1, 2,3 and 1,2345", [1, 2, 3, 1, 2345]),
        ("$5.50, 3/4 and 2x", [5.5, 3, 4, 2]),
        ("H2O and v1.2", []),
        ("room A", []),
    ],
)
def test_numbers(text: str, expected: list[float]) -> None:
    assert numbers(text) == expected
