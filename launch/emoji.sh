#!/usr/bin/env bash
# Emoji with few pairs, on a processor, an hour on a core of its own. DATA: folder of the data (default runs/data); RUN:
# where it all goes (default runs/emoji). Killed and run again, it carries on. Arguments go to itit.train.
# Emoji are fetched where there are none. Two files are taken where they are there, and done without elsewhere:
# DATA/coco/captions_val2017.json (further texts) and DATA/t5/spiece.model (T5's vocabulary); launch/README.md says where
# to get them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
data="${DATA:-runs/data}" run="${RUN:-runs/emoji}"
vocabulary="$data/t5/spiece.model"
check_flags --flagfile=launch/flagfiles/emoji_cpu.cfg --num_image_tokens=64 "$@"
mkdir -p "$run"
python() { "$venv/bin/python" "$@"; }

[ -d "$data/emoji" ] || python -m tools.fetch_emoji --output="$data/emoji"
[ -d "$run/data" ] || python -m tools.make_emoji --data="$data" --output="$run/data"
if [ ! -f "$vocabulary" ]; then
    vocabulary="$run/vocabulary.model"
    [ -f "$vocabulary" ] || python -m tools.train_sentencepiece --output="$vocabulary" \
        --input="$run/data/paired-*.tfrecord,$run/data/texts-*.tfrecord"
fi
[ -f "$run/vqgan/model.safetensors" ] || python -m tools.train_vqgan --output="$run/vqgan" \
    --data="$run/data/paired-*.tfrecord,$run/data/images-*.tfrecord" --flagfile=launch/flagfiles/emoji_vqgan.cfg
texts=""
for split in paired images test texts coco; do
    compgen -G "$run/data/$split-*.tfrecord" > /dev/null || continue
    python -m tools.tokenize --input="$run/data/$split-*.tfrecord" --output="$run/ids/$split" --vqgan="$run/vqgan" \
        --vocabulary="$vocabulary" --num_text_tokens=24
    case $split in texts | coco) texts="$texts${texts:+,}$run/ids/$split-*.tfrecord" ;; esac
done
python -m itit.train --flagfile=launch/flagfiles/emoji_cpu.cfg --workdir="$run/itit" --vqgan="$run/vqgan" \
    --vocabulary="$vocabulary" --paired_data="$run/ids/paired-*.tfrecord" --image_data="$run/ids/images-*.tfrecord" \
    --text_data="$texts" --eval_data="$run/ids/test-*.tfrecord" "$@"
python -m tools.report_emoji --workdir="$run/itit" --data="$data" --output="$run"
