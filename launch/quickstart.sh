#!/usr/bin/env bash
# From nothing to a trained ITIT on a processor: data, tokenizers, training with both cycles, the same on the pairs
# alone as its control, and a report with pictures.
# Killed half way and run again, it carries on. RUN chooses the folder (default runs/quickstart); arguments go to
# itit.train: python -m itit.train --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
run="${RUN:-runs/quickstart}"
check_flags --flagfile=launch/flagfiles/quickstart.cfg --num_image_tokens=64 "$@"
mkdir -p "$run"
SECONDS=0
trap 'echo "$SECONDS" >> "$run/seconds"' EXIT
python() { "$venv/bin/python" "$@"; }

if [ ! -d "$run/scenes" ]; then
    echo "1/7 Scenes: pictures, captions and pairs"
    python -m tools.make_scenes --output="$run/scenes" --num_pairs=300 --num_images=20000 --num_texts=20000
fi
if [ ! -f "$run/vocabulary.model" ]; then
    echo "2/7 Text vocabulary"
    python -m tools.train_sentencepiece --input="$run/scenes/texts-*.tfrecord" --output="$run/vocabulary.model" \
        --vocab_size=320
fi
if [ ! -f "$run/vqgan/model.safetensors" ]; then
    echo "3/7 Image tokenizer"
    python -m tools.train_vqgan --data="$run/scenes/images-*.tfrecord" --output="$run/vqgan" \
        --flagfile=launch/flagfiles/quickstart_vqgan.cfg
fi
echo "4/7 Pictures and texts to ids, once for all steps"
for split in paired images texts unpaired never; do
    python -m tools.tokenize --input="$run/scenes/$split-*.tfrecord" --output="$run/ids/$split" \
        --vqgan="$run/vqgan" --vocabulary="$run/vocabulary.model" --num_text_tokens=32
done
train() {
    python -m itit.train --flagfile=launch/flagfiles/quickstart.cfg --vqgan="$run/vqgan" \
        --vocabulary="$run/vocabulary.model" --paired_data="$run/ids/paired-*.tfrecord" \
        --image_data="$run/ids/images-*.tfrecord" --text_data="$run/ids/texts-*.tfrecord" \
        --eval_data="$run/ids/unpaired-*.tfrecord" --eval_scenes "$@"
}
echo "5/7 ITIT, on pairs first, then with both cycles"
train "$@" --workdir="$run/itit"
echo "6/7 Its control: the same pairs, steps and settings without unpaired data"
train "$@" --workdir="$run/control" --t2i2t=off --t2i2t_batch=0 --i2t2i=off --i2t2i_batch=0
echo "7/7 Report"
minutes="$( (cat "$run/seconds" 2>/dev/null; echo "$SECONDS") | awk '{ s += $1 } END { print s / 60 }')"
python -m tools.report_scenes --workdir="$run/itit" --control="$run/control" --output="$run" --minutes="$minutes" \
    --also="never=$run/ids/never-*.tfrecord"
