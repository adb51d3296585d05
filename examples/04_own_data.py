"""Writes data in both file formats, checks it, trains the tiny model for two steps and evaluates it.

    python examples/04_own_data.py [FOLDER]

The questions are about the size of a colored square. `FOLDER/sft.jsonl` has conversations for the supervised cold start, in
which the answer follows from code; `FOLDER/rl.jsonl` has questions with reference answers for RL.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SYSTEM = "Answer the question. You may run Python on image_1."


def draw_square(path: Path, rng: random.Random) -> int:
    """Saves an image of a red square on white and returns the side of the square in pixels."""
    side = rng.randrange(20, 80)
    image = Image.new("RGB", (200, 150), "white")
    image.paste("red", (30, 30, 30 + side, 30 + side))
    image.save(path)
    return side


def conversation(image: str, side: int) -> dict:
    """Returns one example of the cold start: tool results are user turns, and only assistant turns are trained on."""
    code = "import numpy as np\nprint((np.asarray(image_1)[:, :, 1] == 0).any(0).sum())"
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "<image>How many pixels wide is the square?"},
            {"role": "assistant", "content": f"<think>I count.</think>\n<code>\n```python\n{code}\n```\n</code>"},
            {"role": "user", "content": f"Code execution result:\nstdout:\n```\n{side}\n```"},
            {"role": "assistant", "content": f"<think>I have it.</think>\n<answer>{side}</answer>"},
        ],
        "images": [image],
    }


def question(image: str, side: int) -> dict:
    """Returns one row for RL and evaluation, in the released format."""
    text = "How many pixels wide is the square?"
    return {
        "images": [{"image": image}],
        "data_source": "reason",
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"<image>{text}"}],
        "reward_model": {"ground_truth": str(side)},
        "extra_info": {"question": text, "verifier": "number"},
    }


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(*arguments: str) -> None:
    """Prints and runs a command of the package."""
    print("$ python -m", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def main(folder: Path) -> None:
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    squares = [(f"square_{i}.png", draw_square(folder / f"square_{i}.png", rng)) for i in range(12)]
    write_rows(folder / "sft.jsonl", [conversation(*square) for square in squares])
    write_rows(folder / "rl.jsonl", [question(*square) for square in squares])

    command("dv2_jax.data.check", f"{folder}/sft.jsonl", "--config=configs/sft.py")
    command("dv2_jax.data.check", f"{folder}/rl.jsonl", "--config=configs/rl.py")
    command(
        "dv2_jax.train", "--config=configs/sft.py", "--config.model.init=package:cold_start", "--config.sft.steps=2",
        "--config.sft.batch_rows=2",
        f"--config.sft.data={folder}/sft.jsonl", f"--config.run.root={folder}/runs", "--config.run.name=sft",
    )  # fmt: skip
    command(
        "dv2_jax.evaluate", f"--config.model.init=checkpoint:{folder}/runs/sft", f"--config.task.source={folder}/rl.jsonl",
        f"--config.run.root={folder}/runs", "--config.run.name=evaluation",
    )  # fmt: skip
    print("RL on the same rows:")
    print(f"$ python -m dv2_jax.train --config=configs/rl.py --config.task.source={folder}/rl.jsonl")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
