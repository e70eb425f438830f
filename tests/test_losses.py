"""Losses: closed forms, finite differences, PyTorch, masks that hide, extremes, refusals."""

import math

import numpy as np
import pytest

import tidegate as tg
from tidegate import _core
from tidegate.losses import binary_cross_entropy, mse, softmax_cross_entropy

LOSSES = [softmax_cross_entropy, binary_cross_entropy, mse]


def rand(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def example(loss, dtype=np.float64, shape=(5, 4, 3)):
    """Predictions and targets that suit the loss."""
    rng = np.random.default_rng(7)
    prediction = (3 * rng.standard_normal(shape)).astype(dtype)
    if loss is softmax_cross_entropy:
        return prediction, rng.integers(0, shape[-1], shape[:-1])
    return prediction, rng.random(shape).astype(dtype)


def example_mask(loss, shape=(5, 4, 3)):
    lengths = np.array([5, 0, 2, 4])
    mask = np.arange(5)[:, None] < lengths
    return mask if loss is softmax_cross_entropy else np.repeat(mask[..., None], shape[-1], axis=-1)


def test_softmax_cross_entropy_is_its_formula():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    loss, gradient = softmax_cross_entropy(logits, np.array([0, 1]))
    assert loss == pytest.approx((math.log(2) + math.log(5)) / 2, rel=1e-15)
    want = np.array([[-0.5, 0.25, 0.25], [0.1, -0.8, 0.7]]) / 2
    np.testing.assert_allclose(gradient, want, rtol=1e-14)
    loss, gradient = softmax_cross_entropy(logits[0], np.int64(0))
    assert loss == pytest.approx(math.log(2), rel=1e-15)
    np.testing.assert_allclose(gradient, want[0] * 2, rtol=1e-14)


def test_binary_cross_entropy_is_its_formula():
    p, t = np.array([0.1, 0.5, 0.9]), np.array([0.0, 0.25, 1.0])
    loss, gradient = binary_cross_entropy(np.log(p / (1 - p)), t)
    want = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert loss == pytest.approx(want.mean(), rel=1e-14)
    np.testing.assert_allclose(gradient, (p - t) / 3, rtol=1e-14)
    labels = np.array([True, False, True])
    ours, theirs = binary_cross_entropy(p, labels), binary_cross_entropy(p, labels.astype(float))
    assert ours[0] == theirs[0]
    assert (ours[1] == theirs[1]).all()


def test_mse_is_its_formula():
    loss, gradient = mse(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 1.0], [5.0, 1.0]]))
    assert loss == (0 + 1 + 4 + 9) / 4
    assert gradient.tolist() == [[0, 0.5], [-1, 1.5]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(loss, reduction, masked):
    prediction, target = example(loss)
    mask = example_mask(loss) if masked else None
    value, gradient = loss(prediction, target, mask, reduction)
    step = 1e-5
    # What a rounded loss leaves of the difference, and the third derivative's share (below 1).
    tolerance = 8 * np.finfo(float).eps * value / step + step**2
    for index in np.ndindex(prediction.shape):
        values = []
        for sign in (1, -1):
            moved = prediction.copy()
            moved[index] += sign * step
            values.append(loss(moved, target, mask, reduction)[0])
        assert gradient[index] == pytest.approx((values[0] - values[1]) / (2 * step), abs=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_agree_with_torch(loss, reduction, masked, dtype):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    twin = {
        softmax_cross_entropy: functional.cross_entropy,
        binary_cross_entropy: functional.binary_cross_entropy_with_logits,
        mse: functional.mse_loss,
    }[loss]
    prediction, target = example(loss, dtype)
    mask = example_mask(loss) if masked else None
    counts = np.ones(target.shape, bool) if mask is None else mask
    leaf = torch.from_numpy(prediction.copy()).requires_grad_()
    theirs = twin(
        leaf[torch.from_numpy(counts)], torch.from_numpy(target[counts]), reduction=reduction
    )
    theirs.backward()
    value, gradient = loss(prediction, target, mask, reduction)
    assert isinstance(value, float)
    assert gradient.dtype == dtype
    tolerance = 64 * float(np.finfo(dtype).eps)
    assert value == pytest.approx(theirs.item(), rel=tolerance)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=tolerance, atol=tolerance)


def plain(loss, prediction, target):
    """The sum of the losses and its gradient, in double."""
    x = prediction.astype(np.float64)
    if loss is softmax_cross_entropy:
        x = x - x.max(axis=-1, keepdims=True)
        exps = np.exp(x)
        sums = exps.sum(axis=-1, keepdims=True)
        hit = np.arange(x.shape[-1]) == target[..., None]
        return (np.log(sums[..., 0]) - x[hit].reshape(target.shape)).sum(), exps / sums - hit
    if loss is mse:
        error = x - target
        return (error**2).sum(), 2 * error
    small = np.exp(-np.abs(x))
    losses = np.maximum(x, 0) - x * target + np.log1p(small)
    return losses.sum(), np.where(x < 0, small, 1) / (1 + small) - target


@pytest.mark.parametrize("shape", [(640, 3, 42), (2, 2, 30_000), (100_000, 1, 1), (7, 3, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_large_losses_agree_with_double_and_threads_change_no_bit(loss, dtype, shape, isa):
    prediction, target = example(loss, dtype, shape)
    want_value, want_gradient = plain(loss, prediction, target)
    before = tg.get_num_threads()
    results = set()
    for threads in (1, 2, 3):
        tg.set_num_threads(threads)
        _core.select_division("rows")
        value, gradient = loss(prediction, target, reduction="sum")
        _core.select_division("auto")
        tg.set_num_threads(before)
        results.add((value, gradient.tobytes()))
    assert len(results) == 1
    eps = float(np.finfo(dtype).eps)
    assert value == pytest.approx(want_value, rel=8 * eps, abs=8 * eps * target.size)
    # Logits are some units large: so are the errors of an exp's argument.
    np.testing.assert_allclose(gradient, want_gradient, rtol=32 * eps, atol=4 * eps)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_masked_elements_are_never_read(loss, reduction):
    prediction, target = example(loss)
    mask = example_mask(loss)
    want = loss(prediction[mask], target[mask], reduction=reduction)
    prediction[~mask] = np.nan
    target[~mask] = -12345
    value, gradient = loss(prediction, target, mask, reduction)
    assert value == want[0]
    assert (gradient[mask] == want[1]).all()
    assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("loss", [binary_cross_entropy, mse])
def test_a_mask_of_leading_axes_covers_the_others(loss):
    prediction, target = example(loss)
    steps = example_mask(softmax_cross_entropy)
    elements = example_mask(loss)
    a, b = loss(prediction, target, steps), loss(prediction, target, elements)
    assert a[0] == b[0]
    assert (a[1] == b[1]).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_with_nothing_left_loss_and_gradient_are_zero(loss):
    prediction, target = example(loss)
    value, gradient = loss(np.full_like(prediction, np.nan), target, np.zeros(target.shape, bool))
    assert value == 0
    assert gradient.shape == prediction.shape
    assert (gradient == 0).all()
    prediction, target = example(loss, shape=(0, 4, 3))
    value, gradient = loss(prediction, target)
    assert value == 0
    assert gradient.shape == (0, 4, 3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [5, 700])
def test_masks_of_sequences_leave_the_bits_of_what_counts(loss, steps):
    rng = np.random.default_rng(2)
    prediction, target = example(loss, np.float32, (steps, 9, 3))
    mask = np.arange(steps)[:, None] < rng.integers(0, steps + 1, 9)
    value, gradient = loss(prediction, target, mask)
    want = loss(prediction[mask], target[mask])
    assert value == want[0]
    assert (gradient[mask] == want[1]).all()
    assert not gradient[~mask].any()
    # A mask that is no contiguous array, and one of the leading axis alone.
    assert loss(prediction, target, np.asfortranarray(mask))[0] == value
    some = np.arange(steps) % 3 == 0
    value, gradient = loss(prediction, target, some)
    want = loss(prediction[some], target[some])
    assert value == want[0]
    assert (gradient[some] == want[1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_strided_read_only_input_is_taken_and_nothing_is_written(loss, dtype):
    prediction, target = example(loss, dtype)
    want = loss(prediction, target)
    wide = np.repeat(prediction, 2, axis=0)[::2]
    wide.flags.writeable = target.flags.writeable = False
    value, gradient = loss(wide, target)
    assert value == want[0]
    assert (gradient == want[1]).all()
    assert gradient.dtype == dtype
    assert gradient.flags.writeable
    assert (wide == prediction).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_do_not_overflow(dtype):
    big = np.finfo(dtype).max
    logits = np.array([[big, 0], [-big, 0], [0, 1e4]], dtype)
    value, gradient = softmax_cross_entropy(logits, np.array([0, 1, 0]), reduction="sum")
    assert value == 1e4
    assert gradient.tolist() == [[0, 0], [0, 0], [-1, 1]]
    a, t = np.array([1e4, -1e4, 1e4, -1e4], dtype), np.array([1, 0, 0, 1], dtype)
    value, gradient = binary_cross_entropy(a, t, reduction="sum")
    assert value == 2e4
    assert gradient.tolist() == [0, 0, 1, -1]


def test_small_losses_keep_their_digits():
    value, _ = binary_cross_entropy(np.array([-50.0]), np.array([0.0]))
    assert value == pytest.approx(math.exp(-50), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_input_propagates_and_stays_in_its_row(loss, bad):
    prediction, target = example(loss, shape=(4, 3))
    _, clean = loss(prediction, target)
    prediction[1, 2] = bad
    value, gradient = loss(prediction, target)
    assert not (loss is mse and math.isfinite(value))
    assert not (np.isnan(bad) and not math.isnan(value))
    if np.isnan(bad):
        assert np.isnan(gradient[1]).any()
    assert (np.delete(gradient, 1, axis=0) == np.delete(clean, 1, axis=0)).all()


def test_float32_losses_are_summed_in_double():
    # In float32, 2^24 + 1 is 2^24.
    error = np.array([2**12, 1, 1, 1], np.float32)
    value, _ = mse(error, np.zeros_like(error), reduction="sum")
    assert value == 2**24 + 3


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (np.zeros((2, 3), int), np.zeros(2, int), TypeError, r"logits.*int64.*float32 or float64"),
        ([[0.0, 1.0]], np.zeros(1, int), TypeError, r"logits.*list"),
        (np.zeros((2, 3), np.float16), np.zeros(2, int), TypeError, r"logits.*float16"),
        (np.zeros((2, 3)), np.zeros(2), TypeError, r"targets.*float64.*integers"),
        (np.zeros((2, 3)), np.zeros(2, bool), TypeError, r"targets.*bool.*integers"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), ValueError, r"targets.*\(2, 3\).*\(2,\)"),
        (np.zeros((2, 3)), np.array([0, 3]), ValueError, r"targets.*3.*0\.\.2"),
        (np.zeros((2, 3)), np.array([-1, 0]), ValueError, r"targets.*-1.*0\.\.2"),
        (np.zeros((2, 300)), np.array([255, 0], np.uint8), None, ""),
        (np.zeros((2, 3)), np.array([2, 0], ">i2"), None, ""),
        (np.zeros((2, 3)), np.array([2, 0], np.uint64), None, ""),
        (np.zeros((2, 3)), np.array([2, 2**64 - 1], np.uint64), ValueError, r"targets.*0\.\.2"),
        (np.zeros((2, 0)), np.zeros(2, int), ValueError, r"logits.*\(2, 0\).*C >= 1"),
        (np.zeros(()), np.zeros((), int), ValueError, r"logits.*\(\).*C >= 1"),
    ],
)
def test_softmax_cross_entropy_refuses_wrong_arguments(logits, targets, error, message):
    if error is None:
        softmax_cross_entropy(logits, targets)
        return
    with pytest.raises(error, match=message):
        softmax_cross_entropy(logits, targets)


@pytest.mark.parametrize(
    ("loss", "first", "second"),
    [(binary_cross_entropy, "logits", "targets"), (mse, "prediction", "target")],
)
def test_elementwise_losses_refuse_wrong_arguments(loss, first, second):
    x = np.zeros((2, 3))
    with pytest.raises(TypeError, match=rf"{first}.*int64.*float32 or float64"):
        loss(x.astype(int), x)
    with pytest.raises(TypeError, match=rf"{second}.*float32.*float64"):
        loss(x, x.astype(np.float32))
    with pytest.raises(TypeError, match=rf"{second}.*list"):
        loss(x, x.tolist())
    with pytest.raises(ValueError, match=rf"{second}.*\(3,\).*\(2, 3\)"):
        loss(x, np.zeros(3))


def test_binary_cross_entropy_refuses_targets_out_of_range():
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"targets.*{bad}.*0\.\.1"):
            binary_cross_entropy(np.zeros(2), np.array([0, bad]))


@pytest.mark.parametrize("loss", LOSSES)
def test_wrong_masks_and_reductions_are_refused(loss):
    prediction, target = example(loss)
    with pytest.raises(TypeError, match=r"mask.*int64.*bool"):
        loss(prediction, target, np.ones(target.shape, int))
    with pytest.raises(TypeError, match=r"mask.*list.*bool"):
        loss(prediction, target, [True])
    with pytest.raises(ValueError, match=r"mask.*\(4, 5\).*\(5, 4"):
        loss(prediction, target, np.ones((4, 5), bool))
    with pytest.raises(ValueError, match=r"mask.*\(5, 4, 3, 1\)"):
        loss(prediction, target, np.ones((5, 4, 3, 1), bool))
    with pytest.raises(ValueError, match=r'reduction.*none.*"mean" or "sum"'):
        loss(prediction, target, reduction="none")


@pytest.mark.parametrize("loss", [mse, binary_cross_entropy])
@pytest.mark.parametrize("mask", [True, [True, False], 1, "mask", np.True_, np.ones(2), object()])
def test_a_mask_is_an_array_of_bool(loss, mask):
    a = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"^mask: got .*bool"):
        loss(a, a, mask=mask)
    with pytest.raises(TypeError, match=r"^mask: got .*bool"):
        softmax_cross_entropy(a, np.zeros(2, int), mask=mask)


def test_masked_targets_are_refused():
    a = np.zeros((2, 3), np.float32)
    targets = np.ma.masked_array(np.zeros(2, int), mask=[True, False])
    with pytest.raises(ValueError, match=r"^targets: got a masked array with 1 masked"):
        softmax_cross_entropy(a, targets)
    with pytest.raises(TypeError, match=r"^targets: got "):
        binary_cross_entropy(a, [[True, False, True]] * 2)


def test_numbers_are_no_arrays():
    a = np.zeros((), np.float32)
    with pytest.raises(TypeError, match=r"^targets: got a single bool_?, not an array; wanted"):
        binary_cross_entropy(a, np.True_)
    with pytest.raises(TypeError, match=r"^logits: got a single float32, not an array; wanted"):
        binary_cross_entropy(np.float32(1), a)
    with pytest.raises(TypeError, match=r"^target: got a single float32, not an array"):
        mse(a, np.float32(1))
    assert binary_cross_entropy(a, np.array(True))[0] == pytest.approx(np.log(2))
