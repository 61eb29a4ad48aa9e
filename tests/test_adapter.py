"""Adapter folders: saved == never saved, stock PEFT reads them, and a folder that is not right says what is wrong."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import toys
from context_memory import adapter, loading, rows
from context_memory.compose import load as configured
from context_memory.data._licences import non_commercial
from context_memory.errors import UserError
from context_memory.loading import load, numbers
from context_memory.model import CompressedLM
from context_memory.plan import Plan, layout
from context_memory.plugins import make
from context_memory.text import Segment


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("models") / "toy-llama")


@pytest.fixture(scope="module")
def made(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return toys.adapters(tmp_path_factory.mktemp("adapters"), toy)


@pytest.fixture
def pair(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Task and compression adapter, to be spoilt."""
    for folder in made:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / made[0].name, tmp_path / made[1].name


def plan(lm: CompressedLM) -> Plan:
    return layout([Segment((5, 6, 7, 8)), Segment((9, 10, 11)), Segment((12, 13, 14), compress=False)], lm.scheme)


SHIPPED = Path(__file__).resolve().parents[1] / "adapters"
RAW = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


def plain(lm: CompressedLM) -> Tensor:
    """Logits of a text without comp tokens."""
    return lm(layout([Segment(tuple(RAW[0].tolist()), compress=False)], lm.scheme))


def test_the_hash_of_weights_is_remembered_as_long_as_they_are_there(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCM_MODELS", str(tmp_path / "cache"))
    first, second, third = (Path(shutil.copytree(toy, tmp_path / name)) for name in "abc")
    said = adapter.fingerprint(first)
    assert said.startswith("weights:") and said == adapter.fingerprint(second)
    shutil.rmtree(first)
    monkeypatch.setattr(adapter, "sha256", lambda file: "read again")
    assert adapter.fingerprint(second) == said != adapter.fingerprint(third)
    notes = json.loads((tmp_path / "cache" / "fingerprints.json").read_text())
    assert {Path(json.loads(stamp)[0][0]).parent.name for stamp in notes} == {"b", "c"}


# ---- saved == never saved ---------------------------------------------------------------------------------------------------


def test_loaded_is_what_was_saved(toy: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    config = configured(
        [f"model={toy}", f"model.adapter={made[0]}", "model.dtype=float32", "scheme=merge", "pins=[sink]", "model.positions=base"]
    )
    lm = loading.build(config).eval()
    with torch.no_grad():
        for p in lm.parameters():
            if p.requires_grad:
                p.normal_(std=0.2)
        folder = adapter.save(lm, tmp_path / "a", loading.card_of(lm, config, tmp_path / "a"))
        back = load(str(toy), folder, dtype="float32")
        assert torch.equal(back(plan(back)), lm(plan(lm)))
    assert (back.scheme, back.positions, back.gate) == (lm.scheme, "base", "comp")
    assert back.card is not None and back.card.pins == {"sink": {"budget": 1}} and back.card.config["scheme"]["name"] == "merge"
    assert CompressedLM.load(str(toy), adapter=folder, dtype="float32").scheme == lm.scheme


@pytest.mark.parametrize("scheme", ["full", "concat"])
def test_a_rounded_adapter_is_smaller_and_computes_in_float32(toy: Path, scheme: str, tmp_path: Path) -> None:
    config = configured([f"model={toy}", "model.dtype=float32", f"scheme={scheme}"])
    lm = loading.build(config).eval()
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.2)
    card = loading.card_of(lm, config, tmp_path / "a")
    exact, small = adapter.save(lm, tmp_path / "exact", card), adapter.save(lm, tmp_path / "small", card, torch.float16)
    assert (small / adapter.LORA).stat().st_size < 0.7 * (exact / adapter.LORA).stat().st_size
    assert (small / adapter.COMP).is_file() == (scheme == "concat")
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_" in name:
                p.copy_(p.half())
        back = load(str(toy), small, dtype="float32")
        assert {p.dtype for p in back.parameters()} == {torch.float32}
        torch.testing.assert_close(back(plan(back)), lm(plan(lm)), rtol=1e-5, atol=1e-5)  # a task adapter is merged, which rounds


def test_the_task_adapter_is_merged_in_float32_and_rounded_once(toy: Path, made: tuple[Path, Path]) -> None:
    base = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32)
    stock = PeftModel.from_pretrained(base, str(made[0])).merge_and_unload()
    lm = load(str(toy), made[1], dtype="bfloat16")
    rounded = dict(stock.named_parameters())
    mine = {n.replace(".base_layer", ""): p for n, p in lm.base.named_parameters() if "lora_" not in n}
    assert mine.keys() == rounded.keys()
    assert all(torch.equal(p, rounded[n].to(torch.bfloat16)) for n, p in mine.items())
    assert lm.family.decoder(lm.base).rotary_emb.inv_freq.dtype == torch.float32
    assert {p.dtype for n, p in lm.named_parameters() if "lora_" in n or n == "comp.weight"} == {torch.float32}


