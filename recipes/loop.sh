#!/usr/bin/env bash
# The circle: policy → judge → reward model on old and new comparisons → policy, and round again.
#
#   recipes/loop.sh [ROUNDS] [COMPARISONS] [OUT] [SEED]
#
# Each round judges answers of the last two policies, adds the verdicts to all earlier ones, retrains
# the reward model on them and continues the policy, with KL still measured to the start model.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} comparisons=${2:-1000} out=${3:-runs/loop} seed=${4:-0}
python=${PYTHON:-python}
start=runs/zoo-base
previous=$start policy=$out/policy-0

"$python" train_policy.py --out "$policy" --steps 60 --seed "$seed"
judged=()
for round in $(seq "$rounds"); do
  "$python" judge.py --a "$previous" --b "$policy" --judge gold --limit "$comparisons" \
    --out "$out/judge-$round" --seed "$((seed + round))"
  judged+=("$out/judge-$round/comparisons.jsonl")
  "$python" train_rm.py --data zoo "${judged[@]}" --out "$out/rm-$round" --seed "$seed"
  previous=$policy policy=$out/policy-$round
  "$python" train_policy.py --model "$previous" --reference "$start" --reward-model "$out/rm-$round" \
    --out "$policy" --steps 60 --seed "$((seed + round))"
done
