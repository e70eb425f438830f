"""tidegate.torch beside torch.nn: results, gradients, errors, and what a module must bear."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest

import tidegate as tg

torch = pytest.importorskip("torch")

import tidegate.torch  # noqa: E402
from tidegate.torch import accelerate  # noqa: E402

nn = torch.nn
rnn = torch.nn.utils.rnn

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    # PyTorch's own: forward-mode AD, tracing and the compiler use torch.jit.script.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

IN, H, T, N = 3, 5, 6, 4
LENGTHS = [4, 6, 1, 4]

CASES = {
    "lstm": ("LSTM", {}),
    "lstm-bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "lstm-projected": ("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    "lstm-projected-no-bias": ("LSTM", {"proj_size": 4, "bias": False, "num_layers": 2}),
    "lstm-dropout": ("LSTM", {"num_layers": 3, "dropout": 0.4, "bidirectional": True}),
    "gru": ("GRU", {}),
    "gru-bidirectional": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "gru-no-bias": ("GRU", {"bias": False, "num_layers": 2}),
    "gru-dropout": ("GRU", {"num_layers": 3, "dropout": 0.4}),
}
LAYOUTS = ["time-first", "batch-first", "unbatched", "packed", "packed-sorted", "packed-dense"]

every_case = pytest.mark.parametrize("case", CASES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
every_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])


def make(case, layout="time-first", dtype=torch.float32):
    """Theirs and ours, with the same parameters."""
    kind, options = CASES[case]
    options = {**options, "batch_first": layout == "batch-first", "dtype": dtype}
    modules = []
    for cls in (getattr(nn, kind), getattr(tidegate.torch, kind)):
        torch.manual_seed(1)
        modules.append(cls(IN, H, **options))
    return modules


def draw(module, layout, dtype=torch.float32):
    """Leaves: the data of an input, and the initial states. And how to make the input of data."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    rows = module.num_layers * (2 if module.bidirectional else 1)
    batch = () if layout == "unbatched" else (N,)
    states = [normal(rows, *batch, module.proj_size or H)]
    if module.mode == "LSTM":
        states.append(normal(rows, *batch, H))
    if not layout.startswith("packed"):
        shape = {"time-first": (T, N, IN), "batch-first": (N, T, IN), "unbatched": (T, IN)}[layout]
        return normal(*shape), states, lambda data: data
    lengths = {"packed-sorted": sorted(LENGTHS, reverse=True), "packed-dense": [T] * N}
    packed = rnn.pack_padded_sequence(
        normal(T, N, IN), lengths.get(layout, LENGTHS), enforce_sorted=layout != "packed"
    )
    return packed.data, states, lambda data: packed._replace(data=data)


def pair(module, states):
    if not states:
        return None
    return tuple(states) if module.mode == "LSTM" else states[0]


def flat(results):
    """All tensors that a module returns."""
    y, state = results
    if isinstance(y, rnn.PackedSequence):
        y = y.data
    return [y, *(state if isinstance(state, tuple) else (state,))]


