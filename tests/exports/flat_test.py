"""`kvcal export --format flat`, read by a C program that knows cuda/kernels/flat_format.h and nothing else: every number is h5py's."""
import subprocess

import pytest

from tables_test import KV_HEADS, LAYERS, SOURCE, codebook, export, h5py, kvcal, np  # noqa: F401

READER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/kernels/flat_format.h"

static void print_floats(const char* name, const float* x, unsigned count) {
  printf("%s", name);
  for (unsigned i = 0; i < count; ++i) printf(" %a", (double)x[i]);
  printf("\n");
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  FILE* file = fopen(argv[1], "rb");
  if (file == NULL) return 1;
  KvcalFlatHeader h;
  if (fread(&h, sizeof h, 1, file) != 1 || memcmp(h.magic, KVCAL_FLAT_MAGIC, 8) != 0 || h.version < 1 || h.version > 3) return 1;
  unsigned char* block = malloc(h.file_bytes);
  rewind(file);
  if (block == NULL || fread(block, 1, h.file_bytes, file) != h.file_bytes || fgetc(file) != EOF) return 1;
  uint64_t hash = 0xcbf29ce484222325u;
  for (uint64_t i = h.header_bytes; i < h.file_bytes; ++i) hash = (hash ^ block[i]) * 0x100000001b3u;
  if (hash != h.checksum) return 1;
  printf("header %u %u %u %a %.64s %.64s\n", h.bits, h.sinks, h.value_per_head, (double)h.outlier_fraction,
         h.content_sha256, h.weights_sha256);
  for (unsigned i = 0; i < h.layers; ++i) {
    KvcalFlatLayer layer;
    memset(&layer, 0, sizeof layer);
    memcpy(&layer, block + h.layers_offset + (uint64_t)i * h.layer_bytes, h.layer_bytes < sizeof layer ? h.layer_bytes : sizeof layer);
    const unsigned channels = layer.kv_heads * layer.key_dim;
    const unsigned key_levels = 1u << (h.version == 1 ? h.bits : layer.key_bits);
    const unsigned value_levels = 1u << (h.version == 1 ? h.bits : layer.value_bits);
    printf("layer %u %u %u %u %d\n", layer.index, layer.kv_heads, layer.key_dim, layer.value_dim, (int)layer.window);
    printf("affines");
    const uint16_t* affines = (const uint16_t*)(block + layer.key_affines);
    for (unsigned c = 0; c < 2 * channels; ++c) printf(" %u", affines[c]);
    printf("\n");
    print_floats("lower", (const float*)(block + layer.key_lower), layer.key_lower ? channels : 0);
    print_floats("upper", (const float*)(block + layer.key_upper), layer.key_upper ? channels : 0);
    print_floats("key_midpoints", (const float*)(block + layer.key_midpoints), key_levels - 1);
    print_floats("key_levels", (const float*)(block + layer.key_levels), key_levels);
    print_floats("value_midpoints", (const float*)(block + layer.value_midpoints), value_levels - 1);
    print_floats("value_levels", (const float*)(block + layer.value_levels), value_levels);
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.c").write_text(READER)
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{SOURCE}", "reader.c", "-o", "reader"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "reader"


def printed(reader, path):
    """The lines of the program: a word and what follows it."""
    result = subprocess.run([reader, path], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result
    return [line.split() for line in result.stdout.splitlines()]


def floats(words):
    return np.array([float.fromhex(word) for word in words[1:]], dtype=np.float32)


@pytest.mark.parametrize("method,bits,group,qnorm", [("nuq3", 3, "outliers_0", False), ("nuq2-1%", 2, "outliers_0.01", False),
                                                     ("nuq4-1%-qn", 4, "outliers_0.01", True)])
def test_every_number_is_the_codebooks(codebook, reader, tmp_path, method, bits, group, qnorm):  # noqa: F811
    out = tmp_path / "codebook.flat"
    export(codebook, out, "flat", "--method", method)
    lines = printed(reader, out)
    with h5py.File(codebook) as file:
        fraction = np.float32(file["layers/0000/key"][group].attrs["fraction"])
        assert lines[0][1:4] == [str(bits), "1", "0"] and float.fromhex(lines[0][4]) == fraction
        assert lines[0][5:] == [file.attrs["content_sha256"].decode(), file["model"].attrs["weights_sha256"].decode()]
        assert len(lines) == 1 + 8 * LAYERS
        for index in range(LAYERS):
            layer, got = file[f"layers/{index:04d}"], lines[1 + 8 * index:9 + 8 * index]
            assert got[0] == ["layer", str(index), str(KV_HEADS), str(layer.attrs["key_dim"]), str(layer.attrs["value_dim"]), "0"]
            keys = layer["key"][group]
            lower, upper = keys["lower"][:], keys["upper"][:]
            zero = ((upper.astype(np.float64) + lower) / 2).astype(np.float32).astype(np.float16)
            scale = ((upper.astype(np.float64) - lower) / 2).astype(np.float32).astype(np.float16)
            affines = np.array(got[1][1:], dtype=np.uint16).reshape(-1, 2)
            np.testing.assert_array_equal(affines, np.stack([scale.view(np.uint16), zero.view(np.uint16)], axis=1))
            thresholds = (lower, upper) if fraction > 0 else ([], [])
            np.testing.assert_array_equal(floats(got[2]), thresholds[0])
            np.testing.assert_array_equal(floats(got[3]), thresholds[1])
            for kind, at in (("key", 4), ("value", 6)):
                table = layer[kind][group][f"nuq{bits}/centroids"]
                centroids = table[:]
                np.testing.assert_array_equal(floats(got[at]), (centroids[:-1] + centroids[1:]) / np.float32(2))
                q = np.float32(table.attrs["qnorm_scale"]), np.float32(table.attrs["qnorm_offset"])
                np.testing.assert_array_equal(floats(got[at + 1]), centroids * q[0] + q[1] if qnorm else centroids)
                assert qnorm == (not np.array_equal(floats(got[at + 1]), centroids))


def test_a_recipe_is_in_it_tensor_by_tensor(codebook, reader, tmp_path):  # noqa: F811
    book, out = tmp_path / "recipe.h5", tmp_path / "codebook.flat"
    assert kvcal("allocate", codebook, "-b", 3.1, "--out", book, "--quiet").returncode == 0
    export(book, out, "flat", "--method", "recipe")
    lines = printed(reader, out)
    assert lines[0][1:5] == ["0", "1", "0", "0x0p+0"]
    kinds = set()
    with h5py.File(book) as file:
        for index in range(LAYERS):
            got = lines[1 + 8 * index:9 + 8 * index]
            for kind, at in (("key", 4), ("value", 6)):
                chosen = file[f"recipe/{index:04d}/{kind}"].attrs
                kinds.add((int(chosen["bits"]), float(chosen["fraction"])))
                group = file[f"layers/{index:04d}/{kind}/outliers_{chosen['fraction']:g}"]
                np.testing.assert_array_equal(floats(got[at + 1]), group[f"nuq{chosen['bits']}/centroids"][:])
                if kind == "key":
                    np.testing.assert_array_equal(floats(got[2]), group["lower"][:] if chosen["fraction"] > 0 else [])
    assert len(kinds) > 1


def test_what_a_recipe_is_refused_for(codebook, tmp_path):  # noqa: F811
    for name, words in (("c-header", "takes no recipe; flat does"), ("kvquant", "takes no recipe; flat does"),
                        ("flat", "kvcal allocate writes one")):
        result = kvcal("export", codebook, "--format", name, "--method", "recipe", "--out", tmp_path / "out")
        assert result.returncode == 2 and words in result.stderr, result


def test_a_damaged_block_is_seen(codebook, reader, tmp_path):  # noqa: F811
    out = tmp_path / "codebook.flat"
    export(codebook, out, "flat", "--method", "nuq3")
    block = bytearray(out.read_bytes())
    assert len(block) % 64 == 0
    block[len(block) // 2] ^= 1
    out.write_bytes(block)
    assert subprocess.run([reader, out], capture_output=True).returncode == 1
