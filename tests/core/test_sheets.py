"""Sheets: every picture is there, as it should look, and no text or part of one is left out unseen."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from itit import sheets
from itit.sheets import Panel, Section

SIDE, GAP, ARROW = sheets.SIDE, sheets.GAP, sheets.ARROW


def noise(*shape):
    return np.random.default_rng().integers(256, size=(*shape, 3), dtype=np.uint8)


def words(count):
    """Random words of Latin and Cyrillic letters."""
    rng = np.random.default_rng()
    return [f"{''.join(rng.choice(list('abcdefgwéüжш'), rng.integers(1, 9)))}{i}" for i in range(count)]


def places(page, pixels):
    """Where the whole of a picture is on a page: list of (top, left)."""
    height, width, _ = pixels.shape
    starts = np.argwhere((page[: len(page) - height + 1, : page.shape[1] - width + 1] == pixels[0, 0]).all(-1))
    return [(y, x) for y, x in starts.tolist() if np.array_equal(page[y : y + height, x : x + width], pixels)]


def test_every_picture_is_there_once_in_its_row_and_column():
    pictures, factor = noise(8, 16, 16), SIDE // 16
    panels = [Panel(Image.fromarray(p) if i % 2 else p, f"text {i}") for i, p in enumerate(pictures)]
    sections = [Section("one", sheets.in_rows(panels[:5], 3)), Section("two", sheets.in_rows(panels[5:], 3))]
    page, found = sheets.draw(sections), []
    for picture in pictures:
        ((top, left),) = places(page, picture.repeat(factor, 0).repeat(factor, 1))
        found.append((top, left))
    rows = [[0, 1, 2], [3, 4], [5, 6, 7]]
    tops = [{found[i][0] for i in row} for row in rows]
    assert all(len(top) == 1 for top in tops) and sorted(map(min, tops)) == list(map(min, tops))
    assert min(tops[1]) - min(tops[0]) > SIDE + GAP  # the texts are between them
    for row in rows:
        assert [found[i][1] for i in row] == [GAP + column * (SIDE + GAP) for column in range(len(row))]
    assert page.shape[1] == max(sheets.MIN_WIDTH, 3 * (SIDE + GAP) + GAP)


def test_small_pictures_are_enlarged_large_ones_averaged_and_none_is_bent(tmp_path):
    small, large, wide = noise(16, 16), noise(2 * SIDE, 2 * SIDE), noise(20, 40)
    sheets.write(str(tmp_path / "a.png"), [Section("", [[Panel(small)], [Panel(large)], [Panel(wide)]])])
    page = np.asarray(Image.open(tmp_path / "a.png"))
    assert len(places(page, small.repeat(SIDE // 16, 0).repeat(SIDE // 16, 1))) == 1
    fitted = np.asarray(sheets.fitted(large, SIDE))
    assert np.abs(fitted - large.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))).max() <= 1
    assert len(places(page, fitted)) == 1
    fitted = np.asarray(sheets.fitted(wide, SIDE))
    assert fitted.shape == (SIDE // 2, SIDE, 3) and len(places(page, fitted)) == 1
    clear = Image.new("RGBA", (30, 30), (9, 9, 9, 0))
    assert (np.asarray(sheets.fitted(clear, SIDE)) == 255).all()


@pytest.mark.parametrize("spaces", [True, False])
def test_lines_fit_and_hold_the_whole_text_or_say_that_they_do_not(spaces):
    font = ImageFont.load_default(11)
    for count in (0, 1, 3, 40, 400):
        width, given = int(np.random.default_rng().integers(60, 300)), words(count)
        text = (" " if spaces else "").join(given)
        whole = sheets.wrapped("  \n" + text.replace(" ", "\t "), font, width, 10**6)
        assert all(font.getlength(line) <= width for line in whole)
        assert "".join(whole).replace(" ", "") == "".join(given)
        if spaces and all(font.getlength(word) <= width for word in given):
            assert " ".join(whole).split() == given
        if len(whole) > 2:
            cut = sheets.wrapped(text, font, width, len(whole) - 1)
            assert len(cut) == len(whole) - 1 and cut[:-1] == whole[: len(cut) - 1]
            assert all(font.getlength(line) <= width for line in cut)
            assert cut[-1].endswith("…") and whole[len(cut) - 1].startswith(cut[-1][:-1]) and len(cut[-1]) > 1
            assert sheets.wrapped(text, font, width, len(whole)) == whole


@pytest.mark.parametrize("section", [
    lambda text: Section(text, [[Panel(np.zeros((8, 8, 3), np.uint8))]]),
    lambda text: Section("title", [[Panel(np.zeros((8, 8, 3), np.uint8), text)]]),
    lambda text: Section("title", [[Panel(None, text), Panel(None, "word " * 99)]], joined=True),
], ids=["title", "beneath", "alone"])  # fmt: skip
def test_texts_are_seen_to_their_last_letter(section):
    """Also those of a page with one picture, and letters that the font does not have."""
    text = " ".join(words(7)) + " "

    def ink(text):
        return (sheets.draw([section(text)]) < 128).all(-1).sum()

    for letter in "xüжЖλ犬🙂\u0905":
        assert ink(text + letter) > ink(text) + 3, letter


def test_what_is_joined_has_arrows_and_what_was_given_a_frame():
    picture, step = np.full((16, 16, 3), 7, np.uint8), SIDE + ARROW
    stages = [Panel(None, "a red circle"), Panel(picture), Panel(None, ""), Panel(picture)]
    page = sheets.draw([Section("cycles", [stages, stages[1:]], joined=True)])
    assert page.shape[1] == 2 * GAP + 3 * step + SIDE
    framed, arrows = ((page == colour).all(-1) for colour in ((0x22, 0x66, 0xCC), (0x55,) * 3))
    columns = np.flatnonzero(framed.any(0))
    assert columns.min() < GAP and GAP + SIDE <= columns.max() < GAP + SIDE + ARROW // 2
    columns = set(((np.flatnonzero(arrows.any(0)) - GAP) // step).tolist())
    assert columns == {0, 1, 2} and ((np.flatnonzero(arrows.any(0)) - GAP) % step >= SIDE).all()
    inside = (page == 7).all(-1)
    assert inside.sum() == 4 * SIDE**2
    assert set(((np.flatnonzero(inside.any(0)) - GAP) // step).tolist()) == {0, 1, 2, 3}
    blank = sheets.draw([Section("cycles", [[Panel(None, "."), Panel(None, "")]], joined=True)])
    assert (blank[-SIDE:, GAP + step :] < 128).all(-1).sum() > 100  # "(nothing)"
