"""The C kernels against plain float64 mathematics, values and gradients, at sizes that fill no vector or block."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
import torch

from simplerl.cpu import library, ops
from simplerl.cpu.layer import LayerShape, LayerWeights, decoder_layer
from simplerl.cpu.library import unavailable_reason
from simplerl.engines._sampler import SamplingTensors
from simplerl.engines._sampler import draw_tokens as draw_by_torch

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no kernels here: {unavailable_reason()}")


def by_hand(qkv, cos, sin, segments, heads, kv_heads, scale):
    """Full score matrices, one segment and one head at a time."""
    dim = cos.shape[1]
    turned = torch.cat([cos.new_tensor([-1.0]).expand(dim // 2), cos.new_ones(dim // 2)])
    out = qkv.new_zeros(len(qkv), heads, dim)
    rows = qkv.view(len(qkv), -1, dim)
    places = torch.arange(len(qkv)) % len(cos)
    rotated = rows * cos[places][:, None] + rows.roll(dim // 2, -1) * turned * sin[places][:, None]
    for start, length, prefix, before in segments.tolist():
        tokens = torch.cat([torch.arange(prefix, prefix + before), torch.arange(start, start + length)])
        hidden = torch.ones(length, before + length).tril(before) == 0
        for head in range(heads):
            kv = heads + head // (heads // kv_heads)
            scores = (scale * rotated[start : start + length, head] @ rotated[tokens, kv].T).masked_fill(
                hidden, -torch.inf
            )
            out[start : start + length, head] = scores.softmax(-1) @ rows[tokens, kv + kv_heads]
    return out.flatten(1)


def runs(*lengths):
    """Sequences one after the other."""
    return ops.segments_without_prefix(torch.tensor([0, *lengths]).cumsum(0))


SHARED = torch.tensor([[0, 37, 0, 0], [37, 20, 0, 0], [57, 5, 0, 37], [62, 300, 37, 20], [362, 60, 0, 37]])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "segments"),
    [
        (4, 2, 32, runs(1, 17, 160, 300)),
        (5, 5, 32, runs(49, 7)),
        (6, 2, 24, runs(600, 3)),
        (4, 1, 8, runs(16, 48, 256)),
        (2, 1, 64, runs(50)),
        (4, 2, 16, SHARED),
        (3, 3, 8, SHARED),
    ],
)
def test_attention_and_its_gradient(heads, kv_heads, dim, segments):
    torch.manual_seed(0)
    size = int(segments[:, 1].sum())
    qkv = torch.randn(size, (heads + 2 * kv_heads) * dim, requires_grad=True)
    angles, grad, scale = 6 * torch.rand(size, dim // 2).repeat(1, 2), torch.randn(size, heads * dim), dim**-0.5
    cos, sin = angles.cos(), angles.sin()
    found = ops.rotary_attention(qkv, cos, sin, segments, heads=heads, kv_heads=kv_heads, scale=scale)
    found.backward(grad)
    exact = qkv.detach().double().requires_grad_()
    expected = by_hand(exact, cos.double(), sin.double(), segments, heads, kv_heads, scale)
    expected.backward(grad.double())
    assert torch.allclose(found.double(), expected, atol=2e-6, rtol=2e-6)
    assert torch.allclose(qkv.grad.double(), exact.grad, atol=1e-5, rtol=1e-5)


def test_positions_repeat_with_the_period_of_the_tables():
    """Padded rows share one table of angles."""
    torch.manual_seed(0)
    qkv, cos, sin = torch.randn(3 * 20, 4 * 8), torch.randn(20, 8), torch.randn(20, 8)
    segments, sizes = runs(20, 20, 20), {"heads": 2, "kv_heads": 1, "scale": 0.5}
    once = ops.rotary_attention(qkv, cos, sin, segments, **sizes)
    assert torch.equal(once, ops.rotary_attention(qkv, cos.repeat(3, 1), sin.repeat(3, 1), segments, **sizes))


def test_a_neighbour_changes_not_one_bit():
    torch.manual_seed(0)
    qkv, cos, sin = torch.randn(90, 4 * 16), torch.randn(90, 16), torch.randn(90, 16)
    sizes = {"heads": 2, "kv_heads": 1, "scale": 0.5}
    before = ops.rotary_attention(qkv, cos, sin, runs(50, 40), **sizes)
    qkv[:50] = torch.randn(50, 64) * 100
    assert torch.equal(before[50:], ops.rotary_attention(qkv, cos, sin, runs(50, 40), **sizes)[50:])


@pytest.mark.parametrize(("rows", "size"), [(1, 3), (70, 160), (129, 33)])
def test_norm_and_its_gradient(rows, size):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, size, requires_grad=True), torch.randn(size, requires_grad=True)
    along, through = torch.randn(rows, size), torch.randn(rows, size)
    kept, found = ops.rms_norm(x, weight, 1e-6)
    ((kept * along).sum() + (found * through).sum()).backward()
    x64, w64 = (each.detach().double().requires_grad_() for each in (x, weight))
    expected = x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w64
    ((x64 * along).sum() + (expected * through).sum()).backward()
    assert torch.equal(kept, x)
    assert torch.allclose(found.double(), expected, atol=2e-6)
    assert torch.allclose(x.grad.double(), x64.grad, atol=2e-5, rtol=1e-5)
    assert torch.allclose(weight.grad.double(), w64.grad, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 8, 37])
def test_gated_activation_and_its_gradient(size):
    torch.manual_seed(0)
    x, grad = (4 * torch.randn(9, 2 * size)).requires_grad_(), torch.randn(9, size)
    found = ops.swiglu(x)
    found.backward(grad)
    exact = x.detach().double().requires_grad_()
    gate, up = exact.chunk(2, dim=-1)
    expected = gate * torch.sigmoid(gate) * up
    expected.backward(grad.double())
    assert torch.allclose(found.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.allclose(x.grad.double(), exact.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("value", [100.0, -100.0, 1e30, -1e30])
def test_gated_activation_far_out_is_finite_and_right(value):
    found = ops.swiglu(torch.tensor([[value, 2.0]]))
    assert found.item() == pytest.approx(2 * value if value > 0 else 0.0, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "attention"])
def test_what_is_not_a_number_stays_visible(name):
    x = torch.ones(4, 16)
    x[2, 3] = torch.nan
    if name == "attention":
        angles = torch.ones(4, 4), torch.zeros(4, 4)
        y = ops.rotary_attention(x, *angles, runs(4), heads=2, kv_heads=1, scale=1.0)
    else:
        y = ops.swiglu(x) if name == "swiglu" else ops.rms_norm(x, torch.ones(16), 1e-6)[1]
    assert y[2].isnan().any() and not y[1].isnan().any()


# --- a whole layer ----------------------------------------------------------------------------------------------------


class Rounded(torch.autograd.Function):
    """A linear layer whose factors are rounded to bfloat16, forward and backward."""

    @staticmethod
    def forward(ctx, x, weight):
        x, weight = (each.float().bfloat16().to(x.dtype) for each in (x, weight))
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.float().bfloat16().to(x.dtype)
        return grad @ weight, grad.T @ x


def layer_by_hand(x, cos, sin, segments, shape, weights):
    first, qkv, bias, out, second, gate, up, down = weights
    linear = Rounded.apply if shape.bf16 else torch.nn.functional.linear

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + shape.eps).sqrt() * weight

    rows = linear(norm(x, first), qkv) + (0 if bias is None else bias)
    x = x + linear(by_hand(rows, cos, sin, segments, shape.heads, shape.kv_heads, shape.scale), out)
    normed = norm(x, second)
    return x + linear(torch.nn.functional.silu(linear(normed, gate)) * linear(normed, up), down)


def layer_case(segments, heads, kv_heads, dim, inner, bias, bf16=False):
    """Weights, some with a gradient of their own already, and everything else that a layer takes."""
    torch.manual_seed(0)
    size, d, width = int(segments[:, 1].sum()), heads * dim, (heads + 2 * kv_heads) * dim
    shapes = [(d,), (width, d), (width,), (d, d), (d,), (inner, d), (inner, d), (d, inner)]
    weights = [torch.randn(shape) / shape[-1] ** 0.5 for shape in shapes]
    weights[0], weights[4] = weights[0] + 1, weights[4] + 1
    angles = 6 * torch.rand(size, dim // 2).repeat(1, 2)
    shape = LayerShape(heads, kv_heads, dim**-0.5, 1e-6, bf16)
    return (
        torch.randn(size, d),
        angles.cos(),
        angles.sin(),
        segments,
        shape,
        [*weights[:2], weights[2] if bias else None, *weights[3:]],
    )


SIZES = pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "inner", "segments", "bias"),
    [(6, 2, 8, 80, SHARED, True), (2, 1, 16, 16, runs(1), False), (4, 2, 32, 400, runs(96, 95, 2), True)],
)
"""Sizes that end within a block of rows and within a chunk of the gate."""


def run_and_expected(x, cos, sin, segments, shape, weights):
    """The kernel's output and gradients, and those worked by hand in float64; checks that gradients change nothing."""
    given = [x, *(weight for weight in weights if weight is not None)]
    exact = [each.double().requires_grad_() for each in given]
    doubles = iter(exact[1:])
    expected = layer_by_hand(
        exact[0], cos.double(), sin.double(), segments, shape, [w if w is None else next(doubles) for w in weights]
    )
    grad = torch.randn(x.shape)
    expected.backward(grad.double())
    with torch.no_grad():
        ungraded = decoder_layer(x, cos, sin, segments, shape, LayerWeights(*weights))
    for each in given:
        each.requires_grad_()
    found = decoder_layer(x, cos, sin, segments, shape, LayerWeights(*weights))
    found.backward(grad)
    assert torch.equal(found, ungraded)
    return (found, [each.grad for each in given]), (expected, [each.grad for each in exact])


