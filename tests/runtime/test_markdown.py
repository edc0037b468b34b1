"""Tables that Markdown reads, whatever is in their cells."""

from ddpm_hf.runtime.markdown import markdown_table


def test_columns_are_aligned_and_cells_escaped():
    assert markdown_table(["name", ""], [["a|b", "1"], ["two\nlines", "10,000"]]).splitlines() == [
        "| name      |        |",
        "| --------- | ------ |",
        "| a\\|b      | 1      |",
        "| two lines | 10,000 |",
    ]


def test_a_table_without_rows_has_its_header():
    assert markdown_table(["a"], []).splitlines() == ["| a   |", "| --- |"]
