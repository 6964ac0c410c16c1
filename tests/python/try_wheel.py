#!/usr/bin/env python3
"""try_wheel.py [--build-dir DIR] [--packages-of ENVIRONMENT]: builds the wheel, installs it into an empty environment, and uses it there.

--build-dir is a build folder whose objects the wheel may be made of; a fresh one takes minutes. --packages-of is an environment
whose packages (torch alone weighs gigabytes) the new one gets as hard links, before pip looks what is missing. Exit code 0 where all
of it works.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import venv
import zipfile

SOURCE = pathlib.Path(__file__).resolve().parents[2]
MODEL, DEMO = SOURCE / "data" / "model", SOURCE / "data" / "demo"

USE = textwrap.dedent("""
    import pathlib, sys
    import kvcal
    assert "torch" not in sys.modules, "import kvcal brings torch"
    place = pathlib.Path(kvcal.__file__).parent
    assert "site-packages" in place.parts and (place / "py.typed").exists() and (place / "_core.pyi").exists()
    codebook = kvcal.calibrate(sys.argv[1], sys.argv[2], out="x.h5", samples=4, seqlen=128)
    print(kvcal.Codebook("x.h5"))
    assert kvcal.Codebook("x.h5") == codebook
    assert kvcal.kmeans([0, 0, 1, 1, 9], k=3).objective == 0
    report = kvcal.validate(sys.argv[1], "x.h5", sys.argv[3], methods=["nuq4-1%"], windows=1, seqlen=128)
    assert [method["name"] for method in report["methods"]] == ["fp", "nuq4-1%"]
    kvcal.export("x.h5", "safetensors", out="x.safetensors")

    import torch, transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    with kvcal.KvcalCache.from_file("x.safetensors", model, bits=4, outliers=0.01) as cache:
        inputs = tokenizer("Once upon a time", return_tensors="pt")
        model.generate(**inputs, max_new_tokens=20, do_sample=False, past_key_values=cache)
        print(cache)
        assert cache.get_seq_length() >= 20 and cache.bits_per_value < 8
""")


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, text=True, **options)


def make_wheel(folder, build_dir):
    options = [f"--config-settings=build-dir={build_dir.resolve()}", "--config-settings=cmake.define.KVCAL_TESTS=ON",
               "--config-settings=cmake.build-type=RelWithDebInfo"] if build_dir else []
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, *options, SOURCE / "apps" / "python")
    (wheel,) = folder.glob("kvcal-*.whl")
    return wheel


def check_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in names:
        if not re.match(r"kvcal(-[0-9.]+\.dist-info)?/", name):
            sys.exit(f"{wheel.name} holds {name}")
    for part in ("kvcal/bin/kvcal", "kvcal/py.typed", "kvcal/_core.pyi", "kvcal/cache/kvcal_cache.py"):
        if part not in names:
            sys.exit(f"{wheel.name} has no {part}")
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, {len(names)} files")


def link_packages(giver, taker):
    (source,), (target,) = (tuple(environment.glob("lib/python*/site-packages")) for environment in (giver, taker))
    for entry in source.iterdir():
        if (target / entry.name).exists() or re.match(r"kvcal|nanobind|scikit_build_core|__pycache__", entry.name):
            continue
        if entry.is_dir():
            shutil.copytree(entry, target / entry.name, symlinks=True, copy_function=os.link)
        else:
            os.link(entry, target / entry.name)


def try_it(wheel, folder, giver):
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    if giver:
        link_packages(giver, environment)
    python, program = environment / "bin" / "python", environment / "bin" / "kvcal"
    run(python, "-m", "pip", "install", "--disable-pip-version-check", "-q", wheel)
    place = folder / "elsewhere"
    place.mkdir()
    run(python, "-W", "ignore", "-c", USE, MODEL, DEMO / "calibrate.txt", DEMO / "validate.txt", cwd=place)
    version = run(python, "-c", "import kvcal; print('kvcal', kvcal.__version__)", cwd=place, capture_output=True).stdout
    if run(program, "--version", cwd=place, capture_output=True).stdout != version:
        sys.exit(f"{program} is another version than the module's {version}")
    (binary,) = environment.glob("lib/python*/site-packages/kvcal/bin/kvcal")
    libraries = run("ldd", binary, capture_output=True).stdout
    if "not found" in libraries or "/.deps/" in libraries:
        sys.exit(f"the program finds libraries where it was built, or not at all:\n{libraries}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", type=pathlib.Path)
    parser.add_argument("--packages-of", type=pathlib.Path)
    arguments = parser.parse_args()
    # On the disk of the sources, for links.
    (SOURCE / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=SOURCE / "build") as folder:
        wheel = make_wheel(pathlib.Path(folder), arguments.build_dir)
        check_contents(wheel)
        try_it(wheel, pathlib.Path(folder), arguments.packages_of)
    print("the wheel works in an empty environment")


main()
