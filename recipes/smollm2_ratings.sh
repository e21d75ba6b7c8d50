#!/usr/bin/env bash
# SmolLM2-135M-Instruct on HelpSteer2, with a distribution over ratings and a pessimistic reward.
# MODEL=… DATA=… RATINGS="1 10" OUT=… choose other models and data; EXTRA_RM, EXTRA_POLICY add flags.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} out=${OUT:-runs/smollm2-ratings}
model=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
data=${DATA:-esfrankel17/HelpSteer2_binarized:average_rating_split}
"$python" train_rm.py --model "$model" --data "$data" --rating-range ${RATINGS:-0 4} --head ratings \
  --soft-labels 0.5 --lr 1e-5 --head-std 0.02 --max-length 1024 --micro-batch 4 --dtype auto \
  --out "$out/rm" ${EXTRA_RM:-}
"$python" train_policy.py --model "$model" --reward-model "$out/rm" --reading entropic --data "$data" \
  --kl 0.05 --lr 1e-6 --max-new-tokens 256 --micro-batch 2 --gradient-checkpointing --dtype auto \
  --out "$out/policy" ${EXTRA_POLICY:-}
