"""What decoding leaves behind and shows: a memory that was given, a context in several segments, a stop string in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toys
from context_memory import CompressedLM, plugins
from context_memory.boundaries.every import Every
from context_memory.encode import Encoder, Keeping
from context_memory.errors import InputError, UserError
from context_memory.generate import Decoder, generate
from context_memory.memory import Memory
from context_memory.output import Settings
from context_memory.plan import layout
from context_memory.schemes.concat import Concat
from context_memory.testing import tiny_lm
from context_memory.text import Segment
from toys import Endless, Letters, Thirds


def asked(ids: list[int]) -> list[Segment]:
    return [Segment(tuple(ids), compress=False, target=True)]


def state(memory: Memory, row: int) -> tuple[int, int, int, int]:
    return memory.step[row], memory.raw[row], memory.clock[row], memory.length[row]


def test_a_given_memory_goes_on_for_every_row_though_others_have_ended() -> None:
    """Law 7. Where the memory is the loop's own, rows that have ended are dropped from it."""
    lm, settings = tiny_lm("llama", Concat(n_comp=1)), Settings(max_new_tokens=24)
    (longest,) = generate(lm, Encoder(Letters(), Every(n=4), chat=False), [asked([1, 2, 3])], settings)

    class Short(Encoder):
        """Ends every answer but that one."""

        stops = frozenset(set(range(64)) - {*longest.ids})

    encoder = Short(Letters(), Every(n=4), chat=False)
    prompts = [[7, 8, 9], [1, 2, 3], [30, 31]]
    together, alone = lm.memory(len(prompts)), [lm.memory() for _ in prompts]
    outs = generate(lm, encoder, [asked(p) for p in prompts], settings, together)
    ones = [generate(lm, encoder, [asked(p)], settings, m)[0] for p, m in zip(prompts, alone)]
    assert [o.ids for o in outs] == [o.ids for o in ones]
    assert 2 * sum(len(o.ids) < 24 for o in outs) >= len(outs) and len(outs[1].ids) == 24
    assert [state(together, row) for row in range(3)] == [state(m, 0) for m in alone]


def test_gist_compresses_the_whole_context_before_it_answers() -> None:
    lm = tiny_lm("llama", plugins.make("schemes", "gist", n_comp=2))  # type: ignore[arg-type]
    encoder = Encoder(Letters(), plugins.make("boundaries", "turn"), chat=False)  # type: ignore[arg-type]
    question = Segment((4, 8), compress=False, target=True)
    many = [Segment((5, 9, 3)), Segment((7, 1)), question]
    (a,), (b,) = (generate(lm, encoder, [p], Settings(max_new_tokens=8)) for p in (many, [Segment((5, 9, 3, 7, 1)), question]))
    assert a.ids == b.ids and len(a.ids) == 8


def test_a_stop_string_is_not_shown_piece_by_piece() -> None:
    """Every token is a letter here, so that a stop string of two comes in two pieces."""
    lm, encoder = tiny_lm("llama", Concat(n_comp=1)), Encoder(Letters(), Every(n=4), chat=False)
    (free,) = generate(lm, encoder, [asked([1, 2, 3])], Settings(max_new_tokens=12))
    stop = free.text[5:7]
    for stops in ((stop,), (stop, "never"), (free.text[-1] + "never",)):
        decoder = Decoder(lm, encoder, [asked([1, 2, 3])], Settings(max_new_tokens=12, stop=stops))
        shown = "".join(decoder.pieces())
        assert shown == decoder.outputs[0].text
    assert shown == free.text  # what may have been the beginning of one is shown in the end


@pytest.mark.parametrize(("text", "n"), [("so", 0), ("so #", 1), ("so ##", 2), ("so ### ", 0), ("", 0)])
def test_what_may_become_a_stop_string(text: str, n: int) -> None:
    assert Settings(stop=("###", "\n\n")).begun(text) == n


def test_a_memory_is_not_written_over_what_is_none(tmp_path: Path) -> None:
    memory = tiny_lm("llama", Concat(n_comp=1)).memory()
    memory.write([5, 9, 3])
    data, mine = tmp_path / "data.jsonl", tmp_path / "jin.mem"
    data.write_text("precious")
    with pytest.raises(UserError, match=r"is there and is no memory file; name another, such as .*data\.ccm"):
        memory.save(data)
    assert data.read_text() == "precious"
    memory.save(mine)
    memory.save(mine)


