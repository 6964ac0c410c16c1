#!/usr/bin/env bash
# setup.sh: installs what kvcal needs, builds it, runs the demo or the tests. Safe to run twice. `./setup.sh --help`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
Usage: ./setup.sh [COMMAND] [OPTIONS]

Prepares a Debian bookworm machine (Ubuntu 24.04 has the same packages): compilers and libraries from the distribution,
libtorch from PyPI into .deps/venv, plotly.js into .deps/plotly. What is there already is left alone, so a second run is quick and needs no root.

Commands:
  (none)          only set up, to build the program
  demo            set up, build the preset `release`, calibrate the bundled model into build/demo.h5, show it and what it costs,
                  also as a page, build/demo.html
  test            set up with what tests need, build the preset `dev`, run all tests (the Python ones too)

Options:
  --tests         set up what tests and the developers' checks need, too: GoogleTest, clang, Python's torch, transformers
  --cuda          set up nvcc, from PyPI, of the CUDA version that the libtorch is made for; with --build cuda, use it
  --torch DIR     use this libtorch (the folder that holds include/ and lib/) and download nothing of torch; remembered
                  in .deps/torch. `--torch pypi` goes back to the one from PyPI
  --build PRESET  configure and build a preset: release, dev, asan or cuda. The program is build/PRESET/bin/kvcal
  --jobs N        compile N files at a time (default: one per CPU, less where memory is short)
  -h, --help      this text

Examples:
  ./setup.sh demo
  ./setup.sh --torch ~/libtorch --build release
TEXT
}

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }
wrong_usage() { printf 'setup.sh: %s (./setup.sh --help lists what there is)\n' "$*" >&2; exit 2; }

readonly deps=.deps venv=.deps/venv requirements=tests/requirements.txt plotly=plotly==7.1.0
command= torch_choice= build= jobs= with_tests=0 with_cuda=0

parse_arguments() {
  while (($#)); do
    case $1 in
      demo | test)
        [[ -z $command ]] || wrong_usage "one command at a time, not '$command' and '$1'"
        command=$1 ;;
      --tests) with_tests=1 ;;
      --cuda) with_cuda=1 ;;
      --torch | --build | --jobs)
        (($# > 1)) && [[ -n $2 ]] || wrong_usage "$1 needs a value"
        case $1 in
          --torch) torch_choice=$2 ;;
          --build) build=$2 ;;
          --jobs) jobs=$2 ;;
        esac
        shift ;;
      -h | --help) usage; exit 0 ;;
      *) wrong_usage "unknown argument '$1'" ;;
    esac
    shift
  done
  case $build in '' | release | dev | asan | cuda) ;; *) wrong_usage "no preset '$build'" ;; esac
  [[ -z $jobs || $jobs =~ ^[1-9][0-9]*$ ]] || wrong_usage "--jobs needs a number of at least 1, not '$jobs'"
  case $command in
    demo) build=${build:-release} ;;
    test) build=${build:-dev} with_tests=1 ;;
  esac
}

as_root() {
  if (($(id -u) == 0)); then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "must be root, or have sudo, to install:${missing[*]/#/ }"
  fi
}

# The distribution's packages. A preset builds the tests, too, so GoogleTest is always among them.
install_packages() {
  local wanted=(g++ cmake ninja-build ccache git ca-certificates python3 python3-venv libcli11-dev libspdlog-dev
                libhdf5-dev libeigen3-dev nlohmann-json3-dev libonig-dev libutf8proc-dev libsentencepiece-dev
                pkgconf libgtest-dev libbenchmark-dev zlib1g-dev)
  ((!with_tests)) || wanted+=(clang clang-format libomp-dev libclang-rt-dev hdf5-tools binutils python3-dev chromium
                               chromium-driver)
  command -v dpkg-query >/dev/null || fail "this is not Debian or a relative of it. Install the equivalents of: ${wanted[*]}"
  local package
  missing=()
  for package in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  say "Installing from the distribution: ${missing[*]}"
  as_root apt-get update -q
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

make_venv() {
  "$venv/bin/python" -c 'import pip' 2>/dev/null && return
  say "Making the Python environment $venv"
  local python=/usr/bin/python3
  [[ -x $python ]] || python=python3
  "$python" -m venv --clear "$venv"
}

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -q "$@"; }

