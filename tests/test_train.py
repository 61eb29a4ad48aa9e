"""Training: it learns, 4 x accumulate == 1 x 4, packing changes nothing, a killed run ends where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import toys
from context_memory import job as jobs
from context_memory import plugins
from context_memory.adapter import read_card
from context_memory.batches import Batch, Collate, Rows, Schedule, to_plan, to_tensors
from context_memory.compose import load
from context_memory.config import Config
from context_memory.data._files import part
from context_memory.errors import UserError
from context_memory.job import Job, prepare
from context_memory.loading import build
from context_memory.overrides import written
from context_memory.plan import IGNORE, layout
from context_memory.schemes.full import Full
from context_memory.text import Segment
from context_memory.train import Result, run_folder, train
from context_memory.trainer import MARKER, CcmTrainer, Learner, newest, trained

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "data.min_steps=3",
    "data.max_steps=3",
    "data.distractors=0",
    "data.max_train_samples=64",
    "training.eval_samples=8",
    "training.wandb=false",
]
"""Problems of some 200 characters, which are the toy's tokens."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy-llama")


def config(toy: Path, at: Path, *overrides: str) -> Config:
    size = ["model.dtype=float32", "training.batch_size=2", "training.max_steps=6", "training.lr=3e-3", "training.log_steps=1"]
    return load([f"model.name={toy}", f"output={at}", *SHORT, *size, *overrides])


def gradients(job: Job, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of the loss of these micro-batches, each divided by the labels of all of them."""
    learner = Learner(job.lm, job.config.training.loss)
    learner.train()
    learner.zero_grad()
    labels = sum(int((b["labels"] >= 0).sum()) for b in batches)
    for batch in batches:
        learner(num_items_in_batch=labels, **batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in trained(learner).items() if p.grad is not None}


def randomised(job: Job) -> Job:
    """LoRA's B starts at zero; here everything counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in trained(job.lm).items():
            if "lora" in name:
                p.normal_(std=0.2)
    return job


def losses(run: Result) -> list[float]:
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return [e["loss"] for e in entries if "loss" in e]


# ---- it learns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [["scheme=full"], ["scheme=concat"], ["scheme=merge", "model.gate=all"], ["scheme=concat", "training.loss=distill"]],
)
def test_the_loss_goes_down(toy: Path, tmp_path: Path, overrides: list[str]) -> None:
    steps = [
        "training.max_steps=40",
        "training.eval_steps=20",
        "data.max_train_samples=4",
        "training.lr=2e-2",
        "training.patience=0",
    ]
    run = train(config(toy, tmp_path, *steps, *overrides))
    seen = losses(run)
    assert run.finished and run.steps == 40 == len(seen)
    assert sum(seen[-5:]) < 0.9 * sum(seen[:5])
    assert (run.adapter / "ccm.json").is_file() and run.best_loss is not None


def test_only_the_adapter_is_trained(toy: Path, tmp_path: Path) -> None:
    job = prepare(config(toy, tmp_path, "model.dtype=bfloat16"))
    before = {n: p.clone() for n, p in job.lm.named_parameters() if not p.requires_grad}
    train(job.config, job.lm)
    assert all(torch.equal(p, before[n]) for n, p in job.lm.named_parameters() if n in before)
    assert all("lora_" in n or n == "lm.comp.weight" for n in trained(Learner(job.lm)))
    assert {p.dtype for p in trained(job.lm).values()} == {torch.float32} and job.lm.base.dtype == torch.bfloat16


