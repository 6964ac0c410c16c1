"""What results.py and served.py share: the trials, commands whose measurements are used again, and how figures are printed."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "results"


@dataclass
class Trial:
    """A model, the texts that it is calibrated and validated on, and options beside the defaults."""
    name: str
    title: str
    model: Path
    calibration: Path
    validation: Path
    calibrate: list[str] = field(default_factory=list)
    validate: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    decode: list[str] = field(default_factory=list)
    served: tuple[int, int] | None = None  # what other loaders read of the same text: windows, and tokens of each
    paper: bool = False


def trials(shared: Path | None) -> dict[str, Trial]:
    demo, text = ROOT / "data" / "demo", (shared or Path()) / "text"
    exact = ["--dtype", "float32", "--bos", "none", "--seqlen", "2048"]
    return {
        "bundled": Trial("bundled", "The bundled model", ROOT / "data" / "model", demo / "calibrate.txt", demo / "validate.txt"),
        "smollm2": Trial("smollm2", "SmolLM2-135M-Instruct", ROOT / "build" / "models" / "SmolLM2-135M-Instruct",
                         text / "wiki.valid.raw", text / "wiki.test.raw", exact + ["--samples", "16"],
                         exact + ["--windows", "8"], exact + ["--windows", "2"],
                         exact + ["--windows", "8", "--passkey", "512,1024,2048"], served=(8, 2048), paper=True),
    }


def run(command: list) -> None:
    """Runs a command, its progress on standard error; ends the program where it fails."""
    words = [str(word) for word in command]
    if (status := subprocess.run(words, stdout=subprocess.DEVNULL).returncode) != 0:
        sys.exit(f"{Path(sys.argv[0]).name}: exit code {status}: {' '.join(words)}\n"
                 "(--fresh starts anew where a codebook is of other options)")


def calibrated(kvcal: Path, trial: Trial, fresh: bool = False) -> Path:
    """The trial's codebook in build/results/, made where it is missing or to be fresh; the model's folder, too."""
    codebook = RESULTS / f"{trial.name}.h5"
    if fresh:
        codebook.unlink(missing_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not (trial.model / "model.safetensors").exists():
        run([sys.executable, ROOT / "tests" / "models" / "smollm2.py", "--out", trial.model])
    run([kvcal, "calibrate", "--model", trial.model, "--text", trial.calibration, "--out", codebook, "--ablation",
         *trial.calibrate])
    return codebook


def measured(out: Path, words: str, codebook: Path, measure: Callable[[], None]) -> dict:
    """The JSON `out`, which `measure` writes unless it is newer than the codebook and was made by the same words."""
    made_by = out.with_suffix(".command")
    if not (out.exists() and out.stat().st_mtime > codebook.stat().st_mtime and made_by.exists()
            and made_by.read_text() == words):
        made_by.unlink(missing_ok=True)
        measure()
        made_by.write_text(words)
    return json.loads(out.read_text())


def digits(value: float | None, places: int, sign: str = "") -> str:
    """A number with its places; none of them from 1000 on; `-` where there is none."""
    return "-" if value is None else f"{value:{sign}.{places if abs(value) < 1000 else 0}f}"


def percent(share: float | None) -> str:
    return digits(None if share is None else 100 * share, 2)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 130, break_long_words=False, break_on_hyphens=False)