@SIZES
def test_a_whole_layer_and_its_gradient(heads, kv_heads, dim, inner, segments, bias):
    (found, grads), (expected, exact) = run_and_expected(*layer_case(segments, heads, kv_heads, dim, inner, bias))
    assert torch.allclose(found.double(), expected, atol=1e-5, rtol=1e-5)
    for grad, other in zip(grads, exact, strict=True):
        assert (grad - other).abs().max() <= 5e-6 * other.abs().max()


@SIZES
def test_a_layer_whose_factors_are_rounded(heads, kv_heads, dim, inner, segments, bias):
    """As with exactly those factors rounded to bfloat16, but where a rounding of float32 before that decides to which
    side; one row has no such factor. Without the rounding they would differ by 2e-3 to 6e-3."""
    case = layer_case(segments, heads, kv_heads, dim, inner, bias, bf16=True)
    (found, grads), (expected, exact) = run_and_expected(*case)
    bound = 1e-6 if len(found) == 1 else 1.2e-3
    for one, other in zip([found, *grads], [expected, *exact], strict=True):
        assert (one - other).norm() <= bound * other.norm()


def test_a_row_of_a_layer_is_the_same_whatever_stands_beside_it():
    x, cos, sin, segments, shape, weights = layer_case(runs(100, 90), 4, 2, 16, 80, True)
    whole = decoder_layer(x, cos, sin, segments, shape, LayerWeights(*weights))
    x[:100] = 100 * torch.randn(100, 64)
    assert torch.equal(whole[100:], decoder_layer(x, cos, sin, segments, shape, LayerWeights(*weights))[100:])


