import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Parameter, Tensor, nn
from var_tokenizer.common import InputError, KernelLibrary
from var_train.optimization import adamw
from var_train.optimization.adamw import AdamW, AdamWConfig
from var_train.parallel.sharding import deal


class Quadratic(nn.Cell):
    """sum(scale * (matrix + vector - target)**2), with both parameters trained."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.matrix = Parameter(Tensor(rng.standard_normal((3, 4)).astype(np.float32)))
        self.vector = Parameter(Tensor(rng.standard_normal(4).astype(np.float32)))

    def construct(self, target: Tensor) -> Tensor:
        return ((self.matrix + self.vector - target) ** 2).sum()


def adamw_by_definition(parameters, gradients_of, config, steps, decayed):
    """Algorithm 2 of arXiv:1711.05101, in float64, with global-norm clipping."""
    beta1, beta2 = config.betas
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
    for step in range(steps):
        gradients = gradients_of(parameters)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        rate = config.rate(step, steps)
        for i, gradient in enumerate(gradients):
            gradient = gradient * min(config.clip / (norm + 1e-6), 1)
            first = beta1 * moments[i][0] + (1 - beta1) * gradient
            second = beta2 * moments[i][1] + (1 - beta2) * gradient**2
            moments[i] = first, second
            update = first / (1 - beta1 ** (step + 1))
            update /= np.sqrt(second / (1 - beta2 ** (step + 1))) + 1e-8
            decay = config.weight_decay if decayed[i] else 0
            parameters[i] = parameters[i] - rate * (update + decay * parameters[i])
    return parameters


def test_an_optimizer_that_is_restored_is_saved_as_it_was():
    parameters = Quadratic().trainable_params()
    saved, restored = (AdamW(parameters, AdamWConfig(), lambda _: True) for _ in range(2))
    saved.scalars(3, 10)
    arrays, state = saved.snapshot("optimizer")
    restored.restore("optimizer", arrays, state)
    assert restored.snapshot("optimizer")[1] == state and state["learning_rate"] > 0


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_ten_updates_are_those_of_the_definition(clip):
    model = Quadratic()
    config = AdamWConfig(learning_rate=0.1, weight_decay=0.3, clip=clip)
    start = [p.asnumpy().astype(np.float64) for p in model.trainable_params()]
    optimizer = AdamW(model.trainable_params(), config, lambda p: p.ndim > 1)
    target = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    gradients_of = ms.value_and_grad(model, None, model.trainable_params())

    @ms.jit
    def step(target_ij, scalars_3):
        loss, gradients = gradients_of(target_ij)
        return loss, optimizer(gradients, scalars_3)

    for i in range(10):
        step(Tensor(target), optimizer.scalars(i, 10))

    def exact(parameters):
        error = 2 * (parameters[0] + parameters[1] - target)
        return [error, error.sum(0)]

    expected = adamw_by_definition(start, exact, config, 10, (True, False))
    for parameter, wanted in zip(model.trainable_params(), expected, strict=True):
        np.testing.assert_allclose(parameter.asnumpy(), wanted, rtol=1e-3, atol=1e-5)


def use_kernels(monkeypatch, kernels):
    """Lets optimizers use the C++ kernels, and skips a test where there are none, or not."""
    if not kernels:
        monkeypatch.setattr(adamw, "_kernels", KernelLibrary("var_train._absent"))
    elif adamw._kernels.path is None:
        pytest.skip("the kernels were not built when the package was installed")


def compiled(optimizer):
    @ms.jit
    def update(gradients, scalars_3):
        return optimizer(gradients, scalars_3, 4.0)

    return update


@pytest.mark.parametrize("kernels", [True, False])
def test_adamw_takes_more_parameters_than_the_deepest_preset_has(monkeypatch, kernels):
    """MindSpore compiles a loop into calls inside calls, of which it allows 1,000."""
    use_kernels(monkeypatch, kernels)
    parameters = [Parameter(Tensor(np.ones(2, np.float32)), name=f"p{n}") for n in range(600)]
    optimizer = AdamW(parameters, AdamWConfig(learning_rate=0.1, clip=1e9), lambda _: False)
    gradients = ms.mutable(tuple(Tensor(np.full(2, n + 1, np.float32)) for n in range(600)))
    norm = compiled(optimizer)(gradients, optimizer.scalars(0, 1))
    assert float(norm) == pytest.approx(np.sqrt(2 * (np.arange(1, 601.0) ** 2).sum()) / 4)
    for parameter in parameters:  # the first update of each is as long as the rate
        np.testing.assert_allclose(parameter.asnumpy(), 0.9, rtol=1e-5)


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=40), workers=st.integers(2, 9))
def test_moments_are_dealt_to_the_workers_in_order_and_evenly(sizes, workers):
    owners = deal(sizes, workers)
    assert list(owners) == sorted(owners) and owners[0] >= 0 and owners[-1] < workers
    loads = np.bincount(owners, sizes, workers)
    assert (loads < sum(sizes) / workers + max(sizes)).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_kernel_and_the_composed_update_agree_and_skip_non_finite_gradients(
    monkeypatch, broken
):
    rng = np.random.default_rng(0)
    steps = [[rng.standard_normal(s).astype(np.float32) for s in ((70, 333), (5,))] for _ in "1234"]
    steps[0][1][2] = steps[2][0][1, 1] = broken  # the first step, too: moments are 0 then
    ends = []
    for kernels in (True, False):
        use_kernels(monkeypatch, kernels)
        parameters = [Parameter(Tensor(g * 2), name=f"p{i}") for i, g in enumerate(steps[1])]
        optimizer = AdamW(parameters, AdamWConfig(weight_decay=0.3), lambda p: p.ndim > 1)
        update = compiled(optimizer)
        norms, kept = [], [p.asnumpy().copy() for p in parameters]
        for i, gradients in enumerate(steps):
            found = ms.mutable(tuple(Tensor(g) for g in gradients))
            norms.append(float(update(found, optimizer.scalars(i, 4))))
            if not optimizer.count(norms[-1]):
                for parameter, before in zip(parameters, kept, strict=True):
                    np.testing.assert_array_equal(parameter.asnumpy(), before)
            kept = [p.asnumpy().copy() for p in parameters]
        assert optimizer.skipped == 2
        ends.append((norms, kept, [m.asnumpy() for m in (*optimizer.first, *optimizer.second)]))
    np.testing.assert_allclose(*[np.array(norms)[[1, 3]] for norms, _, _ in ends], rtol=1e-6)
    for part in (1, 2):
        for kernel, composed in zip(ends[0][part], ends[1][part], strict=True):
            np.testing.assert_allclose(kernel, composed, rtol=2e-6, atol=1e-7)


def test_a_hundred_non_finite_gradients_end_the_training():
    """It changes no weights, so the steps left would be for nothing."""
    optimizer = AdamW([Parameter(Tensor(np.ones(2, np.float32)))], AdamWConfig(), lambda _: False)
    for _ in range(3):
        assert not any(optimizer.count(norm) for norm in 99 * [np.nan])
        assert optimizer.count(1.0)
    with pytest.raises(InputError, match="norm is inf for 100 steps in a row"):
        for _ in range(100):
            optimizer.count(np.inf)


@given(st.integers(1, 500))
def test_the_rate_rises_to_its_peak_and_falls_to_its_end(steps):
    config = AdamWConfig(learning_rate=1.0, warmup=0.1, final=0.05)
    rates = [config.rate(step, steps) for step in range(steps)]
    warm = round(0.1 * steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert max(rates) == 1 and rates[0] == (0.005 if warm else 1)
    assert rates[-1] == pytest.approx(0.05 if steps - warm > 1 else 1)
