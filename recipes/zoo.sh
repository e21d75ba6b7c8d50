#!/usr/bin/env bash
# Four runs in the zoo: a policy with KL, one without, a ratings head, and a policy trained on it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} out=${OUT:-runs/story}
"$python" train_policy.py --out "$out/policy"
"$python" train_policy.py --kl 0 --steps 150 --eval-every 15 --out "$out/hacked"
"$python" train_rm.py --head ratings --out "$out/rm-ratings"
"$python" train_policy.py --reward-model "$out/rm-ratings" --out "$out/policy-ratings"
"$python" -m rlhf_min.reporting.report "$out/policy" "$out/hacked" "$out/policy-ratings" --out "$out/comparison.html"
