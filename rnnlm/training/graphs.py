"""Forward and backward pass of a step as one CUDA graph.

A step of a recurrent model on a GPU is hundreds of short kernels, and the host takes longer to launch them than the GPU to run
them. A graph is recorded once for each shape of a step's inputs and launched as a whole: the kernels and their results are the
same, and so are the figures.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rnnlm.nn.dropout import KeyTable, MaskContext
from rnnlm.nn.state import State
from rnnlm.training.arithmetic import Arithmetic

_log = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""Shapes that get a graph, which takes some megabytes; steps of other shapes are computed without one."""
SEEN_BEFORE = 2
"""Steps of a shape before its graph is recorded: by then libraries have chosen and loaded their kernels."""


class Computed(NamedTuple):
    """What the forward pass of a step gives."""

    objective: Tensor
    nats: Tensor
    after: State
    """What is carried to the next step; empty where nothing is."""


Compute = Callable[[Mapping[str, Tensor], State, MaskContext], Computed]
"""From inputs on the device, one of which is called `rows`, carried state and masks."""


@dataclass
class _Graph:
    """A recorded step, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    before: State
    keys: KeyTable
    nats: Tensor
    after: State


class StepGraphs:
    """The graphs of a model's training steps.

    Args:
        model: on a GPU; what it computes may not depend on values that the host would have to wait for.
        arithmetic: device and precision.
        seed: of dropout.
    """

    def __init__(self, model: nn.Module, arithmetic: Arithmetic, seed: int) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._arithmetic = arithmetic
        self._seed = seed
        self._seen: Counter[object] = Counter()
        self._graphs: dict[object, _Graph] = {}
        self._gradients: list[Tensor] = []
        self._pool = torch.cuda.graph_pool_handle()

    def take(
        self, compute: Compute, arrays: Mapping[str, np.ndarray], state: State, step: int
    ) -> tuple[Tensor, State] | None:
        """Compute a step and set the gradients of all parameters.

        Args:
            compute: the forward pass; for all steps of a shape the same.
            arrays: the inputs.
            state: carried from the step before.
            step: which one, for dropout.

        Returns:
            The nats, and the state after the step, which is valid until the next one. None: nothing was done, as there is no
            graph for this shape, or not yet.
        """
        key = (tuple((name, array.shape) for name, array in arrays.items()), state.num_rows)
        self._seen[key] += 1
        if key not in self._graphs:
            if self._seen[key] <= SEEN_BEFORE or len(self._graphs) >= MOST_GRAPHS:
                return None
            self._graphs[key] = self._record(compute, arrays, state, step)
        found = self._graphs[key]
        for name, array in arrays.items():
            found.inputs[name].copy_(self._arithmetic.pinned(array), non_blocking=True)
        if len(state):
            torch._foreach_copy_([found.before[name] for name in state], [state[name] for name in state])
        found.keys.fill(self._seed, step)
        found.graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return found.nats.clone(), found.after

    def _record(self, compute: Compute, arrays: Mapping[str, np.ndarray], state: State, step: int) -> _Graph:
        device = self._arithmetic.device
        _log.debug("recording a graph for inputs of %s", [array.shape for array in arrays.values()])
        if not self._gradients:
            self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        inputs = {name: self._arithmetic.tensor(array).clone() for name, array in arrays.items()}
        before = state.map(torch.clone)
        keys = KeyTable(device)
        graph = torch.cuda.CUDAGraph()
        masks = MaskContext(self._seed, step, inputs["rows"], keys)
        with torch.cuda.graph(graph, pool=self._pool):
            with self._arithmetic.context():
                computed = compute(inputs, before, masks)
            gradients = torch.autograd.grad(computed.objective, self._parameters, allow_unused=True)
            _copy(self._gradients, gradients)
            nats, after = computed.nats.detach(), computed.after.detach()
        return _Graph(graph, inputs, before, keys, nats, after)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor | None]) -> None:
    """Into the tensors, where there is something; the others stay zero."""
    pairs = [(target, source) for target, source in zip(targets, sources, strict=True) if source is not None]
    torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])
