"""One adapter for several numbers of comp tokens: drawn a micro-batch, exactly a plain scheme of that number, loaded with any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from context_memory import adapter, cli, plugins, records
from context_memory.batches import Batch, Collate, Rows, Schedule
from context_memory.compose import load as configured
from context_memory.config import Config
from context_memory.errors import UserError
from context_memory.job import prepare
from context_memory.loading import load
from context_memory.model import CompressedLM
from context_memory.plan import COMP
from context_memory.schemes.base import Scheme
from context_memory.testing import tiny_lm
from context_memory.text import Example, Segment
from context_memory.train import Result, train
from context_memory.trainer import Learner
from context_memory.weights import load_comp

KINDS = [s for key in ("concat", "merge", "gist") for s in plugins.find("schemes", key).variants()]  # type: ignore[attr-defined]
SCHEMES = [s for s in KINDS if not getattr(s, "cache", 0)]
RATIOS = ("scheme.n_comp=4", "training.n_comp=[1,2,4]")
SMALL = ("data.min_steps=3", "data.max_steps=3", "data.distractors=0", "data.max_train_samples=32", "training.eval_samples=4",
         "training.wandb=false", "model.dtype=float32", "training.batch_size=2", "training.log_steps=1")  # fmt: skip


LAST = Segment((9, 11, 2, 4), compress=False, target=True, loss=(True,) * 4)
TEXTS = {
    "long": (Segment((5, 9, 3)), Segment((7, 8, 2), target=True, loss=(True,) * 3), Segment((3,), target=True, loss=(True,)), LAST),
    "short": (Segment((4, 12, 13, 8, 2)), LAST),
}


class Encoded:
    """The part of an encoder that rows ask for, on texts that are segments already."""

    def segments(self, example: Example) -> tuple[Segment, ...]:
        return TEXTS[example.id]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy")


def config(toy: Path, at: Path, *more: str) -> Config:
    return configured([f"model={toy}", f"output={at}", *SMALL, "training.max_steps=6", *more])


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Through the command line, so that no evaluation needs to know more than the folder."""
    at = tmp_path_factory.mktemp("trained")
    given = [f"model={toy}", f"output={at}", *SMALL, *RATIOS, "training.max_steps=6", "training.lr=0.02", "run_id=any"]
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *given, "boundary=every", "boundary.n=9"])
    assert not end.value.code
    return Result(at / "tally" / "any", at / "tally" / "any" / "adapter", 6, True)


# ---- the draw ---------------------------------------------------------------------------------------------------------------


def test_draws_follow_from_seed_epoch_and_index_and_cover_the_set(toy: Path, tmp_path: Path) -> None:
    job = prepare(config(toy, tmp_path, *RATIOS))
    rows, t = job.schedule.rows, job.config.training
    first = [Schedule(rows, t, 99)[i] for i in range(64)]  # four epochs
    numbers = [batch.n_comp for batch in first]
    assert Schedule(rows, t, 99)[40] == first[40] and list(Schedule(rows, t).epoch(2)) == first[32:48]
    assert all(numbers.count(n) > 10 for n in (1, 2, 4)) and len(numbers) == sum(numbers.count(n) for n in (1, 2, 4))
    assert len({tuple(numbers[s : s + 16]) for s in (0, 16, 32, 48)}) == 4  # other draws in every epoch
    for other in (replace(t, n_comp=[4, 2, 1]), replace(t, n_comp=None)):
        assert [b.rows for b in map(Schedule(rows, other, 99).__getitem__, range(64))] == [b.rows for b in first]
        assert [Schedule(rows, other, 99)[i].n_comp for i in range(64)] == (numbers if other.n_comp else [None] * 64)
    assert [Schedule(rows, replace(t, seed=1), 99)[i].n_comp for i in range(64)] != numbers
    assert job.evaluation is not None and {job.evaluation[i].n_comp for i in range(len(job.evaluation))} == {None}


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_micro_batch_has_its_number_everywhere_and_fits_with_the_largest(toy: Path, tmp_path: Path, packing: str) -> None:
    room = ("training.batch_size=null", "training.tokens_per_batch=1500", "training.tokens_per_row=750", f"training.packing={packing}")
    job = prepare(config(toy, tmp_path, *RATIOS, "scheme=merge", "model.positions=base", *room))
    for i in range(8):
        batch = job.schedule[i]
        plan, largest = job.schedule.rows.stacked(batch), job.schedule.rows.stacked(Batch(batch.rows))
        boundaries = int((plan.groups[..., 0] >= 0).sum())
        assert int((plan.tokens.kind == COMP).sum()) == boundaries * (batch.n_comp or 0)
        assert int((largest.tokens.kind == COMP).sum()) == boundaries * 4 and largest.ids.numel() <= 1500
        assert (plan.labels >= 0).sum() == (largest.labels >= 0).sum()


