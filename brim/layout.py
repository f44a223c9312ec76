"""Where everything lies: paths as functions, so that no other module spells one out."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

# ---- the tool's own folders


def venv_python() -> Path:
    return CHECKOUT / ".venv" / "bin" / "python"


def tools() -> Path:
    return CHECKOUT / ".tools"


def tools_manifest() -> Path:
    """What was fetched: versions, digests of wheels and binaries, the Python of the stub."""
    return tools() / "manifest.json"


def tritonserver() -> Path:
    return tools() / "triton" / "bin" / "tritonserver"


def triton_libraries() -> Path:
    return tools() / "triton" / "lib"


def triton_backends() -> Path:
    return tools() / "triton" / "backends"


def perf_analyzer() -> Path:
    return tools() / "perf_analyzer" / "perf_analyzer"


def perf_analyzer_libraries() -> Path:
    return tools() / "perf_analyzer" / "lib"


def stub_python() -> Path:
    """The interpreter (numpy 1.26, engine runtime) that Triton's python stub and the in-process ceiling run in."""
    return tools() / "stub" / "bin" / "python3"


def model_repository() -> Path:
    return CHECKOUT / "model_repository"


# ---- out/: what the stages write


def model_folder(out: Path, model: str) -> Path:
    return out / "models" / model


def card_file(out: Path, model: str) -> Path:
    return model_folder(out, model) / "card.json"


def servers(out: Path) -> Path:
    return out / "servers"


def server_folder(out: Path, server_id: str) -> Path:
    return servers(out) / server_id


def current_server(out: Path) -> Path:
    """A symlink to the folder of the server that `brim loadtest` uses when no URL is given."""
    return servers(out) / "current"


def runs(out: Path) -> Path:
    return out / "runs"


def run_folder(out: Path, run_id: str) -> Path:
    return runs(out) / run_id


def reports(out: Path) -> Path:
    return out / "reports"


def report_folder(out: Path, name: str) -> Path:
    """report.html, points.csv and summary.json of the runs of one batch."""
    return reports(out) / name


def latest_report(out: Path) -> Path:
    """A symlink to the folder of the report that was written last."""
    return reports(out) / "latest"


def calibrations(out: Path) -> Path:
    """Calibrations, the servers that they were of, and `latest.json`."""
    return out / "calibrate"


def latest_calibration(out: Path) -> Path:
    return calibrations(out) / "latest.json"