def test_a_fresh_adapter_begins_with_the_weights_of_another(toy: Path, tmp_path: Path) -> None:
    """Of one that stands on another task adapter, or on none; its card names its own."""
    _, old = toys.adapters(tmp_path / "old", toy)
    task, other = toys.adapters(tmp_path / "new", toy, seed=2)
    small = ("scheme=concat", "model.lora_r=2")
    theirs, fresh = (trained(prepare(config(toy, tmp_path, *small, f"model.{k}={v}")).lm) for k, v in (("adapter", old), ("adapter", task)))
    for on in ((), (f"model.adapter={task}",)):
        job = prepare(config(toy, tmp_path, *small, f"model.start={old}", *on))
        mine = trained(job.lm)
        assert set(mine) == set(theirs) and all(torch.equal(p, theirs[n]) for n, p in mine.items())
        assert not all(torch.equal(p, fresh[n]) for n, p in mine.items())
        assert (None if job.lm.task is None else job.lm.task[0]) == (task if on else None)
    run = train(config(toy, tmp_path, *small, f"model.start={old}", f"model.adapter={task}", "training.max_steps=1"))
    card = read_card(run.adapter)
    assert card.task is not None and (run.adapter / card.task.path).resolve() == task
    assert card.config["model"]["start"] is None and str(tmp_path) not in (run.adapter / "ccm.json").read_text()
    for more, message in (
        ((f"model.start={old}", f"model.adapter={other}", "model.lora_r=2"), "name one of the two"),
        ((f"model.start={task}", "model.lora_r=2"), "must be compression adapters"),
        ((f"model.start={old}",), "has LoRA of rank 2, alpha 16, on .* this run of rank 8"),
        ((f"model.start={old}", "model.lora_r=2", "model.lora_alpha=64"), "alpha 16, on .* this run of rank 2, alpha 64"),
        ((f"model.start={old}", "model.lora_r=2", "scheme.n_comp=4"), r"2 comp token.* and 4; give"),
        ((f"model.start={tmp_path}",), "ccm.json"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(config(toy, tmp_path, "scheme=concat", *more))


def test_a_run_is_not_made_shorter(toy: Path, tmp_path: Path) -> None:
    """Or an adapter of two updates would pass for one of one."""
    how = ("scheme=concat", "model.lora_r=2", "training.save_steps=1", "run_id=two")
    train(config(toy, tmp_path, *how, "training.max_steps=2"))
    with pytest.raises(UserError, match="'two' is at step 2, past the 1 that are asked for; choose another run_id"):
        train(config(toy, tmp_path, *how, "training.max_steps=1"))


def test_the_evaluation_examples_are_not_the_training_examples(toy: Path, tmp_path: Path) -> None:
    job = prepare(config(toy, tmp_path))
    assert job.evaluation is not None
    ids = {example.id for example in job.evaluation.rows.examples}
    assert ids and all(i.startswith("tally/validation/") for i in ids)
    trainer = CcmTrainer(Learner(job.lm), _arguments(job, tmp_path), job, lambda entry: None)
    mean = trainer.evaluate()["eval_loss"]
    total, count = 0.0, 0
    with torch.no_grad():
        for i in range(len(job.evaluation.rows)):
            logits, labels = job.lm.labelled(job.evaluation.rows.plan(i))
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    assert mean == pytest.approx(total / count, rel=1e-4)


def _arguments(job: Job, at: Path):  # type: ignore[no-untyped-def]
    from context_memory.train import arguments

    return arguments(job, at, [])


# ---- batches ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [["scheme=concat"], ["scheme=merge"], ["scheme=full"], ["scheme=concat", "training.loss=distill"]])
def test_accumulating_four_is_one_of_four(toy: Path, tmp_path: Path, overrides: list[str]) -> None:
    job = randomised(prepare(config(toy, tmp_path, *overrides)))
    collate = job.collate
    apart = gradients(job, [collate([Batch([[i]])]) for i in range(4)])
    together = gradients(job, [collate([Batch([[0], [1], [2], [3]])])])
    packed = gradients(job, [collate([Batch([[0, 1], [2, 3]])])])
    assert apart.keys() == together.keys() == packed.keys()
    for name, g in apart.items():
        scale = g.abs().max().clamp(min=1e-6)
        assert (g - together[name]).abs().max() / scale < 1e-3, name
        assert (g - packed[name]).abs().max() / scale < 1e-3, name
    mean_of_means = [collate([Batch([[i]])]) for i in range(4)]
    wrong = {n: sum(gradients(job, [b])[n] for b in mean_of_means) / 4 for n in apart}
    assert any((wrong[n] - g).abs().max() / g.abs().max().clamp(min=1e-6) > 1e-2 for n, g in apart.items())  # control


def test_the_trainer_divides_by_the_labels_of_the_whole_batch(toy: Path, tmp_path: Path) -> None:
    one = config(toy, tmp_path / "one", "training.batch_size=8", "data.max_train_samples=8", "training.max_steps=3")
    many = config(
        toy,
        tmp_path / "many",
        "training.batch_size=2",
        "training.accumulate=4",
        "data.max_train_samples=8",
        "training.max_steps=3",
    )
    a, b = train(one), train(many)
    assert losses(a) == pytest.approx(losses(b), rel=1e-4)
    assert a.final_loss == pytest.approx(b.final_loss, rel=1e-4)


def test_gradient_checkpointing_changes_nothing(toy: Path, tmp_path: Path) -> None:
    plain = randomised(prepare(config(toy, tmp_path)))
    saving = randomised(prepare(config(toy, tmp_path, "training.gradient_checkpointing=true")))
    a, b = (gradients(job, [job.collate([Batch([[0], [1]])])]) for job in (plain, saving))
    assert all(torch.allclose(a[n], b[n], rtol=1e-4, atol=1e-6) for n in a) and a.keys() == b.keys()


def test_batches_depend_on_seed_epoch_and_index_alone(toy: Path, tmp_path: Path) -> None:
    job = prepare(config(toy, tmp_path, "data.max_train_samples=10", "training.max_steps=20"))
    rows, t = job.schedule.rows, job.config.training
    first = [job.schedule[i] for i in range(15)]
    assert first == [Schedule(rows, t, 15)[i] for i in range(15)]
    assert Schedule(rows, t, 15)[12] == first[12]
    epochs = [sorted(i for batch in first[s : s + 5] for row in batch.rows for i in row) for s in (0, 5, 10)]
    assert epochs == [list(range(10))] * 3 and first[:5] != first[5:10]
    t.seed += 1
    assert [Schedule(rows, t, 15)[i] for i in range(15)] != first


def test_a_token_budget_is_kept(toy: Path, tmp_path: Path) -> None:
    short = prepare(config(toy, tmp_path, "training.batch_size=null", "training.tokens_per_batch=1000", "training.max_steps=10"))
    packed = prepare(config(toy, tmp_path, "training.batch_size=null", "training.packing=true", "training.tokens_per_batch=2000",
                            "training.tokens_per_row=1000", "training.max_steps=5"))  # fmt: skip
    shapes = [short.schedule.rows.stacked(short.schedule[i]).shape for i in range(10)]
    assert all(b * n <= 1000 for b, n in shapes) and any(b > 1 for b, _ in shapes)
    wide = [packed.schedule.rows.stacked(packed.schedule[i]) for i in range(5)]
    assert all(p.shape[1] <= 1000 and p.shape[0] <= 2 for p in wide) and any(int(p.tokens.row.max()) > 0 for p in wide)


def test_a_plan_survives_the_trainer(toy: Path, tmp_path: Path) -> None:
    job = prepare(config(toy, tmp_path, "scheme=merge"))
    plan = job.schedule.rows.stacked(job.schedule[0])
    back = to_plan(to_tensors(plan))
    assert all(torch.equal(a, b) for a, b in zip(to_tensors(plan).values(), to_tensors(back).values()))


# ---- what must stop ---------------------------------------------------------------------------------------------------------


def test_a_mask_that_hides_nothing_is_an_error(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hides no token"):
        prepare(config(toy, tmp_path, "boundary=turn", "model.gate=all"))
    with pytest.raises(UserError, match="no target after their first compression"):
        prepare(config(toy, tmp_path, "boundary=turn"))
    prepare(config(toy, tmp_path, "boundary=turn", "scheme=full"))  # which does not hide


def test_bad_settings_are_told(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"longer than training\.max_tokens=20"):
        prepare(config(toy, tmp_path, "training.max_tokens=20"))
    with pytest.raises(UserError, match="scheme 'gist'"):
        prepare(config(toy, tmp_path, "scheme=gist"))
    with pytest.raises(UserError, match=r"Target modules .*nose"):
        prepare(config(toy, tmp_path, "model.targets=nose"))


def test_a_batch_that_cannot_fit_says_what_to_lower(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "available", lambda device: 1000)
    with pytest.raises(UserError, match=r"Lower training\.batch_size=2 .*gradient_checkpointing=true"):
        prepare(config(toy, tmp_path))


# ---- going on ---------------------------------------------------------------------------------------------------------------


def test_the_best_adapter_is_kept_and_patience_ends(toy: Path, tmp_path: Path) -> None:
    run = train(config(toy, tmp_path, "training.max_steps=60", "training.eval_steps=1", "training.patience=2", "training.lr=3"))
    assert run.steps < 60 and run.finished
    assert run.best_step is not None and run.best_step <= run.steps - 2
    assert run.final_loss is not None and run.best_loss is not None and run.final_loss > run.best_loss


def test_without_validation_examples_the_last_step_is_kept(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of solutions to training problems alone has none: that is said, and no mean over nothing judges the parameters."""
    sums = [(q, i + 1) for i in range(60) if part(q := f"What is {i} + 1?") >= 15]
    lines = [json.dumps({"question": q, "answer": f"{q[8:-1]}\n= {n}\n#### {n}"}) for q, n in sums]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    size = ["model.dtype=float32", "training.batch_size=2", "training.max_steps=6", "training.eval_steps=2", "training.wandb=false"]
    run = train(load([f"model.name={toy}", f"output={tmp_path}", "data=gsm8k", f"data.path={tmp_path}/own.jsonl", "scheme=concat", *size]))
    assert "no validation examples" in capsys.readouterr().err
    assert (run.steps, run.finished, run.best_step, run.final_loss) == (6, True, None, None)
    assert run.adapter.is_dir()
    assert not any("eval_loss" in json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines())


def test_a_loss_that_is_no_number_is_never_the_best(toy: Path, tmp_path: Path) -> None:
    job = prepare(config(toy, tmp_path, "scheme=concat"))
    trainer = CcmTrainer(Learner(job.lm), _arguments(job, tmp_path / "t"), job, lambda entry: None)
    for step, loss in enumerate((float("nan"), 2.0, float("nan"), 3.0), 1):
        trainer.state.global_step = step
        trainer._judge(loss)
    assert trainer.best is not None and trainer.best[:2] == (2.0, 2)


def test_a_gradient_that_is_no_number_ends_the_training_before_it_spreads(toy: Path, tmp_path: Path) -> None:
    told = config(toy, tmp_path, "scheme=concat", "training.max_steps=6", "training.save_steps=2", "run_id=x")
    lm, backwards = build(told), []
    spoilt = next(iter(trained(lm).values()))
    spoilt.register_hook(lambda g: backwards.append(1) or g * (float("nan") if len(backwards) == 4 else 1.0))
    with pytest.raises(UserError, match=r"gradient of step 4 is nan.*training\.lr"):
        train(told, lm)
    assert spoilt.isfinite().all()
    kept = sorted((tmp_path / "tally/x/checkpoints").glob("checkpoint-*"))
    assert [c.name for c in kept] == ["checkpoint-2"]
    assert all(x.isfinite().all() for x in load_file(kept[0] / "trained.safetensors").values())
    again = train(told)
    assert again.finished and again.steps == 6


STEPS = ("training.max_steps=12", "training.save_steps=3", "training.eval_steps=6", "scheme=concat", "training.accumulate=2")


def test_a_stopped_run_goes_on_as_if_nothing_had_been(toy: Path, tmp_path: Path) -> None:
    whole = train(config(toy, tmp_path / "a", *STEPS, "run_id=x"))
    stopped = train(config(toy, tmp_path / "b", *STEPS, "run_id=x", "training.max_minutes=0"))
    assert not stopped.finished and stopped.steps == 1 and (stopped.adapter / "ccm.json").is_file()
    went_on = train(config(toy, tmp_path / "b", *STEPS, "run_id=x"))
    assert went_on.finished and went_on.steps == 12
    assert losses(went_on) == pytest.approx(losses(whole), rel=1e-4)
    assert went_on.final_loss == pytest.approx(whole.final_loss, abs=1e-4)
    assert went_on.best_step == whole.best_step
    assert train(config(toy, tmp_path / "b", *STEPS, "run_id=x")) == went_on  # at once: there is nothing left to do


@pytest.mark.slow
def test_kill_9_and_the_same_command_ends_where_an_uninterrupted_run_does(toy: Path, tmp_path: Path) -> None:
    whole = train(config(toy, tmp_path / "whole", *STEPS, "run_id=x"))
    overrides = [f"model.name={toy}", f"output={tmp_path / 'killed'}", *SHORT, "model.dtype=float32", "training.batch_size=2",
                 "training.lr=3e-3", "training.log_steps=1", *STEPS]  # fmt: skip
    command = [sys.executable, "-m", "context_memory.cli", "train", "--run_id", "x", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "killed" / "tally" / "x"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while newest(folder / "checkpoints") is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = newest(folder / "checkpoints")
    assert last is not None and not (folder / "result.json").exists()
    torn = last.with_name("checkpoint-11")  # as if the next one had been cut short
    torn.mkdir()
    (torn / "trained.safetensors").write_bytes(b"half")
    assert newest(folder / "checkpoints") == last
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"going on from {last.name}" in done.stderr
    assert json.loads((folder / "result.json").read_text())["final_loss"] == pytest.approx(whole.final_loss, abs=1e-3)
    assert len(list((folder / "checkpoints").glob(f"*/{MARKER}"))) == 2


def test_another_configuration_under_the_same_run_id_is_refused(toy: Path, tmp_path: Path) -> None:
    train(config(toy, tmp_path, "run_id=x", "training.save_steps=2"))
    with pytest.raises(UserError, match=r"started with training\.lr=0\.003, got training\.lr=0\.5"):
        train(config(toy, tmp_path, "run_id=x", "training.lr=0.5"))
    longer = train(config(toy, tmp_path, "run_id=x", "training.max_steps=8"))
    assert longer.steps == 8
    shutil.rmtree(run_folder(config(toy, tmp_path, "run_id=x")) / "checkpoints")
    with pytest.raises(UserError, match=r"started with training\.lr=0\.003, got training\.lr=0\.5"):
        train(config(toy, tmp_path, "run_id=x", "training.max_steps=8", "training.lr=0.5"))


def test_other_data_under_the_same_path_are_another_training(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is to go on or is done: the run's numbers would be of neither."""
    rows = [{"question": f"{i} plus {i}?", "answer": f"{i} + {i} = {2 * i}\nSo {2 * i}.\n#### {2 * i}"} for i in range(80)]

    def write(first: int) -> None:
        (tmp_path / "my.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[first:]))
        monkeypatch.setenv("CCM_DATA", str(first))  # what was read is remembered for as long as this is the same

    size = ["model.dtype=float32", "model.lora_r=2", "training.batch_size=2", "training.max_steps=2", "training.eval_samples=0"]
    data = ["data=gsm8k", f"data.path={tmp_path / 'my.jsonl'}", "training.wandb=false", "run_id=x"]
    own = load([f"model.name={toy}", f"output={tmp_path}", *size, *data])
    write(0)
    done = train(own)
    assert done.finished and train(own) == done
    write(1)
    with pytest.raises(UserError, match=r"started with another content of what data names"):
        train(own)
    write(0)
    assert train(own) == done
    (done.folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json' is damaged"):
        train(own)


def test_another_adapter_under_the_same_path_is_another_training(toy: Path, tmp_path: Path) -> None:
    _, memory = toys.adapters(tmp_path / "one", toy, seed=1)
    own = config(toy, tmp_path, f"model.start={memory}", "run_id=x", "training.max_steps=2", "model.lora_r=2")
    done = train(own)
    assert train(own) == done
    _, other = toys.adapters(tmp_path / "two", toy, seed=2)
    shutil.rmtree(memory)
    shutil.copytree(other, memory)
    with pytest.raises(UserError, match=r"another content of what model\.start names"):
        train(own)


@pytest.mark.parametrize("name", ["7", "true", "1e3", "null", "[a]"])
def test_a_run_may_be_called_anything(name: str, tmp_path: Path) -> None:
    assert run_folder(load([f"run_id={written(name)}", f"output={tmp_path}"])).name == name
    assert run_folder(load(["run_id=7", f"output={tmp_path}"])).name == "7"


def test_a_run_without_a_name_is_named_after_its_settings(toy: Path, tmp_path: Path) -> None:
    a, b, c = (run_folder(config(toy, tmp_path, *o)) for o in ([], ["training.lr=1"], ["training.log_steps=7", "training.max_steps=9"]))
    assert a == c != b and a.name.startswith("concat-n2-")


def test_few_updates_are_remarked_on_unless_they_were_asked_for(toy: Path, tmp_path: Path) -> None:
    asked = prepare(config(toy, tmp_path, "training.max_steps=3"))
    assert not any("few" in said for said in asked.remarks())
    left = prepare(config(toy, tmp_path, "training.max_steps=null"))
    assert left.steps < 50 and any("updates are few for an adapter: training.epochs= or" in said for said in left.remarks())


def test_rows_count_what_they_leave_out(toy: Path, tmp_path: Path) -> None:
    job = prepare(config(toy, tmp_path))
    rows = job.schedule.rows
    narrow = Rows(rows.examples, rows.encoder, plugins.make("schemes", "concat"), "skip", "memory", 100)  # type: ignore[arg-type]
    assert narrow[0] is None and narrow.left.too_long == 1
    assert set(Collate(rows)([Batch([[0]])])) == set(to_tensors(rows.plan(0)))


def test_a_last_token_that_only_the_first_segment_predicts_is_no_label(toy: Path, tmp_path: Path) -> None:
    """Labels are what is predicted behind the first compression; 0 / 0 of a micro-batch would be the end of a training."""
    rows = prepare(config(toy, tmp_path)).schedule.rows
    step, tail = (
        Segment((5, 9, 3), loss=(True,) * 3, target=True),
        [Segment((7, 1)[:n], loss=(True,) * n, compress=False) for n in range(3)],
    )
    for segments, yes in (([step, tail[2]], True), ([step, tail[1]], False), ([step, tail[0]], False), ([step, step, tail[0]], True)):
        plan = layout(segments, rows.scheme, rows.positions, supervise="memory")
        assert rows._labelled(segments) == yes == bool((plan.labels != IGNORE).any())


def test_the_teacher_of_a_window_sees_everything(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(config(toy, tmp_path, "scheme=window", "scheme.size=8", "training.loss=distill"))
    batch, taught = job.collate([job.schedule[0]]), []

    def spy(rows: Tensor, teacher: Tensor, *rest: object) -> Tensor:
        taught.append(teacher)
        return rows.sum()

    monkeypatch.setattr("context_memory.trainer.losses.distillation", spy)
    Learner(job.lm, "distill")(**batch)
    whole = to_plan(batch, "teacher_")
    with torch.no_grad():
        under = [lm.hidden(whole, adapter=False)[whole.labels != IGNORE] for lm in (job.lm.under(Full()), job.lm)]
    assert torch.equal(taught[0], under[0]) and not torch.allclose(under[0], under[1], atol=1e-4)


def test_a_mark_that_looks_like_another_token_is_told(toy: Path, tmp_path: Path) -> None:
    """A model cannot choose between two rows of the output embedding that are the same."""
    marked = config(toy, tmp_path, "scheme=full", "boundary=model", "boundary.token='<|system|>'", "boundary.teacher=newline")
    lm = prepare(marked).lm
    rows, (mark,) = lm.base.get_output_embeddings().weight, marked.encoder(lm.tokenizer).mark
    with torch.no_grad():
        rows[mark + 1] = rows[mark] * 1.001
    with pytest.raises(UserError, match=r"'<\|system\|>', whose row .* is that of 1 other tokens.*'<\|user\|>'"):
        prepare(marked, lm)
