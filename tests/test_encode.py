"""From words to segments: nothing is lost or read twice, and the roles stand where the chat template puts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

import toys
from context_memory.boundaries.newline import Newline
from context_memory.boundaries.sentence import Sentence
from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.model import CompressedLM
from context_memory.pins.base import Piece, Pin
from context_memory.pins.numbers import Numbers
from context_memory.pins.prompt import Prompt
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


def test_of_numbers_that_are_kept_once_the_question_s_are_known_as_far_as_they_stay() -> None:
    example = replace(ASKED, target="4 + 2 = 6. 6 - 4 = 2. 2 + 9 = 11.", cuts=(11, 22, 33))

    def kept(pins: list[Pin], example: Example = example) -> list[list[str]]:
        cut = Encoder(WORDS, Sentence(), pins).segments(example)
        return [[WORDS.decode([i]) for i, pin in zip(s.ids, s.pins) if pin] for s in cut if s.target and s.compress]

    assert kept([Numbers()]) == [["4", "2", "6"], ["6", "4", "2"], ["2", "9", "1", "1"]]
    assert kept([Numbers(once=True)]) == [["6"], [], ["9", "1", "1"]]  # the question's own 4 and 2 are kept by the rule
    assert kept([Numbers(once=True), Prompt()]) == [["6"], [], ["9", "1", "1"]]
    for whole, last in ((True, "9"), (False, "1")):  # of the question only the last stays, and half of 11 is no number
        assert kept([Numbers(budget=1, once=True, whole=whole)]) == [["6"], ["4"], [last]]
    told = replace(example, context=("It is 6.",))
    assert kept([Numbers(once=True)], told) == kept([Numbers(once=True)])  # whoever writes the context first does not know its words


def test_said_one_by_one_is_said_as_a_whole() -> None:
    """With tokens that reach over what is joined: two line ends, and a line end with the blank behind it."""
    words = joining()
    assert words("a\n\nb", add_special_tokens=False)["input_ids"] != [i for t in ("a\n", "\nb") for i in words(t)["input_ids"]]
    example = Example("\nWho?", " Jin\n\nor Bo.", context=("I am Jin.\n", "\nYou are Bo.", " So."))
    for prompt in ("keep", "compress"):
        for chat in (True, False):
            encoder = Encoder(words, Newline(), chat=chat, prompt=prompt)
            said = [list(encoder.context(c, first=i == 0).ids) for i, c in enumerate(example.context)]
            said += [list(s.ids) for s in encoder.asked(example.prompt, first=False)]
            assert [list(s.ids) for s in encoder.prompt(example)] == said
            assert [list(s.ids) for s in encoder.segments(example)][: len(said)] == said


def joining() -> PreTrainedTokenizerFast:
    """The tokenizer of letters with tokens for two line ends and for a line end with a blank."""
    out = toys.tokenizer()
    out.add_tokens(["\n\n", "\n "])
    return out


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


def test_an_adapter_for_compressed_questions_is_used_that_way(tmp_path: Path) -> None:
    model = toys.folder(tmp_path / "toy")
    _, folder = toys.adapters(tmp_path, model, boundary="sentence", pins="[]", **{"model.prompt": "compress"})
    lm = CompressedLM.load(str(model), adapter=folder)
    whole = sum(len(s.ids) for s in lm.encoder.asked(ASKED.prompt, first=True))
    memory = lm.memory()
    # "turn" leaves the question whole: two comp tokens, and two of three tokens fed
    (out,) = lm.generate(ASKED.prompt, memory, max_new_tokens=3, boundary="turn")
    assert (out.prompt_tokens, out.peak_kv_tokens) == (whole, 2 + 2)
    (out,) = lm.generate(ASKED.prompt, memory := lm.memory(), max_new_tokens=3)
    assert (out.prompt_tokens, memory.step[0]) == (whole, 3 + out.compressions)
    read = lm.memory().read(ASKED.prompt)
    assert read.shape[1] == whole
    assert lm.base.generate(**lm.memory().inputs(ASKED.prompt), max_new_tokens=2).shape[1] == whole + 2


def test_pieces_of_sentencepiece_keep_their_blanks() -> None:
    """Its decoder drops the blank at the beginning of a text, so of every token that is decoded by itself: 7 7 1 would be 771."""
    words = ["<unk>", "▁a", "▁Ann", "▁has", "▁7", "▁1", "▁apples", "."]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    model.decoder = tokenizers.decoders.Sequence(steps)
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"), Newline(), chat=False)
    ids = [2, 3, 4, 4, 5, 6, 7]
    assert "".join(map(encoder.piece, ids)) == " Ann has 7 7 1 apples."
    assert encoder.tokenizer.decode([4]) == "7"  # control
    assert [number for number, _ in Piece(ids, [encoder.piece(i) for i in ids]).figures()] == ["7", "7", "1"]
