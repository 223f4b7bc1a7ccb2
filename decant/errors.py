"""The errors that Decant shows to its users: each says what is wrong, where, and what to do."""


class DecantError(Exception):
    """A mistake or failure that the user can act on; the CLI prints it on one line and exits with 2."""

    exit_code = 2


class ConfigError(DecantError, ValueError):
    """A config, recipe or command line that cannot be used."""


class DataError(DecantError, ValueError):
    """A dataset row or file that cannot be used."""


class ArtifactError(DecantError):
    """A model folder that is missing something or differs from its manifest."""


class ParityError(DecantError):
    """A stage gives other tokens than the training side recorded in its golden prompts."""


class EndpointError(DecantError):
    """An OpenAI-compatible endpoint that is down or refuses."""


class EngineError(DecantError):
    """An inference engine that did not start or died."""


class StoreError(DecantError):
    """The request store cannot be read or written."""


class StageError(DecantError):
    """A stage of a recipe that failed."""


class QuantizeError(DecantError):
    """A checkpoint that cannot be quantized as asked."""


class TrainingError(DecantError):
    """A training run that cannot start or go on."""


class GateError(DecantError):
    """A stage that lost more than its allowance."""


class MissingExtraError(DecantError, ImportError):
    """A heavy library that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'decant[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        return type(self), (self.package, self.extra)