def test_auto_is_a_dtype_that_the_processor_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    for facts, wanted in (
        ({"architecture": "x86_64", "avx512_bf16": False}, torch.float32),
        ({"architecture": "x86_64", "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64"}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda facts=facts: facts)
        assert numbers("auto") == wanted
        assert numbers("auto", "cuda:0") == torch.bfloat16
    assert numbers("float16") == torch.float16
    with pytest.raises(UserError, match="must be auto, bfloat16, float16 or float32, got 'int8'"):
        numbers("int8")


def test_idle_is_the_frozen_model(toy: Path, made: tuple[Path, Path]) -> None:
    task, both = load(str(toy), made[0], dtype="float32"), load(str(toy), made[1], dtype="float32")
    full = load(str(toy), made[1], dtype="float32", scheme=make("schemes", "full"))  # type: ignore[arg-type]
    bare = load(str(toy), dtype="float32")
    assert task.peft is None and full.peft is None and both.peft is not None
    with torch.no_grad():
        assert torch.equal(plain(both), plain(task)) and torch.equal(plain(full), plain(task))
        assert not torch.equal(plain(bare), plain(task))  # control


# ---- stock PEFT -------------------------------------------------------------------------------------------------------------


def test_stock_peft_reads_a_task_adapter(toy: Path, made: tuple[Path, Path]) -> None:
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32), str(made[0])).eval()
    mine = load(str(toy), made[0], dtype="float32", merged=False)
    with torch.no_grad():
        assert torch.allclose(plain(mine), stock(RAW).logits, atol=1e-5)
        assert torch.allclose(plain(load(str(toy), made[0], dtype="float32")), stock(RAW).logits, atol=1e-4)


def test_stock_peft_reads_a_compression_adapter(toy: Path, made: tuple[Path, Path]) -> None:
    base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32), str(made[0])).merge_and_unload()
    stock = PeftModel.from_pretrained(base, str(made[1])).eval()
    everywhere, gated = (load(str(toy), made[1], dtype="float32", gate=gate) for gate in ("all", "comp"))
    with torch.no_grad():
        assert torch.allclose(plain(everywhere), stock(RAW).logits, atol=1e-5)
        assert not torch.allclose(plain(gated), stock(RAW).logits, atol=1e-3)  # control
    assert not any("comp" in key or "embed" in key for key in load_file(made[1] / adapter.LORA))


def test_nothing_in_the_folder_names_a_machine(toy: Path, made: tuple[Path, Path]) -> None:
    for folder in made:
        text = "".join((folder / name).read_text() for name in (adapter.CARD, adapter.LORA_CONFIG, adapter.PAGE))
        assert str(toy.parent) not in text and str(folder.parent) not in text
        assert json.loads((folder / adapter.LORA_CONFIG).read_text())["base_model_name_or_path"] == "toy-llama"
    assert json.loads((made[1] / adapter.CARD).read_text())["task"]["path"] == "../task"


@pytest.mark.parametrize(
    ("settings", "licence", "follows"),
    [
        (["data=tally"], "Apache-2.0", "Apache-2.0 |"),
        (["data=personal"], "non-commercial", "the adapter is for non-commercial use |"),
        (["data=mixture", "data.parts=[dialogue,tally]", "data.settings={dialogue:{corpus:dailydialog}}"],
         "CC-BY-NC-SA-4.0 + Apache-2.0", "the adapter is for non-commercial use |"),
    ],
)  # fmt: skip
def test_the_licence_of_the_data_goes_along(settings: list[str], licence: str, follows: str, toy: Path, tmp_path: Path) -> None:
    config = configured([f"model={toy}", "model.dtype=float32", "model.lora_r=2", *settings])
    lm = loading.build(config)
    adapter.save(lm, tmp_path / "a", loading.card_of(lm, config, tmp_path / "a"))
    page = (tmp_path / "a" / adapter.PAGE).read_text()
    assert licence in adapter.read_card(tmp_path / "a").licence and follows in page
    assert all(f"| {row} |" in page for row in ("base model", "scheme", "data", "recipe"))
    later = replace(config, model=replace(config.model, adapter=str(tmp_path / "a")), data=configured(["data=gsm8k"]).data)
    assert licence in loading.card_of(lm, later, tmp_path / "b").licence  # what goes on from it keeps what it was trained on


# ---- what is not right ------------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_model_is_refused(toy: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    other = toys.folder(tmp_path / "other-llama", seed=1)
    with pytest.raises(UserError, match=r"was trained on 'toy-llama' .*, weights .*, got 'other-llama' .*: same shape, other numbers"):
        load(str(other), made[0])
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.config.layer_types = None
    shutil.copytree(other, tmp_path / "low-llama")
    model.save_pretrained(tmp_path / "low-llama")
    with pytest.raises(UserError, match=r"'toy-llama' \(2 layers, hidden size 32\), got 'low-llama' \(1 layers"):
        load(str(tmp_path / "low-llama"), made[1])


