"""The page is whole by itself and says what is and is not covered."""

import dataclasses
from html.parser import HTMLParser

import pytest

from tacit.errors import ConfigurationError
from tacit.report.content import Curve, NormHistogram, PrivacyFacts, Report
from tacit.report.page import draw_plots, render, write_report
from tacit.report.statement import not_covered, privacy_statement

FACTS = PrivacyFacts(
    unit="one digit image",
    records=1437,
    adjacency="add-or-remove-one",
    epsilon=2.9985,
    delta=1e-4,
    target_epsilon=3.0,
    accountant="pld",
    sampling="Poisson sampling",
    sample_rate=0.1,
    noise_multiplier=2.5,
    max_grad_norm=0.5,
    noise_source="the operating system",
    releases=120,
)
REPORT = Report(
    title="A <b>title</b>",
    summary="Summary.",
    facts=FACTS,
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
    for words in ("94.0 %", "98.0 %", "ε = 2.999", "δ = 1e-4", "hyper-parameters", "one digit image", "120 noisy"):
        assert words in page.text


def test_statement_has_every_part():
    terms = dict(privacy_statement(FACTS))
    assert "2.999 at δ = 1e-4" in terms["Guarantee"]
    assert "1,437" in terms["Unit of privacy"]
    assert "added or removed" in terms["Neighbouring data sets"]
    assert "2.5000" in terms["Mechanism"]
    assert "1.2500" in terms["Mechanism"]
    assert terms["Source of the noise"] == "the operating system."
    assert "0.5" in terms["Clipping bound"]


def test_statement_refuses_an_unknown_adjacency():
    with pytest.raises(ConfigurationError, match="adjacency is 'other'"):
        privacy_statement(dataclasses.replace(FACTS, adjacency="other"))


def test_a_large_delta_is_called_so():
    assert not any("smaller δ" in line for line in not_covered(FACTS))
    assert any("smaller δ" in line for line in not_covered(dataclasses.replace(FACTS, delta=0.01)))


def test_infinite_epsilon_is_no_guarantee():
    sentence = dict(privacy_statement(dataclasses.replace(FACTS, epsilon=float("inf"))))["Guarantee"]
    assert sentence.startswith("None")


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="1 steps and 2 values"):
        Curve([1], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 counts for 2 bins"):
        NormHistogram([0, 1, 2], {"all": [1]})
