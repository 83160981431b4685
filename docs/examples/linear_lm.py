"""A small language model of bytes that says the same on NumPy, torch and JAX, bit by bit.

Its forward pass is written once against the array API, around RoPE linear attention.  JAX trains
it, in minutes, on the help texts that Python ships.  Then each library continues a prompt, token by
token: in its own arithmetic, and in the exact one of `rotary`, where all logits have the same bits.

    python docs/examples/linear_lm.py train FOLDER
    python docs/examples/linear_lm.py compare FOLDER
    python docs/examples/linear_lm.py generate FOLDER --backend torch --prompt "The for statement"
"""

import argparse
import math
import operator
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from array_api_compat import array_namespace
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import rotary

FILE = "model.safetensors"
BYTES = 256
LONG = 1024


@dataclass(frozen=True)
class Config:
    layers: int = 2
    heads: int = 4
    width: int = 128
    hidden: int = 512


@dataclass(frozen=True)
class Arithmetic:
    """Where products, norms and exponentials come from; a sum of two is the same everywhere.

    Products of two go into a matmul or a sum, never into an addition, which compilers contract.
    """

    name: str
    matmul: Callable
    sum: Callable
    rsqrt: Callable


EXACT = Arithmetic("exact", rotary.exact.matmul, rotary.exact.sum, rotary.exact.rsqrt)
FAST = Arithmetic(
    "fast",
    operator.matmul,
    lambda x, axis, keepdims: array_namespace(x).sum(x, axis=axis, keepdims=keepdims),
    lambda x: x**-0.5,
)
ARITHMETICS = {"exact": EXACT, "fast": FAST}


def forward(config, arithmetic, weights, ids, states):
    """Return the logits of what follows each of ids, and the states after them, one a layer."""
    xp, multiply = array_namespace(ids), arithmetic.matmul
    x = xp.take(weights["embedding"], xp.reshape(ids, (-1,)), axis=0)
    x = xp.reshape(x, (*ids.shape, -1))  # (batch, seq, width)
    after = []
    for i, state in enumerate(states):
        qkv = multiply(rms_norm(arithmetic, x), weights[f"{i}.qkv"])
        y, state = attention(config, arithmetic, qkv, state)
        x = x + multiply(y, weights[f"{i}.out"])
        y = multiply(rms_norm(arithmetic, x), weights[f"{i}.up"])  # (batch, seq, hidden)
        x = x + multiply(xp.where(y > 0, y * y, 0.0), weights[f"{i}.down"])
        after.append(state)
    return multiply(rms_norm(arithmetic, x), weights["head"]), after


def attention(config, arithmetic, qkv, state):
    xp, (batch, seq, _), head_dim = array_namespace(qkv), qkv.shape, config.width // config.heads
    qkv = xp.reshape(qkv, (batch, seq, 3, config.heads, head_dim))
    qkv = xp.permute_dims(qkv, (2, 0, 3, 1, 4))  # (3, batch, heads, seq, head_dim)
    attend = rotary.LinearAttention(
        rope=rotary.RotaryEmbedding(head_dim, base=100.0),
        decay=rotary.linear.RetNet(),  # so that it can go on for longer than it was trained
        normalize=True,
        arithmetic=arithmetic.name,
    )
    attend = attend.step if seq == 1 and state is not None else attend.prefill
    y, state = attend(qkv[0, ...], qkv[1, ...], qkv[2, ...], state)
    return xp.reshape(xp.permute_dims(y, (0, 2, 1, 3)), (batch, seq, -1)), state


def rms_norm(arithmetic, x):
    squares = arithmetic.sum(x * x, -1, keepdims=True)
    return x * (arithmetic.rsqrt(squares + 1e-4) * x.shape[-1] ** 0.5)


def shapes(config):
    """Return the shape of each weight by its name; all are (from, to)."""
    if config.width % config.heads:
        raise ValueError(f"width: got {config.width}, expected a multiple of {config.heads} heads")
    width, hidden = config.width, config.hidden
    found = {"embedding": (BYTES, width), "head": (width, BYTES)}
    for i in range(config.layers):
        found |= {f"{i}.qkv": (width, 3 * width), f"{i}.out": (width, width)}
        found |= {f"{i}.up": (width, hidden), f"{i}.down": (hidden, width)}
    return found


def new_weights(config, rng):
    weights = {
        name: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
        for name, shape in shapes(config).items()
    }
    weights["embedding"] *= 4
    weights["head"] *= 0  # each byte is as likely as any other: 8 bits
    return weights


