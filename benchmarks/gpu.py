"""The measurements that need a GPU, in under ten minutes: tests, decoding, training steps.

    python benchmarks/gpu.py                 # writes gpu.json and prints a table
    python benchmarks/gpu.py --quick         # a tiny model, a few seconds, any machine

"x generate" is how many times faster sampling is than `generate`, "share of peak" the operations of
training divided by what the GPU can do.  The model has random weights and SmolLM2-135M's shape.  A
part that fails is named in the JSON with the last line of its error, and the others go on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing  # noqa: F401 (puts rlhf_min on the path)
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_min.zoo.start_model import train_tokenizer

ROOT = Path(__file__).parents[1]
LARGE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
LARGE |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
TINY = {"vocab_size": 260, "hidden_size": 16, "intermediate_size": 32}
TINY |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
# Peak of dense bfloat16 matrix products in TFLOP/s, from the makers' data sheets (T4: float16).
PEAK = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "L4": 121}
PEAK |= {"4090": 165, "T4": 65}


def write_models(folder: Path, shape: dict) -> tuple[str, int]:
    """Write a random language model `model` and reward model `model-rm`; path and weights.

    The tokenizer has one token per byte.
    """
    tokenizer = train_tokenizer([""])
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends |= {"bos_token_id": None, "num_labels": 1}
    config = LlamaConfig(max_position_embeddings=2048, tie_word_embeddings=True, **ends, **shape)
    torch.manual_seed(0)
    for name, kind in (("model-rm", LlamaForSequenceClassification), ("model", LlamaForCausalLM)):
        model = kind(config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "model"), model.num_parameters()


def run(words: list[str], seconds: float) -> dict:
    """Run a Python command; its last line as JSON or text, or {"error": …}."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:g} s"}
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or lines)[-1]}
    result = json.loads(lines[-1]) if lines[-1].startswith("{") else {"result": lines[-1]}
    return result | {"wall_seconds": round(time.perf_counter() - begin, 1)}


def parts(model: str, quick: bool) -> dict[str, list[str]]:
    """Name → command of each measurement."""
    rows, prompt, answer = ([4], 8, 4) if quick else ([8, 64, 256], 128, 128)
    lengths = ["--prompt-tokens", str(prompt), "--answer-tokens", str(answer), "--dtype", "auto"]
    steps = ["--steps", "3" if quick else "8"]
    commands = {"tests marked gpu": ["-m", "pytest", "-m", "gpu", "tests/test_gpu.py"]}
    for count in rows:
        flags = ["--rows", str(count), *lengths, *steps]
        commands[f"sampling, {count} rows"] = ["benchmarks/sampling.py", model, *flags]
    for prompts, samples in [(1, 2)] if quick else [(2, 4), (16, 4), (64, 4)]:
        batch = ["--prompts", str(prompts), "--samples", str(samples), "--micro-batch", "64"]
        name = f"policy step, {prompts} x {samples}"
        commands[name] = ["benchmarks/policy_step.py", model, *batch, *lengths, *steps]
    for pairs in [2] if quick else [4, 64]:
        batch = ["--pairs", str(pairs), "--micro-batch", "64"]
        name = f"reward step, {pairs} pairs"
        commands[name] = ["benchmarks/reward_step.py", model, *batch, *lengths, *steps]
    return commands


def speed(result: dict, weights: int) -> dict:
    """Tokens per second of sampling or training, and the share of the GPU's peak in training.

    Six operations per weight and position: two forward, four backward.
    """
    if "error" in result or "median_seconds" not in result:
        return {}
    seconds = result["median_seconds"]
    if "ratio" in result:
        return {"tokens/s": round(result["tokens"] / seconds), "x generate": result["ratio"]}
    if "pairs" in result:
        rows, branches = result["pairs"], 2
    else:
        rows, branches, seconds = result["prompts"], result["samples"], result["time/policy"]
    positions = rows * (result["prompt_tokens"] + branches * result["answer_tokens"])
    rate = positions / seconds
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = next((tera for name, tera in PEAK.items() if name in device), None)
    share = {"share of peak": round(6 * weights * rate / peak / 1e12, 4)} if peak else {}
    return {"trained tokens/s": round(rate), **share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--seconds", type=float, default=570, help="limit of all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu and not args.quick:
        raise SystemExit("error: no GPU here (--quick tries this script without one)")
    device = torch.cuda.get_device_name() if gpu else "CPU"
    results = {"device": device, "torch": torch.__version__, "parts": {}}
    deadline = time.perf_counter() + args.seconds
    print(f"{device}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        model, weights = write_models(Path(folder), TINY if args.quick else LARGE)
        for name, words in parts(model, args.quick).items():
            result = run(words, max(1.0, min(240.0, deadline - time.perf_counter())))
            result |= speed(result, weights)
            results["parts"][name] = result
            keys = ("error", "result", "tokens/s", "x generate", "trained tokens/s")
            keys += ("share of peak", "median_seconds", "gpu_peak_gb")
            shown = [f"{key} {result[key]}" for key in keys if key in result]
            print(f"{name}: {', '.join(shown)}", flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
