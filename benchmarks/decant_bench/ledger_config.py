"""What a ledger is made of: its stages, their prices, and the rule by which a stage has lost too much."""

from typing import Literal, Self

from pydantic import Field, model_validator

from decant.config import Config, InputPath, OptionalInputPath, OutputPath, nearest

GateRule = Literal["significant", "non_inferior"]


class StageConfig(Config):
    """One row of the ledger."""

    name: str = Field(description="the stage's name in the ledger")
    eval: InputPath = Field(description="folder that `decant eval` wrote")
    parent: str | None = Field(default=None, description="earlier stage to compare with, request by request")
    allowance: float | None = Field(
        default=None, ge=0, le=1, description="share of requests it may lose to its parent"
    )
    artifact: OptionalInputPath = Field(
        default=None, description="model folder or file, for the size on disk"
    )
    label_summary: OptionalInputPath = Field(
        default=None, description="labels.summary.json whose cost the stage carries"
    )
    trained: OptionalInputPath = Field(
        default=None, description="trained folder whose training cost the stage carries"
    )


class LedgerConfig(Config):
    """Which stages to compare, and how."""

    stages: tuple[StageConfig, ...] = Field(
        min_length=1, description="the rows, parents before their children"
    )
    teacher: str = Field(description="stage that the others are to agree with and to undercut")
    output: OutputPath = Field(description="folder for ledger.json and ledger.html")
    title: str = Field(default="Stage ledger", description="heading of the ledger")
    served: str | None = Field(
        default=None, description="stage that goes into use; the last one with a parent when not given"
    )
    price_per_hour: float | None = Field(
        default=None, ge=0, description="$ per hour of the hardware, where a replay states none"
    )
    volume: int = Field(
        default=1_000_000, ge=1, description="requests over which labeling and training are spread"
    )
    gate: bool = Field(
        default=False, description="end with exit code 2 when a stage lost more than its allowance"
    )
    gate_rule: GateRule = Field(
        default="significant",
        description="lost: the loss exceeds the allowance and its 95% interval excludes zero (significant),"
        " or the interval does not exclude a loss of the allowance (non_inferior)",
    )
    seed: int = Field(default=0, description="seed of resampling")

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stage {stage.name} stands twice")
            if stage.parent is not None and stage.parent not in seen:
                hint = nearest(stage.parent, seen)
                raise ValueError(
                    f"stage {stage.name}: no earlier stage {stage.parent} to be its parent{hint}"
                )
            if stage.allowance is not None and stage.parent is None:
                raise ValueError(f"stage {stage.name}: an allowance needs the parent that it is counted from")
            seen.append(stage.name)
        for field, name in (("teacher", self.teacher), ("served", self.served)):
            if name is not None and name not in seen:
                raise ValueError(f"{field} {name} is no stage{nearest(name, seen)}")
        return self

    @property
    def served_stage(self) -> str:
        """The stage that the ledger's headline is about."""
        children = [stage.name for stage in self.stages if stage.parent is not None]
        return self.served or (children or [self.stages[-1].name])[-1]
