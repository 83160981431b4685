"""Exact tables and rotary's rotation inside models of transformers, and the way back.

``replace_rotary(model)`` gives every rotary module of a model tables from
:meth:`rotary.RotaryEmbedding.tables`, and every function that rotates the work of
:func:`rotary.rotate`; what is computed between them stays theirs.

How: each module concerned gets a class of its own, derived from its class, with the methods that
differ, and restoring gives the old class back.  A class is where methods live, so that copies,
replicas, hooks and compilers see an ordinary module, while its parameters, buffers and hooks are
not touched.  The functions that rotate are globals of the modeling file, shared by all models of
the process: the methods that call them are rebuilt with a dictionary of globals of their own, and
other models notice nothing.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

import rotary
from rotary.integrations import _transformers_gptj as gptj
from rotary.integrations import _transformers_tables as tables
from rotary.integrations._transformers_functions import NAME, rotation_of
from rotary.integrations._transformers_tables import Refused

__all__ = ["Replacement", "replace_rotary", "restore_rotary"]

_MARK = "_rotary_replaces"


@dataclass(frozen=True)
class Replacement:
    """What :func:`replace_rotary` did; a context manager that undoes it.

    Attributes
    ----------
    model : PreTrainedModel
    embeddings : dict
        For each rotary module by its name in the model, its :class:`rotary.RotaryEmbedding` by type
        of layer, under None where all layers share one.
    rotating : tuple of str
        Names of the modules that rotate queries and keys.
    """

    model: PreTrainedModel
    embeddings: dict[str, dict[str | None, rotary.RotaryEmbedding]]
    rotating: tuple[str, ...]

    def restore(self) -> None:
        """Give the model its own tables and rotation back; nothing happens the second time."""
        restore_rotary(self.model)

    def __enter__(self) -> Replacement:
        """Return itself: the model is replaced already."""
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def replace_rotary(model: PreTrainedModel) -> Replacement:
    """Make a model of transformers compute its rotary embedding with rotary, in place.

    Tables are correctly rounded at every position, whatever the model's dtype; queries and keys
    turn as :func:`rotary.rotate` turns them, with the bits that it gives for NumPy arrays, forward
    and backward.  Rules that depend on the length see that of each call and remember none.  What
    each module and function of the model does is asked before, on a few numbers, so that nothing
    is replaced by something else.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place.  Its parameters, buffers and state_dict stay as they are; ``inv_freq``
        is not read until it is restored.

    Returns
    -------
    Replacement
        With ``restore()``, and a context manager: ``with replace_rotary(model): ...``.

    Raises
    ------
    TypeError
        For anything but a ``PreTrainedModel``.
    ValueError
        For a model without rotary embedding, one that is replaced already, and one with a module or
        a function that rotary has no description for, by name and with the reason.  The model is
        then as it was.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rotary.integrations.transformers import replace_rotary
    >>> sizes = dict(hidden_size=32, intermediate_size=32, num_attention_heads=4, vocab_size=50)
    >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)).eval()
    >>> with torch.no_grad(), replace_rotary(model) as replacement:
    ...     logits = model(torch.arange(10)[None]).logits
    >>> replacement.rotating
    ('model.layers.0.self_attn', 'model.layers.1.self_attn')
    >>> replacement.embeddings["model.rotary_emb"][None].head_dim
    8
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a transformers.PreTrainedModel"
        )
    if any(_replaced(module) for module in model.modules()):
        raise ValueError(
            f"model: got a {type(model).__name__} that is replaced already, expected one as "
            f"transformers makes it: restore_rotary(model) first"
        )
    plan = _plan(model)
    for module, change in plan.values():
        module.__class__ = change.cls
    return Replacement(
        model,
        {name: change.embeddings for name, (_, change) in plan.items() if change.embeddings},
        tuple(name for name, (_, change) in plan.items() if change.rotates),
    )


