"""Schedulers of the learning rate: against PyTorch step by step, closed forms, state, refusals."""

import math

import numpy as np
import pytest

import tidegate as tg
from tidegate import lr_scheduler

BASES = [0.1, 0.4]


def optimizer(kind="SGD", **options):
    layers = [tg.Linear(2, 1, seed=k) for k in range(len(BASES))]
    groups = [{"params": layer, "lr": lr} for layer, lr in zip(layers, BASES)]
    return getattr(tg.optim, kind)(groups, **options)


def sequential(module, opt):
    warm_up = module.LinearLR(opt, start_factor=0.1, total_iters=4)
    decay = module.CosineAnnealingLR(opt, T_max=6, eta_min=0.01)
    return module.SequentialLR(opt, [warm_up, decay], milestones=[4])


SCHEDULERS = {
    "linear": lambda module, opt: module.LinearLR(opt, 0.25, 0.8, 7),
    "linear by default": lambda module, opt: module.LinearLR(opt),
    "cosine": lambda module, opt: module.CosineAnnealingLR(opt, T_max=10, eta_min=0.02),
    "lambda": lambda module, opt: module.LambdaLR(opt, lambda k: 0.9**k),
    "lambdas": lambda module, opt: module.LambdaLR(opt, [lambda k: 1 / (1 + k), lambda _: 0.5]),
    "sequential": sequential,
    "one cycle": lambda module, opt: module.OneCycleLR(opt, [0.5, 2.0], total_steps=13),
    "one cycle, linear": lambda module, opt: module.OneCycleLR(
        opt, 0.7, total_steps=13, pct_start=0.45, anneal_strategy="linear", div_factor=4.0
    ),
    "one cycle, rates alone": lambda module, opt: module.OneCycleLR(
        opt, 0.7, total_steps=13, cycle_momentum=False
    ),
}


def momenta(groups):
    return [group["betas"][0] if "betas" in group else group["momentum"] for group in groups]


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore")
def test_rates_and_momenta_are_pytorchs(name, kind):
    torch = pytest.importorskip("torch")
    options = {"momentum": 0.9} if kind == "SGD" else {}
    theirs = getattr(torch.optim, kind)(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in BASES], **options
    )
    ours = optimizer(kind, **options)
    wanted = SCHEDULERS[name](torch.optim.lr_scheduler, theirs)
    got = SCHEDULERS[name](lr_scheduler, ours)
    for _ in range(12):
        # PyTorch computes some of them from the rate before, which adds up rounding errors.
        np.testing.assert_allclose(got.get_last_lr(), wanted.get_last_lr(), rtol=1e-13)
        np.testing.assert_allclose(
            momenta(ours.param_groups), momenta(theirs.param_groups), rtol=1e-13
        )
        got.step()
        wanted.step()


METRICS = [3, 2, 2, 2, 1.9999, 2.5, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, math.nan, 0.5, math.inf, 2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 2},
        {"patience": 0, "cooldown": 2, "factor": 0.5},
        {"patience": 1, "threshold_mode": "abs", "threshold": 0.7},
        {"patience": 1, "mode": "max"},
        {"patience": 1, "mode": "max", "threshold_mode": "abs", "threshold": 0.1},
        {"patience": 1, "min_lr": 0.03},
        {"patience": 1, "eps": 0.02},
    ],
)
def test_plateaus_are_pytorchs(options):
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in BASES]
    )
    wanted = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    got = lr_scheduler.ReduceLROnPlateau(optimizer(), **options)
    for metric in METRICS:
        got.step(metric)
        wanted.step(metric)
        np.testing.assert_allclose(got.get_last_lr(), wanted.get_last_lr(), rtol=1e-13)


def test_closed_forms():
    opt = optimizer()
    scheduler = lr_scheduler.CosineAnnealingLR(opt, T_max=4)
    for _ in range(2):
        scheduler.step()
    np.testing.assert_allclose(scheduler.get_last_lr(), [lr / 2 for lr in BASES])
    for _ in range(2):
        scheduler.step()
    assert scheduler.get_last_lr() == [0, 0]
    assert [group["lr"] for group in opt.param_groups] == [0, 0]
    linear = lr_scheduler.LinearLR(optimizer(), 0.5, total_iters=2)
    rates = []
    for _ in range(4):
        rates.append(linear.get_last_lr()[0])
        linear.step()
    np.testing.assert_allclose(rates, [0.05, 0.075, 0.1, 0.1])


def test_a_second_scheduler_takes_the_rates_before_the_first():
    opt = optimizer()
    lr_scheduler.LinearLR(opt, 0.1)
    assert lr_scheduler.CosineAnnealingLR(opt, 5).get_last_lr() == BASES


