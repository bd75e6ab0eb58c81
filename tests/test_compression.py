"""Every compressor keeps the same promises; a new one is one line in BIASED or UNBIASED."""

import copy
import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cga_lightning.compression import (
    COMPRESSORS,
    QSGD,
    Compressor,
    ErrorFeedback,
    Identity,
    RandomK,
    Rounded,
    ScaledSign,
    Ternary,
    TopK,
    from_name,
    levels,
    sign,
)
from cga_lightning.compression.base import RandomCompressor
from cga_lightning.compression.bits import join, pack, packed_size, split, unpack
from cga_lightning.core import FlatLayout

BIASED = [
    ScaledSign(),
    ScaledSign(bucket=3),
    ScaledSign(per_layer=False),
    TopK(0.1),
    TopK(1e-9),
    RandomK(0.2),
    RandomK(1.0),
    Rounded(bits=2),
    Rounded(),
    Rounded(bits=8),
    Ternary(),
]
UNBIASED = [Identity(), RandomK(0.2, scaled=True), QSGD(bits=2), QSGD(bits=4), QSGD(bits=8, bucket=7)]
ROUNDING = [Identity("bfloat16"), Identity(torch.float16)]
ALL = BIASED + UNBIASED + ROUNDING
DRAWING = [compressor for compressor in ALL if isinstance(compressor, RandomCompressor)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(3,), (5, 7), (1,), (64,), (2, 3, 4), ()]


