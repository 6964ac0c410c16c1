"""lm_eval through the cache: fp is lm_eval's own model, and every request of a method reads what the cache stores."""
import json
import math
import os
import pathlib
import subprocess
import sys

for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[variable] = "1"

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("accelerate", reason="lm_eval's models of transformers need accelerate")
from lm_eval.tasks import TaskManager  # noqa: E402

from kvcal import Error, KvcalCache, UsageError  # noqa: E402
from kvcal.harness import KvcalLM  # noqa: E402

SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
MODEL = SOURCE / "data" / "model"
DEMO = SOURCE / "data" / "demo"
NEW_TOKENS = 16
TASKS = ["kvcal_rolling", "kvcal_choice", "kvcal_text"]
YAML = {
    "kvcal_rolling": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]""",
    "kvcal_choice": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]""",
    "kvcal_text": f"""output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: {NEW_TOKENS}}}
metric_list: [{{metric: exact_match}}]""",
}

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def documents():
    """Of different lengths, so that a batch is padded."""
    texts = [text for text in (DEMO / "validate.txt").read_text(encoding="utf-8").split("\n\n") if len(text) > 1000][:7]
    for index, text in enumerate(texts):
        words = text.split(" ")
        begin, end = " ".join(words[: 6 + 7 * index]), words[6 + 7 * index : 10 + 8 * index]
        yield {"text": text[: 500 + 90 * index], "question": begin, "answer": " ".join(end),
               "choices": [" " + " ".join(end), " " + " ".join(reversed(end)), " the"]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The folder for --include_path."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents()), encoding="utf-8")
    for name, text in YAML.items():
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder / 'cache'}}}\n{text}\n")
    return folder


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codebook")
    for arguments in (["calibrate", "-m", MODEL, "-f", DEMO / "calibrate.txt", "--samples", 8, "--seqlen", 512,
                       "--dtype", "float32", "--threads", 2, "-o", folder / "model.h5"],
                      ["export", folder / "model.h5", "--format", "safetensors", "--out", folder / "model.safetensors"]):
        subprocess.run([KVCAL, *map(str, arguments)], check=True, capture_output=True, timeout=300)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def evaluated(tasks, codebook):
    """evaluated(model, batch_size, **model_args) is what lm_eval says, each made once."""
    manager, made = TaskManager(include_path=str(tasks), include_defaults=False), {}

    def get(model, batch_size=4, **options):
        key = (model, batch_size, *sorted(options.items()))
        if key not in made:
            arguments = {"pretrained": str(MODEL), "dtype": "float32", **options}
            if options.get("method", "fp") != "fp":
                arguments["codebook"] = str(codebook)
            made[key] = lm_eval.simple_evaluate(model, arguments, TASKS, batch_size=batch_size, device="cpu",
                                                task_manager=manager, bootstrap_iters=0)
        return made[key]

    return get


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    return tokenizer


def responses(report, task):
    """What the model answered, by document."""
    samples = sorted(report["samples"][task], key=lambda sample: sample["doc_id"])
    return [response for sample in samples for response in sample["resps"]]


def numbers(report, task):
    """Log probabilities that it answered."""
    return torch.tensor([answer[0] if isinstance(answer, (list, tuple)) else answer for (answer,) in responses(report, task)],
                        dtype=torch.float64)


def perplexity(report, kind="word"):
    return report["results"]["kvcal_rolling"][f"{kind}_perplexity,none"]


def test_fp_is_the_model_of_lm_eval(evaluated):
    ours, theirs = evaluated("kvcal", method="fp"), evaluated("hf")
    assert ours["results"] == theirs["results"]
    for task in TASKS:
        assert responses(ours, task) == responses(theirs, task)


def test_fewer_bits_cost_more(evaluated):
    for kind in ("word", "byte"):
        fp, nuq4, nuq2 = (perplexity(evaluated("kvcal", method=method), kind) for method in ("fp", "nuq4-1%", "nuq2"))
        assert fp < nuq4 < min(1.05 * fp, nuq2)


@pytest.mark.parametrize("method", ["nuq4-1%", "nuq2"])
def test_a_batch_is_its_sequences_one_by_one(evaluated, method):
    """Products of matrices round otherwise by batch, so that a number close to a midpoint may get the neighbouring code."""
    together, alone = evaluated("kvcal", 4, method=method), evaluated("kvcal", 1, method=method)
    tolerance = 1e-5 if method == "nuq4-1%" else 1e-4
    for task in ("kvcal_rolling", "kvcal_choice"):
        torch.testing.assert_close(numbers(together, task), numbers(alone, task), rtol=tolerance, atol=0)
    for kind in ("word", "byte"):
        assert math.isclose(perplexity(together, kind), perplexity(alone, kind), rel_tol=1e-5)
    assert responses(together, "kvcal_text") == responses(alone, "kvcal_text")


