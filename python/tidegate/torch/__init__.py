"""LSTM and GRU as PyTorch modules that run on Tidegate's kernels. No mathematics: all of it is C++.

    import torch, tidegate.torch

    gru = tidegate.torch.GRU(40, 128, batch_first=True)  # as torch.nn.GRU, and interchangeable
    tidegate.torch.accelerate(model)                     # every nn.LSTM and nn.GRU of a model
    tidegate.torch.accelerate(model.eval(), freeze=True)  # to serve it
    tidegate.torch.restore(model)                        # torch.nn's again

`LSTM` and `GRU` are subclasses of `torch.nn.LSTM` and `torch.nn.GRU`: constructor, parameters and
how they are drawn, `state_dict`, hooks, copies and pickles are theirs; `forward` and its gradient
are Tidegate's, one node in the graph. Tensors are float32 or float64 on the CPU; their memory is
read as it is, that of a PackedSequence too, whatever the strides, as long as the last axis is
contiguous.

Parameters are read at every call, since a write to `parameter.data` leaves no trace that could be
relied on; `accelerate(model, freeze=True)` packs them once. What a gradient needs, the weights too,
is kept by value when the forward call returns: later in-place writes cannot spoil it.

Dropout is drawn as PyTorch draws it: for each layer but the last one `torch.dropout` of that
layer's output, (T, N, D*S) in time-major order or (sum of lengths, D*S) of a PackedSequence, from
the default `torch.Generator`. After the same `torch.manual_seed` it drops what torch.nn drops.

Gradients of gradients (`create_graph=True`) and batches of gradients (`is_grads_batched=True`) are
computed by PyTorch's own functions, which repeat the forward call.

Under `torch.compile` (with `torch._dynamo.config.allow_rnn`, without which it leaves every LSTM and
GRU uncompiled), under `torch.export` and under a `TorchDispatchMode` a call is one operator,
`tidegate::recurrence`; an exported program loads where `tidegate.torch` is imported. Modules that
`accelerate` swapped export as PyTorch's own operators instead.

Refused by name: other devices and dtypes, autocast, `torch.func` transforms (vmap, jvp, grad),
forward-mode AD, `torch.jit`, and tensor subclasses.
"""

from tidegate.torch.modules import GRU, LSTM
from tidegate.torch.swap import accelerate, restore

__all__ = ["GRU", "LSTM", "accelerate", "restore"]