class Padded:
    """Parameters of these shapes in one vector, each padded with zeros to a multiple of ``step``."""

    def __init__(self, shapes=SHAPES, dtype=torch.float32, step=16):
        self.shapes, self.dtype = [torch.Size(shape) for shape in shapes], dtype
        lengths = [-(-shape.numel() // step) * step for shape in self.shapes]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]
        self.numel = sum(lengths)

    def views(self, flat):
        spans = zip(self.starts, self.shapes, strict=True)
        return [flat[start : start + shape.numel()].view(shape) for start, shape in spans]

    def random(self, seed=0):
        x = torch.zeros(self.numel, dtype=self.dtype)
        generator = torch.Generator().manual_seed(seed)
        for scale, view in enumerate(self.views(x), start=1):
            view.copy_(scale * torch.randn(view.shape, generator=generator))
        return x


def roundtrip(compressor, x, layout):
    return compressor.decompress(compressor.compress(x, layout), layout)


def squared(x):
    return x.double().square().sum().item()


def assert_message(compressor, x, layout):
    before = x.clone()
    wire = compressor.compress(x, layout)
    assert wire.dtype == torch.uint8 and wire.shape == (compressor.wire_size(layout),) and wire.is_contiguous()
    decoded = compressor.decompress(wire.clone(), layout)
    assert decoded.dtype == layout.dtype and decoded.shape == (layout.numel,)
    assert torch.equal(x, before)
    padding = torch.ones(layout.numel)
    for view in layout.views(padding):
        view.zero_()
    assert not decoded[padding.bool()].any()
    return decoded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_message(compressor, dtype):
    layout = Padded(dtype=dtype)
    decoded = assert_message(compressor, layout.random(), layout)
    assert decoded.isfinite().all()
    assert not assert_message(compressor, torch.zeros(layout.numel, dtype=dtype), layout).any()


@pytest.mark.parametrize("shapes", [[(1,)], [(0,), (3,)], [(17,), (1,)], [(1000,)]], ids=str)
@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_ragged_lengths(compressor, shapes):
    for step in (1, 5, 32):
        layout = Padded(shapes, step=step)
        assert_message(compressor, layout.random(), layout)


@pytest.mark.parametrize("compressor", BIASED, ids=repr)
def test_biased_ones_contract(compressor):
    layout = Padded()
    x = layout.random()
    losses = [squared(roundtrip(compressor, x, layout) - x) for _ in range(200)]
    assert compressor.needs_feedback
    assert sum(losses) / len(losses) <= squared(x) * (1 - 1e-3 * (not isinstance(compressor, TopK)))
    assert max(losses) <= squared(x) * (1 + 1e-6)


@pytest.mark.parametrize("compressor", UNBIASED, ids=repr)
def test_unbiased_ones_are_right_on_average(compressor, draws=1000):
    layout = Padded()
    x = layout.random().double()
    samples = torch.stack([roundtrip(compressor, x.float(), layout) for _ in range(draws)]).double()
    error = (samples.mean(dim=0) - x).abs()
    assert not compressor.needs_feedback
    assert (error <= 5 * samples.std(dim=0) / draws**0.5 + 1e-3).all()


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_error_feedback_loses_nothing(compressor):
    layout = Padded(dtype=torch.float64)
    feedback, sent, total = ErrorFeedback(compressor.fork(0)), 0, 0
    for step in range(5):
        x = layout.random(step)
        memory = 0 if feedback.memory is None else feedback.memory.clone()
        decoded = roundtrip(feedback, x, layout)
        torch.testing.assert_close(x + memory, decoded + feedback.memory, rtol=0, atol=1e-12)
        sent, total = sent + decoded, total + x
    torch.testing.assert_close(sent + feedback.memory, total, rtol=0, atol=1e-12)
    assert_message(feedback, x, layout)


@pytest.mark.parametrize("compressor", BIASED, ids=repr)
def test_error_feedback_catches_up(compressor):
    layout = Padded([(3,), (20,)])
    x = layout.random()
    feedback = ErrorFeedback(compressor.fork(1))
    mean = sum(roundtrip(feedback, x, layout) for _ in range(500)) / 500
    torch.testing.assert_close(mean, x, rtol=0, atol=0.2)


def test_scaled_sign_by_hand():
    layout = Padded([(3,), (2,)], step=4)
    x = torch.tensor([1.0, -2.0, 0.0, 0.0, -4.0, 4.0, 0.0, 0.0])
    wire = ScaledSign().compress(x, layout)
    assert wire[:4].view(torch.bfloat16).tolist() == [1.0, 4.0]
    assert wire[4:].tolist() == [0b00010010]
    assert roundtrip(ScaledSign(), x, layout).tolist() == [1, -1, 1, 0, -4, 4, 0, 0]
    assert roundtrip(ScaledSign(bucket=2), x, layout).tolist() == [1.5, -1.5, 0, 0, -4, 4, 0, 0]
    whole = torch.tensor(11 / 5, dtype=torch.bfloat16).item()
    assert roundtrip(ScaledSign(per_layer=False), x, layout).tolist() == pytest.approx(
        [whole, -whole, whole, 0, -whole, whole, 0, 0]
    )


@pytest.mark.parametrize("bucket", [None, 256, 10])
def test_scaled_sign_loses_what_the_paper_says(bucket):
    layout = Padded()
    x = layout.random()
    parts = [part for view in layout.views(x) for part in view.reshape(-1).split(bucket or 10_000)]
    lost = sum(squared(part) - part.abs().sum().item() ** 2 / part.numel() for part in parts)
    assert squared(roundtrip(ScaledSign(bucket=bucket), x, layout) - x) == pytest.approx(lost, rel=1e-5)


def test_top_k_keeps_the_largest():
    layout = Padded([(6,)], step=1)
    x = torch.tensor([1.0, -5.0, 0.5, 3.0, -2.0, 0.0])
    assert roundtrip(TopK(0.5), x, layout).tolist() == [0, -5, 0, 3, -2, 0]


def test_random_k_keeps_k_distinct_elements():
    layout = Padded([(100,)], step=1)
    kept = [int((roundtrip(RandomK(0.2, seed=s), torch.ones(100), layout) != 0).sum()) for s in range(50)]
    assert max(kept) == 20 and min(kept) >= 19  # one position of the prime 101 lies outside
    assert torch.equal(roundtrip(RandomK(1.0, seed=3), torch.ones(101), Padded([(101,)], step=1)), torch.ones(101))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_variance_bound(bits):
    layout = Padded([(512,)])
    x, levels = layout.random(), 2 ** (bits - 1) - 1
    compressor = QSGD(bits=bits)
    variance = sum(squared(roundtrip(compressor, x, layout) - x) for _ in range(100)) / 100
    assert variance <= squared(x) * min(512 / levels**2, 512**0.5 / levels)


@pytest.mark.parametrize(
    ("compressor", "expected"),
    [
        (Identity(), 4_000_000),
        (Identity("bfloat16"), 2_000_000),
        (ScaledSign(), 125_000 + 2 * (2344 + 1563)),
        (ScaledSign(bucket=None), 125_000 + 2 * 2),
        (ScaledSign(per_layer=False), 125_000 + 2),
        (TopK(0.01), 10_000 * 8),
        (RandomK(0.01), 10_000 * 4 + 16),
        (QSGD(bits=4, bucket=500), 500_000 + 2000 * 4),
        (Rounded(bits=2), 250_000 + 4 * 3907),
        (Rounded(), 500_000 + 4 * 3907),
        (Rounded(bits=8), 1_000_000 + 4 * 3907),
        (Ternary(), 200_000 + 4 * 3907),
        (ErrorFeedback(ScaledSign(bucket=None)), 125_000 + 2 * 2),
    ],
    ids=repr,
)
def test_wire_size(compressor, expected):
    layout = Padded([(600, 1000), (400_000,)])
    assert compressor.wire_size(layout) == expected
    assert compressor.compress(layout.random(), layout).nbytes == expected


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_wrong_message_is_refused(compressor):
    layout = Padded()
    wire = compressor.compress(layout.random(), layout)
    for bad in (wire[:-1], torch.cat([wire, wire]), wire.int()):
        with pytest.raises(ValueError, match=rf"expects a message of {len(wire)} bytes, got torch\..* all agents"):
            compressor.decompress(bad, layout)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_overflow_is_seen_and_then_forgotten(compressor, value):
    layout = Padded([(4,), (8,)], step=1)
    x = layout.random()
    feedback = ErrorFeedback(compressor)
    roundtrip(feedback, x, layout)
    broken = x.clone()
    broken[2] = value
    if not isinstance(compressor, RandomK):  # which may leave it out
        assert not roundtrip(feedback, broken, layout).isfinite().all()
    assert feedback.memory.isfinite().all()
    assert roundtrip(feedback, x, layout).isfinite().all()


@pytest.mark.parametrize("compressor", [ErrorFeedback(c) for c in [*DRAWING, ScaledSign()]] + DRAWING, ids=repr)
def test_resume_is_bit_equal(compressor):
    layout = Padded()
    running = compressor.fork(5)
    running.compress(layout.random(), layout)
    file = io.BytesIO()
    torch.save(running.state_dict(), file)
    resumed = compressor.fork(5)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    clones = [resumed, pickle.loads(pickle.dumps(running)), copy.deepcopy(running)]
    for step in range(3):
        wire = running.compress(layout.random(step), layout)
        assert all(torch.equal(clone.compress(layout.random(step), layout), wire) for clone in clones)


@pytest.mark.parametrize("compressor", DRAWING, ids=repr)
def test_streams(compressor):
    layout = Padded([(500,)])
    x = layout.random()

    def messages(key):
        fork = compressor.fork(key)
        return torch.stack([fork.compress(x, layout) for _ in range(3)])

    before = torch.get_rng_state()
    assert torch.equal(messages(0), messages(0))
    streams = torch.cat([messages(key) for key in range(4)])
    assert len({tuple(wire.tolist()) for wire in streams}) == 12
    assert torch.equal(torch.get_rng_state(), before)


def test_error_feedback_forks_without_memory():
    layout = Padded()
    feedback = ErrorFeedback(ScaledSign())
    feedback.compress(layout.random(), layout)
    assert feedback.fork(1).memory is None and not feedback.needs_feedback


@given(data=st.data(), base=st.sampled_from([2, 3, 4, 16, 256]), count=st.integers(0, 40))
def test_packing_roundtrip(data, base, count):
    codes = data.draw(st.lists(st.integers(0, base - 1), min_size=count, max_size=count))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), base)
    digits = {2: 8, 3: 5, 4: 4, 16: 2, 256: 1}[base]
    assert packed.dtype == torch.uint8 and packed.shape == (packed_size(count, base),) == (-(-count // digits),)
    padded = codes + [0] * (-count % digits)
    groups = [padded[i : i + digits] for i in range(0, len(padded), digits)]
    assert packed.tolist() == [sum(c * base**i for i, c in enumerate(group)) for group in groups]
    assert unpack(packed, tuple(range(base)), count, torch.float32).tolist() == codes


def test_join_and_split():
    parts = [torch.arange(3, dtype=torch.uint8), torch.randn(2, dtype=torch.float64), torch.arange(4)]
    message = join(*parts)
    assert message.nbytes == 3 + 16 + 32
    for part, back in zip(parts, split(message, *[(len(p), p.dtype) for p in parts]), strict=True):
        assert torch.equal(part, back)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(0), "TopK needs 0 < ratio <= 1, got 0"),
        (lambda: RandomK(1.5), "RandomK needs 0 < ratio <= 1, got 1.5"),
        (lambda: QSGD(bits=3), r"bits in \(2, 4, 8\).*got QSGD\(bits=3"),
        (lambda: QSGD(bucket=0), "bucket >= 1"),
        (lambda: Rounded(bits=3), r"Rounded needs bits in \(2, 4, 8\), got 3"),
        (lambda: Rounded(bits="4"), r"Rounded needs bits in \(2, 4, 8\), got '4'"),
        (lambda: ScaledSign(bucket=0), "ScaledSign needs bucket >= 1 or None, got 0"),
        (lambda: Identity("int8"), "wire_dtype must be a floating dtype of torch, got 'int8'"),
        (lambda: Identity("double_trouble"), "got 'double_trouble'"),
        (
            lambda: from_name("zip"),
            "Unknown compressor 'zip'; known: identity, scaled_sign, top_k, random_k, qsgd, rounded, ternary",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_from_name(name):
    assert from_name(name) == COMPRESSORS[name]()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--compressor=ScaledSign", "--compressor.per_layer=false"], ScaledSign(per_layer=False)),
        (
            ["--compressor=cga_lightning.compression.Identity", "--compressor.wire_dtype=bfloat16"],
            ROUNDING[0],
        ),
    ],
)
def test_command_line_builds_compressors(arguments, expected):
    jsonargparse = pytest.importorskip("jsonargparse")
    command_line = getattr(jsonargparse, "auto_cli", None) or jsonargparse.CLI

    def run(compressor: Compressor | None = None):
        return compressor

    assert command_line(run, args=arguments) == expected


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_works_on_the_flat_layout_of_agents(compressor):
    layout = FlatLayout([torch.zeros(shape, dtype=torch.float64) for shape in SHAPES])
    x = layout.zeros()
    for view in layout.views(x):
        view.normal_(generator=torch.Generator().manual_seed(0))
    assert_message(compressor, x, layout)


