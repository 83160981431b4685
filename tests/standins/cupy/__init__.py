"""CuPy without a GPU: NumPy underneath, and CuPy's own mistakes to make.

It copies CuPy 14.2 (13 differs in having no bfloat16) where code written for NumPy goes wrong:

- Arrays live on one of two devices.  New ones go to the current device, on which everything is
  computed; an operand that lies elsewhere is an error, as it is without peer access.
- Devices compare but do not hash; there is no ``device=``.
- Only `get` and `asnumpy` make a NumPy array, and no NumPy array is an operand.
- Work is queued: what one stream has not finished another one must not read, be it through a view,
  and a copy from the host is queued like all else unless it is ``blocking``.  (CuPy reads garbage;
  here it raises.)  Masks as indices and ``bool`` of an array wait.
- Operators in place write to memory that views share.  There is no ``flags.writeable``: a broadcast
  array can be written.
- Each ufunc has CuPy's loops, so that dtypes come out as there; functions have CuPy's parameters.
- Indices beyond the end wrap around.
- A `RawModule` is compiled for the host, and its threads run one after the other.

Each ufunc is NumPy's, rounded to the dtype, as each of CuPy's is a kernel.  Sums, products of
matrices and exponentials are not: they differ from NumPy's in the last places, as CUDA's do.
"""

# ruff: noqa: F401, F403

from numpy import (
    bool_,
    broadcast_shapes,
    can_cast,
    complex64,
    complex128,
    dtype,
    finfo,
    float16,
    float32,
    float64,
    iinfo,
    inf,
    int8,
    int16,
    int32,
    int64,
    integer,
    intp,
    isdtype,
    issubdtype,
    nan,
    newaxis,
    pi,
    promote_types,
    result_type,
    uint8,
    uint16,
    uint32,
    uint64,
)

from cupy import cuda, fft, linalg
from cupy._array import ndarray
from cupy._raw import RawModule
from cupy._routines import *
from cupy._ufuncs import UFUNCS as _UFUNCS

__version__ = "14.2.0+standin"

globals().update(_UFUNCS)


def is_available():
    return cuda.count() > 0
