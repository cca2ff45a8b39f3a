"""Sees a buffer used between an isend or irecv and the wait for it."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
_ALONE = 2  # uses of the memory of a tensor without views: its own, and that of the object by which one asks


class LentTensor(torch.Tensor):
    """What the class of a buffer is while it is lent to an isend or irecv: calls that take it come by here.

    Only `__class__` changes, there and back: the tensor stays the same object, and all others cost nothing. Views that
    are there before an irecv are looked for where its line is reached first. What numpy does with an array of the
    memory is not seen. See
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
    loan = Loan(remarks, tensor, receives, line)
    if receives and _is_shared(tensor) and remarks.is_first(line):  # it takes a ms, and remarks are made once a line
        for view in _views_of(tensor):
            loan.lend(view)
    return loan


def _is_shared(buffer: torch.Tensor) -> bool:
    """Tell whether other tensors, or an array of numpy's, use the memory of this one."""
    use_count = getattr(torch._C, "_storage_Use_Count", None)
    with torch._C.DisableTorchFunctionSubclass():
        return use_count is None or use_count(buffer.untyped_storage()._cdata) > _ALONE


def _views_of(buffer: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors whose memory lies within that of a contiguous buffer.

    One beside it, or one that it is a part of, may be used meanwhile: nobody knows what of that a call reads.
    """
    start, end = _span(buffer)
    kinds = (torch.Tensor, LentTensor)
    found = [(value, _span(value)) for value in gc.get_objects() if type(value) in kinds and value is not buffer]
    return [value for value, (first, last) in found if start <= first < last <= end]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a CPU tensor's first byte and of the one behind its last; twice 0: it has none."""
    with torch._C.DisableTorchFunctionSubclass():
        if tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.numel():
            with suppress(RuntimeError):  # a tensor that `torch.func` has wrapped has no memory of its own
                steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
                return tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.element_size()
    return 0, 0


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
