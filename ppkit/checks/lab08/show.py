"""What the notebook prints of the three machines, and draws of the learner's plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppkit.checks.judge import Verdict
from ppkit.checks.lab08.plans import read_plan
from ppkit.checks.lab08.sites import CLUSTER, HOME, SERVER, Decision, Link, Site, best, impossible, outcome
from ppkit.units import bytes_text, duration

__all__ = ["show_machines", "show_plans"]

_SITES = (HOME, SERVER, CLUSTER)


def show_machines() -> None:
    """Print the three machines and their models, a column each."""
    for name, value in _ROWS.items():
        print(f"{name:44}" + "".join(f"{value(site):>20}" for site in _SITES).rstrip())


def _seconds(site: Site) -> float:
    """Of one layer's forward of one sample, on one device."""
    return site.model.forward / site.model.n_layers / site.node.speed


def _fixed_and(site: Site, times: int) -> str:
    return f"{1e3 * site.node.overhead:g} + {1e3 * times * _seconds(site):.3g} n ms"


def _link(link: Link) -> str:
    return f"{duration(link.latency)}, {bytes_text(link.bandwidth)}/s"


_ROWS: dict[str, Callable[[Site], str]] = {
    "": lambda site: site.name,
    "devices": lambda site: f"{site.n_nodes} × {site.node.n_devices}" if site.n_nodes > 1 else str(site.n_devices),
    "memory of a device": lambda site: bytes_text(site.node.memory),
    "link in a node: latency, bandwidth": lambda site: _link(site.link(in_a_node=True)),
    "link between nodes": lambda site: _link(site.between) if site.between else "–",
    "samples in a batch": lambda site: str(site.batch),
    "layers": lambda site: str(site.model.n_layers),
    "parameters of all layers": lambda site: f"{site.model.n_parameters / 1e9:.3f} · 10⁹",
    "a layer's forward of n samples": lambda site: _fixed_and(site, 1),
    "a layer's backward of n samples": lambda site: _fixed_and(site, 2),
    "activations of all layers, one sample": lambda site: bytes_text(site.model.activation_bytes * site.model.n_layers),
    "message between two layers, one sample": lambda site: bytes_text(site.model.message_bytes or 0),
}


def show_plans(home_plan: Any, server_plan: Any, cluster_plan: Any) -> None:
    """Print what each of the learner's plans would be on each machine, and draw each on its own."""
    from IPython.display import display

    from ppkit.draw import gantt

    plans: list[tuple[Site, Decision]] = []
    for site, answer in zip(_SITES, (home_plan, server_plan, cluster_plan), strict=True):
        try:
            plans.append((site, read_plan(site, answer)))
        except Verdict as verdict:
            print(verdict.text(f"Your plan for {site.name}"))
    if plans:
        print(f"{'a step, as a multiple of the best plan':44}" + "".join(f"{site.name:>20}" for site in _SITES))
    for site, plan in plans:
        row = "".join(f"{_beside_best(other, plan):>20}" for other in _SITES)
        print(f"your plan for {site.name:30}{row}".rstrip())
    for site, plan in plans:
        display(gantt(outcome(site, plan).timeline))  # type: ignore[no-untyped-call]  # IPython's display has no types


def _beside_best(site: Site, plan: Decision) -> str:
    if plan.replicas * plan.stages > site.n_devices:
        return "too few devices"
    if impossible(site, plan):
        return "impossible"
    result = outcome(site, plan)
    if max(result.peaks) > site.node.memory:
        return "does not fit"
    return f"{result.seconds / outcome(site, best(site)).seconds:.2f}"
