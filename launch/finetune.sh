#!/usr/bin/env bash
# Fine-tuning for captions in small, end to end: a short pre-training, then image-to-text alone on emoji and, where
# DATA/coco has them, on photographs of COCO, each over-fitted on purpose, best by CIDEr on the pictures that it trains on.
# Run it after launch/emoji.sh. VQGAN: folder of an image tokenizer at 64x64, 8x8 tokens (that of emoji.sh); DATA: folder
# of the data (default runs/data); RUN: where it all goes (default runs/finetune). Killed and run again, it carries on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
data="${DATA:-runs/data}" run="${RUN:-runs/finetune}" vqgan="${VQGAN:-runs/emoji/vqgan}"
vocabulary="$data/t5/spiece.model"
[ -f "$vocabulary" ] || vocabulary=runs/emoji/vocabulary.model
frozen=(--vqgan="$vqgan" --vocabulary="$vocabulary")
check_flags --flagfile=launch/flagfiles/finetune_small.cfg --keep_best=CIDEr "${frozen[@]}" --num_image_tokens=64 "$@"
mkdir -p "$run"
python() { "$venv/bin/python" "$@"; }

[ -d "$run/emoji" ] || python -m tools.make_emoji --data="$data" --output="$run/emoji"
texts=texts sets=(emoji/test)
if [ -d "$data/coco/images" ]; then
    sets=(photos/paired emoji/test)
    ls "$data/coco/images" > "$run/photos.txt"
    python -m tools.prepare coco --captions="$data/coco/captions.json" --images="$data/coco/images" \
        --image_list="$run/photos.txt" --short_side=64 --output="$run/photos"
fi
compgen -G "$run/emoji/coco-*.tfrecord" > /dev/null && texts=coco
for split in emoji/paired "emoji/$texts" "${sets[@]}"; do
    python -m tools.tokenize --input="$run/$split-*.tfrecord" --output="$run/ids/$split" --vqgan="$vqgan" \
        --vocabulary="$vocabulary" --num_text_tokens=24
done
python -m itit.train --flagfile=launch/flagfiles/pretrain_small.cfg "${frozen[@]}" --workdir="$run/pretrained" \
    --paired_data="$run/ids/emoji/paired-*.tfrecord" --text_data="$run/ids/emoji/$texts-*.tfrecord"
for split in "${sets[@]}"; do
    workdir="$run/finetuned_${split%%/*}"
    python -m itit.train --flagfile=launch/flagfiles/finetune_small.cfg "${frozen[@]}" --keep_best=CIDEr \
        --init_from="$run/pretrained" --workdir="$workdir" --paired_data="$run/ids/$split-*.tfrecord" "$@"
    python -m tools.caption --workdir="$workdir/best" --pictures="$run/$split-*.tfrecord" --output="$workdir/captions"
done
