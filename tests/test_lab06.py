"""What lab 06's checks say beside the banks: half a mended step, and wrong factors told apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ppkit.checks import lab06
from ppkit.checks.lab06.training import SETTINGS
from ppkit.checks.oracle import run
from ppkit.checks.oracle_hybrid import expected_messages, gradients, mean_of_means, parts, ratio
from ppkit.checks.reference.hybrid import backward_stage


def half_mended(last: int, by_world: bool) -> Any:
    """The exercise's function with one of its two bugs."""

    def finish_step(stage, optimizer, kept, before, after, column):
        for i in reversed(range(len(kept))):
            backward_stage(*kept[i], before, after)
            if i == last:
                for weight in stage.parameters():
                    dist.all_reduce(weight.grad, group=column)
                    weight.grad /= dist.get_world_size(None if by_world else column)
        optimizer.step()

    return finish_step


@pytest.mark.ranks
@pytest.mark.parametrize(("last", "by_world", "code"), [(2, False, "H63"), (0, True, "H64")])
def test_half_a_mended_step_is_not_done_yet(last, by_world, code):
    report = lab06.check_finish_step(half_mended(last, by_world))
    assert not report.done, str(report)
    assert report.mistake == code
    assert "a bug is still in it" in str(report)


def test_each_right_prediction_earns_its_part():
    report = lab06.check_predictions(7, 6, 0.9)
    assert report == pytest.approx(10)
    assert "too large" in str(report)


def test_wrong_factors_of_the_first_mesh_are_all_different():
    """So that a check can tell a sum for a mean from a division by the world."""
    d, p, m = *SETTINGS[0].shape, SETTINGS[0].n_microbatches
    factors = [d, 1 / d, 1 / p, 1 / (d * p), m, 1 / m]
    assert len({round(math.log(factor), 9) for factor in factors}) == len(factors)


def test_oracle_is_one_process_whatever_the_parts():
    setting = SETTINGS[1]
    stages, batch = setting.stages(), setting.batches()[0]
    whole = gradients(stages, batch)
    shares = parts(batch, 2)
    weighted = [len(labels) / len(batch[1]) for _, labels in shares]
    for stage, right in enumerate(whole):
        added = {
            name: sum(part * gradients(stages, one)[stage][name] for part, one in zip(weighted, shares, strict=True))
            for name in right
        }
        assert ratio(added, right) == pytest.approx(1.0)
        assert ratio(mean_of_means(stages, shares)[stage], right) is None
        assert ratio({name: 3 * one for name, one in right.items()}, right) == pytest.approx(3.0)
    model = torch.nn.Sequential(*stages)
    torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    assert ratio({name: w.grad for name, w in stages[0].named_parameters()}, whole[0]) == pytest.approx(1.0)
    assert run(stages, batch)[0] > 0


def test_expected_messages_stay_within_a_replica():
    for setting in SETTINGS:
        messages = expected_messages(setting).messages
        d, p = setting.shape
        assert len(messages) == len(setting.sizes) * d * setting.n_microbatches * 2 * (p - 1)
        assert all(m.sender // p == m.receiver // p and abs(m.sender - m.receiver) == 1 for m in messages)