# --- drawing ----------------------------------------------------------------------------------------------------------


def plain_settings(temperatures):
    rows = len(temperatures)
    return SamplingTensors(temperatures, torch.zeros(rows), torch.ones(rows), torch.zeros(rows, dtype=torch.bool))


@pytest.mark.parametrize("vocabulary", [1, 15, 96, 1000])
def test_the_same_random_numbers_draw_the_same_tokens_but_for_ties_of_rounding(vocabulary):
    """Counted: a token may differ only where its random number lies within rounding of a boundary."""
    torch.manual_seed(0)
    rows = 4000
    logits, uniforms = 3 * torch.randn(rows, vocabulary), torch.rand(rows)
    temperatures = torch.rand(rows) + 0.4
    tokens, logprobs = ops.draw_tokens(logits, temperatures, uniforms)
    # `filtered` sends torch's own way through sort and cumulative sum.
    others, other_logprobs = draw_by_torch(logits, uniforms, plain_settings(temperatures), filtered=True)
    differ = tokens != others
    assert int(differ.sum()) <= 2
    assert torch.allclose(logprobs[~differ], other_logprobs[~differ], atol=2e-6)
    boundaries = torch.softmax(logits.double() / temperatures[:, None].double(), -1).cumsum(-1)
    for row in differ.nonzero().flatten().tolist():
        assert (boundaries[row] - uniforms[row].double()).abs().min() < 1e-6


