#!/usr/bin/env bash
# The circle: policy → judge → reward model on old and new comparisons → policy, and round again.
#
#   recipes/loop.sh [ROUNDS] [COMPARISONS] [OUT] [SEED]        (3 1900 runs/loop 0)
#
# Each round lets the judge compare two answers of the present policy to each training question: what
# the reward model must tell apart now is what this policy writes.  The verdicts join all earlier
# comparisons, the reward model is trained on from the last one, and so is the policy; KL is measured
# to the start model in every round.  Held-out questions only measure.
#
# What docs/LOG.md compares: OLD=N keeps N of the first pairs in the mix (2000; 0: none), COLD=1 trains
# each reward model from the start model, RIVAL=last judges each policy against the one before it,
# and COMPARISONS 0 goes on with the first reward model.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} comparisons=${2:-1900} out=${3:-runs/loop} seed=${4:-0}
python=${PYTHON:-python}
start=${START:-runs/zoo-base} reward=${REWARD_MODEL:-runs/rm} steps=${STEPS:-60}
old=${OLD:-2000} cold=${COLD:-} rival_kind=${RIVAL:-self}
policy_settings=(--kl "${KL:-0.3}" --lr "${LR:-3e-4}" --steps "$steps")

policy=$out/policy-0
"$python" train_policy.py --model "$start" --reward-model "$reward" --out "$policy" \
  "${policy_settings[@]}" --seed "$seed"
judged=() previous=$start
mix=(--limit "$old" --data zoo); [ "$old" = 0 ] && mix=(--data)
for round in $(seq "$rounds"); do
  another=$((100 * seed + round))
  if [ "$comparisons" != 0 ]; then
    rival=$policy; [ "$rival_kind" = last ] && rival=$previous
    "$python" judge.py --a "$rival" --b "$policy" --judge gold --limit "$comparisons" \
      --out "$out/judge-$round" --seed "$another"
    judged+=("$out/judge-$round/comparisons.jsonl")
    from=$reward rate=5e-4; [ -n "$cold" ] && from=$start rate=1e-3
    "$python" train_rm.py --model "$from" "${mix[@]}" "${judged[@]}" --lr "$rate" --epochs 2 \
      --out "$out/rm-$round" --seed "$another"
    reward=$out/rm-$round
  fi
  previous=$policy policy=$out/policy-$round
  "$python" train_policy.py --model "$previous" --reference "$start" --reward-model "$reward" \
    --out "$policy" "${policy_settings[@]}" --seed "$another"
  for rival in last start; do
    model=$start; [ "$rival" = last ] && model=$previous
    "$python" judge.py --a "$model" --b "$policy" --judge gold --data zoo:held-out --limit 400 \
      --out "$out/against-$rival-$round" --seed "$another"
  done
done
"$python" recipes/loop_table.py "$out"