def train(module, x, states, as_input):
    """Results and the gradients by everything, of a random sum of the results."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *states)]
    module.zero_grad()
    torch.manual_seed(3)
    results = flat(module(as_input(leaves[0]), pair(module, leaves[1:])))
    generator = torch.Generator().manual_seed(4)
    loss = sum(
        (r * torch.randn(r.shape, dtype=r.dtype, generator=generator)).sum() for r in results
    )
    loss.backward()
    return [
        *(r.detach() for r in results),
        *(leaf.grad for leaf in leaves),
        *(p.grad for p in module.parameters()),
    ]


def assert_close(got, wanted):
    """To rounding: sums of some ten terms of order 1, in a few steps."""
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        eps = torch.finfo(b.dtype).eps
        torch.testing.assert_close(a, b, rtol=100 * eps, atol=100 * eps)


def assert_same(got, wanted):
    assert len(got) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


# ---- As torch.nn's -------------------------------------------------------------------------------


@every_case
def test_module_is_torchs(case):
    theirs, ours = make(case)
    state_of_rng = torch.get_rng_state()
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert_same([*ours.parameters()], [*theirs.parameters()])
    assert [name for name, _ in ours.named_parameters()] == [*theirs.state_dict()]
    assert [len(layer) for layer in ours.all_weights] == [len(x) for x in theirs.all_weights]
    ours.flatten_parameters()
    make(case)
    assert torch.equal(torch.get_rng_state(), state_of_rng)
    for a, b in ((ours, theirs), (theirs, ours)):
        b.reset_parameters()
        assert (
            str(a.load_state_dict(b.state_dict(), strict=True)) == "<All keys matched successfully>"
        )
        assert_same([*a.parameters()], [*b.parameters()])


@every_case
@every_layout
@every_dtype
@pytest.mark.parametrize("given", [True, False], ids=["state", "zeros"])
def test_results_and_gradients_are_torchs(case, layout, dtype, given):
    theirs, ours = make(case, layout, dtype)
    x, states, as_input = draw(ours, layout, dtype)
    if not given:
        states = []
    wanted = train(theirs, x, states, as_input)
    assert_close(train(ours, x, states, as_input), wanted)
    for module in (theirs, ours):
        module.eval()
    with torch.no_grad():
        wanted = theirs(as_input(x), pair(theirs, states))
        got = ours(as_input(x), pair(ours, states))
    assert_close(flat(got), flat(wanted))
    assert not any(tensor.requires_grad for tensor in flat(got))
    if layout.startswith("packed"):
        assert isinstance(got[0], rnn.PackedSequence)
        for a, b in zip(got[0][1:], wanted[0][1:]):
            assert a is b is None or torch.equal(a, b)


@every_case
@every_layout
def test_gradcheck(case, layout):
    _, module = make(case, layout, torch.float64)
    x, states, as_input = draw(module, layout, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, *states)]

    def call(x, *rest):
        torch.manual_seed(0)  # of dropout
        return tuple(flat(module(as_input(x), pair(module, rest[: len(states)]))))

    assert torch.autograd.gradcheck(call, (*leaves, *module.parameters()), fast_mode=True)


@every_kind
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@every_dtype
def test_training_follows_torchs_losses(kind, packed, dtype):
    losses = []
    for cls in (getattr(nn, kind), getattr(tidegate.torch, kind)):
        torch.manual_seed(5)
        body = cls(IN, 16, num_layers=2, dropout=0.3, bidirectional=True, dtype=dtype)
        head = nn.Linear(32, 2, dtype=dtype)
        parameters = [*body.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
        x = torch.randn(T, 8, IN, dtype=dtype)
        targets = (x.sum((0, 2)) > 0).long()
        losses.append([])
        for _ in range(30):
            given = rnn.pack_padded_sequence(x, [6, 6, 5, 5, 4, 4, 4, 3]) if packed else x
            state = body(given)[1]
            h_n = state[0] if kind == "LSTM" else state
            loss = nn.functional.cross_entropy(head(torch.cat((h_n[-2], h_n[-1]), 1)), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses[-1].append(loss.item())
    theirs, ours = torch.tensor(losses, dtype=torch.float64)
    assert theirs[-1] < 0.5 * theirs[0]
    # Every step's rounding is carried on by the next ones, and by some more than others.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1000 * torch.finfo(dtype).eps)


@every_kind
def test_all_is_dropped(kind):
    results = []
    for cls in (getattr(nn, kind), getattr(tidegate.torch, kind)):
        torch.manual_seed(0)
        results.append(flat(cls(IN, H, 2, dropout=1.0)(torch.ones(T, N, IN))))
    assert_close(*results)


@every_kind
def test_dropout_is_drawn_in_training_only(kind):
    module = getattr(tidegate.torch, kind)(IN, H, 2, dropout=0.5)
    x = torch.randn(T, N, IN)
    with torch.no_grad():
        first, second = (flat(module(x)) for _ in range(2))
        assert not torch.equal(first[0], second[0])
        module.eval()
        before = torch.get_rng_state()
        assert_same(flat(module(x)), flat(module(x)))
        assert torch.equal(torch.get_rng_state(), before)


@every_kind
def test_no_rows_and_no_steps_are_as_in_torch(kind):
    theirs, ours = (
        getattr(home, kind)(IN, H, 2, bidirectional=True) for home in (nn, tidegate.torch)
    )
    for module in (theirs, ours):
        x = torch.zeros(T, 0, IN, requires_grad=True)
        results = flat(module(x))
        assert [tuple(r.shape) for r in results[:2]] == [(T, 0, 2 * H), (4, 0, H)]
        sum(r.sum() for r in results).backward()
        assert x.grad.shape == x.shape
        assert not any(p.grad.any() for p in module.parameters())
        for shape in ((0, N, IN), (0, IN), (0, 0, IN)):
            with pytest.raises(
                RuntimeError, match="Expected sequence length to be larger than 0 in"
            ):
                module(torch.zeros(shape))


@every_case
@pytest.mark.parametrize("num_threads", [1, 2])
def test_packed_rows_have_the_bits_of_their_own(case, num_threads):
    _, module = make(case)
    module.eval()
    module.num_threads = num_threads
    x, states, as_input = draw(module, "packed")
    with torch.no_grad():
        y, state = module(as_input(x), pair(module, states))
        y, lengths = rnn.pad_packed_sequence(y)
        rows = rnn.pad_packed_sequence(as_input(x))[0]
        for n, length in enumerate(lengths):
            one = [s[:, n : n + 1].contiguous() for s in states]
            alone = flat(module(rows[:length, n : n + 1], pair(module, one)))
            assert_same([y[:length, n : n + 1]], alone[:1])
            got = state if isinstance(state, tuple) else (state,)
            assert_same([s[:, n : n + 1] for s in got], alone[1:])


@every_kind
def test_packed_data_may_have_any_strides(kind):
    module = getattr(tidegate.torch, kind)(IN, H)
    x, _, as_input = draw(module, "packed")
    wide = torch.randn(len(x), 2 * IN)
    wide[:, IN:] = x
    with torch.no_grad():
        wanted = flat(module(as_input(x)))
        for same in (wide[:, IN:], x.T.contiguous().T):
            assert_same(flat(module(as_input(same))), wanted)
    # The gradient of a sum has strides that are zero.
    grads = []
    for factor in (1, torch.ones(1)):
        y = module(as_input(x))[0].data
        grads.append(torch.autograd.grad((y * factor).sum(), [*module.parameters()]))
    assert_same(*grads)


@every_kind
def test_strides_change_nothing(kind):
    module = getattr(tidegate.torch, kind)(IN, H)
    x = torch.randn(T, N, IN)
    wanted = train(module, x, [], lambda data: data)
    wide = torch.randn(N, T, 2 * IN)
    wide[:, :, :IN] = x.transpose(0, 1)
    column = torch.randn(IN, T, N)
    column[:] = x.permute(2, 0, 1)
    for same in (wide[:, :, :IN].transpose(0, 1), column.permute(1, 2, 0), torch._neg_view(-x)):
        assert torch.equal(same, x)
        got = train(module, same, [], lambda data, same=same: same + 0 * data)
        assert_same(got[:2], wanted[:2])
        with torch.no_grad():
            assert_same(flat(module(same)), wanted[: len(flat(module(same)))])


@every_kind
def test_gradients_only_where_they_are_wanted(kind):
    module = getattr(tidegate.torch, kind)(IN, H, 2)
    module.weight_hh_l0.requires_grad_(False)
    x = torch.randn(T, N, IN)
    module(x)[0].sum().backward()
    assert x.grad is None
    assert [n for n, p in module.named_parameters() if p.grad is None] == ["weight_hh_l0"]
    module.requires_grad_(False)
    assert not any(r.requires_grad for r in flat(module(x)))
    h_0 = torch.zeros(2, N, H, requires_grad=True)
    module(x, (h_0, torch.zeros(2, N, H)) if kind == "LSTM" else h_0)[0].sum().backward()
    assert h_0.grad.any()
    # Of one result alone, the other gradient being None.
    h_n = flat(module(x.requires_grad_()))[1]
    h_n[1].sum().backward()
    assert x.grad.any()


# ---- The graph -----------------------------------------------------------------------------------


@every_kind
def test_a_graph_is_used_once_unless_retained(kind):
    module = getattr(tidegate.torch, kind)(IN, H)
    y = module(torch.randn(T, N, IN))[0]
    y.sum().backward(retain_graph=True)
    first = module.weight_ih_l0.grad.clone()
    y.sum().backward()
    assert torch.equal(module.weight_ih_l0.grad, 2 * first)
    assert y.grad_fn.tape is None  # its memory is free while y lives
    with pytest.raises(RuntimeError, match=r"a second time.*retain_graph"):
        y.sum().backward()


@every_kind
def test_later_writes_do_not_spoil_the_gradient(kind):
    module = getattr(tidegate.torch, kind)(IN, H)
    x = torch.randn(T, N, IN)
    wanted = train(module, x, [], lambda data: data)[-len([*module.parameters()]) :]
    module.zero_grad()
    given = x.clone()
    results = flat(module(given))
    generator = torch.Generator().manual_seed(4)
    loss = sum((r * torch.randn(r.shape, generator=generator)).sum() for r in results)
    given.zero_()
    for parameter in module.parameters():
        parameter.data.zero_()
    loss.backward()
    assert_same([p.grad for p in module.parameters()], wanted)


@pytest.mark.parametrize("case", ["lstm-bidirectional", "lstm-projected", "gru-dropout"])
@pytest.mark.parametrize("layout", ["batch-first", "unbatched", "packed"])
@pytest.mark.parametrize("given", [True, False], ids=["state", "zeros"])
def test_gradients_of_gradients(case, layout, given):
    grads = []
    for module in make(case, layout, torch.float64):
        x, states, as_input = draw(module, layout, torch.float64)
        leaves = [tensor.requires_grad_() for tensor in (x, *states[: len(states) * given])]
        torch.manual_seed(0)  # of dropout
        y = flat(module(as_input(x), pair(module, leaves[1:])))
        before = torch.get_rng_state()
        first = torch.autograd.grad(
            sum((r**3).sum() for r in y), [*leaves, *module.parameters()], create_graph=True
        )
        assert torch.equal(torch.get_rng_state(), before)
        second = torch.autograd.grad(
            sum((g**2).sum() for g in first), [*leaves, *module.parameters()]
        )
        grads.append([*first, *second])
    for got, wanted in zip(*reversed(grads)):  # sums over all steps and outputs, of cubes
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_gradients_of_gradients_of_tied_parameters():
    grads = []
    for home in (nn, tidegate.torch):
        torch.manual_seed(1)
        module = home.GRU(IN, H, bidirectional=True, dtype=torch.float64)
        module.weight_hh_l0_reverse = module.weight_hh_l0
        x = torch.ones(T, N, IN, dtype=torch.float64, requires_grad=True)
        weight = module.weight_hh_l0
        (first,) = torch.autograd.grad((module(x)[0] ** 2).sum(), weight, create_graph=True)
        grads.append([first, *torch.autograd.grad((first**2).sum(), [x, weight])])
    assert_close(grads[1], grads[0])


def test_gradients_of_gradients_want_unchanged_parameters():
    module = tidegate.torch.GRU(IN, H)
    y = module(torch.randn(T, N, IN))[0]
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), module.weight_hh_l0, create_graph=True)


@every_kind
@pytest.mark.parametrize("by", ["is_grads_batched", "vmap"])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_batches_of_gradients(kind, by):
    module = getattr(tidegate.torch, kind)(IN, H, 2, dtype=torch.float64)
    x = torch.randn(T, N, IN, dtype=torch.float64, requires_grad=True)
    y = module(x)[0]
    inputs = [x, *module.parameters()]
    vectors = torch.randn(3, *y.shape, dtype=torch.float64)

    def one(vector, **options):
        return torch.autograd.grad(y, inputs, vector, retain_graph=True, **options)

    if by == "vmap":
        got = torch.vmap(one)(vectors)
    else:
        got = one(vectors, is_grads_batched=True)
    assert_close(got, [torch.stack(each) for each in zip(*map(one, vectors))])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    from torch.utils.checkpoint import checkpoint

    module = tidegate.torch.GRU(IN, H, 2, dropout=0.5)
    x = torch.randn(T, N, IN, requires_grad=True)
    grads = []
    for call in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):
        module.zero_grad()
        torch.manual_seed(0)
        call(x)[0].sum().backward()
        grads.append([p.grad for p in module.parameters()])
    assert_same(*grads)


def test_replaced_parameters():
    theirs, ours = make("gru-bidirectional")
    x = torch.randn(T, N, IN)
    doubled = {name: 2 * p.detach() for name, p in ours.named_parameters()}
    call = torch.func.functional_call
    assert_close(flat(call(ours, doubled, (x,))), flat(call(theirs, doubled, (x,))))
    for module in (theirs, ours):
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    assert isinstance(ours, tidegate.torch.GRU)
    assert_close(train(ours, x, [], lambda x: x), train(theirs, x, [], lambda x: x))
    tied = tidegate.torch.GRU(IN, H, bidirectional=True)
    tied.weight_hh_l0_reverse = tied.weight_hh_l0
    twin = nn.GRU(IN, H, bidirectional=True)
    twin.weight_hh_l0_reverse = twin.weight_hh_l0
    twin.load_state_dict(tied.state_dict())
    assert_close(train(tied, x, [], lambda x: x), train(twin, x, [], lambda x: x))


def test_a_computed_parameter_is_not_kept_alive():
    module = tidegate.torch.GRU(IN, H)
    computed = module.weight_ih_l0 * 2
    alive = weakref.ref(computed)
    torch.func.functional_call(module, {"weight_ih_l0": computed}, (torch.ones(T, N, IN),))
    del computed
    gc.collect()
    assert alive() is None


def test_compile_leaves_it_alone():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = tidegate.torch.GRU(IN, H), nn.Linear(H, 2)

        def forward(self, x):
            return self.head(self.body(2 * x)[0])

    model = Model()
    x = torch.randn(T, N, IN)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    assert_same([compiled(x)], [model(x)])
    compiled(x).sum().backward()
    assert model.body.weight_ih_l0.grad.any()
    frames = torch._dynamo.utils.counters["frames"]["total"]
    compiled(x)
    assert torch._dynamo.utils.counters["frames"]["total"] == frames
    torch._dynamo.reset()


def storages(module, x, states, results):
    """Whatever a call and its gradient touched, by name."""
    found = {f"x[{n}]": t for n, t in enumerate(x) if isinstance(t, torch.Tensor)}
    found |= {f"state {n}": t for n, t in enumerate(states)}
    found |= {f"result {n}": t for n, t in enumerate(results)}
    found |= dict(module.named_parameters())
    for name, tensor in [*found.items()]:
        if tensor.grad is not None:
            found[f"{name}.grad"] = tensor.grad
    return {name: tensor.untyped_storage() for name, tensor in found.items()}


@every_kind
@pytest.mark.parametrize("layout", ["time-first", "packed"])
@pytest.mark.parametrize("how", ["training", "inference", "frozen"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_storages_stay_resizable(kind, layout, how):
    module = getattr(tidegate.torch, kind)(IN, H, 2, dropout=0.5)
    if how == "frozen":
        accelerate(module.eval(), freeze=True)
    x, states, as_input = draw(module, layout)
    for tensor in (x, *states):
        tensor.requires_grad_(how == "training")
    with torch.set_grad_enabled(how == "training"):
        given = as_input(x)
        results = flat(module(given, pair(module, states)))
        if how == "training":
            sum(r.sum() for r in results).backward()
    packed = given if layout == "packed" else (x,)
    found = storages(module, packed, states, results)
    assert ("weight_hh_l0.grad" in found) == (how == "training")
    for name, storage in found.items():
        assert storage.resizable(), name
        storage.resize_(2 * storage.nbytes())
    out = results[-1].detach()
    torch.cat([torch.ones(9, 9), torch.ones(9, 9)], out=out.resize_(0))
    assert out.shape == (18, 9)


@every_kind
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_parameters_of_another_shape_are_refused(kind, frozen):
    options = {"bidirectional": True, "num_layers": 2}
    if kind == "LSTM":
        options["proj_size"] = 2
    x = torch.randn(T, N, IN)
    for name, parameter in getattr(nn, kind)(IN, H, **options).named_parameters():
        shape = tuple(parameter.shape)
        wrong = [(shape[0] - 1, *shape[1:]), (shape[0] + 1, *shape[1:]), (*shape, 1)]
        wrong += [shape[::-1], (shape[0] * shape[-1],)] * (len(set(shape)) > 1)
        for other in wrong:
            module = accelerate(getattr(nn, kind)(IN, H, **options).eval(), freeze=frozen)
            with torch.no_grad():
                module(x)  # what it keeps of the right parameter does not hide the wrong one
                setattr(module, name, nn.Parameter(torch.zeros(other)))
                with pytest.raises(
                    ValueError, match=rf"^{name}: got shape .*, wanted .* for input_size"
                ):
                    module(x)
                setattr(module, name, nn.Parameter(torch.zeros(shape)))
                module(x)
            if other[0] != shape[0]:
                with torch.no_grad(), pytest.raises(ValueError, match=f"{name}: got shape"):
                    torch.func.functional_call(module, {name: torch.zeros(other)}, (x,))


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_a_module_may_be_given_another_size(frozen):
    module = accelerate(nn.GRU(IN, H).eval(), freeze=frozen)
    with torch.no_grad():
        module(torch.randn(T, N, IN))
        other = nn.GRU(IN + 2, H)
        module.weight_ih_l0 = nn.Parameter(other.weight_ih_l0.detach().clone())
        with pytest.raises(ValueError, match=rf"weight_ih_l0: got shape .*input_size {IN} "):
            module(torch.randn(T, N, IN))
        module.input_size = IN + 2
        other.load_state_dict(module.state_dict())
        x = torch.randn(T, N, IN + 2)
        assert_close(flat(module(x)), flat(other(x)))


@pytest.mark.parametrize("what", ["input", "hx", "weight_hh_l0", "bias_ih_l0"])
@pytest.mark.parametrize("size", [0, 8])
def test_storages_that_are_too_small_are_refused(what, size):
    module = tidegate.torch.GRU(IN, H)
    x, h_0 = torch.randn(T, N, IN), torch.zeros(1, N, H)
    with torch.no_grad():
        module(x, h_0)
        tensor = {"input": x, "hx": h_0}.get(what)
        tensor = getattr(module, what) if tensor is None else tensor
        wanted = tensor.untyped_storage().nbytes()
        tensor.untyped_storage().resize_(size)
        match = rf"^{what}: got a storage of {size} bytes .*wanted at least {wanted}"
        with pytest.raises(ValueError, match=match):
            module(x, h_0)
        tensor.untyped_storage().resize_(wanted)
        tensor.zero_()
        module(x, h_0)


@every_kind
def test_tensors_that_are_not_as_stored(kind):
    module = getattr(tidegate.torch, kind)(IN, H)
    x = torch._efficientzerotensor((T, N, IN))
    with torch.no_grad():
        assert_close(flat(module(x)), flat(module(torch.zeros(T, N, IN))))
        module(x)  # keeps what it knows of the parameters' memory
        bias = module.bias_hh_l0
        bias.data = torch._neg_view(bias.data)
        expected = getattr(nn, kind)(IN, H)
        expected.load_state_dict(module.state_dict())
        for _ in range(2):
            assert_close(flat(module(x)), flat(expected(torch.zeros(T, N, IN))))
        bias.fill_(-0.5)
        expected.load_state_dict(module.state_dict())
        assert_close(flat(module(x)), flat(expected(torch.zeros(T, N, IN))))


# ---- Autocast ------------------------------------------------------------------------------------


AUTOCAST_OPTIONS = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "layers": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projection": (nn.LSTM, {"proj_size": 5}),
    "batch first": (nn.GRU, {"batch_first": True, "bias": False}),
}


def in_bfloat16(layer, x, dy):
    """y and the gradients of a layer of Tidegate with bfloat16 products: dx, then parameters'."""
    y, _, tape = layer.forward(x.detach().numpy(), precision=tidegate.fastest_bfloat16())
    grads = layer.backward(tape, dy=dy.numpy())
    return [torch.from_numpy(v) for v in (y, grads.x, *grads.params.values())]


