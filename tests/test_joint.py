"""Two adapters learnt at once: what is trained side by side is what two ordinary folders give when they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toys
from context_memory.adapter import read_card
from context_memory.compose import load as compose
from context_memory.config import Config
from context_memory.errors import UserError
from context_memory.job import prepare
from context_memory.loading import load
from context_memory.plan import layout
from context_memory.schemes.full import Full
from context_memory.text import Segment
from context_memory.train import train
from context_memory.trainer import put_back, trained

TEXT = [Segment((5, 9, 3, 1)), Segment((7, 8, 2), target=True), Segment((4, 6, 30), compress=False, target=True)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy-llama")


def config(toy: Path, at: Path, *overrides: str) -> Config:
    data = ["data.min_steps=3", "data.max_steps=3", "data.distractors=0", "data.max_train_samples=8", "training.eval_samples=4"]
    small = ["model.dtype=float32", "model.lora_r=2", "training.batch_size=2", "training.max_steps=3", "training.wandb=false"]
    return compose([f"model.name={toy}", f"output={at}", "model.joint=true", "scheme=concat", *data, *small, *overrides])


def test_it_is_what_the_two_folders_give(toy: Path, tmp_path: Path) -> None:
    """The task adapter merged, the compression adapter attached; in one pass with comp tokens, and with the full context."""
    job = prepare(config(toy, tmp_path, "training.lr=5e-2"))
    before = {n: p.clone() for n, p in job.lm.named_parameters()}
    run = train(job.config, job.lm)
    moved = {n for n, p in job.lm.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= set(trained(job.lm)) and {"task", "default"} <= {part for n in moved for part in n.split(".")}
    together, apart = job.lm, load(str(toy), run.adapter, dtype="float32")
    plan = layout(TEXT, together.scheme)
    with torch.no_grad():
        assert torch.allclose(together(plan), apart(plan), atol=1e-4)
        assert not torch.allclose(together(plan), together.logits(together.hidden(plan, adapter=False)), atol=1e-2)  # control
    card, task = read_card(run.adapter), read_card(run.folder / "task")
    assert card.task is not None and (run.adapter / card.task.path).resolve() == (run.folder / "task").resolve()
    assert task.is_task and not card.is_task and not card.config["model"]["joint"]
    assert str(tmp_path) not in (run.folder / "task" / "ccm.json").read_text()
    whole = layout([Segment(s.ids, compress=False) for s in TEXT], full := Full())
    frozen = together.under(full)
    with torch.no_grad():
        merged = load(str(toy), run.adapter, scheme=full, dtype="float32")(whole)
        plain = load(str(toy), dtype="float32")(whole)
        assert torch.equal(frozen.logits(frozen.hidden(whole, adapter=False)), plain)
        assert torch.allclose(together(whole), merged, atol=1e-4) and not torch.allclose(merged, plain, atol=1e-2)


def test_both_are_gone_on_with(toy: Path, tmp_path: Path) -> None:
    run = train(config(toy, tmp_path, "training.lr=5e-2", "run_id=first"))
    job = prepare(config(toy, tmp_path, f"model.adapter={run.folder / 'task'}", f"model.start={run.adapter}"))
    fresh = prepare(config(toy, tmp_path))
    plan = layout(TEXT, job.lm.scheme)
    with torch.no_grad():
        assert torch.allclose(job.lm(plan), load(str(toy), run.adapter, dtype="float32")(plan), atol=1e-4)
        put_back(fresh.lm, trained(job.lm))
        assert torch.equal(fresh.lm(plan), job.lm(plan))


def test_every_token_is_learnt_and_reaches_the_task_adapter(toy: Path, tmp_path: Path) -> None:
    """Those before the first compression too, which no compression adapter reaches."""
    alone, both = (prepare(config(toy, tmp_path, f"model.joint={x}")) for x in ("false", "true"))
    labels = [int((job.schedule.rows.plan(0).labels >= 0).sum()) for job in (alone, both)]
    assert labels[0] < labels[1]
    both.lm.train()
    plan = layout([Segment((5, 9, 3, 1), compress=False)], both.lm.scheme)
    both.lm(plan).sum().backward()
    reached = {n for n, p in trained(both.lm).items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached and all(".task." in n for n in reached)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheme=full"], "use a scheme with comp tokens"),
        (["scheme=nothing"], "use a scheme with comp tokens"),
        (["model.gate=all"], "model.gate=comp"),
        (["model.adapter={old}"], "give that as model.start"),
        (["model.adapter={other}"], "same shape, other numbers"),
    ],
)
def test_bad_input(toy: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    _, old = toys.adapters(tmp_path / "old", toy)
    other, _ = toys.adapters(tmp_path / "other", toys.folder(tmp_path / "toy-llama", seed=3))
    with pytest.raises(UserError, match=message):
        prepare(config(toy, tmp_path, *(o.format(old=old, other=other) for o in overrides)))
