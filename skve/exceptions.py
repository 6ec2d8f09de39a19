"""The errors that skve raises for a reason of its own; each is also the built-in error that it refines."""

_LONGEST_MESSAGE = 4000


class SkveError(Exception):
    """Base of the errors of this module.

    Messages quote what strangers wrote into files: control characters, which could command a terminal, are escaped,
    and of a long message the middle is left out.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(_printable(value) if isinstance(value, str) else value for value in args))


def _printable(text: str) -> str:
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[: _LONGEST_MESSAGE // 2]} [...] {text[-_LONGEST_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class BackboneError(SkveError, ValueError):
    """A backbone is not found, cannot be read or built, or does not suit its use."""


class HubError(SkveError, ConnectionError):
    """Weights are not on this machine, and the hub that has them cannot be reached."""


class SavedModelError(SkveError, ValueError):
    """A folder holds no saved model, a damaged, foreign or dangerous one, or a model cannot be saved."""


class ImageError(SkveError, ValueError):
    """An image is missing, cannot be decoded, or is refused, for instance because it has too many pixels."""