def restore_rotary(model: torch.nn.Module) -> None:
    """Undo :func:`replace_rotary`, on the model or on a deep copy of it, in place.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or any part of one; nothing happens to what is not replaced.

    Raises
    ------
    TypeError
        For anything but a module.
    ValueError
        Where a module has been given a ``forward`` of its own since, which holds on to rotary's.
        The model is then as it was.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    replaced = {name: module for name, module in model.named_modules() if _replaced(module)}
    for name, module in replaced.items():
        for key in _shadowed(type(module), module):
            raise ValueError(
                f"model: cannot restore {name} ({type(module).__name__}): it has got a {key} of "
                f"its own since it was replaced, as hooks of accelerate and other patches set it; "
                f"expected none: remove it first"
            )
    for module in replaced.values():
        module.__class__ = getattr(type(module), _MARK)


def _replaced(module: torch.nn.Module) -> bool:
    return _MARK in vars(type(module))


def _shadowed(cls: type, module: torch.nn.Module) -> list[str]:
    """Return the methods of a derived class that the module's own attributes hide."""
    return [key for key in vars(cls) if key in vars(module) and not key.startswith("__")]


# What is to be done, before anything is


@dataclass(frozen=True)
class _Change:
    """What becomes of one module."""

    cls: type
    embeddings: dict[str | None, rotary.RotaryEmbedding]
    """Of the tables that it makes."""
    rotates: bool


def _plan(model: PreTrainedModel) -> dict[str, tuple[torch.nn.Module, _Change]]:
    """Return the modules to change and what becomes of them, by name; raise ValueError."""
    plan: dict[str, tuple[torch.nn.Module, _Change]] = {}
    rebuilder = _Rebuilder()
    for name, module in model.named_modules():
        label = f"{type(model).__name__}'s {name} ({type(module).__name__})"
        try:
            change = _change(module, rebuilder)
        except Refused as reason:
            raise ValueError(f"model: cannot replace {label}: it {reason}") from reason
        if change is None:
            continue
        for key in _shadowed(change.cls, module):
            raise ValueError(
                f"model: cannot replace {label}: it has a {key} of its own, as hooks of accelerate "
                f"and other patches set it; expected its class's"
            )
        plan[name] = module, change
    makes_tables = any(change.embeddings for _, change in plan.values())
    rotates = any(change.rotates for _, change in plan.values())
    if not (makes_tables and rotates):
        raise ValueError(_nothing(model, makes_tables, rotates))
    return plan


def _nothing(model: PreTrainedModel, makes_tables: bool, rotates: bool) -> str:
    found = {
        (False, False): "neither",
        (True, False): "only the former: it rotates in a method of its own",
        (False, True): "only the latter: it makes its tables elsewhere",
    }[makes_tables, rotates]
    return (
        f"model: got a {type(model).__name__}, expected modules with Rotary, RoPE or RopePosition "
        f"in their class's name, and methods that call a function like apply_rotary_pos_emb; "
        f"found {found}"
    )


def _change(module: torch.nn.Module, rebuilder: _Rebuilder) -> _Change | None:
    """Return what becomes of a module, None if it stays; raise Refused."""
    cls = type(module)
    if tables.NAME.fullmatch(cls.__name__):
        by_type = tables.tables_of(module)
        methods = {"forward": _making_tables(by_type)}
        return _Change(_derived(cls, methods), {k: t.rope for k, t in by_type.items()}, False)
    if cls.__module__.startswith("transformers.models.gptj.") and cls.__name__ == "GPTJAttention":
        rope = gptj.embedding_of(module)
        return _Change(_derived(cls, {"forward": gptj.forward_with(rope)}), {None: rope}, True)
    found = rebuilder.methods(cls)
    return _Change(_derived(cls, found), {}, True) if found else None


def _making_tables(by_type: dict[str | None, tables.Tables]) -> Callable[..., Any]:
    """Return the forward of a rotary module."""
    only = by_type.get(None)

    def forward(self: Any, x: Any, position_ids: Any, layer_type: str | None = None) -> Any:
        with torch.no_grad():
            return (by_type[layer_type] if only is None else only)(x, position_ids)

    return forward


