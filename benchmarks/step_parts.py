"""Where the time of a training step goes, watched from outside: the training code holds no timers.

A :class:`Timeline` notes a moment at each border between two parts, on the device's own clock, and nothing waits for
the device meanwhile. :func:`watching` finds the borders by hooks on the network, the classifier and the optimizers,
and by putting timed functions in the place of others, all of which it takes away again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeVar, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from heads.optim import RowOptimizer

F = TypeVar("F", bound=Callable[..., Any])

PARTS = (
    "wait",  # for the loader's next batch
    "copy",  # of images to the device
    "augment",  # and the conversion to the network's input
    "forward",  # of the network
    "classifier",  # its forward, and the announcement of the next labels
    "classifier_backward",  # from the loss to the gradient of the embeddings
    "backward",  # of the network, with what of the all-reduce runs beside it
    "all_reduce",  # from the last gradient on: what of the all-reduce is waited for
    "check",  # of the gradients: their norm, whether they are finite; clipping
    "agree",  # on whether the step counts; waits for the slowest rank
    "optimizer",  # of the network; in the reference's form of the classifier as well
    "row_optimizer",  # of the classifier's rows
)
REST = "rest"


class Watch(Protocol):
    """Is told which part of a step begins and ends; parts may lie within others."""

    def begin(self, part: str) -> None:
        """A part begins, within the one that runs."""

    def become(self, part: str) -> None:
        """The innermost part is over, and another follows in its place."""

    def end(self) -> None:
        """The innermost part is over."""


class Clock:
    """Moments on a device: events in its current stream on a GPU, which nothing waits for; else the host's time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def now(self) -> Any:
        """A moment, for :meth:`ms_between`."""
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def ms_between(self, moments: Sequence[Any]) -> list[float]:
        """Milliseconds from each moment to the next; waits until the device has come to the last."""
        pairs = itertools.pairwise(moments)
        if self._stream is None:
            return [(after - before) * 1e3 for before, after in pairs]
        moments[-1].synchronize()
        return [before.elapsed_time(after) for before, after in pairs]


class Timeline:
    """Time by parts; a part's own, without that of parts within it. What lies outside of all is ``REST``.

    Args:
        clock: of the device.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: list[str] = []
        self._names = [REST]  # of what follows each moment
        self._moments = [clock.now()]

    def begin(self, part: str) -> None:
        """See :class:`Watch`."""
        self._running.append(part)
        self._note()

    def become(self, part: str) -> None:
        """See :class:`Watch`."""
        self._running[-1] = part
        self._note()

    def end(self) -> None:
        """See :class:`Watch`."""
        self._running.pop()
        self._note()

    def _note(self) -> None:
        self._names.append(self._running[-1] if self._running else REST)
        self._moments.append(self._clock.now())

    def part_ms(self, steps: int) -> dict[str, float]:
        """Mean milliseconds a step of each part and of ``REST``, which sum to the step; waits for the device."""
        self._note()
        total = dict.fromkeys((*PARTS, REST), 0.0)
        for name, took in zip(self._names, self._clock.ms_between(self._moments), strict=False):
            total[name] += took / steps
        return total


class Ranges:
    """Names the parts in a trace of torch's profiler."""

    def __init__(self) -> None:
        self._running: list[AbstractContextManager[Any]] = []

    def begin(self, part: str) -> None:
        """See :class:`Watch`."""
        self._running.append(torch.profiler.record_function(part))
        self._running[-1].__enter__()

    def become(self, part: str) -> None:
        """Nothing: a range may not change its name, and autograd has a thread of its own on a GPU."""

    def end(self) -> None:
        """See :class:`Watch`."""
        self._running.pop().__exit__(None, None, None)


@contextmanager
def during(watch: Watch, part: str) -> Iterator[None]:
    """What is done inside is this part."""
    watch.begin(part)
    try:
        yield
    finally:
        watch.end()


def watched(watch: Watch, part: str, function: F) -> F:
    """The same function, whose time counts as this part's."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with during(watch, part):
            return function(*args, **kwargs)

    return cast(F, call)


@contextmanager
def watching(
    watch: Watch, model: nn.Module, classifier: nn.Module, optimizers: Sequence[Optimizer]
) -> Iterator[None]:
    """Watch what any training step has: forward, backward, all-reduce, clipping, optimizers.

    Args:
        watch: is told.
        model: the network, in DDP or not; images in, embeddings out.
        classifier: embeddings and labels in, loss out.
        optimizers: all that step.
    """

    def until_embeddings(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda grad: watch.become("backward"))

    with ExitStack() as stack:

        def hook(handle: Any) -> None:
            stack.callback(handle.remove)

        _watch_module(stack, watch, "forward", model)
        _watch_module(stack, watch, "classifier", classifier)
        hook(classifier.register_forward_pre_hook(until_embeddings))
        if isinstance(model, DistributedDataParallel):
            _watch_last_gradient(stack, watch, model)
        backward = watched(watch, "classifier_backward", torch.autograd.backward)
        stack.enter_context(patch.object(torch.autograd, "backward", backward))
        for name in ("clip_grad_norm_", "clip_grads_with_norm_"):
            stack.enter_context(patch.object(nn.utils, name, watched(watch, "check", getattr(nn.utils, name))))
        for optimizer in optimizers:
            part = "row_optimizer" if isinstance(optimizer, RowOptimizer) else "optimizer"
            hook(optimizer.register_step_pre_hook(lambda *_, part=part: watch.begin(part)))
            hook(optimizer.register_step_post_hook(lambda *_: watch.end()))
        yield


def _watch_module(stack: ExitStack, watch: Watch, part: str, module: nn.Module) -> None:
    """Watch a module's calls; hooks would become a part of what ``module.compile()`` has compiled."""
    compiled = module._compiled_call_impl
    if compiled is not None:
        stack.enter_context(patch.object(module, "_compiled_call_impl", watched(watch, part, compiled)))
        return
    stack.callback(module.register_forward_pre_hook(lambda *_: watch.begin(part)).remove)
    stack.callback(module.register_forward_hook(lambda *_: watch.end()).remove)


def _watch_last_gradient(stack: ExitStack, watch: Watch, model: nn.Module) -> None:
    """Let "all_reduce" begin when the last parameter has its gradient; DDP's own hooks come after these."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    seen = 0

    def count(_: Tensor) -> None:
        nonlocal seen
        seen += 1
        if seen % len(trained) == 0:
            watch.become("all_reduce")

    for parameter in trained:
        stack.callback(parameter.register_post_accumulate_grad_hook(count).remove)
