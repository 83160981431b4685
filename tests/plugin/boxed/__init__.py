"""Arrays that wrap NumPy's, and are nothing to the array API standard."""


class Array:
    """A NumPy array in a box."""

    def __init__(self, data):
        self.data = data

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    dtype = property(lambda self: self.data.dtype)

    def __getitem__(self, key):
        return Array(self.data[key])

    def __setitem__(self, key, value):
        self.data[key] = value.data

    def __neg__(self):
        return Array(-self.data)

    def __add__(self, other):
        return Array(self.data + other.data)

    def __sub__(self, other):
        return Array(self.data - other.data)

    def __mul__(self, other):
        return Array(self.data * other.data)