# ---- the law ----------------------------------------------------------------------------------------------------------------


def learnt(lm: CompressedLM, batch: Batch, scheme: Scheme, loss: str, positions: str) -> tuple[float, list[torch.Tensor]]:
    """The loss of a micro-batch laid out for `scheme`, and the gradients of LoRA and of the first comp embedding."""
    examples = [Example("", "", id=name) for name in TEXTS]
    rows = Rows(examples, Encoded(), scheme, positions, "memory", 200)  # type: ignore[arg-type]
    learner = Learner(lm, loss).train()
    learner.zero_grad()
    value = learner(**Collate(rows, teacher=loss == "distill")([batch]))["loss"]
    value.backward()
    gradients = [p.grad for n, p in lm.named_parameters() if p.requires_grad and "lora" in n and p.grad is not None]
    assert gradients and lm.comp.weight.grad is not None
    return float(value.detach()), [*gradients, lm.comp.weight.grad]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize(("loss", "positions"), [("ce", "skip"), ("ce", "base"), ("distill", "skip")])
def test_a_micro_batch_of_one_comp_token_is_a_plain_scheme_of_one(scheme: Scheme, loss: str, positions: str) -> None:
    """Float64. Controls: another first embedding, and the number that the scheme has, are other losses."""
    wide, plain = replace(scheme, n_comp=3), replace(scheme, n_comp=1)  # type: ignore[type-var]
    many, one = (tiny_lm("llama", s, positions=positions) for s in (wide, plain))
    state = {k: v[:1] if k == "comp.weight" else v[:, :, :1] if "comp.rate" in k else v for k, v in many.state_dict().items()}
    one.load_state_dict(state)
    rows = [[1]] if scheme.max_steps else [[0, 1], [1]]  # packed and padded
    drawn, gradients = learnt(many, Batch(rows, 1), wide, loss, positions)
    want, theirs = learnt(one, Batch(rows), plain, loss, positions)
    assert drawn == pytest.approx(want, abs=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(gradients[:-1], theirs[:-1], strict=True))
    assert torch.allclose(gradients[-1][:1], theirs[-1], atol=1e-12) and not gradients[-1][1:].any()
    assert abs(learnt(many, Batch(rows), wide, loss, positions)[0] - want) > 1e-6
    with torch.no_grad():
        many.comp.weight[0] += 1
    assert abs(learnt(many, Batch(rows, 1), wide, loss, positions)[0] - want) > 1e-6


