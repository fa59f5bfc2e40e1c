# SPDX-License-Identifier: Apache-2.0
"""The page as chromium shows it, and what its lines do in the tools that they are for."""
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from tests.kit import images
from tests.kit.browser import Browser
from tests.kit.images import Layout, Spec
from tests.kit.processes import Minipull, Serve, Tool, end, minipull_env

@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A registry with 30 images: schema 2 and OCI, for several platforms, of shared layers, with long names."""
    folder = tmp_path_factory.mktemp("page")
    server = Serve(folder, folder / "root", "--writable")
    base, python = [Spec(90000, seed=1)], [Spec(60000, seed=2), Spec(9000, seed=3)]
    for docker in (False, True):
        layout = Layout(folder / str(docker), docker)
        for number in range(14):
            own = [Spec(3000 * (number + 1), seed=10 + number)]
            layout.image([*base, *(python if number % 2 else []), *own], "x")
            name = "schema2/app-%d" % (number // 4) if docker else "team/%s/app" % ("long-name-" * number + "x")
            images.push_layout_http(layout, "x", "%s/%s:v1.%d%s" % (server.host, name, number, "-rc" * number))
        index, _, _ = images.multi_platform(folder / ("index-%s" % docker), "x", docker)
        images.push_layout_http(index, "x", "%s/tools/busybox-%s:1" % (server.host, str(docker).lower()))
    yield server
    server.stop()
    assert server.log.read_text() == ""


def headings(browser: Browser) -> List[str]:
    return list(browser.evaluate("[...document.querySelectorAll('h3')].map(e => e.textContent)"))


def png(data: bytes) -> Tuple[int, int, int]:
    """Return width, height and how many different bytes a PNG has."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    chunks, at = b"", 8
    while at < len(data):
        size, = struct.unpack(">I", data[at:at + 4])
        chunks += data[at + 8:at + 8 + size] if data[at + 4:at + 8] == b"IDAT" else b""
        at += 12 + size
    return width, height, len(set(zlib.decompress(chunks)))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_thirty_images_fit_the_screen(
        browser: Browser, server: Serve, tmp_path: Path, width: int, dark: bool) -> None:
    browser.events.clear()
    browser.size(width, dark=dark)
    browser.open(server.url)
    assert len(headings(browser)) == 30
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width == browser.evaluate("innerWidth")
    wide = browser.evaluate("[...document.querySelectorAll('body *')].filter(e => !e.closest('svg')"
                            " && e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)")
    assert wide == []
    shot = browser.screenshot(tmp_path / "page.png")
    shown, height, colours = png(shot)
    assert shown == width and height > 5000 and colours > 100 and len(shot) > 50000
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    bars = browser.evaluate("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width)")
    assert len(bars) == 28 + 2 * len(images.PLATFORMS) and min(bars) > width * 0.7
    # Nothing but the page is asked for, and its policy forbids nothing that it needs.
    asked = [event["params"]["request"]["url"] for event in browser.events
             if event.get("method") == "Network.requestWillBeSent"]
    assert asked == [server.url + "/"]
    assert [event for event in browser.events if event.get("method") == "Log.entryAdded"] == []


def test_a_filter_is_typed_and_taken_back_without_a_mouse(browser: Browser, server: Serve) -> None:
    browser.size(1280)
    browser.open(server.url)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.id") == "q"
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.call("Input.insertText", text="Busybox-FALSE")
    browser.forget("Page.loadEventFired")
    browser.press("Enter", 13, "\r")
    browser.wait("Page.loadEventFired")
    assert browser.evaluate("location.search") == "?q=Busybox-FALSE" and headings(browser) == ["1"]
    assert browser.evaluate("document.querySelector('h2:not(details h2)').textContent") == "tools/busybox-false"
    for _ in range(3):  # the field, its button, the link
        browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.textContent") == "Show all"
    browser.forget("Page.loadEventFired")
    browser.press("Enter", 13, "\r")
    browser.wait("Page.loadEventFired")
    assert len(headings(browser)) == 30


def test_a_line_is_selected_by_a_click_and_pulls_the_image(
        browser: Browser, server: Serve, tmp_path: Path, run_minipull: Minipull, podman: Tool) -> None:
    browser.size(360)
    browser.open(server.url + "/?q=app-2:v1.9")
    lines = {}
    browser.click("main summary")
    for position, tool in enumerate(("docker", "containerd", "k3s", "podman", "minipull"), 1):
        browser.click("main dd:nth-of-type(%d) code" % position)
        lines[tool] = str(browser.evaluate("getSelection().toString()"))
    name = "%s/schema2/app-2:v1.9%s" % (server.host, "-rc" * 9)
    assert {line.rpartition(" ")[2] for line in lines.values()} == {name}
    browser.click("main p code")
    digest = browser.evaluate("getSelection().toString()")
    root = tmp_path / "pulled"
    python, module, package, *words = lines["minipull"].split()
    assert (python, module, package) == ("python3", "-m", "minipull")
    done = run_minipull("--root", root, *words)
    assert done.code == 0 and "Digest: %s\n" % digest in done.out, done
    command, *words = lines["podman"].split()
    assert command == "podman" and podman(*words).out.strip()


def test_a_bundle_shows_its_images(
        browser: Browser, server: Serve, tmp_path: Path, home: Path, run_minipull: Minipull) -> None:
    name = "%s/tools/busybox-false:1" % server.host
    assert run_minipull("--root", home / "near", "pull", "-q", "--all-platforms", name).code == 0
    assert run_minipull("--root", home / "near", "save", "--bundle", "-o", "site.pyz", name).code == 0
    with subprocess.Popen([sys.executable, "-I", str(home / "site.pyz"), "serve", "--listen", "127.0.0.1:0"],
                          stdout=subprocess.PIPE, env=minipull_env(home), cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            browser.size(360)
            browser.open(process.stdout.readline().decode().split()[-1])
            assert headings(browser) == ["1"]
            assert browser.evaluate("document.querySelectorAll('svg').length") == len(images.PLATFORMS)
            line = browser.evaluate("document.querySelector('main dd:last-of-type code').textContent")
            done = run_minipull("--root", home / "pulled", *line.split()[3:])
            assert done.code == 0 and "Status: Downloaded newer image" in done.out, done
        finally:
            end(process)