@pytest.mark.parametrize("name", [*SCHEDULERS, "plateau"])
def test_a_saved_state_goes_on(name, tmp_path):
    def made():
        opt = optimizer("Adam")
        if name == "plateau":
            return lr_scheduler.ReduceLROnPlateau(opt, patience=1)
        return SCHEDULERS[name](lr_scheduler, opt)

    def step(scheduler, k):
        scheduler.step(*([METRICS[k]] if name == "plateau" else []))

    first, second = made(), made()
    for k in range(6):
        step(first, k)
    np.savez(tmp_path / "state.npz", **first.state_dict())
    with np.load(tmp_path / "state.npz") as state:
        second.load_state_dict(state)
    for k in range(6, 12):
        assert second.get_last_lr() == first.get_last_lr()
        groups = zip(second.optimizer.param_groups, first.optimizer.param_groups)
        assert all(a["betas"] == b["betas"] for a, b in groups)
        step(first, k)
        step(second, k)


def test_a_wrong_state_changes_nothing():
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer())
    scheduler.step(1.0)
    before = scheduler.state_dict()
    for change in ({"last_epoch": np.asarray(-1)}, {"lrs": np.asarray([-1.0, 1.0])}):
        with pytest.raises(ValueError, match="state_dict"):
            scheduler.load_state_dict({**before, **change})
    with pytest.raises(ValueError, match="state_dict"):
        scheduler.load_state_dict({"last_epoch": np.asarray(1)})
    assert all(np.array_equal(scheduler.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda o: lr_scheduler.LinearLR("sgd"), TypeError, "optimizer: got str, wanted one of"),
        (lambda o: lr_scheduler.LinearLR(o, 0.0), ValueError, "start_factor: got 0"),
        (lambda o: lr_scheduler.LinearLR(o, 0.5, 2.0), ValueError, "end_factor: got 2"),
        (lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 0), ValueError, "total_iters: got 0"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 2.5), TypeError, "T_max: got 2.5"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 2, -1), ValueError, "eta_min: got -1"),
        (lambda o: lr_scheduler.LambdaLR(o, [abs]), ValueError, "lr_lambda: got 1 functions"),
        (lambda o: lr_scheduler.LambdaLR(o, [abs, 1]), TypeError, "lr_lambda: got 1, wanted a"),
        (lambda o: lr_scheduler.LambdaLR(o, lambda k: -1), ValueError, "lr: got -0.1"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, 0), ValueError, "total_steps: got 0"),
        (lambda o: lr_scheduler.OneCycleLR(o, [1.0], 9), ValueError, "max_lr: got 1 rates"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, 9), ValueError, "cycle_momentum: got an opt"),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, 9, anneal_strategy="exp"),
            ValueError,
            "anneal_strategy: got 'exp', wanted 'cos' or 'linear'",
        ),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, 9, cycle_momentum=False, div_factor=0),
            ValueError,
            "div_factor: got 0",
        ),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "least"), ValueError, "mode: got 'least'"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=1.0), ValueError, "factor: got 1"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=-1), ValueError, "patience: got -1"),
        (
            lambda o: lr_scheduler.ReduceLROnPlateau(o, threshold_mode="x"),
            ValueError,
            "threshold_mode: got 'x', wanted 'rel' or 'abs'",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o)], [1]),
            ValueError,
            "milestones: got 1, wanted 0 for 1 schedulers",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(optimizer())], []),
            ValueError,
            "schedulers: got one of another optimiser",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ReduceLROnPlateau(o)], []),
            TypeError,
            "schedulers: got ReduceLROnPlateau, wanted",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o) for _ in range(3)], [4, 4]
            ),
            ValueError,
            r"milestones: got \[4, 4\], wanted ascending",
        ),
    ],
)
def test_wrong_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make(optimizer())


@pytest.mark.parametrize(("total_steps", "pct_start"), [(1, 0.3), (1, 1.0), (4, 0.25), (4, 1.0)])
def test_cycles_of_few_steps(total_steps, pct_start):
    options = {"pct_start": pct_start, "cycle_momentum": False}
    scheduler = lr_scheduler.OneCycleLR(optimizer(), 1.0, total_steps, **options)
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(total_steps - 1):
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert all(0 < rate <= 1 for rate in rates)
    assert total_steps == 1 or max(rates) == 1


def test_a_cycle_ends():
    scheduler = lr_scheduler.OneCycleLR(optimizer(), 1.0, 3, cycle_momentum=False)
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match=r"step 3 of a cycle of total_steps=3; make a new"):
        scheduler.step()
