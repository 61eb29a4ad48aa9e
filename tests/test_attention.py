"""No future and no forgotten token leaks, whatever the attention implementation; sliding windows stay what they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

import reference
from context_memory import attention, encoder_attention, grouped
from context_memory.cudnn import without_cudnn
from context_memory.plan import SLOT, Plan, layout
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.schemes.merge import Merge
from context_memory.schemes.nothing import Nothing
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Segment

torch.set_num_threads(1)
CLOSE = {"sdpa": 1e-10, "flex_attention": 1e-10, "eager": 1e-4}
"""transformers' eager attention takes its softmax in float32."""
MASKED = tuple(CLOSE)
TEXT = [
    Segment((5, 9, 3), pins=(True, False, False)), Segment((7, 10)), Segment((1, 2, 8, 4, 9, 9, 12, 13)),
    Segment((6, 6, 2), compress=False, target=True),
]  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),  # torch's own, with flex
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),  # transformers' own
]


@pytest.fixture
def unfused() -> Iterator[None]:
    """flex_attention as plain operations, in float64; `test_flex_attention_compiled` runs the kernel."""
    with torch.compiler.set_stance("force_eager"):
        yield


def schemes() -> list[Scheme]:
    return [s for f, s in tiny_lms(["llama"]) if s.max_steps is None]


def run(lm, plan: Plan) -> Tensor:  # type: ignore[no-untyped-def]
    """(n, vocabulary) logits; of slots, whose rows nobody reads, zeros."""
    with torch.no_grad():
        return lm(plan)[0].masked_fill((plan.tokens.kind[0] == SLOT)[:, None], 0.0)


def changed(plan: Plan, column: int) -> Plan:
    """The same plan with another token there."""
    ids = plan.ids.clone()
    ids[0, column] = (ids[0, column] + 31) % 64
    return replace(plan, ids=ids)


# ---- leaks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("implementation", MASKED)
@pytest.mark.parametrize("scheme", schemes(), ids=str)
def test_no_future_token_leaks(scheme: Scheme, implementation: str) -> None:
    """Another token changes its own logits (the control) and not a bit of those before it."""
    lm = tiny_lm("llama", scheme, attn_implementation=implementation)
    plan = layout(TEXT, scheme)
    before = run(lm, plan)
    for column in plan.tokens.raw[0].nonzero()[1:, 0].tolist():
        after = run(lm, changed(plan, column))
        assert torch.equal(after[:column], before[:column])
        assert (after[column] - before[column]).abs().max() > 1e-3


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("implementation", MASKED)
@pytest.mark.parametrize("scheme", [Nothing(), Concat(n_comp=1, recurrent=False), Merge(n_comp=2, recurrent=False)], ids=str)
def test_no_forgotten_token_leaks(scheme: Scheme, implementation: str) -> None:
    """In schemes whose context segments do not read the memory, another first segment changes not a bit of the second and third.

    The control: it changes its own segment, and the reader, if there are comp tokens to carry it. (What is carried on by
    comp tokens in the other schemes is exact to the recursion: `test_implementations_agree` and `test_reference.py`.)
    """
    lm = tiny_lm("llama", scheme, attn_implementation=implementation)
    plan = layout([Segment(s.ids, compress=s.compress, target=s.target) for s in TEXT], scheme)
    before, after = run(lm, plan), run(lm, changed(plan, 1))
    segment = plan.tokens.segment[0]
    middle = (segment == 1) | (segment == 2)
    assert torch.equal(after[middle], before[middle])
    assert (after[1:3] - before[1:3]).abs().amax(-1).min() > 1e-3
    assert torch.equal(after[segment == 3], before[segment == 3]) == (scheme.n_comp == 0)


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("implementation", MASKED[1:])
@pytest.mark.parametrize(("family", "scheme"), tiny_lms(["llama", "mistral", "qwen2", "gemma2"]), ids=str)
def test_implementations_agree(family: str, scheme: Scheme, implementation: str) -> None:
    """In one pass and step by step, in float64: sdpa (eager for gemma2), which is exact to the recursion, says the same."""
    segments = TEXT if scheme.max_steps is None else [TEXT[0], TEXT[3]]
    plan = layout(segments, scheme)
    wanted = run(tiny_lm(family, scheme), plan)
    lm = tiny_lm(family, scheme, attn_implementation=implementation)
    assert attention.implementation_of(lm.base) == implementation
    memory = lm.memory()
    with torch.no_grad():
        steps = torch.cat([lm.logits(memory.run([[s]])[0, : len(s.ids)]) for s in segments])
    assert (run(lm, plan) - wanted).abs().max() < CLOSE[implementation]
    assert (steps - wanted[plan.tokens.raw[0]]).abs().max() < CLOSE[implementation]


