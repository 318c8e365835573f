"""Tables in plain text."""


def aligned(lines, sides):
    """Joins lines of cells, each column as wide as its widest cell.

    Args:
        lines: List of sequences of strings, all of one length.
        sides: String of `<` or `>` for each column: the side that its cells are aligned to.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return "\n".join(form.format(*cells) for cells in lines)
