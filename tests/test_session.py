"""A conversation: what is held is what training holds of the same turns, whatever was stopped, saved, opened or asked again."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from context_memory import CompressedLM, plugins
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.generate import Decoder
from context_memory.memory import Memory
from context_memory.output import Settings
from context_memory.session import Session
from context_memory.testing import tiny_lm
from context_memory.text import Example

SHORT = Settings(max_new_tokens=9)
SAID = ("I am Jin.", "Where are you from?", "Who am I?")
Make = Callable[..., CompressedLM]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A tiny model with an adapter of a scheme, in float64; `other` is a scheme to run it with."""
    place = tmp_path_factory.mktemp("toy")
    model = toys.folder(place / "toy")
    made: dict[tuple[str, bool], Path] = {}

    def make(scheme: str = "concat", chat: bool = True, other: str = "", dtype: torch.dtype = torch.float64) -> CompressedLM:
        if (scheme, chat) not in made:
            settings = {"boundary": "newline", "pins": "[prompt,sink]", "model.chat": str(chat).lower()}
            made[scheme, chat] = toys.adapters(place / f"{chat}", model, scheme, **settings)[1]
        instead = plugins.make("schemes", other) if other else None
        return CompressedLM.load(str(model), made[scheme, chat], dtype=dtype, scheme=instead)  # type: ignore[arg-type]

    return make


def talk(session: Session, said: tuple[str, ...] = SAID) -> list[str]:
    return ["".join(session.say(text)) for text in said]


def history(session: Session) -> tuple[str, ...]:
    return tuple(text for turn in session.turns for text in (turn.user, turn.answer))


def written(lm: CompressedLM, encoder: Encoder, turns: tuple[str, ...]) -> Memory:
    """A memory of an example of these turns, as the one pass of training has them (a random model may answer nothing: no example)."""
    memory = lm.memory()
    segments = encoder.prompt(Example("?", "", context=turns, turns=True))[:-1] if all(turns) else encoder.turns(turns)
    with torch.inference_mode():
        for segment in segments:
            memory.run([[segment]])
    return memory


@torch.inference_mode()
def reads(memory: Memory) -> torch.Tensor:
    return memory.fork().read("And?")


def same(a: Memory, b: Memory) -> bool:
    return torch.equal(reads(a), reads(b)) and (a.raw, a.step, a.clock, a.length) == (b.raw, b.step, b.clock, b.length)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("scheme", "other"), [("concat", ""), ("merge", ""), *(("concat", x) for x in ("full", "window", "nothing"))])
def test_the_memory_is_that_of_an_example_of_the_same_turns(toy: Make, scheme: str, other: str, chat: bool) -> None:
    lm = toy(scheme, chat, other)
    session = lm.chat(max_new_tokens=9)
    answers = talk(session)
    assert history(session) == tuple(x for pair in zip(SAID, answers) for x in pair) and any(answers)
    assert same(session.memory, written(lm, session.encoder, history(session)))
    changed = "I am Janet." if other in ("window", "nothing") else "I am Jan."  # they forget what it was, and not how long
    assert not same(session.memory, written(lm, session.encoder, (changed, *history(session)[1:])))
    last = session.turns[-1]
    assert (last.tokens, last.entries, last.nbytes) == (session.memory.raw[0], session.memory.tokens, session.memory.nbytes())
    assert last.nbytes == last.entries * lm.kv_bytes + sum(x.nbytes for pair in session.memory.mean for x in pair)
    assert last.entries == last.tokens if other == "full" else last.entries < last.tokens or other == "window"


def test_an_answer_is_that_of_generate_after_the_same_memory(toy: Make) -> None:
    lm = toy()
    session = lm.chat(max_new_tokens=9)
    first = talk(session, SAID[:1])
    assert first == [lm.generate(SAID[0], max_new_tokens=9)[0].text]
    memory = session.memory.fork()
    assert talk(session, SAID[1:2]) == [lm.generate(SAID[1], memory, max_new_tokens=9)[0].text]
    assert talk(session, SAID[1:2]) != [lm.generate(SAID[1], max_new_tokens=9)[0].text]


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_turns_side_by_side_are_what_the_template_makes_of_them(count: int) -> None:
    words = toys.tokenizer()
    turns = [f"Turn {i}." for i in range(count)]
    example = Example("So?", "Yes.", context=tuple(turns), turns=True)
    encoder = Encoder(words, plugins.make("boundaries", "turn"))  # type: ignore[arg-type]
    segments = encoder.segments(example)
    assert [s.compress for s in segments] == [True] * count + [False, False]
    roles = [{"role": ("user", "assistant")[(count - i) % 2], "content": text} for i, text in enumerate([*turns, "So?", "Yes."])]
    begin = [{"role": "user", "content": ""}] if count % 2 else []  # an assistant who speaks first answers nothing
    assert "".join(words.decode(list(s.ids)) for s in segments) == words.apply_chat_template([*begin, *roles], tokenize=False)
    learnt = encoder.segments(replace(example, learn=(0,) * count))[:count]
    tails = [words.decode([i for i, on in zip(s.ids, s.loss) if on]) for s in learnt]
    assert [t.partition("<|end|>")[0] for t in tails] == turns and [s.ids for s in learnt] == [s.ids for s in segments[:count]]
    lines = Encoder(words, plugins.make("boundaries", "turn"), chat=False)  # type: ignore[arg-type]
    assert lines.segments(example) == lines.segments(Example("So?", "Yes.", context=tuple(turns)))