@pytest.mark.parametrize("name", [adapter.LORA, adapter.LORA_CONFIG, adapter.COMP])
def test_a_missing_truncated_or_tampered_file_is_named(toy: Path, pair: tuple[Path, Path], name: str) -> None:
    file = pair[1] / name
    whole = file.read_bytes()
    for spoilt in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(spoilt)
        with pytest.raises(UserError, match=rf"concat': {name} is truncated or changed"):
            load(str(toy), pair[1])
    file.unlink()
    with pytest.raises(UserError, match=f"concat' has no {name}, which its ccm.json lists"):
        load(str(toy), pair[1])


def test_a_card_that_is_not_right_is_told(toy: Path, pair: tuple[Path, Path]) -> None:
    card = pair[1] / adapter.CARD
    tree = json.loads(card.read_text())
    card.write_text(json.dumps({**tree, "format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 1; update context-memory"):
        load(str(toy), pair[1])
    card.write_text(json.dumps({**tree, "files": {}}))
    with pytest.raises(UserError, match=r"ccm\.json does not list adapter_model\.safetensors"):
        load(str(toy), pair[1])
    card.write_text(card.read_text()[:50])
    with pytest.raises(UserError, match=r"ccm\.json is damaged"):
        load(str(toy), pair[1])
    card.unlink()
    with pytest.raises(UserError, match=r"has no ccm\.json"):
        load(str(toy), pair[1])
    with pytest.raises(UserError, match="no adapter folder at 'nowhere'"):
        load(str(toy), "nowhere")


def test_a_task_adapter_that_is_gone_or_another_is_told(toy: Path, pair: tuple[Path, Path]) -> None:
    weights = load_file(pair[0] / adapter.LORA)
    save_file({k: v + 1 for k, v in weights.items()}, pair[0] / adapter.LORA)
    with pytest.raises(UserError, match="on top of another task adapter than the one at"):
        load(str(toy), pair[1])
    shutil.rmtree(pair[0])
    with pytest.raises(UserError, match=r"on top of the task adapter '\.\./task', which is not there"):
        load(str(toy), pair[1])


def test_another_number_of_comp_tokens_is_refused(toy: Path, made: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"has 2 comp token\(s\), the scheme 3; use scheme.n_comp=2"):
        load(str(toy), made[1], scheme=make("schemes", "concat", n_comp=3))  # type: ignore[arg-type]


def test_a_quantized_base_is_not_merged_into(made: tuple[Path, Path]) -> None:
    base = torch.nn.Linear(2, 2)
    base.is_quantized = True  # type: ignore[assignment]
    with pytest.raises(UserError, match="cannot be merged into a quantized model"):
        loading.merge(base, made[0])


def test_a_save_that_fails_leaves_the_old_folder(toy: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(str(toy), pair[1], dtype="float32")
    assert lm.card is not None
    before = {p.name: p.read_bytes() for p in pair[1].iterdir()}

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(adapter, "save_file", fail)
    with pytest.raises(OSError, match="full"):
        adapter.save(lm, pair[1], lm.card)
    assert {p.name: p.read_bytes() for p in pair[1].iterdir()} == before


def test_a_copied_adapter_finds_its_task_adapter(toy: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    far = adapter.copy(pair[1], tmp_path / "some" / "where" / "else")
    assert adapter.read_card(far).task.path == "../../../task"  # type: ignore[union-attr]
    with torch.no_grad():
        a, b = (load(str(toy), folder, dtype="float32") for folder in (far, pair[1]))
        assert torch.equal(a(plan(a)), b(plan(b)))


@pytest.mark.parametrize("name", sorted(p.name for p in SHIPPED.iterdir()))
def test_the_commands_of_a_card_are_settings_that_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHIPPED.parent)
    (row,) = (line for line in (SHIPPED / name / "README.md").read_text().splitlines() if line.startswith("| use |"))
    commands = [shlex.split(c.partition("ccm evaluate ")[2]) for c in re.findall(r"`([^`]*)`", row) if "ccm evaluate " in c]
    assert commands
    for words in commands:
        words = [w for w in words if w != "--window"]
        adapter_ = words.pop(at) if (at := words.index("--adapter") + 1 if "--adapter" in words else 0) else None
        config = rows.configure([w for w in words if w != "--adapter"], None, adapter_)
        assert config.model.adapter == f"adapters/{name}"
        rows.check(config)


@pytest.mark.parametrize("name", sorted(p.name for p in SHIPPED.iterdir()))
def test_what_is_shipped_is_whole_and_has_a_card(name: str) -> None:
    card = adapter.read_card(SHIPPED / name)
    said = (SHIPPED / name / "README.md").read_text()
    assert all(line in said for line in ("| base model |", "| data |", "| recipe |", "| use |", "| results |", "| licence |"))
    assert card.licence and "unknown" not in card.licence and not non_commercial(card.licence)
    if card.task is not None:
        assert card.task.path == f"../{Path(card.task.path).name}"
        assert loading.task_of(SHIPPED / name, card) == (SHIPPED / card.task.path.removeprefix("../"))
