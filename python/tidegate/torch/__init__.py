"""LSTM and GRU as PyTorch modules that run on Tidegate's C++ kernels.

    import torch, tidegate.torch

    gru = tidegate.torch.GRU(40, 128, batch_first=True)  # as torch.nn.GRU, and interchangeable
    tidegate.torch.accelerate(model)                     # every nn.LSTM and nn.GRU of a model
    tidegate.torch.accelerate(model.eval(), freeze=True)  # for serving
    tidegate.torch.restore(model)                        # back to torch.nn's modules

`LSTM` and `GRU` are subclasses of `torch.nn.LSTM` and `torch.nn.GRU`, from which they inherit the
constructor, the parameters and their initialisation, `state_dict`, hooks, copying and pickling;
`forward` and its gradient are Tidegate's, one node in the graph. Tensors are float32 or float64 on
the CPU; their memory is read in place, including that of a PackedSequence, with any strides as long
as the last axis is contiguous.

Parameters are read at every call, since a write to `parameter.data` leaves no trace that could be
relied on; `accelerate(model, freeze=True)` packs them once. The forward call copies everything that
the gradient needs, including the weights: later in-place writes cannot spoil it.

Dropout is drawn as in PyTorch: for each layer but the last, by `torch.dropout` of that layer's
output, (T, N, D*S) in time-major order or (sum of lengths, D*S) for a PackedSequence, from the
default `torch.Generator`. After the same `torch.manual_seed` it drops what torch.nn drops.

Gradients of gradients (`create_graph=True`) and batches of gradients (`is_grads_batched=True`) are
computed by PyTorch's own functions, which repeat the forward call.

Under `torch.autocast("cpu", torch.bfloat16)` a float32 module computes as a layer of Tidegate with
`precision=tidegate.fastest_bfloat16()`: the operands of products, forward and backward, are rounded
to bfloat16, and all else is float32. (PyTorch's own LSTM keeps h in bfloat16, too.) The results
have the dtype of `hx`, or without it of the input. Gradients of gradients are computed in float32,
and so are the first ones with `create_graph=True` or `is_grads_batched=True`; call the second
backward outside of autocast. float64 modules are not affected.

Under `torch.compile` (with `torch._dynamo.config.allow_rnn`, without which it leaves every LSTM and
GRU uncompiled), under `torch.export` and under a `TorchDispatchMode` a call is one operator,
`tidegate::recurrence`; an exported program loads where `tidegate.torch` is imported. Modules that
`accelerate` swapped export as PyTorch's own operators instead.

Refused with an error that names the cause: other devices and dtypes, autocast to float16,
`torch.func` transforms (vmap, jvp, grad), forward-mode AD, `torch.jit`, and tensor subclasses.
"""

from tidegate.torch.modules import GRU, LSTM
from tidegate.torch.swap import accelerate, restore

__all__ = ["GRU", "LSTM", "accelerate", "restore"]
