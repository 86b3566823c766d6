"""Compares near duplicates with an exhaustive search, and covers instructions and unusual texts."""

from __future__ import annotations

import itertools
import random

import numpy
import pytest

from workers.engine.importing import near_duplicates
from workers.engine.importing.near_duplicates import (
    WORD_PATTERN,
    NearDuplicates,
    ShingleIndex,
    find_near_duplicates,
    normalise,
    text_key,
)

TEMPLATE = (
    "You are the helpful assistant of a shop for bicycles. Read the message of the customer with care and "
    "answer in one short sentence without any marks. Never promise a date of delivery. If you do not know "
    "what the customer wants, ask for the number of the order. The message of the customer is this: "
)


def compared(prompts: list[str], answers: list[str] | None = None) -> NearDuplicates:
    wording, asked, whole = ShingleIndex(), bytearray(), bytearray()
    for place, prompt in enumerate(prompts):
        plain = normalise(prompt)
        wording.add(plain)
        asked += text_key(plain)
        whole += text_key(plain, str(answers[place] if answers else place))
    keys = [numpy.frombuffer(bytes(kept), dtype="<u8").astype(numpy.uint64) for kept in (asked, whole)]
    return find_near_duplicates(wording, keys[0], keys[1], lambda: None)


def grouped(prompts: list[str]) -> int:
    """In how many groups the prompts fall."""
    return len(set(compared(prompts).row_groups().tolist()))


def words(count: int, kind: str) -> str:
    return " ".join(f"{kind}{place}" for place in range(count))


def test_pairs_equal_those_of_an_exhaustive_comparison() -> None:
    draw = random.Random(7)
    prompts = []
    for number in range(150):
        text = [f"{number}w{place}" for place in range(draw.randint(4, 40))]
        prompts.append(" ".join(text))
        for _copy in range(draw.randint(0, 3)):
            changed = list(text)
            for _edit in range(draw.randint(1, 4)):
                changed[draw.randrange(len(changed))] = f"e{draw.randrange(10**6)}"
            prompts.append(" ".join(changed))
    sets = []
    for prompt in prompts:
        pieces = WORD_PATTERN.findall(prompt)
        sets.append({tuple(pieces[place : place + 3]) for place in range(len(pieces) - 2)})
    expected = {
        (one, other)
        for one, other in itertools.combinations(range(len(prompts)), 2)
        if len(sets[one] & sets[other]) >= 0.8 * len(sets[one] | sets[other])
    }
    near = compared(prompts)
    row_of = {int(prompt): row for row, prompt in enumerate(near.prompts)}
    found = {tuple(sorted((row_of[int(one)], row_of[int(other)]))) for one, other in near.pairs}
    assert len(expected) > 30
    assert found == expected


def test_shared_instruction_does_not_make_duplicates() -> None:
    prompts = [TEMPLATE + f"Where is my parcel number {number}?" for number in range(300)]
    assert grouped(prompts) == 300


def test_duplicates_after_a_shared_instruction_are_found() -> None:
    prompts = [TEMPLATE + words(12, f"a{number}x") for number in range(100)]
    copies = [prompt + " thank you" for prompt in prompts[:10]]
    near = compared(prompts + copies)
    groups = near.row_groups()
    assert (groups[100:] == groups[:10]).all()
    assert len(set(groups.tolist())) == 100


def test_shared_instruction_of_a_few_rows_does_not_make_duplicates() -> None:
    assert grouped([TEMPLATE + f"Is part {word} in stock?" for word in "abcdefghijklmno"]) == 15


def test_several_instructions_do_not_make_duplicates() -> None:
    prompts = [f"{words(60, f't{number % 10}x')} now the question is about {number}" for number in range(400)]
    assert grouped(prompts) == 400


def test_same_question_after_another_instruction_is_another_prompt() -> None:
    prompts = [f"{words(60, f't{number % 2}x')} {words(6, f'q{number // 2}x')}" for number in range(400)]
    assert grouped(prompts) == 400