@pytest.mark.real
def test_the_turns_of_the_embedded_model_are_those_of_its_template() -> None:
    from transformers import AutoTokenizer

    from context_memory import fetch, models

    words = AutoTokenizer.from_pretrained(fetch.get(models.EMBEDDED))
    encoder = Encoder(words, plugins.make("boundaries", "turn"))  # type: ignore[arg-type]
    said = ["Hi, I am Jin.", "Hello Jin!\n\nHow are you?", "Fine. ", " Good."]
    ids = [i for s in [*encoder.turns(said), *encoder.asked("Bye", first=False)] for i in s.ids]
    roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate([*said, "Bye"])]
    assert words.decode(ids) == words.apply_chat_template(roles, tokenize=False, add_generation_prompt=True)


def test_with_lines_an_answer_is_its_first_line_that_is_not_blank(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy(chat=False)
    newline = lm.tokenizer("\n")["input_ids"][0]
    lm.base.lm_head.bias = torch.nn.Parameter(torch.zeros(lm.base.config.vocab_size, dtype=torch.float64))
    session = Session(lm, settings=SHORT)
    (said,) = talk(session, SAID[:1])
    assert len(said) > 1 and "\n" not in said
    with torch.no_grad():
        lm.base.lm_head.bias[newline] = 1e6
    assert talk(session, SAID[:1]) == [""] and session.turns[-1].answer == ""
    monkeypatch.setattr(Decoder, "pieces", lambda _: iter(["\n", " ", "I", " am", ".\nWho", " is"]))
    assert talk(session, SAID[:1]) == ["I am."] and session.turns[-1].answer == "I am."
    assert "".join(session.full()[0]) == "I am."


# ---- stopped, failed ------------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_left_alone_is_remembered_as_far_as_it_was_shown(toy: Make) -> None:
    lm = toy()
    session = Session(lm, settings=SHORT)
    whole = "".join(session.say(SAID[0]))
    session.forget()
    with closing(session.say(SAID[0])) as pieces:
        shown = next(pieces) + next(pieces)
    assert whole.startswith(shown) and whole != shown and history(session) == (SAID[0], shown)
    assert same(session.memory, written(lm, session.encoder, (SAID[0], shown)))
    open_ = session.say(SAID[1])  # nobody closes this one
    begun = next(open_)
    talk(session, SAID[2:])
    assert history(session)[2:4] == (SAID[1], begun)
    list(open_)
    assert len(session.turns) == 3 and same(session.memory, written(lm, session.encoder, history(session)))


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_the_model_runs(toy: Make, monkeypatch: pytest.MonkeyPatch, at: int, what: type[BaseException]) -> None:
    """Before anything was shown, or after an error, the turn has not been; else it is what was shown."""
    lm = toy()
    session = Session(lm, settings=SHORT)
    talk(session, SAID[:1])
    before, shown = session.memory, []
    run, calls = lm.hidden, [0]

    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == at:
            raise what
        return run(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(lm, "hidden", broken)
    with pytest.raises(what):
        shown.extend(session.say(SAID[1]))
    if at == 1 or what is RuntimeError:
        assert session.memory is before and len(session.turns) == 1
    else:
        assert shown and history(session)[2:] == (SAID[1], "".join(shown))
    talk(session, SAID[2:])
    assert same(session.memory, written(lm, session.encoder, history(session)))


def test_a_second_interrupt_while_the_turn_is_written_loses_nothing(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy()
    session = Session(lm, settings=SHORT)
    pieces = session.say(SAID[0])
    shown = next(pieces)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(Memory, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pieces.close()
    assert not session.turns
    session.settle()
    assert same(session.memory, written(lm, session.encoder, (SAID[0], shown)))


def test_a_conversation_that_is_too_long_says_so_and_keeps_its_memory(toy: Make) -> None:
    session = Session(toy(), settings=SHORT)
    talk(session)
    before = session.memory
    with pytest.raises(InputError, match="past the model's 4096"):
        talk(session, ("x" * 4096,))
    assert session.memory is before and len(session.turns) == 3
    talk(session, SAID[:1])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_nothing_is_no_turn(toy: Make, text: str) -> None:
    with pytest.raises(InputError, match="the text is empty"):
        toy().chat().say(text)


def test_what_cannot_be_a_conversation_is_refused(toy: Make) -> None:
    with pytest.raises(InputError, match="'gist' compresses at most 1 time"):
        Session(tiny_lm("llama", plugins.make("schemes", "gist")))  # type: ignore[arg-type]
    lm = toy()
    with pytest.raises(InputError, match="a memory of one row, got 2"):
        lm.chat(lm.memory(rows=2))


# ---- the full context -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "other"), [("concat", ""), ("merge", ""), ("concat", "window")])
def test_the_full_context_answers_as_a_model_that_forgets_nothing(toy: Make, scheme: str, other: str) -> None:
    lm, whole = toy(scheme, True, other), toy(scheme, True, "full")
    session = Session(lm, settings=SHORT)
    talk(session)
    before = session.memory.fork()
    pieces, output = session.full()
    said = "".join(pieces)
    assert session.memory is not before and same(session.memory, before) and len(session.turns) == 3
    example = Example(SAID[-1], "", context=history(session)[:-2], turns=True)
    expected = Decoder(whole, session.encoder, [session.encoder.prompt(example)], SHORT)
    assert said == "".join(expected.pieces()) != session.turns[-1].answer
    assert output.peak_kv_tokens == expected.outputs[0].peak_kv_tokens
    talk(session, SAID[:1])
    assert same(session.memory, written(lm, session.encoder, history(session)))


def test_there_is_no_full_context_of_what_is_not_known(toy: Make) -> None:
    lm = toy()
    session = lm.chat()
    with pytest.raises(InputError, match="nothing was said yet"):
        session.full()
    memory = lm.memory()
    with torch.inference_mode():
        memory.write("My name is Jin.")
    session, held = lm.chat(memory, max_new_tokens=5), memory.tokens
    talk(session)
    with pytest.raises(InputError, match="17 tokens were in the memory before"):
        session.full()
    assert memory.tokens == held


def test_a_model_is_put_under_another_scheme_only_without_comp_tokens(toy: Make) -> None:
    lm = toy()
    assert lm.under(plugins.make("schemes", "full")).scheme.name == "full" and lm.scheme.name == "concat"  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'merge' has comp tokens"):
        lm.under(plugins.make("schemes", "merge"))  # type: ignore[arg-type]


# ---- on disk --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["concat", "merge"])
def test_saved_and_opened_goes_on_as_if_never_saved(toy: Make, scheme: str, tmp_path: Path) -> None:
    session, again = Session(toy(scheme), settings=SHORT), Session(toy(scheme), settings=SHORT)
    talk(session, SAID[:2])
    session.save(tmp_path / "jin.ccm")
    talk(again, SAID[2:])
    again.open(tmp_path / "jin.ccm")
    assert again.turns == session.turns
    assert "".join(again.full()[0]) == "".join(session.full()[0])
    assert talk(again, SAID[2:]) == talk(session, SAID[2:]) and same(again.memory, session.memory)
    assert same(session.lm.open(tmp_path / "jin.ccm"), written(session.lm, session.encoder, history(session)[:4]))


def test_a_memory_without_a_conversation_can_be_talked_to(toy: Make, tmp_path: Path) -> None:
    lm = toy()
    memory = lm.memory()
    with torch.inference_mode():
        memory.write("My name is Jin.")
    memory.save(tmp_path / "jin.ccm")
    session = lm.chat(max_new_tokens=9)
    session.open(tmp_path / "jin.ccm")
    assert not session.turns and talk(session, SAID[2:]) == [lm.generate(SAID[2], memory.fork(), max_new_tokens=9)[0].text]


def test_a_file_that_is_refused_changes_nothing(toy: Make, tmp_path: Path) -> None:
    def another() -> CompressedLM:
        lm = toy()
        lm.card = replace(lm.card, files={"adapter_model.safetensors": "0"})  # type: ignore[type-var]
        return lm

    session = Session(toy(), settings=SHORT)
    lines = Encoder(session.lm.tokenizer, session.encoder.boundary, chat=False)
    talk(session, SAID[:1])
    file = tmp_path / "jin.ccm"
    session.save(file)
    before, turns, whole = session.memory, list(session.turns), file.read_bytes()
    refused: dict[str, bytes | Callable[[], object]] = {
        "damaged or not a memory file": whole[: len(whole) // 2],
        "its content was changed": whole.replace(b"I am Jin.", b"I am Jan."),
        "there is no memory at": file.unlink,
        "conversation with other roles": lambda: Session(toy(), lines).save(file),
        "was written with adapter": lambda: another().chat().save(file),
        "was written with scheme": lambda: toy("concat", True, "window").chat().save(file),
        "was written with dtype": lambda: toy(dtype=torch.float32).chat().save(file),
        "a memory of 2 texts": lambda: session.lm.memory(rows=2).save(file),
    }
    for message, change in refused.items():
        file.write_bytes(change) if isinstance(change, bytes) else change()
        with pytest.raises(UserError, match=re.escape(message)):
            session.open(file)
        assert session.memory is before and session.turns == turns
    with pytest.raises(UserError, match="cannot be written to"):
        session.save(tmp_path / "nowhere" / "jin.ccm")
    assert not list(tmp_path.glob("*.partial"))
    file.write_bytes(whole)
    session.open(file)
    assert session.turns == turns
