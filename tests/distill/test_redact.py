"""What is private is found, what only looks like it stays, and equal values share a placeholder."""

import pytest

from decant_distill.redact import Placeholders, Redaction, find_private
from decant_distill.redact_names import NamesConfig

KEY = "sk-" + "a1B2" * 8


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to ann.lee+x@mail.example.org.", "Write to [EMAIL_1]."),
        ("Card 4111 1111 1111 1111, thanks", "Card [CARD_1], thanks"),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [IBAN_1] please"),
        ("GB82WEST12345698765432", "[IBAN_1]"),
        ("from 192.168.0.17 and 2001:db8::8a2e:370:7334", "from [IP_1] and [IP_2]"),
        ("Call +49 170 1234567 or (212) 555-0187", "Call [PHONE_1] or [PHONE_2]"),
        ("Tel. 030 1234567", "Tel. [PHONE_1]"),
        (f"export OPENAI={KEY}", "export OPENAI=[SECRET_1]"),
        ('password = "hunter22!"', 'password = "[SECRET_1]"'),
        ("a@b.io then A@B.io then c@d.io", "[EMAIL_1] then [EMAIL_1] then [EMAIL_2]"),
    ],
)
def test_what_is_private_becomes_a_typed_placeholder(text: str, clean: str) -> None:
    assert Placeholders().redact(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112",  # fails Luhn's check
        "DE88 3704 0044 0532 0130 00",  # fails the IBAN's check
        "version 1.2.3 of 2024-05-17, at 12:30:45",
        "7 + 5 is 12; 3,141,592 people; 1000000000",
        "std::vector a::b 300.1.2.3",
        "user@localhost and @mention",
        "pi is 3.14159265358979",
        "the password is short",
    ],
)
def test_what_only_looks_private_stays(text: str) -> None:
    assert find_private(text) == []


def test_only_the_kinds_that_are_asked_for_are_taken() -> None:
    text = "a@b.io at 10.0.0.1"
    assert Placeholders(("ip",)).redact(text) == "a@b.io at [IP_1]"


def test_gold_gets_the_placeholder_of_the_message() -> None:
    messages = [{"role": "system", "content": "s@s.io"}, {"role": "user", "content": "From c@d.io to a@b.io"}]
    clean, gold, counts = Redaction(("email",), NamesConfig())(messages, "a@b.io")
    assert [message["content"] for message in clean] == ["s@s.io", "From [EMAIL_1] to [EMAIL_2]"]
    assert (gold, counts) == ("[EMAIL_2]", {"email": 2})


@pytest.mark.parametrize(
    "text",
    [
        "SSN: 123-45-6789",
        "his social security number is 123456789",
        "NINO AB 12 34 56 C",
        "DNI 12345678Z",
        "NIE X-1234567-L",
        "NIR 2 55 08 14 168 025 38",
        "CF RSSMRA85T10A562S",
        "Steuer-ID 86 095 742 719",
        "BSN 111222333",
        "PESEL 44051401359",
        "身份证 11010519491231002X",
        "Aadhaar 2341 2341 2346",
    ],
)
def test_identity_numbers_are_found_by_shape_and_check_digit(text: str) -> None:
    assert "[NATIONAL_ID_1]" in Placeholders(("national_id",)).redact(text)
    assert not any(character.isdigit() for character in Placeholders(("national_id",)).redact(text)[:-4])


@pytest.mark.parametrize(
    "text",
    [
        "SSN: 000-45-6789",
        "SSN: 923-45-6789",
        "call 123456789",  # no word names it
        "NINO QQ 12 34 56 C",
        "DNI 12345678A",
        "NIR 2 55 08 14 168 025 39",
        "CF RSSMRA85T10A562T",
        "Steuer-ID 86 095 742 718",
        "BSN 111222334",
        "PESEL 44051401358",
        "PESEL 44951401359",
        "order 110105194912310021",
        "11010519491331002X",  # no such month
        "Aadhaar 2341 2341 2347",
        "part 12-345-6789, 2024-05-17, 3.14159265358979",
        "1234567890123456789012",
    ],
)
def test_numbers_that_fail_their_check_stay(text: str) -> None:
    assert find_private(text, ("national_id",)) == []
