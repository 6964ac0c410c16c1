"""A codebook's own estimates of its cost beside what validate measured: the table of docs/method.md. Of each model its codebook and
the JSON of `kvcal validate` with it:

    .deps/venv/bin/python tests/bench/estimates.py --kvcal build/release/bin/kvcal bundled:build/demo.h5:build/demo.json \\
        SmolLM2-135M:build/results/readme.h5:build/results/readme.json
"""

import argparse
import json
import subprocess
from pathlib import Path

from trial import digits, table


def estimates(kvcal: Path, codebook: str) -> dict[str, float]:
    told = subprocess.run([kvcal, "inspect", codebook, "--json", "-"], check=True, capture_output=True, text=True).stdout
    return {method["name"]: method["estimated_kld"] for method in json.loads(told)["summary"]["methods"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvcal", type=Path, required=True)
    parser.add_argument("models", nargs="+", metavar="NAME:CODEBOOK:REPORT")
    arguments = parser.parse_args()
    head, rows = ["method"], {}
    for name, codebook, report in (model.split(":") for model in arguments.models):
        head += [f"{name}: estimated", "measured", "ratio"]
        estimated = estimates(arguments.kvcal, codebook)
        measured = {method["name"]: method for method in json.loads(Path(report).read_text())["methods"]}
        for method in (method for method in estimated if method in measured):
            kld, error = measured[method]["kld_mean"], measured[method]["kld_stderr"]
            rows.setdefault(method, [f"`{method}`"]).extend(
                [digits(estimated[method], 4), f"{digits(kld, 4)} +- {digits(error, 4)}", digits(estimated[method] / kld, 2)])
    print(table(head, list(rows.values())))


if __name__ == "__main__":
    main()
