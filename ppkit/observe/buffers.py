"""Sees a buffer used between an isend or irecv and the wait for it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ppkit.launch.frames import Frame, learner_line
from ppkit.observe.remarks import Remarks

_LOANS = "_ppkit_loans"  # in a lent tensor's __dict__: weak references to its loans
_DISTRIBUTED = "torch.distributed.distributed_c10d"
# Calls that look at the values, though they return no tensor; an array of numpy's looks at them unseen from then on.
_READING = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__repr__", "__str__",
    "__format__", "__contains__", "equal", "allclose", "is_nonzero",
    "is_same_size", "numpy", "__array__",
}  # fmt: skip
# Calls that take no more than a tensor's shape, dtype or memory, though they return something new.
_QUIET = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "new_empty",
    "new_zeros", "new_ones", "new_full", "new_tensor", "__get__", "__set__", "__reduce_ex__", "register_hook",
    "requires_grad_", "detach_", "retain_grad",
}  # fmt: skip
_QUIET_AS_SECOND = {"type_as", "expand_as", "view_as", "reshape_as", "to"}
_WRITING = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")}
_WRITING |= {"__setitem__", "recv", "irecv", "all_reduce"}
_SAMPLES = 256


class LentTensor(torch.Tensor):
    """What the class of a buffer is while it is lent to an isend or irecv: calls that take it come by here.

    Only `__class__` changes, there and back: the tensor stays the same object, and all others cost nothing. So a read
    by a view that was there before the irecv is not seen, nor what numpy does with an array of the memory. See
    https://docs.pytorch.org/docs/stable/notes/extending.html#extending-torch-python-api.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`, and note what that does to the lent ones among its arguments."""
        kwargs = kwargs or {}
        lent = [tensor for tensor in _flat(args, kwargs) if type(tensor) is LentTensor]
        name = getattr(func, "__name__", "")
        if name == "size" and sys._getframe(1).f_code.co_name == "_make_grads":
            name = "is_same_size"  # all that autograd asks a gradient before it takes it
        with torch._C.DisableTorchFunctionSubclass():
            if name in ("__reduce_ex__", "__deepcopy__"):  # a copy is no buffer of anybody's
                for tensor in lent:
                    _give_back(tensor)
            result = func(*args, **kwargs)
            for tensor in lent:
                _examine(func, name, tensor, args, kwargs, result)
        return result


class Loan:
    """An isend or irecv that nobody has waited for yet.

    Args:
        remarks: of this rank.
        tensor: its buffer.
        receives: whether it is an irecv.
        line: of the learner's call.
    """

    __slots__ = ("__weakref__", "_before", "_lent", "_line", "_remarks", "_tensor", "_told", "_versioned", "receives")

    def __init__(self, remarks: Remarks, tensor: torch.Tensor, receives: bool, line: Frame) -> None:
        self._remarks = remarks
        self._tensor = tensor
        self._line = line
        self.receives = receives
        self._told = self._versioned = False
        self._lent: list[torch.Tensor] = []
        self._before = None if receives else self._first_look()
        self.lend(tensor)

    def lend(self, tensor: torch.Tensor) -> None:
        """Watch a tensor, the buffer or a view of it, until `end`."""
        if type(tensor) is torch.Tensor:
            tensor.__class__ = LentTensor
        if type(tensor) is LentTensor:
            tensor.__dict__.setdefault(_LOANS, []).append(weakref.ref(self))
            self._lent.append(tensor)

    def used(self, *, written: bool) -> None:
        """Note that a call of the learner's has read or written the buffer."""
        line = learner_line(sys._getframe(1))
        if line is None or not (written or self.receives):
            return
        self._told = True
        self._remarks.add("read" if self.receives else "changed", line, self._line)

    def end(self) -> None:
        """The buffer is the learner's again."""
        if self._before is not None and not self._told and self._before != self._look():
            line = learner_line(sys._getframe(1))
            if line is not None:
                self._remarks.add("changed unseen", line, self._line)
        for tensor in self._lent:
            loans = tensor.__dict__.get(_LOANS, [])
            loans[:] = [loan for loan in loans if loan() not in (self, None)]
            if not loans:
                _give_back(tensor)
        self._lent.clear()
        self._before = None

    def _first_look(self) -> object:
        with torch._C.DisableTorchFunctionSubclass():
            tensor = self._tensor
            # A version counter is one for all views of a storage: it tells only where the tensor is the whole of it.
            self._versioned = tensor.nbytes == tensor.untyped_storage().nbytes() and not tensor.is_inference()
            return tensor._version if self._versioned else self._look()

    def _look(self) -> object:
        """Return what is different when the tensor has been changed."""
        with torch._C.DisableTorchFunctionSubclass():
            if self._versioned:
                return self._tensor._version
            flat = self._tensor.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // _SAMPLES)].contiguous()
            return bytes(some.untyped_storage()) if len(some) < len(flat) else bytes(some.clone().untyped_storage())


def lend(remarks: Remarks, tensor: Any, line: Frame | None, *, receives: bool) -> Loan | None:
    """Watch the buffer of an isend or irecv that has begun on `line`; None where that is not done, as on a GPU."""
    if line is None or tensor.is_cuda or tensor.layout is not torch.strided or not tensor.numel():
        return None
    return Loan(remarks, tensor, receives, line)


def _give_back(tensor: torch.Tensor) -> None:
    tensor.__class__ = torch.Tensor
    tensor.__dict__.pop(_LOANS, None)


def _flat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _examine(
    func: Any, name: str, tensor: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> None:
    """Tell a read from a write, from a view that is to be watched too, and from what looks at no value."""
    loans = [loan for ref in tensor.__dict__.get(_LOANS, ()) if (loan := ref()) is not None]
    if not loans:
        _give_back(tensor)
        return
    made = [value for value in _flat((result,), {}) if isinstance(value, torch.Tensor)]
    written = _writes(name, tensor, args, kwargs)
    views = [value for value in made if value is not tensor and _shares(value, tensor)]
    if made and not written and len(views) == sum(value is not tensor for value in made):
        for view in views:
            for loan in loans:
                loan.lend(view)
        return
    if name in _QUIET or (name in _QUIET_AS_SECOND and args and args[0] is not tensor):
        return
    if written or made or name in _READING or getattr(func, "__module__", "") == _DISTRIBUTED:
        for loan in loans:
            loan.used(written=written)


def _writes(name: str, tensor: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if any(value is tensor for value in _flat((kwargs.get("out"),), {})):
        return True
    in_place = name.endswith("_") and not name.endswith("__") and name not in _QUIET
    return (in_place or name in _WRITING) and bool(args) and args[0] is tensor


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout is not torch.strided:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
