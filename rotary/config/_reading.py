"""From a config to the normalised record: the part that rotates, then every spelling of its keys.

Spellings that disagree and keys that nothing reads are errors; keys that only another rope_type
reads have no effect and a warning.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rotary.axes import Axes, Axial
from rotary.config._axes import ATOM_KEYS, ATOMS, FLAT, atoms_of, axes_of
from rotary.config._families import (
    ALWAYS,
    BACKWARDS,
    BEYOND,
    GEMMA3,
    INTERLEAVED,
    INTERLEAVED_BY_KEY,
    KEYS,
    KNOWN,
    LABELS,
    LAYERED,
    MARKS,
    OF_AXES,
    OFF,
    OWN,
    PARTS,
    PATTERN_KEYS,
    READS_YARN_AS_LONGROPE,
    SPELLINGS,
    STILL,
    TOGETHER,
    TOP_LEVEL,
    TRAILING,
    TYPE_NAMES,
    WIDTHS,
    Layered,
    family_defaults,
)

# Finding the part


@dataclass(frozen=True)
class Config:
    """One config or sub-config, and what its family fills in."""

    name: str
    given: Mapping[str, Any]
    model_type: str
    family: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Return a key's value by any of its spellings; the family's default if it is not there."""
        given = self.written(key)
        return given if given is not None or key in self.given else self.family.get(key)

    def written(self, key: str) -> Any:
        """Return a key's value by any of its spellings, None if the config is silent."""
        spelled = self.family.get("spelled", {}).get(key)
        for name in (key, spelled, *SPELLINGS.get(key, ())):
            if name is not None and _at(self.given, name) is not None:
                return _at(self.given, name)
        return None

    def layer_types(self, count: int) -> list[str] | None:
        """Return one type a layer, from the list, or from the pattern that repeats."""
        types = self.written("layer_types")
        if types is not None:
            if len(types) < count:
                raise ValueError(
                    f"layer_types: got {len(types)}, expected one for each of "
                    f"num_hidden_layers = {count}"
                )
            return list(types[:count])
        pattern = self._pattern()
        return None if pattern is None else [pattern[i % len(pattern)] for i in range(count)]

    def _pattern(self) -> list[str] | None:
        """Return the layer types that repeat."""
        pattern: list[str] | None = self.written("block_types") or self.family.get("layer_pattern")
        for name in PATTERN_KEYS:
            length = self.given.get(name)
            if isinstance(length, int) and length > 0:
                others = ["sliding_attention"] * (length - 1)
                if pattern is not None and pattern[0] == "full_attention":
                    return ["full_attention", *others]
                return [*others, "full_attention"]
        return pattern

    def of_layer(self, layer_type: str | None) -> Config:
        """Return this config with what it overrides for layers of one type."""
        overrides: Mapping[str, Any] = {}
        table = self.given.get("per_layer_config")
        types = self.written("layer_types")
        if table and types and layer_type in types:
            by_index = {int(index): values for index, values in table.items()}
            overrides = by_index.get(types.index(layer_type), {})
        elif not table and layer_type == "full_attention" and self.get("global_head_dim"):
            overrides = {"head_dim": self.get("global_head_dim")}
        return replace(self, given={**self.given, **overrides})


def _at(given: Mapping[str, Any], path: str) -> Any:
    """Return the value of a key, or with dots of a key of an inner dictionary, None if missing."""
    *outer, name = path.split(".")
    for key in outer:
        given = given.get(key) or {}
    return given.get(name)


