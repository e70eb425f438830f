"""Tensors as arrays: values, storages that stay as they were, and what has no such memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tidegate as tg
from tidegate import convert, tensors

torch = pytest.importorskip("torch")

# What `values_of` reads, each of the values that it is made with.
FORMS = {
    "plain": lambda values: values,
    "transposed": lambda values: values.t().contiguous().t(),
    "part": lambda values: torch.cat([values, values])[2:],
    "negative": lambda values: torch._neg_view(-values),
    "requires grad": lambda values: values.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values(form: str, dtype: str) -> None:
    expected = np.array([[1.5, -0.0], [3.25, -2.0]])
    tensor = FORMS[form](torch.tensor(expected.tolist(), dtype=getattr(torch, dtype)))
    array = tensors.values_of("x", tensor)
    assert array.dtype == np.dtype("float32" if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(np.signbit(array), np.signbit(expected))
    assert tensor.untyped_storage().resizable()
    tensor.untyped_storage().resize_(2)
    room = 0 if form == "part" else 2
    with pytest.raises(ValueError, match=rf"^x: got a storage of {room} bytes"):
        tensors.values_of("x", tensor)


def test_zeros_without_memory() -> None:
    array = tensors.values_of("x", torch._efficientzerotensor((2, 3), dtype=torch.float64))
    np.testing.assert_array_equal(array, np.zeros((2, 3)))
    assert array.dtype == np.float64


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_such_memory() -> None:
    quantised = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    for wrong in (torch.zeros(3, device="meta"), torch.zeros(3).to_sparse(), quantised):
        with pytest.raises(TypeError, match=r"^x: got a .*wanted a dense one on the CPU"):
            tensors.values_of("x", wrong)
    with pytest.raises(TypeError, match=r"^x: got torch\.complex64"):
        tensors.values_of("x", torch.zeros(3, dtype=torch.complex64))


def integers(form: str) -> Any:
    values = torch.tensor([1, 2, 0])
    return FORMS[form](values[:, None])[:, 0] if form == "transposed" else FORMS[form](values)


@pytest.mark.parametrize("form", ["plain", "transposed", "negative"])
def test_integers_leave_their_storage_resizable(form: str, rng: np.random.Generator) -> None:
    layer = tg.GRU(3, 4, seed=1)
    x = rng.standard_normal((2, 3, 3), np.float32)
    lengths = integers(form)
    np.testing.assert_array_equal(layer(x, lengths=lengths)[0], layer(x, lengths=[1, 2, 0])[0])
    logits = x[0]
    loss, _ = tg.losses.softmax_cross_entropy(logits, lengths)
    assert loss == tg.losses.softmax_cross_entropy(logits, np.array([1, 2, 0]))[0]
    assert lengths.untyped_storage().resizable()
    lengths.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"^lengths: got a storage of 0 bytes"):
        layer(x, lengths=lengths)
    with pytest.raises(ValueError, match=r"^targets: got a storage of 0 bytes"):
        tg.losses.softmax_cross_entropy(logits, lengths)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conversions_leave_storages_resizable(dtype: Any) -> None:
    layer = tg.LSTM(3, 4, 2, dtype=dtype, seed=1)
    module = convert.to_torch(layer)
    back = convert.from_torch(module)
    for name, parameter in module.named_parameters():
        assert parameter.untyped_storage().resizable(), name
        np.testing.assert_array_equal(back.params[name], layer.params[name])


def test_conversions_refuse_a_freed_storage() -> None:
    for module in (torch.nn.GRU(3, 4), torch.nn.Linear(3, 4), torch.nn.Embedding(3, 4)):
        name, parameter = next(module.named_parameters())
        parameter.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=rf"^{name}: got a storage of 0 bytes"):
            convert.from_torch(module)


@pytest.mark.filterwarnings("ignore:weight_hh_l0. .* are taken for those of")
@pytest.mark.parametrize("size", [0, 16])
def test_conversions_refuse_a_short_storage_of_a_part(size: int) -> None:
    pruned = torch.nn.GRU(3, 4)
    torch.nn.utils.prune.l1_unstructured(pruned, "weight_hh_l0", 0.5)
    normalised = torch.nn.GRU(3, 4)
    torch.nn.utils.parametrizations.weight_norm(normalised, "weight_hh_l0")
    for module in (pruned, normalised):
        largest = max(module.state_dict(), key=lambda name: ("orig" in name, name))
        module.state_dict()[largest].untyped_storage().resize_(size)
        with pytest.raises(ValueError, match=rf"^{largest}: got a storage of {size} bytes"):
            convert.from_torch(module)
        with pytest.raises(ValueError, match=rf"^{largest}: got a storage of {size} bytes"):
            convert.from_torch(module.state_dict())
