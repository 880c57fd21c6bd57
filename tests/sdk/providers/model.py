"""The one model behind all stand-ins. Each of them tells it what it was asked, in the same words
whichever provider's form the request had, and writes what it says in that provider's form.

So answers are the same everywhere if, and only if, no translation loses or changes anything.
"""

import dataclasses
import json

# What the model has used, however a provider counts it.
INPUT, CACHED, OUTPUT, REASONING = 1200, 1000, 40, 12
LONG = "".join(f"Line {n} of a long answer: \"é夜\"\n" for n in range(6000))


@dataclasses.dataclass
class Heard:
    """A request. `turns` are `["user", text]`, `["image", type, data]`, `["assistant", text]`,
    `["call", tool, arguments]` and `["result", call, text]`: a tool and a call by their numbers,
    for their names and ids may be written in other letters."""

    system: list = dataclasses.field(default_factory=list)
    turns: list = dataclasses.field(default_factory=list)
    # Of each tool: its description, and the schema of its arguments.
    tools: list = dataclasses.field(default_factory=list)
    # "auto", "none", "required", or the number of the tool that must be called.
    choice: object = "auto"
    schema: object = None
    is_json: bool = False
    most: object = None
    temperature: object = None
    stops: list = dataclasses.field(default_factory=list)
    thinks: bool = False

    def command(self):
        texts = [turn[1] for turn in self.turns if turn[0] == "user"]
        return texts[-1].split(" ")[0] if texts else ""


@dataclasses.dataclass
class Said:
    text: object = None
    thought: object = None
    # Each a tool's number, and the arguments as an object.
    calls: list = dataclasses.field(default_factory=list)
    # As OpenAI's API has it.
    finish: str = "stop"


def answer(heard):
    """What the model says: as the first word of the user's last text commands."""
    thought = "Let me see." if heard.thinks else None
    match heard.command():
        case "/call":
            numbers = range(len(heard.tools))
            if isinstance(heard.choice, int):
                numbers = [heard.choice]
            calls = [(number, _example(heard.tools[number][1])) for number in numbers]
            return Said(thought=thought, calls=calls, finish="tool_calls")
        case "/long":
            return Said(text=LONG, thought=thought)
        case "/cut":
            return Said(text="It ends in the mid", thought=thought, finish="length")
        case "/refuse":
            return Said(finish="content_filter")
        case "/structured":
            return Said(text=json.dumps(_example(heard.schema)), thought=thought)
        case "/json":
            return Said(text=json.dumps({"is_json": heard.is_json}), thought=thought)
    return Said(text=json.dumps(dataclasses.asdict(heard), sort_keys=True), thought=thought)


def vector(text, dimensions):
    return [float(len(text)), 0.5, 0.25, -1.0][: dimensions or 4]


def _example(schema):
    """A value that is as the schema says."""
    match schema.get("type"):
        case "object":
            return {key: _example(one) for key, one in schema.get("properties", {}).items()}
        case "array":
            return [_example(schema["items"])]
        case "integer":
            return 9007199254740993  # More than a double can hold.
        case "number":
            return 1.5
    return schema.get("enum", ["Zürich \"夜\""])[0]
