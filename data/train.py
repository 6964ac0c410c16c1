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
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.corpus import load_corpus
from training.evaluation import evaluate
from training.optimisation import train_model
from training.sampling import sample_demo_texts
from training.settings import ModelShape, Recipe
from training.tokenizer import encode_corpus, train_tokenizer


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
