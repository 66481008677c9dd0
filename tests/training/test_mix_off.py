"""Mixing that is switched off after some epochs."""

from __future__ import annotations

import signal

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sklearn")

import run_support

from fastmix.cli import main
from fastmix.train.config import METHODS, Config
from fastmix.train.errors import UserError
from fastmix.train.trainer import Interrupted, Trainer, resume_state

TINY = run_support.TINY | {"epoch_steps": 3}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.task.module.state_dict().items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("method", METHODS)
def test_the_epochs_before_mix_and_those_from_it_on_do_not(method):
    """Losses of a whole run, against the plain loss of the same model computed by hand in the last epoch."""
    whole = Trainer(Config(**TINY, method=method, steps=9))
    off = Trainer(Config(**TINY, method=method, steps=9, mix_off_epoch=2))
    seen, inner = [], off._train_step

    def by_hand(images, targets):
        before = off.step
        model = off.task.module
        if before >= 6:
            x = off.task.plain(images, targets).x
            if method == "automix":
                logits = model.student.one_hot(model.student.encoder(x))
            else:
                logits = (model.model if method == "puzzlemix" else model)(x)
            seen.append((F.cross_entropy(logits, targets).item(), before))
        values = inner(images, targets)
        if before >= 6:
            assert values[0].item() == pytest.approx(seen[-1][0], rel=1e-5)
        return values

    off._train_step = by_hand
    rows, mixed = off.fit(), whole.fit()
    assert [step for _, step in seen] == [6, 7, 8]
    for k in (0, 1):
        assert rows[k]["loss"] == mixed[k]["loss"] and rows[k]["test_loss"] == mixed[k]["test_loss"]
    if method == "none":
        assert rows[2]["loss"] == mixed[2]["loss"]
    else:
        assert rows[2]["loss"] != mixed[2]["loss"]
    assert rows[2]["loss"] == pytest.approx(sum(rows[2].get(name, 0) for name in off.task.parts) or rows[2]["loss"])


def test_what_plain_steps_of_automix_leave_alone():
    trainer = Trainer(Config(**TINY, method="automix", steps=6, mix_off_epoch=1))
    inner, after = trainer._train_step, {}

    def keep(*args):
        values = inner(*args)
        after[trainer.step] = weights(trainer)
        return values

    trainer._train_step = keep
    trainer.fit()
    for name, value in after[6].items():
        still = torch.equal(value, after[3][name])
        if name.startswith(("mix_block.", "student.mix.")):
            assert still, name
        elif name.startswith(
            ("student.one_hot.", "teacher.one_hot.", "student.encoder.conv1", "teacher.encoder.conv1")
        ):
            assert not still, name
    assert trainer.task.module.step == 6


@pytest.mark.parametrize("method", ["cutmix", "puzzlemix", "automix"])
@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_resuming_around_the_switch_is_bit_exact(tmp_path, method, stop_at):
    config = Config(**TINY, method=method, steps=9, mix_off_epoch=1)
    whole = Trainer(config)
    whole.fit()
    first = Trainer(config, tmp_path)
    run_support.stop_after(first, stop_at, signal.SIGINT)
    with pytest.raises(Interrupted):
        first.fit()
    saved, state = resume_state(tmp_path)
    assert saved.mix_off_epoch == 1
    second = Trainer(saved, tmp_path)
    second.load(state)
    second.fit()
    expected = weights(whole)
    for name, value in weights(second).items():
        assert torch.equal(value, expected[name]), name


def test_the_option(tmp_path, capsys):
    assert main(["train", "--steps", "2", "--mix-off-epoch", "-1"]) == 2
    assert "--mix-off-epoch must not be negative, got -1" in capsys.readouterr().err
    with pytest.raises(UserError, match="--mix-off-epoch cannot be used with --cuda-graph"):
        Config(method="automix", cuda_graph=True, mix_off_epoch=1)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--mix-off-epoch N" in capsys.readouterr().out


def test_a_teacher_with_running_statistics_of_its_own_keeps_them_current():
    """As in the released code: without mixing no other pass of the teacher would move them."""
    run = Trainer(Config(**TINY, method="automix", released=True, steps=6, mix_off_epoch=1))
    before = {}

    def note(row):
        before.setdefault(row["epoch"], run.task.module.teacher.encoder.layer4[0].bn1.running_mean.clone())

    run.fit(on_epoch=note)
    assert not torch.equal(before[1], before[2])
