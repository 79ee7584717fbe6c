"""Columns: at any width every number is shown whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onnxslim.report.columns import Column, Columns, shortened
from onnxslim.report.tables import render

NUMBERS = st.text("0123456789.,%[]", min_size=1, max_size=22)
NAMES = st.text("abcdefgh/_ 0123456789", min_size=1, max_size=60).map(str.strip).filter(bool)


@given(
    rows=st.lists(st.tuples(NAMES, st.lists(NUMBERS, min_size=6, max_size=6)), min_size=1), width=st.integers(42, 160)
)
def test_no_number_is_cut_and_no_line_is_too_long(rows: list[tuple[str, list[str]]], width: int) -> None:
    names = Column("model", [name for name, _ in rows], "name")
    columns = [Column(f"c{k}", [numbers[k] for _, numbers in rows]) for k in range(6)]
    shown = render(Columns([names, *columns]), width)
    words = shown.split()
    for _, numbers in rows:
        assert all(number in words for number in numbers)
    assert all(len(line) <= width for line in shown.splitlines())


def test_a_name_is_shortened_in_the_middle_and_text_wraps_at_words() -> None:
    table = Columns(
        [
            Column("layer", ["/features/features.12/conv/conv.3/Conv"], "name"),
            Column("MACs", ["12,345,678"]),
            Column("why", ["its scale is not a constant of the model"], "text"),
        ]
    )
    assert render(table, 60).splitlines() == [
        "layer                         MACs  why",
        "/features/f…onv.3/Conv  12,345,678  its scale is not a",
        "                                    constant of the model",
    ]
    wide = render(table, 200)
    assert "…" not in wide
    assert len(wide.splitlines()) == 2


def test_what_does_not_fit_goes_on_below_with_the_names_again() -> None:
    table = Columns([Column("model", ["float", "int8"], "name"), *(Column(f"n{k}", ["1" * 20] * 2) for k in range(3))])
    assert render(table, 50).splitlines() == [
        "model                    n0                    n1",
        "float  11111111111111111111  11111111111111111111",
        "int8   11111111111111111111  11111111111111111111",
        "",
        "model                    n2",
        "float  11111111111111111111",
        "int8   11111111111111111111",
    ]


def test_shortened_keeps_both_ends() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghij", 7) == "abc…hij"
    assert shortened("abcdefghij", 6) == "abc…ij"
