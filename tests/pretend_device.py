"""A device that is not there: tensors on it hold real values, and an operation that a GPU would refuse is an error.

It goes by the name "meta", because autograd needs no hardware for that one. Host and device tensors may meet where
CUDA lets them: in copies, and where host tensors index a device tensor.
"""

from concurrent.futures import Future
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"
aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.copy_.default)
_INDEXING = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)


class OnDevice(torch.Tensor):
    """A tensor that says that it is on the device; its values are on the host, in ``values``."""

    @staticmethod
    def __new__(cls, values):
        self = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=NAME
        )
        self.values = values
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {}, [])


def run(function: Any, args: Any, kwargs: Any, waits: list[str]) -> Any:
    """One operation, on the values; what makes the host wait for the device is noted in ``waits``."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    here = [isinstance(t, OnDevice) for t in tensors]
    if any(here) and function not in _COPIES:
        assert (function in _INDEXING and here[0]) or all(
            h or t.ndim == 0 for h, t in zip(here, tensors, strict=True)
        ), f"{function} on tensors of host and device"
    if function is aten._local_scalar_dense.default and here[0]:
        waits.append("item")
    wanted = kwargs.get("device")
    goes_there = any(here) if wanted is None else torch.device(wanted).type == NAME
    if function is aten._to_copy.default and goes_there != here[0] and not kwargs.get("non_blocking"):
        waits.append("copy to the device" if goes_there else "copy to the host")
    if (
        function is aten.copy_.default
        and here[0] != here[1]
        and not (kwargs.get("non_blocking") or args[2:3] == (True,))
    ):
        waits.append("copy_ between host and device")
    plain_args, plain_kwargs = tree_map(lambda t: t.values if isinstance(t, OnDevice) else t, (args, kwargs))
    if wanted is not None:
        plain_kwargs["device"] = torch.device("cpu")
    out = function(*plain_args, **plain_kwargs)
    if not goes_there:
        return return_and_correct_aliasing(function, args, kwargs, out) if any(here) and wanted is None else out
    out = tree_map(lambda t: OnDevice(t) if isinstance(t, torch.Tensor) else t, out)
    return return_and_correct_aliasing(function, args, kwargs, out)


class PretendDevice(TorchDispatchMode):
    """While entered, the device exists in this thread; ``waits`` collects what made the host wait for it."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {}, self.waits)


class BackgroundAtOnce:
    """A background thread's work, done in the caller's, the only one where the pretended device is there.

    What waits in it lets nobody else wait, so it does not count.
    """

    def __init__(self, pretended):
        self.pretended = pretended

    def submit(self, do, *args):
        done, before = Future(), len(self.pretended.waits)
        try:
            done.set_result(do(*args))
        except Exception as error:
            done.set_exception(error)
        del self.pretended.waits[before:]
        return done

    def shutdown(self, wait):
        pass