def test_a_memory_has_a_row_a_prompt() -> None:
    lm = tiny_lm("llama", Concat(n_comp=1))
    two = lm.memory(2)
    two.run([[Segment((5, 9))], [Segment((7,))]])
    with pytest.raises(InputError, match=r"1 prompt\(s\) cannot go on from a memory of 2 row\(s\)"):
        lm._asked("a", two, None, None)
    with pytest.raises(InputError, match="the memory is another model's"):
        generate(tiny_lm("llama", Concat(n_comp=1)), Encoder(Letters(), Every(n=4), chat=False), [asked([4])] * 2, Settings(), two)
    with pytest.raises(InputError, match=r"a memory of one row, this one has 2; pick one"):
        two.inputs([4, 8])
    assert torch.equal(two.pick([1]).inputs([4, 8])["attention_mask"], torch.ones(1, 1 + 2, dtype=torch.long))


def test_a_memory_that_is_written_by_hand_holds_no_graph() -> None:
    """What is forgotten would stay alive in it, and answering would end in an error about inference tensors."""
    lm = tiny_lm("llama", Concat(n_comp=1))
    lm.comp.requires_grad_(True)
    memory = lm.memory()
    with torch.enable_grad():
        memory.write([5, 9, 3])
        logits = memory.read([7, 1])
        memory.compress()
        generate(lm, Encoder(Letters(), Every(n=4), chat=False), [asked([4])], Settings(max_new_tokens=6), memory)
        memory.write([2])
    assert not logits.requires_grad and not any(layer.keys.requires_grad for layer in memory.layers)


@pytest.mark.parametrize(("scheme", "n", "positions"), [
    (Concat(n_comp=1, window=6, lag=6), 3, "skip"), (Concat(n_comp=2, window=6, lag=6), 6, "base"), (Concat(n_comp=1, window=6), 3, "skip"),
])  # fmt: skip
def test_comp_tokens_that_are_run_late_see_what_one_pass_shows_them(
    scheme: Concat, n: int, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pin of a later segment, and no less text where comp tokens take up positions; logits, and not only the tokens that were chosen."""
    lm = tiny_lm("llama", scheme, positions=positions)
    encoder, seen, logits = Endless(Letters(), Every(n=n), [Thirds()], chat=False), list[torch.Tensor](), lm.logits
    monkeypatch.setattr(lm, "logits", lambda hidden: seen.append(logits(hidden)) or seen[-1])
    (out,) = generate(lm, encoder, [asked([1, 2, 3])], Settings(max_new_tokens=24))
    monkeypatch.undo()
    keeping = Keeping(encoder, asked([1, 2, 3]))
    steps = encoder.boundary.split(out.ids, encoder.piece)
    given = [Segment(s, pins=keeping.pin(s), target=True, compress=i < len(steps) - 1) for i, s in enumerate(steps)]
    with torch.no_grad():
        plan = layout([*asked([1, 2, 3]), *given], lm.scheme, positions)
        whole = lm(plan)[0][plan.tokens.raw[0]][2:]
    assert len(seen) == 24 and out.compressions > 2
    for mine, theirs in zip(seen, whole):
        assert torch.allclose(mine[0], theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("scheme", "gate", "message"), [
    (Concat(n_comp=1, window=4), "comp", "goes on sliding"), (Concat(n_comp=1), "all", "acts on every token"),
])  # fmt: skip
def test_what_the_stock_generate_would_see_otherwise_is_refused(scheme: Concat, gate: str, message: str) -> None:
    memory = tiny_lm("llama", scheme, gate=gate).memory()
    memory.write([5, 9, 3])
    with pytest.raises(InputError, match=f"{message}.*use lm.generate"):
        memory.inputs([4])


def test_an_answer_of_one_token_counts_its_prompt(tmp_path: Path) -> None:
    lm = CompressedLM.load(str(toys.folder(tmp_path / "toy")))
    one, two = (lm.generate("What is 2 plus 2?", max_new_tokens=n)[0] for n in (1, 2))
    assert one.peak_kv_tokens == one.prompt_tokens == two.peak_kv_tokens - 1 and one.peak_kv_bytes > 0
    assert one.peak_reasoning_kv_tokens == 0 and two.peak_reasoning_kv_tokens == 1
