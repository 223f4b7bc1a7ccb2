"""Names of people, places and organizations in a text, as Presidio finds them with a spaCy model."""

import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from decant.config import Config
from decant.errors import ConfigError, MissingExtraError

NameKind = Literal["person", "place", "organization"]
_ENTITIES: dict[NameKind, str] = {"person": "PERSON", "place": "LOCATION", "organization": "ORGANIZATION"}


class NamesConfig(Config):
    """The model that tells names from other words."""

    spacy: str = Field(
        default="en_core_web_lg", description="spaCy pipeline with entities: an installed package or a folder"
    )
    language: str = Field(default="en", description="language of the texts, as spaCy abbreviates it")


class NameFinder(Protocol):
    """What finds the names of one kind."""

    def __call__(self, text: str, kind: NameKind) -> Iterator[tuple[int, int]]: ...


def open_names(config: NamesConfig) -> NameFinder:
    """What finds names, its model loaded once in a process.

    MissingExtraError without Presidio, ConfigError without the model: nothing is downloaded, though Presidio
    would do so.
    """
    for package in ("presidio_analyzer", "spacy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "presidio")
    is_package = config.spacy.isidentifier() and importlib.util.find_spec(config.spacy) is not None
    if not is_package and not Path(config.spacy).is_dir():
        raise ConfigError(
            f"names.spacy: there is no spaCy pipeline {config.spacy}; install it with"
            f" `python -m spacy download {config.spacy}`, or name the folder of one"
        )
    return _finder(config.spacy, config.language)


@lru_cache(maxsize=4)
def _finder(spacy: str, language: str) -> NameFinder:
    # By name: an extra, which is seldom installed where types are checked.
    presidio: Any = importlib.import_module("presidio_analyzer")
    engines: Any = importlib.import_module("presidio_analyzer.nlp_engine")
    recognizers: Any = importlib.import_module("presidio_analyzer.predefined_recognizers")
    try:
        engine: Any = engines.SpacyNlpEngine(models=[{"lang_code": language, "model_name": spacy}])
        engine.load()
    except (OSError, ValueError) as error:
        raise ConfigError(f"names.spacy: {spacy} cannot be loaded ({error})") from error
    recognizer: Any = recognizers.SpacyRecognizer(
        supported_language=language, supported_entities=list(_ENTITIES.values())
    )
    registry: Any = presidio.RecognizerRegistry(recognizers=[recognizer], supported_languages=[language])
    analyzer: Any = presidio.AnalyzerEngine(
        registry=registry, nlp_engine=engine, supported_languages=[language]
    )

    @lru_cache(maxsize=1)
    def analyzed(text: str) -> list[Any]:
        # One pass over a text finds all kinds.
        return analyzer.analyze(text=text, language=language, entities=list(_ENTITIES.values()))

    def find(text: str, kind: NameKind) -> Iterator[tuple[int, int]]:
        return ((found.start, found.end) for found in analyzed(text) if found.entity_type == _ENTITIES[kind])

    return find
