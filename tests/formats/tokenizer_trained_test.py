"""Our ids and BOS are those of PyPI's tokenizers and sentencepiece, with tokenizers trained here: a clone without shared data proves it, too.

KVCAL_BUILD names the build folder (bin/tokenize_file, bin/kvcal). trained_tokenizers.py has the constructions and the texts.
"""
import hashlib
import io
import json
import os
import pathlib
import struct
import subprocess

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="needs PyPI's tokenizers")
from tokenizers import models, pre_tokenizers, trainers  # noqa: E402

from trained_tokenizers import CORPUS, DEMO, RECIPES, SENTENCEPIECE, SOURCE, WHOLE, random_texts  # noqa: E402

BIN = pathlib.Path(os.environ.get("KVCAL_BUILD", "")) / "bin"
if not (BIN / "tokenize_file").exists():
    pytest.skip("needs KVCAL_BUILD with bin/tokenize_file", allow_module_level=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a construction, trained once."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            RECIPES[name]().save(str(folders[name] / "tokenizer.json"))
        return folders[name]

    return folder


def ours(folder, texts, tmp_path, *flags):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    done = subprocess.run([BIN / "tokenize_file", folder, file, "--lines", *flags], capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return [[int(i) for i in line.split()] for line in done.stdout.splitlines()]


def texts_for(name, specials):
    return [*WHOLE, *dict.fromkeys(line for text in WHOLE for line in text.split("\n")), *random_texts(name, 600, specials)]


@pytest.mark.parametrize("parse_special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("name", RECIPES)
def test_ids_are_those_of_tokenizers(name, parse_special, trained, tmp_path):
    folder = trained(name)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = not parse_special
    texts = texts_for(name, [token.content for token in tokenizer.get_added_tokens_decoder().values()])
    compared = 0
    for text, ids in zip(texts, ours(folder, texts, tmp_path, *[] if parse_special else ["--no-parse-special"]), strict=True):
        try:
            expected = tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:  # the reference has panics of its own
            if type(error).__name__ != "PanicException":
                raise
            continue
        assert ids == expected, ascii(text[:400])
        compared += 1
    assert compared > 0.98 * len(texts) > 1000


TEXT_FOR_BOS = DEMO[1][:3000]


def calibrated(folder, tmp_path, config=None):
    """What --bos auto did with the repository's model and that tokenizer: where it went, and the hash of the 32 tokens."""
    h5py = pytest.importorskip("h5py")
    if not (BIN / "kvcal").exists():
        pytest.skip("needs bin/kvcal")
    model = tmp_path / "model"
    model.mkdir()
    for file in ("config.json", "model.safetensors"):
        (model / file).symlink_to(SOURCE / "data" / "model" / file)
    for file in folder.iterdir():
        (model / file.name).symlink_to(file)
    if config is not None:
        (model / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "text.txt").write_bytes(TEXT_FOR_BOS.encode())
    small = ["--samples", "1", "--seqlen", "32", "--bits", "2", "--outliers", "0", "--sensitivity", "none", "--quiet"]
    subprocess.run([BIN / "kvcal", "calibrate", "--model", model, "--text", tmp_path / "text.txt", "--out", tmp_path / "out.h5", *small],
                   check=True, capture_output=True, timeout=300)
    with h5py.File(tmp_path / "out.h5") as file:
        return file["calibration"].attrs["bos"].decode(), file["calibration"].attrs["tokens_sha256"].decode()


def window(ids):
    return hashlib.sha256(struct.pack("<32i", *ids[:32])).hexdigest()


@pytest.mark.parametrize("name", RECIPES)
def test_bos_is_that_of_tokenizers(name, trained, tmp_path):
    tokenizer = tokenizers.Tokenizer.from_file(str(trained(name) / "tokenizer.json"))
    with_bos, plain = (tokenizer.encode(TEXT_FOR_BOS, add_special_tokens=add).ids for add in (True, False))
    expected = "none" if with_bos[:32] == plain[:32] else "each"
    assert calibrated(trained(name), tmp_path) == (expected, window(with_bos))


@pytest.mark.parametrize("config,bos", [({"bos_token": "<|im_start|>", "add_bos_token": True}, "<|im_start|>"),
                                        ({"bos_token": {"content": "<|im_end|>"}, "add_bos_token": True}, "<|im_end|>"),
                                        ({"bos_token": "<|im_start|>", "add_bos_token": False}, None),
                                        ({"bos_token": "<|im_start|>"}, None), ({"bos_token": None}, None)], ids=json.dumps)
def test_bos_without_post_processor_is_the_configs(config, bos, trained, tmp_path):
    tokenizer = tokenizers.Tokenizer.from_file(str(trained("qwen") / "tokenizer.json"))
    first = [tokenizer.token_to_id(bos)] if bos else []
    ids = tokenizer.encode(TEXT_FOR_BOS, add_special_tokens=False).ids
    assert calibrated(trained("qwen"), tmp_path, config) == ("each" if bos else "none", window(first + ids))


@pytest.mark.parametrize("model,trainer", [(models.Unigram(), trainers.UnigramTrainer), (models.WordPiece(unk_token="x"), trainers.WordPieceTrainer),
                                           (models.WordLevel(unk_token="x"), trainers.WordLevelTrainer)], ids=["Unigram", "WordPiece", "WordLevel"])
def test_other_models_are_refused_by_name(model, trainer, tmp_path):
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS[:300], trainer(vocab_size=500, special_tokens=["x"], show_progress=False))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    done = subprocess.run([BIN / "tokenize_file", tmp_path, tmp_path / "tokenizer.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tmp_path}/tokenizer.json: " in done.stderr and f"'{type(model).__name__}'" in done.stderr


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    """The package's processor and the folder of a tokenizer.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [line.replace("\0", "").strip("\r\n") for line in CORPUS]
    made = {}

    def get(name):
        if name not in made:
            writer = io.BytesIO()
            options = {"vocab_size": 1200, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 2, **SENTENCEPIECE[name]}
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=writer, **options)
            folder = tmp_path_factory.mktemp(name)
            (folder / "tokenizer.model").write_bytes(writer.getvalue())
            made[name] = sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue()), folder
        return made[name]

    return get


def parts_of(text, specials):
    """The text cut at its special tokens, the leftmost first, of those the longest."""
    found = min(((text.find(s), -len(s), s) for s in specials if s in text), default=None)
    if found is None:
        return [text]
    at, _, special = found
    return [text[:at], special, *parts_of(text[at + len(special):], specials)]


def check_tie(processor, ids, expected):
    """Unigram takes the cut of the highest score, summed in float32: releases of the library order equal ones in other ways (0.1.97 and
    0.2.3: "!" "!!!" and "!!!" "!"; in 50,000 characters the sum's rounding makes more of them equal). Both are cuts of the same text."""
    def text(ids):
        pieces = [processor.id_to_piece(i) for i in ids]
        return b"".join(bytes([int(p[3:5], 16)]) if processor.is_byte(i) else p.encode() for i, p in zip(ids, pieces))

    assert text(ids) == text(expected)
    scores = [sum(map(processor.get_score, i)) for i in (ids, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=2.0**-24)


@pytest.mark.parametrize("parse_special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_ids_are_those_of_sentencepiece(name, parse_special, spm, tmp_path):
    processor, folder = spm(name)
    specials = {processor.id_to_piece(i): i for i in range(len(processor)) if processor.is_control(i) or processor.is_unknown(i)}
    texts = texts_for(name, [*specials, *SENTENCEPIECE[name].get("user_defined_symbols", [])])
    got = ours(folder, texts, tmp_path, *[] if parse_special else ["--no-parse-special"])
    ties = 0
    for text, ids in zip(texts, got, strict=True):
        parts = parts_of(text, specials if parse_special else {})
        # Every second part is a special token.
        expected = [i for n, part in enumerate(parts) for i in ([specials[part]] if n % 2 else processor.encode(part) if part else [])]
        if ids != expected and SENTENCEPIECE[name]["model_type"] == "unigram":
            check_tie(processor, ids, expected)
            ties += 1
            continue
        assert ids == expected, ascii(text[:400])
    assert ties < 0.01 * len(texts)


@pytest.mark.parametrize("config", [None, {"add_bos_token": False}, {"bos_token": "</s>"}], ids=json.dumps)
@pytest.mark.parametrize("name", ["bpe-llama-2", "bpe-suffix"])
def test_bos_of_sentencepiece(name, config, spm, tmp_path):
    """As Llama's tokenizer: added unless the config says otherwise; where the model has none, config.json's."""
    processor, folder = spm(name)
    own = processor.bos_id() if processor.bos_id() >= 0 else json.loads((SOURCE / "data" / "model" / "config.json").read_text())["bos_token_id"]
    bos = processor.piece_to_id("</s>") if config == {"bos_token": "</s>"} else own
    adds = config != {"add_bos_token": False}
    ids = processor.encode(TEXT_FOR_BOS)
    assert calibrated(folder, tmp_path, config) == ("each" if adds else "none", window([bos, *ids] if adds else ids))
