"""Nothing of it is used: array-api-compat wants to see the module."""
