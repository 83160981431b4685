"""What the modules of all frameworks share: where a description comes from, whose arrays it takes.

A module holds a description, :class:`rotary.RotaryEmbedding` or :class:`rotary.LinearAttention`,
and nothing besides: no table that a cast of the model could round, no state that a checkpoint could
miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from rotary.embedding import RotaryEmbedding
from rotary.linear import LinearAttention

Description = TypeVar("Description", RotaryEmbedding, LinearAttention)


def described(
    kind: type[Description], args: tuple[Any, ...], arguments: Mapping[str, Any], module: type
) -> Description:
    """Return the description that is the only argument, or that the arguments make.

    A feature map that is itself a `module` of the framework is refused: descriptions are static.
    """
    first = args[0] if args else None
    if isinstance(first, kind):
        if len(args) > 1 or arguments:
            beside = ", ".join(arguments) or "more"
            raise ValueError(
                f"description: got {kind.__name__}(...) and {beside} beside it, expected one of "
                f"them: a description, or the arguments that make one"
            )
        description = first
    elif isinstance(first, RotaryEmbedding | LinearAttention):
        raise TypeError(
            f"description: got {type(first).__name__}(...), expected {kind.__name__}(...) or its "
            f"arguments"
        )
    else:
        description = kind(*args, **arguments)
    feature_map = getattr(description, "feature_map", None)
    if isinstance(feature_map, module):
        raise TypeError(
            f"feature_map: got the module {type(feature_map).__name__}, expected a name or a "
            f"function: its parameters would be constants here; give its outputs as q and k to "
            f"the map 'identity'"
        )
    return description


def check_array(name: str, x: Any, kind: type, library: str) -> None:
    """Raise unless x is an array of the framework; `library` is how its users call one."""
    if not isinstance(x, kind):
        raise TypeError(
            f"{name}: got {type(x).__module__}.{type(x).__qualname__}, expected a {library}"
        )
