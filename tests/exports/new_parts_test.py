"""Exports of codebooks with fitted ranges and turned values: what carries them, and what refuses them by name."""

import os
import struct
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors import safe_open

KVCAL = Path(os.environ["KVCAL_BUILD"]) / "bin" / "kvcal"
SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).parents[2]))
GROUP = "key/outliers_0.01/nuq3"
PARTS = {"fitted": ("--ranges", "fitted"), "turned": ("--value-rotation", "hadamard")}


def kvcal(*arguments):
    return subprocess.run([str(a) for a in (KVCAL, *arguments)], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    for name, options in PARTS.items():
        done = kvcal("calibrate", "-m", SOURCE / "data" / "model", "-f", SOURCE / "data" / "demo" / "calibrate.txt", "--samples", 2,
                     "--seqlen", 128, "--bits", 3, "--outliers", 0.01, "--dtype", "float32", "--threads", 2, *options,
                     "-o", folder / f"{name}.h5")
        assert done.returncode == 0, done.stderr
    return folder


def export(books, name, target, out):
    method = () if target == "safetensors" else ("--method", "nuq3-1%")
    return kvcal("export", books / f"{name}.h5", "--format", target, *method, "--out", out)


def test_flat_holds_fitted_ranges_as_the_channels_scales_and_zeros(books, tmp_path):
    out = tmp_path / "book.flat"
    assert export(books, "fitted", "flat", out).returncode == 0
    data = out.read_bytes()
    layers_offset, layers, layer_bytes = struct.unpack_from("<QII", data, 32)
    with h5py.File(books / "fitted.h5") as file:
        assert layers == len(file["layers"])
        for index in range(layers):
            (affines,) = struct.unpack_from("<Q", data, layers_offset + index * layer_bytes + 24)
            group = file[f"layers/{index:04d}/{GROUP}"]
            expected = np.stack([group["scale"][:], group["zero"][:]], 1).astype(np.float16)
            stored = np.frombuffer(data, np.float16, expected.size, affines).reshape(expected.shape)
            np.testing.assert_array_equal(stored, expected)


def test_flat_holds_the_block_of_turned_values(books, tmp_path):
    out = tmp_path / "book.flat"
    done = export(books, "turned", "flat", out)
    words = " ".join(done.stdout.split())
    assert done.returncode == 0 and "flat_format.h, version 3;" in words and "values are stored turned" in words, done
    data = out.read_bytes()
    (version,) = struct.unpack_from("<I", data, 8)
    layers_offset, layers, layer_bytes = struct.unpack_from("<QII", data, 32)
    assert version == 3 and layer_bytes == 104
    with h5py.File(books / "turned.h5") as file:
        assert layers == len(file["layers"])
        for index in range(layers):
            at = layers_offset + index * layer_bytes
            key_bits, value_bits, key_outliers, value_outliers, block = struct.unpack_from("<2I2fI", data, at + 80)
            assert (key_bits, value_bits, block) == (3, 3, file[f"layers/{index:04d}/value"].attrs["rotation_block"])
            assert key_outliers == value_outliers == np.float32(0.01)
            (levels,) = struct.unpack_from("<Q", data, at + 72)
            np.testing.assert_array_equal(np.frombuffer(data, np.float32, 8, levels),
                                          file[f"layers/{index:04d}/value/outliers_0.01/nuq3/centroids"][:])


def test_safetensors_holds_both(books, tmp_path):
    for name in PARTS:
        out = tmp_path / f"{name}.safetensors"
        assert export(books, name, "safetensors", out).returncode == 0
        with safe_open(out, "np") as file, h5py.File(books / f"{name}.h5") as book:
            if name == "fitted":
                for part in ("scale", "zero", "histogram"):
                    np.testing.assert_array_equal(file.get_tensor(f"layers/0002/{GROUP}/{part}"), book[f"layers/0002/{GROUP}/{part}"][:])
            else:
                assert f'"rotation_block":{book["layers/0002/value"].attrs["rotation_block"]}' in file.metadata()["kvcal"]


def test_the_c_header_holds_fitted_ranges_under_names_of_their_own(books, tmp_path):
    """Compiled and printed; code that takes thresholds for ranges doesn't compile."""
    assert export(books, "fitted", "c-header", tmp_path / "codebook.h").returncode == 0
    (tmp_path / "print.c").write_text("""#include <stdio.h>
#include "codebook.h"
int main(void) {
  for (int layer = 0; layer < KVCAL_NUM_LAYERS; ++layer) {
    const struct kvcal_layer *l = &kvcal_layers[layer];
    for (int c = 0; c < l->kv_heads * l->key_dim; ++c)
      printf("%.9g %.9g %.9g %.9g\\n", l->key_scale[c], l->key_zero[c], l->key_outlier_below[c], l->key_outlier_above[c]);
  }
  return KVCAL_KEY_RANGES == 1 ? 0 : 1;
}
""")
    compile_c = ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run([*compile_c, tmp_path / "print.c", "-o", tmp_path / "print"], check=True)
    printed = np.array(subprocess.run([tmp_path / "print"], check=True, capture_output=True, text=True).stdout.split(), np.float32)
    with h5py.File(books / "fitted.h5") as file:
        rows = [np.stack([layer[f"{GROUP}/scale"][:], layer[f"{GROUP}/zero"][:], layer["key/outliers_0.01/lower"][:],
                          layer["key/outliers_0.01/upper"][:]], 1) for layer in file["layers"].values()]
    np.testing.assert_array_equal(printed, np.concatenate(rows).ravel())
    (tmp_path / "old.c").write_text('#include "codebook.h"\nint main(void) { return kvcal_layers[0].key_lower == 0; }\n')
    assert subprocess.run([*compile_c, "-c", tmp_path / "old.c", "-o", tmp_path / "old.o"], capture_output=True).returncode != 0


def test_the_c_header_holds_the_block_of_turned_values(books, tmp_path):
    """Compiled and printed; code that does not know of turning doesn't compile."""
    done = export(books, "turned", "c-header", tmp_path / "codebook.h")
    assert done.returncode == 0
    (tmp_path / "print.c").write_text("""#include <stdio.h>
#include "codebook.h"
int main(void) {
  for (int layer = 0; layer < KVCAL_NUM_LAYERS; ++layer) {
    const struct kvcal_layer *l = &kvcal_layers[layer];
    printf("%d\\n", l->value_rotation_block);
    for (int k = 0; k < KVCAL_CENTROIDS; ++k) printf("%.9g %.9g\\n", l->turned_value_centroids[k], l->turned_value_levels[k]);
  }
  return KVCAL_VALUES_TURNED == 1 ? 0 : 1;
}
""")
    compile_c = ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run([*compile_c, tmp_path / "print.c", "-o", tmp_path / "print"], check=True)
    printed = np.array(subprocess.run([tmp_path / "print"], check=True, capture_output=True, text=True).stdout.split(), np.float32)
    expected = []
    with h5py.File(books / "turned.h5") as file:
        for layer in file["layers"].values():
            centroids = layer["value/outliers_0.01/nuq3/centroids"][:]
            expected += [layer["value"].attrs["rotation_block"], *np.repeat(centroids, 2)]
    np.testing.assert_array_equal(printed, np.array(expected, np.float32))
    (tmp_path / "old.c").write_text('#include "codebook.h"\nint main(void) { return kvcal_layers[0].value_levels == 0; }\n')
    assert subprocess.run([*compile_c, "-c", tmp_path / "old.c", "-o", tmp_path / "old.o"], capture_output=True).returncode != 0


@pytest.mark.parametrize("name,target,what", [
    ("turned", "kvquant", "layer 0, value: the codebook is of turned heads (--value-rotation), for which KVQuant's pickle has no place"),
])
def test_what_cannot_carry_a_part_refuses_it_by_name(books, tmp_path, name, target, what):
    out = tmp_path / "out"
    done = export(books, name, target, out)
    assert done.returncode == 1 and what in " ".join(done.stderr.split()), done.stderr
    assert not out.exists()


def test_the_ablation_takes_the_papers_method_apart(tmp_path):
    for options in PARTS.values():
        done = kvcal("calibrate", "-m", SOURCE / "data" / "model", "-f", SOURCE / "data" / "demo" / "calibrate.txt", "--ablation", *options,
                     "-o", tmp_path / "out.h5")
        assert done.returncode == 2 and "give --ranges threshold and --value-rotation none" in done.stderr