def loaded(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if hasattr(config, "to_dict"):
        return loaded(config.to_dict())
    if isinstance(config, str | os.PathLike):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
        raise TypeError(f"config: got {type(values).__name__} in {path}, expected an object")
    raise TypeError(
        f"config: got {type(config).__name__}, expected a dict, a path or an object with to_dict()"
    )


def _config(name: str, given: Mapping[str, Any], parent: str = "") -> Config:
    families = family_defaults()
    model_type = given.get("model_type") or ""
    if not parent and "text_config" not in given:
        model_type = FLAT.get(model_type, model_type)
    if parent and model_type not in families:
        # A sub-config without a name of its own is what its parent's name says.
        stem = name.rpartition(".")[2].removesuffix("_config")
        named = (f"{model_type or parent}_{stem}", model_type, f"{parent}_{stem}")
        model_type = next((n for n in named if n in families), model_type)
    return Config(name, given, model_type, families.get(model_type, {}))


def _parts(config: Config, parent: str = "") -> Iterator[Config]:
    """Yield the sub-configs at any depth."""
    parent = config.model_type or parent
    for key, value in config.given.items():
        if isinstance(value, Mapping) and (key.endswith("_config") or key in PARTS):
            prefix = "" if config.name == "config" else f"{config.name}."
            inner = _config(prefix + key, value, parent)
            yield inner
            yield from _parts(inner, parent)


def chosen_part(values: Mapping[str, Any], part: str | None) -> Config:
    whole = _config("config", values)
    parts = {inner.name: inner for inner in _parts(whole)}
    rotating = [name for name, inner in parts.items() if _why_still(inner) is None]
    if part is not None:
        if part not in parts:
            raise ValueError(
                f"part: got {part!r}, expected one of {quoted(parts) or 'none: it has no parts'}"
            )
        chosen = parts[part]
    elif _why_still(whole) is None or not rotating:
        chosen = whole
    elif len(rotating) > 1:
        raise ValueError(f"part: got None, expected one of {quoted(rotating)}: each has a rotation")
    else:
        chosen = parts[rotating[0]]
    reason = _why_still(chosen)
    if reason is not None:
        expected = f"; expected one of {quoted(rotating)}" if rotating else ""
        raise ValueError(f"{chosen.name}: describes no rotation: {reason}{expected}")
    return chosen


def _why_still(config: Config) -> str | None:
    """Return why a config describes no rotation, or None if it does."""
    if config.model_type == OWN:
        return None
    if config.model_type in STILL:
        return f"model_type {config.model_type!r} rotates nothing"
    if config.model_type in BEYOND:
        return f"model_type {config.model_type!r}: {BEYOND[config.model_type]}"
    if config.model_type in OFF:
        key, values = OFF[config.model_type]
        if config.get(key) in values:
            return f"{key}: got {config.get(key)!r}"
    if config.model_type in family_defaults():
        return None
    if any(config.given.get(key) is not None for key in MARKS):
        return None
    return f"model_type {config.model_type!r} is not known to rotate, and no key of {MARKS} is set"


# Reading every spelling


@dataclass(frozen=True)
class Record:
    """One rotation, all spellings gone."""

    head_dim: int
    rotated: int  # d, the features that rotate: an odd number leaves one of them still
    layout: str
    rotary_side: str
    backwards: bool
    base: float
    rope_type: str
    numbers: Mapping[str, Any]  # what the rope_type reads, without nulls
    length: int | None  # max_position_embeddings
    axes: Axes | None = None
    inv_freq: tuple[float, ...] | None = None  # instead of the base


Rope = Mapping[str, Any]


def ropes_of(config: Config) -> dict[str | None, Rope | None]:
    """Return the rope dictionary, under None, or one a layer type."""
    given = _agreeing(config)
    default: Mapping[str, Any] = config.family.get("rope", {})
    if any(isinstance(value, Mapping) for value in given.values()):
        for key, value in given.items():
            if value is not None and not isinstance(value, Mapping):
                _warn_inert(key, "beside dictionaries nested by layer type")
        return {k: v for k, v in given.items() if v is None or isinstance(v, Mapping)}
    if isinstance(config.given.get("rope_theta"), list):
        return dict(_of_lists(config, given))
    layered = LAYERED.get(config.model_type)
    if layered is None and config.given.get("rope_local_base_freq") is not None:
        layered = GEMMA3
    if layered is not None:
        return dict(_of_layered(config, given, layered))
    if given or not default:
        return {None: given}
    if any(isinstance(value, Mapping) for value in default.values()):
        return dict(default.items())
    return {None: default}


def _agreeing(config: Config) -> dict[str, Any]:
    """Return rope_parameters and the legacy rope_scaling in one, where they agree."""
    merged: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        values = config.given.get(name)
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: got {values!r}, expected a dictionary")
        for key, value in values.items():
            if merged.get(key) is not None and value is not None and merged[key] != value:
                raise ValueError(
                    f"{key}: got {merged[key]!r} in rope_parameters and {value!r} in rope_scaling, "
                    f"expected one of them"
                )
            merged[key] = merged.get(key) if value is None else value
    return merged


def _of_layered(config: Config, flat: Rope, layered: Layered) -> Iterator[tuple[str, Rope]]:
    """Yield a dictionary a layer type from a flat one and one θ key a layer type."""
    for kind, (theta_key, scales) in layered.items():
        default = config.family.get("rope", {}).get(kind) or {}
        values = dict(flat) if scales and flat else dict(default)
        theta = config.given.get(theta_key)
        if theta is not None and values.get("rope_theta") not in (None, theta, *_one(default)):
            raise ValueError(
                f"rope_theta: got {values['rope_theta']} in the rope dictionary and {theta_key} "
                f"{theta}, expected one of them"
            )
        if theta is not None:
            values["rope_theta"] = theta
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in default:
                values.setdefault(key, default[key])
        rope_type = values.get("rope_type") or values.get("type")
        if config.model_type == "deepseek_v4" and rope_type == "yarn":
            values.setdefault("attention_factor", 1.0)  # its code multiplies by no factor
        yield kind, values


def _one(default: Rope) -> tuple[Any, ...]:
    return (default["rope_theta"],) if "rope_theta" in default else ()


def _of_lists(config: Config, flat: Rope) -> Iterator[tuple[str, Rope]]:
    """Yield a dictionary a layer type from lists with one θ a layer (Step 3.7)."""
    bases, types = config.given["rope_theta"], config.written("layer_types")
    if not types or len(types) > len(bases):
        raise ValueError(
            f"rope_theta: got {len(bases)} numbers, expected one for each of the "
            f"{len(types or ())} layer_types"
        )
    shares = config.given.get("partial_rotary_factors")
    for kind in dict.fromkeys(types):
        index = types.index(kind)
        values = {**(flat if kind == "full_attention" else {}), "rope_theta": bases[index]}
        if shares:
            values["partial_rotary_factor"] = shares[index]
        yield kind, values


def label_of(
    config: Config, ropes: Mapping[str | None, Rope | None], layer_type: str | None
) -> str | None:
    """Return the key under which a layer type's dictionary stands."""
    if None in ropes:
        types = config.written("layer_types") or config.family.get("layer_pattern") or ()
        if layer_type is not None and layer_type not in types:
            raise ValueError(
                f"layer_type: got {layer_type!r}, expected None: all layers rotate alike"
            )
        return None
    label = LABELS.get(config.model_type, {}).get(layer_type or "", layer_type)
    if ropes.get(label) is None:
        expected = quoted(k for k, values in ropes.items() if values is not None)
        reason = "has no positions" if label in ropes else "the rope dictionary is nested"
        raise ValueError(f"layer_type: got {layer_type!r}, expected one of {expected}: {reason}")
    return label


def record_of(config: Config, rope: Rope | None) -> Record:
    rope = {} if rope is None else rope
    rope_type = _rope_type(config, rope)
    base = _agreed(config, rope, "rope_theta", 10_000.0)
    share = _agreed(config, rope, "partial_rotary_factor", 1.0)
    if share > 1 and config.model_type not in TOGETHER:
        raise ValueError(f"partial_rotary_factor: got {share}, expected at most 1")
    name = "partial_rotary_factor"
    share_given = rope.get(name) is not None or config.given.get(name) is not None
    head_dim, rotated, side = _geometry(config, share, share_given, rope_type)
    axes, inv_freq = axes_of(config.model_type, rope, head_dim, rotated, share), None
    if config.model_type == ATOMS:
        axes, inv_freq = atoms_of([config.get(key) for key in ATOM_KEYS], head_dim)
    numbers = _numbers(rope, rope_type, axes is not None)
    if rope_type == "proportional":
        numbers["partial_rotary_factor"] = share
    name = "original_max_position_embeddings"
    if name in KEYS[rope_type]:
        given = (config.written(name), numbers.get(name), config.family.get(name))
        longest = config.get("max_position_embeddings")
        numbers[name] = next((n for n in (*given, longest) if n is not None), None)
    return Record(
        head_dim=head_dim,
        rotated=2 * axes.pairs if isinstance(axes, Axial) else rotated,
        layout=_layout(config),
        rotary_side=side,
        backwards=config.model_type in BACKWARDS,
        base=base,
        rope_type=rope_type,
        numbers=numbers,
        length=config.get("max_position_embeddings"),
        axes=axes,
        inv_freq=inv_freq,
    )


def _rope_type(config: Config, rope: Rope) -> str:
    kinds = {}
    for key in ("rope_type", "type"):
        if rope.get(key) is not None:
            kind = TYPE_NAMES.get(rope[key], rope[key])
            as_longrope = kind == "yarn" and config.model_type in READS_YARN_AS_LONGROPE
            kinds[key] = "longrope" if as_longrope else kind
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"rope_type: got {rope['rope_type']!r} and type {rope['type']!r}, expected one of them"
        )
    rope_type = next(iter(kinds.values()), "default")
    if rope_type not in KEYS:
        raise ValueError(f"rope_type: got {rope_type!r}, expected one of {quoted(KEYS)}")
    return str(rope_type)


