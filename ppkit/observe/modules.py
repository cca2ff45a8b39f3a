"""Sees outermost forwards, backwards and optimizer steps of plain PyTorch code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ppkit.observe.ddp import show_buckets
from ppkit.observe.fields import Row
from ppkit.observe.recorder import Recorder, Token

_KEY = "ppkit"
_engine = torch.autograd.Variable._execution_engine
_MAX_NODES = 5_000  # a backward's tag lies a few nodes from its root: at a loss, or at the stage's own output


def module_wrappers(recorder: Recorder) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Return what is to be replaced by what, so that `recorder` sees module calls and backwards.

    Modules are wrapped at `nn.Module.__call__` rather than by global hooks, which would slow down every submodule;
    a submodule's call costs one look at the depth.
    """
    return [
        (nn.Module, "__call__", _observed_call(recorder, nn.Module.__call__)),
        (torch.autograd, "backward", _observed_backward(recorder, torch.autograd.backward)),
        (torch.autograd, "grad", _observed_grad(recorder, torch.autograd.grad)),
    ]


def _observed_call(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    inside = recorder.inside

    @functools.wraps(original)
    def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if inside.depth or recorder.in_backward:
            # A submodule: what `original` does, without its frame, so that all of them together cost next to nothing.
            if module._compiled_call_impl is None:
                return module._call_impl(*args, **kwargs)
            return original(module, *args, **kwargs)
        if recorder.running and _is_part(module, recorder.running):  # called in a thread of the outer one's
            return original(module, *args, **kwargs)
        stage = recorder.stage_of(module)
        if stage is None:
            return original(module, *args, **kwargs)
        if stage not in recorder.pace.stages:
            _first_call(recorder, module, stage)
        microbatch = recorder.next_microbatch(stage)
        start = recorder.now()
        inside.depth = 1
        recorder.running.append(module)
        try:
            output = original(module, *args, **kwargs)
        finally:
            inside.depth = 0
            recorder.running.remove(module)
        settle(recorder)
        row = recorder.compute("F", start, stage, microbatch, recorder.stated("F", stage), type(module).__name__)
        _tie(Token(row, stage, _parents(args, kwargs)), output)
        return output

    return __call__


def _is_part(module: nn.Module, running: Iterable[Any]) -> bool:
    """Tell whether one of these modules calls this one: it is a part, or a replica made by a DataParallel."""
    return getattr(module, "_is_replica", False) or any(module in one.modules() for one in list(running))


def _first_call(recorder: Recorder, module: nn.Module, stage: int) -> None:
    recorder.pace.add(stage, module, per_layer=recorder.spreads)
    if isinstance(module, nn.parallel.DistributedDataParallel):
        show_buckets(module)


def settle(recorder: Recorder) -> None:
    """Wait for the GPU, which otherwise computes on while the clock is read."""
    if recorder.on_gpu:
        torch.cuda.current_stream().synchronize()


def _tie(token: Token, output: Any) -> None:
    """Tie the token to the graph nodes of a forward's outputs; without a graph nothing is held."""
    tied = False
    for tensor in [output] if isinstance(output, torch.Tensor) else tree_leaves(output):
        node = getattr(tensor, "grad_fn", None)
        if node is not None and _KEY not in node.metadata:
            node.metadata[_KEY] = token
            tied = True
    if not tied:
        token.release(token.row.end)


def _parents(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Token, ...]:
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):  # mostly
        tensors = list(args)
        if args[0].grad_fn is None:
            return ()
    else:
        tensors = tree_leaves((args, kwargs))
    return tuple(_tokens(t.grad_fn for t in tensors if isinstance(t, torch.Tensor) and t.grad_fn is not None))


def _tokens(roots: Iterable[Any]) -> list[Token]:
    """Return the tokens of the forwards that a backward from `roots` runs through, the nearest first."""
    found: dict[int, Token] = {}
    seen: set[Any] = set()
    nodes = list(roots)
    while nodes and len(seen) < _MAX_NODES:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        token = node.metadata.get(_KEY)
        if token is None:
            nodes.extend(parent for parent, _ in node.next_functions)
        else:
            _add_with_parents(token, found)
    return list(found.values())


def _add_with_parents(token: Token, found: dict[int, Token]) -> None:
    if id(token) not in found:
        found[id(token)] = token
        for parent in token.parents:
            _add_with_parents(parent, found)


