"""What is kept of tables: bounded, complete in its key, safe between threads and from callers."""

import threading

import numpy as np
import pytest

import rotary
from rotary import tables
from rotary.cache import Cache
from rotary.tables import BLOCK_ROWS


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    tables.cache.clear()


def test_the_cache_never_holds_more_than_its_bound() -> None:
    cache = Cache(limit=1000)
    for i in range(100):
        cache.put(i, f"entry {i}", 90)
        assert cache.nbytes <= 1000
    assert len(cache) == 11
    assert cache.get(0) is None
    assert cache.get(99) == "entry 99"


def test_what_was_used_last_stays() -> None:
    cache = Cache(limit=30)
    cache.put("a", 1, 10)
    cache.put("b", 2, 10)
    cache.put("c", 3, 10)
    assert cache.get("a") == 1
    cache.put("d", 4, 10)
    assert cache.get("a") == 1
    assert cache.get("b") is None


def test_an_entry_larger_than_the_bound_is_not_kept() -> None:
    cache = Cache(limit=30)
    cache.put("a", 1, 31)
    assert cache.get("a") is None
    assert cache.nbytes == 0


def test_decoding_steps_share_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = []
    right = tables.evaluate
    monkeypatch.setattr(
        tables, "evaluate", lambda *a, **k: evaluated.append(a[1].shape) or right(*a, **k)
    )
    rope = rotary.RotaryEmbedding(16)
    q = np.ones((1, 2, 1, 16), np.float32)
    for n in range(2 * BLOCK_ROWS):
        rope(q, offset=n)
    assert evaluated == [(BLOCK_ROWS,), (BLOCK_ROWS,)]


def test_layers_share_explicit_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = rotary.RotaryEmbedding(16)
    q = np.ones((2, 2, 3, 16), np.float32)
    rope(q, positions=[[3, 1, 2], [0.5, 7, 7]])
    monkeypatch.setattr(tables, "evaluate", lambda *a: pytest.fail("evaluated again"))
    rope(q, positions=np.array([[3, 1, 2], [0.5, 7, 7]]))


def test_embeddings_that_differ_in_one_number_do_not_share_tables() -> None:
    q = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    ropes = [
        rotary.RotaryEmbedding(32),
        rotary.RotaryEmbedding(32, base=9_999.0),
        rotary.RotaryEmbedding(32, rotary_dim=16),
        rotary.RotaryEmbedding(32, frequency_dim=64),
        rotary.RotaryEmbedding(32, inv_freq=[0.5] * 16),
    ]
    together = [rope(q, offset=3) for rope in ropes]
    for rope, y in zip(ropes, together, strict=True):
        tables.cache.clear()
        assert np.array_equal(rope(q, offset=3), y)
    for i, y in enumerate(together):
        assert not any(np.array_equal(y, other) for other in together[i + 1 :])


def test_dtypes_do_not_share_tables() -> None:
    rope = rotary.RotaryEmbedding(8)
    q = np.ones((3, 8))
    rope(q.astype(np.float32), offset=1)
    double = rope(q, offset=1)
    tables.cache.clear()
    assert np.array_equal(rope(q, offset=1), double)


def test_writing_to_returned_tables_changes_nothing_kept() -> None:
    rope = rotary.RotaryEmbedding(8)
    for like in _likes():
        cos, sin = rope.tables(np.arange(256), like=like)
        cos[...] = 5
        sin[...] = 5
        again, _ = rope.tables(np.arange(256), like=like)
        assert float(again[0, 0]) == 1


def _likes() -> list:
    likes = [np.zeros(1, np.float32)]
    torch = pytest.importorskip("torch")
    return [*likes, torch.zeros(1)]


def test_threads_that_ask_at_once_get_the_same_bits() -> None:
    rope = rotary.RotaryEmbedding(64)
    q = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    offsets = [(i * 97) % 3000 for i in range(60)]
    want = [rope(q, offset=n) for n in offsets]
    tables.cache.clear()
    barrier = threading.Barrier(8)
    wrong: list[int] = []

    def ask(first: int) -> None:
        barrier.wait()
        for step in range(len(offsets)):
            i = (first * 7 + step) % len(offsets)
            if not np.array_equal(rope(q, offset=offsets[i]), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_long_context_is_kept_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "cache", Cache(limit=2**18))
    rope = rotary.RotaryEmbedding(8)
    q = np.ones((1, 8), np.float32)
    for start in range(0, 200_000, 1000):
        rope(q, offset=start)
        assert tables.cache.nbytes <= 2**18


def test_ten_million_positions_rotate_without_a_table_of_their_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    right = tables.evaluate

    def noting(frequencies: object, positions: np.ndarray, *rest: object) -> np.ndarray:
        table = right(frequencies, positions, *rest)
        made.append(table.nbytes)
        return table

    monkeypatch.setattr(tables, "evaluate", noting)
    seq = 10_000_000
    q = np.ones((1, seq, 4), np.float16)
    rope = rotary.RotaryEmbedding(4)
    rotated = rope(q)
    assert max(made) <= tables.PIECE_BYTES < sum(made)
    assert tables.cache.nbytes <= tables.CACHE_BYTES
    for start in (0, tables.PIECE_BYTES // 16 - 3, seq - 5):
        assert np.array_equal(
            rotated[:, start : start + 5], rope(q[:, start : start + 5], offset=start)
        )


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array_api_strict"])
def test_a_call_in_pieces_gives_the_bits_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    xp = pytest.importorskip({"jax": "jax.numpy"}.get(name, name))
    rope = rotary.RotaryEmbedding(16)
    q = np.random.default_rng(0).standard_normal((2, 3, 50, 16)).astype(np.float32)
    k, positions = q[:, :1], np.arange(100.0).reshape(2, 50) / 3
    calls = [{"offset": 7}, {"positions": positions}, {"offset": [5, 900]}]
    whole = [rope(q, k, **call) for call in calls]
    packed = rope(q[0], seq_axis=-3, positions=positions[0, :3])
    monkeypatch.setattr(tables, "PIECE_BYTES", 2 * 8 * 4 * 2 * 7)
    library_q, library_k = xp.asarray(q), xp.asarray(q[:, :1].copy())
    for call, want in zip(calls, whole, strict=True):
        for got, one in zip(rope(library_q, library_k, **call), want, strict=True):
            assert np.array_equal(np.asarray(got), one)
    got = rope(library_q[0, ...], seq_axis=-3, positions=positions[0, :3])
    assert np.array_equal(np.asarray(got), packed)


def test_a_call_in_pieces_writes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = rotary.RotaryEmbedding(16)
    q = np.random.default_rng(0).standard_normal((2, 3, 50, 16)).astype(np.float32)
    want = rope(q, offset=3)
    monkeypatch.setattr(tables, "PIECE_BYTES", 2 * 8 * 4 * 7)
    assert rope(q, offset=3, out=q) is q
    assert np.array_equal(q, want)
