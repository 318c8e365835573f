"""Tables in Markdown pages, each between two marks."""


def between(page, marks):
    """Gives what a page holds between two marks, without the blank lines around it.

    Args:
        page: `pathlib.Path`.
        marks: Pair of strings.
    """
    _, first, rest = page.read_text().partition(marks[0])
    text, last, _ = rest.partition(marks[1])
    if not (first and last):
        raise SystemExit(f"The page must hold {' and '.join(marks)}. Received: {page}")
    return text.strip()


def write_between(page, marks, text):
    """Writes a text in the place of what `between` gives."""
    between(page, marks)
    before, _, rest = page.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    page.write_text(f"{before}{marks[0]}\n\n{text.strip()}\n\n{marks[1]}{after}")
