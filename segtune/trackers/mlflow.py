"""MLflow: parameters and metrics in a tracking server, or in files.

MLFLOW_TRACKING_URI names the server; the extra installs the client. With MLFLOW_ALLOW_FILE_STORE=true it
also takes file:FOLDER, and with the whole package mlflow it writes a database in the working folder. No
account is needed. The project is the experiment's name. A run that is resumed goes on under its identifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from segtune.trackers.base import TrackedRun, Tracker, flatten

AT_ONCE = 100
"""Parameters that MLflow takes in one request."""
LONGEST = 500
"""Characters of a parameter that every store of MLflow takes."""


class Mlflow(Tracker):
    """One run of MLflow."""

    package = "mlflow"
    hint = "MLFLOW_TRACKING_URI=http://... names a server; pip install mlflow brings a local database"

    def __init__(self, run: TrackedRun) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(run.project)
        active = mlflow.start_run(
            run_id=run.identifier, run_name=run.name, tags={"run_folder": str(run.folder)}
        )
        self.identifier = active.info.run_id
        if run.identifier is None:
            settings = [(key, str(value)[:LONGEST]) for key, value in flatten(run.config).items()]
            for start in range(0, len(settings), AT_ONCE):
                mlflow.log_params(dict(settings[start : start + AT_ONCE]), run_id=self.identifier)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds metrics; what their names may not hold becomes an underscore."""
        named = {re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII): value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=step, run_id=self.identifier)

    def close(self, *, failed: bool) -> None:
        """Ends the run."""
        self._mlflow.end_run(status="FAILED" if failed else "FINISHED")
