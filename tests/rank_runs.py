"""Short float64 trainings by one, two and four processes, for test_ranks.py.

    python tests/rank_runs.py FOLDER rm|policy|wrong

Everything is imported once, and each group of processes is forked from here.
"""

import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import torch.distributed as dist
from test_reward_model import trained_folder
from tiny_models import tiny_folder, tiny_pairs, write_rows

import train_policy
import train_rm
from rlhf_min.command_line import parse
from rlhf_min.hardware import optimiser, ranks
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.loading import load_causal_lm
from rlhf_min.models.prompt_tree import hidden_states
from rlhf_min.reporting import report
from rlhf_min.reporting.run_folder import RunLog

optimiser.PIECE = 300  # so that the tiny models have buckets for every process to own
# 14 pairs in batches of 6: the last batch has 2, fewer than four processes.
RM = (
    "--dtype float64 --model base --data pairs.jsonl --eval-data held.jsonl --epochs 2 "
    "--batch-size 6 --micro-batch 2 --save-every 1000 --eval-every 3"
)
# 5 prompts a step: neither 2 nor 4 processes get equal shares.
POLICY = (
    "--dtype float64 --model base --data prompts.jsonl --eval-data held.jsonl --steps 3 "
    "--batch-size 15 --samples 3 --lr 1e-3 --max-new-tokens 9 --warm-up 2 --micro-batch 2"
)
RUNS = {
    "rm": {
        "scalar": (train_rm, f"{RM} --margin 0.1 --batch-sum 0.2"),
        "ratings": (train_rm, f"{RM} --head ratings --soft-labels 0.5 --earth-mover 0.1"),
        "lora": (train_rm, f"{RM} --gradient-checkpointing --lora-rank 2"),
    },
    "policy": {
        "average": (train_policy, f"{POLICY} --reward-model rm --eval-every 2"),
        "siblings": (
            train_policy,
            f"{POLICY} --reward-model rm rm10 --ensemble uncertainty --baseline leave-one-out",
        ),
        "ema": (train_policy, f"{POLICY} --reward-model rm --baseline ema --temperature 0.8"),
        "lora": (train_policy, f"{POLICY} --reward-model rm --lora-rank 2"),
        "none": (train_policy, f"{POLICY} --reward-function own.py:count --baseline none"),
        "ppo": (train_policy, f"{POLICY} --reward-model rm --objective ppo-clip --updates 2"),
        "win": (train_policy, f"{POLICY} --reward-model rm10 --reading win --weight inverse-sigma"),
    },
}


def run(job, out: str, *more: str) -> None:
    script, line = job
    script.main(parse(script.Config, [*line.split(), "--out", out, *more]))


def train_all(kind: str) -> None:
    """Train each run of a kind; of one of them, stop at a step and go on."""
    size = ranks.size()
    for name, job in RUNS[kind].items():
        run(job, f"{name}-{size}")
    job = next(iter(RUNS[kind].values()))
    if size == 2:  # the signal reaches one process only; all must stop at the same step
        log = RunLog.log

        def log_and_stop(self, step, *arguments):
            log(self, step, *arguments)
            if step == 2 and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        RunLog.log = log_and_stop
        for resumed_by in (1, 4):
            try:
                run(job, f"resumed-by-{resumed_by}")
                raise AssertionError("it did not stop")
            except (KeyboardInterrupt, SystemExit):  # SystemExit in the process that is second
                dist.barrier()
                ranks._Group.store.delete_key("errors")  # the group goes on with another run
                dist.barrier()
        RunLog.log = log
    dist.barrier() if size > 1 else None


def resume(kind: str) -> None:
    """Go on with the run that two processes began and stopped."""
    run(next(iter(RUNS[kind].values())), f"resumed-by-{ranks.size()}", "--resume")


def train_wrongly() -> None:
    """Two mistakes in the reduction, and the parts of a wrapped model called past the wrapper."""
    right = ranks.reduce_to

    def averaged(owner, gradient):
        right(owner, gradient)
        gradient /= ranks.size()

    def one_dropped(owner, gradient):
        right(owner, gradient if ranks.rank() != 1 else gradient.zero_())

    for name, wrong in {"averaged": averaged, "dropped": one_dropped}.items():
        ranks.reduce_to = wrong
        run(RUNS["rm"]["scalar"], name)
    ranks.reduce_to = right

    model = load_causal_lm("base", torch.float64)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    ids = [[5, 6, 7], [8, 9, 10, 11]]
    gradients = {}
    for name, part in {"wrapper": None, "part": wrapped.module}.items():
        model.zero_grad()
        if part is None:
            wrapped(torch.tensor([ids[ranks.rank()]])).logits.sum().backward()
        else:
            for _, tree in tree_batches(part, ids, [[[3]], [[4]]], 8):
                hidden_states(part, tree).sum().backward()
        gradient = model.model.layers[0].mlp.up_proj.weight.grad.clone()
        other = gradient.clone()
        dist.broadcast(other, 0)
        gradients[name] = (gradient - other).abs().max().item()
    Path(f"wrapped-{ranks.rank()}.txt").write_text(f"{gradients['wrapper']} {gradients['part']}")


def fork_group(size: int, job) -> None:
    """Run `job` in a group of forked processes.  Raises RuntimeError when one of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        if not (child := os.fork()):
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                if size > 1:
                    ranks._start()
                job()
                code = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"{size} processes ended with {codes}")


def main(folder: str, kind: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    tiny_folder(Path("base"), "smol")
    pairs = tiny_pairs(14)
    write_rows(Path("pairs.jsonl"), pairs)
    write_rows(Path("held.jsonl"), [row | {"prompt": row["prompt"] + "?"} for row in pairs[:3]])
    write_rows(Path("prompts.jsonl"), [{"prompt": row["prompt"]} for row in pairs])
    report.write_report = lambda out: None  # plots take longer than the trainings
    if kind == "wrong":
        run_alone = partial(run, RUNS["rm"]["scalar"], "right")
        fork_group(1, run_alone)
        fork_group(2, train_wrongly)
        return
    if kind == "policy":
        Path("own.py").write_text(
            "def count(prompts, answers):\n    return list(map(len, answers))\n"
        )
        for name, head in (("rm", "scalar"), ("rm10", "ratings")):
            trained_folder(Path("base"), Path(name), head)
    for size in (1, 2, 4):
        fork_group(size, partial(train_all, kind))
    for size in (1, 4):
        fork_group(size, partial(resume, kind))


if __name__ == "__main__":
    main(*sys.argv[1:])
