"""The picture of the page that README.md shows: python tests/browser/screenshot.py, after `repro site`."""

import io
from pathlib import Path

from conftest import OPTIONS, chromium
from PIL import Image
from playwright.sync_api import sync_playwright

FIGURES = Path(__file__).parents[2] / "figures"


def main():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        page.goto((FIGURES / "site" / "index.html").as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        for depth, unit in ((1, 2), (1, 14), (2, 4), (2, 9)):
            page.get_by_role("button", name=f"Layer {depth}, neuron {unit}", exact=True).click()
        page.get_by_role("radio", name="Measured").check()
        page.get_by_role("slider").fill("6")
        page.mouse.move(5, 5)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1500)  # everything has moved to its place
        bottom = page.locator("#widget-memorization").bounding_box()
        height = int(bottom["y"] + bottom["height"] + page.evaluate("scrollY")) + 30
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).crop((0, 0, 1200, height))
        browser.close()
    picture.convert("RGB").quantize(200, dither=Image.Dither.NONE).save(FIGURES / "site.png", optimize=True)
    print(f"{FIGURES / 'site.png'}: {(FIGURES / 'site.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