def texts():
    """Return the bytes of Python's help texts: nine tenths to learn, one tenth to hold out."""
    text = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    text = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    return np.split(text, [len(text) * 9 // 10])


def train(folder, config, steps, batch=16, seq=128):
    """Train a model and save it; return the loss of each step and of text that it never saw."""
    jax = import_module("jax")
    rng = np.random.default_rng(0)
    text, held_out = texts()

    def bits_a_byte(weights, ids):
        states = [None] * config.layers
        logits, _ = forward(config, FAST, weights, ids[:, :-1], states)
        logs = jax.numpy.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1)
        return -logs.mean() / math.log(2)

    @jax.jit
    def adam(weights, mean, square, ids, n, rate):
        loss, slope = jax.value_and_grad(bits_a_byte)(weights, ids)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, slope)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g * g, square, slope)
        rate = rate * (1 - 0.99**n) ** 0.5 / (1 - 0.9**n)
        move = jax.tree.map(lambda m, s: rate * m / (s**0.5 + 1e-8), mean, square)
        return jax.tree.map(operator.sub, weights, move), mean, square, loss

    weights = new_weights(config, rng)
    mean = square = jax.tree.map(np.zeros_like, weights)
    losses, line = [], -(-steps // 20)
    for n in range(1, steps + 1):
        starts = rng.integers(0, len(text) - seq, (batch, 1))
        rate = 0.01 * min(1, n / 30) * (1 - (n - 1) / steps)
        ids = text[starts + np.arange(seq + 1)]
        weights, mean, square, loss = adam(weights, mean, square, ids, float(n), rate)
        losses.append(float(loss))
        if n == 1 or n % line == 0 or n == steps:
            recent = statistics.mean(losses[-line:])
            print(f"step {n:5}  {recent:5.3f} bits a byte  {'#' * round(8 * recent)}", flush=True)
    # In pieces that are longer than those of the training, as what `compare` writes.
    held_out = held_out[: len(held_out) // LONG * LONG].reshape(-1, LONG)
    held_out = float(jax.jit(bits_a_byte)(weights, held_out))
    print(f"held out    {held_out:5.3f} bits a byte")
    folder.mkdir(parents=True, exist_ok=True)
    described = {name: str(number) for name, number in asdict(config).items()}
    save_file({name: np.asarray(x) for name, x in weights.items()}, folder / FILE, described)
    draw(folder / "loss.png", losses, held_out)
    return losses, held_out


def draw(path, losses, held_out):
    if not find_spec("matplotlib"):
        print("matplotlib is not installed: the curve is not drawn")
        return
    figure = import_module("matplotlib.figure").Figure()
    axes = figure.add_subplot(xlabel="step", ylabel="bits a byte", ylim=(0, 8.5))
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.8, label="training text")
    axes.axhline(held_out, color="black", linestyle="--", label=f"held out: {held_out:.3f}")
    axes.legend()
    figure.savefig(path, dpi=150)


def load(folder, backend, arithmetic):
    """Return a model: a function of token ids and states, to the last logits and new states."""
    config, found = read(folder / FILE)
    convert, compiled = LIBRARIES[backend]
    weights = {name: convert(x) for name, x in found.items()}
    run = compiled(partial(forward, config, ARITHMETICS[arithmetic]))

    def model(ids, states):
        states = states or [None] * config.layers
        logits, states = run(weights, convert(np.asarray([ids], np.int32)), states)
        return np.asarray(logits)[0, -1], states

    return model


def read(path):
    """Return the config and the weights of a saved model."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with safe_open(path, "numpy") as file:
            described = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    numbers = {field.name: described.get(field.name, "nothing") for field in fields(Config)}
    for name, number in numbers.items():
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{name}: got {number} in {path}, expected a number of at least 1")
    config = Config(**{name: int(number) for name, number in numbers.items()})
    expected = shapes(config)
    for name in sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"{name}: {'missing from' if name in expected else 'of no use in'} {path}")
    for name, x in found.items():
        if x.shape != expected[name] or x.dtype != np.float32:
            raise ValueError(
                f"{name}: got {x.dtype} of shape {x.shape}, expected float32 of {expected[name]}"
            )
    return config, found


def to_torch(array):
    torch = import_module("torch")
    torch.set_num_threads(1)  # a step is too small to be shared: threads would wait for threads
    return torch.from_numpy(array)


def to_jax(array):
    jax = import_module("jax")
    jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU, TF32 is the default
    return jax.numpy.asarray(array)


LIBRARIES = {  # how arrays come to them, and what compiles a function, if anything does
    "numpy": (np.asarray, lambda function: function),
    "torch": (to_torch, lambda function: function),
    "jax": (to_jax, lambda function: import_module("jax").jit(function)),
}


def generate(model, prompt, count, seed):
    """Yield the `count` token ids that follow a prompt, each with the logits it is drawn from."""
    ids, states, numbers = list(prompt), None, random_numbers(seed)
    if not ids:
        raise ValueError("prompt: got none, expected a byte or more")
    for _ in range(count):
        logits, states = model(ids, states)
        ids = [sample(logits, next(numbers))]
        yield ids[0], logits


def sample(logits, number):
    """Return a token by its probability e^logit / Σ e^logit, in whole numbers from e^logit on."""
    odds = np.floor(rotary.exact.exp(logits - logits.max()) * 2.0**24).astype(np.int64)
    below = np.cumsum(odds)
    return int(np.searchsorted(below, number * int(below[-1]) >> 32, side="right"))


def random_numbers(seed):
    """Yield numbers below 2^32, the upper half of Knuth's generator modulo 2^64."""
    while True:
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        yield seed >> 32


def compare(folder, prompt, count, seed):
    """Continue a prompt on each library and print what differs; return how many exact logits do."""
    wrong = 0
    print(f"{count} tokens after {prompt!r}; tokens a second are those of the median step")
    for arithmetic in ARITHMETICS:
        first = None
        for backend in LIBRARIES:
            ids, logits, rate = measure(load(folder, backend, arithmetic), prompt, count, seed)
            line = f"{arithmetic:6} {backend:6} {rate:6.0f} tokens/s"
            if first is None:
                first, first_ids, first_logits = backend, ids, logits
                print(line, flush=True)
                continue
            # After the first other token the texts have nothing to do with each other.
            others = np.flatnonzero(ids != first_ids)
            same = int(others[0]) + 1 if len(others) else count
            unequal = np.sum(logits[:same].view(np.int32) != first_logits[:same].view(np.int32))
            most = np.abs(logits[:same] - first_logits[:same]).max()
            line += f"; against {first}, {unequal} of {same * BYTES} logits differ, by {most:.1e}"
            print(f"{line}; first other token: {same if len(others) else 'none'}", flush=True)
            wrong += int(unequal) if arithmetic == "exact" else 0
    return wrong


def measure(model, prompt, count, seed):
    """Return the tokens that follow a prompt, their logits, and the tokens a second."""
    tokens, times = [], [time.perf_counter()]
    for token in generate(model, prompt, count, seed):
        tokens.append(token)
        times.append(time.perf_counter())
    ids, logits = (np.asarray(x) for x in zip(*tokens, strict=True))
    return ids, logits, 1 / np.median(np.diff(times))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Train and run a small language model.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train it in JAX and save it")
    training.add_argument("--steps", type=int, default=1000, metavar="N")
    generating = commands.add_parser("generate", help="print what follows a prompt")
    generating.add_argument("--backend", choices=LIBRARIES, default="numpy", help="array library")
    generating.add_argument("--arithmetic", choices=ARITHMETICS, default="exact")
    comparing = commands.add_parser("compare", help="hold the libraries to each other's bits")
    for command in (training, generating, comparing):
        command.add_argument("folder", type=Path, help=f"where {FILE} is")
    for command in (generating, comparing):
        command.add_argument("--prompt", default="The for statement", metavar="TEXT")
        command.add_argument("--tokens", type=int, default=1000, metavar="N", help="how many")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling")
    options = parser.parse_args(arguments)
    for name in ("steps", "tokens"):
        if getattr(options, name, 1) < 1:
            parser.error(f"--{name}: got {getattr(options, name)}, expected at least 1")
    if options.command == "train":
        train(options.folder, Config(), options.steps)
        return
    prompt = options.prompt.encode()
    if options.command == "compare":
        wrong = compare(options.folder, prompt, options.tokens, options.seed)
        if wrong:
            sys.exit(f"exact arithmetic: got {wrong} logits that differ, expected none")
        return
    model = load(options.folder, options.backend, options.arithmetic)
    for token, _ in generate(model, prompt, options.tokens, options.seed):
        sys.stdout.buffer.write(bytes([token]))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
