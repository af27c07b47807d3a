"""TensorBoard in a real browser: every tab shows the data of real runs. Needs Chromium and its driver."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from framework.recipes.train import run
from tests.recipes.test_recipes import configure

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromium-driver, Debian's packages"),
]
ROOT = Path(__file__).parents[2]
OPTIONS = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1500,1200")
# The text of each visible element that a selector finds, within the shadow trees of TensorBoard's components, too.
TEXTS = """
const inner = node => [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes];
const text = node => node.nodeType === 3 ? node.data.trim()
  : ['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.tagName) ? '' : inner(node).map(text).filter(Boolean).join(' ');
const found = [];
const walk = root => {
  found.push(...root.querySelectorAll(arguments[0]));
  root.querySelectorAll('*').forEach(element => element.shadowRoot && walk(element.shadowRoot));
};
walk(document);
return found.filter(element => element.getBoundingClientRect().width > 0).map(text);
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small run by each of two optimizers, one with a penalty, and one that fails."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=4"]
    extra = ["logger.graph=true", "logger.histograms=8"]
    chosen = {"adam": ["optimizer=adam", *extra], "sparsa": ["optimizer=sparsa", "penalty=l1", *extra]}
    for name, overrides in chosen.items():
        run(configure("toy_regression", folder / name, *common, *overrides), folder / name)
    with pytest.raises(ValueError, match="diverged"):
        run(configure("toy_regression", folder / "failed", "optimizer=sgd", "optimizer.lr=1e6"), folder / "failed")
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Serve the runs by ``proxtrain-tensorboard``."""
    options = ["--port=0", "--host=127.0.0.1", "--reload_interval=2"]
    command = [sys.executable, "-m", "framework.recipes.board", str(runs), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for option in OPTIONS:
        options.add_argument(f"--{option}")
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def seen(driver: webdriver.Chrome, address: str) -> Callable[..., list[str]]:
    """Open a tab, and return the texts of what a selector finds there, once they are as wanted."""

    def wait(tab: str, selector: str, is_there: Callable[[str], Any], *, least: int = 1) -> list[str]:
        driver.get("about:blank")
        driver.get(f"{address}#{tab}")
        texts: list[str] = []
        for _ in range(120):
            texts = driver.execute_script(TEXTS, selector)
            if len(texts) >= least and is_there(" ".join(texts)):
                return texts
            time.sleep(0.5)
        raise AssertionError(f"{tab} shows {texts}")

    return wait


def test_time_series_have_curves(seen):
    seen("timeseries", "scalar-card", lambda text: "optimizer=adam, " in text and "optimizer=sparsa, " in text)
    groups = seen("timeseries", "metrics-card-group-toolbar", lambda text: "train" in text and "val" in text)
    assert len(groups) > 5


def test_losses_come_first(seen):
    pinned = seen("timeseries", "metrics-pinned-view scalar-card", lambda text: "optimizer=adam" in text, least=3)
    assert [card.partition(" Alt")[0].replace(" ", "") for card in pinned] == [
        "train/objective",
        "train/loss_epoch",
        "val/loss",
    ]


def test_scalars_have_curves(seen):
    seen("scalars", "tf-scalar-card", lambda text: "closure_evaluations" in text)
    seen("scalars", "path.line", lambda _: True, least=3)


def test_training_and_validation_share_a_chart(seen):
    card = "tf-custom-scalar-multi-line-chart-card"
    charts = seen("custom_scalars", card, lambda text: "Matches (0)" not in text, least=8)
    wanted = {
        "loss: training and validation": ("train/loss_epoch", "val/loss"),
        "f, g and f + g": ("train/loss", "train/penalty", "train/objective"),
        "sparsity: share of exact zeros": ("sparsity/network/penalized",),
        "evaluations per step": ("evaluations_per_step",),
        "gradient norm": ("grad_norm",),
    }
    for title, tags in wanted.items():
        chart = next(chart for chart in charts if chart.startswith(title))
        assert all(f"{tag} (optimizer=sparsa, " in chart for tag in tags)
    assert charts[0].startswith("loss")
    assert "val/loss (optimizer=adam, " in charts[0]
    seen("custom_scalars", "path.line", lambda _: True, least=10)


def test_pictures_have_a_slider(seen):
    seen("images", "tf-image-loader", lambda text: "fit" in text, least=2)
    seen("images", "img", lambda _: True, least=2)
    seen("images", "paper-slider", lambda _: True, least=2)


def test_the_graph_is_drawn(seen):
    seen("graphs", "tf-graph-scene", lambda text: all(part in text for part in ("input", "MLP", "output")))


@pytest.mark.parametrize("tab", ["distributions", "histograms"])
def test_weights_and_gradients_are_distributions(seen, tab):
    chart = {"distributions": "tf-distribution-loader", "histograms": "tf-histogram-loader"}[tab]
    seen(tab, chart, lambda text: "gradients/network.1.weight" in text, least=4)
    seen(tab, {"distributions": "path.area", "histograms": "path"}[tab], lambda _: True, least=20)


def test_text_says_what_was_run(seen):
    wanted = ("_target_: torch.optim.Adam", "network.1 Linear", "proxtrain")
    seen("text", "tf-markdown-view", lambda text: all(part in re.sub(" +", " ", text) for part in wanted), least=9)


def test_hyperparameters_have_a_row_for_each_run_also_the_one_that_failed(seen):
    cells = seen("hparams", "vaadin-grid-cell-content", lambda text: all(s in text for s in ("Adam", "SpaRSA", "SGD")))
    columns = [cell for cell in cells if cell in ("lr", "model", "optimizer", "penalty", "recipe", "val/loss")]
    assert columns == ["lr", "model", "optimizer", "penalty", "recipe", "val/loss"]
    names = [cell for cell in cells if cell.startswith("optimizer=")]
    assert sorted(name.rpartition(", ")[2] for name in names) == ["adam", "failed", "sparsa"]
