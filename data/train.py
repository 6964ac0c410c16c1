#!/usr/bin/env python3
"""Make the bundled model and the demo texts of kvcal.

    python3 train.py --text TEXT_FOLDER [--out FOLDER] [--steps STEP ...]

TEXT_FOLDER holds the training text (`wikitext-2.train.tokens.txt`,
`moby-dick_2701-0.txt`, `tinyshakespeare.txt`,
`c4-sample.00000-of-00001.json.gz`) and the held-out `wiki.valid.raw`, which is
only ever read to measure perplexity.  The steps, all run by default, in order:

    tokenizer   train the byte-level BPE tokenizer
    train       train the model and write it to OUT/model
    evaluate    check OUT/model against transformers, measure its perplexity
    sample      sample OUT/demo/calibrate.txt and OUT/demo/validate.txt

Everything runs on the CPU and follows from --seed.
"""

import argparse
import gzip
import json
import math
import os
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
from tokenizers import pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoModelForCausalLM

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCAB_SIZE = 4096
TEMPERATURE, TOP_P = 0.8, 0.95
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class ModelShape:
    """The shape of the Llama-architecture model."""

    vocab: int = VOCAB_SIZE
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 688
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048


@dataclass(frozen=True)
class Recipe:
    """The training recipe; a stage is (context, windows per step, share of tokens)."""

    stages: tuple = ((512, 8, 0.85), (2048, 2, 0.15))
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    weight_decay: float = 0.1
    warmup_share: float = 0.02
    decay_share: float = 0.6
    final_rate: float = 0.03
    grad_clip: float = 1.0
    spaced_share: float = 0.3


# --------------------------------------------------------------------- corpus


def detokenise(text):
    """Undo the WikiText tokenisation: spaces around punctuation, ` @-@ ` and the like."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r' " ([^"\n]*?) " ', r' "\1" ', f" {text} ")
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r" ([)\]])", r"\1", text)
    text = re.sub(r" ([.,;:!?%]+)(?=\s|\"|$)", r"\1", text)
    text = re.sub(r" '(s|t|re|ve|m|ll|d)\b", r"'\1", text)
    text = re.sub(r"([$£€]) (?=\d)", r"\1", text)
    text = re.sub(r"(?<=\d) – (?=\d)", "–", text)
    text = re.sub(r"(\w) '(?=\s)", r"\1'", text)
    text = re.sub(r'(?<=\S) "([.,;:!?])', r'"\1', text)
    text = re.sub(r"\(\s*[,;]?\s*\)", "", text)
    return re.sub(r" {2,}", " ", text).strip()


def wikitext_documents(path):
    """Split the WikiText training file at its ` = Title = ` headings.

    Returns pairs: the article as natural text and the article as it stands,
    with the file's own spacing.  The `<unk>` marks are taken out of both.
    """
    articles = [[]]
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if re.match(r" = [^=].* = $", line):
                articles.append([])
            articles[-1].append(line.replace("<unk> ", ""))
    pairs = []
    for article in filter(None, ("".join(lines).strip(" \n") for lines in articles)):
        natural = []
        for line in article.split("\n"):
            heading = re.fullmatch(r"\s*((?:= )+)(.*?) \1?(?:= ?)+", line)
            natural.append(detokenise(heading.group(2) if heading else line))
        pairs.append(("\n".join(filter(None, natural)), f" {article} \n"))
    return pairs


def moby_dick_documents(path):
    """Return the chapters, without the publisher's header, footer and line wrapping."""
    text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    text = re.split(r"\*\*\* ?(?:START|END) OF TH[^\n]*\n", text)[1]
    chapters = re.split(r"\n(?=CHAPTER \d+\.|Epilogue)", text)
    documents = []
    for chapter in chapters:
        paragraphs = re.split(r"\n{2,}", chapter)
        documents.append("\n".join(" ".join(p.split()) for p in paragraphs if p.strip()))
    return [document for document in documents if len(document) > 400]


def shakespeare_documents(path, size=4000):
    """Return runs of whole speeches, each of about `size` characters."""
    documents, current = [], ""
    for speech in path.read_text(encoding="utf-8").split("\n\n"):
        current += speech.strip() + "\n\n"
        if len(current) >= size:
            documents.append(current.strip())
            current = ""
    return documents + [current.strip()]


def c4_documents(path):
    """Return the `text` field of each line of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"].strip() for line in lines]


def load_corpus(text_folder):
    """Return all training documents as (natural form, spaced form or None) pairs."""
    documents = wikitext_documents(text_folder / "wikitext-2.train.tokens.txt")
    plain = moby_dick_documents(text_folder / "moby-dick_2701-0.txt")
    plain += shakespeare_documents(text_folder / "tinyshakespeare.txt")
    plain += c4_documents(text_folder / "c4-sample.00000-of-00001.json.gz")
    return documents + [(document, None) for document in plain if document]


# ------------------------------------------------------------------ tokenizer


def write_atomically(path, text):
    """Write a text file under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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