def _observed_backward(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder.in_backward:
            return original(tensors, *args, **kwargs)
        kept = bool(kwargs.get("retain_graph") or kwargs.get("create_graph") or any(args[1:3]))
        tensors = _kept(tensors)
        kind = _kind(kwargs.get("inputs"))
        return _run_backward(recorder, kind, _as_list(tensors), kept, lambda: original(tensors, *args, **kwargs))

    return backward


def _observed_grad(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder.in_backward:
            return original(outputs, inputs, *args, **kwargs)
        kept = bool(kwargs.get("retain_graph") or kwargs.get("create_graph") or any(args[1:3]))
        outputs, inputs = _kept(outputs), _kept(inputs)
        return _run_backward(
            recorder,
            _kind(inputs),
            _as_list(outputs),
            kept,
            lambda: original(outputs, inputs, *args, **kwargs),
        )

    return grad


def _kept(tensors: Any) -> Any:
    """What a backward takes, to be read twice: `stage.parameters()` can be read only once."""
    return list(tensors) if isinstance(tensors, Iterator) else tensors


def _as_list(tensors: Any) -> list[Any]:
    """What a backward takes: tensors, by name or not, or edges of the graph, which are tuples themselves."""
    if isinstance(tensors, Mapping):
        return list(tensors.values())
    return [tensors] if isinstance(tensors, (torch.Tensor, GradientEdge)) else list(tensors)


def _node(root: torch.Tensor | GradientEdge) -> Any:
    """The node of the graph that a backward begins at."""
    return root.node if isinstance(root, GradientEdge) else root.grad_fn


def _leaf(tensor: torch.Tensor | GradientEdge) -> Any:
    """The tensor itself; of an edge that ends at a leaf, that leaf."""
    return getattr(tensor.node, "variable", None) if isinstance(tensor, GradientEdge) else tensor


def _kind(inputs: Any) -> str:
    """Tell a full backward from one for the weights or the inputs alone."""
    if inputs is None:
        return "B"
    weights = [isinstance(_leaf(tensor), nn.Parameter) for tensor in _as_list(inputs)]
    return "W" if all(weights) else "B" if any(weights) else "I"


def _run_backward(recorder: Recorder, kind: str, roots: list[Any], kept: bool, run: Callable[[], Any]) -> Any:
    tokens = _tokens(map(_node, roots))
    stated = [s for token in tokens if (s := recorder.stated(kind, token.stage)) is not None]
    seconds = sum(stated) if stated else None
    stage, microbatch = (tokens[0].stage, tokens[0].row.microbatch) if tokens else (None, None)
    name = "backward"
    if len(tokens) > 1 and len(microbatches := sorted({token.row.microbatch or 0 for token in tokens})) > 1:
        microbatch = None
        name = "backward of micro-batches " + ", ".join(map(str, microbatches))
    rows: list[Row] = []

    def computed() -> None:
        settle(recorder)
        rows.append(recorder.compute(kind, start, stage, microbatch, seconds, name))

    # Autograd calls it when the arithmetic is over, before what others want done at the end of the backward: to wait
    # for gradients that are on their way is not to compute.
    handle = None
    if recorder.emulation is not None or recorder.pace.has_followers:  # else its 20 microseconds are for nothing
        root = next((one for one in roots if isinstance(one, torch.Tensor) and one.requires_grad), None)
        handle = None if root is None else root.register_hook(lambda _: _engine.queue_callback(computed))
    start = recorder.now()
    if seconds is not None:
        recorder.pace.begin(start, seconds, {token.stage for token in tokens})
    recorder.in_backward = True
    try:
        result = run()
    finally:
        recorder.in_backward = False
        recorder.pace.end()
        if handle is not None:
            handle.remove()
    if not rows:
        computed()
    if not kept:
        for token in tokens:
            token.release(rows[0].end)
    return result


def observe_optimizers(recorder: Recorder) -> tuple[RemovableHandle, RemovableHandle]:
    """Hook into the steps of all optimizers of this process; return the handles of the hooks."""
    running: list[float] = []  # an optimizer may hold another, as ZeroRedundancyOptimizer does: the outer one counts

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        running.append(recorder.now())

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        start = running.pop()
        if running:
            return
        settle(recorder)
        name = f"{type(optimizer).__name__}.step"
        recorder.compute("OPTIM", start, None, None, recorder.stated("OPTIM", recorder.rank), name)
        recorder.step_taken()

    return register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
