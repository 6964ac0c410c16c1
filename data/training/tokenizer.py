"""The byte-level BPE tokenizer, and the corpus in its tokens."""

import json

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
from tokenizers import pre_tokenizers, processors, trainers

from .settings import BOS, EOS, VOCAB_SIZE, ModelShape, write_atomically

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(corpus, model_folder):
    """Train the byte-level BPE tokenizer and write its two files."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((natural for natural, _ in corpus), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (BOS, EOS)]
    )
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos)]
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": ModelShape.max_positions,
    }
    write_atomically(model_folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_atomically(model_folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def encode_corpus(tokenizer, corpus):
    """Encode every form of every document as BOS, text, EOS."""
    eos = tokenizer.token_to_id(EOS)

    def encode_all(texts):
        present = [text for text in texts if text is not None]
        encoded = iter(tokenizer.encode_batch_fast(present))
        return [None if t is None else np.array(next(encoded).ids + [eos], np.int64) for t in texts]

    return list(zip(encode_all([n for n, _ in corpus]), encode_all([s for _, s in corpus])))