# ---------------------------------------------------------------------- model


class Attention(nn.Module):
    """Causal grouped-query attention with half-split rotary embedding."""

    def __init__(self, shape):
        super().__init__()
        self.head_dim, self.groups = shape.head_dim, shape.heads // shape.kv_heads
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x, rotary):
        def heads_first(projected):
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        def rotate(states):
            cos, sin = rotary
            low, high = states.float().chunk(2, dim=-1)
            turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
            return turned.to(states.dtype)

        query = rotate(heads_first(self.q_proj(x)))
        key = rotate(heads_first(self.k_proj(x))).repeat_interleave(self.groups, dim=1)
        value = heads_first(self.v_proj(x)).repeat_interleave(self.groups, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x, rotary):
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A Llama-architecture model whose parameter names are those of a checkpoint."""

    def __init__(self, shape):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.model.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.model.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        positions = torch.arange(shape.max_positions, dtype=torch.float32)
        angles = torch.outer(positions, shape.rope_theta**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.init_weights(shape)

    def init_weights(self, shape):
        """Draw all matrices small, those that write to the residual stream smaller."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(2 * shape.layers) if residual else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens):
        """Return the logits for a batch of token windows."""
        rotary = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rotary)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def loss(self, tokens, targets):
        """Return the mean next-token cross-entropy."""
        logits = self(tokens).flatten(0, 1)
        return F.cross_entropy(logits.float(), targets.flatten())


# ----------------------------------------------------------------- checkpoint


