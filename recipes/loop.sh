#!/usr/bin/env bash
# The circle: policy → judge → reward model on old and new comparisons → policy, and round again.
#
#   recipes/loop.sh [ROUNDS] [COMPARISONS] [OUT] [SEED]        (3 1000 runs/loop 0)
#
# Each round lets the judge compare the last policy with the one before it, adds the verdicts to all
# earlier comparisons in equal parts, retrains the reward model on the mixture and continues the
# policy.  KL is measured to the start model in every round.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} comparisons=${2:-1000} out=${3:-runs/loop} seed=${4:-0}
python=${PYTHON:-python}
start=${START:-runs/zoo-base} reward=${REWARD_MODEL:-runs/rm} steps=${STEPS:-60}

previous=$start policy=$out/policy-0
"$python" train_policy.py --model "$start" --reward-model "$reward" --out "$policy" \
  --steps "$steps" --seed "$seed"
judged=()
for round in $(seq "$rounds"); do
  "$python" judge.py --a "$previous" --b "$policy" --judge gold --limit "$comparisons" \
    --out "$out/judge-$round" --seed "$((100 * seed + round))"
  judged+=("$out/judge-$round/comparisons.jsonl")
  "$python" train_rm.py --model "$reward" --data zoo "${judged[@]}" --limit "$((2 * comparisons))" \
    --out "$out/rm-$round" --seed "$((100 * seed + round))" --lr 5e-4 --epochs 2
  previous=$policy reward=$out/rm-$round policy=$out/policy-$round
  "$python" train_policy.py --model "$previous" --reference "$start" --reward-model "$reward" \
    --out "$policy" --steps "$steps" --seed "$((100 * seed + round))"
done
"$python" judge.py --a "$start" --b "$policy" --judge gold --data zoo:held-out --limit 400 \
  --out "$out/against-start-$rounds" --seed "$seed"
"$python" recipes/loop_table.py "$out"
