"""Reports in a real browser: nothing on the console, nothing from the network, readable on every screen, usable by keyboard.

The browser is that of `$CHROMIUM`, of the system, or of `playwright install chromium`.  With `GRAPHPRUNE_SCREENSHOTS=FOLDER` the
tests leave pictures there, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import pytest
from click.testing import Result
from nets import plain, residual, write
from test_report import NASTY, renamed

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "fashion_mnist"
SCREENS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
    "phone, dark": {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
}

CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const own = parts(getComputedStyle(element).backgroundColor);
      if (own.length < 4 || own[3] > 0) return own;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (element.closest("title, script")) continue;
    const style = getComputedStyle(element);
    const colours = [parts(element.closest("svg") ? style.fill : style.color), behind(element)].map(luminance);
    const ratio = (Math.max(...colours) + 0.05) / (Math.min(...colours) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName} ${element.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page that was opened, with all that it complained about and asked for."""

    def __init__(self, browser: Any, path: Path, screen: str) -> None:
        self.page = browser.new_context(**SCREENS[screen]).new_page()
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("dialog", lambda dialog: self.console.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.blocked: list[str] = []
        self.page.on("requestfailed", lambda request: self.blocked.append(f"{request.url}: {request.failure}"))
        self.page.goto(path.as_uri())
        folder = os.environ.get("GRAPHPRUNE_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=f"{folder}/{path.stem}-{screen.replace(', ', '-')}.png", full_page=True)

    def check(self) -> None:
        assert self.console == []
        assert self.requests == [self.page.url]
        width = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], "the page is wider than the screen"
        assert self.page.evaluate(CONTRAST) == []


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One report of each kind."""
    from click.testing import CliRunner

    from graphprune.cli import main

    folder = tmp_path_factory.mktemp("reports")
    model = str(EXAMPLE / "model.onnx")
    samples = ["--eval", str(EXAMPLE / "eval.npz")]
    target = ["--target", "macs=0.5"]
    runs = {
        "prune": ["prune", model, "-o", str(folder / "out.onnx"), *target, "--measure", *samples, "--report"],
        "compare": ["compare", model, *samples, *target, "--target", "macs=0.2", "--recipes", "fast", "--report"],
        "view": ["view", model, "-o"],
    }
    for name, arguments in runs.items():
        result = CliRunner().invoke(main, [*arguments, str(folder / f"{name}.html")])
        assert result.exit_code == 0, result.output
    return {name: folder / f"{name}.html" for name in runs}


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("kind", ["prune", "compare", "view"])
def test_a_report_on_a_screen(browser: Any, reports: dict[str, Path], kind: str, screen: str) -> None:
    Opened(browser, reports[kind], screen).check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["prune", "compare", "view"])
def test_a_report_is_accessible(browser: Any, reports: dict[str, Path], kind: str, scheme: str) -> None:
    """By the rules of axe (WCAG 2 and good practice), with everything unfolded."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    page.goto(reports[kind].as_uri())
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in axe.run(page).response["violations"]] == []


def test_layers_answer_to_pointer_and_keys(browser: Any, reports: dict[str, Path]) -> None:
    opened = Opened(browser, reports["prune"], "light")
    readout = opened.page.locator(".readout")
    opened.page.locator(".layer").nth(4).hover()
    assert readout.inner_text().startswith("5. /res2/conv1/conv/Conv: Conv; 32 → 24 channels")
    opened.page.locator(".scroll", has=opened.page.locator(".strip")).focus()
    opened.page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("6. ")
    for _ in range(40):
        opened.page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("24. ")
    assert opened.page.locator(".layer.on").count() == 1
    opened.check()


@pytest.mark.parametrize("kind", ["prune", "view"])
def test_a_group_shows_its_layers_until_it_is_clicked_again(browser: Any, reports: dict[str, Path], kind: str) -> None:
    opened = Opened(browser, reports[kind], "light")
    button = opened.page.locator("button.group", has_text="res1.conv2.conv.weight:0")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert opened.page.locator(".layer.holds").count() == 4
    assert opened.page.locator(".layer.reads").count() == 3
    assert opened.page.locator(".rail.on").count() == 1
    group = opened.page.locator(".rail:not(.on)").first.get_attribute("data-group")
    other = opened.page.locator(f".rail[data-group='{group}']")
    other.locator(".hit").click(force=True)
    assert button.get_attribute("aria-pressed") == "false"
    assert opened.page.locator(".rail.on").count() == 1
    other.locator(".hit").click(force=True)
    assert opened.page.locator(".layer.holds, .layer.reads, .rail.on").count() == 0
    opened.check()


def test_everything_is_printed(browser: Any, reports: dict[str, Path]) -> None:
    opened = Opened(browser, reports["view"], "dark")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details:not([open])").count() == 0
    opened.page.emulate_media(media="print", color_scheme="light")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.pdf()[:4] == b"%PDF"


READABLE = [name for name in NASTY[:8] if not any(category(each) == "Cc" for each in name)]
"""Files with control characters in names are refused before there is a report."""


@pytest.mark.parametrize("name", READABLE, ids=lambda name: name.encode("unicode_escape").decode()[:20])
def test_hostile_names_do_nothing(browser: Any, tmp_path: Path, graphprune_cli: Callable[..., Result], name: str) -> None:
    model, html = write(renamed(name), tmp_path / "model.onnx"), tmp_path / "r.html"
    arguments = ["--target", "channels=0.5", "--align", "1", "--report", html]
    result = graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *arguments)
    assert result.exit_code == 0, result.output
    opened = Opened(browser, html, "phone")
    opened.check()
    assert opened.page.locator("main img, main script, main [onclick], main [onload]").count() == 0


def test_the_policy_holds_against_what_would_be_injected(
    browser: Any, tmp_path: Path, graphprune_cli: Callable[..., Result]
) -> None:
    """Even a script that got into the page would not run, and nothing would be fetched."""
    model, html = write(residual(), tmp_path / "model.onnx"), tmp_path / "r.html"
    assert graphprune_cli("view", model, "-o", html).exit_code == 0
    bad = (
        "<script>document.title = 'taken'</script><img src='https://example.invalid/x.png'><p style='color:red' onclick='1'>x</p>"
    )
    html.write_text(html.read_text().replace("</main>", f"{bad}</main>"))
    opened = Opened(browser, html, "light")
    assert opened.page.title() == "model.onnx, groups - graphprune"
    assert opened.blocked == ["https://example.invalid/x.png: csp"]
    assert sum("Content Security Policy" in text for text in opened.console) >= 3


def test_small_networks_of_every_kind(browser: Any, tmp_path: Path, graphprune_cli: Callable[..., Result]) -> None:
    np.savez(tmp_path / "e.npz", x=np.zeros((4, 3, 8, 8), np.float32), labels=np.arange(4))
    for name, model in {"plain": plain(), "residual": residual()}.items():
        path, html = write(model, tmp_path / f"{name}.onnx"), tmp_path / f"{name}.html"
        arguments = ["--target", "channels=0.5", "--align", "1", "--mode", "unconstrained", "--report", html, "--no-verify"]
        assert graphprune_cli("prune", path, "-o", tmp_path / "out.onnx", *arguments).exit_code == 0
        Opened(browser, html, "phone, dark").check()