def _derived(cls: type, methods: dict[str, Any]) -> type:
    """Return a class with other methods and the same name, by which transformers tells layers."""
    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    ours = {_MARK: cls, "__deepcopy__": _copied, "__reduce_ex__": _refuse_pickle}
    return type(cls)(cls.__name__, (cls,), {**same, **ours, **methods})


def _copied(self: Any, memo: dict[int, Any]) -> Any:
    """Copy a module as it is, replaced."""
    made = object.__new__(type(self))
    memo[id(self)] = made
    made.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
    return made


def _refuse_pickle(self: Any, protocol: Any) -> Any:
    """Classes made at run time cannot be found by the process that would read them."""
    raise TypeError(
        f"model: got a {type(self).__name__} that replace_rotary has changed, which does not "
        f"pickle; save_pretrained or state_dict hold all of it, or restore_rotary(model) first"
    )


# Methods with other globals


class _Rebuilder:
    """Methods that call functions which rotate, rebuilt to call rotary instead.

    The other globals of the file are those of this moment: what is patched into a modeling file
    later reaches the model when it is restored.
    """

    def __init__(self) -> None:
        self._globals: dict[int, dict[str, Any]] = {}
        self._methods: dict[type, dict[str, Any]] = {}
        self._entered: set[int] = set()

    def methods(self, cls: type) -> dict[str, Any]:
        """Return the methods of a class that differ, by name; raise Refused."""
        if cls not in self._methods:
            rebuilt = {name: (method, self._rebuilt(method)) for name, method in _methods(cls)}
            self._methods[cls] = {k: new for k, (old, new) in rebuilt.items() if new is not old}
        return self._methods[cls]

    def _rebuilt(self, function: types.FunctionType) -> types.FunctionType:
        """Return a function that calls rotary, itself if it calls nothing that rotates."""
        if id(function) in self._entered:  # by way of its own closure
            return function
        self._entered.add(id(function))
        where, closure = function.__globals__, function.__closure__ or ()
        called = [name for name in _names(function.__code__) if _rotates(name, where.get(name))]
        for name in called:
            if rotation_of(where[name]) is None:
                raise Refused(f"calls {name}, which does more or other than rotary.rotate")
        cells = tuple(map(self._cell, closure))  # decorators keep what they wrap there
        self._entered.remove(id(function))
        if not called and cells == closure:
            return function
        code, name, defaults = function.__code__, function.__name__, function.__defaults__
        scope = self._swapped(where) if called else where
        made = types.FunctionType(code, scope, name, defaults, cells)
        made.__kwdefaults__ = function.__kwdefaults__
        made.__module__, made.__qualname__ = function.__module__, function.__qualname__
        made.__dict__.update(function.__dict__)
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # empty
            return cell
        if not isinstance(content, types.FunctionType):
            return cell
        rebuilt = self._rebuilt(content)
        return cell if rebuilt is content else types.CellType(rebuilt)

    def _swapped(self, where: dict[str, Any]) -> dict[str, Any]:
        """Return a modeling file's globals with rotary's functions among them."""
        if id(where) not in self._globals:
            theirs = {name: value for name, value in where.items() if _rotates(name, value)}
            found = {name: rotation_of(function) for name, function in theirs.items()}
            ours = {name: rotation for name, rotation in found.items() if rotation is not None}
            # Without a name: torch.compile looks up the globals of a named module in that module,
            # where theirs would be.
            self._globals[id(where)] = {
                key: value for key, value in {**where, **ours}.items() if key != "__name__"
            }
        return self._globals[id(where)]


def _methods(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    seen: set[str] = set()
    for base in cls.__mro__:
        if base is torch.nn.Module or base is PreTrainedModel or base is object:
            continue
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType) and name not in seen:
                yield name, value
            seen.add(name)


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code looks up, and those of the functions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _rotates(name: str, value: Any) -> bool:
    return NAME.fullmatch(name) is not None and callable(value)
