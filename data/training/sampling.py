"""The demo texts, sampled from the saved checkpoint."""

import math
import re

import numpy as np
import torch

from .evaluation import load_checkpoint
from .settings import BOS, EOS, TEMPERATURE, TOP_P, VOCAB_SIZE, write_atomically


def run_hashes(token_ids, length):
    """Return a 64-bit hash of every run of `length` tokens."""
    tokens = np.asarray(token_ids, dtype=np.uint64) + np.uint64(1)
    factor = np.uint64(0x9E3779B97F4A7C15)
    count = len(tokens) - length + 1
    hashes = np.zeros(max(0, count), dtype=np.uint64)
    for offset in range(length if count > 0 else 0):
        hashes = hashes * factor + tokens[offset : offset + count]
    return hashes


class TrainingRuns:
    """Finds runs of tokens that also occur in the training text, in either form."""

    def __init__(self, encoded):
        forms = [form for pair in encoded for form in pair if form is not None]
        self.stream = np.concatenate(forms)
        self.known = {}

    def contain(self, token_ids, length):
        """Tell whether some run of `length` tokens occurs in the training text."""
        if length not in self.known:
            self.known[length] = np.sort(run_hashes(self.stream, length))
        known, hashes = self.known[length], run_hashes(token_ids, length)
        places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
        return bool((known[places] == hashes).any())

    def longest(self, documents, limit):
        """Return the length of the longest shared run, `limit` at most."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            found = any(self.contain(document, middle) for document in documents)
            low, high = (middle, high) if found else (low, middle - 1)
        return low


@torch.no_grad()
def sample_tokens(model, tokenizer, count, max_tokens):
    """Sample `count` documents as token lists.

    The first token is drawn among those that begin with a capital letter, so
    that a document does not start in the middle of a sentence.
    """
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    tokens = [tokenizer.id_to_token(index) for index in range(VOCAB_SIZE)]
    unfit = [re.fullmatch(r"[AI]|[A-Z][a-z]+", token) is None for token in tokens]
    logits = model(torch.tensor([[bos]])).logits[0, -1].float()
    logits[torch.tensor(unfit)] = -math.inf
    first = torch.multinomial(logits.softmax(0), count, replacement=True)
    prompts = torch.stack((torch.full((count,), bos), first), dim=1)
    rows = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=max_tokens - 1,
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        pad_token_id=eos,
    )
    documents = [row[1:].tolist() for row in rows]
    return [ids[: ids.index(eos)] if eos in ids else ids for ids in documents]


def clean_document(text, finished):
    """Return a sampled document in its final form, or None if it is not fit to use."""
    text = "".join(c for c in text if c != "\ufffd" and (c.isprintable() or c == "\n"))
    if not finished:
        ends = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s)", text)]
        text = text[: ends[-1]] if ends else ""
    text = re.sub(r"[ \t]*\n\s*", "\n", text.replace(' ""', "")).strip()
    words = text.split()
    if len(words) < 60 or re.search(r" [.,;] |@[-,.]@|= =|https?:|www\.|@\w", text):
        return None
    runs = {tuple(words[i : i + 4]) for i in range(len(words) - 3)}
    return text if len(runs) > 0.8 * len(words) else None


def sample_text(model, tokenizer, runs, seed, min_tokens, max_tokens=1500, longest_run=30):
    """Sample documents until they hold `min_tokens` tokens; return them."""
    torch.manual_seed(seed)
    kept, total, dropped = [], 0, 0
    while total < min_tokens:
        for ids in sample_tokens(model, tokenizer, 16, max_tokens):
            text = tokenizer.decode(ids)
            copied = runs.contain(tokenizer.encode(text).ids, longest_run + 1)
            text = None if copied else clean_document(text, len(ids) < max_tokens)
            if text is None:
                dropped += 1
            elif total < min_tokens:
                kept.append(text)
                total += len(tokenizer.encode(text, add_special_tokens=False).ids)
        print(f"seed {seed}: kept {len(kept)}, dropped {dropped}, {total} tokens", flush=True)
    return kept


def sample_demo_texts(tokenizer, encoded, model_folder, demo_folder, seed, min_tokens):
    """Sample the two demo texts and print how much they share with the training text.

    One thread is used: the steps of sampling are too small to share.
    """
    torch.set_num_threads(1)
    demo_folder.mkdir(parents=True, exist_ok=True)
    model = load_checkpoint(model_folder, dtype=torch.bfloat16, attn_implementation="eager")
    runs = TrainingRuns(encoded)
    for number, name in enumerate(("calibrate", "validate")):
        documents = sample_text(model, tokenizer, runs, seed + 1000 + number, min_tokens)
        text = "\n\n".join(documents) + "\n"
        write_atomically(demo_folder / f"{name}.txt", text)
        tokens = [tokenizer.encode(document).ids for document in documents]
        print(
            f"{name}.txt: {len(documents)} documents, "
            f"{len(tokenizer.encode(text, add_special_tokens=False).ids)} tokens, "
            f"longest run shared with the training text {runs.longest(tokens, 40)} tokens",
            flush=True,
        )
