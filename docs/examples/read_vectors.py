"""The golden vectors of `rotary`, read with nothing but Python: an example for other languages.

It holds the files to their checksums, rotates the float32 vectors with products and sums rounded
one by one to float32, and counts the numbers whose bits differ:

    python docs/examples/read_vectors.py conformance/vectors
"""

import hashlib
import itertools
import json
import math
import struct
import sys
from pathlib import Path

FORMATS = {"float16": ">e", "float32": ">f", "float64": ">d"}  # the most significant byte first


def numbers(array):
    """Return the numbers of an array as Python floats, in C order."""
    if array["dtype"] == "bfloat16":  # the upper half of a float32
        return [struct.unpack(">f", bytes.fromhex(bits + "0000"))[0] for bits in array["bits"]]
    return [struct.unpack(FORMATS[array["dtype"]], bytes.fromhex(b))[0] for b in array["bits"]]


def fl(value):
    """Round to float32: a product of two float32 is exact in float64, and a sum rounds alike."""
    return struct.unpack("f", struct.pack("f", value))[0]


def rotate(arguments, x, x_shape, cos, sin, table_shape):
    """Return x with its pairs rotated: fl(fl(x1·cos) − fl(x2·sin)), fl(fl(x1·sin) + fl(x2·cos))."""
    y, pairs = list(x), arguments["rotary_dim"] // 2
    start = 0
    if arguments["rotary_side"] == "trailing":
        start = arguments["head_dim"] - arguments["rotary_dim"]
    for b, i, j in itertools.product(*map(range, x_shape[:3])):
        token = i if arguments["seq_axis"] == -3 else j
        row = (b * table_shape[1] if len(table_shape) == 3 else 0) + token
        feature = ((b * x_shape[1] + i) * x_shape[2] + j) * x_shape[3] + start
        for pair in range(pairs):
            first, second = feature + pair, feature + pair + pairs
            if arguments["layout"] == "interleaved":
                first, second = feature + 2 * pair, feature + 2 * pair + 1
            c, s = cos[row * pairs + pair], sin[row * pairs + pair]
            s = -s if arguments["inverse"] else s
            y[first] = fl(fl(x[first] * c) - fl(x[second] * s))
            y[second] = fl(fl(x[first] * s) + fl(x[second] * c))
    return y


def differing(vector):
    """Return how many numbers of a float32 rotation differ; −0 is 0, and any NaN is any NaN."""
    arrays = {name: numbers(array) for name, array in vector["inputs"].items()}
    shapes = {name: array["shape"] for name, array in vector["inputs"].items()}
    tables = arrays["cos"], arrays["sin"], shapes["cos"]
    got = rotate(vector["arguments"], arrays["x"], shapes["x"], *tables)
    want = numbers(vector["outputs"]["y"]["value"])
    pairs = zip(got, want, strict=True)
    return sum(a != b and not (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def read(folder):
    """Yield the files that SHA256SUMS names, each held to its checksum."""
    for line in (folder / "SHA256SUMS").read_text("ascii").splitlines():
        digest, name = line.split("  ")
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise SystemExit(f"{name}: was changed: its sha256 is not {digest}")
        if name != "schema.json":
            yield name, json.loads(data)


def main(folder):
    wrong = 0
    for name, content in read(Path(folder)):
        if content["schema_version"] != 1:
            raise SystemExit(f"{name}: schema_version {content['schema_version']}, expected 1")
        print(f"{name}: {len(content['vectors'])} vectors")
        for vector in content["vectors"] if content["kind"] == "rotation" else ():
            if vector["dtype"] == "float32":
                bad = differing(vector)
                wrong += bad
                count = len(vector["outputs"]["y"]["value"]["bits"])
                print(f"  {vector['id']}: {bad} of {count} numbers differ")
    print(f"{wrong} numbers differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
