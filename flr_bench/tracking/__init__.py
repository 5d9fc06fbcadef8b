"""MLflow: a mirror of the store, to look at runs side by side.

The store is what counts.  Losing the MLflow server loses nothing and stops nothing: one thread in the
background writes, a failure is told in one line, the sweep goes on without, and ``flr-bench track
sync`` brings the mirror up to date later.  This is the only package that imports MLflow; it works with
the client and run ids, never with MLflow's global active run.

One experiment per suite, one parent run per invocation, one child run per cell.

======================  ==============================================================
``tracker``             what a sweep talks to: takes note and returns at once
``background``          the thread that writes, and how long it may be waited for
``mirror``              suites and cells as MLflow's runs; what is missing, and only that
``content``             what a cell and a suite say in MLflow's terms
``connection``          the client: first use of a database, locked databases, errors
``views``               what MLflow's page of an experiment offers: runs, columns and charts chosen beforehand
``trials``              tuning studies: one run for each study and trial
``models``              a trained model as MLflow's pyfunc
======================  ==============================================================
"""

from flr_bench.tracking.connection import tracking_uri, ui_command
from flr_bench.tracking.content import CELL_TAG, KIND_TAG, PARENT_TAG
from flr_bench.tracking.tracker import Tracker
from flr_bench.tracking.trials import StudyContent, TrialContent

__all__ = [
    "CELL_TAG",
    "KIND_TAG",
    "PARENT_TAG",
    "StudyContent",
    "Tracker",
    "TrialContent",
    "tracking_uri",
    "ui_command",
]
