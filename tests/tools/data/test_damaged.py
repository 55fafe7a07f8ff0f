"""Damage is counted, named as far as it can be read, and bounded."""

import pytest

from tools.data.damaged import NAMED, Damage


def test_damage_up_to_the_limit_and_not_beyond(capsys):
    damage = Damage(NAMED + 2, "pictures")
    for number in range(NAMED + 2):
        damage.add(f"cause {number}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"damaged: cause {n}" for n in range(NAMED)] + ["damaged: further ones are only counted"]
    with pytest.raises(
        ValueError, match=rf"^last \(damaged pictures so far: {NAMED + 3}, above --max_bad_records={NAMED + 2}"
    ):
        damage.add("last")
    with pytest.raises(ValueError, match=r"^only \(damaged items so far: 1, above --max_bad_records=0\)"):
        Damage(0, "items").add("only")