def check_autocast(options, compile_module=lambda module: module):
    torch.manual_seed(0)
    theirs, kwargs = AUTOCAST_OPTIONS[options]
    module = accelerate(theirs(IN, 33, **kwargs))
    call = compile_module(module)
    x = torch.randn(N, T, IN) if kwargs.get("batch_first") else torch.randn(T, N, IN)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = call(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        inference, _ = call(x)
    wanted = in_bfloat16(tidegate.convert.from_torch(module), x, dy)
    got = [y, x.grad, *(p.grad for p in module.parameters())]
    assert [g.dtype for g in got] == [torch.float32] * len(got)
    for g, w in zip(got, wanted, strict=True):
        assert torch.equal(g.detach(), w)
    assert torch.equal(inference, y.detach())
    assert not torch.equal(inference, module(x)[0])


@pytest.mark.parametrize("options", AUTOCAST_OPTIONS)
def test_autocast_is_the_layers_bfloat16(options):
    check_autocast(options)


def test_autocast_of_frozen_modules():
    torch.manual_seed(0)
    x = torch.randn(T, N, IN)
    module = nn.LSTM(IN, H).eval()
    wanted = in_bfloat16(tidegate.convert.from_torch(module), x, torch.zeros(T, N, H))[0]
    accelerate(module, freeze=True)
    exact = module(x)[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(module(x)[0], wanted)
    assert torch.equal(module(x)[0], exact)
    accelerate(module, freeze=True, precision="int8")
    integers = module(x)[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(module(x)[0], integers)


def test_autocast_follows_dtypes():
    """bfloat16 from other modules; float64 modules, which autocast leaves alone."""
    torch.manual_seed(0)
    module = accelerate(nn.LSTM(IN, H))
    x = torch.randn(T, N, IN).bfloat16().requires_grad_()
    h, c = (torch.randn(1, N, H, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = module(x)
        assert {y.dtype, *(s.dtype for s in state)} == {torch.bfloat16}
        assert torch.equal(module(x.float())[0].bfloat16(), y)
        y_32, state_32 = module(x, (h, c))
        assert {y_32.dtype, *(s.dtype for s in state_32)} == {torch.float32}
        packed, _ = module(nn.utils.rnn.pack_padded_sequence(x, [T] * N))
        assert torch.equal(packed.data, y.reshape(T * N, H))
    (y.float().sum() + y_32.sum()).backward()
    assert x.grad.dtype == torch.bfloat16
    assert h.grad.dtype == torch.float32
    assert module.weight_hh_l0.grad.dtype == torch.float32

    double = accelerate(nn.GRU(IN, H).double())
    with torch.autocast("cpu", torch.bfloat16):
        inside = double(x.detach().double())[0]
    assert torch.equal(inside, double(x.detach().double())[0])


def test_autocast_of_computed_weights():
    """Those that autocast has lowered are widened, whichever of them it is."""
    torch.manual_seed(0)
    x = torch.randn(T, N, IN)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        module = tidegate.torch.GRU(IN, H, bias=False)
        low = getattr(module, name).detach().bfloat16().requires_grad_()
        call = torch.func.functional_call
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = call(module, {name: low}, x)
            wanted, _ = call(module, {name: low.float()}, x)
        assert torch.equal(y, wanted)
        y.sum().backward()
        assert low.grad.dtype == torch.bfloat16


def test_autocast_of_an_input_of_another_dtype():
    for dtype, wrong in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        module = tidegate.torch.LSTM(IN, H, dtype=dtype)
        match = f"input: got {wrong}, wanted {dtype} as the parameters"
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=match):
            module(torch.randn(T, N, IN, dtype=wrong))
    module = tidegate.torch.LSTM(IN, H)
    x = torch.randn(T, N, IN).half()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x)[0], module(x.float())[0].half())


def test_autocast_differentiated_twice():
    """By PyTorch, in float32, even where it has no kernel for bfloat16."""
    torch.manual_seed(0)
    module = accelerate(nn.LSTM(IN, H))
    x = torch.randn(T, N, IN, requires_grad=True)
    dy = torch.randn(T, N, H)

    def once():
        return torch.autograd.grad(module(x)[0], x, dy, create_graph=True)[0]

    with torch.autocast("cpu", torch.bfloat16):
        dx = once()
    wanted = once()
    assert torch.equal(dx, wanted)
    for got, exact in zip(*(torch.autograd.grad(v.square().sum(), x) for v in (dx, wanted))):
        assert torch.equal(got, exact)


# ---- What is refused -----------------------------------------------------------------------------


def call_in(context, module, x):
    with context:
        return module(x)


def in_dual_level(module, x):
    with torch.autograd.forward_ad.dual_level():
        return module(torch.autograd.forward_ad.make_dual(x, x))


def in_autocast(module, x):
    with torch.autocast("cpu", torch.float16):
        return module(x)


class Labelled(torch.Tensor):
    pass


REFUSED = {
    "list": (lambda m, x: m([1.0]), TypeError, "input: got builtins.list"),
    "subclass": (lambda m, x: m(x.as_subclass(Labelled)), TypeError, "input: got .*Labelled"),
    "integers": (lambda m, x: m(x.long()), TypeError, "input: got torch.int64, wanted torch.float"),
    "half": (lambda m, x: m.half()(x.half()), TypeError, "input: got torch.float16"),
    "bfloat16": (lambda m, x: m.bfloat16()(x.bfloat16()), TypeError, "got torch.bfloat16"),
    "device": (lambda m, x: m(x.to("meta")), ValueError, "input: got device meta, wanted cpu"),
    "module's device": (lambda m, x: m.to("meta")(x), ValueError, "weight_ih_l0: got device meta"),
    "sparse": (lambda m, x: m(x.to_sparse()), ValueError, "input: got torch.sparse_coo"),
    "state's dtype": (
        lambda m, x: m(x, torch.zeros(1, N, H).double()),
        TypeError,
        "hx: got torch.float64, wanted torch.float32",
    ),
    "a parameter's dtype": (
        lambda m, x: setattr(m, "weight_hh_l0", nn.Parameter(m.weight_hh_l0.double())) or m(x),
        TypeError,
        "weight_hh_l0: got torch.float64, wanted torch.float32",
    ),
    "autocast": (in_autocast, NotImplementedError, "under autocast to torch.float16"),
    "vmap": (
        lambda m, x: torch.vmap(lambda v: m(v)[0])(x[None]),
        NotImplementedError,
        r"a transform of torch\.func",
    ),
    "func.grad": (
        lambda m, x: torch.func.grad(lambda v: m(v)[0].sum())(x),
        NotImplementedError,
        r"a transform of torch\.func",
    ),
    "forward AD": (in_dual_level, NotImplementedError, "forward-mode AD"),
    "num_threads": (
        lambda m, x: setattr(m, "num_threads", 0) or m(x),
        ValueError,
        "num_threads: got 0, wanted an integer of at least 1",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what):
    call, error, match = REFUSED[what]
    x = torch.randn(T, N, IN)
    for grad in (True, False):
        module = tidegate.torch.GRU(IN, H)
        with torch.set_grad_enabled(grad), pytest.raises(error, match=match):
            call(module, x)


def test_tracing_is_refused():
    with pytest.raises(NotImplementedError, match="under a tracer"):
        torch.jit.trace(tidegate.torch.GRU(IN, H), torch.randn(T, N, IN))


def test_lstm_states_are_a_pair():
    module = tidegate.torch.LSTM(IN, H)
    x, h = torch.randn(T, N, IN), torch.zeros(1, N, H)
    with pytest.raises(TypeError, match=r"hx: got torch\.Tensor, wanted a pair"):
        module(x, h)
    with pytest.raises(TypeError, match=r"hx\[1\]: got builtins.NoneType"):
        module(x, (h, None))


SHAPES = {
    "one axis": lambda m, z: m(z(IN)),
    "four axes": lambda m, z: m(z(1, T, N, IN)),
    "features": lambda m, z: m(z(T, N, IN + 1)),
    "features unbatched": lambda m, z: m(z(T, IN + 1)),
    "dtype": lambda m, z: m(z(T, N, IN).double()),
    "h rows": lambda m, z: m(z(T, N, IN), pair(m, [z(2, N, H), z(1, N, H)])),
    "h batch": lambda m, z: m(z(T, N, IN), pair(m, [z(1, N + 1, H), z(1, N, H)])),
    "h unbatched": lambda m, z: m(z(T, N, IN), pair(m, [z(1, H), z(1, H)])),
    "h batched": lambda m, z: m(z(T, IN), pair(m, [z(1, N, H), z(1, N, H)])),
    "h features": lambda m, z: m(z(T, IN), pair(m, [z(1, H + 1), z(1, H)])),
    "h packed": lambda m, z: m(
        rnn.pack_padded_sequence(z(T, N, IN), [T] * N), pair(m, [z(1, N, H + 1), z(1, N, H)])
    ),
}


@every_kind
@pytest.mark.parametrize("what", SHAPES)
def test_wrong_shapes_raise_as_in_torch(kind, what):
    raised = []
    for home in (nn, tidegate.torch):
        with pytest.raises((ValueError, RuntimeError)) as error:
            SHAPES[what](getattr(home, kind)(IN, H), torch.zeros)
        raised.append(error.type)
    assert raised[0] is raised[1]


@pytest.mark.parametrize("sizes", [[2, 3], [2, 2], [2, 2, 1, 0], [], [3, 2, 1]])
def test_packed_data_must_fit_their_sizes(sizes):
    packed = rnn.PackedSequence(torch.zeros(5, IN), torch.tensor(sizes, dtype=torch.int64))
    with pytest.raises(ValueError, match="batch_sizes: "):
        tidegate.torch.GRU(IN, H)(packed)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((0, 5), {}), ((3, 5), {"dropout": 2}), ((3, 5), {"bias": 1}), ((3, 5), {"proj_size": 5})],
)
def test_constructor_raises_as_in_torch(arguments, options):
    for kind in ("LSTM", "GRU"):
        for home in (nn, tidegate.torch):
            with pytest.raises((ValueError, TypeError)):
                getattr(home, kind)(*arguments, **options)


# ---- accelerate ----------------------------------------------------------------------------------


class Model(nn.Module):
    """Recurrent modules in several places, one of them twice, and one of a user's own class."""

    class Own(nn.GRU):
        def forward(self, x):
            return super().forward(x)[0]

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(IN, IN), nn.LSTM(IN, H, 2, batch_first=True))
        self.again = self.encoder[1]
        self.layers = nn.ModuleList([nn.GRU(H, H), Model.Own(H, H), nn.RNN(H, H)])

    def forward(self, x):
        y = self.encoder(x)[0]
        y = self.layers[1](self.layers[0](y)[0])
        return self.layers[2](y)[0]


