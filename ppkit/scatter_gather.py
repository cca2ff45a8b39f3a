"""DataParallel to read: one process scatters a batch, replicates its model, runs the replicas in threads, gathers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ppkit.errors import LaunchError
from ppkit.event import Event
from ppkit.timeline import Timeline
from ppkit.values import listed

__all__ = ["DataParallel", "gather", "parallel_apply", "replicate", "scatter", "watch"]


def scatter(batch: Any, devices: Sequence[torch.device]) -> list[Any]:
    """Cut every tensor of `batch` along its first dimension, one piece for each device.

    Args:
        batch: tensors `[N, ...]`, also in tuples, lists and dicts; anything else, and a tensor that is one number,
            goes to every device as it is.
        devices: where the pieces go; fewer rows than devices leave the last ones without a piece.

    Returns:
        one batch a device, the first ones with a row more where the rows don't divide.
    """
    leaves, structure = tree_flatten(batch)
    pieces = [
        leaf.tensor_split(len(devices)) if isinstance(leaf, torch.Tensor) and leaf.dim() else [leaf] * len(devices)
        for leaf in leaves
    ]
    n_used = max((sum(len(piece) > 0 for piece in p) for p in pieces if isinstance(p, tuple)), default=len(devices))
    shards = []
    for i, device in enumerate(devices[: max(1, n_used)]):
        shard = [piece[i].to(device) if isinstance(piece[i], torch.Tensor) else piece[i] for piece in pieces]
        shards.append(tree_unflatten(shard, structure))
    return shards


def replicate(module: nn.Module, devices: Sequence[torch.device]) -> list[nn.Module]:
    """Copy a module to every device so that the copies' gradients flow back to it.

    A copy's parameters are results of the original's (`clone` and `to`): a backward through the copy adds to the
    original's gradients. The first copy shares its buffers with the original, the others' are lost.

    Args:
        module: the original.
        devices: of the copies.
    """
    return [_replica(module, device, first=i == 0) for i, device in enumerate(devices)]


def _replica(module: nn.Module, device: torch.device, first: bool) -> nn.Module:
    copies: dict[int, Any] = {}  # by the original's id: what is tied stays tied

    def tensor(original: torch.Tensor | None, is_buffer: bool) -> Any:
        if original is None or (is_buffer and first):
            return original
        if id(original) not in copies:
            copies[id(original)] = original.to(device) if original.device != device else original.clone()
        return copies[id(original)]

    def module_copy(original: nn.Module) -> nn.Module:
        if id(original) not in copies:
            replica = copies[id(original)] = original.__new__(type(original))
            replica.__dict__ = original.__dict__.copy()
            # Plain attributes: the copies are no leaves of the graph. nn.DataParallel's have no parameters either.
            replica._parameters = {}
            replica.__dict__["_is_replica"] = True
            replica.__dict__ |= {name: tensor(p, False) for name, p in original._parameters.items()}
            replica._buffers = {name: tensor(b, True) for name, b in original._buffers.items()}
            replica._modules = {name: child and module_copy(child) for name, child in original._modules.items()}
        return copies[id(original)]  # type: ignore[no-any-return]

    return module_copy(module)


class Call(NamedTuple):
    """What one replica's call gave, and its start and end in seconds of the host's monotonic clock."""

    output: Any
    error: BaseException | None
    start: float
    end: float


def parallel_apply(
    replicas: Sequence[nn.Module], shards: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
) -> list[Call]:
    """Call every replica with its shard, each in a thread of its own.

    Args:
        replicas: one for each shard.
        shards: arguments and keyword arguments of each call.

    Returns:
        the calls, in the order of the shards.

    Raises:
        Exception: what the first replica that failed has raised.
    """
    calls: list[Call | None] = [None] * len(shards)
    with_gradients = torch.is_grad_enabled()  # a new thread knows nothing of `torch.no_grad()` in this one

    def run(i: int) -> None:
        output, error, start = None, None, time.perf_counter()
        try:
            with torch.set_grad_enabled(with_gradients):
                output = replicas[i](*shards[i][0], **shards[i][1])
        except BaseException as failure:  # an exit too: only the caller's thread can end the program
            error = failure
        calls[i] = Call(output, error, start, _clock(output))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [call for call in calls if call is not None]
    for call in done:
        if call.error is not None:
            raise call.error
    return done


def gather(outputs: Sequence[Any], device: torch.device) -> Any:
    """Join the replicas' outputs along their first dimension on one device; the backward cuts the gradient again.

    Args:
        outputs: tensors `[n, ...]`, or tuples, lists and dicts of them, alike for all replicas.
        device: where they are joined.

    Raises:
        LaunchError: an output has no rows, such as a loss that is one number.
    """

    def join(*tensors: Any) -> Any:
        if not all(isinstance(tensor, torch.Tensor) and tensor.dim() for tensor in tensors):
            raise LaunchError(
                f"DataParallel gathers tensors with rows, got {tensors[0]!r}: let the module return one output a row, "
                "and compute the loss from the gathered outputs"
            )
        return torch.cat([tensor.to(device) for tensor in tensors])

    return tree_map(join, outputs[0], *outputs[1:])


class DataParallel(nn.Module):
    """One process with one replica a device: each call scatters, replicates, applies in parallel, and gathers.

        replica 0   scatter | replicate | forward | gather |   loss and optimizer: here alone
        replica 1                       | forward |

    As `torch.nn.DataParallel` does on GPUs. On the CPU all devices are the same one, and the mechanics remain.

    Args:
        module: the model, whose parameters are on the first device.
        devices: one for each replica.

    Attributes:
        timeline: when the parts of the last call ran; each replica is a row.

    Raises:
        LaunchError: there is no device, or one that torch does not know.
    """

    def __init__(self, module: nn.Module, devices: Sequence[torch.device | str]) -> None:
        super().__init__()
        use = "give one for each replica, such as ['cpu'] * 2"
        given = listed(devices)
        if not given:
            raise LaunchError(f"DataParallel(devices={devices!r}): {use}")
        try:
            self.devices = [torch.device(device) for device in given]
        except (RuntimeError, TypeError, ValueError) as error:
            raise LaunchError(f"DataParallel(devices={devices!r}): {error}; {use}") from None
        self.module = module
        self.timeline: Timeline | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module on the whole batch, cut into one shard a replica."""
        times = [_clock(args)]
        shards = scatter((args, kwargs), self.devices)
        times.append(_clock(shards))
        replicas = replicate(self.module, self.devices[: len(shards)])
        times.append(_clock(shards))
        calls = parallel_apply(replicas, shards)
        times.append(_clock())
        output = gather([call.output for call in calls], self.devices[0])
        times.append(_clock(output))
        self.timeline = _timeline(times, calls)
        return output


