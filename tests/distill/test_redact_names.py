"""Names, found by the real Presidio with a spaCy pipeline that knows them from a list."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from decant.errors import ConfigError, MissingExtraError
from decant_distill.redact import Placeholders, Redaction
from decant_distill.redact_names import NamesConfig

TEXT = "Mia Kern of Acme Ltd wrote from Oslo to mia@acme.example; Mia Kern will call."


@pytest.fixture
def names(tmp_path: Path) -> NamesConfig:
    pytest.importorskip("presidio_analyzer", reason="needs the extra presidio")
    spacy: Any = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    known = {"PERSON": "Mia Kern", "ORG": "Acme Ltd", "GPE": "Oslo"}
    rules = [{"label": label, "pattern": name} for label, name in known.items()]
    pipeline.add_pipe("entity_ruler").add_patterns(rules)
    pipeline.to_disk(tmp_path / "pipeline")
    return NamesConfig(spacy=str(tmp_path / "pipeline"))


def test_names_become_placeholders_by_their_kind(names: NamesConfig) -> None:
    redaction = Redaction.of(("email", "person", "place", "organization"), names)
    assert redaction is not None
    placeholders = redaction.placeholders()
    assert placeholders.redact(TEXT) == (
        "[PERSON_1] of [ORGANIZATION_1] wrote from [PLACE_1] to [EMAIL_1]; [PERSON_1] will call."
    )
    assert placeholders.counts == {"person": 2, "organization": 1, "place": 1, "email": 1}


def test_only_the_kinds_asked_for_are_taken_out(names: NamesConfig) -> None:
    assert Placeholders(("place",), names).redact(TEXT) == TEXT.replace("Oslo", "[PLACE_1]")


def test_a_pipeline_that_is_not_there_is_one_line_before_the_first_row() -> None:
    if importlib.util.find_spec("presidio_analyzer") is None:
        with pytest.raises(MissingExtraError, match="presidio"):
            Redaction.of(("person",), NamesConfig())
    else:
        with pytest.raises(ConfigError, match=r"no spaCy pipeline xx_not_there; install it"):
            Redaction.of(("person",), NamesConfig(spacy="xx_not_there"))


def test_without_names_no_model_is_needed() -> None:
    redaction = Redaction.of(("email",), NamesConfig(spacy="xx_not_there"))
    assert redaction is not None
    assert redaction.placeholders().redact("a@b.io") == "[EMAIL_1]"
