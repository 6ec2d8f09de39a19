"""scikit-learn's callbacks, which it has from version 1.9 on."""

import random

_state = random.getstate()  # rich, which scikit-learn's progress bar imports, draws from the global generator
try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing to set."""

        def _init_callback_context(self, **options):
            return None

    def with_callbacks(method):
        """Return the method as it is."""
        return method

finally:
    random.setstate(_state)

__all__ = ["CallbackSupportMixin", "has_callbacks", "with_callbacks"]


def has_callbacks(estimator):
    """Say whether `set_callbacks` has given an estimator callbacks."""
    return bool(getattr(estimator, "_skl_callbacks", None))
