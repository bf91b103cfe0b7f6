"""The page is whole by itself and says what is and is not covered."""

from html.parser import HTMLParser

import pytest

from tacit.accounting import create_accountant
from tacit.plan import PrivacyPlan
from tacit.report.content import Curve, NormHistogram, Report
from tacit.report.page import draw_plots, render, write_report
from tacit.sampling import PoissonSampling
from tacit.statement import make_statement

STATEMENT = make_statement(
    create_accountant("pld"),
    PrivacyPlan(2.5, 0.5, "flat", "mean", PoissonSampling(1437, 0.1, 10)),
    delta=1e-4,
    unit="digit image",
    noise_source="the operating system",
    ledger=None,
    not_covered=["The weather."],
)
REPORT = Report(
    title="A <b>title</b>",
    summary="Summary.",
    statement=STATEMENT,
    epsilon=2.9985,
    target_epsilon=3.0,
    accuracy=0.94,
    plain_accuracy=0.98,
    private_curve=Curve([1, 2], [0.5, 0.94]),
    plain_curve=Curve([1, 2], [0.6, 0.98]),
    epsilon_curve=Curve([1, 2], [1.0, 2.9985]),
    clipped_curve=Curve([1, 2], [1.0, 0.5]),
    norms=NormHistogram([0.1, 1.0, 10.0], {"first epoch": [1, 2], "last epoch": [0, 0]}),
    confusion=[[5, 1], [0, 4]],
    classes=["a", "b"],
    settings={"seed": "0"},
    versions={"torch": "2"},
)


class Page(HTMLParser):
    """Collects tags, what they load, and the text."""

    def __init__(self, source):
        super().__init__()
        self.loads, self.tags, self.text = [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.text += data


def test_page_needs_no_other_file(tmp_path):
    page = Page(write_report(REPORT, tmp_path).read_text(encoding="utf-8"))
    assert len(page.loads) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(list(tmp_path.glob("*.png"))) == 5
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))


def test_page_says_it_all():
    page = Page(render(REPORT, draw_plots(REPORT)))
    assert "A <b>title</b>" in page.text  # escaped
    for words in ("94.0 %", "98.0 %", "ε = 2.999", "δ = 1e-4", "hyper-parameters", "One digit image", "The weather."):
        assert words in page.text


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="1 steps and 2 values"):
        Curve([1], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 counts for 2 bins"):
        NormHistogram([0, 1, 2], {"all": [1]})
