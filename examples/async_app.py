"""Ask several questions at once with asyncio, and cancel one of them.

python examples/async_app.py [MODEL]
"""

import asyncio
import sys

from magistral_mlx import Magistral

QUESTIONS = ["What is 37 + 85?", "What is 412 - 97?", "What is 8 + 9?"]


async def ask(magistral: Magistral, question: str) -> None:
    result = await magistral.agenerate(question, temperature=0)
    print(f"{question} {result.text}")


async def cancel_one(magistral: Magistral) -> None:
    """Cancelling a task stops its answer within a token."""
    task = asyncio.create_task(magistral.agenerate("What is 1 + 1?", min_thinking=100_000))
    await asyncio.sleep(0.2)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        print("One was cancelled.")


async def main(model: str = "demo") -> None:
    async with await Magistral.aload(model) as magistral:
        await cancel_one(magistral)
        async with asyncio.TaskGroup() as tasks:
            for question in QUESTIONS:
                tasks.create_task(ask(magistral, question))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