def save_model(model, shape, model_folder):
    """Write config.json, generation_config.json and the BF16 weights."""
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    ids = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **ids,
    }
    generation = {**ids, "do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P}
    write_atomically(model_folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_atomically(
        model_folder / "generation_config.json", json.dumps(generation, indent=2) + "\n"
    )
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    temporary = model_folder / "model.safetensors.tmp"
    temporary.write_bytes(save(weights, metadata={"format": "pt"}))
    os.replace(temporary, model_folder / "model.safetensors")


# ------------------------------------------------------------------- training


class Muon:
    """Momentum descent with orthogonalised updates, for the matrices of the layers.

    Matrices of one shape are orthogonalised together, by five Newton-Schulz steps.
    """

    def __init__(self, parameters, weight_decay, momentum=0.95):
        self.weight_decay, self.momentum = weight_decay, momentum
        self.groups = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.buffers = {
            shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()
        }

    @staticmethod
    def orthogonalise(matrices):
        """Bring the singular values of each matrix of the stack near one."""
        tall = matrices.shape[1] > matrices.shape[2]
        x = (matrices.mT if tall else matrices).bfloat16()
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x.mT if tall else x).float()

    @torch.no_grad()
    def step(self, rate):
        """Update all matrices from their gradients."""
        for shape, group in self.groups.items():
            gradient = torch.stack([parameter.grad for parameter in group])
            buffer = self.buffers[shape].lerp_(gradient, 1 - self.momentum)
            update = self.orthogonalise(gradient.lerp(buffer, self.momentum))
            scale = rate * math.sqrt(max(1.0, shape[0] / shape[1]))
            for parameter, direction in zip(group, update):
                parameter.mul_(1 - rate * self.weight_decay).add_(direction, alpha=-scale)


def window_batches(encoded, context, batch, spaced_share, seed):
    """Yield (inputs, targets) batches without end.

    In each pass over the corpus the documents are shuffled, each article takes
    one of its forms, all are packed into one stream, and the stream is cut into
    windows.  A document begins with BOS, and so does each window.
    """
    rng = np.random.default_rng(seed)
    bos = encoded[0][0][0]
    while True:
        chosen = []
        for index in rng.permutation(len(encoded)):
            natural, spaced = encoded[index]
            use_spaced = rng.random() < spaced_share and spaced is not None
            chosen.append(spaced if use_spaced else natural)
        stream = np.concatenate(chosen)
        stream = stream[rng.integers(context) :]
        windows = stream[: len(stream) // context * context].reshape(-1, context)
        windows = windows[rng.permutation(len(windows))]
        for start in range(0, len(windows) - batch + 1, batch):
            targets = torch.from_numpy(windows[start : start + batch])
            inputs = torch.cat((torch.full((batch, 1), bos), targets[:, :-1]), dim=1)
            yield inputs, targets.masked_fill(targets == bos, -100)


def rate_factor(progress, recipe):
    """Return the learning-rate factor: warm-up, constant, then linear decay."""
    if progress < recipe.warmup_share:
        return progress / recipe.warmup_share
    left = min(1.0, (1 - progress) / recipe.decay_share)
    return recipe.final_rate + (1 - recipe.final_rate) * left


def train_model(encoded, shape, recipe, total_tokens, seed, model_folder):
    """Train the model and write it; return the seconds it took."""
    torch.manual_seed(seed)
    model = Llama(shape)
    save_model(model, shape, model_folder)
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    muon = Muon(matrices, recipe.weight_decay)
    adam = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    compute_loss = torch.compile(model.loss, dynamic=False)
    seen, step, began, running = 0, 0, time.time(), None
    for stage, (context, batch, share) in enumerate(recipe.stages):
        batches = window_batches(encoded, context, batch, recipe.spaced_share, seed + stage)
        for _ in range(round(total_tokens * share / (context * batch))):
            factor = rate_factor((seen + context * batch) / total_tokens, recipe)
            with torch.autocast("cpu", torch.bfloat16):
                loss = compute_loss(*next(batches))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
            for group in adam.param_groups:
                group["lr"] = recipe.other_rate * factor
            adam.step()
            muon.step(recipe.matrix_rate * factor)
            model.zero_grad(set_to_none=True)
            seen, step = seen + context * batch, step + 1
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            if step % 50 == 0:
                spent = time.time() - began
                print(
                    f"step {step} context {context} tokens {seen} of {total_tokens} "
                    f"loss {running:.4f} rate {factor:.3f} seconds {spent:.0f}",
                    flush=True,
                )
                save_model(model, shape, model_folder)
    save_model(model, shape, model_folder)
    return time.time() - began


# ----------------------------------------------------------------- evaluation


def load_checkpoint(model_folder, **options):
    """Load the saved BF16 weights with transformers."""
    return AutoModelForCausalLM.from_pretrained(model_folder, **options).eval()


@torch.no_grad()
def check_against_transformers(reference, shape, model_folder, seed):
    """Compare the logits of this file's model with those of transformers; return the gap."""
    model = Llama(shape)
    weights = load_file(model_folder / "model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(shape.vocab, (1, shape.max_positions), generator=generator)
    ours, theirs = model(tokens), reference(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    return (ours - theirs).abs().max().item()


@torch.no_grad()
def perplexity(model, token_ids, bos, context, batch_tokens=8192):
    """Return (perplexity, scored tokens) over windows of `context` tokens.

    Each window is BOS and the next `context - 1` tokens of the text, without
    overlap; all positions after the first are scored.  An incomplete last
    window is left out.
    """
    body = context - 1
    windows = torch.tensor(token_ids[: len(token_ids) // body * body]).view(-1, body)
    total = 0.0
    for targets in windows.split(max(1, batch_tokens // context)):
        tokens = torch.cat((torch.full((len(targets), 1), bos), targets), dim=1)
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
        total += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    return math.exp(total / windows.numel()), windows.numel()


def evaluate(tokenizer, text_path, model_folder, seed):
    """Check the checkpoint and print its size and its perplexity."""
    model = load_checkpoint(model_folder, dtype=torch.float32)
    gap = check_against_transformers(model, ModelShape(), model_folder, seed)
    print(f"logits against transformers: largest difference {gap:.2e}")
    print(f"parameters: {sum(p.numel() for p in model.parameters())}")
    text = text_path.read_text(encoding="utf-8")
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    for context in (512, 2048):
        value, scored = perplexity(model, token_ids, tokenizer.token_to_id(BOS), context)
        print(
            f"{text_path.name}: perplexity {value:.3f} in windows of {context}, "
            f"{scored} of {len(token_ids)} tokens scored",
            flush=True,
        )


# ----------------------------------------------------------------- demo texts


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


# ----------------------------------------------------------------------- main


def main():
    """Run the chosen steps."""
    steps = ("tokenizer", "train", "evaluate", "sample")
    parser = argparse.ArgumentParser(description="make the bundled model and the demo texts")
    parser.add_argument("--text", type=Path, required=True, help="folder of the text files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    parser.add_argument("--steps", nargs="+", choices=steps, default=steps)
    parser.add_argument("--tokens", type=float, default=8e6, help="training tokens in all")
    parser.add_argument("--demo-tokens", type=int, default=46000, help="tokens of each demo text")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model_folder = options.out / "model"
    model_folder.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(options.text)
    if "tokenizer" in options.steps:
        train_tokenizer(corpus, model_folder)
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    encoded = encode_corpus(tokenizer, corpus)
    print(f"{len(encoded)} documents, {sum(len(n) for n, _ in encoded)} tokens", flush=True)
    if "train" in options.steps:
        seconds = train_model(
            encoded, ModelShape(), Recipe(), int(options.tokens), options.seed, model_folder
        )
        print(f"trained in {seconds:.0f} seconds", flush=True)
    if "evaluate" in options.steps:
        evaluate(tokenizer, options.text / "wiki.valid.raw", model_folder, options.seed)
    if "sample" in options.steps:
        demo_folder, size = options.out / "demo", options.demo_tokens
        sample_demo_texts(tokenizer, encoded, model_folder, demo_folder, options.seed, size)


if __name__ == "__main__":
    main()
