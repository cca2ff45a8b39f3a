"""Decides on which devices ranks run, and warns when a machine is too small for them."""

from __future__ import annotations

import os
import warnings
from typing import NamedTuple

from ppkit.errors import LaunchError
from ppkit.launch.server import MAX_RANKS
from ppkit.values import whole

DEVICES = ("auto", "cpu", "cuda")
_RANK_BYTES = 150 * 2**20  # what a forked rank adds: its own pages, gloo's buffers, a small model


class Placement(NamedTuple):
    """Where the ranks of a run compute.

    Attributes:
        device: "cpu" or "cuda".
        backend: "gloo" or "nccl".
        gpus: GPU of each rank; empty on the CPU.
        note: what the user should know, or "".
    """

    device: str
    backend: str
    gpus: tuple[int, ...] = ()
    note: str = ""


def place(device: str, n_ranks: int) -> Placement:
    """Choose devices and backend for `n_ranks` ranks, as `ppkit.launch` documents.

    Raises:
        LaunchError: for an unknown device, or GPUs asked for where there are none.
    """
    if device not in DEVICES:
        raise LaunchError(
            f"device={device!r} is not known; use one of {', '.join(map(repr, DEVICES))}",
            values={"device": device},
        )
    n_gpus = 0 if device == "cpu" else count_gpus()
    if n_gpus >= n_ranks:
        return Placement("cuda", "nccl", tuple(range(n_ranks)))
    if device != "cuda":
        return Placement("cpu", "gloo")
    if n_gpus == 0:
        raise LaunchError(
            "device='cuda' asks for a GPU, but torch sees none on this machine; use device='cpu', or device='auto', "
            "which takes GPUs where there is one for every rank",
            values={"device": device, "n_gpus": 0},
        )
    gpus = tuple(rank % n_gpus for rank in range(n_ranks))
    shared = f"{n_gpus} GPU{'s' * (n_gpus > 1)}"
    note = f"{n_ranks} ranks share {shared} over gloo: their times say nothing about {n_ranks} GPUs"
    return Placement("cuda", "gloo", gpus, note)


def count_gpus() -> int:
    """Return how many GPUs torch sees, without starting CUDA in this process."""
    import torch

    return torch.cuda.device_count()


def check_n_ranks(n_ranks: object) -> int:
    """Return a usable number of ranks, with a warning when the machine is small for it.

    Raises:
        LaunchError: if it is no whole number, or below 1, or above what one launch can start.
    """
    given, n_ranks = n_ranks, whole(n_ranks)
    if n_ranks is None or not 1 <= n_ranks <= MAX_RANKS:
        raise LaunchError(
            f"n_ranks={given!r}: the number of ranks is a whole number from 1 to {MAX_RANKS}",
            values={"n_ranks": given},
        )
    cores = usable_cores()
    if n_ranks > max(16, 4 * cores):
        warnings.warn(
            f"{n_ranks} ranks on {cores} core{'s' * (cores > 1)}: each gets {cores / n_ranks:.2f} of a core, and "
            f"starting them alone takes seconds. Up to {max(16, 4 * cores)} ranks are comfortable here.",
            stacklevel=3,
        )
    available = available_bytes()
    if available is not None and n_ranks * _RANK_BYTES > available:
        warnings.warn(
            f"{n_ranks} ranks need some {n_ranks * _RANK_BYTES / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB "
            f"are free; use at most {max(1, available // _RANK_BYTES)}.",
            stacklevel=3,
        )
    return n_ranks


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes() -> int | None:
    """Return the memory that new processes can take, in bytes, or None where the system doesn't tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