def test_table_rows_with_one_rare_value_in_common_are_not_duplicates() -> None:
    draw = random.Random(3)
    prompts = [
        f"{TEMPLATE} age: {draw.randint(18, 80)}, income: {draw.randint(1, 9)}, "
        f"children: {draw.randint(0, 4)}, town: town{number // 4}"
        for number in range(800)
    ]
    near = compared(prompts)
    groups = near.row_groups()
    apart = sum(
        groups[one] != groups[other]
        for one, other in itertools.combinations(range(800), 2)
        if one // 4 == other // 4
    )
    assert apart > 1000, "of 1,200 pairs that share their town"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 17 + 25?", "What is 17 - 25?"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("x", "y"),
        ("C", "C++"),
        ("東京の天気はどうですか", "大阪の人口は何人ですか"),
    ],
)
def test_short_prompts_that_differ_stay_apart(one: str, other: str) -> None:
    assert grouped([one, other, "something else", "and more", "of that"]) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I reset my password?", "how do I  reset my password"),
        ("\uff28\uff4f\uff57 do I do it?", "How do I do it?"),
        ("CAFE\u0301", "caf\u00e9"),
        ("???", "???"),
    ],
)
def test_normalised_prompts_are_equal(one: str, other: str) -> None:
    assert grouped([one, other, "something else", "and more", "of that"]) == 4


def test_unspaced_scripts_are_compared_by_character() -> None:
    text = "東京の天気は今日とても良いですよね明日もそうでしょう"
    prompts = [text, text + "か", "大阪", "京都", "奈良"]
    assert grouped(prompts) == 4


def test_rows_of_an_instruction_are_compared_with_their_answers() -> None:
    prompts = ["Write a line."] * 60 + [f"Other {number}" for number in range(40)]
    near = compared(prompts, [f"line {number // 2}" for number in range(60)] + [""] * 40)
    assert len(set(near.row_groups().tolist())) == 30 + 40


def test_similar_rows_are_direct_neighbours_only() -> None:
    a = words(40, "a")
    others = [f"Another thing {number}" for number in range(40)]
    near = compared([a, a + " b c d e f", a + " b c d e f g h i j k l", "x", a.upper(), *others])
    flags = numpy.zeros(45, dtype=bool)
    flags[1] = True
    assert near.similar_rows(flags)[:6].tolist() == [True, True, True, False, True, False]
    flags[1], flags[2] = False, True
    assert near.similar_rows(flags)[:6].tolist() == [False, True, True, False, False, False]


def test_empty_prompts_are_equal() -> None:
    near = compared(["", "", "a", "b", "c"])
    assert near.prompts[0] == near.prompts[1]


def test_large_file_is_compared_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [words(200, f"a{number}x") for number in range(200)]
    prompts += [prompt + " b c d" for prompt in prompts[:50]]
    whole = compared(prompts)
    monkeypatch.setattr(near_duplicates, "MAX_SHINGLES", 15_000)
    sample = compared(prompts)
    assert (whole.is_sampled, sample.is_sampled) == (False, True)
    assert len(sample.pairs) == len(whole.pairs) == 50


def test_prompts_with_few_sampled_shingles_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [words(8, f"a{number}x") for number in range(400)]
    monkeypatch.setattr(near_duplicates, "MAX_SHINGLES", 500)
    assert grouped(prompts + [prompt + " b" for prompt in prompts]) == 800


def test_order_of_rows_does_not_matter() -> None:
    prompts = [words(30, f"a{number % 40}x") + f" {number // 40}" for number in range(120)]
    draw = numpy.random.default_rng(1).permutation(120)
    plain = compared(prompts).row_groups()
    mixed = compared([prompts[place] for place in draw]).row_groups()
    assert len(set(zip(plain[draw].tolist(), mixed.tolist(), strict=True))) == len(set(plain.tolist())) == 40