def watch(model: nn.DataParallel[Any]) -> nn.DataParallel[Any]:
    """Let torch's own DataParallel note when the parts of its last call ran, as `DataParallel` does.

    Args:
        model: on two GPUs or more; on one, or without any, it calls its module and has no such parts.

    Returns:
        the same model. Its ``timeline`` is None until it has been called on several devices.
    """
    cut, copy, call, join = model.scatter, model.replicate, model.parallel_apply, model.gather
    times: list[float] = []
    shards: list[Any] = []  # one on each device
    calls: list[Call] = []

    def scattered(inputs: Any, *rest: Any) -> Any:
        times[:] = [_clock(inputs)]
        shards[:] = cut(inputs, *rest)
        times.append(_clock(shards))
        return tuple(shards)

    def replicated(*args: Any) -> Any:
        replicas = copy(*args)
        times.append(_clock(shards))
        return replicas

    def applied(replicas: Sequence[nn.Module], *args: Any) -> Any:
        calls[:] = [Call(None, None, 0.0, 0.0)] * len(replicas)
        for i, replica in enumerate(replicas):  # made for this call alone
            replica.forward = noted(replica.forward, i)
        outputs = call(replicas, *args)
        times.append(_clock())
        return outputs

    def noted(forward: Callable[..., Any], i: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            output = forward(*args, **kwargs)
            calls[i] = Call(None, None, start, _clock(output))
            return output

        return run

    def gathered(*args: Any) -> Any:
        output = join(*args)
        shards.clear()
        model.timeline = _timeline([*times, _clock(output)], calls)  # type: ignore[assignment]
        return output

    for name, part in (
        ("scatter", scattered),
        ("replicate", replicated),
        ("parallel_apply", applied),
        ("gather", gathered),
        ("timeline", None),
    ):
        setattr(model, name, part)
    return model


def _clock(tensors: Any = None) -> float:
    """The host's monotonic time in seconds, once the GPUs of these tensors have done what they were given."""
    for device in {leaf.device for leaf in tree_flatten(tensors)[0] if isinstance(leaf, torch.Tensor)}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter()


def _timeline(times: Sequence[float], calls: Sequence[Call]) -> Timeline:
    zero = times[0]
    events = [
        Event(0, "COMPUTE", times[i] - zero, times[i + 1] - zero, name=name)
        for i, name in ((0, "scatter"), (1, "replicate"), (3, "gather"))
    ]
    events += [Event(i, "F", call.start - zero, call.end - zero, i, 0, "forward") for i, call in enumerate(calls)]
    roles = {f"rank {i}": f"replica {i}" for i in range(len(calls))}
    return Timeline(tuple(events), "measured", len(calls), "DataParallel: all replicas in one process", roles)
