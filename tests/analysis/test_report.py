from __future__ import annotations

import base64
import json
import sys
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
import pandas as pd
import pytest
from matplotlib.figure import Figure
from optuna.study import Study
from optuna.trial import TrialState
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from carbs.analysis.front.model import FrontModel, fit_front
from carbs.analysis.front.trials import trials_frame
from carbs.analysis.laws.power import ComputeLaw
from carbs.analysis.laws.power_fits import fit_compute_law
from carbs.analysis.planning.plan import fit_front_law
from carbs.analysis.report.interactive import interactive_front
from carbs.analysis.report.plots import front_trials
from carbs.analysis.report.report import category_shares, write_report
from carbs.records import Direction
from carbs.search_space import Param, SearchSpace
from carbs.spaces import ChoiceSpace, LinearSpace, LogSpace, MixtureSpace
from carbs.study import (
    FAILURE,
    FORGOTTEN,
    PREDICTED,
    STOPPED,
    create_study,
    distributions,
    flatten,
    records,
)

SCRIPT = "<script>alert(1)</script>"
WIDTH = Param("width", LogSpace(min=1, is_integer=True), 32)
MIX = Param("mix", MixtureSpace(["code", "<b>prose</b>"]), {"code": 0.5, "<b>prose</b>": 0.5})
PARAMS = [
    WIDTH,
    Param('drop"<i>out', LinearSpace(min=0, max=1, scale=0.2), 0.3),
    Param("optimizer", ChoiceSpace(["adam", "<u>sgd"]), "adam"),
    MIX,
]
CHECK: dict[str, Any] = {
    "cost_factor": 8.0,
    "level": 0.9,
    "params": {"width": 512, "mix": {"code": 1e-5, "<b>prose</b>": 0.99999}},
    "predicted_output": 2.1,
    "predicted_output_interval": [2.0, 2.3],
    "predicted_cost": 1800.0,
    "predicted_cost_interval": [1600.0, 2000.0],
    "warnings": ["width < 16 lies on its <b>bound</b>"],
}

# By the twelve finished trials of `make_study`, its failures, and the one without an output.
SPENT = sum(10 ** (i / 5) for i in range(12)) + 2 + 1.5 + 3


def measured(output_inside: bool, cost_inside: bool) -> dict[str, Any]:
    return {
        **CHECK,
        "measured_output": 2.22,
        "measured_cost": 1912.0,
        "output_inside": output_inside,
        "cost_inside": cost_inside,
    }


