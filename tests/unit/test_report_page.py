import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

import pytest

from simplerl.report.page import BROWSER, FORMULAS, LIVE, policy, render_page

ASSETS = files("simplerl.report") / "assets"


def waiting(**values):
    return render_page("waiting.html.j2", title="run", reason="no <step> yet", **values)


def test_the_policy_allows_exactly_the_scripts_of_the_page():
    page = waiting(live="abc")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {b64encode(sha256(script.encode()).digest()).decode() for script in scripts}
    allowed = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert set(re.findall(r"sha256-([\w+/=]+)", allowed.replace("&#39;", "'"))) == hashes
    assert "unsafe-eval" not in allowed and "unsafe-inline" not in allowed.partition("script-src")[2]


def test_only_a_live_page_may_ask_and_only_its_own_server():
    assert "connect-src 'self'" in policy(["x"], live=True)
    assert "connect-src" not in policy(["x"], live=False)
    assert "script-src 'none'" in policy([], live=False)


def test_what_a_page_says_is_escaped():
    assert "no &lt;step&gt; yet" in waiting()
    assert 'data-version="abc"' in waiting(live="abc")


@pytest.mark.parametrize("name", [*BROWSER, *LIVE])
def test_our_scripts_never_make_markup_of_text(name):
    code = (ASSETS / name).read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|srcdoc", code)


@pytest.mark.parametrize("name", [*FORMULAS, *BROWSER, *LIVE, "report.css"])
def test_what_is_put_into_a_page_does_not_end_its_element(name):
    code = (ASSETS / name).read_text(encoding="utf-8")
    assert not re.search(r"</(script|style)|<!--|@import|url\(", code, re.IGNORECASE)


def test_the_formula_setter_is_the_one_whose_licence_stands_beside_it():
    assert "MIT" in (ASSETS / "temml.LICENSE").read_text(encoding="utf-8")
    assert (ASSETS / "temml.min.js").read_text(encoding="utf-8").startswith("var temml=")
