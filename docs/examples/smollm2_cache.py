#!/usr/bin/env python3
"""One prompt, continued with the float cache and with KvcalCache at 4, 3 and 2 bits: what they take, where the text changes.

    python tests/models/smollm2.py                                   # makes the model's folder, or take your own
    kvcal calibrate --model DIR --text prose.txt --out model.h5
    kvcal export model.h5 --format safetensors --out model.safetensors
    python docs/examples/smollm2_cache.py --model DIR --codebook model.safetensors
"""
import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from kvcal import KvcalCache

METHODS = ["nuq4-1%", "nuq3-1%", "nuq2-1%"]
PROMPT = ("The lighthouse on the northern cape was built in 1851, after three ships were lost in one winter. Its first keeper "
          "was a sailor who had lived through one of the wrecks. He kept a diary for forty years, and in it he wrote that")


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # so that all continuations have one length
    return model, AutoTokenizer.from_pretrained(folder)


def continue_greedily(model, inputs, cache, new_tokens):
    tokens = model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=new_tokens)
    return tokens[0, inputs["input_ids"].shape[1]:]


def choices(model, inputs, cache, continuation):
    """What the model chooses at each place of a continuation that it is given, as `kvcal validate --generate` does it."""
    first = model(**inputs, past_key_values=cache).logits[0, -1:].argmax(-1).tolist()
    return first + model(continuation[None, :-1], past_key_values=cache).logits[0].argmax(-1).tolist()


def count_equal(ours, theirs):
    """How many of the tokens agree, and how many do before the first that differs."""
    equal = [a == b for a, b in zip(ours, theirs, strict=True)]
    return sum(equal), (equal + [False]).index(False)


def compare(model, inputs, codebook, new_tokens, methods=METHODS):
    """The float cache's continuation, and of each method a dict with its own and what there is to say of it."""
    plain = continue_greedily(model, inputs, DynamicCache(config=model.config), new_tokens)
    results = []
    for method in methods:
        with KvcalCache.from_file(codebook, model, method=method) as cache:
            tokens = continue_greedily(model, inputs, cache, new_tokens)
            result = dict(method=method, tokens=tokens, nbytes=cache.nbytes, fp16_nbytes=cache.fp16_nbytes,
                          bits_per_value=cache.bits_per_value)
            cache.reset()
            result["agree"], _ = count_equal(choices(model, inputs, cache, plain), plain.tolist())
        _, result["same_start"] = count_equal(tokens.tolist(), plain.tolist())
        results.append(result)
    return plain, results


def main():
    parser = argparse.ArgumentParser(description="greedy text with the float cache and with KvcalCache")
    parser.add_argument("--model", required=True, help="a folder of the Hugging Face form")
    parser.add_argument("--codebook", required=True, help="what kvcal export --format safetensors wrote for this model")
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--prompt", default=PROMPT)
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    inputs = tokenizer(options.prompt, return_tensors="pt", return_token_type_ids=False)
    plain, results = compare(model, inputs, options.codebook, options.new_tokens)

    print("| cache | bytes held | bits/value | of fp16 | same text for | same choice |\n|---|---|---|---|---|---|")
    print(f"| fp16 | {results[0]['fp16_nbytes']:,} | 16.00 | | | |")
    for result in results:
        same = result["same_start"]
        until = "all tokens" if same == len(plain) else f"{same} tokens"
        print(f"| {result['method']} | {result['nbytes']:,} | {result['bits_per_value']:.2f} | "
              f"{result['nbytes'] / result['fp16_nbytes']:.0%} | {until} | {result['agree']} of {len(plain)} |")
    print(f"\nPrompt of {inputs['input_ids'].shape[1]} tokens: {options.prompt}")
    for name, tokens in [("float", plain), *((result["method"], result["tokens"]) for result in results)]:
        print(f"\n{name}:{tokenizer.decode(tokens)}")


if __name__ == "__main__":
    main()
