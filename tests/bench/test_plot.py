from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.plot import HEIGHT, WIDTH, Axis, Series, plot

SVG = "{http://www.w3.org/2000/svg}"
LINES = [
    Series("cryptows /ws", ((100, 0.9), (1000, 1.5), (4000, 6.0))),
    Series("a <peer> & co", ((100, 1.1), (1000, 900.0)), behind=frozenset({1000})),
]
positive = st.floats(min_value=1e-4, max_value=1e7)


def draw(series=LINES) -> ET.Element:
    return ET.fromstring(plot(series, "p99 & load", "events/s", "ms"))


def test_the_plot_is_well_formed_and_names_its_lines_and_axes():
    texts = [element.text for element in draw().iter(f"{SVG}text")]

    assert {"p99 & load", "events/s", "ms", "cryptows /ws", "a <peer> & co"} <= set(texts)


def test_each_series_is_one_line_with_a_dot_for_each_point():
    root = draw()

    assert len(list(root.iter(f"{SVG}polyline"))) == 2
    assert len(list(root.iter(f"{SVG}circle"))) == 5


def test_a_point_of_a_server_that_fell_behind_is_hollow_and_explained():
    root = draw()

    hollow = [dot for dot in root.iter(f"{SVG}circle") if dot.get("fill") == "#ffffff"]
    assert len(hollow) == 1
    assert any("hollow" in (element.text or "") for element in root.iter(f"{SVG}text"))


def test_a_series_is_drawn_from_left_to_right_whatever_the_order_of_its_points():
    root = draw([Series("a", ((4000, 2.0), (50, 1.0), (200, 1.5)))])

    path = next(root.iter(f"{SVG}polyline")).attrib["points"]
    left = [float(point.split(",")[0]) for point in path.split()]
    assert left == sorted(left)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=20))
def test_every_point_lies_on_the_sheet(points):
    root = draw([Series("a", tuple(points))])

    for dot in root.iter(f"{SVG}circle"):
        assert 0 <= float(dot.attrib["cx"]) <= WIDTH
        assert 0 <= float(dot.attrib["cy"]) <= HEIGHT


@given(st.lists(positive, min_size=1, max_size=9))
def test_an_axis_begins_and_ends_on_a_tick_and_holds_its_values(values):
    axis = Axis.around(values, 0, 100)

    assert axis.low <= min(values) * 1.001
    assert max(values) <= axis.high * 1.001
    assert axis.ticks()[0] == pytest.approx(axis.low)
    assert axis.ticks()[-1] == pytest.approx(axis.high)


def test_an_axis_is_logarithmic():
    axis = Axis(1, 100, 0, 200)

    assert [axis.at(value) for value in (1, 10, 100)] == [0, 100, 200]
    assert axis.ticks() == [1, 2, 5, 10, 20, 50, 100]
