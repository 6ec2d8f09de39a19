"""The documentation site: what its sources promise, and how its pages look to a browser.

The browser tests read the built site, `docs/_build/html`, and require Chromium; without either they are skipped.
"""

import ast
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

import skve
from skve.testing import ToyClassifier
from tests.test_reporting import Texts, texts

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "docs" / "_build" / "html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def documented():
    """Return the names on the API page, each with its module."""
    names, module = [], None
    for line in (ROOT / "docs" / "api" / "index.rst").read_text("utf-8").splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.removeprefix(".. currentmodule:: ")
        elif re.fullmatch(r"   \w+", line):
            names.append(f"{module}.{line.strip()}")
    return names


def public():
    """Return the names that the package and its modules list as theirs."""
    names = {f"skve.{name}" for name in skve.__all__ if not name.startswith("__")}
    for module in ("uncertainty", "metrics", "plots", "testing"):
        tree = ast.parse((ROOT / "skve" / module / "__init__.py").read_text("utf-8"))
        listed = next(
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        names |= {f"skve.{module}.{name}" for name in ast.literal_eval(listed)}
    for module in ("datasets", "exceptions"):
        tree = ast.parse((ROOT / "skve" / f"{module}.py").read_text("utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = [node.name for node in tree.body if isinstance(node, kinds)]
        names |= {f"skve.{module}.{name}" for name in found if name[0] != "_"}
    names |= {"skve.diagnosis.Diagnosis", "skve.diagnosis.Finding", "skve.reporting.Report"}
    return names - {"skve.uncertainty.predict_uncertainty"}  # documented as skve.predict_uncertainty


def test__api_page__public_names__all_and_no_others():
    assert sorted(documented()) == sorted(public())


def test__gallery__examples__all_in_its_order():
    text = (ROOT / "docs" / "conf.py").read_text("utf-8")
    listed = re.search(r"^EXAMPLES = (\[.*?\])", text, re.DOTALL | re.MULTILINE)
    examples = (ROOT / "examples").glob("plot_*.py")
    assert sorted(ast.literal_eval(listed[1])) == sorted(path.name for path in examples)


def test__html_repr__address_of_the_documentation__links_to_the_page_of_the_class(monkeypatch):
    assert "API" not in ToyClassifier()._repr_html_()
    monkeypatch.setattr(skve, "DOCUMENTATION", "https://example.org/skve/")
    page = "https://example.org/skve/api/generated/skve.SVEClassifier.html"
    assert f'href="{page}"' in skve.SVEClassifier()._repr_html_()
    assert page.removeprefix("https://example.org/skve/api/generated/")[:-5] in documented()


NOTEBOOK = json.loads((ROOT / "docs" / "guide" / "labels.ipynb").read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test__notebook__stored__without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow  # 30 seconds
def test__notebook__run__most_wrong_labels_found_and_no_accuracy_lost():
    pytest.importorskip("matplotlib").use("Agg")
    names = {}
    for cell in CODE:
        exec("".join(cell["source"]), names)
    assert names["found"] > len(names["wrong"]) / 2
    assert names["accuracy_after"] >= names["accuracy_before"]


@pytest.fixture(scope="module")
def site():
    """Serve the built site, and return its address."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    if not (SITE / "index.html").exists():
        pytest.skip("the site is not built: python -m sphinx -W docs docs/_build/html")
    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


# Headless windows are at least 500 pixels wide; a frame is as narrow as a telephone. It tells how wide its page is.
NARROW = """<iframe width=400 height=900 src="{address}" onload="
    const page = this.contentDocument.documentElement;
    document.body.append('page of ' + page.scrollWidth + ' in ' + page.clientWidth);
"></iframe>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        address = self.path.removeprefix("/narrow")
        if address == self.path:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(NARROW.format(address=address).encode())

    def log_message(self, *args):
        pass


def browse(address, folder, *options):
    """Return the page as the browser has it when its scripts have run, and what it writes to its console."""
    switches = "headless no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
    done = subprocess.run(
        [CHROMIUM, *(f"--{switch}" for switch in switches.split())]
        + [f"--user-data-dir={folder}", "--enable-logging=stderr", "--virtual-time-budget=8000", *options, address],
        capture_output=True,
        text=True,
        timeout=180,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # What the theme says it does, and scikit-learn's view of an estimator whose output features are many.
    usual = ('"[PST]', '"Expected copy-paste icon is missing')
    return done.stdout, [line for line in console if not any(text in line for text in usual)]


@pytest.mark.parametrize(
    ("page", "content"),
    [
        ("index.html", "Your own photos"),
        ("api/generated/skve.SVEClassifier.html", "head_weight_decay"),
        ("api/generated/skve.metrics.aurc.html", "<math"),
        ("auto_examples/plot_first_look.html", "sphx_glr_plot_first_look_001.png"),
        ("guide/labels.html", "wrong labels are among the suspects\n"),
    ],
)
def test__site__page_in_a_browser__rendered_without_errors(site, page, content, tmp_path):
    dom, console = browse(site + page, tmp_path, "--dump-dom")
    assert content in dom
    assert console == []


@pytest.mark.parametrize(
    "page", ["index.html", "guide/choosing.html", "api/generated/skve.SVEClassifier.html", "guide/labels.html"]
)
def test__site__400_pixels_wide__nothing_beyond_the_edge(site, page, tmp_path):
    dom, _ = browse(site + "narrow/" + page, tmp_path, "--dump-dom")
    width, window = re.search(r"page of (\d+) in (\d+)</body>", dom.replace("\n", "")).groups()
    assert int(width) <= int(window) <= 400


def test__site__search__finds_calibration(site, tmp_path):
    dom, console = browse(site + "search.html?q=calibration", tmp_path, "--dump-dom")
    results = dom.partition('id="search-results"')[2]
    assert "calibration" in results.lower()
    assert results.count("<li") > 3
    assert console == []


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test__report__in_a_browser__rendered_and_printed(tmp_path):
    X, y = texts()
    path = tmp_path / "report.html"
    skve.report(Texts(), X, y, X_ood=["<i>foreign</i>"], path=path)
    dom, console = browse(path.as_uri(), tmp_path / "browser", "--dump-dom")
    assert "How good is it?" in dom
    assert "&lt;b&gt;text&lt;/b&gt;" in dom
    assert console == []
    browse(path.as_uri(), tmp_path / "browser", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
