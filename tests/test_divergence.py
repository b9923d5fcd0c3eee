import numpy as np
import pytest
import torch

from tinymusician_core.distill import divergence

ALL = {
    "forward": divergence.forward_kl,
    "reverse": divergence.reverse_kl,
    "skew forward": divergence.skew_forward_kl,
    "skew reverse": divergence.skew_reverse_kl,
    "jensen shannon": divergence.jensen_shannon,
    "alpha beta": divergence.alpha_beta,
}


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return powers / powers.sum(-1, keepdims=True)


def naive(name: str, teacher: np.ndarray, student: np.ndarray, temperature: float, alpha: float) -> np.ndarray:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    if name == "alpha beta":
        return naive_alpha_beta(p, q, 0.2, 0.7) * temperature**2
    if name == "jensen shannon":
        m = (p + q) / 2
        return (p * np.log(p / m) + q * np.log(q / m)).sum(-1) / 2 * temperature**2
    first, second = {
        "forward": (p, q),
        "reverse": (q, p),
        "skew forward": (p, alpha * p + (1 - alpha) * q),
        "skew reverse": (q, (1 - alpha) * p + alpha * q),
    }[name]
    total = np.zeros(first.shape[:-1])
    for token in range(first.shape[-1]):
        total += first[..., token] * (np.log(first[..., token]) - np.log(second[..., token]))
    return total * temperature**2


def naive_alpha_beta(p: np.ndarray, q: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The definition as ABKD prints it, token by token."""
    total, both = np.zeros(p.shape[:-1]), alpha + beta
    for token in range(p.shape[-1]):
        a, b = p[..., token], q[..., token]
        total += a**alpha * b**beta - alpha / both * a**both - beta / both * b**both
    return -total / (alpha * beta)


def logits(seed: int, scale: float = 3.0, dtype=torch.float64) -> torch.Tensor:
    return (torch.randn(2, 4, 5, 33, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_equals_the_naive_reference(name, temperature):
    teacher, student = logits(1), logits(2)
    value = ALL[name](teacher, student, temperature)
    assert value.shape == (2, 4, 5)
    expected = naive(name, teacher.numpy(), student.numpy(), temperature, 0.1)
    assert np.abs(value.numpy() - expected).max() < 1e-6
    single = ALL[name](teacher.float(), student.float(), temperature).double().numpy()
    assert (np.abs(single - expected) / (1.0 + expected)).max() < 1e-6


@pytest.mark.parametrize("name", ["skew forward", "skew reverse"])
def test_other_skews_equal_the_naive_reference(name):
    teacher, student = logits(3), logits(4)
    for alpha in (0.01, 0.5, 0.9):
        expected = naive(name, teacher.numpy(), student.numpy(), 1.0, alpha)
        assert np.abs(ALL[name](teacher, student, alpha=alpha).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (0.5, 0.5), (1.0, 0.3), (2.0, 1.5)])
def test_other_alphas_and_betas_equal_the_naive_reference(alpha, beta):
    teacher, student = logits(3), logits(4)
    expected = naive_alpha_beta(softmax(teacher.numpy(), 1.0), softmax(student.numpy(), 1.0), alpha, beta)
    found = divergence.alpha_beta(teacher, student, alpha=alpha, beta=beta)
    assert np.abs(found.numpy() - expected).max() < 1e-9


def test_alpha_beta_goes_to_the_forward_and_the_reverse_kl():
    teacher, student = logits(3), logits(4)
    found = divergence.alpha_beta(teacher, student, alpha=1.0, beta=1e-5)
    torch.testing.assert_close(found, divergence.forward_kl(teacher, student), rtol=1e-3, atol=1e-3)
    found = divergence.alpha_beta(teacher, student, alpha=1e-5, beta=1.0)
    torch.testing.assert_close(found, divergence.reverse_kl(teacher, student), rtol=1e-3, atol=1e-3)


def test_jensen_shannon_is_symmetric_and_bounded():
    teacher, student = logits(3), logits(4)
    found = divergence.jensen_shannon(teacher, student)
    torch.testing.assert_close(found, divergence.jensen_shannon(student, teacher))
    assert found.max() <= np.log(2.0)
    far = divergence.jensen_shannon(torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]]))
    assert float(far) == pytest.approx(np.log(2.0))
    uneven = divergence.jensen_shannon(teacher, student, share=0.2)
    p, q = softmax(teacher.numpy(), 1.0), softmax(student.numpy(), 1.0)
    m = 0.2 * p + 0.8 * q
    expected = (0.2 * p * np.log(p / m) + 0.8 * q * np.log(q / m)).sum(-1)
    assert np.abs(uneven.numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_at_identity_and_positive_elsewhere(name, dtype):
    teacher = logits(5, dtype=dtype)
    shifted = teacher + 1.0 if dtype != torch.bfloat16 else teacher  # a constant moves no probability
    assert ALL[name](teacher, shifted, 2.0).abs().max() < 1e-6
    assert (ALL[name](teacher, logits(6, dtype=dtype)) > 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [1e3, 1e5, 1e30, 1e38])
def test_extreme_logits_give_finite_values_and_gradients(name, size):
    teacher = torch.zeros(3, 8)
    teacher[:, 0], teacher[:, 1] = size, -size
    student = torch.zeros(3, 8)
    student[:, 1], student[:, 0] = size, -size
    student.requires_grad_()
    value = ALL[name](teacher, student, 2.0)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()
    assert (value > 0).all()
    if "skew" in name:  # bounded: -log(0.1), times T squared
        assert value.max() <= 4.0 * np.log(10.0) + 1e-5


@pytest.mark.parametrize("name", ALL)
def test_tokens_that_may_never_be_drawn_are_finite(name):
    teacher, student = logits(7, dtype=torch.float32), logits(8, dtype=torch.float32)
    teacher[..., 3] = student[..., 3] = student[..., 4] = -float("inf")
    student.requires_grad_()
    value = ALL[name](teacher, student)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_the_reference(name):
    teacher, student = logits(9)[0, 0], logits(10)[0, 0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ALL[name](teacher, x, 1.5), (student,))


def test_temperature_squared_keeps_the_gradient_in_size():
    teacher = logits(11, scale=0.05)
    sizes = []
    for temperature in (1.0, 4.0):
        student = logits(12, scale=0.05).requires_grad_()
        divergence.forward_kl(teacher, student, temperature).sum().backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_bad_arguments_are_named():
    teacher, student = logits(1), logits(2)
    with pytest.raises(ValueError, match="temperature is 0"):
        divergence.forward_kl(teacher, student, 0)
    with pytest.raises(ValueError, match=r"teacher logits are \[2, 4, 5, 33\]"):
        divergence.reverse_kl(teacher, student[0])
    with pytest.raises(ValueError, match="alpha is 0.0 and beta 1.0; finite numbers above 0"):
        divergence.alpha_beta(teacher, student, alpha=0.0, beta=1.0)
    with pytest.raises(ValueError, match="share is 1"):
        divergence.skew_forward_kl(teacher, student, alpha=1)
