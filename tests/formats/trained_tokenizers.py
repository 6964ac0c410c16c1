"""Tokenizers of each construction that models have, trained on data/demo and made-up text of many scripts: for tokenizer_trained_test.py."""
import json
import os
import pathlib
import random
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))


# What the tokenizers are trained on and asked about.
def between(first, last):
    return [chr(c) for c in range(first, last + 1)]


ALPHABETS = [list("àáâãäåçèéêëìíîïñòóôõöøùúûüýÿßœłčşğőaeiou"), between(0x4E00, 0x4E60) + list("的是不我有。，"), between(0xAC00, 0xAC80),
             between(0x1100, 0x1112) + between(0x1161, 0x1175) + between(0x11A8, 0x11C2), between(0x627, 0x64A) + between(0x64B, 0x652),
             between(0x904, 0x939) + between(0x93E, 0x94D), between(0x3041, 0x3093) + between(0x30A1, 0x30F3), between(0x430, 0x44F),
             ["a\u0301", "e\u0300\u0323", "o\u0308", "n\u0303", "u", "s\u0327\u0307"], between(0x1F600, 0x1F640)]
SEPARATORS = [" "] * 12 + ["  ", "\t", "\r\n", "\n", "\n\n", ", ", ". ", "\u00a0", "\u3000", "\x00", "\x1b[0m", "\x7f", "\u2028", " " * 9, "\t\t\t"]
ODDITIES = ["\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466", "\U0001F3F3\ufe0f\u200d\U0001F308", "\U0001F44D\U0001F3FD",
            "\U0001F1E9\U0001F1EA", "1234567890" * 3, "3.14159", "2024-02-29", "007", "\u0661\u0662\u0663", "\uff11\uff12", "\u00bd", "\u2167",
            "it's", "WE'LL", "'Stuff", "'LLama", "'\u017ftuff", "don\u2019t", "'\u017f", "http://a.b/c?d=e", "x_y-z", "\ufeff", "\u200b", "\u0085",
            "\u1680", "\u2581", "\u2581\u2581", "<0x0A>", "\u0120", "\u010a", "\ufb01", "\u212b", "\u0344", "\u0130", "\u1e9e", "\u00b5", " " * 40,
            "\n" * 7, "\r\n\r\n", "\r", "----", "!!!", "{\"a\": [1, 2]}", "    return x"]


def generated_text(seed, words):
    """Words from small lexicons of many scripts, so that training finds pairs in each."""
    rng = random.Random(seed)
    lexicons = [["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 7))) for _ in range(25)] for alphabet in ALPHABETS]
    parts = []
    while len(parts) < words:
        lexicon = rng.choice(lexicons)
        for _ in range(rng.randrange(1, 30)):
            parts.append(rng.choice(ODDITIES) if rng.random() < 0.08 else lexicon[int(rng.random() ** 2 * len(lexicon))])
            parts.append(rng.choice(SEPARATORS))
    return "".join(parts)


DEMO = [(SOURCE / "data" / "demo" / name).read_bytes().decode() for name in ("calibrate.txt", "validate.txt")]
CORPUS = [line for text in [DEMO[0], generated_text(1, 15_000)] for line in text.splitlines(keepends=True)]
CORPUS += ["'Stuff", "'LLama", "'\u017ftuff"] * 100  # tokens across the end of a contraction
WHOLE = [*DEMO, generated_text(2, 8_000), ""]
EDGES = [chr((plane << 16) + at) for plane in range(17) for at in (0, 1, 0xFFFD, 0xFFFE, 0xFFFF)]
EDGES += ["\ud7ff", "\ue000", "\ufdd0", "\ufdef", "\x7f", "\x80", "\u07ff", "\u0800"]
UNASSIGNED = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) == "Cn"]
SPACES = list(" \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff")


def random_texts(seed, count, specials):
    rng = random.Random(seed)

    def part():
        kind = rng.randrange(10)
        if kind == 0:
            return rng.choice(EDGES)
        if kind == 1:
            return rng.choice(UNASSIGNED)
        if kind == 2:
            return "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 5)))
        if kind == 3:
            code = rng.randrange(0x110000 - 0x800)
            return chr(code if code < 0xD800 else code + 0x800)
        if kind == 4:
            return "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.randrange(1, 8)))
        if kind < 7:
            return "".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randrange(1, 5)))
        if kind == 7 and specials:
            special = rng.choice(specials)
            return special if rng.random() < 0.8 else special[:rng.randrange(len(special)) + 1]
        return rng.choice(ODDITIES)

    return ["".join(part() for _ in range(rng.randrange(1, 25))) for _ in range(count)]


