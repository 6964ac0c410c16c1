"""Codebooks that are made for a test with h5py: large ones of random content, and changed copies."""
import hashlib
import json

import pytest

np = pytest.importorskip("numpy")
h5py = pytest.importorskip("h5py")


def content_sha256(file):
    """As docs/codebook-format.md defines it."""
    records = {f"/@{name}": value for name, value in file.attrs.items() if name != "content_sha256"}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            records["/" + name] = item[()]
        records.update({f"/{name}@{key}": value for key, value in item.attrs.items()})

    file.visititems(add)
    digest = hashlib.sha256()
    for path, value in sorted(records.items(), key=lambda record: record[0].encode()):
        if isinstance(value, (str, bytes)):
            kind, shape, data = "string", (), value.encode() if isinstance(value, str) else value
        else:
            array = np.asarray(value)
            kind, shape, data = array.dtype.name, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes()
        for text in (path, kind, ",".join(map(str, shape))):
            digest.update(text.encode() + b"\0")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def reseal(file):
    file.attrs["content_sha256"] = np.bytes_(content_sha256(file))


def attributes(item, values):
    for name, value in values.items():
        item.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


def write_sets(parent, group, channels, fractions, bits, random):
    """outliers_...: thresholds where there are channels, and datatypes with a histogram where there are bits."""
    for fraction in fractions:
        one = parent.create_group(f"{group}/outliers_{fraction:g}")
        one.attrs["fraction"] = float(fraction)
        if channels:
            half = np.exp(random.normal(0, 0.5, channels)).astype("f4") * np.float32(1 - 20 * fraction)
            centre = random.normal(0, 0.3, channels).astype("f4")
            one.create_dataset("lower", data=centre - half, fletcher32=True, chunks=(channels,))
            one.create_dataset("upper", data=centre + half, fletcher32=True, chunks=(channels,))
        if bits:
            histogram = random.random(128).astype("f4")
            one.create_dataset("histogram", data=histogram / histogram.sum(), fletcher32=True, chunks=(128,))
        for b in bits:
            levels = np.sort(random.uniform(-1, 1, 2**b)).astype("f4")
            item = one.create_dataset(f"nuq{b}/centroids", data=levels, fletcher32=True, chunks=(2**b,))
            objective = random.random() * 4.0**-b
            attributes(item, {"objective": objective, "lower_bound": 0.999 * objective, "qnorm_scale": 1.01,
                              "qnorm_offset": -0.003, "weights": "fisher"})


def write_codebook(path, layers, heads, dim, fractions, bits=(2, 3, 4)):
    """A valid codebook of schema 1.2 with random content."""
    random, channels, rope = np.random.default_rng(7), heads * dim, '{"theta":10000.0,"type":"default"}'
    with h5py.File(path, "w") as file:
        attributes(file, {"format": "kvcal-codebook", "schema_major": 1, "schema_minor": 2, "created_by": "page_test",
                          "complete": np.uint8(1)})
        attributes(file.create_group("model"), {
            "name": "large", "architecture": "LlamaForCausalLM", "config_sha256": "0" * 64, "weights_sha256": "1" * 64,
            "num_layers": layers, "num_attention_heads": 64, "num_kv_heads": heads, "head_dim": dim, "rope": rope})
        options = json.dumps({"bits": list(bits), "outliers": list(fractions), "sinks": 1})
        attributes(file.create_group("calibration"), {
            "revision": 5, "options": options, "texts": json.dumps([{"name": "t.txt", "sha256": "2" * 64}]),
            "tokens_sha256": "3" * 64, "samples": 16, "seqlen": 2048, "tokens": 32768, "bos": "each", "sinks": 1, "seed": 0,
            "dtype": "bfloat16", "device": "cpu", "value_scope": "token", "sensitivity": "fisher", "fisher_scale": "range",
            "loss": 2.0})
        for number in range(layers):
            layer = file.create_group(f"layers/{number:04}")
            attributes(layer, {"kv_heads": heads, "key_dim": dim, "value_dim": dim, "rope": rope, "window": 0})
            for name in ("key", "value"):
                tensor = layer.create_group(name)
                attributes(tensor, {"threshold_shift": 0.02, "datatype_excess": 0.01})
                fisher = random.exponential(1e-6, channels).astype("f4")
                tensor.create_dataset("fisher_channel", data=fisher, fletcher32=True, chunks=(channels,))
                write_sets(layer, name, channels if name == "key" else 0, fractions, bits, random)
            write_sets(layer, "key_rope", channels, fractions, (), random)
        reseal(file)
    return path


def changed(codebook, path, *edits):
    path.write_bytes(codebook.read_bytes())
    with h5py.File(path, "r+") as file:
        for edit in edits:
            edit(file)
        reseal(file)
    return path
