"""A family is one file: the one that docs/families.md writes obeys the laws; an unknown architecture is told where that page is."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Phi3Config,
)

import reference
import toys
from context_memory import cli, families, plugins
from context_memory.errors import UnknownFamily, UserError
from context_memory.families.base import PAGE, Family, family_of
from context_memory.model import CompressedLM
from context_memory.plan import layout
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.schemes.merge import Merge
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Segment

torch.set_num_threads(1)
EXACT = 1e-10
DOCUMENT = Path(__file__).resolve().parents[1] / PAGE
LONG = tuple(i % 41 for i in range(20))
TEXT = [
    Segment((5, 9, 3), pins=(True, False, False)), Segment((7,)), Segment((1, 2, 8, 4)), Segment(LONG, compress=False, target=True),
]  # fmt: skip


# ---- the page, followed -----------------------------------------------------------------------------------------------------


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file that the page writes, in a folder of families; its key."""
    page = DOCUMENT.read_text(encoding="utf-8")
    (found,) = re.findall(r"`src/context_memory/families/(\w+)\.py` .*?```python\n(.*?)```", page, re.S)
    key, source = found
    assert key not in plugins.keys("families"), f"{key} is shipped by now: {PAGE} needs an architecture that is not"
    (tmp_path / f"{key}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    plugins.keys.cache_clear()
    yield key
    plugins.keys.cache_clear()
    sys.modules.pop(f"context_memory.families.{key}", None)


def gaps(lm: CompressedLM) -> tuple[float, float]:
    """How far one pass is from step by step, and from the recursion by hand."""
    plan, memory = layout(TEXT, lm.scheme), lm.memory()
    with torch.no_grad():
        whole = lm(plan)[plan.tokens.raw]
        steps = torch.cat([lm.logits(memory.run([[s]])[0, : len(s.ids)]) for s in TEXT])
    return float((whole - steps).abs().max()), float((whole - reference.logits(lm, TEXT)).abs().max())


def idle(lm: CompressedLM) -> bool:
    """Whether text without comp tokens gives the bits of the stock model."""
    with torch.no_grad():
        stock = reference.stock(lm, window=True)(input_ids=torch.tensor([LONG])).logits
        return torch.equal(lm(layout([Segment(LONG, compress=False)], lm.scheme)), stock)


@pytest.mark.parametrize("scheme", [Concat(n_comp=2), Merge(n_comp=1), Full()], ids=str)
def test_the_family_of_the_page_obeys_the_laws(followed: str, scheme: Scheme) -> None:
    assert followed in {family for family, _ in tiny_lms()}  # what every law is parametrized with
    lm = tiny_lm(followed, scheme)
    assert idle(lm)
    assert max(gaps(lm)) < EXACT


def test_control_what_the_page_says_is_needed(followed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its head, or with one mask for all layers, the family is found out."""
    lm = tiny_lm(followed, Concat(n_comp=2))
    monkeypatch.setattr(type(lm.family), "typed", False)
    assert gaps(lm)[1] > 1e-3
    monkeypatch.setattr(type(lm.family), "head", Family.head)
    assert not idle(lm)


def test_the_text_model_is_taken_out_as_the_page_says(tmp_path: Path) -> None:
    """Of a random Gemma 3 with images: its folder is of a known family, and its logits are those of the whole."""
    page = DOCUMENT.read_text(encoding="utf-8")
    (code,) = re.findall(r"## A model with images or sound\n.*?```python\n(.*?)```", page, re.S)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**shape, "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = Gemma3Config(text_config=text, vision_config={**shape, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=1)
    AutoModelForMultimodalLM.from_config(config).save_pretrained(tmp_path / "whole")
    toys.tokenizer().save_pretrained(tmp_path / "whole")
    names: dict[str, Any] = {"SOURCE": tmp_path / "whole", "FOLDER": tmp_path / "text"}
    exec(code, names)
    taken, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "text"), torch.tensor([[1, 5, 9, 7]])
    assert family_of(taken.config.model_type).causal and (tmp_path / "text" / "tokenizer.json").is_file()
    with torch.no_grad():
        stock, drawn = names["whole"](input_ids=ids).logits, Gemma3ForCausalLM.from_pretrained(tmp_path / "whole")
        assert torch.equal(taken(ids).logits, stock) and not torch.allclose(drawn(ids).logits, stock, atol=1e-2)  # the control


def test_the_page_names_every_family() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    said = re.findall(r"`(\w+)`", page.partition("Known now: ")[2].partition(". ")[0])
    assert said == list(plugins.keys("families"))


@pytest.mark.parametrize("family", plugins.keys("families"))
def test_the_modules_that_may_get_a_lora_are_there(family: str) -> None:
    """PEFT is content with one name that fits. `all_linear` is every linear layer of the decoder layers, `targets` some of them."""
    kind = family_of(family)
    for layer in kind.layers(kind.tiny()):
        there = {name.rpartition(".")[2] for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
        assert set(kind.all_linear) - {"wi"} == there > set(kind.targets) > set()  # (a feed-forward layer of the first T5)


# ---- what does not fit ------------------------------------------------------------------------------------------------------


def test_an_unknown_architecture_is_told_where_the_page_is() -> None:
    base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"'gpt2' is not known here; known: .*llama.*families/gpt2\.py: docs/families\.md shows") as e:
        CompressedLM(base, None, Full())
    assert isinstance(e.value, LookupError) and DOCUMENT.is_file()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("gemma3", r"take the text model out, gemma3_text, which is known here: "), ("llava", r"text_config .* known here \(.*llama.*\): "),
     ("qwen2_vl", r"families/qwen2_vl\.py: "), ("clip", r"families/clip\.py: ")],
)  # fmt: skip
def test_a_model_with_images_is_told_to_leave_them(kind: str, said: str) -> None:
    """Where the text model is of a known family, or may be; else (the controls) a file is needed."""
    with pytest.raises(UnknownFamily, match=f"architecture '{kind}' .*{said}docs/families\\.md shows how"):
        family_of(kind)


@pytest.mark.parametrize("command", [["generate", "What?"], ["train", "--dry-run", "--no_wandb"]], ids=["generate", "train"])
@pytest.mark.parametrize(
    ("kind", "said"), [("gpt2", PAGE), ("gemma3", PAGE), ("bart", PAGE), ("nonsense", "does not recognize"), (None, "model_type")]
)
def test_the_command_line_says_so_before_it_reads_weights(
    kind: str | None, said: str, command: list[str], toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind} if kind else {}))
    with pytest.raises(SystemExit) as end:
        cli.main([*command, f"model={folder}", "data=tally"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and said in err.replace("\n", " ") and "Traceback" not in err


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy")


@pytest.mark.parametrize("family", plugins.keys("families"))
def test_a_model_that_sees_what_comes_is_refused(family: str) -> None:
    config = family_of(family).tiny().config
    family_of(family).check(config)  # the control
    config.use_bidirectional_attention = True
    with pytest.raises(ValueError, match="attends to later tokens"):
        family_of(family).check(config)


def test_longrope_is_refused() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(hidden_size=32, num_attention_heads=4, max_position_embeddings=512, rope_parameters=rope, pad_token_id=0)
    with pytest.raises(ValueError, match="'longrope' changes its frequencies"):
        family_of("phi3").check(config)


# ---- comp tokens in the model's scale ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_comp_embedding_is_a_row_like_any_other(family: str) -> None:
    """A comp embedding that equals a token's row goes into the layers as that token does. Control: unscaled it does not."""
    lm = tiny_lm(family, Concat(n_comp=1))
    plan = layout([Segment((5, 9)), Segment((7,), compress=False)], lm.scheme)
    with torch.no_grad():
        lm.comp.weight[0] = lm.base.get_input_embeddings().weight[11]
        token = lm.family.embed(lm.base, torch.tensor([11]))[0]
        put = lm.comp(lm.family.embed(lm.base, plan.ids), plan)[plan.tokens.comp][0]
        assert torch.equal(put, token)
        lm.comp.scale = 1.0
        assert not torch.allclose(lm.comp(lm.family.embed(lm.base, plan.ids), plan)[plan.tokens.comp][0], token)