def test_control_a_boolean_mask_hides_nothing_from_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention adds its mask: given sdpa's form, it would see the future."""
    lm = tiny_lm("llama", Concat(n_comp=1), attn_implementation="eager")
    plan, stock = layout(TEXT, lm.scheme), attention.form
    before = run(lm, plan)
    monkeypatch.setattr(attention, "form", lambda mask, implementation, dtype: stock(mask, "sdpa", dtype))
    assert (run(lm, plan) - before).abs().max() > 1e-3
    assert not torch.equal(run(lm, changed(plan, plan.shape[1] - 1))[0], run(lm, plan)[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles flex_attention with g++")
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_compiled() -> None:
    """The kernel that torch makes for this CPU, in float32 (forward only: its backward does not exist here)."""
    plan = layout(TEXT, Concat(n_comp=1))
    both = [tiny_lm("llama", Concat(n_comp=1), dtype=torch.float32, attn_implementation=x) for x in ("sdpa", "flex_attention")]
    assert (run(both[0], plan) - run(both[1], plan)).abs().max() < 1e-4
    memories = [lm.memory() for lm in both]
    with torch.no_grad():
        for memory in memories:
            memory.write([3, 4, 5])
        for token in (7, 8):
            one, two = (memory.read([token]) for memory in memories)
            assert (one - two).abs().max() < 1e-4


# ---- what is refused ------------------------------------------------------------------------------------------------------


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of sdpa, eager, flex_attention, flash_attention_2, got 'fast'"):
        tiny_lm("llama", Full(), attn_implementation="fast")


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash attention is installed")
def test_flash_attention_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ImportError, match=r"FlashAttention2 .* doesn't seem to be installed"):
        tiny_lm("llama", Full(), attn_implementation="flash_attention_2")


def test_flash_attention_is_refused_where_something_is_hidden() -> None:
    with pytest.raises(ValueError, match="cannot fill memory slots; use attn_implementation=sdpa"):
        tiny_lm("llama", Merge(n_comp=1), attn_implementation="flash_attention_2")
    lm = tiny_lm("llama", Concat(n_comp=1))
    lm.base.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"takes no mask that hides forgotten tokens.*use attn_implementation=sdpa"):
        lm(layout(TEXT, lm.scheme))


def test_scores_are_capped_or_the_implementation_is_refused() -> None:
    """Gemma 2: sdpa would leave the cap out without a word. The control: without the cap it says something else."""
    lm = tiny_lm("gemma2", Full())
    plan = layout([Segment(LONG, compress=False)], Full())
    capped = run(lm, plan)
    for layer in lm.family.layers(lm.base):
        layer.self_attn.attn_logit_softcapping = None
    assert (run(lm, plan) - capped).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"sdpa leaves out a part of gemma2's attention; use attn_implementation=eager \(or flex"):
        tiny_lm("gemma2", Full(), attn_implementation="sdpa")


# ---- sliding windows --------------------------------------------------------------------------------------------------------

LONG = tuple(i % 41 for i in range(30))


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("implementation", MASKED)
@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3_text", "phi3"])
def test_full_scheme_has_the_window_of_the_stock_model(family: str, implementation: str) -> None:
    """In one pass and in pieces on a memory. The control: the stock model without its window says something else."""
    lm = tiny_lm(family, Full(), attn_implementation=implementation)
    ids = torch.tensor([LONG])
    memory = lm.memory()
    with torch.no_grad():
        wanted, unwindowed = (reference.stock(lm, window=w)(input_ids=ids).logits[0] for w in (True, False))
        pieces = torch.cat([memory.fork().read(LONG[:7])[0], *(memory.read(LONG[i : i + 7])[0] for i in range(0, 30, 7))])[7:]
    assert (run(lm, layout([Segment(LONG, compress=False)], Full())) - wanted).abs().max() < CLOSE[implementation]
    assert (pieces - wanted).abs().max() < CLOSE[implementation]
    assert (wanted - unwindowed).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
