"""The page of `dp-curriculum app`, opened in a browser and called by a program."""

import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from diffusers_dp_curriculum import ClassConditionalPipeline, cli
from diffusers_dp_curriculum.commands.app import describe
from diffusers_dp_curriculum.privacy.accounting import round_up
from helpers import tiny_scheduler, tiny_unet, write_privacy_json
from helpers.browser import CHROMIUM, Browser


# The address of the grid, once it is shown.
GRID = "Array.from(document.images).filter(i => i.src.includes('file=') && i.naturalWidth > 100).map(i => i.src)[0]"


@pytest.fixture
def page(hub, tmp_path):
    """The address of the page of a model, and the model's directory."""
    pipe = ClassConditionalPipeline(tiny_unet(), tiny_scheduler(), id2label={0: "sneaker", 1: "ankle boot", 2: "bag"})
    pipe.save_pretrained(tmp_path / "shoes")
    write_privacy_json(tmp_path / "shoes" / "privacy.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "diffusers_dp_curriculum.cli", "app", tmp_path / "shoes", "--port", str(port)]
    environment = hub.environment(tmp_path / "hf", GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(600):
            if process.poll() is not None or "Running on" in (tmp_path / "log").read_text():
                break
            time.sleep(0.2)
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_page_says_what_is_guaranteed_also_by_files_of_older_versions(tmp_path):
    path = write_privacy_json(tmp_path / "privacy.json")
    privacy = json.loads(path.read_text())
    described = describe(path)
    assert "with respect to zeroing out one record of the 60. The figure is for this run alone: further" in described
    assert "| dp_sgd | 2 | 0.1 | 10 | 1 |" in described
    for entry in privacy["mechanisms"]:
        del entry["run"]
    del privacy["runs"], privacy["scope"]
    path.write_text(json.dumps({**privacy, "adjacency": "add_or_remove_one_record"}))
    assert describe(path) == described


def test_without_gradio_one_sentence_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["app", "shoes"]) == 1
    assert capsys.readouterr().err == (
        "error: The page needs gradio: install it by `pip install 'diffusers-dp-curriculum[app]'`.\n"
    )


def test_a_program_gets_samples_and_reads_why_not(page):
    client = Client(page, verbose=False)
    grid, archive = client.predict(["sneaker", "bag"], 2, 1.0, 2, 0, api_name="/sample")
    assert Image.open(grid).mode == "RGB"
    with zipfile.ZipFile(archive) as images:
        assert images.namelist() == ["00_sneaker.png", "01_sneaker.png", "02_bag.png", "03_bag.png"]
    for classes, message in (([], "Choose at least one class"), (["sneaker", "ankle boot", "bag"] * 10, "at most 64")):
        with pytest.raises(AppError, match=message):
            client.predict(classes, 8, 1.0, 2, 0, api_name="/sample")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_visitor_sees_the_budget_and_samples_and_takes_them_home(page, tmp_path):
    with Browser(tmp_path / "profile") as browser:

        def toggle(box):
            browser.run(f"document.querySelectorAll('input[type=checkbox]')[{box}].click()")

        def sample():
            browser.run("Array.from(document.querySelectorAll('button')).find(b => b.innerText == 'Sample').click()")

        browser.open(page)
        first = browser.wait_for(GRID)
        text = browser.text()
        privacy = json.loads((tmp_path / "shoes" / "privacy.json").read_text())
        assert f"({round_up(privacy['epsilon'])}, 1e-05)-differentially private with respect to" in text
        assert all(name in text for name in ("sneaker", "ankle boot", "bag"))
        browser.screenshot(tmp_path / "page.png")

        link = browser.wait_for("(document.querySelector('a[href*=\"images.zip\"]') || {}).href")
        with zipfile.ZipFile(io.BytesIO(urllib.request.urlopen(link).read())) as archive:
            names = archive.namelist()
            assert [name[3:] for name in names] == ["sneaker.png"] * 8 + ["ankle_boot.png"] * 8 + ["bag.png"] * 8
            assert Image.open(archive.open(names[0])).size == (8, 8)

        toggle(1), toggle(2), sample()
        browser.wait_for(f"{GRID} && {GRID} != {json.dumps(first)}")
        toggle(0), sample()
        browser.wait_for("document.body.innerText.includes('Choose at least one class.')")
