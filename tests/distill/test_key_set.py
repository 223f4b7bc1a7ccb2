import hashlib
import sys

from decant_distill.key_set import KeySet


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_a_key_is_new_once() -> None:
    keys = KeySet()
    assert [keys.add(key(number % 3000)) for number in range(9000)] == [True] * 3000 + [False] * 6000
    assert len(keys) == 3000


def test_keys_that_differ_in_any_half_differ() -> None:
    keys, nought = KeySet(), "0" * 16
    spelled = (nought * 4, "f" * 16 + nought * 3, nought + "f" * 16 + nought * 2)
    assert [keys.add(one) for one in (*spelled, *spelled)] == [True] * 3 + [False] * 3


def test_twenty_thousand_keys_take_little_memory() -> None:
    keys = KeySet()
    for number in range(20_000):
        keys.add(key(number))
    held = sum(sys.getsizeof(value) for value in vars(keys).values())
    assert held < 1_500_000
