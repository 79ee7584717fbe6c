"""What a run found: as numbers (`Report`, report.json) and as tables for a terminal."""

from onnxslim.report.report import Accuracy, ModelRow, Report, StageRow, accuracy_of, model_rows, short_names
from onnxslim.report.tables import (
    doctor_table,
    inspection_view,
    plan_table,
    render,
    report_view,
    rows_table,
    rules_table,
    sensitivity_table,
)

__all__ = [
    "Accuracy",
    "ModelRow",
    "Report",
    "StageRow",
    "accuracy_of",
    "doctor_table",
    "inspection_view",
    "model_rows",
    "plan_table",
    "render",
    "report_view",
    "rows_table",
    "rules_table",
    "sensitivity_table",
    "short_names",
]
