"""Puts a rank that is kept from run to run back to what it was before the first one."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from operator import is_
from typing import Any

import cloudpickle
import torch

_MODULES = (
    "builtins", "math", "os", "random", "sys", "time", "torch", "torch.autograd", "torch.cuda", "torch.distributed",
    "torch.distributed.distributed_c10d", "torch.nn", "torch.nn.functional", "torch.nn.init",
    "torch.nn.modules.module", "torch.optim", "torch.optim.optimizer",
)  # fmt: skip
_HOOKS = ("torch.nn.modules.module", "torch.optim.optimizer")  # whose `_global_...` dictionaries hold global hooks


class StaleError(Exception):
    """What a run has left behind cannot be taken away; the process must go."""


class Baseline:
    """What can be changed in this process, as it is now, before any learner's code has run.

    It covers what a learner may set: torch's modes, defaults and global hooks, attributes of its modules and classes,
    the states of random numbers, warnings, logging, signals, and modules imported from the learner's folders. What
    other libraries hold inside themselves it cannot see.
    """

    def __init__(self) -> None:
        owners = [*(sys.modules[name] for name in _MODULES), *_classes()]
        self._owners = [(owner, dict(vars(owner))) for owner in owners]
        self._hooks = [(hooks, dict(hooks)) for hooks in _global_hooks()]
        self._settings = [(put, get()) for get, put in _settings()]
        self._imported = frozenset(sys.modules)
        self._roots = {name.partition(".")[0] for name in self._imported}
        self._installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
        self._threads = frozenset(threading.enumerate())
        self._signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._logging = logging.root.level, list(logging.root.handlers)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()

    def restore(self) -> None:
        """Put everything back.

        Raises:
            StaleError: if threads or processes are left that a learner has started.
        """
        self._look_for_company()
        self._warnings.__exit__()  # type: ignore[call-arg]  # takes nothing but what `with` gives it
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for owner, names in self._owners:
            _put_back(owner, names)
        for hooks, content in self._hooks:
            hooks.clear()
            hooks.update(content)
        for put, value in self._settings:
            put(value)
        logging.root.setLevel(self._logging[0])
        logging.root.handlers[:] = self._logging[1]
        self._forget_modules()
        _forget_classes()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _look_for_company(self) -> None:
        started = [
            thread.name
            for thread in threading.enumerate()
            if thread not in self._threads and not isinstance(thread, threading._DummyThread)
        ]
        if started:
            raise StaleError(f"threads are left: {', '.join(started)}")
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                del pid
        except ChildProcessError:
            return  # there are none
        raise StaleError("processes are left")

    def _forget_modules(self) -> None:
        """Let modules from the learner's folders be imported anew, since they may be edited between two runs."""
        for name in sys.modules.keys() - self._imported:
            file = getattr(sys.modules[name], "__file__", None) or ""
            own = file.endswith(".py") and not file.startswith(self._installed)
            if own and name.partition(".")[0] not in self._roots:
                del sys.modules[name]


def _classes() -> Iterator[type]:
    """Yield the classes of torch that a learner may change."""
    yield torch.Tensor
    yield torch.nn.Module
    for module in (torch.nn, torch.optim):
        yield from {kind for kind in vars(module).values() if isinstance(kind, type)} - {torch.nn.Module}


def _global_hooks() -> Iterator[dict[Any, Any]]:
    for module in _HOOKS:
        for name, value in vars(sys.modules[module]).items():
            if name.startswith("_global_") and isinstance(value, dict):
                yield value


def _public(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out a module's or class's private attributes: they are its own affair, as the count of groups is."""
    return {name: value for name, value in attributes.items() if not name.startswith("_") or name == "__call__"}


def _put_back(owner: Any, before: dict[str, Any]) -> None:
    """Give a module or class its attributes back; a submodule that was imported meanwhile stays."""
    attributes = vars(owner)
    if list(attributes) == list(before) and all(map(is_, attributes.values(), before.values())):
        return  # as nearly all are: quicker told of all attributes than of the public ones
    now, names = _public(attributes), _public(before)
    for name in now.keys() - names.keys():
        if not isinstance(now[name], type(sys)):
            delattr(owner, name)
    for name, value in names.items():
        if name not in now or now[name] is not value:
            setattr(owner, name, value)


def _forget_classes() -> None:
    """Let classes of cells be made anew; cloudpickle would hand out the last run's, as that has left them."""
    for name in ("_DYNAMIC_CLASS_TRACKER_BY_ID", "_DYNAMIC_CLASS_TRACKER_BY_CLASS"):
        getattr(cloudpickle.cloudpickle, name, {}).clear()


def _settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Yield how to read and how to set each thing that torch, Python and numpy keep elsewhere."""
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.is_grad_enabled, torch._C._set_grad_enabled
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    yield torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly
    yield lambda: None, torch.set_default_device
    yield lambda: dict(vars(torch._tensor_str.PRINT_OPTS)), vars(torch._tensor_str.PRINT_OPTS).update
    for flag in ("benchmark", "deterministic", "enabled"):
        yield _attribute(torch.backends.cudnn, flag)
    for device in ("cpu", "cuda"):
        yield (
            lambda device=device: torch.is_autocast_enabled(device),  # type: ignore[misc]
            lambda value, device=device: torch.set_autocast_enabled(device, value),  # type: ignore[misc]
        )
    yield sys.getrecursionlimit, sys.setrecursionlimit
    yield lambda: [os.umask(mask := os.umask(0o077)), mask][1], os.umask
    if "numpy.random" in sys.modules:
        numpy = sys.modules["numpy"]
        yield numpy.random.get_state, numpy.random.set_state
        yield numpy.geterr, lambda value: numpy.seterr(**value)


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)