# once NAME KEY COMMAND...: runs the command unless it has succeeded for this key before in this environment.
once() {
  local stamp=$venv/.kvcal-$1 key=$2
  [[ $(cat "$stamp" 2>/dev/null || true) != "$key" ]] || return 0
  shift 2
  "$@"
  printf '%s\n' "$key" >"$stamp"
}

pinned() { grep -E "^$1==" "$requirements" || fail "$requirements does not pin $1"; }

# The requirement of torch's metadata on NVIDIA's toolkit, for the given parts: `cuda-toolkit[cudart,cupti]==13.2.2`.
# Empty for a torch built without CUDA.
toolkit_requirement() {
  "$venv/bin/python" - "$1" <<'PYTHON'
import re, sys
from importlib.metadata import requires
for requirement in requires("torch") or []:
    match = re.match(r"cuda-toolkit\[[^]]*\]\s*([^;]*)", requirement)
    if match and "extra ==" not in requirement:
        print(f"cuda-toolkit[{sys.argv[1]}]{match.group(1).strip()}")
PYTHON
}

# The C++ libraries of the wheel and the two of NVIDIA's that libtorch_cpu.so is linked with: not the gigabytes that only a
# GPU or Python needs.
install_libtorch() {
  say "Installing libtorch ($(pinned torch)) from PyPI"
  pip_install --no-deps "$(pinned torch)"
  local toolkit
  toolkit=$(toolkit_requirement cudart,cupti)
  # pip would warn that the rest of what torch names is missing.
  [[ -z $toolkit ]] || pip_install --no-warn-conflicts "$toolkit"
}

install_python_packages() {
  say "Installing the Python packages that tests compare with ($requirements) from PyPI"
  if uses_own_torch; then
    # Nothing of torch: what needs Python's torch is skipped by the tests, which say so.
    local reduced=$deps/requirements-without-torch.txt
    grep -v -E '^(torch|accelerate|compressed-tensors|lm-eval)==' "$requirements" >"$reduced"
    pip_install -r "$reduced"
  else
    pip_install -r "$requirements"
  fi
}

# The plotly.js that pages carry, and its licence: two files of a package of some thousand.
install_plotly() {
  say "Getting plotly.js ($plotly) from PyPI"
  rm -rf "$deps/plotly" && mkdir -p "$deps/plotly"
  "$venv/bin/python" -m pip download --disable-pip-version-check --no-input -q --no-deps --only-binary :all: -d "$deps/plotly" "$plotly"
  "$venv/bin/python" - "$deps/plotly" <<'PYTHON'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as files:
    for name in files.namelist():
        path = pathlib.PurePosixPath(name)
        if name == "plotly/package_data/plotly.min.js" or ".dist-info/" in name and path.name == "LICENSE.txt":
            (folder / path.name).write_bytes(files.read(name))
wheel.unlink()
PYTHON
}

install_nvcc() {
  local toolkit=
  uses_own_torch || toolkit=$(toolkit_requirement nvcc,nvdisasm,cccl,crt,cudart)
  say "Installing nvcc (${toolkit:-the newest}) from PyPI"
  pip_install --no-warn-conflicts "${toolkit:-cuda-toolkit[nvcc,nvdisasm,cccl,crt,cudart]}"
}

own_torch_path() { cat "$deps/own-torch" 2>/dev/null || true; }
uses_own_torch() { [[ -n $(own_torch_path) ]]; }

