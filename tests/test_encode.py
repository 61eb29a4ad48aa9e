"""From words to segments: nothing is lost or read twice, and the roles stand where the chat template puts them."""

from __future__ import annotations

import pytest

import toys
from context_memory.boundaries.newline import Newline
from context_memory.boundaries.sentence import Sentence
from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.pins.numbers import Numbers
from context_memory.text import Example

WORDS = toys.tokenizer()
TOLD = Example(prompt="Ann has 4 figs. Bo has 2 more! Who has more?", target="4 + 2 = 6\n#### Bo", context=("It is late.", "It is 9."))
ASKED = Example(prompt=TOLD.prompt, target=TOLD.target)


def texts(segments: list) -> list[str]:
    return [WORDS.decode(list(s.ids)) for s in segments]


@pytest.mark.parametrize("prompt", ["keep", "compress"])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("example", [TOLD, ASKED])
def test_the_segments_are_the_text_and_the_prompt_is_its_beginning(example: Example, chat: bool, prompt: str) -> None:
    encoder = Encoder(WORDS, Sentence(), chat=chat, prompt=prompt)
    segments = encoder.segments(example)
    roles = encoder.roles
    said = roles.head + "".join(c + "\n" for c in example.context) + example.prompt + roles.answer + example.target
    assert "".join(texts(segments)) == said + "<|end|>"
    asked = encoder.prompt(example)
    assert asked == segments[: len(asked)]
    assert [s.target for s in segments] == [False] * len(asked) + [True] * (len(segments) - len(asked))
    assert "".join(texts(segments[len(asked) :])) == example.target + "<|end|>"
    assert [s.loss for s in segments] == [(True,) * len(s.ids) if s.target else () for s in segments]


def test_a_kept_question_stays_open_and_a_compressed_one_is_cut_as_the_answer_is() -> None:
    kept = Encoder(WORDS, Sentence()).prompt(ASKED)
    assert texts(kept) == [f"<|user|>{ASKED.prompt}<|end|><|assistant|>"]
    assert not kept[0].compress
    cut = Encoder(WORDS, Sentence(), [Numbers()], prompt="compress").prompt(ASKED)
    assert texts(cut) == ["<|user|>Ann has 4 figs.", " Bo has 2 more!", " Who has more?<|end|><|assistant|>"]
    assert all(s.compress for s in cut)
    assert [[WORDS.decode([i]) for i, pin in zip(s.ids, s.pins) if pin] for s in cut] == [["4"], ["2"], []]
    assert len(Encoder(WORDS, Newline(), prompt="compress").prompt(ASKED)) == 1


def test_a_question_after_a_memory_has_the_head_only_where_the_memory_is_empty() -> None:
    for prompt in ("keep", "compress"):
        encoder = Encoder(WORDS, Sentence(), prompt=prompt)
        assert encoder.asked(ASKED.prompt, first=True) == encoder.prompt(ASKED)
        assert "".join(texts(encoder.asked("So?", first=False))) == f"So?{encoder.roles.answer}"
    assert texts(Encoder(WORDS, Sentence(), prompt="compress").asked("", first=True)) == ["<|user|><|end|><|assistant|>"]


def test_what_cannot_be_encoded_is_said() -> None:
    with pytest.raises(InputError, match="prompt must be one of keep, compress, got 'forget'"):
        Encoder(WORDS, Sentence(), prompt="forget")
    with pytest.raises(InputError, match="context segment 1 of example 'x' is empty"):
        Encoder(WORDS, Sentence()).prompt(Example("Who?", "Bo", context=("a", ""), id="x"))