def test_draws_follow_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.99999])
    tokens, logprobs = ops.draw_tokens(logits, torch.ones(6), uniforms)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.125, 0.125], abs=1e-6)


def test_what_has_no_probability_is_never_drawn():
    """An -inf at either end, and a random number that rounding puts on the very last boundary."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).repeat(3, 1)
    tokens, logprobs = ops.draw_tokens(logits, torch.ones(3), torch.tensor([0.0, 0.5, 1.0]))
    assert tokens.tolist() == [1, 2, 2]
    assert logprobs.exp().tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_show_in_the_log_prob(bad):
    _, logprobs = ops.draw_tokens(
        torch.tensor([[0.0, bad, 1.0], [0.0, 0.0, 0.0]]), torch.ones(2), torch.full((2,), 0.4)
    )
    assert logprobs.isfinite().tolist() == [False, True]


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_trace_names_kernels_while_it_is_asked_to():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        ops.swiglu(torch.ones(1, 32))
        with ops.trace_kernels():
            ops.rms_norm_no_grad(torch.ones(1, 16), torch.ones(16), 1e-6)
        ops.swiglu(torch.ones(1, 32))
    names = [event.key for event in trace.key_averages() if event.key.startswith("simplerl::")]
    assert names == ["simplerl::norm_forward"]


# --- the library ------------------------------------------------------------------------------------------------------


def fake_compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def load_anew(monkeypatch, tmp_path, **environment):
    """The library, or the reason why it is unavailable, as a new process would find it with an empty user's cache."""
    for name, value in {"XDG_CACHE_HOME": tmp_path / "cache", **environment}.items():
        monkeypatch.setenv(name, str(value))
    return library._load.__wrapped__()


def test_without_a_compiler_the_reason_says_so(monkeypatch, tmp_path):
    reason = load_anew(monkeypatch, tmp_path, PATH=tmp_path, CC="")
    assert reason == "no C compiler (cc, gcc or clang) is installed"


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    script = "case $1 in --version) echo 1;; *) echo no such flag >&2; exit 1;; esac"
    compiler = fake_compiler(tmp_path / "cc", script)
    reason = load_anew(monkeypatch, tmp_path, CC=compiler)
    assert reason == f"{compiler} cannot compile the kernels: no such flag"


def test_the_library_is_compiled_once(monkeypatch, tmp_path):
    log = tmp_path / "log"
    real = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    compiler = fake_compiler(tmp_path / "cc", f'echo "$@" >> {log}\nexec {real} "$@"')
    for _ in range(2):
        assert isinstance(load_anew(monkeypatch, tmp_path, CC=compiler), ctypes.CDLL)
    assert sum("-shared" in line for line in log.read_text().splitlines()) == 1
    folder = tmp_path / "cache" / "simplerl"
    assert [path.suffix for path in folder.iterdir()] == [".so"]
    assert folder.stat().st_mode & 0o077 == 0


def test_importing_the_package_compiles_nothing(tmp_path):
    called = tmp_path / "called"
    compiler = fake_compiler(tmp_path / "cc", f"touch {called}; exit 1")
    seen = f"print(os.path.exists({str(called)!r}))"
    code = f"import os, simplerl.cpu; {seen}; simplerl.cpu.unavailable_reason(); {seen}"
    environment = {**os.environ, "CC": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "False\nTrue\n", done.stderr