def _numbers(rope: Rope, rope_type: str, has_axes: bool) -> dict[str, Any]:
    """Return what the rope_type reads; warn of what it does not, raise for what nothing reads."""
    read = KEYS[rope_type]
    if rope_type == "dynamic" and rope.get("alpha"):
        read = frozenset({"alpha"})
    numbers = {}
    for key, value in rope.items():
        if key == "type" or (has_axes and key in OF_AXES):
            continue
        if key not in KNOWN:
            raise ValueError(
                f"{key}: got {value!r} in the rope dictionary of rope_type {rope_type!r}, expected "
                f"one of {quoted(sorted(KEYS[rope_type] | ALWAYS))}"
            )
        if value is None and key != "factor":
            continue
        if key in read:
            numbers[key] = value
        elif key == "llama_4_scaling_beta":
            raise ValueError(
                f"{key}: got {value!r} with rope_type {rope_type!r}, expected it with 'yarn' only"
            )
        elif key not in ALWAYS and value is not None:
            _warn_inert(key, f"with rope_type {rope_type!r}")
    return numbers


def _agreed(config: Config, rope: Rope, key: str, usual: float) -> float:
    """Return a positive number that stands in the rope dictionary or at top level, or a default."""
    found = {f"the rope dictionary's {key}": rope.get(key)} if rope.get(key) is not None else {}
    nested_default = key == "rope_theta" and isinstance(config.given.get(key), list)
    if not found or not _is_layered(config):
        for name in () if nested_default else TOP_LEVEL[key]:
            if config.given.get(name) is not None:
                found[name] = config.given[name]
    if len(set(found.values())) > 1:
        told = " and ".join(f"{name} {value}" for name, value in found.items())
        raise ValueError(f"{key}: got {told}, expected one of them")
    names = (config.family.get(name) for name in TOP_LEVEL[key])
    default = next((value for value in names if value is not None), usual)
    value = next(iter(found.values()), default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key}: got {value!r}, expected a number")
    if not 0 < value < math.inf:
        raise ValueError(f"{key}: got {value}, expected a positive, finite number")
    return float(value)