def test_accelerate_swaps_in_place():
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    modules, parameters = [*model.modules()], [*model.parameters()]
    called = []
    model.layers[0].register_forward_hook(lambda *_: called.append(True))

    assert accelerate(model) is model
    assert all(a is b for a, b in zip(model.modules(), modules))
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert type(model.again) is type(model.encoder[1]) is tidegate.torch.LSTM
    assert type(model.layers[0]) is tidegate.torch.GRU
    assert [type(module) for module in model.layers[1:]] == [Model.Own, nn.RNN]
    assert repr(model) == repr(twin)

    x = torch.randn(N, T, IN)
    results = []
    for each in (twin, model):
        y = each(x)
        y.sum().backward()
        results.append([y.detach(), *(p.grad for p in each.parameters())])
    assert_close(*results)
    assert called
    before = model(x).detach()
    optimizer.step()
    assert not torch.equal(model(x), before)


def test_accelerate_takes_a_module_itself():
    module = nn.GRU(IN, H)
    assert type(accelerate(module)) is tidegate.torch.GRU
    parametrized = nn.utils.parametrizations.weight_norm(nn.GRU(IN, H), "weight_hh_l0")
    assert not isinstance(accelerate(parametrized), tidegate.torch.GRU)
    for wrong in ("model", None, nn.GRU, tidegate.MGU(IN, H)):
        with pytest.raises(TypeError, match=r"model: got .*, wanted a torch\.nn\.Module"):
            accelerate(wrong)
    with pytest.raises(TypeError, match="freeze: got 1"):
        accelerate(module, freeze=1)


