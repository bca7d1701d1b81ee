"""Tables for LaTeX."""

import pandas as pd

from experiments.report.latex import latex, write_latex

BY_HAND = r"""\begin{tabular}{lrr}
\toprule
variant & accuracy & MACs \\
\midrule
a\_b, 50\% & 0.812 & 1,200,000 \\
dense & -- & 8 \\
\bottomrule
\end{tabular}
"""


def test_a_table_by_hand():
    table = pd.DataFrame({"variant": ["a_b, 50%", "dense"], "accuracy": [0.8124, float("nan")], "macs": [1.2e6, 8]})
    assert latex(table, {"variant": "variant", "accuracy": "accuracy", "macs": "MACs"}) == BY_HAND


def test_tables_lie_next_to_their_csv(tmp_path):
    pd.DataFrame({"variant": ["dense"], "accuracy": [0.5], "more": [1]}).to_csv(tmp_path / "tradeoff.csv", index=False)
    assert write_latex(tmp_path) == [tmp_path / "tradeoff.tex"]
    assert "more" not in (tmp_path / "tradeoff.tex").read_text()
    assert "dense & 0.5" in (tmp_path / "tradeoff.tex").read_text()