def _is_layered(config: Config) -> bool:
    """Whether each layer type has its dictionary, beside which the top level is a default only."""
    values = config.given.get("rope_parameters") or config.given.get("rope_scaling") or {}
    return (
        any(isinstance(value, Mapping) for value in values.values())
        or config.model_type in LAYERED
        or any(
            config.given.get(k) is not None for k in ("rope_local_base_freq", "layer_rope_theta")
        )
    )


def _geometry(
    config: Config, share: float, share_given: bool, rope_type: str
) -> tuple[int, int, str]:
    """Return the size of a head, how many of its features rotate, and on which side."""
    latent = config.get("qk_rope_head_dim")
    if latent and config.model_type not in TRAILING:
        rest = _size(config, "qk_nope_head_dim") if config.get("qk_nope_head_dim") else 0
        return rest + latent, latent, "trailing" if rest else "leading"
    if config.get("head_dim") is not None:
        head_dim = _size(config, "head_dim")
    else:
        keys = WIDTHS.get(config.model_type, ("hidden_size", "num_attention_heads"))
        head_dim, *divisors = (_size(config, key) for key in keys)
        head_dim //= math.prod(divisors)
    rotated = head_dim if rope_type == "proportional" else int(head_dim * share)
    if config.model_type == "clvp_encoder":
        heads = _size(config, "num_attention_heads")
        rotated = max(_size(config, "projection_dim") // (2 * heads), 32)
    if config.get("rotary_dim") is not None and not share_given:
        rotated = _size(config, "rotary_dim")
    elif config.written("rotary_dim") not in (None, rotated):
        raise ValueError(
            f"rotary_dim: got {config.written('rotary_dim')} and partial_rotary_factor {share} of "
            f"{head_dim} features, expected one of them"
        )
    if config.model_type in TOGETHER:
        head_dim *= _size(config, "num_attention_heads")
    trailing = config.model_type in TRAILING and rotated < head_dim
    return head_dim, rotated, "trailing" if trailing else "leading"


def _size(config: Config, key: str) -> int:
    value = config.get(key)
    if value is None:
        raise ValueError(f"{key}: missing in {config.name}, expected a whole number")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key}: got {value!r}, expected a whole number")
    if value <= 0:
        raise ValueError(f"{key}: got {value}, expected a positive number")
    return value


def _layout(config: Config) -> str:
    pairs = config.model_type in INTERLEAVED
    for key in ("rope_interleave", "rotary_emb_interleaved"):
        if config.given.get(key) is not None and config.model_type not in INTERLEAVED:
            return "interleaved" if config.given[key] else "half"
    return "interleaved" if pairs or config.model_type in INTERLEAVED_BY_KEY else "half"


def quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _warn_inert(key: str, why: str) -> None:
    warnings.warn(f"{key}: has no effect {why}", UserWarning, stacklevel=2)