# ---- training, loading, evaluating ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("scheme=merge", "training.loss=distill")], ids=["concat", "merge distill"])
def test_a_stopped_run_goes_on_with_the_same_draws(toy: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    common = (*RATIOS, *more, "training.accumulate=2", "training.lr=0.003", "run_id=x", "training.max_steps=8")
    whole = train(config(toy, tmp_path / "a", *common))
    stopped = train(config(toy, tmp_path / "b", *common, "training.max_minutes=0"))
    assert not stopped.finished and stopped.steps == 1
    went_on = train(config(toy, tmp_path / "b", *common))
    logs = [[json.loads(line) for line in (r.folder / "log.jsonl").read_text().splitlines()] for r in (whole, went_on)]
    a, b = ([e["loss"] for e in log if "loss" in e] for log in logs)
    assert b == pytest.approx(a, rel=1e-4) and went_on.final_loss == pytest.approx(whole.final_loss, abs=1e-4)
    with pytest.raises(UserError, match=r"started with training\.n_comp=\[1, 2, 4\], got training\.n_comp=None"):
        train(config(toy, tmp_path / "b", *common, "training.n_comp=null"))


def test_any_number_of_the_set_is_loaded_and_no_other(toy: Path, trained: Result, tmp_path: Path) -> None:
    table = load_comp(trained.adapter)["weight"]
    assert len(table) == 4 and adapter.read_card(trained.adapter).n_comp == [1, 2, 4]
    concat = plugins.find("schemes", "concat")
    for n in (1, 2, 4):
        lm = CompressedLM.load(str(toy), trained.adapter, scheme=concat(n_comp=n), dtype="float32")
        assert torch.equal(lm.comp.weight, table[:n])
        memory = lm.memory()
        memory.write("Tom has 7 coins.")
        memory.write("Mia has 9.")
        assert memory.tokens == 2 * n
    assert load(str(toy), trained.adapter).scheme.n_comp == 4
    with pytest.raises(UserError, match=r"has 1 or 2 or 4 comp token\(s\), the scheme 3; use scheme.n_comp=1 or 2 or 4\."):
        load(str(toy), trained.adapter, scheme=concat(n_comp=3))  # type: ignore[arg-type]
    memory.save(tmp_path / "coins.ccm")
    with pytest.raises(UserError, match=r"written with scheme 'Concat\(n_comp=4"):
        load(str(toy), trained.adapter, scheme=concat(n_comp=1), dtype="float32").open(tmp_path / "coins.ccm")  # type: ignore[arg-type]


def test_a_card_that_claims_more_than_there_is(toy: Path, trained: Result, tmp_path: Path) -> None:
    copy = adapter.copy(trained.adapter, tmp_path / "copy")
    card = json.loads((copy / adapter.CARD).read_text())
    card["config"]["training"]["n_comp"] = [8]
    (copy / adapter.CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"has 4 comp embedding\(s\) and its card says 8"):
        load(str(toy), copy, scheme=plugins.make("schemes", "concat", n_comp=8))  # type: ignore[arg-type]


def test_a_sweep_is_the_curve(
    toy: Path, trained: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ccm: Callable[[list[str]], None] = cli.main
    common = ["evaluate", "--adapter", str(trained.adapter), f"model={toy}", "model.dtype=float32", "evaluation.max_samples=2",
              "generation.max_new_tokens=24"]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        ccm([*common, "--sweep", "scheme.n_comp=1,2,4", "--out", "curve"])
    assert not end.value.code, capsys.readouterr().err
    rows = {r.name: r for r in records.gather([Path("curve")])}
    assert list(rows) == ["full", *(f"scheme.n_comp={n}" for n in (1, 2, 4)), "nothing"]
    peaks = [sum(p.target_peak for p in rows[f"scheme.n_comp={n}"].lines) for n in (1, 2, 4)]
    nlls = {sum(p.nll or 0 for p in r.lines) for r in rows.values()}
    assert peaks == sorted(set(peaks)) and len(nlls) == 5
    with pytest.raises(SystemExit) as end:
        ccm([*common, "--sweep", "scheme.n_comp=1,3", "--out", "refused"])
    assert end.value.code == 2 and "has 1 or 2 or 4 comp token(s), the scheme 3" in capsys.readouterr().err


# ---- what is refused, and what a dry run says -------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", ["[1,2]", "[1,2,8]", "[0,4]", "[4,4]"])
def test_a_set_that_is_not_right_is_told(
    toy: Path, tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", f"model={toy}", *SMALL, "scheme.n_comp=4", f"training.n_comp={numbers}"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "scheme.n_comp the largest of them; got training.n_comp=[" in said and "Traceback" not in said
    prepare(config(toy, tmp_path, "scheme=full", "training.n_comp=[]"))  # control: none
    with pytest.raises(UserError, match=r"scheme\.cache=20 is shared with as many comp tokens as there are"):
        prepare(config(toy, tmp_path, *RATIOS, "scheme.cache=20"))


def test_a_dry_run_says_the_upper_bound(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for name, more in {"any": RATIOS, "most": RATIOS[:1]}.items():
        with pytest.raises(SystemExit) as end:
            cli.main(["train", f"model={toy}", f"output={tmp_path}", *SMALL, *more, "training.max_steps=6", "--dry-run"])
        assert not end.value.code
        said[name] = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert said["any"]["data"] == said["most"]["data"] and said["any"]["steps"] == said["most"]["steps"]
    assert all("as if every micro-batch had 4 comp tokens" in said["any"][x] for x in ("time", "memory"))
    assert not any("at most" in line for line in said["most"].values())
