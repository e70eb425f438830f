"""PyTorch's own samples of LSTM and GRU modules, computed by Tidegate in their place."""

from __future__ import annotations

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # PyTorch's test tools want it

from tidegate.torch import accelerate  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_modules

INFOS = {
    info.module_cls.__name__: info
    for info in common_modules.module_db
    if info.module_cls in (torch.nn.LSTM, torch.nn.GRU)
}
CASES = [(kind, training) for kind in INFOS for training in (True, False)]

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.parametrize(("kind", "training"), CASES),
]


def samples(kind, training, dtype, function="module_inputs_func"):
    info = INFOS[kind]
    torch.manual_seed(0)
    return getattr(info, function)(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )


def construct(kind, sample, training, dtype):
    given = sample.constructor_input
    module = INFOS[kind].module_cls(*given.args, **given.kwargs)
    return module.to(dtype).train(training)


def tensors(value):
    """All tensors in nested arguments or results, each once."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for each in value for tensor in tensors(each)]


def floating(value):
    return [tensor for tensor in tensors(value) if tensor.is_floating_point()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results(kind, training, dtype):
    count = 0
    for sample in samples(kind, training, dtype):
        theirs = construct(kind, sample, training, dtype)
        ours = accelerate(copy.deepcopy(theirs))
        given = sample.forward_input
        torch.manual_seed(1)
        wanted = theirs(*given.args, **given.kwargs)
        torch.manual_seed(1)
        got = ours(*given.args, **given.kwargs)
        torch.testing.assert_close(tensors(got), tensors(wanted))
        if sample.reference_fn is not None:
            reference = sample.reference_fn(ours, *given.args, **given.kwargs)
            torch.testing.assert_close(tensors(got), tensors(reference))
        count += 1
    assert count > 5


def test_gradients(kind, training):
    """Also in batches, and of gradients."""
    # A part of the samples, which takes seconds; it differs between the modes.
    for sample in samples(kind, training, torch.float64)[int(training) :: 4]:
        module = accelerate(construct(kind, sample, training, torch.float64))
        given = sample.forward_input
        leaves = [t for t in floating((given.args, given.kwargs)) if t.requires_grad]

        def call(*_, module=module, given=given):
            torch.manual_seed(1)  # of dropout
            return tuple(floating(module(*given.args, **given.kwargs)))

        arguments = (*leaves, *module.parameters())
        assert torch.autograd.gradcheck(call, arguments, check_batched_grad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(
            call, arguments, check_batched_grad=True, fast_mode=True
        )


def test_errors(kind, training):
    for sample in samples(kind, training, torch.float32, "module_error_inputs_func"):
        given = sample.module_error_input
        if sample.error_on is common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            continue  # no module comes of it
        module = accelerate(construct(kind, given, training, torch.float32))
        with pytest.raises(sample.error_type, match=sample.error_regex):
            module(*given.forward_input.args, **given.forward_input.kwargs)
