"""Skip connections: found, checked before a run, and alike in one process and in stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppkit.builders import gpipe
from ppkit.runtime import Pipeline
from ppkit.skips import Pop, Skip, SkipError, Stash, match_skips


def _stages(*texts: str) -> list[nn.Module]:
    """Stages from texts such as ``"+a -b"``: stash a, pop b."""
    kinds = {"+": Stash, "-": Pop}
    return [nn.Sequential(*[kinds[use[0]](use[1:]) for use in text.split()]) for text in texts]


def test_skips_are_matched() -> None:
    assert match_skips(_stages("+a +b", "+c -c", "-b", "-a")) == (Skip("a", 0, 3), Skip("b", 0, 2), Skip("c", 1, 1))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("", "-a"), "skip 'a': stage 1 pops it, but no stage stashes it"),
        (("-a", "", "+a"), "skip 'a': stage 0 pops it, but only stage 2 stashes it, later"),
        (("-a +a",), "skip 'a': stage 0 pops it, but only stage 0 stashes it, later"),
        (("+a", "+a", "-a"), "skip 'a': stage 1 stashes it, but stage 0 has stashed it already"),
        (("+a", "-a", "-a"), "skip 'a': stage 2 pops it, but stage 1 has popped it already"),
        (("+b", "+a -b"), "skip 'a': stage 1 stashes it, but no stage pops it"),
    ],
)
def test_a_wrong_skip_is_named_with_its_stage(stages: tuple[str, ...], message: str) -> None:
    with pytest.raises(SkipError) as caught:
        match_skips(_stages(*stages))
    assert message in str(caught.value)
    assert f"stage {caught.value.stage}" in message


def test_in_one_process_the_pair_works_as_it_stands() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Stash("a"), nn.ReLU(), Pop("a", torch.add))
    x = torch.tensor([[1.0, -2.0]])
    y = model[0](x)
    for _ in range(2):
        assert torch.equal(model(x), y.relu() + y)
    assert nn.Sequential(Stash("b"), Pop("b"))(x) == (x, x)
    assert "'a'" in repr(model)


def test_a_pop_of_nothing_says_so() -> None:
    with pytest.raises(SkipError, match="not stashed, or popped already; stashed is nothing"):
        Pop("never")(torch.ones(1))


def test_a_pipeline_checks_its_skips_before_it_runs() -> None:
    with pytest.raises(SkipError, match="stage 0 pops it, but no stage stashes it"):
        Pipeline(gpipe(1, 1), _stages("-a"), nn.functional.mse_loss)