def make_study(
    params: list[Param], *, name: str = "demo", direction: Any = "minimize", fails: bool = True
) -> Study:
    """Twelve finished trials at random, and with ``fails`` one of each other kind."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = np.random.default_rng(0)
    space = SearchSpace(params)
    study = create_study(name, None, direction)
    study.set_user_attr("space", json.dumps([param.model_dump(mode="json") for param in params]))
    named = distributions(space)

    def add(state: TrialState, values: list[float] | None, attributes: dict[str, Any]) -> None:
        z = rng.standard_normal(space.n_dims)
        flat = flatten(space.decode(space.snap(z[None, :])[0]))
        trial = optuna.trial.create_trial(
            state=state,
            values=values,
            params={key: flat[key] for key in named if key in flat},
            distributions={key: named[key] for key in named if key in flat},
            user_attrs=attributes,
        )
        trial.datetime_complete = datetime(2024, 5, 6, 7, 8)
        study.add_trial(trial)

    sign = 1.0 if direction == "minimize" else -1.0
    for i in range(12):
        cost = 10 ** (i / 5)
        output = 5 + sign * (2 * cost**-0.3 + 0.02 * rng.standard_normal())
        predicted = {
            "predicted_output": output,
            "predicted_output_interval": [output - (0.1 if i else -0.1), output + 0.2],
            "predicted_cost": cost * 1.1,
            "predicted_cost_interval": [cost * 0.9, cost * 1.3],
        }
        add(TrialState.COMPLETE, [output, cost], {PREDICTED: predicted})
    if fails:
        for reason, cost in ((f"nan {SCRIPT}", 2.0), (f"nan {SCRIPT}", None), ("memory", 1.5)):
            add(TrialState.FAIL, None, {FAILURE: {"reason": reason, "cost": cost}})
        add(TrialState.FAIL, None, {FORGOTTEN: "the node went away"})
        add(TrialState.COMPLETE, [float("inf"), 3.0], {})
    return study


def fitted(study: Study, params: list[Param], direction: Any = "minimize") -> FrontModel:
    known = records(study.get_trials(), SearchSpace(params))
    return fit_front(SearchSpace(params), known.observations, direction=direction)


@pytest.fixture(scope="module")
def sweep() -> tuple[Study, FrontModel, ComputeLaw]:
    study = make_study(PARAMS, name=f"sweep {SCRIPT}")
    best = front_trials(trials_frame(study))
    law = fit_compute_law(best["cost"], best["output"], n_resamples=20)
    return study, fitted(study, PARAMS), law


class Reader(HTMLParser):
    """Text, tags and attributes; fails where a tag is closed that was not open."""

    VOID = ("meta", "img", "br", "source")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "button"):
            self.rows[-1][-1] += data
        if not {"style", "script"} & set(self.open):
            self.text += data

    def images(self) -> dict[str, bytes]:
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                source, alternative = attributes["src"], attributes["alt"]
                assert source and alternative
                start = "data:image/png;base64,"
                assert source.startswith(start)
                found[alternative] = base64.b64decode(source.removeprefix(start))
        return found


@pytest.fixture(scope="module")
def folder(
    sweep: tuple[Study, FrontModel, ComputeLaw], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    path = write_report(folder, *sweep, measured(True, True))
    assert path == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text())


def test_the_page_needs_no_other_resource(folder: Path, page: Reader) -> None:
    text = (folder / "report.html").read_text()
    assert "http://" not in text and "https://" not in text
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe")]
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]  # our own
    assert "fetch" not in text and "XMLHttp" not in text
    assert "url(" not in text and "@import" not in text
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:")


def test_names_and_reasons_are_escaped(page: Reader) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"b", "u"}
    assert [tag for tag, _ in page.tags].count("script") == 1  # our own
    assert f"sweep {SCRIPT}" in page.text
    assert f"nan {SCRIPT}" in page.text
    assert "<u>sgd" in page.text
    assert 'drop"<i>out' in page.text
    assert "<b>prose</b>" in page.text


def test_every_parameter_has_its_panel(page: Reader) -> None:
    images = page.images()
    for name in ("width", 'drop"<i>out', "optimizer", "mix.code", "mix.<b>prose</b>", "mix"):
        assert f"Best {name} over cost" in images


def test_figures_are_files_and_not_empty(folder: Path, page: Reader) -> None:
    files = {path.read_bytes() for path in (folder / "figures").glob("*.png")}
    images = set(page.images().values())
    assert files == images
    assert len(images) == 10
    assert all(len(image) > 5000 for image in images)


def test_the_title_counts_trials_and_cost(page: Reader) -> None:
    assert "2024-05-06 07:08" in page.text
    assert "12 trials finished" in page.text
    assert "4 failed" in page.text
    assert "1 lost to a machine" in page.text
    assert f"total cost {SPENT:.4g} s (7.24 min)" in page.text


def test_the_summary_comes_first(page: Reader, sweep: tuple[Study, FrontModel, ComputeLaw]) -> None:
    best = front_trials(trials_frame(sweep[0])).iloc[-1]
    said = page.text[: page.text.index("The front and its law")]
    assert f"The lowest output, by trial {best['number']} at a cost of" in said
    assert f"width{best['width']:,}" in said.replace("\n", "")
    assert "Check run: Output and cost came out inside their 90% intervals." in said
    assert "11 of 12 trials came out inside the 90% interval noted before them." in said
    # Twice, four and ten times the dearest run.
    start = page.rows.index(["cost (s)", "output", "90% interval"])
    rows = page.rows[start + 1 : start + 4]
    assert [row[0] for row in rows] == [f"{x * 10**2.2:.4g}" for x in (2, 4)] + ["1,585"]
    for row in rows:
        low, high = map(float, row[2].split(" to "))
        assert low < float(row[1]) < high


def test_failures_are_counted_by_reason(page: Reader) -> None:
    assert ["2", "2", f"nan {SCRIPT}"] in page.rows
    assert ["1", "1.5", "memory"] in page.rows
    assert ["1", "3", "output is inf"] in page.rows


def test_the_law_is_written_out(page: Reader, sweep: tuple[Study, FrontModel, ComputeLaw]) -> None:
    law = sweep[2]
    assert f"L(C) = {law.E:.4g} + {law.k:.4g} · C−{law.g:.4g}" in page.text
    assert law.fitted_to in page.text
    low, high = law.summary()[["low", "high"]].iloc[2]
    rows = {row[0]: row for row in page.rows}
    assert rows["g"][1:3] == [f"{law.g:.4g}", f"{low:.4g} to {high:.4g}"]


def test_the_front_is_a_table_cheapest_first(
    page: Reader, sweep: tuple[Study, FrontModel, ComputeLaw]
) -> None:
    best = front_trials(trials_frame(sweep[0]))
    start = next(i for i, row in enumerate(page.rows) if row[:3] == ["trial", "cost (s)", "output"])
    rows = page.rows[start + 1 : start + 1 + len(best)]
    assert [row[0] for row in rows] == [str(number) for number in best["number"]]
    assert [row[3] for row in rows] == [f"{width:,}" for width in best["width"]]


def test_the_mix_is_a_table_of_shares(page: Reader) -> None:
    row = next(row for row in page.rows if row[0] == "<b>prose</b>")
    assert len(row) == 4
    assert all("%" in cell for cell in row[1:])


def test_calibration_is_counted(page: Reader) -> None:
    assert "11 of 12 for the output and 12 of 12 for the cost" in page.text


def test_all_trials_are_in_the_last_table(page: Reader) -> None:
    assert "All 17 trials" in page.text
    assert [row[0] for row in page.rows[-17:]] == [str(i) for i in range(17)]
    assert [row[1] for row in page.rows[-5:]] == ["failed"] * 3 + ["forgotten", "complete"]
    assert any(tag == "details" and "open" not in attributes for tag, attributes in page.tags)


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (measured(True, True), "Output and cost came out inside their 90% intervals."),
        (measured(True, False), "The cost missed its 90% interval; the other held."),
        (measured(False, True), "The output missed its 90% interval; the other held."),
        (measured(False, False), "Output and cost both missed their 90% intervals."),
        (CHECK, "Predicted; not measured yet."),
        ({**CHECK, "failure": f"nan {SCRIPT}"}, f"The check run failed: nan {SCRIPT}"),
    ],
)
def test_the_verdict_on_the_check_run(
    sweep: tuple[Study, FrontModel, ComputeLaw],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: dict[str, Any],
    verdict: str,
) -> None:
    page, labels = quick_report(tmp_path, monkeypatch, *sweep, check)
    assert verdict in page.text
    assert ["512", "0", "1"] in page.rows
    assert "Note: width < 16 lies on its <b>bound</b>." in page.text
    row = next(row for row in page.rows if row[0] == "cost")
    assert row[1:3] == ["1,800 s", "1,600 to 2,000 s"]
    assert row[3] == ("1,912 s" if "measured_cost" in check else "not yet")
    # Beyond the sweep there is one answer: the plan's.
    assert "best for a budget, and 90% of runs" in labels


def quick_report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    study: Study,
    front: FrontModel,
    *rest: Any,
    **options: Any,
) -> tuple[Reader, list[str]]:
    """The page without drawn figures, which take most of the time, and their axes' labels.

    And those of their lines.
    """
    labels = []

    def savefig(figure: Figure, file: IO[bytes], **_: Any) -> None:
        axes = figure.axes[0]
        labels.extend([axes.get_xlabel(), axes.get_ylabel()])
        labels.extend(str(line.get_label()) for line in axes.lines)
        file.write(b"a figure")

    monkeypatch.setattr(Figure, "savefig", savefig)
    path = write_report(tmp_path, study, front, *rest, **options)
    return Reader(path.read_text()), labels


def test_a_plain_sweep_without_failures_mix_law_or_check(tmp_path: Path) -> None:
    params = [WIDTH]
    study = make_study(params, fails=False)
    page = Reader(write_report(tmp_path, study, fitted(study, params), None).read_text())
    assert "No trial failed." in page.text
    assert "Check run" not in page.text
    assert "No law" in page.text
    assert "Best width over cost" in page.images()
    assert not any("mix" in name for name in page.images())


def test_a_sweep_with_conditional_parameters(tmp_path: Path) -> None:
    never = {"optimizer": "lion", "schedule": "flat"}
    params = [
        WIDTH,
        Param("optimizer", ChoiceSpace(["adam", "sgd", "lion"]), "adam"),
        Param("momentum", LogSpace(), 0.9, when={"optimizer": "sgd"}),
        Param("schedule", ChoiceSpace(["cosine", "flat"]), "cosine", when={"optimizer": "sgd"}),
        Param("mix", MIX.space, MIX.search_center, when={"optimizer": ["adam", "sgd"]}),
        Param("other mix", MIX.space, MIX.search_center, when=never),
    ]
    study = make_study(params)
    front = fitted(study, params)
    page = Reader(write_report(tmp_path, study, front, None).read_text())
    assert "Best mix over cost" in page.images()
    assert "Best schedule over cost" in page.images()
    # No configuration can have it, and so there is nothing to show.
    assert not any("other mix" in name for name in page.images())
    assert "A conditional parameter is shown" in page.text
    assert "nan" not in page.text.replace("nan <script>", "")
    shares = {param.name: category_shares(front, param) for param in params[1:4:2]}
    np.testing.assert_allclose(
        sum(shares["schedule"].values()), shares["optimizer"]["sgd"], atol=1e-12
    )


def test_a_stopped_run_is_counted_and_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [WIDTH]
    study = make_study(params, fails=False)
    before = fit_front_law(fitted(study, params), n_resamples=20)
    other = study.trials[3]
    # It would dominate everything.
    stopped = {"output": 0.125, "output_deviation": 0.1, "cost": 1e-3, "spent": 1e-4}
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.PRUNED,
            params=other.params,
            distributions=other.distributions,
            user_attrs={STOPPED: stopped},
        )
    )
    front = fitted(study, params)
    law = fit_front_law(front, n_resamples=20)
    assert (law.E, law.k, law.g) == (before.E, before.k, before.g)
    page, _ = quick_report(tmp_path, monkeypatch, study, front, law)
    assert "12 trials finished" in page.text
    assert "1 stopped early" in page.text
    assert "0.125" not in page.text


def test_a_sweep_that_maximizes(
    sweep: tuple[Study, FrontModel, ComputeLaw], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [WIDTH, MIX]
    study = make_study(params, direction="maximize")
    front = fitted(study, params, "maximize")
    page, labels = quick_report(tmp_path, monkeypatch, study, front, sweep[2])
    assert "No law" in page.text
    assert "L(C)" not in page.text
    assert "best for a budget, and 90% of runs" in labels
    assert "highest output" in page.text
    assert "lowest output" not in page.text
    # Of the front and of convergence, each for a laptop and for a phone.
    assert [label for label in labels if "better" in label] == ["output (higher is better)"] * 4
    assert "highest output, by trial" in page.text


def test_a_sweep_without_predictions_in_another_unit(
    sweep: tuple[Study, FrontModel, ComputeLaw], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, front, law = sweep
    unpredicted = make_study(PARAMS)
    for trial in unpredicted.get_trials(deepcopy=False):
        trial.user_attrs.pop(PREDICTED, None)
    page, labels = quick_report(tmp_path, monkeypatch, unpredicted, front, law, cost_unit="GPU-<h>")
    assert "No finished trial was predicted" in page.text
    assert f"total cost {SPENT:.4g} GPU-<h>" in page.text
    assert "with the cost C in GPU-<h>" in page.text
    assert all("(GPU-<h>)" in label for label in labels if "cost" in label)
    assert "(s)" not in page.text


def test_letters_that_the_font_lacks_only_leave_a_box(tmp_path: Path) -> None:
    params = [Param("幅 $🦙$ /", LogSpace(), 32.0)]
    study = make_study(params, name="掃引")
    front = fitted(study, params)
    page = Reader(write_report(tmp_path, study, front, None).read_text())
    assert "Best 幅 $🦙$ / over cost" in page.images()
    # Written a second time, over the first.
    write_report(tmp_path, study, front, None)
    assert all(path.parent == tmp_path / "figures" for path in tmp_path.rglob("*.png"))


def test_category_shares_sum_to_one(sweep: tuple[Study, FrontModel, ComputeLaw]) -> None:
    front = sweep[1]
    shares = category_shares(front, PARAMS[2])
    assert list(shares) == ["adam", "<u>sgd"]
    np.testing.assert_allclose(sum(shares.values()), np.ones(len(front.levels)))


# The width of a phone's window is set by its emulation: a desktop's has a least one.
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_on_a_phone_and_on_a_laptop(folder: Path, browser: Chrome, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((folder / "report.html").as_uri())
    assert browser.get_log("browser") == []  # nothing was asked for, nothing went wrong
    assert browser.execute_script("return window.innerWidth") == width
    # Only tables may be wider than the window, each in a box that scrolls.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # All of the summary's boxes are there without scrolling on a laptop, one below the other on a
    # phone.
    cards = browser.find_elements(By.CLASS_NAME, "card")
    places = [card.rect for card in cards]
    assert len(cards) == 3
    assert all(place["x"] >= 0 and place["x"] + place["width"] <= width for place in places)
    if width < 600:
        assert places[0]["y"] < places[1]["y"] < places[2]["y"]
    else:
        assert len({place["y"] for place in places}) == 1 and places[0]["y"] < 300
    # What is drawn wide for a laptop is drawn again for a phone.
    shown = browser.find_element(By.CSS_SELECTOR, "picture img")
    drawn = browser.execute_script("return arguments[0].naturalWidth", shown) / 150 * 96
    assert (drawn < 450) == (width < 600)


def test_a_click_on_a_column_sorts_the_trials(folder: Path, browser: Chrome) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get((folder / "report.html").as_uri())
    browser.find_element(By.TAG_NAME, "summary").click()
    table = browser.find_elements(By.CSS_SELECTOR, "table.sortable")[-1]
    heads = {head.text.split(" ")[0]: head for head in table.find_elements(By.TAG_NAME, "th")}

    def column(name: str) -> list[str]:
        place = list(heads).index(name)
        rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
        return [row.find_elements(By.TAG_NAME, "td")[place].text for row in rows]

    before = column("trial")
    heads["cost"].find_element(By.TAG_NAME, "button").click()
    costs = [float(cost.replace(",", "")) for cost in column("cost") if cost != "–"]
    assert costs == sorted(costs) and len(costs) == 15
    assert column("cost")[-2:] == ["–", "–"]
    assert heads["cost"].get_attribute("aria-sort") == "ascending"
    heads["cost"].find_element(By.TAG_NAME, "button").click()
    assert [cost for cost in column("cost") if cost != "–"] == [
        f"{cost:,.4g}" if cost < 1000 else f"{cost:,.0f}" for cost in sorted(costs, reverse=True)
    ]
    assert column("cost")[-2:] == ["–", "–"]  # what is missing stays last
    heads["trial"].find_element(By.TAG_NAME, "button").click()
    assert column("trial") == before
    heads["state"].find_element(By.TAG_NAME, "button").click()
    assert column("state") == sorted(column("state"))


@pytest.fixture(scope="module")
def interactive(
    sweep: tuple[Study, FrontModel, ComputeLaw], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    study, front, law = sweep
    folder = tmp_path_factory.mktemp("interactive")
    return write_report(folder, study, front, law, output_unit="nats", is_interactive=True)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_front_shows_a_trial_under_the_pointer(
    interactive: Path, sweep: Any, browser: Chrome, width: int
) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(interactive.as_uri())
    assert browser.get_log("browser") == []  # nothing was asked of the network
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    chart = browser.find_element(By.ID, "interactive-front")
    assert chart.rect["width"] <= width
    # What is drawn for paper does not stand there twice.
    assert not browser.find_element(By.CSS_SELECTOR, ".printed").is_displayed()
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    points = browser.find_elements(By.CSS_SELECTOR, "#interactive-front .scatterlayer .point")
    assert len(points) == 12
    ActionChains(browser).move_to_element(points[-1]).perform()
    WebDriverWait(browser, 30).until(
        lambda b: b.find_elements(By.CSS_SELECTOR, "#interactive-front .hovertext")
    )
    said = browser.find_element(By.CSS_SELECTOR, "#interactive-front .hovertext").text
    dearest = front_trials(trials_frame(sweep[0])).iloc[-1]
    assert f"trial {dearest['number']:.0f}" in said
    assert f"output {dearest['output']:.5g}" in said
    assert f"width = {dearest['width']:.4g}" in said
    assert 'drop"<i>out = ' in said and "mix.<b>prose</b> = " in said  # as it was named
    assert "predicted" not in said


def test_without_plotly_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch, sweep: Any) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=r"pip install 'carbs-search\[plotly\]'"):
        interactive_front(trials_frame(sweep[0]))


def test_a_notebook_shows_it(sweep: Any) -> None:
    study, _, law = sweep
    expected = pd.DataFrame({"cost": [1e3], "output": [2.0], "low": [1.0], "high": [3.0]})
    figure = interactive_front(trials_frame(study), law, expected=expected, level=0.8)
    assert [trace.name for trace in figure.data if trace.name] == [
        "band, 80% of new runs",
        "compute law",
        "best for a budget, and 80% of runs",
        "finished trial",
        "Pareto front",
    ]
    assert "text/html" in figure._repr_mimebundle_() or figure._repr_html_()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_terrible_trials_do_not_squeeze_it(direction: Direction) -> None:
    sign = 1.0 if direction == "minimize" else -1.0
    outputs = sign * np.array([*(3 - 0.1 * np.arange(15)), 1e6])
    trials = pd.DataFrame({"output": outputs, "cost": np.arange(1.0, 17.0), "state": "complete"})
    trials = trials.assign(number=range(16), width=64)
    low, high = interactive_front(trials, direction=direction).layout.yaxis.range
    assert low < outputs[:15].min() < outputs[:15].max() < high
    assert max(abs(low), abs(high)) < 10
    assert interactive_front(trials[:15], direction=direction).layout.yaxis.range is None