@pytest.mark.parametrize("scheme", [Concat(n_comp=2), Merge(n_comp=1)], ids=str)
def test_the_window_passes_by_raw_tokens_and_no_memory(family: str, scheme: Scheme) -> None:
    """Comp tokens, slots and pins of closed segments stay in sight; an open segment's own distant tokens do not."""
    lm = tiny_lm(family, scheme)
    plan = layout([Segment((5, 9, 3), pins=(True, False, False)), Segment(LONG, compress=False, target=True)], scheme)
    q, k = plan.tokens.map(lambda x: x[:, :, None]), plan.tokens.map(lambda x: x[:, None, :])
    whole, t = plan.mask(scheme), plan.tokens
    masks = lm.family.masks(whole, q, k, lm.base.config)
    slid = masks["sliding_attention" if family == "qwen2" else None][0, -1]
    near = t.position[0] > t.position[0, -1] - lm.base.config.sliding_window
    remembered = ~t.raw[0] | t.pin[0]
    assert torch.equal(slid, whole[0, -1] & (near | remembered))
    assert bool(slid[0])
    assert not bool(slid[plan.shape[1] - 10])
    if family == "qwen2":
        assert torch.equal(masks["full_attention"], whole)


def test_grouped_heads_are_the_repeated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU sdpa takes grouped heads under a mask; the copies that transformers makes otherwise give the same."""
    lm, counts = tiny_lm("llama", Concat(n_comp=2)), {}
    stock = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, **kw: heads.append(k.shape[1]) or stock(q, k, v, **kw)
    )
    logits = {}
    for switch in (None, "0"):
        if switch is not None:
            monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", switch)
        heads: list[int] = []
        logits[switch], counts[switch] = run(lm, layout(TEXT, lm.scheme)), set(heads)
    config = lm.base.config
    assert counts == {None: {config.num_key_value_heads}, "0": {config.num_attention_heads}}
    assert (logits[None] - logits["0"]).abs().max() < 1e-10


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", [Concat(n_comp=2), Merge(n_comp=2)], ids=["concat", "merge"])
def test_few_queries_are_regrouped_and_the_switch_is_left_as_it_was(scheme: Scheme, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for grouped heads are slow for few queries, or get copies; heads of a group as positions give the same, for uneven rows."""
    monkeypatch.delenv(grouped.GROUPED, raising=False)
    lm, calls = tiny_lm("llama", scheme).to(device), []
    stock = torch.nn.functional.scaled_dot_product_attention

    def spied(q: Tensor, k: Tensor, v: Tensor, **more: object) -> Tensor:
        calls.append((q.shape[1:3], k.shape[1]))
        return stock(q, k, v, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    heads = lm.base.config.num_key_value_heads
    groups = lm.base.config.num_attention_heads // heads
    assert groups > 1

    def answers() -> list[Tensor]:
        memory = lm.memory(rows=2)
        memory.run([[Segment((5, 9, 3))], [Segment((7, 10, 4, 4))]])
        return [memory.fork().read((5,)), memory.fork().read((5, 6)), memory.read(LONG)]

    few, shapes = answers(), set(calls)
    wanted = {(2 * groups, True)} | ({(groups, True)} if device == "cpu" else set())  # one query alone is left to CUDA's own kernel
    assert {(s[1], s[0] == heads == kv) for s, kv in shapes} >= wanted and few[0].device.type == device
    assert grouped.GROUPED not in os.environ
    monkeypatch.setattr(grouped, "FEW", 0)
    calls.clear()
    plain = answers()
    assert not any(s[0] == heads for s, _ in calls)  # keys may be copies for every head here
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(few, plain, strict=True))


