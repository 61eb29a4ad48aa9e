"""The laws on an encoder-decoder, for every scheme that has a mask, in float64 on a tiny T5, each with a control that must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError
from transformers import T5Config, T5ForConditionalGeneration

import toys
from bytes_alive import alive
from context_memory import compose, output, plugins, rows
from context_memory.data.fact import Fact
from context_memory.encoder_decoder import CompressedSeq2Seq, asked
from context_memory.encoder_memory import EncoderMemory, attended, in_order
from context_memory.errors import InputError, UserError
from context_memory.evaluate import Settings, evaluate
from context_memory.families.t5 import T5
from context_memory.model import CompressedLM
from context_memory.plan import PAD, RAW, Plan, layout, pack, stack, visible
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.schemes.key_norm import KeyNorm
from context_memory.schemes.merge import Merge
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Segment
from context_memory.train import train

torch.set_num_threads(1)
EXACT = 1e-10
SCHEMES = [scheme for _, scheme in tiny_lms(["t5"]) if not scheme.learned]
WITH_COMP = [s for s in SCHEMES if s.n_comp]
QUESTION = Segment((6, 6, 2, 1), compress=False, target=True)
ANSWER = Segment((9, 4, 1), loss=(True,) * 3, compress=False, target=True)
PINNED = [Segment((5, 9, 3), pins=(True, False, False)), Segment((7,)), Segment((1, 2, 8, 4), pins=(False, False, True, False))]
EMPTY = [Segment((5, 9, 3)), Segment(()), Segment(()), Segment((7,))]
OPEN = [Segment((5, 9, 3, 8, 8, 8, 8, 8, 20)), Segment((3, 2), compress=False), Segment((7, 20))]
"""Text that no boundary ends, before a segment that is closed."""
TEXTS = {"pinned": PINNED, "empty": EMPTY, "open": OPEN}


def text(scheme: Scheme, context: list[Segment]) -> list[Segment]:
    """The same for schemes that compress once: the first segment alone is context."""
    return [*(context if scheme.max_steps is None else context[:1]), QUESTION, ANSWER]


def whole(lm: CompressedSeq2Seq, segments: list[Segment]) -> Tensor:
    """(answer, vocabulary) logits in one pass."""
    return lm.labelled(layout(segments, lm.scheme, lm.positions))[0]


def by_steps(lm: CompressedSeq2Seq, segments: list[Segment], memory: EncoderMemory | None = None) -> Tensor:
    """The same, segment by segment on a memory."""
    memory = memory or lm.memory()
    for segment in segments[:-2]:
        memory.run([[segment]])
    return said(lm, memory, [segments[-2]], [segments[-1]])[0]


def said(lm: CompressedSeq2Seq, memory: EncoderMemory, questions: list[Segment], answers: list[Segment]) -> Tensor:
    reading = memory.read([q.ids for q in questions])
    return lm.logits(lm.decode(reading.states, reading.seen, torch.tensor([a.ids for a in answers])))


# ---- one pass == step by step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_one_pass_is_step_by_step(scheme: Scheme, positions: str, attention: str) -> None:
    lm = tiny_lm("t5", scheme, positions=positions, attn_implementation=attention)
    with torch.no_grad():
        for context in TEXTS.values():
            segments = text(scheme, context)
            assert (whole(lm, segments) - by_steps(lm, segments)).abs().max() < EXACT


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_control_a_boundary_that_is_left_out_is_seen(scheme: Scheme) -> None:
    lm, segments = tiny_lm("t5", scheme), text(scheme, PINNED)
    other = [replace(segments[0], compress=False), *segments[1:]]
    with torch.no_grad():
        apart = (whole(lm, segments) - by_steps(lm, other)).abs().max()
    assert apart < EXACT if scheme.name == "full" else apart > 1e-3


# ---- an idle adapter changes nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_idle_adapter_is_bit_identical_to_the_frozen_model(scheme: Scheme, dtype: torch.dtype) -> None:
    """A question without context, as long as a window sees whole: through us, through the base with the adapter attached, and through
    a stock model, all with its own attention."""
    lm = tiny_lm("t5", scheme, dtype=dtype)
    ids = tuple(i % 17 for i in range(getattr(scheme, "size", 40) - 1))
    stock = T5().tiny().to(dtype).eval()
    weights = {name.replace(".base_layer", ""): x for name, x in lm.base.state_dict().items() if "lora_" not in name}
    stock.load_state_dict(weights)
    given = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ANSWER.ids])}
    with torch.no_grad():
        wanted = stock(**given).logits
        assert torch.equal(whole(lm, [replace(QUESTION, ids=ids), ANSWER])[None], wanted)
        assert torch.equal(lm.base(**given).logits, wanted)
        assert torch.equal(whole(lm.train(), [replace(QUESTION, ids=ids), ANSWER])[None], wanted)
        if scheme.n_comp:
            acts = tiny_lm("t5", scheme, dtype=dtype, gate="all")
            assert (whole(acts, [replace(QUESTION, ids=ids), ANSWER]) - wanted[0]).abs().max() > 1e-3


def test_lora_goes_to_the_encoder_alone() -> None:
    names = [n for n, _ in tiny_lm("t5", Concat()).named_parameters() if "lora_" in n]
    assert len(names) == 3 * 4 * 2
    assert all("base.encoder" in n and "SelfAttention" in n for n in names)


# ---- padding, batch mates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_padding_and_batch_mates_change_nothing(scheme: Scheme) -> None:
    lm = tiny_lm("t5", scheme)
    rows = [text(scheme, PINNED), [*text(scheme, EMPTY)[:-1], replace(ANSWER, ids=(3,), loss=(True,))], [QUESTION, ANSWER]]
    plans = [layout(r, scheme, lm.positions) for r in rows]
    with torch.no_grad():
        alone = torch.cat([lm.labelled(p)[0] for p in plans])
        batch = lm.labelled(stack(plans, to=max(p.shape[1] for p in plans) + 5))[0]
        assert (batch - alone).abs().max() < EXACT
        plan = asked(stack(plans)).plan
        real, t = plan.tokens.raw, plan.tokens
        blind = replace(plan, tokens=replace(t, kind=torch.where(t.kind == PAD, RAW, t.kind), row=t.row * 0))
        assert (lm.encode(blind) - lm.encode(plan))[real].abs().max() > 1e-6  # the control: padding that is taken for text


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_of_a_memory_are_memories_alone(scheme: Scheme) -> None:
    """Rows written at different times; batched and picked; a fork that does not disturb what it came from."""
    lm = tiny_lm("t5", scheme)
    texts = [text(scheme, PINNED), text(scheme, EMPTY)]
    with torch.no_grad():
        alone = [by_steps(lm, t) for t in texts]
        memory = lm.memory(rows=2)
        for turn in range(max(map(len, texts)) - 2):
            memory.run([[t[turn]] if turn < len(t) - 2 else [] for t in texts])
        apart = [lm.memory(), lm.memory()]
        for one, t in zip(apart, texts):
            for segment in t[:-2]:
                one.run([[segment]])
        for both in (memory, memory.fork(), EncoderMemory.batch(apart), EncoderMemory.batch(apart).pick([0, 1])):
            found = said(lm, both, [QUESTION] * 2, [ANSWER] * 2)
            assert max(float((a - b).abs().max()) for a, b in zip(found, alone)) < EXACT
        assert (said(lm, memory.pick([1]), [QUESTION], [ANSWER])[0] - alone[1]).abs().max() < EXACT
        if scheme.max_steps is None:
            memory.fork().write((3, 3))
        assert torch.equal(said(lm, memory, [QUESTION] * 2, [ANSWER] * 2), said(lm, memory, [QUESTION] * 2, [ANSWER] * 2))


# ---- forgotten is forgotten -----------------------------------------------------------------------------------------------


class Cut(TorchFunctionMode):
    """Detaches the keys and values of some columns of the encoder, in every layer and across: nothing flows back through them."""

    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.columns = columns[:, None, :, None]

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is scaled_dot_product_attention and args[1].shape[2] == self.columns.shape[2]:
            q, *kv = args
            args = (q, *(torch.where(self.columns, x.detach(), x) for x in kv))
        return func(*args, **(kwargs or {}))


def influence(lm: CompressedSeq2Seq, plan: Plan, cut: Tensor) -> Tensor:
    """(n,) how much the logits depend on each embedding of the encoder, with some columns (1, n) cut."""
    seen: list[Tensor] = []
    embed = lm.base.get_input_embeddings()
    hook = embed.register_forward_hook(lambda m, a, out: seen.append(out.requires_grad_()) or seen[-1])
    with Cut(cut):
        lm.labelled(plan)[0].square().sum().backward()
    hook.remove()
    return seen[0].grad[0].abs().sum(-1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_forgotten_token_is_forgotten(scheme: Scheme) -> None:
    """Exactly no gradient reaches it once comp tokens, slots, pins and what is still seen are cut; through them it does."""
    lm = tiny_lm("t5", scheme)
    plan = layout(text(scheme, PINNED), scheme, lm.positions)
    parts = asked(plan)
    t = parts.plan.tokens
    seen = attended(scheme, t, parts.step, parts.clock)[0]
    own = (t.raw & (t.segment == parts.step))[0]
    ordered = in_order(t)
    mask = visible(scheme, ordered.map(lambda x: x[0, :, None]), ordered.map(lambda x: x[0, None]))
    forgotten = t.raw[0] & ~seen & ~mask[own].any(0)
    assert bool(forgotten.any()) == scheme.hides
    held = ~own & ~forgotten
    flows, cut = influence(lm, plan, torch.zeros_like(held)[None]), influence(lm, plan, held[None])
    assert bool((cut[forgotten] == 0).all())
    assert bool((cut[own & seen] > 0).all())
    if scheme.n_comp:
        assert bool((flows[forgotten] > 0).all())


# ---- bytes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.name != "window"], ids=str)
def test_memory_is_as_large_as_its_scheme_says_and_no_byte_more(scheme: Scheme, dtype: torch.dtype) -> None:
    lm, pins, averages = tiny_lm("t5", scheme, dtype=dtype), 0, 0
    memory = lm.memory()
    with torch.no_grad():
        for step, segment in enumerate(text(scheme, PINNED)[:-2], start=1):
            memory.run([[segment]])
            pins += sum(segment.pins)
            averages = scheme.n_comp * lm.kv_bytes * 4 // dtype.itemsize if memory.held.mean else 0
            entries = scheme.capacity(step) + pins if scheme.hides else 0  # under `full`, ids wait
            window = max(getattr(scheme, "window", 0), getattr(scheme, "cache", 0) - step * scheme.n_comp)
            if window:  # likewise: a text may be short, and a pin near
                said = [pin for s in text(scheme, PINNED)[:step] for pin in s.pins or (False,) * len(s.ids)]
                entries = step * scheme.n_comp + sum(pin or len(said) - i <= window for i, pin in enumerate(said))
            if scheme.pools:  # a short segment gives fewer entries than it may
                assert memory.held.length[0] <= entries
                entries = memory.held.length[0]
            assert memory.nbytes() == entries * lm.kv_bytes + averages == alive(memory)
        before = memory.nbytes()
        reading = memory.read([QUESTION.ids])
        attends = (entries if scheme.hides else sum(len(s.ids) for s in PINNED)) + len(QUESTION.ids)
        assert reading.nbytes() == attends * lm.base.config.d_model * dtype.itemsize
        assert memory.nbytes() == before == alive(memory)


def test_kv_bytes_are_those_of_the_buffers() -> None:
    lm = tiny_lm("t5", Concat(n_comp=1), dtype=torch.float32)
    memory = lm.memory()
    memory.write((3, 4, 5))
    assert memory.nbytes() == lm.kv_bytes == 3 * 2 * 4 * 8 * 4 + 32 * 4


# ---- training -----------------------------------------------------------------------------------------------------------------


def gradients(lm: CompressedSeq2Seq, plan: Plan) -> dict[str, Tensor]:
    lm.zero_grad()
    cross_entropy(*lm.labelled(plan)).backward()
    return {n: p.grad for n, p in lm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("scheme", WITH_COMP, ids=str)
def test_gradient_checkpointing_changes_nothing(scheme: Scheme) -> None:
    """Gate, mix and bias come along when a layer is run again. Control: without the gate it is an error."""
    lm = tiny_lm("t5", scheme).train()
    plan = layout(text(scheme, PINNED), scheme, lm.positions)
    wanted = gradients(lm, plan)
    assert all(g is not None and g.abs().max() > 0 for g in wanted.values())
    lm.base.activation_checkpointing_enable({"use_reentrant": False})
    found, calls = gradients(lm, plan), []
    assert max(float((found[n] - g).abs().max()) for n, g in wanted.items()) < EXACT

    def lose(module, args, kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        return args, kwargs | ({"lora_gate": None} if len(calls) > 1 else {})

    lm.base.encoder.block[0].layer[0].SelfAttention.register_forward_pre_hook(lose, with_kwargs=True, prepend=True)
    with pytest.raises(CheckpointError):
        gradients(lm, plan)


TASK_KEYS, TASK_VALUES = range(2, 6), range(6, 10)


def recall(scheme: Scheme, steps: int) -> tuple[float, float, float]:
    """(first loss, mean of the last ten losses, accuracy on fresh examples) of a random T5 that is trained to say which value went with a
    key: two segments "key value", then a key."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 10, "d_model": 32, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4}
    base = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, feed_forward_proj="gated-gelu", decoder_start_token_id=0))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(T5.targets)) if scheme.n_comp else None
    lm = CompressedSeq2Seq(base, None, scheme, lora=lora)
    base.requires_grad_(True)
    end = {"compress": False, "target": True}
    rows = [Segment((2, 6)), Segment((2, 6)), Segment((2, 1), **end), Segment((6,), loss=(True,), **end)]  # type: ignore[arg-type]

    def batch(n: int, draw: torch.Generator) -> Plan:
        plan = stack([layout(rows, scheme, lm.positions)] * n)
        keys = torch.rand(n, 4, generator=draw).argsort(1)[:, :2] + TASK_KEYS[0]
        values = torch.randint(4, (n, 2), generator=draw) + TASK_VALUES[0]
        at = torch.randint(2, (n, 1), generator=draw)
        key, value = keys.gather(1, at), values.gather(1, at)
        ids = plan.ids.clone()
        ids[plan.tokens.raw] = torch.cat([torch.stack([keys, values], -1).flatten(1), key, key * 0 + 1, value], 1).flatten()
        return replace(plan, ids=ids, labels=torch.where(plan.labels < 0, plan.labels, value))

    draw, losses = torch.Generator().manual_seed(1), []
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=4e-3, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        loss = cross_entropy(*lm.labelled(batch(64, draw)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits, labels = lm.labelled(batch(400, torch.Generator().manual_seed(2)))
    return losses[0], sum(losses[-10:]) / 10, float((logits.argmax(-1) == labels).double().mean())


def test_a_random_t5_learns_to_recall_what_the_memory_alone_can_tell() -> None:
    first, last, right = recall(Concat(n_comp=1), 150)
    assert last < 0.3 < first
    assert right > 0.9
    _, blind, guessed = recall(plugins.make("schemes", "nothing"), 30)  # type: ignore[arg-type]
    assert blind > 1.0
    assert guessed < 0.5


# ---- answers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [Concat(), Merge(), Full()], ids=str)
def test_stock_generate_answers_from_a_memory_alone_and_in_a_batch(scheme: Scheme) -> None:
    lm = tiny_lm("t5", scheme, dtype=torch.float64)
    questions = [(6, 6, 2, 1), (9, 1)]
    memories = [lm.memory(), lm.memory()]
    memories[0].write((5, 9, 3))
    memories[1].write((7, 30, 31, 32))
    alone = [lm.generate([q], m, max_new_tokens=6)[0] for q, m in zip(questions, memories)]
    both = lm.generate(questions, EncoderMemory.batch(memories), max_new_tokens=6)
    assert [o.ids for o in both] == [o.ids for o in alone]
    greedy: list[int] = []
    with torch.no_grad():
        reading = memories[0].read([questions[0]])
        for _ in range(6):
            states = lm.decode(reading.states, reading.seen, torch.tensor([[*greedy, 0]]))
            greedy.append(int(lm.logits(states)[0, -1].argmax()))
    stop = greedy.index(1) if 1 in greedy else 6
    assert alone[0].ids == greedy[:stop]
    assert alone[0].compressions == int(scheme.hides)
    assert alone[0].peak_kv_tokens == (2 if scheme.hides else 3) + 4 + stop


# ---- the commands' path: train, load, evaluate ------------------------------------------------------------------------------------


def test_the_same_configuration_trains_loads_and_evaluates_a_t5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = toys.tokenizer()
    words.chat_template = None
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    special = {"pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=len(words), **sizes, **special)).save_pretrained(tmp_path / "toy")
    words.save_pretrained(tmp_path / "toy")
    monkeypatch.setattr(Fact, "examples", lambda self, split: self.samples)
    common = [f"model={tmp_path / 'toy'}", "data=fact", "scheme=merge", "boundary=turn", "model.dtype=float32", "model.positions=base"]
    short = ["training.max_steps=2", "training.batch_size=2", "training.lr=0.01", "training.wandb=false", "training.eval_samples=2"]
    result = train(compose.load([*common, *short, f"output={tmp_path}"]))
    assert result.finished
    config = compose.load([*common, f"model.adapter={result.adapter}"])
    lm = rows.load_row(config)
    assert isinstance(lm, CompressedSeq2Seq)
    assert all(p.abs().max() > 0 for n, p in lm.named_parameters() if "lora_B" in n)  # they began at 0
    settings = Settings(decode=output.Settings(max_new_tokens=5), batch_size=2)
    metrics = evaluate(lm, config.encoder(lm.tokenizer), config.dataset(), list(Fact.samples), settings, tmp_path / "row")
    assert (metrics.n, metrics.compressions) == (3, 4)
    assert metrics.nll.mean == pytest.approx(result.final_loss, rel=0.2)
    assert lm.generate("What is my name?", max_new_tokens=3)[0].compressions == 0
    full = compose.load([*common[:2], *common[3:], "scheme=full"])
    assert rows.load_row(full).peft is None


# ---- what is refused ----------------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_said() -> None:
    concat = Concat(n_comp=1)
    lm = tiny_lm("t5", concat)
    with pytest.raises(InputError, match="CompressedSeq2Seq"):
        CompressedLM(T5().tiny(), None, concat)
    with pytest.raises(InputError, match="no encoder-decoder"):
        CompressedSeq2Seq(plugins.make("families", "llama").tiny(), None, concat)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="sdpa, eager, got 'flex_attention'"):
        CompressedSeq2Seq(T5().tiny(), None, concat, attn_implementation="flex_attention")
    with pytest.raises(InputError, match="chooses by the keys"):
        CompressedSeq2Seq(T5().tiny(), None, KeyNorm())
    plan = layout([Segment((3, 4)), QUESTION, ANSWER], concat)
    with pytest.raises(InputError, match="no packing"):
        lm(pack([plan, plan]))
    with pytest.raises(InputError, match="one answer a row"):
        lm(layout([Segment((3, 4)), QUESTION], concat))
    with pytest.raises(InputError, match="in one piece"):
        lm(layout([QUESTION, replace(ANSWER, compress=True), QUESTION], concat))
    with pytest.raises(InputError, match="question of at least one token"):
        lm.memory().read([()])
    with pytest.raises(InputError, match="nothing to remember"):
        lm.memory().write(())
    gist = tiny_lm("t5", plugins.make("schemes", "gist")).memory()  # type: ignore[arg-type]
    gist.write((3, 4))
    with pytest.raises(InputError, match="at most 1"):
        gist.write((5,))


def test_what_is_not_made_for_them_says_so(tmp_path: Path) -> None:
    from context_memory import oracle, saliency, telling, traces
    from context_memory.data.tally import Tally
    from context_memory.session import Session
    from context_memory.stream import Settings as Cache
    from context_memory.stream import Stream

    lm = tiny_lm("t5", Concat())
    tried: list[Callable[[], object]] = [
        lambda: Session(lm),
        lambda: Stream(lm, Cache()),
        lambda: oracle.rises(lm, None, None, []),  # type: ignore[arg-type]
        lambda: telling.collect(lm, None, []),  # type: ignore[arg-type]
        lambda: saliency.collect(lm, None, []),  # type: ignore[arg-type]
        lambda: traces.sample(lm, None, Tally(), [], Settings(), tmp_path),  # type: ignore[arg-type]
    ]
    for attempt in tried:
        with pytest.raises(UserError, match="is not there for encoder-decoders"):
            attempt()
    tiny_lm("llama", Concat()).family.must_be_causal("a conversation")
