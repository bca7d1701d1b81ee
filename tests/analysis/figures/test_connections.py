"""Connection diagrams: the formula that is printed, the lines that are drawn, the cost that is counted."""

import re
from fractions import Fraction

import pytest
from torch import nn

from analysis.figures import connections, page
from analysis.figures.connections import count_lines
from experiments.commands.connections import diagrams
from figure_checks import checked
from gconv.cost import count_cost


def evaluate(formula, **values):
    """The value of a formula as it is printed: HW(2NB + K²B²/G), with H and W left at 1."""
    text = re.sub("[HW]", "", formula).replace("¹⁻ⁿ", "**(1-n)").replace("²", "**2").replace("·", "*")
    text = text.replace("⅓", "Fraction(1,3)").replace("⅔", "Fraction(2,3)").replace("4**", "Fraction(4)**")
    factor = r"(?:[NMBKG](?:\*\*2)?|\d+)"
    text = re.sub(rf"(?<![\w*)])({factor}(?:{factor})+)", lambda m: "*".join(re.findall(factor, m[1])), text)
    text = re.sub(r"([NMBKG2])\((?!1-n)", r"\1*(", text)
    return eval(text, {"Fraction": Fraction, **values})


def test_the_evaluation_of_formulas_by_hand():
    assert evaluate("HWNK²M/G", N=2, K=3, M=5, G=2) == 45
    assert evaluate("HW(2NB + K²B²/G)", N=8, B=4, K=3, G=2) == 64 + 72
    assert evaluate("HWN(K² + M)", N=2, K=3, M=5) == 28
    assert evaluate("HWNK²M(⅓ + ⅔·4¹⁻ⁿ)", N=1, K=1, M=1, n=2) == Fraction(1, 2)


@pytest.mark.parametrize("diagram", diagrams(), ids=lambda diagram: diagram.title)
def test_the_formula_printed_is_the_count_of_lines_and_the_cost(diagram):
    inputs, inner, outputs = (len(set(column)) for column in _channel_columns(diagram))
    values = {"N": inputs, "B": inner, "M": outputs, "K": 3, "G": 2, "n": 4}
    count = count_lines(diagram)
    assert count.total == evaluate(diagram.formula, **values)
    assert count.dense == 9 * inputs * outputs
    stack = nn.Sequential(*[layer for _, layer in diagram.layers])
    assert count.total * 5 * 7 == count_cost(stack, (inputs, 5, 7)).macs


def _channel_columns(diagram):
    first, last = diagram.channel_steps[0], diagram.channel_steps[-1]
    return [i for i, _ in first], [o for _, o in first], [o for _, o in last]


def test_shares_of_a_standard_convolution_by_hand():
    shares = {d.title: Fraction(count_lines(d).total, count_lines(d).dense) for d in diagrams()}
    assert shares == {
        "3×3, standard": 1,
        "3×3, 2 groups": Fraction(1, 2),
        "3×3, log:4 groups": Fraction(11, 32),  # 1/4 + 1/16 + 1/64 + 1/64
        "3×3, depthwise": Fraction(1, 8),
        "1×1": Fraction(1, 9),
        "1×1, 2 groups": Fraction(1, 18),
        "1×1, 2 groups, shuffle": Fraction(1, 18),
        "Depthwise separable": Fraction(1, 8) + Fraction(1, 9),  # 1/M + 1/K² (Howard et al. 2017)
        "Bottleneck (ResNet)": Fraction(2 * 32 + 9 * 16, 576),
        "ResNeXt, 2 groups": Fraction(2 * 32 + 9 * 8, 576),
        "Inverted (MobileNet v2)": Fraction(2 * 96 + 9 * 12, 576),
        "ShuffleNet, 2 groups": Fraction(2 * 16 + 9 * 4, 576),
    }


def test_a_diagram_keeps_its_pixels():
    diagram = connections.Diagram("pool", "", (("stride", nn.Conv2d(2, 2, 3, stride=2, padding=1)),))
    with pytest.raises(ValueError, match="pool, stride: it changes the number of pixels"):
        count_lines(diagram)


def test_channels_take_the_colour_of_the_group_that_computes_or_reads_them():
    colours = {d.title: connections._channel_colours(d) for d in diagrams()}
    grey = {connections.NEUTRAL}
    first, second = colours["3×3, 2 groups"][0][0], colours["3×3, 2 groups"][0][-1]
    assert first != second
    assert colours["1×1, 2 groups, shuffle"][2] == [first, second] * 4
    assert colours["ResNeXt, 2 groups"][1:3] == [[first, first, second, second]] * 2, "read, then computed"
    assert set(colours["ResNeXt, 2 groups"][3]) == grey
    assert set(colours["3×3, depthwise"][1]) == grey


def test_layers_are_drawn_with_every_link(tmp_path, monkeypatch):
    drawn = []
    real = connections.LineCollection
    monkeypatch.setattr(connections, "LineCollection", lambda ends, **kw: drawn.append(len(ends)) or real(ends, **kw))
    page.apply_style()
    checked(connections.draw(diagrams(), tmp_path))
    expected = sum(len(links) for d in diagrams() for links in (*d.channel_steps, *d.spatial_steps))
    assert sum(drawn) == expected
