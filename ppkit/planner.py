"""Which ways of training fit a machine, and which is the fastest: all computed as simulated, ranked, and explained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppkit.drafts import Draft
from ppkit.plans import MOST_DEVICES, Machine, Model, Option, Plan, PlanError, Rejected
from ppkit.quick import SCHEDULES, forget
from ppkit.units import bytes_text, kind_of
from ppkit.values import whole
from ppkit.ways import Step, Way, impossible, ways

__all__ = ["Machine", "Model", "Option", "Plan", "PlanError", "Rejected", "estimate", "plan"]


_MOST_CHUNKS = 4  # of an interleaved rank, that a plan tries; `estimate` takes any number
_SAME = 1e-9  # sums of the same durations in another order may differ in the last bits


def plan(model: Model, machine: Machine, batch: int) -> Plan:
    """Find what every way to train a model on a machine takes, and rank those that fit by the time of a step.

    One device, data parallelism (``DP``: gradients in buckets of 25 MiB, reduced under the last backward), the same
    with the optimizer's state cut (``ZeRO-1``), pipelines, and replicas of pipelines, on all or on fewer devices: d
    replicas of p stages where d·p divides their number. Where the machine has nodes, each of these with tensor
    parallelism too (``TP``), in groups of t devices of a node, where t·d·p divides the number. Of each, the number of
    micro-batches is tried in powers of 2 up to 8 p (one stage: up to a replica's share of the batch), and the fastest
    that fits is kept. Interleaved ranks have two to four chunks, whichever is fastest.

    Tensor parallelism divides parameters, arithmetic and most activations by t; a layer all-reduces its activations
    twice in the forward and twice in the backward, and waits for that (Megatron-LM, arXiv 1909.08053).

    Simplified: layers are equal; embedding, optimizer's step, buckets and fragmentation cost nothing; a full
    micro-batch counts where the batch does not divide; ZeRO-1 all-reduces gradients and all-gathers parameters, as
    `ppkit.zero` (with a reduce-scatter it would send a third less). Groups are laid out with tensor parallelism
    innermost, then the pipeline, then replicas; one that lies within a node uses its links, any other those between.

    Args:
        model: what one sample costs.
        machine: what the devices and links can do; 64 devices at most.
        batch: samples in a step, over all replicas.

    Raises:
        PlanError: no such batch, or too many devices.
    """
    batch = _check_question(model, machine, batch)
    if machine.n_devices > MOST_DEVICES:
        raise PlanError(
            f"n_devices={machine.n_devices}: a plan compares all ways on at most {MOST_DEVICES}; for more, ask "
            "estimate() about one way",
            values={"n_devices": machine.n_devices},
        )
    options: list[Option] = []
    rejected: list[Rejected] = []
    for way in ways(machine):
        if reason := impossible(way, model, batch):
            rejected.append(Rejected(way.kind, str(way), reason))
            continue
        tried = [
            Draft(Step(one, m, model, machine, batch)) for one in _chunked(way, model) for m in _counts(way, batch)
        ]
        for zero in (False, True)[: 1 + (way.n_replicas > 1)]:
            _sort_out([draft.with_zero() for draft in tried] if zero else tried, machine, options, rejected)
    forget()
    options.sort(key=lambda option: (option.seconds, option.n_devices, option.peak_memory))
    return Plan(model, machine, batch, tuple(options), tuple(rejected))


def estimate(
    model: Model,
    machine: Machine,
    batch: int,
    n_microbatches: int,
    *,
    schedule: str = "1F1B",
    n_stages: int = 1,
    n_replicas: int = 1,
    n_tensor: int = 1,
    n_chunks: int = 2,
    zero: bool = False,
) -> Option:
    """What one way of training takes, whether it fits or not, on any number of devices; as `plan` finds it.

    Args:
        model: what one sample costs.
        machine: what the devices and links can do.
        batch: samples in a step, over all replicas.
        n_microbatches: parts in which a replica takes its share.
        schedule: of the stages, such as ``"ZB-H1"``: see `ppkit.quick.SCHEDULES`.
        n_stages: p, devices in a pipeline, or groups of them.
        n_replicas: d.
        n_tensor: t, devices in a group; larger than a node, it uses the links between nodes.
        n_chunks: of a rank's layers, for the interleaved schedule.
        zero: cut the optimizer's state over the replicas: ZeRO-1.

    Raises:
        PlanError: no such schedule, number or truth value, or the model, batch or machine cannot be divided so.
    """
    batch = _check_question(model, machine, batch)
    n_microbatches = _count("n_microbatches", n_microbatches)
    n_stages, n_replicas = _count("n_stages", n_stages), _count("n_replicas", n_replicas)
    n_tensor, n_chunks = _count("n_tensor", n_tensor), _count("n_chunks", n_chunks)
    if not isinstance(zero, bool):
        raise PlanError(f"zero={zero!r}: it must be True or False", values={"zero": zero})
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise PlanError(f"no schedule {schedule!r}: it is one of {', '.join(SCHEDULES)}")
    chunks = n_chunks if schedule == "interleaved 1F1B" and n_stages > 1 else 1
    way = Way(schedule if n_stages > 1 else "", n_stages, n_replicas, n_tensor, chunks)
    why = impossible(way, model, batch)
    if not why and n_tensor * n_stages * n_replicas > machine.n_devices:
        why = f"needs {n_tensor * n_stages * n_replicas} devices, but there are {machine.n_devices}"
    rows = math.ceil(batch / n_replicas)
    if not why and n_microbatches > rows:
        why = f"needs a sample for each of {n_microbatches} micro-batches, but a replica has {rows}"
    if why:
        counts = {
            "n_microbatches": n_microbatches, "n_stages": n_stages, "n_replicas": n_replicas, "n_tensor": n_tensor
        }  # fmt: skip
        raise PlanError(f"{way}: {why}", values=counts)
    return Draft(Step(way, n_microbatches, model, machine, batch, zero and n_replicas > 1)).option


def _check_question(model: object, machine: object, batch: object) -> int:
    """The batch as an int; PlanError where one of the three is something else."""
    for name, value, kind in (("model", model, Model), ("machine", machine, Machine)):
        if not isinstance(value, kind):
            raise PlanError(f"{name} is {kind_of(value)}; the arguments are a Model, a Machine and the batch")
    return _count("batch", batch, "a whole number of samples, at least 1")


def _count(name: str, value: object, kind: str = "a whole number of at least 1") -> int:
    count = whole(value)
    if count is None or count < 1:
        raise PlanError(f"{name}={value!r}: {kind}", values={name: value})
    return count


def _chunked(way: Way, model: Model) -> list[Way]:
    """The same way with other numbers of chunks, where it has chunks and the model enough layers."""
    most = min(_MOST_CHUNKS, model.n_layers // way.n_stages) if way.n_chunks > 1 else way.n_chunks
    return [way._replace(n_chunks=n) for n in range(way.n_chunks, most + 1)]


def _counts(way: Way, batch: int) -> list[int]:
    rows = math.ceil(batch / way.n_replicas)
    most = min(rows, 8 * way.n_stages) if way.n_stages > 1 else rows
    return [2**power for power in range(most.bit_length())]


def _sort_out(tried: list[Draft], machine: Machine, options: list[Option], rejected: list[Rejected]) -> None:
    """Keep the fastest of one way's drafts that fits; or else say what the smallest would need."""
    fitting = [draft for draft in tried if draft.peak_memory <= machine.memory]
    if fitting:
        options.append(_fastest(fitting).option)
        return
    least = min(tried, key=lambda draft: draft.peak_memory)
    rank = least.memory.index(least.peak_memory)
    why = f"needs {bytes_text(least.peak_memory)} on rank {rank}, but a device has {bytes_text(machine.memory)}"
    rejected.append(Rejected(least.kind, least.name, why, least.peak_memory))


def _fastest(drafts: Sequence[Draft]) -> Draft:
    """The one with the shortest step, and the least memory among equals; most are never computed."""
    tried: list[Draft] = []
    shortest = math.inf
    for draft in sorted(drafts, key=lambda draft: draft.bound):
        if draft.bound * (1 - _SAME) > shortest:
            break
        tried.append(draft)
        shortest = min(shortest, draft.seconds)
    return min((one for one in tried if one.seconds * (1 - _SAME) <= shortest), key=lambda draft: draft.peak_memory)
