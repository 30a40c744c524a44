"""General text: prose only, no paragraph twice, and nothing both read and held out."""

from __future__ import annotations

import pytest

from trainers.language.general import GeneralTextError, read_general_text

PARAGRAPH = "The {} house on the hill had been empty for as long as anyone in the village could remember."
COUNT = 60


def test_the_default_is_prose_with_a_tenth_held_out():
    text = read_general_text()
    everything = [*text.chunks, *text.held_out]
    assert len(text.held_out) == pytest.approx(len(everything) / 10, abs=1)
    assert not set(text.chunks) & set(text.held_out)
    assert 30_000 < sum(len(chunk.split()) for chunk in everything) < 100_000
    assert not any("\n" in chunk for chunk in everything)


def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "deep").mkdir()
    prose = [PARAGRAPH.format(number) for number in range(COUNT)]
    (tmp_path / "a.txt").write_text("\n\n".join([*prose[:20], "x = {1: 2}; y = [3, 4, 5]; z = f(x, y) + 6 - 7 * 8."]))
    (tmp_path / "deep" / "b.txt").write_text("A title\n\n" + "\n\n".join([*prose[15:], *prose, *prose]))
    (tmp_path / "c.md").write_text("Not a text file, although it holds a sentence of more than eight plain words.")
    text = read_general_text(tmp_path)
    assert " ".join(sorted([*text.chunks, *text.held_out])).count("house on the hill") == COUNT
    assert "title" not in "".join([*text.chunks, *text.held_out])
    assert read_general_text(tmp_path / "deep" / "b.txt").chunks


def test_a_place_without_prose_is_refused(tmp_path):
    with pytest.raises(GeneralTextError, match=r"nothing\.txt: no such file"):
        read_general_text(tmp_path / "nothing.txt")
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(GeneralTextError, match="0 passages of plain English found, 10 are needed"):
        read_general_text(tmp_path)