FALLS_BACK = ["subclass", "bfloat16", "autocast", "forward AD"]


@pytest.mark.parametrize("what", FALLS_BACK)
def test_accelerated_falls_back(what):
    torch.manual_seed(0)
    theirs = nn.GRU(IN, H)
    ours = accelerate(copy.deepcopy(theirs))
    x = torch.randn(T, N, IN)
    call = REFUSED[what][0]
    for got, wanted in zip(flat(call(ours, x)), flat(call(theirs, x))):
        assert type(got) is type(wanted)
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
    frozen = accelerate(copy.deepcopy(theirs).eval(), freeze=True)
    with torch.no_grad(), pytest.raises(REFUSED[what][1], match=REFUSED[what][2]):
        call(frozen, x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_accelerated_is_traced_and_differentiated_twice_by_torch():
    module = accelerate(nn.GRU(IN, H))
    x = torch.randn(T, N, IN)
    traced = torch.jit.trace(module, x)
    other = torch.randn(T, N, IN)
    assert_close(flat(traced(other)), flat(module(other)))
    wanted = torch.autograd.functional.jacobian(lambda v: module(v)[0], x)
    assert_close([torch.func.jacrev(lambda v: module(v)[0])(x)], [wanted])


class Body(nn.Module):
    def __init__(self, kind="GRU", **options):
        super().__init__()
        self.body = getattr(nn, kind)(IN, H, 2, **options)

    def forward(self, x, hx=None):
        y, state = self.body(x, hx)
        return y.relu(), state


@pytest.fixture
def allow_rnn():
    import torch._dynamo

    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", AUTOCAST_OPTIONS)
def test_compiled_under_autocast(options, allow_rnn):
    check_autocast(
        options, lambda module: torch.compile(module, backend="aot_eager", fullgraph=True)
    )


@every_kind
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_compiled_whole_it_is_one_operator(kind, batch_first, allow_rnn):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.manual_seed(0)
    theirs = Body(kind, batch_first=batch_first, dropout=0.4)
    ours = accelerate(copy.deepcopy(theirs))
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    x, hx = torch.randn(T, N, IN), torch.zeros(2, T if batch_first else N, H)
    hx = (hx, hx + 1) if kind == "LSTM" else hx
    results = []
    for module in (theirs, compiled):
        torch.manual_seed(3)
        y, state = module(x, hx)
        (y.sum() + flat((y, state))[1].sum()).backward()
        results.append(flat((y, state)))
    results = [
        [*each, *(p.grad for p in module.parameters())]
        for each, module in zip(results, (theirs, ours))
    ]
    assert_close(results[1], results[0])
    assert "tidegate.recurrence" in graphs[0].code
    for module in (theirs, compiled):
        module.eval()
    with torch.no_grad():
        assert_close(flat(compiled(x, hx)), flat(theirs(x, hx)))


@every_kind
def test_compiled_with_autograd(kind, allow_rnn):
    torch.manual_seed(0)
    module = getattr(tidegate.torch, kind)(IN, H, 2)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(T, N, IN)
    wanted = train(module, x, [], lambda data: data)
    for _ in range(2):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        results = flat(compiled(leaf))
        generator = torch.Generator().manual_seed(4)
        sum((r * torch.randn(r.shape, generator=generator)).sum() for r in results).backward()
        grads = [leaf.grad, *(p.grad for p in module.parameters())]
        assert_same([*(r.detach() for r in results), *grads], wanted)


def operator_arguments(kind, record, packed=False):
    module = getattr(nn, kind)(IN, H, 2)
    weights = [*module.parameters()] if record else [p.detach() for p in module.parameters()]
    states = [torch.randn(2, N, H)] * (1 if kind == "GRU" else 2)
    states = [state.clone() for state in states]
    x = torch.randn(T * N if packed else T, *(() if packed else (N,)), IN)
    sizes = torch.full((T,), N) if packed else None
    options = (IN, H, 2, True, False, 0, False, 0.0, 0, record, None)
    return (x, sizes, states, weights, kind, *options)


@every_kind
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("record", [True, False])
def test_operator_is_registered_right(kind, packed, record):
    arguments = operator_arguments(kind, record, packed)
    tests = ["test_schema", "test_faketensor"]
    if record:
        tests.append("test_autograd_registration")
    torch.library.opcheck(torch.ops.tidegate.recurrence, arguments, test_utils=tests)


@every_kind
def test_operator_of_programs_exported_before_it_had_a_precision(kind):
    *arguments, precision = operator_arguments(kind, True)
    assert precision is None
    results = torch.ops.tidegate.recurrence(*arguments)
    wanted = torch.ops.tidegate.recurrence(*arguments, None)
    assert torch.equal(results[0], wanted[0])
    results[0].sum().backward()
    assert arguments[3][0].grad is not None


def test_a_tape_lives_as_long_as_its_tensor():
    from tidegate.torch import operator

    tape = torch.ops.tidegate.recurrence(*operator_arguments("GRU", True))[-1]
    recorded = weakref.ref(operator._tape_memories[tape.data_ptr()])
    with pytest.raises(RuntimeError, match="tape: got a tensor that represents no tape"):
        operator.recurrence_backward(None, None, None, tape.clone(), torch.ones(1), [], [])
    assert recorded() is not None
    del tape
    gc.collect()
    assert recorded() is None


@every_kind
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.filterwarnings("ignore:The tensor attributes self.body._flat_weights:UserWarning")
def test_export(kind, strict, accelerated):
    model = Body(kind).eval()
    if accelerated:
        accelerate(model)
    else:
        model.body = getattr(tidegate.torch, kind)(IN, H, 2).eval()
    x = torch.randn(T, N, IN)
    program = torch.export.export(model, (x,), strict=strict)
    # An accelerated model's program runs without Tidegate.
    assert ("tidegate.recurrence" in program.graph_module.code) != accelerated
    with torch.no_grad():
        assert_close(flat(program.module()(x)), flat(model(x)))


@every_kind
def test_a_dispatch_mode_sees_the_call(kind):
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(T, N, IN, dtype=torch.float64)
    packed = rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    model = getattr(nn, kind)(IN, H, dtype=torch.float64)
    direct = getattr(tidegate.torch, kind)(IN, H, dtype=torch.float64)
    direct.load_state_dict(model.state_dict())
    for given in (x, packed):
        wanted = flat(model(given))
        counts = []
        for module in (model, accelerate(copy.deepcopy(model)), direct):
            with FlopCounterMode(display=False) as counter:
                assert_close(flat(module(given)), wanted)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > counts[2] == 0  # an operator has no known count
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert direct(mode.from_tensor(x))[0].shape == (T, N, H)


@every_kind
def test_accelerated_is_a_leaf_of_fx(kind):
    model = accelerate(Body(kind)).eval()
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["body"]
    assert type(traced.body) is getattr(tidegate.torch, kind)
    x, hx = torch.randn(T, N, IN), torch.zeros(2, N, H)
    hx = (hx, hx) if kind == "LSTM" else hx
    with torch.no_grad():
        assert_same(flat(traced(x, None)), flat(model(x)))
        assert_same(flat(traced(x, hx)), flat(model(x, hx)))
    for home in (nn, tidegate.torch):
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(getattr(home, kind)(IN, H))


class Script(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body = getattr(nn, kind)(IN, H)

    def forward(self, x):
        return self.body(x)[0].relu()


@every_kind
def test_script_compiles_torchs(kind):
    model = accelerate(Script(kind).eval())
    x = torch.randn(T, N, IN)
    with torch.no_grad():
        wanted = model(x)
        scripted = torch.jit.script(model)
        assert_close([scripted(x)], [wanted])
        assert type(model.body) is getattr(nn, kind)
        assert_same([accelerate(model)(x)], [wanted])
    model.body = getattr(tidegate.torch, kind)(IN, H)
    with pytest.raises(NotImplementedError, match=rf"{kind}: got torch\.jit\.script.*restore"):
        torch.jit.script(model)


@every_kind
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(
    not torch.backends.quantized.supported_engines[1:], reason="PyTorch cannot quantise here"
)
def test_quantize_dynamic(kind):
    quantize = torch.ao.quantization.quantize_dynamic
    model = Body(kind).eval()
    x = torch.randn(T, N, IN)
    wanted = quantize(model, {getattr(nn, kind)}, dtype=torch.qint8)
    accelerate(model)
    got = quantize(model, {getattr(nn, kind)}, dtype=torch.qint8)
    assert type(got.body) is type(wanted.body)
    assert type(got.body).__module__.startswith("torch.ao.nn.quantized")
    assert_same(flat(got(x)), flat(wanted(x)))
    assert type(quantize(model, {nn.Linear}).body) is getattr(tidegate.torch, kind)


@every_kind
def test_class_is_equal_to_torchs_alone(kind):
    theirs, ours = getattr(nn, kind), getattr(tidegate.torch, kind)
    other = tidegate.torch.GRU if kind == "LSTM" else tidegate.torch.LSTM
    assert ours == theirs == ours == ours
    assert {theirs: 1}[ours] == {ours: 1}[theirs] == 1
    assert ours is not theirs
    assert ours not in (other, nn.RNN, nn.Module, None)
    own = type("Own", (ours,), {})
    assert own == own
    assert own not in (ours, theirs)


@every_kind
def test_swapping_parameters(kind):
    module = getattr(tidegate.torch, kind)(IN, H)
    x = torch.randn(T, N, IN)
    with torch.no_grad():
        wanted = flat(module(x))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for frozen in (False, True):
            accelerate(module.eval(), freeze=frozen)
            with torch.no_grad():
                module.float()(x)
                parameters = [*module.parameters()]
                assert module.double()(x.double())[0].dtype == torch.float64
                assert_close(flat(module.float()(x)), wanted)
            assert all(a is b for a, b in zip(module.parameters(), parameters))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_restore():
    torch.manual_seed(0)
    model = Model()
    twin = copy.deepcopy(model)
    modules = [*model.modules()]
    called = []
    model.layers[0].register_forward_hook(lambda *_: called.append(True))
    x = torch.randn(N, T, IN)
    accelerate(model)
    model.again.num_threads = 1
    model(x)
    assert tidegate.torch.restore(model) is model
    assert all(a is b for a, b in zip(model.modules(), modules))
    assert [type(module) for module in modules] == [type(module) for module in twin.modules()]
    assert model.again.__dict__.keys() == twin.again.__dict__.keys()
    assert_same([model(x)], [twin(x)])
    assert len(called) == 2
    with pytest.raises(TypeError, match=r"model: got .*, wanted a torch\.nn\.Module"):
        tidegate.torch.restore("model")


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_restored_models_load_without_tidegate(frozen):
    model = nn.Sequential(accelerate(nn.LSTM(IN, H).eval(), freeze=frozen))
    x = torch.randn(T, N, IN)
    with torch.no_grad():
        wanted = flat(model(x))
        saved = pickle.dumps(tidegate.torch.restore(copy.deepcopy(model)))
        assert b"tidegate" not in saved
        assert_close(flat(pickle.loads(saved)(x)), wanted)
        # The model itself goes on; a pickle of it can be restored.
        assert type(model[0]) is tidegate.torch.LSTM
        loaded = tidegate.torch.restore(pickle.loads(pickle.dumps(model)))
    assert type(loaded[0]) is nn.LSTM
    assert b"tidegate" not in pickle.dumps(loaded)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_accelerate_logs_what_it_leaves(caplog):
    parametrized = nn.utils.parametrizations.weight_norm(nn.GRU(IN, H), "weight_hh_l0")
    left = {
        "0": (nn.LSTMCell(IN, H), "cells are not supported"),
        "1": (nn.RNN(IN, H), "neither LSTM nor GRU"),
        "2": (Model.Own(IN, H), "a subclass of torch.nn.GRU"),
        "3": (parametrized, "it has parametrizations"),
        "4": (torch.jit.script(nn.GRU(IN, H)), "it is scripted"),
        "5": (torch.ao.nn.quantized.dynamic.GRU(IN, H), "it is quantised"),
        "6": (torch.ao.nn.quantizable.LSTMCell(IN, H), "a float module made to be quantised"),
    }
    model = nn.Sequential(*(module for module, _ in left.values()), nn.Linear(IN, H))
    with caplog.at_level("INFO", logger="tidegate.torch"):
        accelerate(model)
        accelerate(nn.Sequential(nn.GRU(IN, H), tidegate.torch.LSTM(IN, H)))
        tidegate.torch.restore(model)
    first, second, third = caplog.records
    assert first.levelname == "WARNING"  # none was taken
    lines = first.getMessage().splitlines()
    assert lines[0] == "accelerate: 0 modules run on Tidegate, 7 recurrent modules are left"
    for line, (name, (_, reason)) in zip(lines[1:], left.items(), strict=True):
        assert line.startswith(f"  {name} (")
        assert reason in line
    assert second.levelname == "INFO"
    assert "2 modules run on Tidegate, 0 recurrent modules are left" in second.getMessage()
    assert third.getMessage() == "restore: 0 modules are torch.nn's again"


def test_the_log_counts_one_module_in_the_singular(caplog):
    model = nn.Sequential(nn.GRU(IN, H), nn.RNN(IN, H))
    with caplog.at_level("INFO", logger="tidegate.torch"):
        tidegate.torch.restore(accelerate(model))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("accelerate: 1 module runs on Tidegate, 1 recurrent module is left\n")
    assert second == "restore: 1 module is torch.nn's again"


# ---- Parameters and their packing ----------------------------------------------------------------


def writes(module):
    """Each changes the parameters another way; yields whether their versions tell."""
    with torch.no_grad():
        module.weight_ih_l0.mul_(1.5)
    yield True
    module.weight_hh_l0.data.mul_(1.5)
    yield False
    module.weight_ih_l0.detach().numpy()[...] *= 1.5
    yield False
    module.bias_ih_l0.data = module.bias_ih_l0.data + 1
    yield True
    module.bias_hh_l0 = nn.Parameter(module.bias_hh_l0.detach() + 1)
    yield True
    module.load_state_dict({k: 0.5 * v for k, v in module.state_dict().items()})
    yield True
    square = module.weight_hh_l0.data[:H]
    square.copy_(square.T.clone())
    yield False
    module.to(torch.float64)
    yield True


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_writes_are_seen(frozen):
    torch.manual_seed(0)
    module = accelerate(nn.GRU(IN, H).eval(), freeze=frozen)
    x = torch.randn(T, N, IN)

    def results(module):
        with torch.no_grad():
            return flat(module(x.to(module.weight_ih_l0.dtype)))

    before = results(module)
    for told in writes(module):
        got = results(module)
        if frozen and not told:
            assert_same(got, before)
            accelerate(module, freeze=True)
            got = results(module)
        assert not (got[0].dtype == before[0].dtype and torch.equal(got[0], before[0]))
        theirs = nn.GRU(IN, H, dtype=got[0].dtype)
        theirs.load_state_dict(module.state_dict())
        assert_close(got, results(theirs))
        before = got


@every_kind
def test_frozen_refuses_training(kind):
    module = accelerate(getattr(nn, kind)(IN, H, 2, dropout=0.5), freeze=True)
    x = torch.randn(T, N, IN)
    with pytest.raises(RuntimeError, match="training mode, but the module is frozen"):
        module(x)
    with torch.no_grad(), pytest.raises(RuntimeError, match="is frozen"):
        module(x)  # dropout would be drawn
    module.eval()
    y = module(x)[0]
    with pytest.raises(RuntimeError, match=r"is frozen.*accelerate"):
        y.sum().backward()
    with torch.inference_mode():
        inferred = module(x)[0]
    assert torch.equal(inferred, y)
    accelerate(module)
    module.train()
    module(x)[0].sum().backward()
    assert module.weight_ih_l0.grad.any()


def test_frozen_under_inference_mode():
    with torch.inference_mode():
        module = accelerate(nn.LSTM(IN, H), freeze=True)
        x = torch.randn(T, N, IN)
        assert_same(flat(module(x)), flat(module(x)))
        assert module(x)[0].is_inference()


@every_kind
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_copies_and_pickles(kind, frozen):
    module = getattr(tidegate.torch, kind)(IN, H, 2).eval()
    accelerate(module, freeze=frozen)
    x = torch.randn(T, N, IN)
    with torch.no_grad():
        wanted = flat(module(x))
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for made in (
            copy.deepcopy(module),
            pickle.loads(pickle.dumps(module)),
            torch.load(file, weights_only=False),
        ):
            assert type(made) is type(module)
            assert_same(flat(made(x)), wanted)
            made.weight_ih_l0.mul_(2)
            assert not torch.equal(made(x)[0], wanted[0])
            assert_same(flat(module(x)), wanted)
            made.train()
            if frozen:
                with torch.enable_grad(), pytest.raises(RuntimeError, match="frozen"):
                    made(x)


def test_state_dict_file(tmp_path):
    module = tidegate.torch.LSTM(IN, H, proj_size=2)
    module(torch.randn(T, N, IN))[0].sum().backward()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    torch.save(module.bias_ih_l0.grad, tmp_path / "grad.pt")
    theirs = nn.LSTM(IN, H, proj_size=2)
    theirs.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_same([*theirs.parameters()], [*module.parameters()])
    # A gradient's storage is its own, not that of all of them.
    assert module.bias_ih_l0.grad.untyped_storage().nbytes() == 4 * 4 * H


# ---- Threads -------------------------------------------------------------------------------------


def test_threads_are_limited_by_both(monkeypatch):
    module = tidegate.torch.GRU(IN, H)
    limit = tg.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert module._threads() == limit
    with tg.num_threads(1):
        assert module._threads() == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert module._threads() == 1
    module.num_threads = 3
    assert module._threads() == 3
    assert copy.deepcopy(module).num_threads == 3


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_many_threads_call_one_module(frozen):
    module = tidegate.torch.LSTM(16, 32, 2, bidirectional=True)
    if frozen:
        accelerate(module.eval(), freeze=True)
    xs = [torch.randn(20, n + 1, 16) for n in range(6)]

    def work(x):
        if frozen:
            with torch.no_grad():
                return flat(module(x))
        x = x.clone().requires_grad_()
        results = flat(module(x))
        return [*results, *torch.autograd.grad(results[0].sum(), [x, *module.parameters()])]

    wanted = [work(x) for x in xs]
    errors = []

    def body(x, expected):
        try:
            for _ in range(10):
                assert_same(work(x), expected)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=pair) for pair in zip(xs, wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@every_kind
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16-dot", "int8"])
def test_a_frozen_module_in_low_precision(kind, precision):
    module = getattr(nn, kind)(IN, H, 2, bidirectional=True).eval()
    x = torch.randn(T, N, IN)
    with torch.no_grad():
        exact = module(x)[0]
        accelerate(module, freeze=True, precision=precision)
        for _ in range(2):  # the parameters of the second round are packed anew
            wanted, _ = tg.convert.from_torch(module).quantize(precision)(x.numpy())
            for each in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
                assert torch.equal(each(x)[0], torch.from_numpy(wanted))
            module.load_state_dict(getattr(nn, kind)(IN, H, 2, bidirectional=True).state_dict())
        accelerate(module, freeze=True)
        assert torch.equal(
            module(x)[0], torch.from_numpy(tg.convert.from_torch(module)(x.numpy())[0])
        )
        accelerate(module, freeze=True, precision=precision)
        tidegate.torch.restore(module)
        assert not hasattr(module, "_precision")
        assert exact.shape == module(x)[0].shape


def test_precision_is_for_frozen_modules_of_float32():
    module = nn.LSTM(IN, H)
    with pytest.raises(TypeError, match="precision: got 8, wanted 'bfloat16', 'bf"):
        accelerate(module, freeze=True, precision=8)
    with pytest.raises(ValueError, match="precision: got 'int4', wanted 'bfloat16', 'bf"):
        accelerate(module, freeze=True, precision="int4")
    with pytest.raises(ValueError, match="precision: got 'int8' with freeze=False"):
        accelerate(module, precision="int8")
    assert type(module) is nn.LSTM
    model = nn.Sequential(module, nn.GRU(IN, H).double())
    with pytest.raises(
        ValueError, match=r"precision: 1 \(torch.nn.*GRU\) has parameters of torch.f"
    ):
        accelerate(model, freeze=True, precision="int8")
    assert [type(each) for each in model] == [nn.LSTM, nn.GRU]
