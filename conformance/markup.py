"""What all that is drawn from a template has in common."""

from __future__ import annotations

import jinja2

from rotary.conformance.junit import printable


def environment() -> jinja2.Environment:
    """Return a place for templates: everything is escaped, and nothing missing stays empty."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("rotary.conformance"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup, such as an included template, is a str of its own and stays one.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def clipped(text: str, most: int) -> str:
    """Return at most so many characters of a text."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