check_torch() {
  local file
  for file in lib/libtorch_cpu.so lib/libc10.so include/ATen/ATen.h include/torch/csrc/api/include/torch/torch.h; do
    [[ -e $1/$file ]] || fail "'$1' is no libtorch: it has no $file. Name the folder that holds its include/ and lib/."
  done
  local lost
  lost=$(ldd "$1/lib/libtorch_cpu.so" | grep 'not found' || true)
  [[ -z $lost ]] || fail "libraries that $1/lib/libtorch_cpu.so needs are missing: $lost"
}

choose_torch() {
  mkdir -p "$deps"
  case $torch_choice in
    '') ;;
    pypi) rm -f "$deps/own-torch" ;;
    *)
      [[ -d $torch_choice ]] || fail "--torch: there is no folder '$torch_choice'"
      torch_choice=$(realpath "$torch_choice")
      check_torch "$torch_choice"
      printf '%s\n' "$torch_choice" >"$deps/own-torch" ;;
  esac
}

# .deps/torch is where base/cmake/torch.cmake looks.
install_torch() {
  local torch
  torch=$(own_torch_path)
  if [[ -z $torch ]]; then
    once libtorch "$(pinned torch)" install_libtorch
    torch=$(echo "$PWD/$venv"/lib/python3*/site-packages/torch)
  fi
  check_torch "$torch"
  [[ $(readlink "$deps/torch" || true) == "$torch" ]] || ln -sfn "$torch" "$deps/torch"
}

# A file that includes libtorch takes about 2 GiB to compile.
default_jobs() {
  local cpus kilobytes limit
  cpus=$(nproc)
  kilobytes=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || true)
  if [[ $limit =~ ^[0-9]+$ ]] && ((limit / 1024 < kilobytes)); then kilobytes=$((limit / 1024)); fi
  local by_memory=$((kilobytes / (2 * 1024 * 1024)))
  echo $((by_memory < 1 ? 1 : by_memory < cpus ? by_memory : cpus))
}

# build_preset PRESET [TARGET]
build_preset() {
  say "Building the preset $1 in build/$1, $jobs at a time"
  local options=()
  if [[ $1 == cuda ]] && ((with_cuda)); then
    local nvcc
    nvcc=$(echo "$PWD/$venv"/lib/python3*/site-packages/nvidia/cu*/bin/nvcc)
    [[ -x $nvcc ]] || fail "the CUDA packages in $venv have no bin/nvcc"
    options+=(-DCMAKE_CUDA_COMPILER="$nvcc")
  fi
  cmake --preset "$1" "${options[@]}"
  cmake --build --preset "$1" --parallel "$jobs" --target "${2:-all}"
}

run_demo() {
  local program=build/$build/bin/kvcal out=build/demo.h5
  say "Calibrating the bundled model: $program calibrate --model data/model --text data/demo/calibrate.txt --out $out"
  "$program" calibrate --model data/model --text data/demo/calibrate.txt --out "$out" --overwrite
  say "What is in it: $program inspect $out"
  "$program" inspect "$out"
  say "What it costs, on other text: $program validate --model data/model --codebook $out --text data/demo/validate.txt --html build/demo.html"
  "$program" validate --model data/model --codebook "$out" --text data/demo/validate.txt --html build/demo.html
}

main() {
  parse_arguments "$@"
  install_packages
  choose_torch
  make_venv
  install_torch
  once plotly "$plotly" install_plotly
  if ((with_tests)); then
    once tests "$(sha256sum <"$requirements") own torch: $(own_torch_path)" install_python_packages
  fi
  if ((with_cuda)); then once nvcc-nvdisasm "$(pinned torch) own torch: $(own_torch_path)" install_nvcc; fi
  jobs=${jobs:-$(default_jobs)}
  case $command in
    demo)
      build_preset "$build" kvcal
      run_demo ;;
    test)
      build_preset "$build"
      say "Running the tests"
      ctest --preset "$build" --parallel "$jobs" ;;
    '')
      if [[ -n $build ]]; then build_preset "$build"
      else say "Ready. Build with ./setup.sh --build release, or cmake --preset release"
      fi ;;
  esac
}

main "$@"
