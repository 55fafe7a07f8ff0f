#!/usr/bin/env bash
# Emoji with few pairs, COCO captions as further texts and T5's vocabulary, on a processor, an hour on a core of its own.
# DATA: folder with emoji/, coco/ and t5/ (default ../shared/data); RUN: where it all goes (default runs/emoji).
# Killed and run again, it carries on. Arguments go to itit.train.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
data="${DATA:-../shared/data}" run="${RUN:-runs/emoji}"
vocabulary="$data/t5/spiece.model"
check_flags --flagfile=launch/flagfiles/emoji_cpu.cfg --num_image_tokens=64 "$@"
mkdir -p "$run"
python() { "$venv/bin/python" "$@"; }

[ -d "$run/data" ] || python -m tools.make_emoji --data="$data" --output="$run/data"
[ -f "$run/vqgan/model.safetensors" ] || python -m tools.train_vqgan --output="$run/vqgan" \
    --data="$run/data/paired-*.tfrecord,$run/data/images-*.tfrecord" --flagfile=launch/flagfiles/emoji_vqgan.cfg
for split in paired images texts test coco; do
    python -m tools.tokenize --input="$run/data/$split-*.tfrecord" --output="$run/ids/$split" --vqgan="$run/vqgan" \
        --vocabulary="$vocabulary" --num_text_tokens=24
done
python -m itit.train --flagfile=launch/flagfiles/emoji_cpu.cfg --workdir="$run/itit" --vqgan="$run/vqgan" \
    --vocabulary="$vocabulary" --paired_data="$run/ids/paired-*.tfrecord" --image_data="$run/ids/images-*.tfrecord" \
    --text_data="$run/ids/texts-*.tfrecord,$run/ids/coco-*.tfrecord" --eval_data="$run/ids/test-*.tfrecord" "$@"
python -m tools.report_emoji --workdir="$run/itit" --data="$data" --output="$run"