def log_probability(model, cache, tokens, scored):
    """Of the last `scored` tokens."""
    cache.reset()
    with torch.no_grad():
        log_p = model(torch.tensor([tokens[:-1]]), past_key_values=cache).logits[0].log_softmax(-1)
    return log_p.gather(1, torch.tensor(tokens[1:])[:, None])[-scored:].sum().double()


@pytest.mark.parametrize("method", ["nuq4-1%", "nuq2"])
def test_log_probabilities_are_those_of_a_forward_through_the_cache(evaluated, model, tokenizer, codebook, method):
    report = evaluated("kvcal", 1, method=method)
    rolling, choice = [], []
    with KvcalCache.from_file(codebook, model, method=method) as cache:
        for document in documents():
            tokens = tokenizer(document["text"])["input_ids"]
            rolling.append(log_probability(model, cache, [tokenizer.bos_token_id, *tokens], len(tokens)))
            begin = len(tokenizer(document["question"])["input_ids"])
            for end in document["choices"]:
                tokens = tokenizer(document["question"] + end)["input_ids"]
                choice.append(log_probability(model, cache, tokens, len(tokens) - begin))
    torch.testing.assert_close(numbers(report, "kvcal_rolling"), torch.stack(rolling), rtol=1e-6, atol=0)
    torch.testing.assert_close(numbers(report, "kvcal_choice"), torch.stack(choice), rtol=1e-6, atol=0)
    assert (numbers(report, "kvcal_choice") != numbers(evaluated("kvcal", method="fp"), "kvcal_choice")).all()


def test_text_is_what_generate_writes_with_the_cache(evaluated, model, tokenizer, codebook):
    inputs = tokenizer([document["question"] for document in documents()], padding=True, return_tensors="pt")
    with KvcalCache.from_file(codebook, model, method="nuq2") as cache:
        tokens = model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=NEW_TOKENS)
    texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    answers = [answer for (answer,) in responses(evaluated("kvcal", method="nuq2"), "kvcal_text")]
    assert answers == [text.split("\n\n")[0] for text in texts]
    assert answers != [answer for (answer,) in responses(evaluated("kvcal", method="fp"), "kvcal_text")]


def test_results_say_the_method_and_what_it_takes(evaluated, codebook):
    config = evaluated("kvcal", method="nuq2")["config"]
    assert (config["kvcal_method"], config["kvcal_codebook"]) == ("nuq2", str(codebook))
    assert 2 < config["kvcal_bits_per_value"] < 2.6
    assert evaluated("kvcal", method="fp")["config"]["kvcal_method"] == "fp"


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=900, env=environment)


def harness(*arguments):
    return python("-m", "kvcal.harness", *arguments)


def test_the_command_line_is_that_of_lm_eval(evaluated, tasks, codebook, tmp_path):
    run = harness("--model", "kvcal", "--model_args", f"pretrained={MODEL},dtype=float32,codebook={codebook},method=nuq4-1%",
                  "--include_path", tasks, "--tasks", "kvcal_rolling", "--batch_size", 4, "--device", "cpu",
                  "--output_path", tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    (file,) = tmp_path.rglob("results*.json")
    assert math.isclose(perplexity(json.loads(file.read_text())), perplexity(evaluated("kvcal", method="nuq4-1%")), rel_tol=1e-5)


def test_errors_of_the_command_line_are_one_line(tasks):
    run = harness("--model", "kvcal", "--model_args", f"pretrained={MODEL}", "--include_path", tasks, "--tasks", "kvcal_rolling",
                  "--device", "cpu")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("kvcal: error: --model_args has no method: give method=nuq4-1%")


def test_what_is_missing_is_said_before_the_model_is_loaded(tmp_path):
    with pytest.raises(UsageError, match="has no method.*method=fp"):
        KvcalLM("nowhere")
    with pytest.raises(UsageError, match="has no codebook.*kvcal export FILE.h5 --format safetensors"):
        KvcalLM("nowhere", method="nuq4-1%")
    with pytest.raises(UsageError, match="no method of this cache"):
        KvcalLM("nowhere", method="fp8")
    with pytest.raises(Error, match="none.safetensors: no such file"):
        KvcalLM("nowhere", codebook=tmp_path / "none.safetensors", method="nuq4-1%")


def test_without_lm_eval_the_import_says_how_to_install_it():
    run = python("-c", "import sys; sys.modules['lm_eval'] = None; import kvcal.harness")
    assert run.returncode == 1 and "pip install 'lm-eval[hf]'" in run.stderr.splitlines()[-1]