SIGNS_COMPILED = hasattr(torch.ops.cga_lightning, "add_signs_")


@pytest.mark.skipif(not SIGNS_COMPILED, reason="the C++ library is not compiled")
@pytest.mark.parametrize("settings", [{}, {"bucket": 100}, {"bucket": None}, {"per_layer": False}], ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, torch.inf, torch.nan])
@pytest.mark.parametrize("step", [1, 8, 32])
def test_compiled_signs_are_those_of_torch(monkeypatch, settings, value, step):
    """With parameters that start within a byte, that span several chunks, that are empty; of whole numbers."""
    layout = Padded([(3,), (0,), (40_000,), (5, 7), (1,)], step=step)
    memory, x = layout.random(0).round(), layout.random(1).round()
    layout.views(x)[3][2, 2] = value
    compressor, fallback = ScaledSign(**settings), memory.clone()
    wire = compressor.compress_with_memory_(memory, x, layout)
    decoded = compressor.decompress(wire, layout)
    monkeypatch.setattr(sign, "_operators", SimpleNamespace())
    assert torch.equal(wire, compressor.compress_with_memory_(fallback, x, layout))
    assert torch.equal(memory, fallback)
    torch.testing.assert_close(decoded, compressor.decompress(wire, layout), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not SIGNS_COMPILED, reason="the C++ library is not compiled")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(9)}, r"x must be contiguous Float \[16\]"),
        ({"x": torch.zeros(16, dtype=torch.float64)}, "x must be contiguous Float"),
        ({"x": torch.zeros(32)[::2]}, "x must be contiguous"),
        ({"parts": torch.tensor([[0.0], [16.0]])}, "parts must be contiguous int64"),
        ({"parts": torch.tensor([[8], [9]])}, "part 0 starts at 8 and has 9 elements"),
        ({"parts": torch.tensor([[-1], [9]])}, "part 0 starts at -1"),
        ({"parts": torch.tensor([[0, 8], [9, 8]])}, "part 1 starts at 8"),
    ],
)
def test_compiled_signs_refuse_what_does_not_fit(change, message):
    arguments = {"memory": torch.zeros(16), "x": torch.zeros(16), "parts": torch.tensor([[0], [16]])} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.cga_lightning.add_signs_(**arguments)


