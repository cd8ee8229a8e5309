"""The frame of a page: its style, its scripts, and a policy that forbids any other script and any download."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache, partial
from hashlib import sha256
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

import simplerl
from simplerl.report.examples import pieces
from simplerl.report.plain_text import visible
from simplerl.report.summary import in_percent, interval

FORMULAS = ("temml.min.js",)
BROWSER = ("text.js", "browser.js")
LIVE = ("live.js",)
NOTHING = "'none'"
FRAME = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of a served page: other sites cannot embed or read it, and get no referrer."""


def render_page(template: str, *, live: str = "", scripts: bool = True, **context: Any) -> str:
    """A page as HTML. `live` is the version of a page that follows its run; without `scripts` the page forbids all."""
    wanted = [FORMULAS, (*BROWSER, *LIVE) if live else BROWSER] if scripts or live else []
    codes = ["".join(_asset(name) for name in names) for names in wanted]
    frame = {"version": simplerl.__version__, "style": Markup(_asset("report.css")), "live": live}
    frame |= {"scripts": [Markup(code) for code in codes], "policy": policy(codes, live=bool(live))}
    return _environment().get_template(template).render(**frame, **context)


def policy(codes: Sequence[str], *, live: bool) -> str:
    """The content security policy for a page with these scripts; a live one may request its own server."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'" for code in codes)
    rules = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src {hashes or NOTHING}"]
    return "; ".join([*rules, *["connect-src 'self'"] * live, "base-uri 'none'", "form-action 'none'"])


@cache
def _asset(name: str) -> str:
    return (files("simplerl.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simplerl.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": in_percent, "interval": interval, "shown": partial(visible, most=200)}
    environment.globals["pieces"] = pieces
    return environment
