#!/usr/bin/env bash
# The circle: policy → judge → reward model on old and new comparisons → policy, several rounds.
#
#   recipes/loop.sh [ROUNDS] [COMPARISONS] [OUT] [SEED]        (3 1900 runs/loop 0)
#
# In each round the judge compares two answers of the present policy to each training question,
# because the reward model must tell apart what this policy writes.  The verdicts are added to all
# earlier comparisons, and training of the reward model and of the policy continues from the last
# round.  KL is always measured to the start model.  Held-out questions are for evaluation only.
#
# docs/LOG.md compares these settings: OLD=N mixes in N of the original pairs (2000; 0: none), COLD=1
# trains each reward model from the start model, RIVAL=last judges each policy against the policy of
# the round before, and COMPARISONS 0 continues with the first reward model.
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
  round_seed=$((100 * seed + round))
  if [ "$comparisons" != 0 ]; then
    rival=$policy; [ "$rival_kind" = last ] && rival=$previous
    "$python" judge.py --a "$rival" --b "$policy" --judge gold --limit "$comparisons" \
      --out "$out/judge-$round" --seed "$round_seed"
    judged+=("$out/judge-$round/comparisons.jsonl")
    from=$reward rate=5e-4; [ -n "$cold" ] && from=$start rate=1e-3
    "$python" train_rm.py --model "$from" "${mix[@]}" "${judged[@]}" --lr "$rate" --epochs 2 \
      --out "$out/rm-$round" --seed "$round_seed"
    reward=$out/rm-$round
  fi
  previous=$policy policy=$out/policy-$round
  "$python" train_policy.py --model "$previous" --reference "$start" --reward-model "$reward" \
    --out "$policy" "${policy_settings[@]}" --seed "$round_seed"
  for rival in last start; do
    model=$start; [ "$rival" = last ] && model=$previous
    "$python" judge.py --a "$model" --b "$policy" --judge gold --data zoo:held-out --limit 400 \
      --out "$out/against-$rival-$round" --seed "$round_seed"
  done
done
"$python" recipes/loop_table.py "$out"