# The constructions, after the tokenizer.json of the models that the names tell.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = CL100K.replace("{1,3}", "")
O200K = "|".join([r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS + "?",
                  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + "?",
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK_3 = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
              r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
DEEPSEEK_CODER = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]


def splits(*patterns):
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


# Training sees stretches that end anywhere: the vocabulary has tokens across every cut, so that a cut left out or put in changes ids.
STRETCHES = splits(r"[\s\S]{1,12}")


def byte_level(cuts, use_regex=False, normalizer=None, prefix=False, size=1500, **model):
    tokenizer = tokenizers.Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*STRETCHES, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def start_with(tokenizer, token, byte_level_first=False):
    tokenizer.add_special_tokens([token])
    template = processors.TemplateProcessing(f"{token} $A", f"{token} $A {token}:1 $B:1", [(token, tokenizer.token_to_id(token))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template]) if byte_level_first else template
    return tokenizer


def without_some_merges(tokenizer):
    """Words of the vocabulary that no merge makes: only ignore_merges finds them."""
    description = json.loads(tokenizer.to_str())
    merges = description["model"]["merges"]
    description["model"]["merges"] = [merge for i, merge in enumerate(merges) if i % 7]
    changed = tokenizers.Tokenizer.from_str(json.dumps(description))
    description["model"]["ignore_merges"] = False
    assert changed.encode(DEMO[0]).ids != tokenizers.Tokenizer.from_str(json.dumps(description)).encode(DEMO[0]).ids
    return changed


def llama3():
    tokenizer = start_with(without_some_merges(byte_level(splits(CL100K), ignore_merges=True)), "<|begin_of_text|>", byte_level_first=True)
    tokenizer.add_special_tokens(["<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"])
    return tokenizer


def qwen():
    tokenizer = byte_level(splits(QWEN), normalizer=normalizers.NFC())
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<think>", normalized=False)])
    return tokenizer


def gpt2(prefix=False):
    tokenizer = byte_level([], use_regex=True, prefix=prefix, size=800)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def roberta():
    tokenizer = gpt2(prefix=True)
    tokenizer.add_special_tokens(["<s>", "</s>", AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    return tokenizer


def neox():
    """Runs of spaces as added tokens."""
    tokenizer = byte_level([], use_regex=True, normalizer=normalizers.NFC(), size=1000)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|padding|>"])
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return tokenizer


def smollm():
    tokenizer = byte_level([pre_tokenizers.Digits(individual_digits=True)], use_regex=True)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"])
    return tokenizer


def deepseek(patterns, *more):
    return start_with(byte_level([*splits(*patterns), *more], normalizer=normalizers.Sequence([])), "<\uff5cbegin\u2581of\u2581sentence\uff5c>", True)


def sentencepiece_like(normalizer=None, pretokenizer=None, byte_fallback=True, fuse_unk=True, first="<s>"):
    """Trained with U+2581 for spaces, then given the normaliser and the cuts of the model that it follows."""
    reserved = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256) if byte_fallback]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse_unk, byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(STRETCHES)
    trainer = trainers.BpeTrainer(vocab_size=1500, limit_alphabet=250, special_tokens=reserved, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    description["normalizer"] = normalizer
    description["pre_tokenizer"] = pretokenizer
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    return start_with(tokenizer, first) if first else tokenizer


LLAMA2 = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                              {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
GEMMA = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}


def gemma():
    tokenizer = sentencepiece_like(LLAMA2["normalizers"][1], GEMMA)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n\n", "\n\n\n", "\t\t", "\u2581\u2581", "<b>", "</b>")])
    return tokenizer


def with_added_tokens(tokenizer):
    """Every combination of the flags, and words that stand in the text."""
    for i in range(32):
        flags = {name: bool(i >> bit & 1) for bit, name in enumerate(("lstrip", "rstrip", "single_word", "normalized"))}
        add = tokenizer.add_special_tokens if i & 16 else tokenizer.add_tokens
        add([AddedToken(f"<{i}>", **flags)])
    tokenizer.add_tokens([AddedToken("the", single_word=True, normalized=True), AddedToken("ing", normalized=False),
                          AddedToken("E\u0301t\u00e9", normalized=True), AddedToken("it's", lstrip=True, normalized=True),
                          AddedToken("\u2581x", normalized=True), AddedToken("\u00e9", normalized=False)])
    return tokenizer


LOWER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
RECIPES = {
    "llama-3": llama3, "qwen": qwen, "gpt-2": gpt2, "roberta": roberta, "gpt-neox": neox, "smollm2": smollm,
    "o200k": lambda: start_with(byte_level(splits(O200K), size=3000), "<|startoftext|>"),
    "deepseek-3": lambda: deepseek(DEEPSEEK_3), "deepseek-coder": lambda: deepseek(DEEPSEEK_CODER, pre_tokenizers.Digits(individual_digits=True)),
    "llama-2": lambda: sentencepiece_like(LLAMA2), "mistral": lambda: sentencepiece_like(None, metaspace("first", False)),
    "metaspace-always": lambda: sentencepiece_like(None, metaspace("always", True), first=None),
    "metaspace-never": lambda: sentencepiece_like(None, metaspace("never", True)), "gemma": gemma,
    "unknown-fused": lambda: sentencepiece_like(LLAMA2, byte_fallback=False), "unknown-each": lambda: sentencepiece_like(LLAMA2, None, False, False),
    "added-bytes": lambda: with_added_tokens(byte_level(splits(CL100K), size=600)),
    "added-lower": lambda: with_added_tokens(byte_level(splits(CL100K), normalizer=LOWER, size=600)),
    "added-llama-2": lambda: with_added_tokens(sentencepiece_like(LLAMA2)),
    "added-mistral": lambda: with_added_tokens(sentencepiece_like(None, metaspace("first", False))),
}

# The options of sentencepiece's own trainer.
LLAMA2_OPTIONS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True, "byte_fallback": True}
SENTENCEPIECE = {
    "bpe-llama-2": {"model_type": "bpe", **LLAMA2_OPTIONS}, "bpe": {"model_type": "bpe", "character_coverage": 0.98},
    "bpe-no-prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, "allow_whitespace_only_pieces": True},
    "bpe-symbols": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["<sep>", "\n", "    "], "control_symbols": ["<ctl>"]},
    "bpe-suffix": {"model_type": "bpe", "treat_whitespace_as_suffix": True, "bos_id": -1},
    "unigram": {"model_type": "unigram", "character_coverage": 0.98}, "unigram-bytes": {"model_type": "unigram", **LLAMA2_OPTIONS},
    "char": {"model_type": "char", "vocab_size": 500},
}
