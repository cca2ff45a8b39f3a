"""Models of every kind that a pipeline must train as one process does, and how both train them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from ppkit.models import Blocks, EncoderDecoder, TransformerLM, mlp, split
from ppkit.runtime import Pipeline, shared_parameters
from ppkit.schedule import Schedule
from ppkit.skips import Pop, Stash

F64 = torch.float64
WIDTH = 6
MAX_STAGES = 8


class Twice(nn.Module):
    """Uses one weight twice, and hands on three tensors: one that needs no gradient, one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, number: Tensor | None = None, unused: Tensor | None = None) -> tuple[Tensor, ...]:
        h = self.linear(self.linear(x).tanh())
        return h + x, (number if number is not None else torch.arange(len(x))) + 1, h * 2


class Experts(nn.Module):
    """Two layers, each for the samples of one sign: a micro-batch may leave one of them without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.never = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0] > 0
        parts = [self.experts[k](x[mask]) for k, mask in ((0, first), (1, ~first)) if mask.any()]
        order = torch.cat([mask.nonzero()[:, 0] for mask in (first, ~first)])
        return x + torch.cat(parts)[order.argsort()].tanh()


class First(nn.Module):
    """Takes the first of several tensors."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x


def _linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


def _frozen() -> nn.Sequential:
    blocks = [_linear() for _ in range(MAX_STAGES)]
    for frozen in (0, 3, 4):
        blocks[frozen].requires_grad_(False)
    blocks[6][0].bias.requires_grad_(False)
    return nn.Sequential(*blocks)


def _skips() -> nn.Sequential:
    down = [Blocks(_linear(), Stash(name)) for name in "abc"]
    up = [Blocks(Pop(name, torch.add), _linear()) for name in "cba"]
    return Blocks(*down, _linear(), _linear(), *up)


def _dropout() -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(*_linear(), nn.Dropout(0.5)) for _ in range(MAX_STAGES)])


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(5)
            return build().to(F64)

    return seeded


def _lm(tied: bool) -> Callable[[], nn.Module]:
    sizes = {"vocabulary_size": 11, "length": 5, "width": 8, "n_heads": 2, "n_layers": MAX_STAGES - 2}
    return lambda: TransformerLM(**sizes, tie_embeddings=tied, dtype=F64)


def _translator() -> nn.Module:
    return EncoderDecoder(width=8, n_heads=2, n_encoder_layers=3, n_decoder_layers=4, dtype=F64)


def _tokens(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output.flatten(0, 1), target.flatten())


def _first_squared(output: Any, target: Tensor) -> Tensor:
    return mse_loss(output[0] if isinstance(output, tuple) else output, target)


@dataclass(frozen=True)
class Kind:
    """A model of eight blocks, what it is fed, and its loss."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    targets: Callable[[int], Any]
    loss_fn: Callable[..., Tensor]


def _vectors(n: int) -> Tensor:
    return torch.randn(n, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(n))


def _numbers(*shape: int, below: int = 10) -> Tensor:
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(shape[0]))


def _vector_kind(build: Callable[[], nn.Module]) -> Kind:
    return Kind(_seeded(build), _vectors, lambda n: _vectors(n).flip(0), _first_squared)


KINDS = {
    "mlp": Kind(
        lambda: mlp(WIDTH, 5, 4, n_layers=MAX_STAGES, dtype=F64),
        _vectors,
        lambda n: _numbers(n, below=4),
        cross_entropy,
    ),
    "language model": Kind(_lm(False), lambda n: _numbers(n, 5), lambda n: _numbers(n, 5), _tokens),
    "tied": Kind(_lm(True), lambda n: _numbers(n, 5), lambda n: _numbers(n, 5), _tokens),
    "tuples": Kind(_translator, lambda n: (_numbers(n, 6), _numbers(n, 11)), lambda n: _numbers(n, 11), _tokens),
    "used twice": _vector_kind(lambda: Blocks(*[Twice() for _ in range(MAX_STAGES)])),
    "sometimes unused": _vector_kind(lambda: nn.Sequential(*[Experts() for _ in range(MAX_STAGES)])),
    "frozen": _vector_kind(_frozen),
    "skips": _vector_kind(_skips),
    "dropout": _vector_kind(_dropout),
}


@dataclass(frozen=True)
class Case:
    """One training step."""

    kind: str
    schedule: Schedule
    n_samples: int
    checkpoint: bool | tuple[int, ...] = False

    def __str__(self) -> str:
        s = self.schedule
        kept = f", checkpoint={self.checkpoint}" if self.checkpoint else ""
        return f"{self.kind}, {s.name}, p={s.n_ranks}, m={s.n_microbatches}, N={self.n_samples}{kept}"


Found = tuple["float | None", dict[str, "Tensor | None"]]


def one_process(kind: str, n_samples: int) -> Found:
    """Loss, and gradients by parameter, of the whole batch in one process."""
    model, made = KINDS[kind].build(), KINDS[kind]
    inputs = made.inputs(n_samples)
    loss = made.loss_fn(model(*inputs) if isinstance(inputs, tuple) else model(inputs), made.targets(n_samples))
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters(remove_duplicate=False)}


def in_ranks(cases: list[Case], n_steps: int = 1) -> list[Found]:
    """The same on this rank, for each case; of the last of some steps. Called on all ranks."""
    rank, found = dist.get_rank(), []
    for case in cases:
        schedule, made = case.schedule, KINDS[case.kind]
        stages = split(made.build(), schedule.n_stages, by="layers")
        mine = {s: stages[s] for s, owner in enumerate(schedule.stage_to_rank) if owner == rank}
        pipe = Pipeline(
            schedule, mine, made.loss_fn, checkpoint=case.checkpoint, shared=_apart(shared_parameters(stages), mine)
        )
        for step in range(n_steps):
            for module in mine.values():
                module.zero_grad()
            torch.manual_seed(rank)
            n = case.n_samples + (0 if step == n_steps - 1 else step % 2)
            inputs = made.inputs(n) if 0 in mine else None
            targets = made.targets(n) if schedule.n_stages - 1 in mine else None
            result = pipe.step(inputs, targets)
        gradients = {n: p.grad for m in mine.values() for n, p in m.named_parameters(remove_duplicate=False)}
        found.append((result.loss, gradients))
    return found


def _apart(sharing: dict[str, dict[int, str]], mine: dict[int, nn.Module]) -> dict[str, dict[int, str]]:
    """Give each stage its own copy of a shared parameter, as if it had been built where it lies."""
    for paths in sharing.values():
        for stage, path in paths.items():
            if stage in mine:
                owner, _, name = path.rpartition(".")
                module = mine[stage].get_submodule(owner)
                setattr(module, name, nn.Parameter(module.get_parameter(name).detach().clone()))
    return sharing


def merged(results: tuple[list[Found], ...], case: int) -> Found:
    """What all ranks found, together."""
    loss = next(ranks[case][0] for ranks in results if ranks[case][0] is not None)
    return loss, {name: gradient for ranks in results for name, gradient in ranks[case][1].items()}


def difference(one: Found, other: Found) -> float:
    """The largest difference of the losses and of any gradient; infinite where only one has a gradient."""
    assert one[0] is not None
    assert other[0] is not None
    largest = abs(one[0] - other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        theirs = other[1][name]
        if gradient is None or theirs is None:
            largest = max(largest, 0.0 if gradient is theirs else float("inf"))
        else:
            largest = max(largest, (gradient - theirs).abs().max().item())
    return largest


def with_count(case: Case, n_samples: int) -> Case:
    """The case with another batch."""
    return replace(case, n_samples=n_samples)
