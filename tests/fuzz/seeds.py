"""seeds.py FOLDER [--bin DIR] [--shared DIR]: what the fuzzers begin with: a folder FOLDER/NAME for each target, from this repository's real
files and, where they are there, those of shared/data, cut down to 200 KB each with their structure kept.

--bin is a build's bin/, whose codebook_sample writes a codebook; without it there is only one of h5py's, the reader's other kind.
"""

import argparse
import gzip
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import h5py
import numpy as np

SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
MOST_BYTES = 200_000
# Enough that a merge's product is merged again.
KEPT_MERGES = 200
KEPT_ADDED = 12


def whole_tensors(content):
    """The first tensors of a safetensors file, as many as go into the limit, as a file of their own."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    kept = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        # A large tensor is cut to its first row, which is a tensor, too.
        begin, bytes_ = entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]
        rows = max(1, entry["shape"][0])
        if bytes_ > MOST_BYTES // 20:
            entry, bytes_ = entry | {"shape": [1, *entry["shape"][1:]]}, bytes_ // rows
        if end + bytes_ > MOST_BYTES // 2:
            break
        kept[name] = entry | {"data_offsets": [end, end + bytes_]}, content[8 + length + begin:][:bytes_]
        end += bytes_
    data = b"".join(part[1] for part in kept.values() if isinstance(part, tuple))
    text = json.dumps({name: part[0] if isinstance(part, tuple) else part for name, part in kept.items()}).encode()
    return len(text).to_bytes(8, "little") + text + data


def safetensors_seeds(weights):
    for folder in weights:
        yield folder.name, whole_tensors((folder / "model.safetensors").read_bytes())
    entries, end = {}, 0
    for dtype, size in {"BOOL": 1, "F8_E4M3": 1, "F16": 2, "F32": 4, "I64": 8}.items():
        entries[dtype] = {"dtype": dtype, "shape": [1], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    yield "types", len(text).to_bytes(8, "little") + text + bytes(end)


def index_seeds():
    """For the shards that index.cpp writes."""
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    whole = {"metadata": {"total_size": 48}, "weight_map": {"a": first, "b": first, "c": second}}
    yield "whole.json", json.dumps(whole, indent=2).encode()
    yield "one_shard.json", json.dumps({"weight_map": {"a": first}}).encode()


def npy_seeds():
    arrays = {kind: np.arange(12).reshape(3, 4).astype(kind) for kind in ("?", "i1", "<u2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8")}
    arrays |= {"scalar": np.float32(3), "empty": np.zeros((0, 4), "<i4"), "fortran": np.asfortranarray(np.ones((2, 3))),
               "big": np.arange(3, dtype=">i4"), "fields": np.zeros(2, [("a", "<i4"), ("b", "<f4")])}
    for name, array in arrays.items():
        for version in ((1, 0), (2, 0), (3, 0)) if name == "<f4" else ((1, 0),):
            out = io.BytesIO()
            np.lib.format.write_array(out, np.asarray(array), version)
            yield f"{name.strip('<?') or 'bool'}_{version[0]}.npy", out.getvalue()


def codebook_seeds(folder, bin_):
    sample = bin_ / "codebook_sample" if bin_ else None
    if sample and sample.exists():
        path = folder / "sample.h5"
        subprocess.run([sample, "--small", path], check=True)
        # As people edit it: h5py adds structures of its own, which the reader knows, too.
        edited = folder / "edited.h5"
        edited.write_bytes(path.read_bytes())
        with h5py.File(edited, "r+") as file:
            file["layers/0000"].attrs["note"] = "text of variable length"
            file.create_group("extra").attrs["list"] = np.arange(3)
            file["extra"].create_dataset("plain", data=np.ones(9, "f4"), fletcher32=True)
    with h5py.File(folder / "h5py.h5", "w", libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(b"kvcal-codebook")
        file.create_dataset("layers/0000/key/fisher_channel", data=np.ones(4, "f4"), fletcher32=True, chunks=(4,))


def cut_tokenizer(tokenizer):
    """The first merges, the vocabulary that they need, the bytes and the first added tokens, with ids of their own."""
    model = tokenizer["model"]
    merges = model["merges"][:KEPT_MERGES]
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
    wanted = {part for pair in pairs for part in (*pair, "".join(pair))}
    added = tokenizer["added_tokens"][:KEPT_ADDED]
    wanted |= {token["content"] for token in added} | {model.get("unk_token")}
    vocabulary = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])
                  if token in wanted or (len(token) == 1 and ord(token) < 0x200) or re.fullmatch("<0x[0-9A-F]{2}>", token)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    for token in added:
        ids.setdefault(token["content"], len(ids))
    post = json.loads(json.dumps(tokenizer.get("post_processor")))
    for part in [post, *(post or {}).get("processors", [])] if post else []:
        for name, special in part.get("special_tokens", {}).items() if isinstance(part.get("special_tokens"), dict) else ():
            special["ids"] = [ids.get(token, 0) for token in special["tokens"]]
    return tokenizer | {"model": model | {"vocab": {token: ids[token] for token in vocabulary}, "merges": merges},
                        "added_tokens": [token | {"id": ids[token["content"]]} for token in added], "post_processor": post}


def tokenizer_seeds(files):
    for file in files:
        cut = json.dumps(cut_tokenizer(json.loads(file.read_text())), ensure_ascii=False).encode()
        yield f"{file.parent.name}.json", cut
    # Small ones, so that much of what is mutated is structure.
    bytes_ = {"a": 0, "b": 1, "ab": 2, "$": 3, "Ġ": 4}
    small = {"added_tokens": [{"id": 5, "content": "<s>", "special": True, "lstrip": True, "rstrip": False, "single_word": False,
                               "normalized": False}],
             "normalizer": {"type": "Sequence", "normalizers": [
                 {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "b"},
                 {"type": "Prepend", "prepend": "a"}, {"type": "Strip", "strip_left": True, "strip_right": False},
                 {"type": "Lowercase"}]},
             "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                 {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}]?\\p{L}+|\\s+(?!\\S)"}, "behavior": "Isolated",
                  "invert": False},
                 {"type": "Digits", "individual_digits": True},
                 {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]},
             "post_processor": None, "decoder": None,
             "model": {"type": "BPE", "vocab": bytes_, "merges": [["a", "b"]], "unk_token": "$", "fuse_unk": True}}
    yield "small.json", json.dumps(small).encode()


def config_seeds(folders):
    for folder in folders:
        yield f"{folder.name}.json", (folder / "config.json").read_bytes()
    llama3 = json.loads((MODEL / "config.json").read_text()) | {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}
    yield "llama3.json", json.dumps(llama3).encode()
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64, "hidden_size": 64, "vocab_size": 256,
               "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
               "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512}
    yield "mistral.json", json.dumps(mistral).encode()


def text_seeds():
    plain = (SOURCE / "data" / "demo" / "calibrate.txt").read_bytes()[:2000]
    documents = [{"text": line, "id": i} for i, line in enumerate(plain.decode(errors="replace").splitlines()[:8])]
    lines = "\n".join(map(json.dumps, documents)).encode()
    yield from {"plain.txt": plain, "lines.jsonl": lines, "array.json": json.dumps(documents).encode(),
                "windows.txt": "\ufeffa\r\nb".encode(), "latin.txt": "é".encode("latin-1") * 9}.items()
    for name, content in {"plain": plain, "lines": lines, "empty": b""}.items():
        yield f"{name}.gz", gzip.compress(content, mtime=0)
    yield "two.gz", gzip.compress(b"a", mtime=0) + gzip.compress(lines, mtime=0) + bytes(512)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":", 1)[1].split(".")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--bin", type=pathlib.Path)
    parser.add_argument("--shared", type=pathlib.Path, default=SOURCE.parent / "shared" / "data")
    options = parser.parse_args()
    weights = [MODEL, *sorted(p.parent for p in options.shared.glob("weights/*/model.safetensors"))]
    tokenizers = [MODEL / "tokenizer.json", *sorted(options.shared.glob("*/*/tokenizer.json"))]
    seeds = {"safetensors": safetensors_seeds(weights), "index": index_seeds(), "npy": npy_seeds(), "tokenizer": tokenizer_seeds(tokenizers),
             "config": config_seeds([folder for folder in weights if (folder / "config.json").exists()]), "text": text_seeds()}
    for target, contents in seeds.items():
        folder = options.folder / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents:
            (folder / name).write_bytes(content)
    (options.folder / "codebook").mkdir(exist_ok=True)
    codebook_seeds(options.folder / "codebook", options.bin)
    for file in sorted(options.folder.rglob("*")):
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            sys.exit(f"{file}: a seed of {file.stat().st_size} bytes; the fuzzer would spend its time on it")


if __name__ == "__main__":
    main()
