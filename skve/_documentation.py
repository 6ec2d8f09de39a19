"""The way from an estimator to its page of the documentation."""

import skve


class DocumentedMixin:
    """Let scikit-learn's HTML view of an estimator link to its page, where `skve.DOCUMENTATION` names a site."""

    _doc_link_module = "skve"

    @property
    def _doc_link_template(self):
        return skve.DOCUMENTATION and skve.DOCUMENTATION + "api/generated/{page}.html"

    def _doc_link_url_param_generator(self):
        name = type(self).__name__
        return {
            "page": f"skve.{name}" if name in skve.__all__ else f"{type(self).__module__.rpartition('.')[0]}.{name}"
        }
