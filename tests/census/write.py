"""Write docs/census.md: every rotary embedding of transformers against rotary.from_config.

Run ``python tests/census/write.py``; test_census.py fails while the page is not current.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from census import rows
from comparing import Row
from defects import DEFECTS

TARGET = Path(__file__).parents[2] / "docs" / "census.md"

HEAD = """\
# Census: every rotary embedding of transformers 5.23.0

Written by `python tests/census/write.py`; `tests/test_census.py` checks that it is current.

Each class with `Rotary`, `RoPE` or `RopePosition` in its name, and each modeling file that rotates
without one, is built from its default config and from one config for every rope_type that it
takes, and `rotary.from_config` from the same config's dictionary. Compared are

- the inverse frequencies, rtol 2e-6;
- the attention factor, rtol 1e-6;
- the rotation: the model's own apply function on random q and k at positions 0, 1, 17 and 4095
  against ours, by q·kᵀ over all pairs of positions and by value up to one fixed permutation of
  features. Their angles are float32 products of float32 frequencies, so an angle may be off by
  8·2^-24·(1 + position): 5e-7 at 0, 9e-6 at 17, 2e-3 at 4095. dynamic and longrope configs have a
  context of 2048, so that 4095 is on the long side.

Classes with several position axes run on a grid of 2 × 3 (× 2 frames) and on three tokens far away
whose axes all differ, and it is checked that our rotation with two axes exchanged does not pass.
Ours gets positions of time or height first, theirs in the order in which its model makes them:
Gemma 4, Muse and the SAM family hand their class the width first, whatever it calls it. Of MLCD the
patches are compared: the angles of its class token are learned. MusicFlamingo's angles are products
with the seconds, and ours gets these as positions. EfficientLoFTR rotates all heads as one. Of the
attention modules it is what reaches the attention function that is compared. proportional is left
out where partial_rotary_factor is a share of one axis (EfficientLoFTR, MusicFlamingo).

Order: `as read`, or `pairs to halves` where the model reads interleaved pairs and writes them in
half order, one permutation of q and k alike. A defect (D1 …) is one of transformers, shown below by
a program; where one is named, theirs equals ours with the same mistake made on purpose, or raises.
"""


def counts(found: list[Row]) -> str:
    """Return one line a status."""
    single = [row for row in found if row.status in ("match", "differs", "their defect")]
    matching = sum(row.status == "match" for row in single)
    lines = [f"- {n} × {status}" for status, n in Counter(r.status for r in found).most_common()]
    share = f"{matching} of {len(single)} rotations match ({matching / len(single):.1%})"
    return "\n".join([f"{len(found)} rows; {share}.", "", *lines])


def table(found: list[Row]) -> str:
    """Return the Markdown table."""
    names = ("class", "model_type", "layout", "side", "axes", "order", "scalings that match")
    names = (*names, "status")
    lines = [" | ".join(names), "|".join(["---"] * len(names))]
    for row in found:
        scalings = "all" if len(row.scalings) == 8 else "; ".join(row.scalings)
        status = "; ".join([row.status, *row.notes])
        cells = (row.name, row.model_type, row.layout, row.side, row.axes, row.order, scalings)
        cells = (*cells, status)
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def text(found: list[Row]) -> str:
    """Return the page."""
    programs = "\n\n".join(
        f"### {name}\n\n{title}\n\n```python\n{code.strip()}\n```"
        for name, (title, code) in DEFECTS.items()
    )
    parts = (HEAD, "## Counts\n", counts(found), "\n## Defects of theirs\n", programs)
    return "\n".join([*parts, "\n## Classes\n", table(found)]) + "\n"


if __name__ == "__main__":
    found = rows()
    TARGET.write_text(text(found), encoding="utf-8")
    print(counts(found))
