"""What decoding leaves behind and shows: a memory that was given, a context in several segments, a stop string in pieces."""

from __future__ import annotations

import pytest
import torch

from context_memory import plugins
from context_memory.boundaries.every import Every
from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.generate import Decoder, begun, generate
from context_memory.memory import Memory
from context_memory.output import Settings
from context_memory.schemes.concat import Concat
from context_memory.testing import tiny_lm
from context_memory.text import Segment
from toys import Letters


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
    assert begun(text, ["###", "\n\n"]) == n


def test_a_memory_has_a_row_a_prompt() -> None:
    lm = tiny_lm("llama", Concat(n_comp=1))
    two = lm.memory(2)
    two.run([[Segment((5, 9))], [Segment((7,))]])
    with pytest.raises(InputError, match=r"1 prompt\(s\) cannot go on from a memory of 2 row\(s\)"):
        lm._asked("a", two, None, None)
    with pytest.raises(InputError, match=r"a memory of one row, this one has 2; pick one"):
        two.inputs([4, 8])
    assert torch.equal(two.pick([1]).inputs([4, 8])["attention_mask"], torch.ones(1, 1 + 2, dtype=torch.long))
