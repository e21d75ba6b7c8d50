"""What only a GPU can show.  Run them there: python -m pytest -m gpu tests"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_folder, tiny_pairs, write_rows

from rlhf_min.hardware.static_decoding import StaticDecoder
from rlhf_min.models.alignment import alignment_gap
from rlhf_min.models.decoding import make_decoder
from rlhf_min.models.loading import load_causal_lm
from rlhf_min.models.log_probs import rollout_log_probs
from rlhf_min.models.sampling import sample

ROOT = Path(__file__).parents[1]
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoding_by_a_cuda_graph_gives_the_logits_of_the_growing_cache(tmp_path, kind):
    model = load_causal_lm(str(tiny_folder(tmp_path, family=kind)), torch.float32)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # "sampling without a CUDA graph"
        static = make_decoder(model, prompts, 2, room=8, static=True)
        growing = make_decoder(model, prompts, 2, room=8, static=False)
        assert isinstance(static, StaticDecoder)
        for t in range(8):
            if t == 4:  # rows leave: a new graph
                keep = torch.tensor([0, 3], device="cuda")
                static.keep(keep)
                growing.keep(keep)
            token = torch.arange(len(static.token), device="cuda") + 5 + t
            torch.testing.assert_close(static(token), growing(token), rtol=1e-4, atol=1e-5)
            assert static.graph is not None


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_and_the_forward_pass_agree_on_a_gpu(tmp_path, dtype):
    model = load_causal_lm(str(tiny_folder(tmp_path)), dtype)
    rollout = sample(model, [[5, 6, 7], [8, 9]], 4, 20, [3])
    gap = alignment_gap(rollout, rollout_log_probs(model, rollout, 1.0, 8))
    assert gap < (1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_scripts_train_on_a_gpu_and_give_the_first_loss_of_the_cpu(tmp_path, dtype):
    """The first loss is known, ln 2, because the reward head starts at 0."""
    data = write_rows(tmp_path / "pairs.jsonl", tiny_pairs(40))
    model, out = str(tiny_folder(tmp_path / "m")), tmp_path / "rm"
    common = ["--data", str(data), "--model", model, "--dtype", dtype]
    rm = ["train_rm.py", *common, "--out", str(out), "--max-steps", "4", "--centring", "0"]
    policy = ["train_policy.py", *common, "--reward-model", str(out), "--out", str(tmp_path / "p")]
    policy += ["--steps", "3", "--batch-size", "8", "--max-new-tokens", "8", "--eval-prompts", "4"]
    own = tmp_path / "own.py"
    own.write_text(
        "def length(prompts, answers):\n    return [len(answer) for answer in answers]\n"
    )
    function = [*policy, "--reward-function", f"{own}:length", "--out", str(tmp_path / "f")]
    for words in (rm, policy, function):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "without a CUDA graph" not in done.stderr
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss/train"] == pytest.approx(0.6931, abs=1e-3)
    environment = json.loads((out / "run.json").read_text())
    assert torch.cuda.get_device_name() in json.dumps(environment)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_every_part_on_a_machine_without_gpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = json.loads(out.read_text())["parts"]
    assert not [name for name, part in parts.items() if "error" in part], done.stdout
    assert parts["sampling, 4 rows"]["tokens/s"] > 0
    assert parts["policy step, 1 x 2"]["trained tokens/s"] > 0
    assert parts["reward step, 2 pairs"]["trained tokens/s"] > 0
    assert ("share of peak" in parts["reward step, 2 pairs"]) == torch.cuda.is_available()
