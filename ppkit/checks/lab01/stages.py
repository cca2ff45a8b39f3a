"""Tasks 3 and 4: the forward and the backward of one stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ppkit.checks.drivers import lab01 as ranks
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.messages import backward_messages, forward_messages
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.naive import ACTIVATION_BACK, N01, N02, N07, N09, N12, NO_GRAPH, NOT_FROM_LOSS, SWAPPED
from ppkit.checks.oracle import Batch, build_stages, run
from ppkit.checks.steps import require_waits
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import all_equal, difference, equal, first_difference

__all__ = ["check_backward_stage", "check_forward_stage"]

FORWARD_PARAMETERS = ("stage", "batch", "shape", "rank", "n_ranks")
BACKWARD_PARAMETERS = ("stage_input", "output", "loss", "rank", "n_ranks")

# Every width and row count differs, and no parameter has the size of an activation: what goes wrong shows.
SIZES = ((2, 7), (3, 9), (4, 11))  # ranks, rows
WIDTHS = (6, 5, 4, 5)  # numbers into each stage; CLASSES come out of the last
CLASSES = 4

# Task 3: the forward


@graded("Task 3, forward_stage", 20)
def check_forward_stage(forward_stage: Any) -> Passed:
    """Check a forward over 2, 3 and 4 ranks: its messages, its values, and whether a backward can follow."""
    require_function(forward_stage, "forward_stage", FORWARD_PARAMETERS)
    for stages, batch, where in _settings():
        _, passes = run(stages, batch)
        expected = forward_messages(stages, passes)
        trial = on_ranks(
            ranks.forward, forward_stage, stages, passes, n_ranks=len(stages), where=where, expected=expected
        )
        _judge_returned(trial)
        trial.require_messages()
        for rank, (seen, right) in enumerate(zip(trial.results, passes, strict=True)):
            if equal(seen["input"], right.output) and equal(seen["output"], right.input):
                raise trial.wrong("your function returned its output first, and its input second.", SWAPPED, rank=rank)
            if text := difference(seen["output"], right.output):
                raise trial.wrong(f"its output {text}.", _why_wrong(trial, rank, seen["output"]), rank=rank)
        for rank, seen in enumerate(trial.results):
            _judge_graph(trial, rank, seen)
            right = passes[rank]
            if rank and (text := difference(seen["input_grad"], right.input_grad)):
                raise trial.wrong(f"after a backward, the gradient of its input {text}.", WRONG_VALUES, rank=rank)
            if text := first_difference(seen["grads"], right.grads):
                raise trial.wrong(f"after a backward, the gradient of {text}.", WRONG_VALUES, rank=rank)
        require_waits(trial)
    return Passed(
        "On 2, 3 and 4 ranks, with 7, 9 and 11 rows: every output is that of one process.",
        "Each rank but the last sent one message, to the next.",
        "A backward from your outputs gives every gradient, those of the received activations included.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _settings() -> Iterator[tuple[Sequence[torch.nn.Sequential], Batch, str]]:
    for n_ranks, n_rows in SIZES:
        stages = build_stages((*WIDTHS[:n_ranks], CLASSES))
        numbers = torch.Generator().manual_seed(n_rows)
        inputs = torch.randn(n_rows, WIDTHS[0], dtype=torch.float64, generator=numbers)
        targets = torch.randint(CLASSES, (n_rows,), generator=numbers)
        yield stages, (inputs, targets), f"{n_ranks} ranks, {n_rows} rows"


def _judge_returned(trial: Trial) -> None:
    for rank, seen in enumerate(trial.results):
        if "output" not in seen:
            returned = seen["returned"]
            if returned is None and not any(trial.timeline.bytes_sent):
                raise trial.unfinished("your function returned None, and nothing was sent.", rank=rank)
            text = f"your function returned {returned or 'nothing'}; it must return two tensors, "
            raise trial.wrong(f"{text}the stage's input and its output.", RETURNED, rank=rank)


def _why_wrong(trial: Trial, rank: int, output: torch.Tensor) -> Mistake:
    """Why the output of this rank, the first that differs, is wrong."""
    if output.dtype != torch.float64:
        return N07
    forwards = [event for event in trial.timeline.of_rank(rank) if event.kind == "F"]
    receives = [event for event in trial.timeline.of_rank(rank) if event.kind == "RECV"]
    early = forwards and receives and forwards[0].start < receives[0].end
    return N09 if early else WRONG_VALUES


def _judge_graph(trial: Trial, rank: int, seen: dict[str, Any]) -> None:
    if not seen["has_graph"]:
        raise trial.wrong("a backward cannot start from the output that you return.", NO_GRAPH, rank=rank)
    if rank and seen["input_grad"] is None:
        mistake = N01 if not seen["asks"] and not seen["leaves"] else N02
        raise trial.wrong("after a backward, the stage input that you return has no gradient.", mistake, rank=rank)


# Task 4: the backward


@graded("Task 4, backward_stage", 20)
def check_backward_stage(backward_stage: Any) -> Passed:
    """Check a backward over 2, 3 and 4 ranks: its messages, and the gradient of every parameter."""
    require_function(backward_stage, "backward_stage", BACKWARD_PARAMETERS)
    for stages, batch, where in _settings():
        _, passes = run(stages, batch)
        expected = backward_messages(stages, passes)
        trial = on_ranks(
            ranks.backward,
            backward_stage,
            *(stages, passes, batch[1]),
            n_ranks=len(stages),
            where=where,
            expected=expected,
        )
        got: tuple[dict[str, Any], ...] = trial.results
        if not any(event.kind in ("B", "I", "W", "SEND", "RECV") for event in trial.timeline):
            raise trial.unfinished("no rank ran a backward, and nothing was sent.")
        _, without_received = run(stages, batch, "N12")
        for rank in reversed(range(len(stages) - 1)):
            if all_equal(got[rank], without_received[rank].grads):
                raise trial.wrong("its gradients are those of the sum of its outputs.", N12, rank=rank)
        trial.require_messages()
        _, from_activations = run(stages, batch, "activation")
        for rank in reversed(range(len(stages) - 1)):
            if all_equal(got[rank], from_activations[rank].grads):
                text = f"the message from rank {rank + 1} to rank {rank} is the activation itself, not its gradient"
                raise trial.wrong(f"{text} ∂L/∂(stage_input).", ACTIVATION_BACK)
        for rank in reversed(range(len(stages))):
            if text := first_difference(got[rank], passes[rank].grads):
                mistake = WRONG_VALUES if rank < len(stages) - 1 else NOT_FROM_LOSS
                raise trial.wrong(f"the gradient of {text}.", mistake, rank=rank)
        require_waits(trial)
    return Passed(
        "On 2, 3 and 4 ranks, with 7, 9 and 11 rows: every parameter's gradient is that of one process.",
        "Each rank but the first sent one message, to the rank before: the gradient of its input.",
        timeline=trial.timeline,
        output=trial.output,
    )
