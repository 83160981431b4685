"""Mistakes that people make, planted one by one: the suite names the cell that shows each."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rotary
from rotary import conformance, relative, rotation, tables
from rotary.backends import kernels, owner_of
from rotary.conformance import runner
from rotary.linear import chunks, halves

EAGER = {"backends": ["numpy"], "dtypes": ["float32"], "ways": ["eager"], "elements": 2000}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    yield
    tables.cache.clear()
    runner.reference_tables.cache_clear()
    runner.prepared.cache_clear()


def failing_cells(**arguments: Any) -> set[str]:
    tables.cache.clear()
    runner.prepared.cache_clear()
    return {cell.name for cell in conformance.run(**arguments).failures}


def test_without_a_fault_every_cell_holds() -> None:
    assert failing_cells(cases=["tables/*", "rotation/*", "axes/*", "relative/*"], **EAGER) == set()


def test_tables_from_float32_angles_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def float32_tables(frequencies: Any, positions: Any, dtype: str, *rest: int) -> Any:
        omega = (
            np.float32(frequencies.base)
            ** (-np.arange(0, frequencies.rotary_dim, 2, dtype=np.float32) / frequencies.rotary_dim)
        ).astype(np.float32)
        angles = positions.astype(np.float32)[..., None] * omega
        return np.stack([np.cos(angles), np.sin(angles)]).astype(dtype)

    monkeypatch.setattr(tables, "evaluate", float32_tables)
    failing = failing_cells(cases=["tables/*", "rotation/*"], **EAGER)
    assert "numpy / tables/whole / float32 / eager" in failing
    assert "numpy / rotation/far / float32 / eager" in failing


def without_kernels(monkeypatch: pytest.MonkeyPatch, array: Any) -> None:
    """Leave such arrays to the array code."""
    for operation in ("rotate", "linear_chunks"):
        monkeypatch.setattr(owner_of(array), operation, lambda *_: None)


def test_a_contracted_fma_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(x: Any, cos: Any, sin: Any, **options: Any) -> Any:
        half = cos.shape[-1]
        x1, x2 = (part.astype(np.float64) for part in (x[..., :half], x[..., half:]))
        # float64 holds the one product that an FMA does not round.
        y1 = x1 * cos - (x2 * sin).astype(np.float32)
        y2 = x1 * sin + (x2 * cos).astype(np.float32)
        return np.concatenate([y1, y2], axis=-1).astype(x.dtype)

    monkeypatch.setattr(rotation, "rotate_aligned", fused)
    without_kernels(monkeypatch, np.zeros(1))
    failing = failing_cells(cases=["rotation/half", "rotation/cancelling"], **EAGER)
    assert failing == {
        "numpy / rotation/half / float32 / eager",
        "numpy / rotation/cancelling / float32 / eager",
    }


def test_a_kernel_whose_compiler_contracts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    module = kernels.kernel("rotation")
    assert module is not None

    def contracted(signature: Any, function: Any) -> Any:
        return numba.njit(signature, nogil=True, fastmath={"contract"})(function)

    monkeypatch.setattr(module, "compiled", contracted)
    module._kernel.cache_clear()
    try:
        failing = failing_cells(cases=["rotation/half", "rotation/cancelling"], **EAGER)
    finally:
        module._kernel.cache_clear()
    assert failing == {
        "numpy / rotation/half / float32 / eager",
        "numpy / rotation/cancelling / float32 / eager",
    }


def test_xla_contracting_for_want_of_the_guard_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    program = pytest.importorskip("rotary.backends._jax_rotation")
    monkeypatch.setattr(program, "rounded_product", lambda x, factor: x * factor)
    jax.clear_caches()
    failing = failing_cells(
        backends=["jax"],
        cases=["rotation/half"],
        dtypes=["float32"],
        ways=["eager", "compiled", "compiled gradient"],
        elements=2000,
    )
    # Eager calls are one compiled program, too.
    assert failing == {
        "jax / rotation/half / float32 / eager",
        "jax / rotation/half / float32 / compiled",
        "jax / rotation/half / float32 / compiled gradient",
    }


def test_the_wrong_layout_is_caught() -> None:
    def swapped(**embedding: Any) -> Any:
        layout = "half" if embedding.pop("layout", "half") == "interleaved" else "interleaved"
        return rotary.RotaryEmbedding(**embedding, layout=layout)

    failing = failing_cells(make=swapped, cases=["rotation/*f*"], **EAGER)
    assert "numpy / rotation/half / float32 / eager" in failing
    assert "numpy / rotation/offset / float32 / eager" in failing


def test_a_half_write_after_an_interleaved_read_is_caught() -> None:
    def half_write(rope: Any, x: Any, **arguments: Any) -> Any:
        y = rope(x, **arguments)
        return np.concatenate([y[..., 0::2], y[..., 1::2]], axis=-1)

    failing = failing_cells(make=altered(half_write), cases=["rotation/interleaved"], **EAGER)
    assert failing == {"numpy / rotation/interleaved / float32 / eager"}


def test_an_offset_off_by_one_is_caught() -> None:
    def off_by_one(rope: Any, x: Any, offset: Any = None, **arguments: Any) -> Any:
        late = None if offset is None else np.asarray(offset) + 1
        return rope(x, offset=late, **arguments)

    failing = failing_cells(make=altered(off_by_one), cases=["rotation/*"], **EAGER)
    assert "numpy / rotation/offset / float32 / eager" in failing
    assert "numpy / rotation/offset-per-row / float32 / eager" in failing
    assert "numpy / rotation/half / float32 / eager" not in failing


def test_bfloat16_positions_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tables.evaluate

    def through_bfloat16(frequencies: Any, positions: Any, *rest: Any) -> Any:
        return right(frequencies, positions.astype(ml_dtypes.bfloat16).astype(float), *rest)

    monkeypatch.setattr(tables, "evaluate", through_bfloat16)
    failing = failing_cells(cases=["rotation/far", "rotation/half"], **EAGER)
    # Up to 256 they are exact: only a long position shows it.
    assert failing == {"numpy / rotation/far / float32 / eager"}


def test_a_cache_key_without_base_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tables,
        "cache_key",
        lambda frequencies, *rest: (frequencies.rotary_dim, *rest),
    )
    failing = failing_cells(cases=["rotation/half", "rotation/other-base"], **EAGER)
    assert failing == {"numpy / rotation/other-base / float32 / eager"}


def test_a_compiler_that_keeps_excess_precision_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    backend: Any = owner_of(torch.zeros(1))
    monkeypatch.setattr(backend, "narrow", lambda x, dtype: x.to(dtype))
    without_kernels(monkeypatch, torch.zeros(1))
    failing = failing_cells(
        backends=["torch"],
        cases=["rotation/half"],
        dtypes=["bfloat16"],
        ways=["eager", "compiled chain"],
        elements=20_000,
    )
    assert failing == {"torch / rotation/half / bfloat16 / compiled chain"}


def test_height_taken_for_width_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rotary.axes.Axial.axis_of_pair.fget
    monkeypatch.setattr(
        rotary.axes.Axial, "axis_of_pair", property(lambda axes: tuple(reversed(right(axes))))
    )
    failing = failing_cells(cases=["axes/axial", "axes/axial-video", "axes/sections"], **EAGER)
    assert failing == {
        "numpy / axes/axial / float32 / eager",
        "numpy / axes/axial-video / float32 / eager",
    }


def test_a_bias_in_the_other_direction_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = relative._distances
    monkeypatch.setattr(relative, "_distances", lambda *given: -right(*given))
    failing = failing_cells(cases=["relative/*"], **EAGER)
    assert failing == {
        "numpy / relative/t5-both / float32 / eager",
        "numpy / relative/t5-causal / float32 / eager",
        "numpy / relative/alibi / float32 / eager",
    }


def test_a_normaliser_over_rotated_keys_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunks._rotated

    def rotated_alone(*given: Any) -> Any:
        rotated, _ = right(*given)
        return chunks.Features(rotated, rotated)

    monkeypatch.setattr(chunks, "_rotated", rotated_alone)
    without_kernels(monkeypatch, np.zeros(1))
    failing = failing_cells(cases=["linear/fast-*", "linear/exact-*"], **EAGER)
    assert "numpy / linear/fast-rope / float32 / eager" in failing
    assert "numpy / linear/exact-xpos / float32 / eager" in failing
    assert "numpy / linear/exact-plain / float32 / eager" not in failing


def test_masked_values_times_zero_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunks.keys

    def multiplied(form: Any, chunk: Any, maximum: Any) -> Any:
        v = chunk.v if chunk.mask is None else chunk.v * chunk.mask[:, :, 0]
        return right(form, chunk, maximum)._replace(v=v)

    monkeypatch.setattr(chunks, "keys", multiplied)
    without_kernels(monkeypatch, np.zeros(1))
    failing = failing_cells(cases=["linear/padded", "linear/state"], **EAGER)
    assert failing == {"numpy / linear/padded / float32 / eager"}


def test_values_added_to_what_the_state_holds_already_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(halves, "solved", lambda a, between, rest, lower: rest)
    failing = failing_cells(cases=["linear/exact-gated-delta", "linear/exact-gla"], **EAGER)
    assert failing == {"numpy / linear/exact-gated-delta / float32 / eager"}


def test_sums_that_do_not_follow_the_maximum_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunks.running_maximum

    def standing(*given: Any) -> Any:
        found, growth = right(*given)
        return found, growth * 0.0

    monkeypatch.setattr(chunks, "running_maximum", standing)
    failing = failing_cells(cases=["linear/exact-favor", "linear/exact-taylor"], **EAGER)
    assert failing == {"numpy / linear/exact-favor / float32 / eager"}


def test_exact_products_without_the_guard_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    backend: Any = owner_of(jax.numpy.zeros(1))
    monkeypatch.setattr(backend, "finite_product", lambda x, factor: x * factor)
    jax.clear_caches()
    failing = failing_cells(
        backends=["jax"],
        cases=["linear/exact-gate"],
        dtypes=["float32"],
        ways=["compiled"],
        elements=2000,
    )
    jax.clear_caches()
    assert failing == {"jax / linear/exact-gate / float32 / compiled"}


def test_an_implementation_that_raises_is_an_error_of_its_cell() -> None:
    def raising(rope: Any, x: Any, **arguments: Any) -> Any:
        raise RuntimeError("planted")

    report = conformance.run(make=altered(raising), cases=["rotation/half"], **EAGER)
    assert [cell.verdict for cell in report.cells] == ["error"]
    assert report.cells[0].detail == "RuntimeError: planted"
    assert not report.holds


def altered(call: Callable[..., Any]) -> Callable[..., Any]:
    """Make embeddings whose call is another one."""

    def make(**embedding: Any) -> Any:
        rope = rotary.RotaryEmbedding(**embedding)

        def called(x: Any, **arguments: Any) -> Any:
            return call(rope, x, **arguments)

        return type("Altered", (SimpleNamespace,), {"__call__": staticmethod(called)})(
            tables=rope.tables, inverse=rope.inverse, shift=rope.shift
        )

    return make
