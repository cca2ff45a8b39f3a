"""The two halves of a backward: together they are the whole, and neither does the other's work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ppkit.backward import input_gradients, weight_gradients
from ppkit.models import TransformerLM

N, WIDTH = 5, 4


class Tangle(nn.Module):
    """One weight at three places, an output of weights alone, an input handed on, a parameter handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.constant = nn.Parameter(torch.rand(N, WIDTH))
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        h = self.b(self.a(x).tanh()).relu()
        h = self.frozen(self.a(h)) + z.sin() + nn.functional.linear(h, self.a.weight)
        scale = self.scale.exp()
        low, high = (h * scale).chunk(2, dim=-1)
        return low, high * 2, scale * 3, self.constant, x, low.detach()


class Recurrent(nn.Module):
    """A node of the graph with several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        output, (hidden, cell) = self.lstm(torch.stack([x, z], dim=1))
        return output, hidden, cell


class OneInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        out = self.net(x)
        return out, out  # the same tensor twice: its gradients add up


MODULES: list[Callable[[], nn.Module]] = [Tangle, Recurrent, OneInput]


def _run(module: nn.Module, backward: Callable[..., tuple[Tensor | None, ...]]) -> list[Tensor | None]:
    x, z = (torch.linspace(-1, k, N * WIDTH, dtype=torch.float64).reshape(N, WIDTH).requires_grad_() for k in (1, 2))
    outputs = [output for output in module(x, z) if output.requires_grad]
    gradients = [torch.full_like(output, 0.3 + number) for number, output in enumerate(outputs)]
    found = backward(outputs, gradients, [x, z])
    return [*found, *(parameter.grad for parameter in module.parameters())]


def _whole(outputs: list[Tensor], gradients: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    torch.autograd.backward(outputs, gradients)
    return tuple(x.grad for x in inputs)


def _halves(outputs: list[Tensor], gradients: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    found, branches = input_gradients(outputs, gradients, inputs)
    weight_gradients(branches)
    assert not branches
    return found


@pytest.fixture(params=MODULES, ids=lambda make: make.__name__)
def modules(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    made = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made.append(request.param().double())
    return made[0], made[1]


def test_the_halves_together_are_the_whole(modules: tuple[nn.Module, nn.Module]) -> None:
    for whole, halves in zip(_run(modules[0], _whole), _run(modules[1], _halves), strict=True):
        assert (whole is None) == (halves is None)
        if whole is not None and halves is not None:
            assert torch.allclose(whole, halves, rtol=0, atol=1e-14)


def test_gradients_of_weights_add_up_over_micro_batches(modules: tuple[nn.Module, nn.Module]) -> None:
    for module, backward in zip(modules, (_whole, _halves), strict=True):
        _run(module, backward)
        _run(module, backward)
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=0, atol=1e-13)


def test_the_first_half_touches_no_weight(modules: tuple[nn.Module, nn.Module]) -> None:
    x, z = (torch.ones(N, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
    outputs = [output for output in modules[0](x, z) if output.requires_grad]
    input_gradients(outputs, [torch.ones_like(output) for output in outputs], [x, z])
    assert all(parameter.grad is None for parameter in modules[0].parameters())
    assert x.grad is None


def test_each_half_does_half_of_the_arithmetic() -> None:
    """A matrix product forward is two backward: one for the input, one for the weight."""
    layers = TransformerLM(length=8, width=16, n_layers=2)[1:]  # without the embedding
    x = torch.randn(3, 8, 16, requires_grad=True)

    def flops(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    output = layers(x)
    whole = flops(lambda: output.sum().backward())
    output = layers(x)
    branches = []
    first = flops(lambda: branches.extend(input_gradients([output], [torch.ones_like(output)], [x])[1]))
    second = flops(lambda: weight_gradients(branches))
    assert first + second == whole
    assert second < 0.55 * whole  # attention itself has no weights, so it is a little less than half
    assert second > 0.4 * whole


def test_a_deep_graph_is_no_problem() -> None:
    scale, x = torch.ones((), requires_grad=True), torch.ones(2, requires_grad=True)
    y = x
    for _ in range(3_000):
        y = y + scale * 0.001
    found, branches = input_gradients([y], [torch.ones(2)], [x])
    weight_gradients(branches)
    assert torch.equal(found[0], torch.ones(2))
    assert scale.grad.item() == pytest.approx(6.0, rel=1e-4)
