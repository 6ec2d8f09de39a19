"""Values and lists as messages show them; where something is left out, they say so."""


def shortened(text, length, *, keep_end=False):
    """Return a text of at most `length` characters, with an ellipsis for the end, or the start, that is left out."""
    if len(text) <= length:
        return text
    return "…" + text[1 - length :].lstrip() if keep_end else text[: length - 1].rstrip() + "…"


def quoted(value, length=60):
    """Return a value as Python writes it, in at most `length` characters."""
    return shortened(repr(value), length)


def listed(values, n=5, *, form=str):
    """Return the first `n` values, in a form such as `repr`, separated by commas, and how many more there are."""
    values = list(map(form, values))
    return ", ".join(values[:n]) + (f" and {len(values) - n} more" if len(values) > n else "")
