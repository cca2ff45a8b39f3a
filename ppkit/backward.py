"""A backward in two halves: the gradients of the inputs now, those of the weights later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["Branch", "input_gradients", "weight_gradients"]

Node: TypeAlias = Any  # of autograd's graph, whose classes torch makes at run time
Edge: TypeAlias = tuple[Node, int]  # a node, and by which of its outputs the gradient is that comes into it

# The graph of a stage, from its outputs down, has a trunk: the nodes that lead to an input. Weights hang on it:
#
#     output ─ AddmmBackward ─ ReluBackward ─ AddmmBackward ─ input
#                  │  └ bias                      │  └ bias
#                  └ T ─ weight                   └ T ─ weight
#
# Asked for the inputs alone, autograd walks the trunk and computes in each node only what the trunk needs. What came
# into the nodes where weights hang (here: both AddmmBackward) is kept. From there, asked for the weights alone,
# autograd computes the rest later. Zero bubble pipeline parallelism: https://arxiv.org/abs/2401.10241, section 2.


@dataclass
class Branch:
    """Weights that must be computed together, and what that takes.

    Two nodes of the trunk share a branch if anything is reached from both beside the trunk, such as a weight that is
    used twice.

    Attributes:
        weights: whose gradients are missing.
        nodes: of the trunk, on which they hang.
        kept: what came into those.
        direct: gradients of outputs that no input leads to.
    """

    weights: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    kept: dict[Edge, Tensor] = field(default_factory=dict)
    direct: dict[Edge, Tensor] = field(default_factory=dict)


def input_gradients(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[tuple[Tensor | None, ...], list[Branch]]:
    """The gradients of `inputs` alone, and what `weight_gradients` needs for those of the weights.

    Args:
        outputs: of a forward; each needs a gradient.
        gradients: of the loss by each of the outputs.
        inputs: of the forward: leaves that need a gradient, one at least.

    Returns:
        the gradient of each input, None for one that no output depends on; and the branches.
    """
    roots = [_edge(output) for output in outputs]
    order = _post_order(node for node, _ in roots)
    leaves = {_edge(tensor)[0] for tensor in inputs}
    trunk: set[Node] = set()
    for node in order:  # what a node leads to stands before it
        if node in leaves or any(parent in trunk for parent, _ in node.next_functions):
            trunk.add(node)
    branches = _branches(order, trunk)

    branch_at = {node: branch for branch in branches.values() for node in branch.nodes}
    edges = {edge: None for node in order for edge in node.next_functions if edge[0] in branch_at}
    edges |= {root: None for root in roots if root[0] in branch_at}
    wanted: list[Any] = [*inputs, *(GradientEdge(node, index) for node, index in edges)]
    found = torch.autograd.grad(outputs, wanted, gradients, retain_graph=True, allow_unused=True)
    for edge, gradient in zip(edges, found[len(inputs) :], strict=True):
        if gradient is not None:
            branch_at[edge[0]].kept[edge] = gradient
    for root, gradient in zip(roots, gradients, strict=True):
        if root[0] in branches:
            direct = branches[root[0]].direct
            direct[root] = direct[root] + gradient if root in direct else gradient
    needed = {id(branch): branch for branch in branches.values() if branch.kept or branch.direct}
    return found[: len(inputs)], list(needed.values())


def weight_gradients(branches: list[Branch]) -> None:
    """Add the gradients of the weights to their `.grad`, and let go of the graph."""
    while branches:
        branch = branches.pop()
        into = branch.kept | branch.direct
        # One of the nodes may lie on another's way to the weights. What comes along the trunk is in its kept
        # gradient already, so it takes that one alone.
        pins = [node.register_prehook(partial(_pin, node, branch.kept)) for node in branch.nodes if len(into) > 1]
        try:
            edges = [GradientEdge(node, index) for node, index in into]
            torch.autograd.backward(edges, list(into.values()), retain_graph=True, inputs=branch.weights)
        finally:
            for pin in pins:
                pin.remove()


def _pin(node: Node, kept: dict[Edge, Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple(kept.get((node, index)) for index in range(len(gradients)))


def _edge(tensor: Tensor) -> Edge:
    if tensor.grad_fn is None:  # a leaf's node is made when something is computed from it
        return tensor.view_as(tensor).grad_fn.next_functions[0][0], 0  # type: ignore[union-attr]
    return tensor.grad_fn, tensor.output_nr


def _post_order(roots: Iterable[Node]) -> list[Node]:
    """All nodes that `roots` lead to, each after those it leads to itself; without recursion, for graphs are deep."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(parent, False) for parent, _ in node.next_functions if parent is not None]
    return order


def _branches(order: Sequence[Node], trunk: set[Node]) -> dict[Node, Branch]:
    """For each node beside the trunk its branch."""
    branch_of: dict[Node, Node] = {}  # a node -> another of its branch, and so on to one that stands for all

    def chief(node: Node) -> Node:
        while branch_of[node] is not node:
            branch_of[node] = node = branch_of[branch_of[node]]
        return node

    for node in order:
        parts = [parent for parent, _ in node.next_functions if parent is not None and parent not in trunk]
        if node not in trunk:
            parts.append(branch_of.setdefault(node, node))
        for part in parts[1:]:  # what one node leads to is computed together
            branch_of[chief(part)] = chief(parts[0])
    chiefs = {node: chief(node) for node in branch_of}
    found = {node: Branch() for node in set(chiefs.values())}
    for node in order:
        if node in trunk:
            part = next((parent for parent, _ in node.next_functions if parent in chiefs), None)
            if part is not None:
                found[chiefs[part]].nodes.append(node)
        elif node.name() == "torch::autograd::AccumulateGrad":
            found[chiefs[node]].weights.append(node.variable)
    return {node: found[chief] for node, chief in chiefs.items() if found[chief].weights}
