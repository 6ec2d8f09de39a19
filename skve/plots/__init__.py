"""Displays in the manner of scikit-learn: computed data as attributes, matplotlib imported when one draws."""

from skve.plots.calibration import ReliabilityDisplay
from skve.plots.contact_sheet import ContactSheetDisplay
from skve.plots.members import MembersDisplay
from skve.plots.ood import UncertaintyDisplay
from skve.plots.selective import RiskCoverageDisplay
from skve.plots.training import LayersDisplay, TrainingDisplay

__all__ = [
    "ContactSheetDisplay",
    "LayersDisplay",
    "MembersDisplay",
    "ReliabilityDisplay",
    "RiskCoverageDisplay",
    "TrainingDisplay",
    "UncertaintyDisplay",
]
