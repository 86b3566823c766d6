"""Faults of a page in the browser: axe-core, console errors, sideways scrolling, dead forms.

Knows nothing of pytest or of what the page is about.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from playwright.sync_api import ConsoleMessage, Error, Page

AXE = Path(settings.BASE_DIR) / "static" / "node_modules" / "axe-core" / "axe.min.js"
# All rules, and those whose answer depends on colours and widths.
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LOOKS = ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]
DESKTOP, PHONE = (1280, 900), (390, 844)
# Forms that the server will refuse, as they carry no proof that they are ours.
UNGUARDED_FORMS = """() => [...document.querySelectorAll("form[method=post]")]
  .filter((form) => !form.querySelector("input[name=csrfmiddlewaretoken]"))
  .map((form) => form.action)"""
# Name a folder here to keep pictures of what was audited.
SHOTS = os.environ.get("SCREENSHOTS", "")


@contextmanager
def complaints(page: Page) -> Iterator[list[str]]:
    """Collect what the browser's console reports meanwhile: errors, exceptions, broken policy."""
    found: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            found.append(f"console: {message.text}")

    def note_exception(error: Error) -> None:
        found.append(f"exception: {error}")

    page.on("console", note)
    page.on("pageerror", note_exception)
    yield found
    page.remove_listener("console", note)
    page.remove_listener("pageerror", note_exception)


def faults(page: Page, name: str) -> list[str]:
    """Serious faults of the page as it stands, in both themes and at both widths.

    Half of the names get light on the phone and dark on the desk, the others the reverse. All rules are
    checked on the light side, the dark one gets those that depend on the look.
    """
    found = [f"form without its token: {action}" for action in page.evaluate(UNGUARDED_FORMS)]
    # By the debugging protocol, because the page's own policy forbids foreign scripts.
    protocol = page.context.new_cdp_session(page)
    protocol.send("Runtime.evaluate", {"expression": AXE.read_text()})
    themes = ("light", "dark") if zlib.crc32(name.encode()) % 2 else ("dark", "light")
    for (width, height), theme in zip((DESKTOP, PHONE), themes, strict=True):
        page.set_viewport_size({"width": width, "height": height})
        # Without motion, or colours would be judged halfway between two themes.
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
        look = f"{theme}, {width} px"
        found += [f"{look}: {fault}" for fault in axe(protocol, TAGS if theme == "light" else LOOKS)]
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wide > 0:
            found.append(f"{look}: scrolls sideways by {wide} px")
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}-{theme}.png", full_page=True)
    protocol.detach()
    return found


def axe(protocol: Any, rules: list[str]) -> list[str]:
    """Return the serious and critical findings of rules or tags, with the elements that they are about."""
    options = json.dumps({"runOnly": rules, "resultTypes": ["violations"]})
    answer = protocol.send(
        "Runtime.evaluate",
        {"expression": f"axe.run(document, {options})", "awaitPromise": True, "returnByValue": True},
    )
    assert "exceptionDetails" not in answer, answer
    return [
        f"{finding['id']} ({finding['impact']}): {node['html'][:160]} {node['failureSummary']}"
        for finding in answer["result"]["value"]["violations"]
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"][:4]
    ]
