"""Who gets a slot: first come first served, and the background last."""

import asyncio

import pytest

from decant_serve.admission import IN_BACKGROUND, Admission
from decant_serve.openai_errors import ApiFault


class Line:
    """Tasks at one admission; `order` is who got in."""

    def __init__(self, *, slots: int, queue_limit: int = 9) -> None:
        self.admission = Admission(slots=slots, queue_limit=queue_limit)
        self.order: list[str] = []
        self.go = {name: asyncio.Event() for name in "abcdef"}

    async def enter(self, name: str, *, in_background: bool = False) -> asyncio.Task[None]:
        async def work() -> None:
            IN_BACKGROUND.set(in_background)
            async with self.admission.slot():
                self.order.append(name)
                await self.go[name].wait()

        task = asyncio.create_task(work())
        await self.settle()
        return task

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        self.go[name].set()
        await self.settle()


async def test_the_background_waits_until_nobody_else_does() -> None:
    line = Line(slots=1)
    for name, in_background in (("a", False), ("b", True), ("c", False), ("d", False)):
        await line.enter(name, in_background=in_background)
    for name in "acdb":
        await line.leave(name)
    assert "".join(line.order) == "acdb"
    assert (line.admission.running, line.admission.waiting) == (0, 0)


async def test_the_background_uses_every_free_slot_and_fills_no_queue() -> None:
    line = Line(slots=2, queue_limit=0)
    for name in "abcd":
        await line.enter(name, in_background=True)
    assert line.order == ["a", "b"]
    with pytest.raises(ApiFault, match="waiting already"):
        await (await line.enter("e"))
    for name in "abcd":
        await line.leave(name)
    assert "".join(line.order) == "abcd"


async def test_who_leaves_the_queue_without_a_slot_holds_nobody_up() -> None:
    line = Line(slots=1)
    await line.enter("a")
    await line.enter("b", in_background=True)
    waiting = await line.enter("c")
    line.go["a"].set()
    waiting.cancel()
    await line.settle()
    assert line.order == ["a", "b"]
    cancelled = await line.enter("d", in_background=True)
    await line.enter("e", in_background=True)
    cancelled.cancel()
    await line.leave("b")
    assert line.order == ["a", "b", "e"]
    await line.leave("e")