def test_levels_by_hand():
    layout = Padded([(7,)], step=1)
    x = torch.tensor([7.0, -3.4, 0.5, 1.5, -0.6, 0.0, 2.5])
    assert roundtrip(Rounded(), x, layout).tolist() == [7, -3, 0, 2, -1, 0, 2]
    assert Rounded().compress(x, layout).tolist() == [0, 0, 0x80, 0x3F, 0x4E, 0x97, 0x76, 0x09]
    assert roundtrip(Ternary(), x, layout).tolist() == [7, 0, 0, 0, 0, 0, 0]
    assert roundtrip(Ternary(), -x - 3.5, layout).tolist() == [-10.5, 0, 0, 0, 0, 0, -10.5]
    codes = [0, 1, 1, 1, 1, 1, 0]
    packed = [sum(c * 3**i for i, c in enumerate(part)) for part in (codes[:5], codes[5:])]
    assert Ternary().compress(-x - 3.5, layout)[4:].tolist() == packed


LEVELS = [Rounded(bits=2), Rounded(), Rounded(bits=8), Ternary()]
FLOATS = arrays(np.float32, st.integers(1, 700), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


@given(x=FLOATS, compressor=st.sampled_from(LEVELS), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_every_element_becomes_the_nearest_level(x, compressor, dtype):
    """Of its 256, and all of these are lost together where one is not finite. Ends of the range of float32 included."""
    layout = Padded([(len(x),)], dtype, step=1)
    x, count = torch.from_numpy(x).to(dtype), {2: 1, 4: 7, 8: 127}[getattr(compressor, "bits", 2)]
    decoded = roundtrip(compressor, x, layout)
    for part, levels_of in zip(x.split(256), decoded.split(256), strict=True):
        scale = part.double().abs().max().item() / count
        if not torch.isfinite(part).all():
            assert levels_of.isnan().all()
        elif scale > 1e-38:
            assert (levels_of.double() - part.double()).abs().max() <= scale * (0.5 + 1e-6 * count)
            assert levels_of.abs().max().item() == pytest.approx(part.abs().max().item(), rel=1e-6)
        else:  # with few digits, if any
            assert (levels_of.double() - part.double()).abs().max() <= max(scale, 2**-149) * count


LEVELS_COMPILED = hasattr(torch.ops.cga_lightning, "encode_levels")


@pytest.mark.skipif(not LEVELS_COMPILED, reason="the C++ library is not compiled")
@given(memory=FLOATS, seed=st.integers(0, 2**31), compressor=st.sampled_from(LEVELS), long=st.booleans())
def test_compiled_levels_are_those_of_torch(memory, seed, compressor, long):
    memory = torch.from_numpy(memory).repeat(20 if long else 1)
    layout = Padded([(len(memory),)], step=1)
    x = torch.randn(len(memory), generator=torch.Generator().manual_seed(seed))
    fallback = memory.clone()
    plain = compressor.compress(x, layout)
    wire = compressor.compress_with_memory_(memory, x, layout)
    decoded = compressor.decompress(wire, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "_operators", SimpleNamespace())
        assert torch.equal(plain, compressor.compress(x, layout))
        assert torch.equal(wire, compressor.compress_with_memory_(fallback, x, layout))
        assert torch.equal(memory, fallback)
        torch.testing.assert_close(decoded, compressor.decompress(wire, layout), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not LEVELS_COMPILED, reason="the C++ library is not compiled")
@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("encode_levels", (torch.zeros(9, dtype=torch.float64), 16), r"x must be contiguous Float \[9\]"),
        ("encode_levels", (torch.zeros(32)[::2], 16), "x must be contiguous"),
        ("encode_levels", (torch.zeros(9), 5), "base must be 3, 4, 16 or 256, found 5"),
        ("encode_levels_", (torch.zeros(9), torch.zeros(8), 3), r"x must be contiguous Float \[9\]"),
        ("decode_levels", (torch.zeros(2), torch.zeros(150, dtype=torch.uint8), 301, 16), "packed .* Byte .*151"),
        ("decode_levels", (torch.zeros(1), torch.zeros(150, dtype=torch.uint8), 300, 16), "scales .* Float .*2"),
        ("decode_levels", (torch.zeros(0), torch.zeros(0, dtype=torch.uint8), -1, 16), "at least 0, found -1"),
    ],
)
def test_compiled_levels_refuse_what_does_not_fit(operator, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.cga_lightning, operator)(*arguments)
