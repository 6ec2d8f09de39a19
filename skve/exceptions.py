"""The errors that skve raises for a reason of its own; each is also the built-in error that it refines."""


class SkveError(Exception):
    """Base of the errors of this module."""


class BackboneError(SkveError, ValueError):
    """A backbone is not found, cannot be read or built, or does not fit what is asked of it."""


class HubError(SkveError, ConnectionError):
    """Weights are not on this machine, and the hub that has them cannot be reached."""


class SavedModelError(SkveError, ValueError):
    """A folder holds no saved model, a damaged, foreign or dangerous one, or a model cannot be saved."""
