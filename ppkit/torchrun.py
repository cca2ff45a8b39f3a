"""What an exported script ends with, and the timeline of a run that torchrun has started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppkit.launch.board import Board

__all__ = ["COPIED", "main", "record"]


# The next functions are copied into each exported script: they import what they need themselves, and no more than
# torch; their annotations need no import.


def _prepare_rank() -> bool:
    """Choose this rank's GPU, if there is one for every rank of the host, and seed torch; return whether there is."""
    import os
    import random

    import torch

    has_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that torch.cuda.is_available() says what the run uses
    torch.manual_seed(0)  # the same on every rank
    random.seed(0)
    return has_gpu


def _read_options(function: object) -> tuple[list[object], dict[str, object], str]:
    """Return the function's arguments, by position and by name, and the timeline's file, "" for none."""
    import argparse
    import ast
    import inspect
    import os

    assert callable(function)
    call = f"{getattr(function, '__name__', 'function')}{inspect.signature(function)}"
    parser = argparse.ArgumentParser(description=f"Call {call} on every rank that torchrun has started.")
    parser.add_argument("--args", default="", help="its arguments, as Python literals: --args \"3, 'x', lr=0.1\"")
    parser.add_argument("--timeline", default="", metavar="FILE", help="write what the ranks did as JSON; needs ppkit")
    options = parser.parse_args()
    try:
        given = ast.parse(f"f({options.args})", mode="eval").body
        if not isinstance(given, ast.Call) or not isinstance(given.func, ast.Name):
            raise ValueError("brackets that do not pair")
        args = [ast.literal_eval(value) for value in given.args]
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in given.keywords}
    except (SyntaxError, ValueError) as error:
        reason = str(error).split(":")[0]
        advice = "export a function that makes anything else by itself"
        parser.error(f"--args {options.args!r} are not all Python literals ({reason}); {advice}")
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        parser.error(f"{call} cannot be called with --args {options.args!r}: {error}")
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():
        parser.error("torchrun starts this script: torchrun --standalone --nproc-per-node=2 SCRIPT")
    if options.timeline:
        folder = os.path.dirname(os.path.abspath(options.timeline))
        if os.environ["RANK"] == "0" and not os.path.isdir(folder):  # rank 0 writes it, on its own host
            parser.error(f"--timeline {options.timeline}: there is no such folder")
        try:
            import ppkit.torchrun  # noqa: F401  # asked for now: a failure later would lose the run
        except ImportError as error:
            parser.error(f"--timeline needs ppkit, which this Python cannot import: {error}")
    return args, kwargs, options.timeline


def main(function: object) -> None:
    """Call the function on every rank that torchrun has started, and print what it returns on rank 0."""
    import os

    import torch
    import torch.distributed as dist

    # Imported later, as an optimizer does, it keeps the process group in its default arguments: gloo's threads then
    # live until Python ends, and may abort the rank.
    import torch.distributed.nn.functional

    assert callable(function)
    args, kwargs, timeline = _read_options(function)
    # CPU tensors go over gloo on GPUs too, so that the same function runs on both.
    dist.init_process_group("cpu:gloo,cuda:nccl" if _prepare_rank() else "gloo")
    if timeline:
        from ppkit.torchrun import record

        result = record(function, args, kwargs, timeline)
    else:
        result = function(*args, **kwargs)
    if os.environ["RANK"] == "0":
        print(repr(result), flush=True)
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1, device="cpu"))  # no rank goes while another may still talk to it
        dist.destroy_process_group()


COPIED = (_prepare_rank, _read_options, main)


def record(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], path: str) -> Any:
    """Call a function on a rank, and write the `Timeline` of all ranks on rank 0.

    Observed are the calls that `ppkit.launch` observes, by the same means. Nothing is imported ahead of the call, as
    it is in ranks of `launch`: what torch imports at its first use takes its time in the first step. Times of several
    hosts are put on rank 0's clock, with which each rank's is compared before and after the call.

    Args:
        function: called with `args` and `kwargs`.
        args: its arguments by position.
        kwargs: its arguments by name.
        path: of the JSON file.

    Returns:
        What the function returned.
    """
    import sys
    from dataclasses import replace
    from pathlib import Path

    import torch.distributed as dist

    from ppkit.launch.clocks import on_first_clock, read_clock
    from ppkit.launch.run import merge
    from ppkit.observe import leave_alone, observing
    from ppkit.observe.recorder import Recorder

    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    board, n_hosts = _open_board(n_ranks)
    before = _torch_names()
    recorder = Recorder()
    recorder.begin(rank, n_ranks, board, None)
    clock = read_clock(rank, n_ranks) if n_hosts > 1 else None
    undo = observing(recorder)
    _renew(vars(sys.modules["__main__"]), before)
    try:
        result = function(*args, **kwargs)
    finally:
        leave_alone(undo)
    rows = recorder.rows()
    if clock is not None:
        rows = on_first_clock(rows, clock, read_clock(rank, n_ranks))
    everything: list[Any] | None = [None] * n_ranks if rank == 0 else None
    dist.gather_object(rows, everything)
    if everything is not None:
        timeline = merge(dict(enumerate(everything)), n_ranks, getattr(function, "__name__", ""), None)
        notes = {**timeline.notes, "started by": "torchrun"}
        if clock is not None:
            notes["clock"] = f"{n_hosts} hosts, on the clock of rank 0's"
        Path(path).write_text(replace(timeline, notes=notes).to_json(), encoding="utf-8")
    return result


def _open_board(n_ranks: int) -> tuple[Board, int]:
    """Return the board that the ranks of this host share, and how many hosts there are; collective."""
    import os
    import shutil
    import tempfile
    from pathlib import Path

    import torch
    import torch.distributed as dist

    from ppkit.launch.board import Board

    host = int(os.environ.get("GROUP_RANK", "0"))  # the number of this rank's torchrun
    mine = (host, tempfile.mkdtemp(prefix="ppkit-")) if os.environ["LOCAL_RANK"] == "0" else None
    everyones: list[Any] = [None] * n_ranks
    dist.all_gather_object(everyones, mine)
    folders = dict(filter(None, everyones))
    board = Board(Path(folders[host], "board"), n_ranks)
    dist.all_reduce(torch.zeros(1, device="cpu"))  # all ranks have mapped the file, which needs no name any more
    if mine is not None:
        shutil.rmtree(mine[1], ignore_errors=True)
    return board, len(folders)


def _torch_names() -> dict[tuple[str, str], Any]:
    """Return what the modules hold in which observation replaces functions."""
    import torch
    import torch.distributed as dist

    modules = {"torch.distributed": dist, "torch.autograd": torch.autograd}
    return {(module, name): value for module, found in modules.items() for name, value in vars(found).items()}


def _renew(names: dict[str, Any], before: dict[tuple[str, str], Any]) -> None:
    """Let `from torch.distributed import send`, run before the observation began, mean the observed function."""
    after = _torch_names()
    replaced = {id(value): after[key] for key, value in before.items() if after.get(key, value) is not value}
    for name, value in names.items():
        if id(value) in replaced:
            names[name] = replaced[id(value)]