def test_few_queries_are_scaled_and_what_else_is_asked_for_is_left_to_transformers() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 8, dtype=torch.float64) for heads, n in ((6, 3), (2, 11), (2, 11)))
    mask = torch.rand(2, 1, 3, 11) > 0.4
    mask[..., 0] = True
    wide = (x.repeat_interleave(3, 1) for x in (k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, *wide, attn_mask=mask, scale=0.3).transpose(1, 2)
    found = grouped.few(q, k, v, mask, scaling=0.3)
    assert found is not None and torch.allclose(found, wanted, atol=1e-12)
    for name in grouped.SPECIAL:
        assert grouped.few(q, k, v, mask, scaling=0.3, **{name: object()}) is None
        assert grouped.few(q, k, v, mask, scaling=0.3, **{name: None}) is not None


def test_cudnn_is_left_out_on_a_gpu() -> None:
    """And is there again afterwards, whatever happened; where a person has switched it off, it stays off."""
    on = torch.backends.cuda.cudnn_sdp_enabled
    before = on()
    try:
        for switch in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(switch)
            with suppress(ZeroDivisionError), without_cudnn(torch.device("cuda")):
                assert not on()
                raise ZeroDivisionError
            assert on() is switch
            with without_cudnn(torch.device("cpu")):
                assert on() is switch
            with torch.no_grad(), without_cudnn(torch.device("cuda")):
                assert not on()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_every_attention_of_ours_runs_without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer, where the stock function is called: what is run again for its gradient (checkpointing) is so too."""
    asked: list[str] = []

    @contextmanager
    def told(device: torch.device) -> Iterator[None]:
        asked.append(device.type)
        yield

    monkeypatch.setattr(attention, "without_cudnn", told)
    monkeypatch.setattr(encoder_attention, "without_cudnn", told)
    lm, t5 = tiny_lm("llama", Concat(n_comp=2)), tiny_lm("t5", Concat(n_comp=2), positions="base")
    run(lm, layout(TEXT, lm.scheme))
    assert asked == ["cpu"] * lm.n_layers
    asked.clear()
    t5.memory().run([[Segment((5, 9, 3))]])
    assert asked == ["cpu"] * t5.base.config.num_layers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN's kernels run on a GPU alone")
def test_the_gradient_under_a_mask_is_a_number_on_a_gpu() -> None:
    """The case of pytorch/pytorch#196678: 704 tokens, every score about -120."""
    torch.manual_seed(0)
    n, d = 704, 64
    q, k, v = (torch.randn(1, 1, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    q, k = q * 0.1, k * 0.1
    q[..., 0], k[..., 0] = 1.0, -120 * d**0.5
    query = q.requires_grad_()
    mask = torch.ones(n, n, dtype=torch.bool, device="cuda").tril()[None, None]
    with without_cudnn(query.device):
        torch.nn.functional.scaled_dot_product_attention(query, k, v, attn_mask=mask).sum().backward()
    assert query.grad is not None and bool(query.grad.isfinite().all())


@pytest.mark.parametrize(("n", "dtype", "trained", "seen"), [
    (128, torch.bfloat16, True, torch.float32), (129, torch.bfloat16, True, torch.bfloat16),
    (128, torch.bfloat16, False, torch.bfloat16), (128, torch.float64, True, torch.float64),
])  # fmt: skip
def test_a_cpu_trains_its_attention_in_float32(n: int, dtype: torch.dtype, trained: bool, seen: torch.dtype) -> None:
    """Where the kernel's backward pass is the faster one so; what comes out has the model's dtype, and gradients reach its tensors."""
    torch.manual_seed(0)
    lm = tiny_lm("llama", Full()).to(dtype)
    kernel = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (torch.randn(1, heads, n, 8, dtype=dtype, requires_grad=trained) for heads in (4, 2, 2))
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    found: list[torch.dtype] = []

    def spied(query: Tensor, *args: object, **kwargs: object) -> Tensor:
        found.append(query.dtype)
        return kernel(query, *args, **kwargs)  # type: ignore[arg-type]

    attend = attention.ALL_ATTENTION_FUNCTIONS["ccm_sdpa"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
        out, _ = attend(lm.base.model.layers[0].self_attn, q, k, v, mask)
    assert found == [seen] and out.dtype == dtype
    if trained:
        out.sum().backward()
        assert all(x.grad is not None and x.grad.dtype == dtype for x in (q, k, v))
