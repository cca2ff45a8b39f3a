"""Says how the two ends of a message, or the ranks of a collective, disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

from ppkit.launch.board import DETAILS, Board, Details, Stamp
from ppkit.launch.wording import at, describe_call, sends

# What the numbers in a stamp's details mean; 0 is what cannot be compared.
NAMES = (
    "send", "isend", "recv", "irecv", "all_reduce", "broadcast", "reduce", "all_gather", "all_gather_into_tensor",
    "reduce_scatter", "reduce_scatter_tensor", "gather", "scatter", "all_to_all_single", "barrier",
)  # fmt: skip
ITEM_BYTES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
DTYPES = ("", *ITEM_BYTES)
REDUCTIONS = ("", "SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR")
MAX_DIMS = 6
ANY_SHAPE = 255  # in place of the number of dimensions


def shape_of(details: Details) -> list[int]:
    """Return the shape in a stamp's details."""
    _name, _dtype, n_dims, _reduction, _root, *sizes = DETAILS.unpack(details)
    return [] if n_dims == ANY_SHAPE else list(sizes[:n_dims])


def describe(board: Board, rank: int, number: int, stamp: Stamp) -> dict[str, Any]:
    """Return a stamped call as `Recorder.pending` describes one."""
    _time, site, details = stamp
    name, dtype, n_dims, reduction, root, *_ = DETAILS.unpack(details)
    shape = None if n_dims == ANY_SHAPE else tuple(shape_of(details))
    return {
        "rank": rank, "name": NAMES[name], "peer": None, "tag": None, "number": number,
        "shape": shape, "dtype": DTYPES[dtype] or None,
        "nbytes": None if shape is None or not dtype else prod(shape) * ITEM_BYTES[DTYPES[dtype]],
        "root": None if root < 0 else root, "reduction": REDUCTIONS[reduction] or None,
        "frame": board.frame(rank, site),
    }  # fmt: skip


def collective_calls(board: Board, members: Sequence[int], group: int, number: int) -> list[dict[str, Any]]:
    """Return who has come to a collective so far, and how."""
    stamps = ((member, board.collective(member, group, number)) for member in members)
    return [describe(board, member, number, stamp) for member, stamp in stamps if stamp is not None]


def blamed(calls: Sequence[dict[str, Any]]) -> int:
    """Return the rank to name first: the receiver, or the first that does as the fewest do."""
    if calls[0]["peer"] is not None:
        return int(next(call["rank"] for call in calls if not sends(call)))
    counts = Counter(map(_joined, calls))
    most = max(counts.values())
    usual = next(_joined(call) for call in calls if counts[_joined(call)] == most)
    return int(next((call["rank"] for call in calls if _joined(call) != usual), calls[0]["rank"]))


def mismatch_text(calls: Sequence[dict[str, Any]]) -> str:
    """Explain calls that belong together and don't agree: a send and its receive, or a collective of several ranks."""
    if calls[0]["peer"] is None:
        return _of_collective(calls)
    sent, wanted = sorted(calls, key=sends, reverse=True)
    return (
        f"rank {wanted['rank']} receives {_thing(wanted)}, but rank {sent['rank']} sends {_thing(sent)}: "
        f"{_difference(sent, wanted)}.\n{_table((sent, wanted))}\n"
        f"A message carries only bytes: make the buffer as the message is, torch.empty({_shape(sent)}, "
        f"dtype=torch.{sent['dtype']}), or send another tensor."
    )


def _of_collective(calls: Sequence[dict[str, Any]]) -> str:
    number = calls[0]["number"] + 1
    names = list(dict.fromkeys(call["name"] for call in calls))
    if len(names) > 1:
        who = "; ".join(f"{_ranks([c['rank'] for c in calls if c['name'] == name])} in {name}" for name in names)
        what = f"The ranks are in different collectives: {who}"
        advice = "Every rank of a group must make the same collectives in the same order."
    elif len({call["root"] for call in calls}) > 1:
        roots = ", ".join(f"{call['root']} on rank {call['rank']}" for call in calls)
        what = f"The ranks name different roots in {names[0]}: {roots}"
        advice = "Give the same src or dst on every rank."
    elif len({call["reduction"] for call in calls}) > 1:
        how = ", ".join(f"{call['reduction']} on rank {call['rank']}" for call in calls)
        what = f"The ranks name different operations in {names[0]}: {how}"
        advice = "Give the same op on every rank."
    else:
        other = next(call for call in calls if _joined(call) != _joined(calls[0]))
        what = f"The ranks come to {names[0]} with different tensors: {_difference(calls[0], other)}"
        advice = f"{names[0]} needs the same shape and dtype on every rank of its group."
    return f"{what}. It is collective number {number} of each of them.\n{_table(calls)}\n{advice}"


def _joined(call: dict[str, Any]) -> tuple[Any, ...]:
    return call["name"], call["dtype"], str(call["shape"]), call["root"], call["reduction"]


def _table(calls: Sequence[dict[str, Any]]) -> str:
    return "\n".join(
        f"  rank {call['rank']}: {describe_call(call)}{at([call['frame']] if call['frame'] else [])}" for call in calls
    )


def _thing(call: dict[str, Any]) -> str:
    if call["shape"] is None:
        return str(call["dtype"])
    return f"{call['dtype']} of shape {list(call['shape'])} ({call['nbytes']} bytes)"


def _shape(call: dict[str, Any]) -> str:
    return ", ".join(map(str, call["shape"] or ())) or "()"


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Name the first difference of two tensors."""
    if one["dtype"] != other["dtype"]:
        return "different dtypes"
    return f"a mismatch in shape, {list(one['shape'] or ())} and {list(other['shape'] or ())}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks))}"
